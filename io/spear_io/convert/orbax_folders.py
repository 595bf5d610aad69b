"""Orbax checkpoints, the folders in which JAX and Flax keep a tree of arrays; read by TensorStore."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..files.safety import SMALL
from ..files.storage import Floats
from ..problems import FileError, Place, listing, size_text
from .source import NamedArray, Source, check_count, reading, unsuitable

METADATA = "_METADATA"
MANIFEST = "manifest.ocdbt"

EXPANSION = 1000
"""Bytes of numbers for each byte of the folder, beyond `SMALL`: Orbax packs with zstd, and an array of zeros packs well."""

CACHE = {"cache_pool": {"total_bytes_limit": 0}, "file_io_concurrency": {"limit": 2}}
"""Of TensorStore: every block is read once."""


@dataclass(frozen=True)
class _Stored:
    """An array of TensorStore, read where it is sliced; bfloat16 as its bits."""

    store: Any

    def __getitem__(self, key: Any) -> Floats:
        block = np.asarray(self.store[key].read().result())
        return block.view(np.uint16) if block.dtype.name == "bfloat16" else block


def is_orbax(path: Path, names: Collection[str]) -> bool:
    """Whether a folder with these entries holds a tree that Orbax saved."""
    return METADATA in names and (path / METADATA).is_file()


def step_of(path: Path, names: Sequence[str]) -> Path | None:
    """Return the only tree of the only step in a folder of Orbax' CheckpointManager; None if it is no such folder.

    Raises
    ------
    FileError
        If there are several.
    """
    inner = [name for name in names if (path / name / METADATA).is_file()]
    steps = [name for name in names if name.isdecimal() and (path / name).is_dir()]
    if not inner and not steps:
        return None
    if len(inner or steps) > 1:
        msg = f"a folder of several Orbax checkpoints: {listing(inner or steps)}"
        raise FileError(msg, Place(path), "give the folder of one")
    if inner:
        return path / inner[0]
    below = path / steps[0]
    return step_of(below, sorted(entry.name for entry in below.iterdir()))


@contextmanager
def open_orbax(path: Path) -> Iterator[Source]:
    """Open a tree that Orbax saved: with OCDBT or a folder an array, Zarr of version 2 or 3."""
    place = Place(path)
    try:
        import tensorstore
    except ImportError as error:
        msg = "an Orbax checkpoint, which TensorStore reads"
        advice = "install it (pip install 'spear-np[orbax]'), or save flax.serialization.to_bytes(tree)"
        raise FileError(msg, place, advice) from error
    if (path / METADATA).stat().st_size > SMALL:
        msg = "the description of its tree is larger than that of any model"
        raise FileError(msg, place, "give the folder of one checkpoint")
    with reading(place):
        said = json.loads((path / METADATA).read_bytes())
        keys = [
            [str(key["key"]) for key in entry["key_metadata"]] for entry in said["tree_metadata"].values()
        ]
        driver = "zarr3" if said.get("use_zarr3") else "zarr"
        context = tensorstore.Context(CACHE)
        root = path.resolve().as_uri() + "/"
        size = sum(
            file.stat().st_size for file in path.rglob("*") if file.is_file() and not file.is_symlink()
        )
    check_count(len(keys), place)
    arrays, skipped, claimed = [], {}, 0
    for words in keys:
        name, stored = "/".join(words), ".".join(words)
        at = place.at(dataset=name)
        kvstore: dict[str, Any] = {"driver": "file", "path": f"{path.resolve()}/{stored}/"}
        if (path / MANIFEST).is_file():
            kvstore = {"driver": "ocdbt", "base": root, "path": f"{stored}/"}
        elif (
            "/" in stored
            or stored.startswith(".")
            or not (path / stored).is_dir()
            or (path / stored).is_symlink()
        ):
            skipped[name] = "is not in the folder"
            continue
        with reading(at):
            try:
                opened = tensorstore.open(
                    {"driver": driver, "kvstore": kvstore}, open=True, read=True, context=context
                )
                store = opened.result()
            except ValueError as error:
                if "NOT_FOUND" not in str(error):
                    raise
                skipped[name] = "is no array"
                continue
        precision = store.dtype.numpy_dtype.name
        if reason := unsuitable(precision):
            skipped[name] = reason
            continue
        claimed += math.prod(store.shape) * store.dtype.numpy_dtype.itemsize
        arrays.append(NamedArray(name, tuple(store.shape), precision, at, partial(_Stored, store)))
    if claimed > max(SMALL, EXPANSION * size):
        msg = f"claims {size_text(claimed)} of numbers, but is {size_text(size)} long"
        raise FileError(msg, place, "the checkpoint is damaged or made up: save it again")
    # JAX sorts the keys of a tree, so their order says nothing.
    yield Source("Orbax checkpoint", path, tuple(arrays), skipped, producer="orbax")
