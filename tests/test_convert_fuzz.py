"""Damaged files of every format: a dump or one line, never a traceback and never a crash."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import msgpack
import numpy as np
import pytest

from tests import test_convert_formats as formats
from tests.convert_files import Step
from tests.io_files import Command, command, leftovers, write_earlier

MUTANTS = 60

SMALL = {
    "fc1.weight": np.arange(15, dtype=np.float32).reshape(5, 3),
    "fc1.bias": np.arange(5, dtype=np.float32),
    "fc2.weight": np.ones((2, 5), np.float32),
    "fc2.bias": np.ones(2, np.float32),
}
STEP = Step(SMALL, SMALL, SMALL, np.zeros((1, 3)))


def npy_file(folder: Path, step: Step) -> list[Any]:
    np.save(folder / "dW.npy", step.gradients["fc1.weight"])
    return [folder / "dW.npy", "--orientation", "mn"]


def flax_msgpack(folder: Path, step: Step) -> list[Any]:
    """As Flax packs its arrays, whether it is there or not."""
    arrays = {
        name: msgpack.ExtType(1, msgpack.packb((array.shape, array.dtype.name, array.tobytes())))
        for name, array in step.gradients.items()
    }
    (folder / "a").write_bytes(msgpack.packb({"grads": {"fc": arrays}}))
    return [folder / "a", "--orientation", "mn"]


def keras_weights(folder: Path, step: Step) -> list[Any]:
    """As Keras 3 lays out its layers, whether it is there or not."""
    with h5py.File(folder / "a", "w") as file:
        file.create_group("vars").attrs["name"] = "sequential"
        for number, array in enumerate((step.gradients["fc1.weight"].T, step.gradients["fc1.bias"])):
            file[f"layers/dense/vars/{number}"] = array
        file["layers/dense/vars"].attrs["name"] = "first"
    return [folder / "a", "--gradients"]


WRITERS = [
    *(writer for writer in formats.WRITERS if writer is not formats.npy_folder),
    *(npy_file, flax_msgpack, keras_weights),
]


@pytest.fixture
def spear(capsys: pytest.CaptureFixture[str]) -> Command:
    return command(capsys)


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """Return the content with bytes changed, cut out, or put in."""
    raw = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        # Headers and directories are where the damage tells: half of it goes to the first and last bytes.
        near = int(rng.integers(min(len(raw), 300)))
        at = [int(rng.integers(len(raw))), near, len(raw) - 1 - near, near][rng.integers(4)]
        kind = rng.integers(6)
        if kind < 3:
            raw[at] = rng.integers(256) if kind else raw[at] ^ (1 << int(rng.integers(8)))
        elif kind == 3:
            raw[at : at + 8] = bytes([0xFF, 0x7F][int(rng.integers(2))] for _ in range(8))
        elif kind == 4:
            del raw[at : at + int(rng.integers(1, 20))]
        else:
            raw[at:at] = raw[: int(rng.integers(1, 20))]
        raw = raw or bytearray(b"\0")
    return bytes(raw)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("writer", WRITERS, ids=lambda writer: writer.__name__)
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
