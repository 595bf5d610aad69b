"""From named arrays to layers: which weight, bias and gradients belong together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from ..problems import FileError, Place, listing, printable
from .names import NORMALISATIONS, Meaning, Role, understand
from .source import NamedArray, Orientation

Part = Literal["weight_grad", "bias_grad", "weight", "bias"]

PARTS: dict[tuple[Role | None, bool], Part] = {
    ("weight", True): "weight_grad",
    ("bias", True): "bias_grad",
    ("weight", False): "weight",
    ("bias", False): "bias",
}

KINDS = {2: "linear", 3: "conv1d", 4: "conv2d", 5: "conv3d"}
"""What a layer is, by the dimensions of its kernel."""


@dataclass
class FoundLayer:
    """The arrays of one layer, as they lie in the source."""

    title: str
    parts: dict[Part, NamedArray] = field(default_factory=dict)
    words: tuple[str, ...] = ()
    """What its name consists of."""
    conventions: set[Orientation] = field(default_factory=set)
    """How arrays of such names usually lie."""

    @property
    def matrix(self) -> NamedArray:
        """The gradient of the weight, or else the weight."""
        return self.parts["weight_grad"] if "weight_grad" in self.parts else self.parts["weight"]

    @property
    def kind(self) -> str:
        """ "linear", "conv2d", …"""
        return KINDS[len(self.matrix.shape)]

    @property
    def vector_length(self) -> int | None:
        """Entries of the bias or its gradient: the number of output units."""
        for part in ("bias_grad", "bias"):
            if part in self.parts:
                return self.parts[part].shape[0]
        return None


@dataclass(frozen=True)
class Given:
    """An array, and what is known of it beyond its name."""

    array: NamedArray
    gradient: bool = False
    """Whether it is a gradient whatever its name says."""
    meaning: Meaning | None = None
    """Instead of what the name says."""


@dataclass
class Pairing:
    """What became of the arrays of a source."""

    layers: list[FoundLayer] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    """Arrays that are not used, and why."""
    inputs: NamedArray | None = None
    """True inputs (b, n) of the network, for evaluation only."""


def pair(given: Iterable[Given], place: Place) -> Pairing:
    """Sort arrays into layers by their names, or by their positions if they have no names.

    Parameters
    ----------
    given : iterable of Given
        In the order of the file: the layers come in the order of their first arrays.
    place : Place
        Named in errors.

    Raises
    ------
    FileError
        If two arrays would have to be the same part of one layer.
    """
    pairing = Pairing()
    understood = [(one, one.meaning or understand(one.array.name)) for one in given]
    named = [(one.array, _certain(one, meaning)) for one, meaning in understood if meaning.position is None]
    for gradient in (False, True):
        numbered = [
            (meaning.position, one.array)
            for one, meaning in understood
            if meaning.position is not None and (meaning.gradient or one.gradient) == gradient
        ]
        arrays = [array for _, array in sorted(numbered, key=lambda pair: pair[0])]
        named += _by_position(arrays, gradient=gradient)

    layers: dict[tuple[str, ...], FoundLayer] = {}
    for array, meaning in named:
        if meaning.reason:
            pairing.skipped[array.name] = meaning.reason
        elif meaning.role == "inputs":
            pairing.inputs = array
        else:
            layer = layers.setdefault(meaning.layer, FoundLayer(meaning.title, words=meaning.layer))
            _add(layer, array, meaning, place)
    for layer in layers.values():
        reason = _no_layer(layer, place)
        if reason is None:
            pairing.layers.append(layer)
        else:
            pairing.skipped.update({array.name: reason for array in layer.parts.values()})
    return pairing


def _certain(one: Given, meaning: Meaning) -> Meaning:
    """Return the meaning of a named array with what is known beyond the name."""
    return replace(meaning, gradient=True) if one.gradient else meaning


def _add(layer: FoundLayer, array: NamedArray, meaning: Meaning, place: Place) -> None:
    """Put an array into its layer."""
    part = PARTS[meaning.role, meaning.gradient]
    if part in layer.parts:
        msg = f"two arrays could be the {part} of '{layer.title}': {listing([layer.parts[part].name, array.name])}"
        raise FileError(msg, place, f"choose with --map {layer.title}.{part}=NAME, or remove one")
    if meaning.role == "bias" and len(array.shape) == 2 and 1 in array.shape:
        array = array.flat  # MATLAB has no vectors
    layer.parts[part] = array
    if meaning.convention:
        layer.conventions.add(meaning.convention)


def _no_layer(layer: FoundLayer, place: Place) -> str | None:
    """Why the arrays of that name are no layer of products; None if they are."""
    matrices = [layer.parts[part] for part in ("weight_grad", "weight") if part in layer.parts]
    if not matrices:
        return "is a bias without a weight"
    shapes = {matrix.shape for matrix in matrices}
    if {len(shape) for shape in shapes} <= {0, 1}:
        return NORMALISATIONS[1]
    if len(shapes) > 1:
        gradient, weight = (matrix.shape for matrix in matrices)
        msg = f"the gradient of '{printable(layer.title)}' has shape {gradient}, but its weight {weight}"
        raise FileError(msg, place, "give both of the same layer and stored the same way")
    if 0 in matrices[0].shape:
        return f"is empty: its shape is {matrices[0].shape}"
    if len(matrices[0].shape) not in KINDS:
        return f"has {len(matrices[0].shape)} dimensions, as no layer that is known"
    vectors = {layer.parts[part].shape for part in ("bias_grad", "bias") if part in layer.parts}
    if len(vectors) > 1 or any(len(shape) != 1 for shape in vectors):
        return f"has a bias of shape {' and '.join(map(str, sorted(vectors)))}, as no layer that is known"
    return None


def _by_position(arrays: Sequence[NamedArray], *, gradient: bool) -> list[tuple[NamedArray, Meaning]]:
    """Return what arrays in forward order are: a kernel, its bias, the next kernel, …

    Vectors of the same length after a kernel are its bias, a normalisation (two, or four with its statistics), or
    both: an odd number begins with the bias.
    """
    named: list[tuple[NamedArray, Meaning]] = []
    runs: defaultdict[int, list[NamedArray]] = defaultdict(list)
    number = -1
    for array in arrays:
        if len(array.shape) >= 2:
            number += 1
        runs[number].append(array)
    for number, run in runs.items():
        kernel, vectors = (None, run) if number < 0 else (run[0], run[1:])
        layer, title = (str(number),), f"layer_{number}"
        if kernel is not None:
            named.append((kernel, Meaning("weight", gradient, layer, title)))
        fitting = [v for v in vectors if kernel and len(v.shape) == 1 and v.shape[0] in kernel.shape]
        for position, vector in enumerate(vectors):
            if position == 0 and len(fitting) % 2 and vector is fitting[0]:
                named.append((vector, Meaning("bias", gradient, layer, title)))
            else:
                named.append((vector, Meaning(reason="is no kernel or bias, by its position and shape")))
    return named
