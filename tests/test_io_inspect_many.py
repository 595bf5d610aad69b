"""`inspect` on many records: those that are alike together, and a look at one of each kind."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import spear_np
from spear_io import DumpWriter, RecordInfo
from spear_io.show.overview import FEW_RECORDS
from tests.federations import gradients_of
from tests.io_files import Command, command


@pytest.fixture
def spear(capsys: pytest.CaptureFixture[str]) -> Command:
    return command(capsys)


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Forty records of two kinds."""
    rng = np.random.default_rng(1)
    path = tmp_path / "dump.h5"
    layers = [gradients_of(rng.standard_normal((3, n)), 40, n) for n in (20, 24)]
    with DumpWriter(path) as dump:
        for number in range(40):
            info = RecordInfo(client=f"client-{number % 8}", round=number // 8, batch_size=2 + number % 3)
            dump.add_record(f"record-{number}", {"fc1": layers[number >= 30]}, info=info)
    return path


def test_records_that_are_alike_are_shown_together(
    spear: Command, many: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at: list[tuple[int, int]] = []
    survey = spear_np.survey

    def counted(gradients: Any, **options: Any) -> spear_np.Survey:
        looked_at.append(gradients.shape)
        return survey(gradients, **options)

    monkeypatch.setattr(spear_np, "survey", counted)
    run = spear("inspect", many)
    assert (run.status, run.err) == (0, "")
    assert looked_at == [(40, 20), (40, 24)]
    assert "40 record(s)" in run.out
    assert "and 29 records alike, to record-29, 8 client(s): client-0, client-1, … client-7" in run.out
    assert "4 round(s): 0, 1, 2, 3, batches of 2 to 4 stated" in run.out
    assert "and 9 records alike, to record-39" in run.out
    document = json.loads(spear("inspect", many, "--json").out)
    assert [len(group) for group in document["groups"]] == [30, 10]
    assert [record["record"] for record in document["records"]] == [
        f"record-{number}" for number in range(40)
    ]
    assert [record["layers"][0]["survey"] is not None for record in document["records"]] == [
        number in (0, 30) for number in range(40)
    ]


def test_some_records_are_all_looked_at(spear: Command, many: Path) -> None:
    document = json.loads(spear("inspect", many, "--record", "record-3?", "--json").out)
    assert len(document["records"]) == 10 <= FEW_RECORDS
    assert all(record["layers"][0]["survey"] for record in document["records"])
    run = spear("inspect", many, "--record", "nobody")
    assert run.status == 2
    assert "there is no record 'nobody'" in run.error


def test_a_thousand_records_take_seconds(spear: Command, tmp_path: Path) -> None:
    layer = gradients_of(np.random.default_rng(1).standard_normal((3, 20)), 40, 1)
    with DumpWriter(tmp_path / "dump.h5") as dump:
        for number in range(1000):
            dump.add_record(f"record-{number}", {"fc1": layer})
    started = time.process_time()
    assert spear("inspect", tmp_path / "dump.h5").status == 0
    assert time.process_time() - started < 20
