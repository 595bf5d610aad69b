"""Wrong and hostile sources: one line, exit status 2, nothing written, an older dump kept."""

from __future__ import annotations

import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import h5py
import msgpack
import numpy as np
import pytest
import safetensors.numpy
import scipy.io
from numpy.lib import format as npy

from tests.convert_files import torch_step
from tests.io_files import Command, command, leftovers, write_earlier, write_good_dump

Breaker = Callable[[Path], None]


class Trap:
    """Unpickling this creates a file beside the tests."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("sprung",)


@pytest.fixture
def spear(capsys: pytest.CaptureFixture[str]) -> Command:
    return command(capsys)


def of_bytes(content: bytes) -> Breaker:
    def write(path: Path) -> None:
        path.write_bytes(content)

    return write


def npz(**arrays: Any) -> Breaker:
    def write(path: Path) -> None:
        with path.open("wb") as stream:
            np.savez(stream, **arrays)

    return write


def npy_bytes(header: dict[str, Any], numbers: bytes = b"") -> bytes:
    """A .npy file whose header says what it is told to."""
    stream = BytesIO()
    npy.write_array_header_1_0(stream, header)
    return stream.getvalue() + numbers


def header(shape: Any, descr: str = "<f4") -> dict[str, Any]:
    return {"descr": descr, "fortran_order": False, "shape": shape}


def archive(members: dict[str, bytes], packing: int = zipfile.ZIP_DEFLATED) -> Breaker:
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w", packing) as file:
            for name, content in members.items():
                file.writestr(name, content)

    return write


def twice(path: Path) -> None:
    member = "fc.weight_grad.npy", npy_bytes(header((2, 2)), bytes(16))
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(*member)
        with pytest.warns(UserWarning, match="Duplicate"):
            file.writestr(*member)


def bomb(path: Path) -> None:
    """80 MB of zeros in 80 kB."""
    archive({"fc.weight_grad.npy": npy_bytes(header((2000, 10_000)), bytes(80_000_000))})(path)


def lying_archive(path: Path) -> None:
    """The directory of the archive says that a member is small, its data say otherwise."""
    archive({"fc.weight_grad.npy": npy_bytes(header((200, 100)), bytes(80_000))})(path)
    raw = bytearray(path.read_bytes())
    at = raw.rindex(b"PK\x01\x02")
    raw[at + 24 : at + 28] = struct.pack("<I", 128 + 64)
    path.write_bytes(raw)


def encrypted(path: Path) -> None:
    archive({"fc.weight_grad.npy": npy_bytes(header((2, 2)), bytes(16))})(path)
    raw = bytearray(path.read_bytes())
    raw[raw.rindex(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(raw)


def torch_trap(path: Path) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    torch.save({"fc.weight_grad": Trap()}, path)


def torch_model(path: Path) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    torch.save(torch.nn.Linear(3, 2), path)


def safetensors_header(text: bytes, size: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if size is None else size) + text


def moments_alone(path: Path) -> None:
    safetensors.numpy.save_file({f"exp_avg/{n}": a for n, a in torch_step().gradients.items()}, path)


def flax(tree: Any) -> bytes:
    packed: bytes = msgpack.packb(tree)
    return packed


def flax_array(shape: Any, dtype: str, numbers: bytes) -> msgpack.ExtType:
    return msgpack.ExtType(1, msgpack.packb((shape, dtype, numbers)))


def nested(depth: int) -> bytes:
    return b"\x81\xa1a" * depth + b"\xc0"


def matlab(**variables: Any) -> Breaker:
    return lambda path: scipy.io.savemat(path, variables, appendmat=False)


def matlab_bomb(path: Path) -> None:
    scipy.io.savemat(path, {"dW": np.zeros((3000, 3000))}, do_compression=True, appendmat=False)


def truncated(write: Breaker) -> Breaker:
    def apply(path: Path) -> None:
        write(path)
        os.truncate(path, path.stat().st_size * 2 // 3)

    return apply


def hdf5(**items: Any) -> Breaker:
    def write(path: Path) -> None:
        with h5py.File(path, "w") as file:
            for name, item in items.items():
                file[name] = item

    return write


def a_dump(path: Path) -> None:
    write_good_dump(path)


def hdf5_claim(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("dW", (2**20, 2**40), np.float32, chunks=(64, 64))


SQUARE = np.ones((7, 7), np.float32)

SOURCES: dict[str, tuple[Breaker, tuple[str, ...]]] = {
    "empty": (of_bytes(b""), ("empty", "give .npz")),
    "text": (of_bytes(b"m,n\n1,2\n"), ("in no format that is understood", "give .npz")),
    "pickle": (of_bytes(pickle.dumps(Trap())), ("a pickle", "never unpickled")),
    "object array": (npz(model=np.array([Trap()])), ("'model' holds Python objects", "unpickling")),
    "object array beside numbers": (
        npz(step=np.array([1]), model=np.array([Trap()])),
        ("'step' holds int64", "'model' holds Python objects"),
    ),
    "torch pickle that runs": (torch_trap, ("cannot be read as tensors alone", "state_dict")),
    "torch module": (torch_model, ("cannot be read as tensors alone", "state_dict")),
    "checkpoint without gradients": (
        npz(**{"fc1.weight": SQUARE, "fc1.bias": SQUARE[0]}),
        ("without gradients", "'fc1'", "--gradients", "grads/fc1/weight", "--before A --after B"),
    ),
    "positions without a word": (npz(arr_0=SQUARE), ("without gradients", "--gradients")),
    "moments of Adam alone": (moments_alone, ("'exp_avg/fc1.bias' looks like a moment of the optimizer",)),
    "convolutions alone": (npz(**{"c.weight_grad": np.ones((2, 2, 3, 3))}), ("of no fully connected layer",)),
    "ambiguous square": (
        npz(dW1=SQUARE, db1=SQUARE[0]),
        ("are the 7 rows or the 7 columns", "--orientation"),
    ),
    "bias of another layer": (npz(dW=SQUARE[:5], db=np.ones(3)), ("3 entries", "(5, 7)")),
    "gradient of another layer": (npz(dW=SQUARE[:5], W=SQUARE), ("shape (5, 7), but its weight (7, 7)",)),
    "one role twice": (
        npz(**{"grads/fc.W": SQUARE, "fc.dW": SQUARE}),
        ("two arrays could be the weight_grad",),
    ),
    "complex": (npz(dW=np.ones((5, 7), complex)), ("'dW' holds complex128",)),
    "integers": (npz(dW=np.ones((5, 7), int)), ("'dW' holds int64",)),
    "long doubles": (npz(dW=np.ones((5, 7), np.longdouble)), ("'dW' holds",)),
    "structured": (npz(dW=np.zeros(5, [("a", "f4")])), ("'dW' holds",)),
    "no numbers": (
        npz(dW=np.ones((0, 7), np.float32), db=np.ones(0)),
        ("'dW' is empty: its shape is (0, 7)",),
    ),
    "archive of something else": (archive({"a.txt": b"a"}), ("holds 'a.txt'",)),
    "empty archive": (of_bytes(b"PK\x05\x06" + bytes(18)), ("in no format",)),
    "two members of one name": (twice, ("'fc.weight_grad.npy' more than once",)),
    "zip bomb": (bomb, ("would unpack to 80 MB", "numpy.savez")),
    "archive that lies about a size": (lying_archive, ("'fc.weight_grad': cannot be read (Bad CRC-32",)),
    "encrypted archive": (encrypted, ("encrypted",)),
    "archive packed with LZMA": (
        archive({"dW.npy": npy_bytes(header((2, 2)), bytes(16))}, zipfile.ZIP_LZMA),
        ("packed in an unusual way",),
    ),
    "truncated archive": (truncated(npz(dW=SQUARE)), ("cannot be read",)),
    ".npy that claims more": (
        of_bytes(npy_bytes(header((2**30, 2**30)), bytes(64))),
        ("claims shape", "64 are"),
    ),
    ".npy that overflows": (of_bytes(npy_bytes(header((2**40, 2**40)), bytes(64))), ("claims shape",)),
    ".npy of negative size": (of_bytes(npy_bytes(header((-1, -4)), bytes(16))), ("claims shape (-1, -4)",)),
    ".npy of a NaN": (of_bytes(npy_bytes(header((float("nan"), 2)), bytes(16))), ("cannot be read",)),
    ".npy of text": (of_bytes(npy_bytes(header("ab"), bytes(16))), ("cannot be read",)),
    ".npy of objects": (of_bytes(npy_bytes(header((1,), "|O"), pickle.dumps(Trap()))), ("Python objects",)),
    ".npy with a deep header": (
        of_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", 9000) + b"(" * 9000),
        ("cannot be read",),
    ),
    "safetensors cut off": (
        of_bytes(safetensors_header(b'{"dW":{"dtype":"F32","shape":[9,9],"data_offsets":[0,324]}}')),
        ("cannot be read",),
    ),
    "safetensors that overlap": (
        of_bytes(
            safetensors_header(
                b'{"dW":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
                b'"db":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}'
            )
            + bytes(12)
        ),
        ("cannot be read",),
    ),
    "safetensors of one name twice": (
        of_bytes(
            safetensors_header(
                b'{"dW":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
                b'"dW":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
            )
            + bytes(8)
        ),
        ("cannot be read",),
    ),
    "objects called gradients": (
        npz(dW=np.array([{}]), W=np.ones((3, 4))),
        ("without gradients that can be used: 'dW' holds Python objects",),
    ),
    "NaN": (
        npz(**{"fc.weight_grad": np.full((3, 4), np.nan)}),
        ("layer 'fc', dataset 'weight_grad': holds NaN at row 0, column 0",),
    ),
    "safetensors of another size": (
        of_bytes(safetensors_header(b'{"dW":{"dtype":"F32","shape":[9,9],"data_offsets":[0,8]}}') + bytes(8)),
        ("cannot be read",),
    ),
    "safetensors nested": (of_bytes(safetensors_header(b"{" + b'"a":{' * 5000)), ("cannot be read",)),
    "msgpack without arrays": (of_bytes(flax({"a": 1})), ("without arrays",)),
    "msgpack nested": (of_bytes(nested(100)), ("nested deeper",)),
    "msgpack nested deeper": (of_bytes(nested(100_000)), ("cannot be read",)),
    "msgpack that claims more": (
        of_bytes(flax({"dW": flax_array((9, 9), "float32", bytes(8))})),
        ("claims shape (9, 9)",),
    ),
    "msgpack of objects": (of_bytes(flax({"dW": flax_array((1,), "object", bytes(8))})), ("Python objects",)),
    "msgpack of negative size": (
        of_bytes(flax({"dW": flax_array((-1, -2), "float32", bytes(8))})),
        ("cannot be read",),
    ),
    "msgpack cut off": (
        of_bytes(flax({"dW": flax_array((2,), "float32", bytes(8))})[:-4]),
        ("cannot be read",),
    ),
    "MATLAB text": (matlab(dW="text"), ("'dW' is of MATLAB's class char",)),
    "MATLAB cells": (matlab(dW=np.array([1, "a"], dtype=object)), ("'dW' is of MATLAB's class cell",)),
    "MATLAB complex": (matlab(dW=np.ones((3, 4), complex)), ("'dW' is of MATLAB's class complex double",)),
    "MATLAB cut off": (truncated(matlab(dW=np.ones((30, 30)))), ("cannot be read",)),
    "MATLAB bomb": (matlab_bomb, ("would unpack to far more", "-v6")),
    "a dump": (a_dump, ("a gradient dump already", "spear-np invert")),
    "HDF5 without gradients": (hdf5(numbers=SQUARE), ("'numbers' has a name that says neither",)),
    "HDF5 that claims terabytes": (hdf5_claim, ("'dW' claims shape", "TB")),
    "HDF5 that leads elsewhere": (
        hdf5(dW=h5py.ExternalLink("/etc/passwd", "/x"), db=h5py.SoftLink("/dW")),
        ("'dW' is an external link", "'db' is a soft link"),
    ),
    "HDF5 cut off": (truncated(hdf5(dW=np.ones((99, 99)))), ("cut off",)),
}


@pytest.mark.parametrize("case", SOURCES)
def test_one_line_and_nothing_written(
    spear: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write, fragments = SOURCES[case]
    source, dump = tmp_path / "source", tmp_path / "dump.h5"
    write(source)
    earlier = write_earlier(dump)
    run = spear("convert", source, dump)
    assert run.status == 2
    assert run.out == ""
    assert run.error.startswith((f"{source}", f"{dump}"))
    assert run.error.isprintable()
    assert len(run.error) < 1000
    for fragment in fragments:
        assert fragment in run.error
    assert dump.read_bytes() == earlier
    assert leftovers(tmp_path) == []
    assert not (tmp_path / "sprung").exists()


def test_a_bomb_that_is_meant_passes_unpacked(spear: Command, tmp_path: Path) -> None:
    """Zeros shrink a thousandfold and are honest numbers: the limit names the way around it."""
    npz(dW=np.zeros((2000, 10_000), np.float32), db=np.zeros(2000))(tmp_path / "a.npz")
    assert spear("convert", tmp_path / "a.npz", tmp_path / "dump.h5").status == 0


def test_the_source_is_never_replaced(spear: Command, tmp_path: Path) -> None:
    npz(dW=np.ones((5, 7)), db=np.ones(5))(tmp_path / "a.npz")
    before = (tmp_path / "a.npz").read_bytes()
    run = spear("convert", tmp_path / "a.npz", tmp_path / "a.npz")
    assert run.status == 2
    assert "is the file that is being read" in run.error
    assert (tmp_path / "a.npz").read_bytes() == before


@pytest.mark.parametrize(("name", "fragment"), [("nothing", "no such file"), ("", "a folder without arrays")])
def test_no_source(spear: Command, tmp_path: Path, name: str, fragment: str) -> None:
    run = spear("convert", tmp_path / name, tmp_path / "dump.h5")
    assert (run.status, fragment in run.error) == (2, True)


def test_a_folder_leads_nowhere_else(spear: Command, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    np.save(tmp_path / "dW.npy", np.ones((5, 7)))
    (folder / "dW.npy").symlink_to(tmp_path / "dW.npy")
    os.mkfifo(folder / "db.npy")
    run = spear("convert", folder, tmp_path / "dump.h5")
    assert run.status == 2
    assert "'dW' is not a regular file" in run.error


@pytest.mark.parametrize("limit", ["LARGEST_FOLDER", "DEEPEST"])
def test_a_folder_of_too_much(
    spear: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    monkeypatch.setattr(f"spear_io.convert.numpy_files.{limit}", 2)
    deep = tmp_path / "a" / "b" / "c"
    deep.mkdir(parents=True)
    np.save(deep / "dW.npy", np.ones((5, 7)))
    run = spear("convert", tmp_path, tmp_path / "dump.h5")
    assert run.status == 2
    assert "a folder of more than" in run.error


def test_groups_that_hold_themselves(spear: Command, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a", "w") as file:
        file["grads/fc/weight"] = np.ones((5, 7))
        file["grads/again"] = file["grads"]
        file["grads/fc/up"] = file["/"]
    assert spear("convert", tmp_path / "a", tmp_path / "dump.h5").status == 0


@pytest.mark.parametrize(
    ("given", "fragment"),
    [
        ("dW=/a", "does not say which part"),
        ("weight_grad=/b", "there is no array 'b'"),
        ("weight_grad=/s", "array 's' holds integers"),
        ("weight=/a", "without gradients"),
    ],
)
def test_maps_that_lead_nowhere(spear: Command, tmp_path: Path, given: str, fragment: str) -> None:
    hdf5(a=np.ones((5, 7)), s=np.ones(3, int))(tmp_path / "a")
    run = spear("convert", tmp_path / "a", tmp_path / "dump.h5", "--map", given)
    assert run.status == 2
    assert fragment in run.error


def test_without_pytorch_the_line_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError")
    archive({"a/data.pkl": b"", "a/data/0": b""})(tmp_path / "a.pt")
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-m", "spear_io", "convert", "a.pt", "d.h5"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={"PYTHONPATH": f"{tmp_path}:{root}:{root / 'io'}", "PATH": ""},
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "pip install 'spear-np[torch]'" in done.stderr
