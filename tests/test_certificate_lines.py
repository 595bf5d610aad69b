"""The certificate on a terminal: what an auditor reads who knows no name of a test."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import spear_np
from spear_io import Display, InversionWriter
from spear_io.show.certificate import certificate_lines
from tests.io_files import Command, command
from tests.pages import answer, pictures

EVIDENCE = spear_np.Evidence(True, False, False, True, None, None)
CERTIFICATE = spear_np.Certificate(
    checks=(
        spear_np.Check("noise_known", 0.0, ">=", 1.0, "1 if it looks like rounding"),
        spear_np.Check("sign_agreement", 1.0, ">=", 0.99, "λ"),
        spear_np.Check("bias_residual", None, "<=", 100.0, "what is left"),
        spear_np.Check("new_test", 3.0, "<=", 100.0, "what a later version measures"),
    ),
    evidence=(EVIDENCE, replace(EVIDENCE, unique=False)),
    rests_on=(spear_np.Premise("plain gradient", "weight_grad is plain"),),
    caveats=("the batch may be larger",),
)


@pytest.fixture
def spear(capsys: pytest.CaptureFixture[str]) -> Command:
    return command(capsys)


def lines(status: spear_np.Status = spear_np.Status.APPROXIMATE) -> list[str]:
    return [" ".join(line.plain.split()) for line in certificate_lines(status, CERTIFICATE)]


def test_tests_are_named_by_what_they_say() -> None:
    said = lines()
    assert said[0] == "Complete, but not proven: 2 of 4 tests passed"
    assert "NO The noise is of a kind that is understood no yes noise_known" in said
    assert "ok The model confirms the inputs 1 at least 0.99 sign_agreement" in said
    assert "-- The inputs have the right size missing at most 100 bias_residual" in said
    assert "ok new test 3 at most 100 new_test" in said


def test_a_test_that_failed_says_what_it_measures() -> None:
    said = lines()
    place = said.index("NO The noise is of a kind that is understood no yes noise_known")
    assert "checkpoints" in said[place + 1]


def test_evidence_is_counted_and_what_is_not_demanded_is_no_failure() -> None:
    said = lines()
    assert "NO of each input: no other candidate fits its zeros: 1 of 2" in said
    assert "-- of each input: its zeros are more than needed: 0 of 2 (more than is demanded)" in said
    assert "ok of each input: its error is small enough: 2 of 2" in said
    assert "-- of each input: gradient and model agree: could not be looked at" in said


def test_premises_and_caveats_have_headings_of_their_own() -> None:
    said = lines()
    place = said.index("It rests on what no test can show:")
    assert (
        said[place + 1]
        == "if plain gradient: The shared numbers are the gradient itself: weight_grad is plain"
    )
    assert said[place + 2 :] == [
        "What it leaves open, or takes for granted besides:",
        "* the batch may be larger",
    ]


def test_candidates_are_told_from_inputs_that_passed(spear: Command, tmp_path: Path) -> None:
    failed = answer(pictures(0), status="failed", batch_size=24)
    history = (spear_np.Round("descent", 100, 25, None, 1.0),)
    with InversionWriter(tmp_path / "out.h5", source="dump.h5") as out:
        out.add("record-0", "fc", replace(failed, history=history))
    done = spear("inspect", tmp_path / "out.h5")
    assert "recovered" in done.out
    assert "0/24" in done.out
    assert "the search ended with 25 candidates, and none of them passed the tests\n" in done.out


def test_remarks_of_several_layers_say_whose_they_are(spear: Command, tmp_path: Path) -> None:
    with InversionWriter(tmp_path / "out.h5", source="dump.h5") as out:
        for number in range(2):
            display = Display(client=f"ward {number}", round=3)
            result = answer(pictures(2), status="partial", batch_size=4)
            out.add(f"record-{number}", "fc", result, display=display)
    done = spear("inspect", tmp_path / "out.h5")
    assert "Client ward 1, round 3, layer fc: something is missing" in done.out
