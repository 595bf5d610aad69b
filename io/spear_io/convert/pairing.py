"""From named arrays to layers: which weight, bias and gradients belong together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ..adapters.prefixes import AmbiguousNamesError, counterparts
from ..problems import FileError, Place, listing, printable
from .layers import KINDS, PARTS, FoundLayer
from .lists import Meant, Member, by_model, by_place, one_list
from .names import IS_COMPUTED, NORMALISATIONS, PER_SAMPLE, Meaning, is_buffer, understand_all
from .positions import by_rank
from .source import NamedArray

LONE_BIAS = "is a bias without a weight"


@dataclass(frozen=True)
class Given:
    """An array, and what is known of it beyond its name."""

    array: NamedArray
    gradient: bool = False
    """Whether it is a gradient whatever its name says."""
    meaning: Meaning | None = None
    """Instead of what the name says."""
    ordered: bool = False
    """Whether the arrays of its file come in the order of the forward pass."""


@dataclass(frozen=True)
class Unread:
    """An array that cannot be taken: its place in a list, and its layer, still count."""

    name: str
    reason: str
    gradient: bool = False
    """Whether it is a gradient whatever its name says."""


@dataclass
class Pairing:
    """What became of the arrays of a source."""

    layers: list[FoundLayer] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    """Arrays that are not used, and why."""
    inputs: NamedArray | None = None
    """True inputs (b, n) of the network, for evaluation only."""
    unread: list[FoundLayer] = field(default_factory=list)
    """Layers that are there, but whose weight or its gradient cannot be used."""
    notes: list[str] = field(default_factory=list)
    """What was concluded from the names that people must know."""


def pair(
    given: Iterable[Given], place: Place, unread: Iterable[Unread] = (), *, two_files: bool = False
) -> Pairing:
    """Sort arrays into layers by their names, or by their positions if they have no names.

    Parameters
    ----------
    given : iterable of Given
        In the order of the file: the layers come in the order of their first arrays.
    place : Place
        Named in errors.
    unread : iterable of Unread
        What else there is.
    two_files : bool
        Whether the model lies in a file of its own: its names may then have another beginning than the gradients'.

    Raises
    ------
    FileError
        If two arrays would have to be the same part of one layer, two layers would have one name, or gradients do not
        fit the model.
    """
    pairing = Pairing()
    given, unread = list(given), list(unread)
    names = [one.array.name for one in given if one.meaning is None]
    mapped = len(names) < len(given)
    meanings = understand_all([*names, *(one.name for one in unread)])
    named: list[tuple[Given, Meaning]] = []
    members: dict[bool, list[Member]] = {False: [], True: []}
    for one in given:
        meaning = one.meaning or meanings[one.array.name]
        gradient = meaning.gradient or one.gradient
        if math.prod(one.array.shape) == 1 and (meaning.reason or not one.array.shape):
            meaning = Meaning(reason="is a single number")
        if meaning.position is not None and mapped:
            meaning = Meaning(reason="is in a list, and no --map says what it is")
        if meaning.position is None:
            named.append((one, replace(meaning, gradient=gradient)))
        else:
            members[gradient].append(Member(one.array.name, meaning, one.array))
    for other in unread:
        meaning = meanings[other.name]
        if meaning.position is not None and not mapped:
            members[meaning.gradient or other.gradient].append(Member(other.name, meaning, None))
    if two_files:
        named = _aligned(named, pairing, place)
    layers: dict[tuple[str, ...], FoundLayer] = {}
    _sort([(one.array, meaning) for one, meaning in named], layers, pairing, place)
    _sort(_numbered(named, members, layers, pairing, place), layers, pairing, place)
    for layer in layers.values():
        reason = _no_layer(layer, place)
        if reason is None:
            pairing.layers.append(layer)
            continue
        pairing.skipped.update({array.name: reason for array in layer.parts.values()})
        if reason == LONE_BIAS:
            pairing.unread.append(layer)
    _note_unread(unread, meanings, layers, pairing)
    _check_titles(pairing.layers, place)
    return pairing


def _aligned(
    named: list[tuple[Given, Meaning]], pairing: Pairing, place: Place
) -> list[tuple[Given, Meaning]]:
    """Return gradients under the names of the layers of a model in another file, where these have another beginning."""
    titles: dict[bool, dict[str, Meaning]] = {False: {}, True: {}}
    for _, meaning in named:
        if meaning.role in ("weight", "bias") and not meaning.reason:
            titles[meaning.gradient].setdefault(".".join(meaning.layer), meaning)
    try:
        meant = counterparts(titles[True], titles[False])
    except AmbiguousNamesError as error:
        msg = f"the gradients could be of several models: without {listing(error.choices)} before the names"
        raise FileError(msg, place, "give a file of one model") from error
    changed = {name: other for name, other in meant.items() if name != other}
    if changed:
        name, model_name = next(iter(changed.items()))
        pairing.notes.append(
            f"the names of the gradients and of the model begin in different ways: '{printable(titles[True][name].title)}' "
            f"is taken for '{printable(titles[False][model_name].title)}'"
        )
    renamed = []
    for one, meaning in named:
        other = changed.get(".".join(meaning.layer)) if meaning.gradient and meaning.role else None
        if other is not None:
            model = titles[False][other]
            meaning = replace(meaning, layer=model.layer, title=model.title)
        renamed.append((one, meaning))
    return renamed


def _numbered(
    named: Sequence[tuple[Given, Meaning]],
    members: Mapping[bool, Sequence[Member]],
    layers: Mapping[tuple[str, ...], FoundLayer],
    pairing: Pairing,
    place: Place,
) -> Meant:
    """Return what the arrays are that have a number instead of a name."""
    gradients = one_list(members[True], place, gradient=True, needed=True)
    model = one_list(members[False], place, gradient=False, needed=bool(gradients))
    chosen = {one.name for one in (*gradients, *model)}
    for member in (*members[True], *members[False]):
        if member.name not in chosen and member.array is not None:
            pairing.skipped[member.name] = "is in a list of which nothing says what it holds"
    with_names = [
        layer for layer in layers.values() if "weight" in layer.parts and len(layer.parts["weight"].shape) > 1
    ]
    if not (gradients and with_names) or model:
        return by_place(gradients, model, place)
    parameters = [
        (one, meaning) for one, meaning in named if not meaning.gradient and not is_buffer(one.array.name)
    ]
    if all(one.ordered for one, _ in parameters):
        found = by_model(gradients, [(one.array, meaning) for one, meaning in parameters], place)
        if found is not None:
            return found
    return by_rank(by_place(gradients, [], place), with_names, place)


def _note_unread(
    unread: Sequence[Unread],
    meanings: Mapping[str, Meaning],
    layers: Mapping[tuple[str, ...], FoundLayer],
    pairing: Pairing,
) -> None:
    """Remember layers of which a weight is there that cannot be read, or is computed from others."""
    computed = [name for name, meaning in meanings.items() if meaning.reason == IS_COMPUTED]
    known = {layer.words for layer in (*pairing.layers, *pairing.unread)}
    for name in (*(one.name for one in unread), *computed):
        meaning = meanings[name]
        if meaning.role == "weight" and meaning.layer not in known:
            known.add(meaning.layer)
            bias = layers.get(meaning.layer)
            pairing.unread.append(bias or FoundLayer(meaning.title, words=meaning.layer))


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
            pairing.inputs = pairing.inputs or array
        else:
            layer = layers.setdefault(meaning.layer, FoundLayer(meaning.title, words=meaning.layer))
            part = PARTS[meaning.role, meaning.gradient]
            if part in layer.said and not meaning.said:
                pairing.skipped[array.name] = (
                    f"is not the {part} of '{printable(layer.title)}': --map says another is"
                )
            else:
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
    if meaning.said:
        layer.said.add(part)
    if meaning.change:
        layer.changes.add(part)
    if meaning.convention:
        layer.conventions.add(meaning.convention)


def _no_layer(layer: FoundLayer, place: Place) -> str | None:
    """Why the arrays of that name are no layer of products; None if they are."""
    matrices = [layer.parts[part] for part in ("weight_grad", "weight") if part in layer.parts]
    if not matrices:
        return LONE_BIAS
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
