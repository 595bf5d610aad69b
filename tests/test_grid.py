"""Tables at 60, 80 and 160 columns; certificates of several records; completion; help that names the command."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from rich.text import Text

import spear_np
from spear_io import InversionWriter, open_inversion
from spear_io.show.grid import Grid
from spear_io.show.outcomes import MOST_CERTIFICATES, Outcome, print_outcomes, read_outcomes
from spear_io.show.tables import new_table
from tests.io_files import Command, command
from tests.pages import answer, pictures

ROOT = Path(__file__).parent.parent
CLAIM = "exact if plain gradient, none alike, none hidden between"


@pytest.fixture
def spear(capsys: pytest.CaptureFixture[str]) -> Command:
    return command(capsys)


def grid() -> Grid:
    made = new_table("record", "layer", "status", ">inputs", ">?λ", ">?proposals", ">time", "?device")
    for number in range(3):
        made.add_row(
            f"client-{number}", "encoder.fc1", Text(CLAIM), "16/16", "0.9999", "12.3 M", "12:30", "gpu:0"
        )
    return made


def printed(made: Grid, width: int) -> list[str]:
    stream = io.StringIO()
    Console(width=width, file=stream).print(made)
    return [line.rstrip() for line in stream.getvalue().splitlines()]


@pytest.mark.parametrize("width", [20, 40, 60, 80, 100, 160])
def test_tables_fit_and_break_at_words(width: int) -> None:
    lines = printed(grid(), width)
    assert max(map(len, lines)) <= width
    words = {word for line in lines for word in line.split()}
    assert {"client-0", "client-2", "encoder.fc1", "plain", "gradient,", "between", "16/16"} <= words


def test_columns_are_left_out_from_the_right_and_named() -> None:
    assert "device" in printed(grid(), 160)[1]
    text = "\n".join(printed(grid(), 70))
    assert "left out for want of room: proposals, device" in " ".join(text.split())
    assert "client-2" in text


def test_rows_become_blocks_where_no_table_fits() -> None:
    lines = printed(grid(), 30)
    assert lines[0] == "record: client-0"
    assert "  inputs: 16/16" in lines
    assert not any("left out" in line for line in lines)


def outcomes(folder: Path, count: int) -> list[Outcome]:
    result = answer(pictures(2))
    other = replace(
        result, certificate=replace(result.certificate, caveats=("identical inputs count once", "one more"))
    )
    with InversionWriter(folder / "out.h5", source="dump.h5") as out:
        for number in range(count):
            out.add(f"client-{number}", "fc", other if number else result)
    with open_inversion(folder / "out.h5") as inversion:
        return read_outcomes(inversion)


def test_a_few_records_have_their_certificates(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    print_outcomes(outcomes(tmp_path, 3), output="out.h5", seconds=75.2)
    text = capsys.readouterr().out
    assert text.count("sign_agreement") == 3
    assert text.count(" *  one more") == 2
    assert "written to out.h5 in 1:15" in text


def test_many_records_say_once_what_they_have_in_common(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    count = MOST_CERTIFICATES + 3
    print_outcomes(outcomes(tmp_path, count), output="out.h5", seconds=0.5)
    text = capsys.readouterr().out
    assert "sign_agreement" not in text
    assert f"{count} of {count}: identical inputs count once" in text
    assert f"{count - 1} of {count}: one more" in text
    assert f"{count} of {count}: if plain: nobody changed it" in text


@pytest.mark.parametrize(
    ("words", "name"), [((), "spear-np"), (("invert",), "spear-np invert"), (("export",), "spear-np export")]
)
def test_errors_name_the_help_of_their_command(spear: Command, words: tuple[str, ...], name: str) -> None:
    assert f"(see {name} --help)" in spear(*words, "--nonsense").error


def test_the_shell_completes_commands() -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}:{ROOT / 'io'}",
        "COMP_WORDS": "spear-np re",
        "COMP_CWORD": "1",
        "_SPEAR_NP_COMPLETE": "complete_bash",
    }
    done = subprocess.run(
        [sys.executable, "-m", "spear_io"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["report"]


def test_the_public_answer_is_unchanged_by_printing() -> None:
    assert spear_np.Inversion.__repr__(answer(pictures(2))).startswith("<Fake exact if plain: 2 of 2 inputs")
