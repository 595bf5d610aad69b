"""What is wrong with a file, where, and what to do: always one line."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

LONGEST_NAME = 120
"""Characters of a foreign string that are shown; names and attributes may be of any length."""


def printable(text: str, limit: int = LONGEST_NAME) -> str:
    """Return `text` safe for a terminal: no control characters, escapes or lone surrogates, not too long.

    Names and attributes come from strangers, and a message must stay one line.
    """
    escaped = "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[: limit + 1]
    )
    return escaped if len(escaped) <= limit else escaped[: limit - 1] + "…"


@dataclass(frozen=True)
class Place:
    """Somewhere in a file, as exactly as it is known."""

    file: Path
    record: str | None = None
    layer: str | None = None
    dataset: str | None = None

    def at(self, *, record: str | None = None, layer: str | None = None, dataset: str | None = None) -> Place:
        """Return a more exact place: `place.at(record="a").at(layer="fc1")`."""
        return Place(self.file, record or self.record, layer or self.layer, dataset or self.dataset)

    def __str__(self) -> str:
        """One line: file, then record, layer and dataset in quotes."""
        inside = [
            f"{part} '{printable(name)}'"
            for part in ("record", "layer", "dataset")
            if (name := getattr(self, part)) is not None
        ]
        return ": ".join([printable(str(self.file), 1000), *([", ".join(inside)] if inside else [])])


class FileError(Exception):
    """A file that cannot be used; prints as one line that says what is wrong, where, and what to do.

    Parameters
    ----------
    problem : str
        What is wrong, in one clause.
    place : Place
        Where.
    advice : str, optional
        What to do about it.
    """

    def __init__(self, problem: str, place: Place, advice: str | None = None) -> None:
        super().__init__(problem, place, advice)
        self.problem = problem
        self.place = place
        self.advice = advice

    @property
    def file(self) -> Path:
        """The file."""
        return self.place.file

    @property
    def record(self) -> str | None:
        """Name of the record, where known."""
        return self.place.record

    @property
    def layer(self) -> str | None:
        """Name of the layer, where known."""
        return self.place.layer

    @property
    def dataset(self) -> str | None:
        """Name of the dataset, where known."""
        return self.place.dataset

    def __str__(self) -> str:
        """Where: what is wrong; what to do."""
        return f"{self.place}: {self.problem}" + (f"; {self.advice}" if self.advice else "")


class WriteError(FileError):
    """A file that cannot be written, or must not be replaced."""


def cause(error: BaseException) -> str:
    """Return the heart of an operating system or HDF5 error as one clause.

    HDF5 wraps the reason of the operating system into a long line of file numbers, sizes and addresses.
    """
    if isinstance(error, MemoryError):
        return "it takes more memory than there is, or than a file of its size should need"
    inner = re.search(r"error message = '([^']+)'", str(error))
    text = inner[1] if inner else getattr(error, "strerror", None) or str(error) or type(error).__name__
    return printable(" ".join(text.split()), 300)


def listing(names: Iterable[str], empty: str = "none") -> str:
    """Return names as people list them, quoted; the first twenty of very many."""
    names = list(names)
    shown = ", ".join(f"'{printable(name)}'" for name in names[:20])
    return (shown + (f" and {len(names) - 20} more" if len(names) > 20 else "")) or empty


def size_text(count: int) -> str:
    """Return a size as people write it."""
    for unit, size in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}" if count < 1000 * size else f"{count // size} {unit}"
    return f"{count} bytes"
