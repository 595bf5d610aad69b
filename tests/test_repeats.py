"""Inputs that are in several records are found by their rows and bounds, and by nothing else."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spear_io import DumpWriter, RecordInfo, invert_dumps, open_inversion
from spear_io.many.repeats import SHARP, Repeats
from tests.federations import gradients_of
from tests.io_files import Command, command

Floats = np.ndarray[Any, np.dtype[Any]]


@pytest.fixture
def spear(capsys: pytest.CaptureFixture[str]) -> Command:
    return command(capsys)


def groups_of(batches: list[Floats], bounds: list[float]) -> list[list[tuple[int, int]]]:
    """Which rows of the batches are the same, each known to within its batch's bound."""
    repeats = Repeats(lambda batch, row: batches[batch][row])
    for number, (rows, bound) in enumerate(zip(batches, bounds, strict=True)):
        half = rows.shape[1] // 2
        blocks = [(slice(0, half), rows[:, :half]), (slice(half, None), rows[:, half:])]
        repeats.add(number, np.full(len(rows), bound), blocks, rows.shape[1])
    return repeats.groups()


def test_equal_rows_are_found_within_their_bounds() -> None:
    rng = np.random.default_rng(1)
    rows = rng.standard_normal((30, 50))
    bound = 1e-5
    # As two recoveries of the same input: each within its own bound of the truth.
    batches = [rows[[0, 1, 2]] + bound, rows[[3, 1]] - bound, rows[[4, 5, 2]] + bound, rows[[1]]]
    assert groups_of(batches, [bound] * 4) == [[(0, 1), (1, 1), (3, 0)], [(0, 2), (2, 2)]]


def test_rows_that_differ_by_more_than_their_bounds_are_different() -> None:
    row = np.random.default_rng(2).standard_normal((1, 50))
    other = row.copy()
    other[0, 7] += 3e-5
    assert groups_of([row, other], [1e-5, 1e-5]) == []
    assert groups_of([row, other], [1e-5, 2.1e-5]) == [[(0, 0), (1, 0)]]


def test_what_is_hardly_known_is_the_same_as_nothing() -> None:
    row = np.random.default_rng(3).standard_normal((1, 50))
    wide = 2 * SHARP * float(np.abs(row).max())
    assert groups_of([row, row], [wide, 1e-6]) == []
    assert groups_of([row, row], [np.inf, 1e-6]) == []
    assert groups_of([row, row], [np.nan, 1e-6]) == []
    assert groups_of([np.zeros((1, 50)), np.zeros((1, 50))], [1e-6, 1e-6]) == []


def test_rows_of_other_widths_and_rows_of_one_batch_are_not_compared() -> None:
    row = np.random.default_rng(4).standard_normal((1, 50))
    assert groups_of([row, row[:, :40]], [1e-6, 1e-6]) == []
    assert groups_of([np.concatenate([row, row])], [1e-6]) == []


@pytest.mark.parametrize("seed", range(5))
def test_as_by_comparing_all_with_all(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pool = rng.standard_normal((25, 30))
    bounds = [float(bound) for bound in 10.0 ** rng.uniform(-8, -3, 12)]
    batches = [
        pool[rng.choice(25, 4, replace=False)] + bound * rng.uniform(-1, 1, (4, 30)) for bound in bounds
    ]
    same = {
        frozenset([(i, k), (j, n)])
        for i, one in enumerate(batches)
        for j, other in enumerate(batches)
        for k, row in enumerate(one)
        for n, second in enumerate(other)
        if i < j and np.abs(row - second).max() <= bounds[i] + bounds[j]
    }
    found = groups_of(batches, bounds)
    for pair in same:
        assert any(pair <= set(group) for group in found)
    assert sum(len(group) * (len(group) - 1) // 2 for group in found) == len(same)


@pytest.fixture
def leaking(tmp_path: Path) -> Path:
    """Four clients of two rounds; one has the same inputs in both, another shares one with it."""
    rng = np.random.default_rng(8)
    inputs = {(client, round_): rng.standard_normal((2, 20)) for client in range(4) for round_ in (1, 2)}
    inputs[0, 2] = inputs[0, 1]
    inputs[3, 2] = np.stack([inputs[3, 2][0], inputs[0, 1][1]])
    path = tmp_path / "dump.h5"
    with DumpWriter(path) as dump:
        for number, ((client, round_), rows) in enumerate(inputs.items()):
            info = RecordInfo(client=f"={client}", round=round_)
            dump.add_record(f"{client}-{round_}", {"fc1": gradients_of(rows, 50, number)}, info=info)
    return path


@pytest.mark.parametrize("split", [False, True])
def test_the_file_marks_them(leaking: Path, tmp_path: Path, split: bool) -> None:
    done = invert_dumps(leaking, tmp_path / "out", split=split)
    assert done.repeated == 2
    marked: dict[str, list[int]] = {}
    for path in done.files:
        with open_inversion(path) as inversion:
            marked |= {
                layer.record: sorted(layer.repeats[:].tolist())
                for layer in inversion.layers
                if layer.repeats is not None
            }
    assert marked == {"0-1": [0, 1], "0-2": [0, 1], "3-2": [-1, marked["3-2"][1]]}
    assert marked["3-2"][1] in (0, 1)


def test_the_command_tells_who_leaks_again_and_again(spear: Command, leaking: Path, tmp_path: Path) -> None:
    out, table = tmp_path / "out.h5", tmp_path / "table.csv"
    run = spear("invert", leaking, "-o", out, "--summary", table)
    assert "seen elsewhere" in run.out
    assert "were found in 3 of them, most of all in: =0 (2 record(s)), =3 (1 record(s))" in run.out
    with table.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["seen_elsewhere"] for row in rows] == ["2", "2", "0", "0", "0", "0", "0", "1"]
    assert {row["client"][:2] for row in rows} == {"'="}  # no spreadsheet takes it for a formula


def test_summaries_are_alike_in_every_format(spear: Command, leaking: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    out = tmp_path / "out.h5"
    for suffix in ("csv", "json", "parquet"):
        spear("invert", leaking, "-o", out, "--summary", tmp_path / f"table.{suffix}", "-q")
    rows = json.loads((tmp_path / "table.json").read_text())
    table = parquet.read_table(tmp_path / "table.parquet")
    assert [row["record"] for row in rows] == table.column("record").to_pylist()
    assert [row["found"] for row in rows] == table.column("found").to_pylist() == [2] * 8
    assert [row["client"] for row in rows] == table.column("client").to_pylist()
    assert all(0 < row["worst_bound"] < 1e-4 for row in rows)
    with (tmp_path / "table.csv").open(newline="") as stream:
        assert [row["claim"] for row in csv.DictReader(stream)] == [row["claim"] for row in rows]
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".csv", ".h5", ".h5", ".json", ".parquet"]


def test_records_that_cannot_be_read_are_rows_too(spear: Command, leaking: Path, tmp_path: Path) -> None:
    import h5py

    with h5py.File(leaking, "r+") as file:
        file["records/1-1/layers/fc1/weight_grad"][0, 0] = np.nan
    spear("invert", leaking, "-o", tmp_path / "out.h5", "--summary", tmp_path / "table.json", "-q")
    rows = json.loads((tmp_path / "table.json").read_text())
    (unread,) = [row for row in rows if row["status"] == "unread"]
    assert (unread["record"], unread["found"]) == ("1-1", None)
    assert "holds NaN" in unread["reason"]
