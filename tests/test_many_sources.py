"""Several dumps, folders and patterns in; several sources into one dump; the recipe for a folder of Flower's weights."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from spear_io import DumpWriter, FileError, RecordInfo, open_dump, open_inversion
from spear_io.many.selection import Wanted, select
from spear_io.many.sources import Sources, find_dumps, labels_of
from tests.federations import ROOT, environment, gradients_of, write_federation
from tests.io_files import Command, command

Floats = np.ndarray[Any, np.dtype[Any]]


@pytest.fixture
def spear(capsys: pytest.CaptureFixture[str]) -> Command:
    return command(capsys)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Rounds 1, 2 and 10, an inversion, a damaged file, a text and a folder."""
    for number in (1, 2, 10):
        write_federation(tmp_path / f"round-{number}.h5", 2, round_=number)
    with h5py.File(tmp_path / "old-result.h5", "w") as file:
        file.attrs["format"] = "spear-inversion"
    (tmp_path / "damaged.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    (tmp_path / "notes.txt").touch()
    (tmp_path / "more").mkdir()
    write_federation(tmp_path / "more" / "round-3.h5", 1, round_=3)
    return tmp_path


def names(sources: Sources) -> list[str]:
    return [path.name for path in sources.dumps]


def test_a_folder_stands_for_its_dumps_in_the_order_of_their_numbers(folder: Path) -> None:
    found = find_dumps([folder])
    assert names(found) == ["damaged.h5", "round-1.h5", "round-2.h5", "round-10.h5"]
    (note,) = found.notes
    assert note.startswith("1 other HDF5 file(s)")


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("round-*.h5", ["round-1.h5", "round-2.h5", "round-10.h5"]),
        ("**/round-?.h5", ["round-3.h5", "round-1.h5", "round-2.h5"]),
        ("round-[2-9].h5", ["round-2.h5"]),
    ],
)
def test_patterns(folder: Path, pattern: str, expected: list[str]) -> None:
    assert names(find_dumps([folder / pattern])) == expected


def test_a_file_whose_name_looks_like_a_pattern_is_a_file(tmp_path: Path) -> None:
    write_federation(tmp_path / "round[1].h5", 1)
    assert names(find_dumps([tmp_path / "round[1].h5"])) == ["round[1].h5"]


def test_a_file_that_is_meant_twice_is_read_once(folder: Path) -> None:
    (folder / "link.h5").symlink_to("round-1.h5")
    given = [folder / "round-1.h5", folder / "round-*.h5", folder / "link.h5"]
    assert names(find_dumps(given)) == ["round-1.h5", "round-2.h5", "round-10.h5"]


@pytest.mark.parametrize(
    ("given", "message"),
    [("nothing-*.h5", "no file has such a name"), ("empty", "a folder without gradient dumps")],
)
def test_what_stands_for_nothing_is_one_line(tmp_path: Path, given: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileError, match=message):
        find_dumps([tmp_path / given])


@pytest.mark.parametrize(
    ("paths", "labels"),
    [
        (["a/x.h5", "a/y.h5"], ("x", "y")),
        (["a/x.h5", "b/x.h5"], ("a:x", "b:x")),
        (["a/x.h5", "a/b/x.h5"], ("x", "b:x")),
        (["a/x.h5", "a/x.hdf5"], ("x (1)", "x (2)")),
    ],
)
def test_labels_are_short_and_different(paths: list[str], labels: tuple[str, ...]) -> None:
    assert labels_of([Path(path) for path in paths]) == labels


def chosen(folder: Path, **wanted: list[str]) -> list[str]:
    found = find_dumps([folder / "round-*.h5"])
    return [task.name for task in select(found, Wanted(**wanted)).tasks]


def test_records_are_chosen_by_client_round_and_patterns(folder: Path) -> None:
    assert chosen(folder, rounds=["1*"]) == [
        "round-1:record-0",
        "round-1:record-1",
        "round-10:record-0",
        "round-10:record-1",
    ]
    assert chosen(folder, clients=["client-1"], rounds=["2"]) == ["round-2:record-1"]
    assert chosen(folder, records=["*-[1-9]"], rounds=["1"]) == ["round-1:record-1"]
    with pytest.raises(FileError, match="there is no client 'client-7'"):
        chosen(folder, clients=["client-1", "client-7"])


