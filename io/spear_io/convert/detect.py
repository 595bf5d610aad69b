"""What a file is, by what is in it and never by its name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from ..files import dump, opening, stated
from ..files.limits import reading_file
from ..problems import FileError, Place, listing
from . import (
    flax_msgpack,
    folders,
    keras_files,
    matlab,
    numpy_files,
    plain_hdf5,
    safetensors_files,
    torch_checkpoint,
)
from .archives import open_archive
from .foreign import foreign_member, unread
from .source import Source

ADVICE = (
    "give .npz, .npy or a folder of .npy, .safetensors or a folder of them, MATLAB .mat, Keras .weights.h5, .keras or "
    ".h5, Flax msgpack, an Orbax checkpoint, any other HDF5, or a PyTorch checkpoint"
)

PICKLE = "a pickle, which can run anything when it is opened: it is never unpickled"
UNPICKLED = "save the arrays with numpy.savez or as safetensors, or a torch state_dict with torch.save"

TORCH_LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9"
"""How torch.save began a file before it wrote archives."""

MATLAB_V73 = b"MATLAB 7.3 MAT-file"
MATLAB_V5 = b"MATLAB 5.0 MAT-file"

Opener = Callable[[Path], AbstractContextManager[Source]]


@contextmanager
def open_source(path: Path) -> Iterator[Source]:
    """Open a file of arrays, whatever its format.

    Raises
    ------
    FileError
        If it is in no format that is understood, or damaged, or claims more than it holds.
    """
    folder = path.is_dir()
    if not folder:
        opening.check_readable(path, advice=ADVICE)
    with reading_file(path):
        opener = folders.folder_opener(path, _opener) if folder else _opener(path)
        with opener(path) as source:
            yield source


def _opener(path: Path) -> Opener:
    """Return what reads the file."""
    place = Place(path)
    with path.open("rb") as stream:
        head = stream.read(512)
    if head.startswith(MATLAB_V73):
        return matlab.open_matlab_v73
    if head.startswith(MATLAB_V5):
        return matlab.open_matlab_v5
    if opening.is_hdf5(path):
        return _hdf5_opener(path)
    if head.startswith(b"PK\x03\x04"):
        return _archive_opener(path)
    if head.startswith(numpy_files.MAGIC):
        return numpy_files.open_npy
    if head.startswith(TORCH_LEGACY):
        return torch_checkpoint.open_torch
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        raise FileError(PICKLE, place, UNPICKLED)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= path.stat().st_size - 8:
        return safetensors_files.open_safetensors
    if head[:1] and (0x81 <= head[0] <= 0x8F or head[0] in (0xDE, 0xDF)):  # a mapping that is not empty
        return flax_msgpack.open_flax
    if matlab.is_version_4(path):
        return matlab.open_matlab_v4
    if folders.is_index(head, path):
        return lambda index: folders.open_index(index, _opener)
    if foreign := unread(head, path.name):
        raise FileError(foreign.name, place, foreign.advice)
    msg = "empty" if not head else "in no format that is understood"
    raise FileError(msg, place, ADVICE)


def _hdf5_opener(path: Path) -> Opener:
    place = Place(path)
    with opening.open_hdf5(path, advice=ADVICE) as file:
        if stated.attribute(file, "format", place) == dump.FORMAT:
            msg = "a gradient dump already"
            raise FileError(msg, place, "use it as it is: spear-np inspect, spear-np invert")
        if keras_files.is_legacy(file, place):
            return keras_files.open_keras_legacy
        if keras_files.is_keras_3(file, place):
            return keras_files.open_keras_weights
    return plain_hdf5.open_plain_hdf5


def _archive_opener(path: Path) -> Opener:
    with open_archive(path) as archive:
        names = [name for name in archive.namelist() if foreign_member(name) is None]
    if {keras_files.CONFIG, keras_files.WEIGHTS} <= set(names):
        return keras_files.open_keras_archive
    if any(name.endswith("data.pkl") for name in names):
        return torch_checkpoint.open_torch
    if any(name.endswith(numpy_files.SUFFIX) for name in names):
        return numpy_files.open_npz
    msg = f"an archive of something else: it holds {listing(names, 'nothing')}"
    raise FileError(msg, Place(path), ADVICE)
