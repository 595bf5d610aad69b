"""Arrays that have a number instead of a name: which list they are in, and what each is by its place and shape.

Two lists of one model are paired place by place if they have the same places, None and other things that cannot be read
included; otherwise layer by layer, if they have the same kernels. What fits neither way is refused, never counted off.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from ..problems import FileError, Place, listing
from .layers import natural_text
from .names import ROOTS, Meaning
from .source import NamedArray
from .spans import Lies, lie

MODEL = ROOTS | {"weights", "before", "initial"}
"""Words that tell the list of a model from others."""

NO_PART = "is no kernel or bias, by its position and shape"
TWO_ORDERS = (
    "gradients by position fit the layers of the model in the order of the file and in that of their names"
)
OPEN = (
    "may be a bias or belong to a normalisation, which nothing tells: give the arrays names, or say it with --map "
    "LAYER.bias_grad=NAME"
)


@dataclass(frozen=True)
class Member:
    """One place in a list."""

    name: str
    meaning: Meaning
    array: NamedArray | None
    """None for a place that holds nothing that can be used, such as None for a frozen parameter."""

    @property
    def title(self) -> str:
        """Name of its list, for people."""
        return "/".join(self.meaning.group) or "the arrays without names"


@dataclass(frozen=True)
class _Slot:
    """One place of a model: its parameter, and the gradient of it."""

    parameter: NamedArray | None
    gradient: NamedArray | None

    @property
    def shape(self) -> tuple[int, ...] | None:
        array = self.gradient or self.parameter
        return None if array is None else array.shape


Meant = list[tuple[NamedArray, Meaning]]


def one_list(members: Iterable[Member], place: Place, *, gradient: bool, needed: bool) -> list[Member]:
    """Return the only list among the members, or the only one that is called as a model, in its order.

    Raises
    ------
    FileError
        If there are several, and `needed`.
    """
    lists = _lists(members)
    lists = {name: one for name, one in lists.items() if any(_is_kernel(m.array) for m in one)} or lists
    if len(lists) > 1 and not gradient:
        model = [name for name in lists if MODEL & set(name)]
        if len(model) == 1:
            return lists[model[0]]
    if len(lists) <= 1:
        return next(iter(lists.values()), [])
    if not needed:
        return []
    titles = listing("/".join(name) or "without a name" for name in lists)
    what = "gradients" if gradient else "arrays"
    msg = f"holds several lists of {what}, and nothing says which belong together: {titles}"
    advice = "save one list of gradients and one of the model, as {'grads': […], 'params': […]}, or use --map"
    raise FileError(msg, place, advice)


def _lists(members: Iterable[Member]) -> dict[tuple[str, ...], list[Member]]:
    """Return members by their list: pairs of a kernel and its bias in one list are a single one."""
    found: defaultdict[tuple[str, ...], list[Member]] = defaultdict(list)
    for member in members:
        found[member.meaning.group].append(member)
    lists: dict[tuple[str, ...], list[Member]] = {}
    for group, of_group in found.items():
        inner: defaultdict[tuple[int, ...], list[Member]] = defaultdict(list)
        for member in sorted(of_group, key=lambda one: one.meaning.numbers):
            inner[member.meaning.numbers[:-1]].append(member)
        kernels = [sum(_is_kernel(m.array) for m in of_inner) for of_inner in inner.values()]
        if len(inner) == 1 or max(kernels) <= 1:
            lists[group] = [member for of_inner in inner.values() for member in of_inner]
        else:
            lists |= {(*group, *map(str, numbers)): of_inner for numbers, of_inner in inner.items()}
    return lists


def by_place(gradients: Sequence[Member], model: Sequence[Member], place: Place) -> Meant:
    """Return what the arrays of one or two lists are: kernels, each with the bias that follows it.

    Vectors of the right length after a kernel are its bias, a normalisation (one, two, or four with its statistics), or
    both. The bias is the one whose gradient lies in what that of the kernel spans; where that decides nothing, an odd
    number begins with the bias.

    Raises
    ------
    FileError
        If both lists are given and do not fit.
    """
    if not gradients or not model or _same_places(gradients, model):
        number = {member.meaning.numbers: at for at, member in enumerate(model or gradients)}
        slots = [_Slot(None, None)] * len(number)
        for member in model:
            slots[number[member.meaning.numbers]] = _Slot(member.array, None)
        for member in gradients:
            at = number[member.meaning.numbers]
            slots[at] = replace(slots[at], gradient=member.array)
        _check_shapes(slots, gradients, place)
        meanings = _meanings(slots)
        return [
            *(_meant(model, meanings, gradient=False) if model else []),
            *(_meant(gradients, meanings, gradient=True) if gradients else []),
        ]
    parameters = _meanings([_Slot(member.array, None) for member in model])
    own = _meanings([_Slot(None, member.array) for member in gradients])
    _check_kernels(gradients, model, place)
    return [
        *_meant(model, _as_for_gradients(parameters, own), gradient=False),
        *_meant(gradients, own, gradient=True),
    ]


def by_model(
    gradients: Sequence[Member], model: Sequence[tuple[NamedArray, Meaning]], place: Place
) -> Meant | None:
    """Return numbered gradients as those of named parameters, place by place; None if places or shapes do not fit.

    Raises
    ------
    FileError
        If they fit in the order of the file as well as in that of the names.
    """
    by_name = sorted(model, key=lambda one: natural_text(re.split(r"[./]", one[0].name)[:-1]))
    orders = [model, *([by_name] if by_name != list(model) else [])]
    fitting = [order for order in orders if _fits(gradients, order)]
    if len(fitting) > 1:
        raise FileError(TWO_ORDERS, place, "give the gradients under the names of the weights")
    if not fitting:
        return None
    return [
        (one.array, replace(meaning, gradient=True, change=one.meaning.change))
        for one, (_, meaning) in zip(gradients, fitting[0], strict=True)
        if one.array is not None
    ]


def _fits(gradients: Sequence[Member], model: Sequence[tuple[NamedArray, Meaning]]) -> bool:
    return len(gradients) == len(model) and all(
        one.array is None or one.array.shape == array.shape
        for one, (array, _) in zip(gradients, model, strict=True)
    )


def _same_places(gradients: Sequence[Member], model: Sequence[Member]) -> bool:
    return {one.meaning.numbers for one in gradients} == {one.meaning.numbers for one in model}


def _is_kernel(array: NamedArray | None) -> bool:
    return array is not None and len(array.shape) >= 2


def _check_shapes(slots: Sequence[_Slot], gradients: Sequence[Member], place: Place) -> None:
    """Refuse a gradient that does not have the shape of the parameter in its place."""
    for number, slot in enumerate(slots):
        if slot.parameter and slot.gradient and slot.parameter.shape != slot.gradient.shape:
            msg = (
                f"gradients by position do not fit the model: position {number} has a gradient of shape "
                f"{slot.gradient.shape}, but a parameter of shape {slot.parameter.shape}"
            )
            raise FileError(
                msg, place, "give the gradients of all its parameters in their order, or under their names"
            )


def _check_kernels(gradients: Sequence[Member], model: Sequence[Member], place: Place) -> None:
    """Refuse two lists whose kernels are not the same, one after the other."""
    found, wanted = (
        [one.array.shape for one in members if one.array is not None and _is_kernel(one.array)]
        for members in (gradients, model)
    )
    unread = sum(one.array is None for one in gradients)
    if found == wanted and not unread:
        return
    if len(found) != len(wanted):
        what = f"they are of {len(found)} layers, but it has {len(wanted)}"
    elif found == wanted:
        what = f"they have {len(gradients)} places with {unread} that are empty, but it has {len(model)} parameters"
    else:
        number = next(k for k, shapes in enumerate(zip(found, wanted, strict=True)) if len(set(shapes)) > 1)
        what = f"layer {number + 1} has a gradient of shape {found[number]}, but a weight of shape {wanted[number]}"
    msg = f"gradients by position do not fit the model: {what}"
    advice = "leave None in the place of what has no gradient, or give the gradients under the names of the weights"
    raise FileError(msg, place, advice)


def _meant(members: Sequence[Member], meanings: Sequence[Meaning], *, gradient: bool) -> Meant:
    return [
        (one.array, replace(meaning, gradient=gradient, change=one.meaning.change))
        for one, meaning in zip(members, meanings, strict=True)
        if one.array is not None
    ]


def _meanings(slots: Sequence[_Slot]) -> list[Meaning]:
    """Return what is in each place: a kernel begins a layer, and what follows it belongs to it."""
    meanings = [Meaning(reason=NO_PART)] * len(slots)
    kernels = [at for at, slot in enumerate(slots) if slot.shape is not None and len(slot.shape) >= 2]
    for number, (at, end) in enumerate(pairwise([*kernels, len(slots)])):
        layer, title = (str(number),), f"layer_{number}"
        meanings[at] = Meaning("weight", layer=layer, title=title)
        vectors = [
            place
            for place in range(at + 1, end)
            if (shape := slots[place].shape) is not None
            and len(shape) == 1
            and shape[0] in (slots[at].shape or ())
        ]
        bias, certain = _bias(slots, at, vectors)
        for place in vectors:
            if place == bias:
                meanings[place] = Meaning("bias", layer=layer, title=title)
            elif not certain:
                meanings[place] = Meaning(reason=OPEN)
    return meanings


def _bias(slots: Sequence[_Slot], kernel: int, vectors: Sequence[int]) -> tuple[int | None, bool]:
    """Return which of the vectors is the bias of a kernel, and whether those that are none are known to be."""
    gradient = slots[kernel].gradient
    lies = dict.fromkeys(vectors, Lies.UNDECIDED)
    told = {place: array for place in vectors if (array := slots[place].gradient) is not None}
    if told and gradient is not None and len(gradient.shape) == 2:
        lies |= dict(zip(told, lie(gradient, list(told.values())), strict=True))
    inside = [place for place, where in lies.items() if where is Lies.INSIDE]
    if len(inside) == 1:
        return inside[0], True
    first = kernel + 1
    if len(vectors) % 2 and first in vectors and lies[first] is not Lies.OUTSIDE:
        return first, True
    return None, len(vectors) != 2 or all(where is Lies.OUTSIDE for where in lies.values())


def _as_for_gradients(parameters: Sequence[Meaning], gradients: Sequence[Meaning]) -> list[Meaning]:
    """Return what parameters are whose list has other places: a bias is one as well if it has its gradient's place."""
    kernels = {meaning.layer: at for at, meaning in enumerate(gradients) if meaning.role == "weight"}
    biased = {
        meaning.layer
        for at, meaning in enumerate(gradients)
        if meaning.role == "bias" and kernels[meaning.layer] == at - 1
    }
    found = [Meaning(reason=OPEN) if meaning.role == "bias" else meaning for meaning in parameters]
    for at, meaning in enumerate(parameters):
        following = parameters[at + 1 : at + 2]
        if (
            meaning.role == "weight"
            and meaning.layer in biased
            and following
            and following[0].role != "weight"
        ):
            found[at + 1] = replace(meaning, role="bias")
    return found
