"""Which dumps are meant: files, folders of them, and patterns."""

from __future__ import annotations

import glob
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..files import opening
from ..files.dump import FORMAT
from ..problems import FileError, Place, cause

WILD = "*?["
"""Signs by which a pattern is told from a name."""

SUFFIXES = (".h5", ".hdf5")
"""How the files of a folder end that may be dumps."""


@dataclass(frozen=True)
class Sources:
    """The dumps to read, and what was left out."""

    dumps: tuple[Path, ...]
    """As they were given, each once."""
    notes: tuple[str, ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        """A short name for each dump, all different: what its records are called after, if there are several."""
        return labels_of(self.dumps)


def labels_of(paths: Sequence[Path]) -> tuple[str, ...]:
    """A short name for each path, all different: without its folder, if that will do."""
    names = [path.stem for path in paths]
    if len(set(names)) < len(names):
        parts = [path.absolute().with_suffix("").parts for path in paths]
        shortest = min(map(len, parts))
        common = next(
            place
            for place, level in enumerate(zip(*parts, strict=False))
            if len(set(level)) > 1 or place == shortest - 1
        )
        names = [":".join(one[common:]) for one in parts]
    counts = Counter(names)
    numbers: Counter[str] = Counter()
    labels = []
    for name in names:
        numbers[name] += 1
        labels.append(name if counts[name] == 1 else f"{name} ({numbers[name]})")
    return tuple(labels)


def find_dumps(given: Sequence[str | Path]) -> Sources:
    """Return the dumps that files, folders and patterns stand for, in that order; within a folder by their numbers.

    Parameters
    ----------
    given : sequence of str or path
        A file stands for itself, a folder for the dumps that lie in it, and what is neither but has one of ``*?[`` for
        the files of such names (``**`` for any folders).

    Raises
    ------
    FileError
        If a pattern fits nothing, or a folder holds no dump.
    """
    found: list[Path] = []
    notes: list[str] = []
    for one in map(Path, given):
        if one.is_dir():
            dumps, others = _in_folder(one)
            found += dumps
            if others:
                notes.append(f"{others} other HDF5 file(s) in '{one}' are no gradient dumps")
        elif not one.exists() and any(sign in str(one) for sign in WILD):
            found += _matching(one)
        else:
            found.append(one)
    return Sources(tuple(_different(found)), tuple(notes))


def find_files(given: Sequence[Path], *, within_folders: bool = False) -> list[Path]:
    """Return the files that paths and patterns stand for; a folder stands for itself, or for what lies `within` it.

    Raises
    ------
    FileError
        If a pattern fits nothing, or nothing lies in a folder.
    """
    found: list[Path] = []
    for one in given:
        if one.is_dir() and within_folders:
            try:
                inside = sorted(
                    (path for path in one.iterdir() if not path.name.startswith(".")), key=natural
                )
            except OSError as error:
                msg = f"cannot be read ({cause(error)})"
                raise FileError(msg, Place(one)) from error
            if not inside:
                msg = "an empty folder"
                raise FileError(msg, Place(one), "give a folder of files")
            found += inside
        elif not one.exists() and any(sign in str(one) for sign in WILD):
            found += _matching(one)
        else:
            found.append(one)
    return _different(found)


def natural(path: Path) -> list[tuple[int, int | str]]:
    """Sort key by which "round-9" comes before "round-10"."""
    parts = re.split(r"(\d+)", str(path))
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in parts if part]


def _in_folder(folder: Path) -> tuple[list[Path], int]:
    """The dumps in a folder, and how many other HDF5 files there are."""
    place = Place(folder)
    try:
        files = sorted(
            (path for path in folder.iterdir() if path.suffix in SUFFIXES and path.is_file()), key=natural
        )
    except OSError as error:
        msg = f"cannot be read ({cause(error)})"
        raise FileError(msg, place) from error
    dumps = [path for path in files if _may_be_dump(path)]
    if not dumps:
        msg = f"a folder without gradient dumps ({' or '.join(SUFFIXES)} files)"
        raise FileError(msg, place, "give a folder of dumps, or make one with 'spear-np convert'")
    return dumps, len(files) - len(dumps)


def _may_be_dump(path: Path) -> bool:
    """Whether a file is a dump, or too damaged to tell, which is said when it is opened."""
    return opening.format_of(path) in (FORMAT, None)


def _matching(pattern: Path) -> list[Path]:
    files = [Path(name) for name in glob.glob(str(pattern), recursive=True)]  # noqa: PTH207  (of any root)
    files = sorted((path for path in files if path.is_file()), key=natural)
    if not files:
        msg = "no file has such a name"
        raise FileError(msg, Place(pattern), "check the pattern, and put it in quotes")
    return files


def _different(paths: Iterable[Path]) -> list[Path]:
    """Each file once, also if it goes by several names."""
    seen: set[object] = set()
    kept = []
    for path in paths:
        try:
            status = path.stat()
            identity: object = (status.st_dev, status.st_ino)
        except OSError:  # which is said when it is opened
            identity = path.absolute()
        if identity not in seen:
            seen.add(identity)
            kept.append(path)
    return kept
