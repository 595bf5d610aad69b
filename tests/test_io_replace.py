"""What is not ours is never replaced unasked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from spear_io import open_dump, open_inversion
from tests.io_files import Command, command, layer_data, leftovers, write_earlier, write_good_dump

Writer = Callable[[Path], Any]


@pytest.fixture
def spear(capsys: pytest.CaptureFixture[str]) -> Command:
    return command(capsys)


def text(path: Path) -> None:
    path.write_text("Chapter 1")


def arrays(path: Path) -> None:
    with path.open("wb") as stream:
        np.savez(stream, weight=np.ones((3, 4)))


def other_hdf5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["weight"] = np.ones(3)


def damaged(path: Path) -> None:
    write_good_dump(path)
    path.write_bytes(path.read_bytes()[:3000])


def an_inversion(path: Path) -> None:
    write_earlier(path, "spear-inversion")


FOREIGN: list[Writer] = [text, arrays, other_hdf5, damaged, Path.touch]


@pytest.mark.parametrize("write", [*FOREIGN, an_inversion])
def test_convert_replaces_dumps_alone(spear: Command, tmp_path: Path, write: Writer) -> None:
    data = layer_data()
    gradients: dict[str, Any] = {"fc.weight_grad": data.weight_grad, "fc.bias_grad": data.bias_grad}
    np.savez(tmp_path / "a.npz", **gradients)
    target = tmp_path / "b"
    write(target)
    before = target.read_bytes()
    run = spear("convert", tmp_path / "a.npz", target)
    assert run.status == 2
    assert run.error.startswith(f"{target}: exists and is not a gradient dump")
    assert "--force" in run.error
    assert target.read_bytes() == before
    assert leftovers(tmp_path) == []
    for options in (["--force"], []):  # afterwards it is one
        assert spear("convert", tmp_path / "a.npz", target, *options).status == 0
        with open_dump(target) as dump:
            assert len(dump.records) == 1


@pytest.mark.parametrize("write", [*FOREIGN, write_good_dump])
def test_invert_replaces_inversions_alone(spear: Command, tmp_path: Path, write: Writer) -> None:
    write_good_dump(tmp_path / "dump.h5")
    target = tmp_path / "thesis.txt"
    write(target)
    before = target.read_bytes()
    run = spear("invert", tmp_path / "dump.h5", "-o", target)
    assert run.status == 2
    assert run.error.startswith(f"{target}: exists and is not an inversion")
    assert target.read_bytes() == before
    assert spear("invert", tmp_path / "dump.h5", "-o", target, "--force").status == 0
    with open_inversion(target) as inversion:
        assert len(inversion.layers) == 1


def test_force_does_not_replace_what_is_read(spear: Command, tmp_path: Path) -> None:
    write_good_dump(tmp_path / "dump.h5")
    before = (tmp_path / "dump.h5").read_bytes()
    run = spear("invert", tmp_path / "dump.h5", "-o", tmp_path / "dump.h5", "--force")
    assert run.status == 2
    assert (tmp_path / "dump.h5").read_bytes() == before
