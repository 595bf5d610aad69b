"""Whether the rows or the columns of a stored matrix are output units: settled from what is known, or asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ..problems import FileError, Place, printable
from .layers import FoundLayer
from .source import Orientation, Source

MEANING: dict[Orientation, str] = {"mn": "rows are output units", "nm": "columns are output units"}


@dataclass(frozen=True)
class Settled:
    """How the matrix of a layer lies in the source."""

    shape: tuple[int, int]
    """(m, n): output units and input features."""
    orientation: Orientation
    known_by: str
    """How that is known."""


def settle(
    layers: Sequence[FoundLayer],
    source: Source,
    wanted: Orientation | None,
    needed: Callable[[FoundLayer], bool],
) -> dict[str, Settled]:
    """Return how the fully connected layers lie, by title.

    The first that says something decides: `wanted`; the length of the bias; the other layers, if all of their
    biases agree; the format; the names of the arrays and the sizes of numbered neighbours, if they do not
    contradict each other.

    Parameters
    ----------
    layers : sequence of FoundLayer
        Fully connected ones, in the order of their names.
    source : Source
        Where they come from.
    wanted : {"mn", "nm"}, optional
        What the user says.
    needed : callable
        Whether a layer must be settled; others are left out where nothing decides.

    Raises
    ------
    FileError
        If a bias fits neither side or not what is wanted, or if nothing decides for a layer that is needed.
    """
    by_bias = {layer.title: _by_bias(layer, wanted, source.place) for layer in layers}
    known = {orientation for orientation in by_bias.values() if orientation is not None}
    settled = {}
    for layer in layers:
        of_bias = by_bias[layer.title]
        orientation: Orientation
        if wanted is not None:
            orientation, known_by = wanted, "as given"
        elif of_bias is not None:
            orientation, known_by = of_bias, "length of the bias"
        elif len(known) == 1:
            (orientation,), known_by = known, "as the other layers"
        elif source.orientation is not None:
            orientation, known_by = source.orientation, f"convention of {source.producer}"
        else:
            reasons = _by_names_and_neighbours(layer, layers)
            if len(reasons) == 1:
                ((orientation, known_by),) = reasons.items()
            elif needed(layer):
                raise _question(layer, source.place, contradiction=bool(reasons))
            else:
                continue
        settled[layer.title] = Settled(_sizes(layer, orientation), orientation, known_by)
    return settled


def _sizes(layer: FoundLayer, orientation: Orientation) -> tuple[int, int]:
    """Return (m, n): output units and input features."""
    rows, columns = layer.matrix.shape
    return (rows, columns) if orientation == "mn" else (columns, rows)


def _by_bias(layer: FoundLayer, wanted: Orientation | None, place: Place) -> Orientation | None:
    """Return what the length of the bias says; None for a square matrix or without a bias."""
    length, (rows, columns) = layer.vector_length, layer.matrix.shape
    if length is None:
        return None
    found: Orientation | None = None if rows == columns else "mn" if length == rows else "nm"
    m = rows if wanted == "mn" else columns if wanted == "nm" else None
    if length not in (rows, columns) or (m is not None and length != m):
        msg = f"the bias of '{printable(layer.title)}' has {length} entries, but its matrix the shape {rows, columns}"
        said = f" and --orientation {wanted} says that {MEANING[wanted]}" if wanted else ""
        raise FileError(msg + said, place, "a bias has one entry an output unit: give arrays of one layer")
    return found


def _by_names_and_neighbours(layer: FoundLayer, layers: Sequence[FoundLayer]) -> dict[Orientation, str]:
    """Return what speaks for either orientation."""
    reasons: dict[Orientation, str] = {}
    if len(layer.conventions) == 1:
        reasons = dict.fromkeys(layer.conventions, "name of the array")
    chained: list[Orientation] = [o for o in MEANING if chains([_sizes(one, o) for one in layers])]
    if len(chained) == 1 and numbered(layers):
        reasons.setdefault(chained[0], "sizes of its neighbours")
    return reasons


def _question(layer: FoundLayer, place: Place, *, contradiction: bool) -> FileError:
    """Return the error that asks for the orientation."""
    rows, columns = layer.matrix.shape
    why = "its name and its neighbours contradict each other" if contradiction else "nothing in the file says"
    name = printable(layer.matrix.name)
    msg = f"are the {rows} rows or the {columns} columns of '{name}' its output units? {why}"
    return FileError(msg, place, "say it: --orientation mn if rows are output units, nm if columns are")


def chains(shapes: Sequence[tuple[int, int]]) -> bool:
    """Whether layers of sizes (m, n) can follow each other in this order."""
    return all(before[0] == after[1] for before, after in pairwise(shapes))


def numbered(layers: Sequence[FoundLayer]) -> bool:
    """Whether the names differ by numbers alone, so that their order can be relied on."""
    texts = {tuple(word.rstrip("0123456789") for word in layer.words) for layer in layers}
    return len(texts) == 1
