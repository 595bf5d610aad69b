"""Every format that needs no framework but its writer: written by the library, converted, inverted exactly."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import safetensors.numpy
import scipy.io

from spear_io import open_dump
from tests.convert_files import Step, assert_exact, converted, torch_step
from tests.io_files import Command, command, leftovers

Writer = Callable[[Path, Step], list[Any]]


@pytest.fixture
def spear(capsys: pytest.CaptureFixture[str]) -> Command:
    return command(capsys)


def npz_of_names(folder: Path, step: Step) -> list[Any]:
    np.savez(folder / "a", **step.named)
    return [folder / "a.npz"]


def npz_packed(folder: Path, step: Step) -> list[Any]:
    np.savez_compressed(folder / "a", **step.named)
    return [folder / "a.npz"]


def npz_by_position(folder: Path, step: Step) -> list[Any]:
    """As Flower's clients hand over parameters: a list of arrays."""
    np.savez(folder / "gradients", *step.gradients.values())
    np.savez(folder / "model", *step.model.values())
    return [folder / "gradients.npz", "--gradients", "--model", folder / "model.npz"]


def npy_folder(folder: Path, step: Step) -> list[Any]:
    for name, arrays in (("grads", step.gradients), ("params", step.model)):
        (folder / "arrays" / name).mkdir(parents=True)
        for key, array in arrays.items():
            np.save(folder / "arrays" / name / key, array)
    return [folder / "arrays"]


def safetensors_file(folder: Path, step: Step) -> list[Any]:
    safetensors.numpy.save_file(step.named, folder / "a")
    return [folder / "a"]


def torch_checkpoint(folder: Path, step: Step) -> list[Any]:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    tensors = {
        part: {name: torch.tensor(array) for name, array in arrays.items()}
        for part, arrays in (("state_dict", step.model), ("grads", step.gradients))
    }
    torch.save({"epoch": 7, **tensors}, folder / "a")
    return [folder / "a"]


def torch_before_archives(folder: Path, step: Step) -> list[Any]:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    tensors = {name: torch.tensor(array) for name, array in step.named.items()}
    torch.save(tensors, folder / "a", _use_new_zipfile_serialization=False)
    return [folder / "a"]


def matlab_names(step: Step) -> dict[str, Any]:
    """As a program in MATLAB would name them: W1, b1, dW1, db1; its vectors are columns."""
    return {
        f"{prefix}{letter}{number}": arrays[f"fc{number}.{word}"].reshape(
            len(arrays[f"fc{number}.{word}"]), -1
        )
        for prefix, arrays in (("", step.model), ("d", step.gradients))
        for letter, word in (("W", "weight"), ("b", "bias"))
        for number in (1, 2)
    }


def matlab_5(folder: Path, step: Step) -> list[Any]:
    scipy.io.savemat(folder / "a", matlab_names(step), do_compression=True, appendmat=False)
    return [folder / "a"]


def matlab_4(folder: Path, step: Step) -> list[Any]:
    scipy.io.savemat(folder / "a", matlab_names(step), format="4", appendmat=False)
    return [folder / "a"]


def matlab_unpacked(folder: Path, step: Step) -> list[Any]:
    scipy.io.savemat(folder / "a", matlab_names(step), appendmat=False)
    return [folder / "a"]


def matlab_73(folder: Path, step: Step) -> list[Any]:
    """By hand, for want of a MATLAB: HDF5 behind a block of 512 bytes, matrices column by column.

    What MathWorks documents of the format: a header text, version 0x0200 and "IM" in the first 128 bytes, the class
    of every variable in the attribute MATLAB_class; HDF5 programs see the dimensions in reverse.
    """
    path = folder / "a"
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, matrix in matlab_names(step).items():
            file[name] = matrix.T
            file[name].attrs["MATLAB_class"] = np.bytes_("single")
        file.create_group("#refs#")["a"] = np.ones((3, 3))
    with path.open("r+b") as raw:
        raw.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM")
    return [path]


def plain_hdf5_names(folder: Path, step: Step) -> list[Any]:
    with h5py.File(folder / "a", "w") as file:
        for name, array in step.named.items():
            file[name.replace(".", "/")] = array
    return [folder / "a"]


def plain_hdf5_map(folder: Path, step: Step) -> list[Any]:
    """Any names and any layout: columns are output units, and the map says what is what."""
    paths = {
        "weight_grad": "run/7/G",
        "bias_grad": "run/7/g",
        "weight": "run/6/theta",
        "bias": "run/6/offset",
    }
    arrays = {f"{part}": step.named[f"fc1.{part}"] for part in paths}
    with h5py.File(folder / "a", "w") as file:
        for part, path in paths.items():
            file[path] = arrays[part].T
    return [folder / "a", *(word for part, path in paths.items() for word in ("--map", f"{part}=/{path}"))]


def matlab_element(kind: int, content: bytes) -> bytes:
    return struct.pack("<II", kind, len(content)) + content + bytes(-len(content) % 8)


def matlab_variable(name: bytes, stored: int, numbers: bytes, *shape: int) -> bytes:
    """A variable of class double whose numbers are stored as another type."""
    sizes = struct.pack(f"<{len(shape)}i", *shape)
    parts = (6, struct.pack("<II", 6, 0)), (5, sizes), (1, name), (stored, numbers)
    return matlab_element(14, b"".join(matlab_element(*part) for part in parts))


def test_matlab_packs_numbers_without_a_fraction(spear: Command, tmp_path: Path) -> None:
    """By hand: MATLAB stores a bias of zeros in bytes, SciPy's writer does not."""
    gradient = np.random.default_rng(1).standard_normal((3, 5))
    content = matlab_variable(b"dW", 9, gradient.tobytes(order="F"), 3, 5)
    content += matlab_variable(b"db", 2, bytes([0, 1, 255]), 3, 1)
    (tmp_path / "a").write_bytes(b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM" + content)
    converted(spear, tmp_path, tmp_path / "a")
    with open_dump(tmp_path / "dump.h5") as dump:
        arrays = dump.records[0].layers[0].arrays
        np.testing.assert_array_equal(arrays["weight_grad"][:], gradient)
        np.testing.assert_array_equal(arrays["bias_grad"][:], [0.0, 1.0, 255.0])
        assert arrays["bias_grad"].dtype == np.float64


WRITERS: tuple[Writer, ...] = (
    npz_of_names,
    npz_packed,
    npz_by_position,
    npy_folder,
    safetensors_file,
    torch_checkpoint,
    torch_before_archives,
    matlab_5,
    matlab_4,
    matlab_unpacked,
    matlab_73,
    plain_hdf5_names,
    plain_hdf5_map,
)


@pytest.mark.parametrize("writer", WRITERS, ids=lambda writer: writer.__name__)
def test_every_format_gives_the_batch_back(spear: Command, tmp_path: Path, writer: Writer) -> None:
    step = torch_step()
    document = converted(spear, tmp_path, *writer(tmp_path, step))
    first, *others = document["layers"]
    assert first["shape"] == [80, 64]
    assert first["datasets"] == ["weight_grad", "bias_grad", "weight", "bias"]
    assert first["activation"] == "relu"
    if writer is not plain_hdf5_map:
        (output,) = others
        assert (output["shape"], output["activation"]) == ([10, 80], "none")
    assert leftovers(tmp_path) == []
    assert_exact(spear, tmp_path, step.images)
