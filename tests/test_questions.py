"""The pages of figures: every question has one and the command that measured it, no cell of a table is empty."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from tests.documents import run as run_code

DOCS = Path(__file__).parent.parent / "docs"
SECTIONS = (DOCS / "questions.md").read_text(encoding="utf-8").split("\n## ")[1:]
QUESTIONS = {section.splitlines()[0]: section for section in SECTIONS}
TABLES = ("head_to_head.md", "report.md", "tutorial.md", "privacy_officers.md", "reach.md")


def commands(section: str) -> list[list[str]]:
    return [shlex.split(line) for line in section.splitlines() if line.startswith("    ")]


@pytest.mark.parametrize("question", QUESTIONS)
def test_every_question_has_a_figure_and_its_command(question: str) -> None:
    text = "\n".join(line for line in QUESTIONS[question].splitlines()[1:] if not line.startswith("    "))
    assert re.search(r"\d", text)
    found = commands(QUESTIONS[question])
    assert found
    for program, *arguments in found:
        if program == "python" and arguments[0] == "-m":
            assert importlib.util.find_spec(arguments[1]) is not None, arguments[1]
        for argument in arguments:
            if argument.startswith("examples/"):
                assert (DOCS.parent / argument).exists()


def test_claimed_inputs_are_checked_as_it_says(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(DOCS.parent)
    (code,) = [
        arguments[1] for section in SECTIONS for _, *arguments in commands(section) if arguments[0] == "-c"
    ]
    run_code(code)
    assert "exact if plain gradient, none alike: 16 of 16" in capsys.readouterr().out


@pytest.mark.parametrize("page", TABLES)
def test_no_cell_is_empty(page: str) -> None:
    rows = [line for line in (DOCS / page).read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    assert rows
    for row in rows:
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert all(cells), row
