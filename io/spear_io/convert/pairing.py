"""From named arrays to layers: which weight, bias and gradients belong together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from ..problems import FileError, Place, listing, printable
from .layers import KINDS, PARTS, FoundLayer
from .names import NORMALISATIONS, PER_SAMPLE, Meaning, understand_all
from .positions import by_position, by_rank
from .source import NamedArray


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
        If two arrays would have to be the same part of one layer, two layers would have one name, or numbered
        gradients do not fit the model.
    """
    pairing = Pairing()
    given = list(given)
    meanings = understand_all(one.array.name for one in given if one.meaning is None)
    named: list[tuple[NamedArray, Meaning]] = []
    numbered: dict[bool, list[tuple[int, NamedArray]]] = {False: [], True: []}
    for one in given:
        meaning = one.meaning or meanings[one.array.name]
        gradient = meaning.gradient or one.gradient
        if math.prod(one.array.shape) == 1 and (meaning.reason or not one.array.shape):
            meaning = Meaning(reason="is a single number")
        if meaning.position is None:
            named.append((one.array, replace(meaning, gradient=gradient)))
        else:
            numbered[gradient].append((meaning.position, one.array))

    layers: dict[tuple[str, ...], FoundLayer] = {}
    _sort(named, layers, pairing, place)
    weights, gradients = (by_position(numbered[which], gradient=which) for which in (False, True))
    model = [
        layer for layer in layers.values() if "weight" in layer.parts and len(layer.parts["weight"].shape) > 1
    ]
    if model and not weights:
        gradients = by_rank(gradients, model, place)
    _sort([*weights, *gradients], layers, pairing, place)
    for layer in layers.values():
        reason = _no_layer(layer, place)
        if reason is None:
            pairing.layers.append(layer)
        else:
            pairing.skipped.update({array.name: reason for array in layer.parts.values()})
    _check_titles(pairing.layers, place)
    return pairing


def _sort(
    arrays: Iterable[tuple[NamedArray, Meaning]],
    layers: dict[tuple[str, ...], FoundLayer],
    pairing: Pairing,
    place: Place,
) -> None:
    """Put arrays into their layers, or among what is not used."""
    for array, meaning in arrays:
        if meaning.reason:
            pairing.skipped[array.name] = meaning.reason
        elif meaning.role == "inputs":
            pairing.inputs = array
        else:
            layer = layers.setdefault(meaning.layer, FoundLayer(meaning.title, words=meaning.layer))
            _add(layer, array, meaning, place)


def _check_titles(layers: Sequence[FoundLayer], place: Place) -> None:
    """Refuse two layers that people would call the same, such as those of `W1` and `layer_1.weight`."""
    found: dict[str, FoundLayer] = {}
    for layer in layers:
        other = found.setdefault(layer.title, layer)
        if other is not layer:
            names = listing([other.matrix.name, layer.matrix.name])
            msg = f"two layers would be called '{printable(layer.title)}': those of {names}"
            raise FileError(msg, place, "rename the arrays of one, or choose with --map LAYER.PART=NAME")


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
    if _is_per_sample(layer):
        return PER_SAMPLE
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


def _is_per_sample(layer: FoundLayer) -> bool:
    """Whether its gradients are those of single samples, (b, m, n) and (b, m): by the weight, or else by the bias."""
    shapes = {part: array.shape for part, array in layer.parts.items()}
    gradient = shapes.get("weight_grad", ())
    if len(gradient) != 3:
        return False
    bias = shapes.get("bias_grad", ())
    by_bias = len(bias) == 2 and bias[0] == gradient[0] and bias[1] in gradient[1:]
    return by_bias if "weight" not in shapes else shapes["weight"] == gradient[1:]