def test_a_layer_by_pattern_may_be_missing_in_some_records(tmp_path: Path) -> None:
    layer = gradients_of(np.eye(2, 20), 40, 0)
    with DumpWriter(tmp_path / "dump.h5") as dump:
        dump.add_record("a", {"fc1": layer, "head": layer})
        dump.add_record("b", {"dense": layer})
    selection = select(find_dumps([tmp_path / "dump.h5"]), Wanted(layers=["h*"]))
    assert [(task.record, task.layer) for task in selection.tasks] == [("a", "head")]
    assert selection.notes == ("record 'b' holds no layer like 'h*'",)


def test_several_dumps_make_one_inversion_that_says_where_all_came_from(
    spear: Command, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "result" / "out.h5"
    out.parent.mkdir()
    run = spear("invert", folder, "-o", out, "--time-limit", 20)
    assert run.status == 3  # one is damaged
    assert "left out: " in run.err
    assert "damaged.h5" in run.err
    with open_inversion(out) as inversion:
        assert inversion.source is None
        first = inversion.layers[0]
        assert (first.record, first.source, first.source_record) == (
            "round-1:record-0",
            "round-1.h5",
            "record-0",
        )
        assert [one.record for one in inversion.unread] == ["damaged"]
        assert len(inversion.layers) == 6


def test_one_dump_of_several_can_be_compared_with_its_truth(
    spear: Command, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.h5"
    spear("invert", folder / "round-1.h5", folder / "round-2.h5", "-o", out)
    document = json.loads(spear("evaluate", out, folder / "round-2.h5", "--json").out)
    assert [layer["record"] for layer in document["layers"]] == ["round-2:record-0", "round-2:record-1"]
    assert all(layer["exact"] == layer["recovered"] > 0 for layer in document["layers"])
    run = spear("evaluate", out, folder / "round-10.h5")
    assert run.status == 2
    assert "came from 'round-10.h5'" in run.error


def write_step(path: Path, number: int, *, model: bool = True) -> None:
    layer = gradients_of(np.random.default_rng(number).standard_normal((2, 12)), 30, 0)
    arrays: dict[str, Any] = {"fc.weight_grad": layer.weight_grad, "fc.bias_grad": layer.bias_grad}
    if model:
        arrays |= {"fc.weight": layer.weight, "fc.bias": layer.bias}
    np.savez(path, **arrays)


def test_several_sources_become_records_that_share_their_model(spear: Command, tmp_path: Path) -> None:
    for number in range(3):
        write_step(tmp_path / f"client-{number}.npz", number)
    dump = tmp_path / "dump.h5"
    run = spear("convert", *[tmp_path / f"client-{number}.npz" for number in range(3)], dump)
    assert run.status == 0, run.err
    assert "record client-0 and 2 alike, to client-2" in run.out
    with open_dump(dump) as opened:
        assert [record.name for record in opened.records] == ["client-0", "client-1", "client-2"]
    with h5py.File(dump) as file:
        weights = [file[f"records/client-{number}/layers/fc/weight"] for number in range(3)]
        assert weights[0] == weights[1] == weights[2]  # one object under three names
        assert dump.stat().st_size < 3 * weights[0].nbytes + 40_000
    assert spear("invert", dump, "-o", tmp_path / "out.h5").status == 0


def test_a_source_that_is_damaged_is_left_out(spear: Command, tmp_path: Path) -> None:
    write_step(tmp_path / "a.npz", 1)
    (tmp_path / "b.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:400])
    bad: dict[str, Any] = {"fc.weight_grad": np.full((30, 12), np.nan)}
    np.savez(tmp_path / "c.npz", **bad)
    write_step(tmp_path / "d.npz", 2)
    run = spear("convert", tmp_path / "?.npz", tmp_path / "dump.h5")
    assert run.status == 3
    assert run.err.count("left out: ") == 2
    with open_dump(tmp_path / "dump.h5") as opened:
        assert [record.name for record in opened.records] == ["a", "d"]
    run = spear("convert", tmp_path / "[bc].npz", tmp_path / "none.h5")
    assert run.status == 2
    assert not (tmp_path / "none.h5").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.npz", "b.npz", "dump.h5", "--record", "r"], "is one name, but there are 2 records"),
        (["a.npz", "dump.h5", "--successive"], "is the only model"),
        (["a.npz", "b.npz", "dump.h5", "--successive", "--gradients"], "cannot be combined"),
        (["dump.h5", "--successive", "--before", "a.npz", "--after", "b.npz"], "cannot be combined"),
        (["a.npz", "b.npz", "dump.h5", "--learning-rate", "1"], "only describes the step between two models"),
        (["a.npz", "b.npz"], "exists and is not a gradient dump"),
        (["z*.npz", "dump.h5"], "no file has such a name"),
    ],
)
def test_bad_usage_of_convert_is_one_line(
    monkeypatch: pytest.MonkeyPatch, spear: Command, tmp_path: Path, arguments: list[str], message: str
) -> None:
    for name in ("a", "b"):
        write_step(tmp_path / f"{name}.npz", 1)
    monkeypatch.chdir(tmp_path)
    run = spear("convert", *arguments)
    assert run.status == 2
    assert message in run.error
    assert not (tmp_path / "dump.h5").exists()


class Training:
    """A server that averages clients which each take one step of SGD: ReLU, then an output layer, squared error."""

    rate = 0.05

    def __init__(self, m: int, n: int, clients: int) -> None:
        self.rng = np.random.default_rng(5)
        self.clients = clients
        self.arrays: list[Floats] = [
            self.rng.standard_normal((m, n)) / np.sqrt(n),
            0.1 * self.rng.standard_normal(m),
            self.rng.standard_normal((3, m)) / np.sqrt(m),
            np.zeros(3),
        ]

    def step(self) -> Floats:
        """One round; returns the inputs (clients, n), one of each client."""
        w, c, v, d = self.arrays
        x, y = (
            self.rng.standard_normal((self.clients, w.shape[1])),
            self.rng.standard_normal((self.clients, 3)),
        )
        z = x @ w.T + c
        error = (np.maximum(z, 0) @ v.T + d - y) / self.clients
        back = (error @ v) * (z > 0)
        steps = [back.T @ x, back.sum(axis=0), error.T @ np.maximum(z, 0), error.sum(axis=0)]
        self.arrays = [array - self.rate * step for array, step in zip(self.arrays, steps, strict=True)]
        return x


def recipe() -> list[str]:
    """The two commands of the page on federations, as they stand there."""
    page = (ROOT / "docs" / "federations.md").read_text()
    block = page[page.index("round-N-weights.npz") :].split("```sh\n")[1].split("```")[0]
    return [line.split("  #")[0].strip() for line in block.splitlines() if line.strip()]


@pytest.mark.parametrize("rounds", [30, pytest.param(300, marks=pytest.mark.slow)])
def test_a_folder_of_the_weights_that_flower_saves_takes_two_commands(tmp_path: Path, rounds: int) -> None:
    training = Training(m=40, n=16, clients=2)
    (tmp_path / "weights").mkdir()
    truth = []
    for number in range(1, rounds + 1):
        # As the documentation of Flower saves the model in a strategy, after each round.
        np.savez(tmp_path / "weights" / f"round-{number}-weights.npz", *training.arrays)
        truth.append(training.step())
    commands = recipe()
    assert len(commands) == 2
    for line in commands:
        words = line.replace("spear-np", f"{sys.executable} -m spear_io")
        done = subprocess.run(
            words, shell=True, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
        )
        assert done.returncode in (0, 3), done.stderr
    (out,) = [path for path in tmp_path.glob("*.h5") if h5py.File(path).attrs["format"] == "spear-inversion"]
    with open_inversion(out) as inversion:
        assert len(inversion.layers) == rounds - 1
        assert [layer.display.round for layer in inversion.layers] == list(range(2, rounds + 1))
        recovered = 0
        for layer, inputs in zip(inversion.layers, truth, strict=False):
            for row, bound in zip(layer.inputs[:], np.asarray(layer.error_bound or ()), strict=True):
                assert np.abs(inputs - row).max(axis=1).min() <= bound
                recovered += 1
        assert recovered > 1.5 * (rounds - 1)
    assert sorted(path.suffix for path in tmp_path.iterdir() if path.is_file()) == [".csv", ".h5", ".h5"]


def test_the_info_of_a_record_is_not_lost_in_a_task(tmp_path: Path) -> None:
    layer = gradients_of(np.eye(2, 20), 40, 0)
    info = RecordInfo(client="café", round=3, input_shape=(4, 5), batch_size=2)
    with DumpWriter(tmp_path / "dump.h5") as dump:
        dump.add_record("a", {"fc1": layer}, info=info)
    (task,) = select(find_dumps([tmp_path / "dump.h5"]), Wanted()).tasks
    assert (task.display.client, task.display.round, task.display.input_shape) == ("café", 3, (4, 5))
    assert (task.shape, task.batch_size) == ((40, 20), 2)
    assert task.dump.is_absolute()
