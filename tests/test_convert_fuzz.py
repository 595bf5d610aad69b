"""Damaged files of every format: a dump or one line, never a traceback and never a crash."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests import test_convert_formats as formats
from tests.fuzz import CONVERTED, KINDS, STEP, Mutant, Outcome, mutated, problems
from tests.io_files import Command, command, leftovers, write_earlier
from tests.test_io_apart import ENVIRONMENT, ROOT

MUTANTS = 60


@pytest.fixture
def spear(capsys: pytest.CaptureFixture[str]) -> Command:
    return command(capsys)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("writer", CONVERTED, ids=lambda writer: writer.__name__)
def test_damage_is_answered(spear: Command, tmp_path: Path, writer: formats.Writer) -> None:
    arguments = writer(tmp_path, STEP)
    source, dump = arguments[0], tmp_path / "dump.h5"
    assert spear("convert", *arguments, dump).status == 0
    whole = source.read_bytes()
    rng = np.random.default_rng(20)
    statuses = set()
    for number in range(MUTANTS):
        source.write_bytes(mutated(whole, rng))
        earlier = write_earlier(dump)
        run = spear("convert", *arguments, dump)
        statuses.add(run.status)
        assert run.status in (0, 2), (number, run.err)
        if run.status == 2:
            assert run.err.count("\n") == 1, (number, run.err)
            assert dump.read_bytes() == earlier
        assert leftovers(tmp_path) == []
    assert 2 in statuses


@pytest.mark.skipif(sys.platform != "linux", reason="it asks Linux what the command took")
def test_the_fuzzer_finds_nothing(tmp_path: Path) -> None:
    """Two mutants of every kind; `python -m tests.fuzz` tries as many as there is time for."""
    pytest.importorskip("torch", reason="PyTorch is not installed")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.fuzz",
            "--count",
            str(2 * len(KINDS)),
            "--seed",
            "3",
            "--keep",
            tmp_path,
        ],
        capture_output=True,
        text=True,
        check=False,
        env=ENVIRONMENT,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{2 * len(KINDS)} mutants of seed 3" in done.stdout


def test_the_fuzzer_would_see_it(tmp_path: Path) -> None:
    mutant = Mutant(KINDS[0], 1, 2)
    command = mutant.write(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    good = Outcome(mutant, command, 2, 1.0, 1.0, 10**8, "", "spear-np: error: source: damaged\n")

    def found(outcome: Outcome) -> list[str]:
        return list(problems(outcome, tmp_path, before))

    assert found(good) == []
    for change in (
        {"status": -11},
        {"status": 1},
        {"status": 0},
        {"seconds": 31.0},
        {"memory": 2 * 10**9},
        {"err": ""},
        {"err": "spear-np: error: source: a\nb\n"},
        {"err": "Traceback"},
        {"out": "a table"},
    ):
        assert found(replace(good, **change)), change
    (tmp_path / "core").touch()
    assert found(good) == ["other files: ['core']"]
    (tmp_path / "core").unlink()
    (tmp_path / "source").write_bytes(b"")
    assert found(good) == ["other files: changed"]
