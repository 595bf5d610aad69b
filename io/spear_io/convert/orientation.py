"""Whether the rows or the columns of a stored matrix are output units: settled from what is known, or asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from ..problems import FileError, Place, printable
from .pairing import FoundLayer
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


def settle(layers: Sequence[FoundLayer], source: Source, wanted: Orientation | None) -> list[Settled]:
    """Return the orientation of each fully connected layer, and why.

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

    Raises
    ------
    FileError
        If a bias fits neither side or not what is wanted, or if nothing decides.
    """
    by_bias = [_by_bias(layer, wanted, source.place) for layer in layers]
    known = {orientation for orientation in by_bias if orientation is not None}
    settled: list[Settled] = []
    for layer, of_bias in zip(layers, by_bias, strict=True):
        if wanted is not None:
            orientation, known_by = wanted, "as given"
        elif of_bias is not None:
            orientation, known_by = of_bias, "length of the bias"
        elif len(known) == 1:
            (orientation,), known_by = known, "as the other layers"
        elif source.orientation is not None:
            orientation, known_by = source.orientation, f"convention of {source.producer}"
        else:
            orientation, known_by = _by_names_and_neighbours(layer, layers, source.place)
        settled.append(Settled(_sizes(layer, orientation), orientation, known_by))
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


def _by_names_and_neighbours(
    layer: FoundLayer, layers: Sequence[FoundLayer], place: Place
) -> tuple[Orientation, str]:
    """Return what names and sizes say together, or ask."""
    reasons: dict[Orientation, list[str]] = {"mn": [], "nm": []}
    if len(layer.conventions) == 1:
        (named,) = layer.conventions
        reasons[named].append("name of the array")
    chained: list[Orientation] = [o for o in MEANING if chains([_sizes(one, o) for one in layers])]
    if len(chained) == 1 and len(layers) > 1 and _numbered(layers):
        reasons[chained[0]].append("sizes of its neighbours")
    said = [orientation for orientation in MEANING if reasons[orientation]]
    if len(said) == 1:
        return said[0], ", ".join(reasons[said[0]])
    rows, columns = layer.matrix.shape
    why = "nothing in the file says" if not said else "names and sizes contradict each other on"
    msg = f"are the {rows} rows or the {columns} columns of '{printable(layer.matrix.name)}' output units? {why}"
    if said:
        msg += " it"
    raise FileError(msg, place, "say it: --orientation mn (rows are output units) or nm (columns are)")


def chains(shapes: Sequence[tuple[int, int]]) -> bool:
    """Whether layers of sizes (m, n) can follow each other in this order."""
    return all(before[0] == after[1] for before, after in pairwise(shapes))


def _numbered(layers: Sequence[FoundLayer]) -> bool:
    """Whether the names differ by numbers alone, so that their order can be relied on."""
    texts = {tuple(word.rstrip("0123456789") for word in layer.words) for layer in layers}
    return len(texts) == 1
