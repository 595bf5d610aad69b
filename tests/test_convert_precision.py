"""float16 and bfloat16 travel unchanged, and what is handed over is contiguous."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import safetensors.numpy

from spear_io import open_dump
from spear_io.convert.source import NamedArray
from spear_io.problems import Place
from tests.convert_files import converted
from tests.io_files import Command, command
from tests.networks import Floats


@pytest.fixture
def spear(capsys: pytest.CaptureFixture[str]) -> Command:
    return command(capsys)


def numbers(precision: str) -> Floats:
    """(6, 4) numbers that `precision` holds, subnormal, tiny and large ones among them, as float32 or float16."""
    values = np.random.default_rng(3).standard_normal((6, 4)).astype(np.float32)
    values[0] = [1e-40, -3e38, 0.0, -0.0] if precision == "bfloat16" else [6e-8, -65504, 0.0, -0.0]
    if precision == "float16":
        return values.astype(np.float16)
    return (values.view(np.uint32) & 0xFFFF0000).view(np.float32)


def torch_tensors(precision: str) -> dict[str, Any]:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    return {"fc.weight_grad": torch.tensor(numbers(precision)).to(getattr(torch, precision))}


def safetensors_file(path: Path, precision: str) -> None:
    torch_tensors(precision)
    from safetensors.torch import save_file

    save_file(torch_tensors(precision), path)


def torch_checkpoint(path: Path, precision: str) -> None:
    import torch

    torch.save(torch_tensors(precision), path)


def npz(path: Path, precision: str) -> None:
    """NumPy writes the extension type of bfloat16 as two bytes without a meaning."""
    array: Any = numbers(precision)
    if precision == "bfloat16":
        ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
        array = array.astype(ml_dtypes.bfloat16)
    with path.open("wb") as stream:
        np.savez(stream, weight_grad=array)


def hdf5(path: Path, precision: str) -> None:
    array = numbers(precision)
    with h5py.File(path, "w") as file:
        if precision == "bfloat16":
            file["fc/weight_grad"] = (array.view(np.uint32) >> 16).astype(np.uint16)
            file["fc/weight_grad"].attrs["dtype"] = "bfloat16"
        else:
            file["fc/weight_grad"] = array


def hdf5_number_type(path: Path, precision: str) -> None:
    """HDF5 describes any number of bits: here bfloat16 is a type of the file itself."""
    array = numbers(precision)
    if precision == "float16":
        return hdf5(path, precision)
    datatype = h5py.h5t.IEEE_F32LE.copy()
    datatype.set_fields(15, 7, 8, 0, 7)
    datatype.set_size(2)
    datatype.set_ebias(127)
    with h5py.File(path, "w") as file:
        group = file.create_group("fc")
        dataset = h5py.h5d.create(group.id, b"weight_grad", datatype, h5py.h5s.create_simple(array.shape))
        dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, array)
    return None


def flax_msgpack(path: Path, precision: str) -> None:
    pytest.importorskip("flax", reason="Flax is not installed")
    import jax.numpy as jnp
    from flax import serialization

    array = jnp.asarray(numbers(precision)).astype(precision)
    path.write_bytes(serialization.to_bytes({"grads": {"fc": {"weight": array}}}))


FORMATS: tuple[Callable[[Path, str], None], ...] = (
    safetensors_file,
    torch_checkpoint,
    npz,
    hdf5,
    hdf5_number_type,
    flax_msgpack,
)


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
@pytest.mark.parametrize("orientation", ["mn", "nm"])
@pytest.mark.parametrize("writer", FORMATS, ids=lambda writer: writer.__name__)
def test_narrow_numbers_travel_unchanged(
    spear: Command, tmp_path: Path, writer: Callable[[Path, str], None], orientation: str, precision: str
) -> None:
    writer(tmp_path / "a", precision)
    document = converted(spear, tmp_path, tmp_path / "a", "--orientation", orientation)
    (layer,) = document["layers"]
    assert layer["precision"] == precision
    wanted = numbers(precision)
    with open_dump(tmp_path / "dump.h5") as dump:
        stored = dump.records[0].layers[0].arrays["weight_grad"]
        assert stored.precision == precision
        found = stored[:] if orientation == "mn" else stored[:].T
    found = np.ascontiguousarray(found)
    np.testing.assert_array_equal(found.view(f"u{found.itemsize}"), wanted.view(f"u{wanted.itemsize}"))


def test_what_is_handed_over_is_contiguous(tmp_path: Path) -> None:
    """The NumPy writer of safetensors stores the memory of an array as it lies, whatever its strides."""
    stored = np.arange(24, dtype=np.float32).reshape(4, 6)
    array = NamedArray("w", (4, 6), "float32", Place(tmp_path), lambda: stored).T
    for block in (array[:], array[1:5], array[..., 1:3]):
        assert block.flags.c_contiguous
    np.testing.assert_array_equal(array[1:5], stored.T[1:5])
    np.testing.assert_array_equal(array[..., 1:3], stored.T[:, 1:3])
    safetensors.numpy.save_file({"w": array[:]}, tmp_path / "a")
    np.testing.assert_array_equal(safetensors.numpy.load_file(tmp_path / "a")["w"], stored.T)


def test_numbers_of_the_other_byte_order(spear: Command, tmp_path: Path) -> None:
    stored = numbers("float16").astype(">f4")
    np.save(tmp_path / "fc.weight_grad.npy", stored)
    converted(spear, tmp_path, tmp_path / "fc.weight_grad.npy")
    with open_dump(tmp_path / "dump.h5") as dump:
        block = dump.records[0].layers[0].gradients.weight_grad[:]
    np.testing.assert_array_equal(block, stored)
    assert block.dtype.isnative
