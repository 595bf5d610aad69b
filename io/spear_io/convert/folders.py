"""A folder, or the index of one: which of its files hold the arrays."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ..files.safety import SMALL
from ..problems import FileError, Place, listing, printable, size_text
from . import keras_files, numpy_files, orbax_folders
from .foreign import foreign_member, unread_folder
from .source import Source, check_count, reading

Opener = Callable[[Path], AbstractContextManager[Source]]

INDEX = ".index.json"
"""How Hugging Face ends the name of a file that says which shard holds which tensor."""

SHARDS = (".safetensors", ".bin")

MOST_SHARDS = 2000

ADVICE = "give a file, a folder of one .npy an array, of .safetensors, or an Orbax checkpoint"


def folder_opener(path: Path, opener_of: Callable[[Path], Opener]) -> Opener:
    """Return what reads a folder.

    Parameters
    ----------
    path : Path
        The folder.
    opener_of : callable
        Returns what reads a file.

    Raises
    ------
    FileError
        If nothing in it is understood, or it could be two things.
    """
    place = Place(path)
    with reading(place):
        names = sorted(entry.name for entry in path.iterdir())
    check_count(len(names), place)
    if orbax_folders.is_orbax(path, names):
        return orbax_folders.open_orbax
    foreign = unread_folder(names)
    if foreign is not None:
        raise FileError(foreign.name, place, foreign.advice)
    own = [name for name in names if foreign_member(name) is None]
    indexes = [name for name in own if name.endswith(INDEX)]
    shards = [name for name in own if name.endswith(SHARDS[0])]
    arrays = any(name.endswith(numpy_files.SUFFIX) for name in own)
    if arrays and (indexes or shards):
        msg = f"a folder of several things: {listing([*indexes, *shards][:3])} beside .npy files"
        raise FileError(msg, place, "give one of the files, or a folder of one kind")
    if len(indexes) > 1:
        msg = f"a folder of several models in shards: {listing(indexes)}"
        raise FileError(msg, place, "give the index of one")
    if indexes:
        return lambda _: open_index(path / indexes[0], opener_of)
    if shards:
        return lambda _: _open_shards(path, [path / name for name in shards], opener_of)
    if inner := orbax_folders.step_of(path, names):
        return lambda _: orbax_folders.open_orbax(inner)
    return numpy_files.open_npy_folder


def is_index(head: bytes, path: Path) -> bool:
    """Whether a file is JSON that may say which shard holds which array."""
    return head.lstrip().startswith(b"{") and path.suffix == ".json"


@contextmanager
def open_index(path: Path, opener_of: Callable[[Path], Opener]) -> Iterator[Source]:
    """Open the files that an index names: those of Hugging Face, or of Keras.

    Raises
    ------
    FileError
        If it is no index, or names what is not in its own folder.
    """
    place = Place(path)
    size = path.stat().st_size
    if size > SMALL:
        msg = f"JSON of {size_text(size)}, more than any index of shards"
        raise FileError(msg, place, ADVICE)
    with reading(place):
        said: Any = json.loads(path.read_bytes())
    weights = said.get("weight_map") if isinstance(said, dict) else None
    if not isinstance(weights, dict):
        msg = "JSON text, but no index of shards: it has no weight_map"
        raise FileError(msg, place, ADVICE)
    listed = [value if isinstance(value, list) else [value] for value in weights.values()]
    names = sorted({name for value in listed for name in value if isinstance(name, str)})
    check_count(len(weights), place)
    if not names or len(names) > MOST_SHARDS:
        msg = f"an index of {len(names)} shards"
        raise FileError(msg, place, ADVICE)
    shards = [_beside(path, name, place) for name in names]
    if all(name.endswith(".weights.h5") for name in names):
        with keras_files.open_keras_shards(path, shards) as source:
            yield source
        return
    with _open_shards(path, shards, opener_of) as source:
        yield source


def _beside(index: Path, name: str, place: Place) -> Path:
    """Return a file of that name in the folder of the index, and nowhere else."""
    shard = index.parent / name
    if Path(name).name != name or name in (".", ".."):
        msg = f"names a shard outside of its folder: '{printable(name)}'"
        raise FileError(msg, place, "put all shards into one folder with their index")
    if shard.is_symlink() or not shard.is_file():
        what = "is a link" if shard.is_symlink() else "is not there"
        msg = f"names the shard '{printable(name)}', which {what}"
        raise FileError(msg, place, "give a folder with all shards in it (cp -rL copies what links lead to)")
    return shard


@contextmanager
def _open_shards(path: Path, shards: Sequence[Path], opener_of: Callable[[Path], Opener]) -> Iterator[Source]:
    """Open several files of one model as one source."""
    place = Place(path)
    for shard in shards:
        _beside(shard, shard.name, place)
    with ExitStack() as stack:
        sources = [stack.enter_context(opener_of(shard)(shard)) for shard in shards]
        formats = {source.format for source in sources}
        names = [name for source in sources for name in (*(a.name for a in source.arrays), *source.skipped)]
        twice = [name for name, count in Counter(names).items() if count > 1]
        if len(formats) > 1 or twice:
            what = (
                f"of several formats: {listing(sorted(formats))}"
                if len(formats) > 1
                else f"that both hold {listing(twice)}"
            )
            msg = f"shards {what}"
            raise FileError(msg, place, "give the shards of one model alone, or one of the files")
        first = sources[0]
        yield Source(
            f"{first.format} in {len(shards)} shards" if len(shards) > 1 else first.format,
            path,
            tuple(array for source in sources for array in source.arrays),
            {name: why for source in sources for name, why in source.skipped.items()},
            in_forward_order=len(shards) == 1 and first.in_forward_order,
            orientation=first.orientation,
            producer=first.producer,
        )
