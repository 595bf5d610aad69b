"""A network as operations that take each other's outputs, and what a dump says of it: activation, follows, between.

Every front end (a Keras model, the configuration in a Keras file, a traced JAX function) lists its operations as
`Step`s; what follows from them is decided here, once. All walks are linear in the size of the network.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from spear_np import Activation

MOST_NAMES = 8
"""Names of what stands before a layer, or of what takes its output: more say nothing to people."""

NONE = Activation("none")


@dataclass(frozen=True)
class Product:
    """A layer that begins with a product with its own weight; an activation behind it is that of the layer."""

    name: str
    """For people: "dense", "conv2d"."""
    layer: str | None = None
    linear: bool = False
    """Whether it is fully connected."""


@dataclass(frozen=True)
class Elementwise:
    """The same function of every number."""

    activation: Activation


@dataclass(frozen=True)
class Kept:
    """All numbers in the same order, perhaps in another shape; without anything to take, the network's input."""

    name: str = ""
    """For people; empty for what changes nothing at all."""


@dataclass(frozen=True)
class Moved:
    """All numbers, but in another order."""

    name: str


@dataclass(frozen=True)
class Other:
    """Anything else: a dropout, a normalisation, a sum."""

    name: str


@dataclass(frozen=True)
class Output:
    """The end of the network: what it takes is handed out."""


Operation = Product | Elementwise | Kept | Moved | Other | Output


@dataclass(frozen=True)
class Step:
    """One operation, and whose outputs it takes."""

    operation: Operation
    takes: tuple[int, ...] = ()
    """Positions of earlier steps."""


@dataclass(frozen=True)
class Wiring:
    """What a dump says of one layer."""

    activation: Activation
    """What is applied to its output; names of several things joined by +."""
    follows: str | None = None
    between: str | None = None
    assumed: bool = False
    """Whether nothing names the activation."""


def wire(steps: Sequence[Step], shapes: Mapping[str, tuple[int, int]]) -> dict[str, Wiring]:
    """Return what is known of every layer of the network that has a name.

    Parameters
    ----------
    steps : sequence of Step
        In an order in which each takes the outputs of earlier ones.
    shapes : mapping
        (m, n) of the fully connected layers that the dump will hold: only they are followed, and follow.
    """
    after = _after(steps)
    uses: dict[str, list[int]] = {}
    for position, step in enumerate(steps):
        if isinstance(step.operation, Product) and step.operation.layer is not None:
            uses.setdefault(step.operation.layer, []).append(position)
    activations = {
        layer: _one(name for p in positions for name in after[p]) for layer, positions in uses.items()
    }
    values = _values(steps)
    followable = {layer for layer, positions in uses.items() if len(positions) == 1 and layer in shapes}
    wired = {}
    for layer, positions in uses.items():
        wired[layer] = Wiring(activations[layer])
        if layer not in shapes:
            continue
        before = _merged([values[taken] for p in positions for taken in steps[p].takes])
        follows, between = _link(layer, before, followable, activations, shapes)
        wired[layer] = Wiring(activations[layer], follows, between)
    return wired


def _after(steps: Sequence[Step]) -> list[dict[Activation, None]]:
    """Return what takes the output of each step, seen through what keeps all numbers."""
    after: list[dict[Activation, None]] = [{} for _ in steps]
    for position in reversed(range(len(steps))):
        step = steps[position]
        match step.operation:
            case Kept() | Moved():
                seen = list(after[position]) or [NONE]
            case Elementwise(activation):
                # What does nothing is seen through, too.
                seen = list(after[position]) or [NONE] if activation == NONE else [activation]
            case Product() | Output():
                seen = [NONE]
            case Other(name):
                seen = [Activation(name)]
        for taken in step.takes:
            room = MOST_NAMES - len(after[taken])
            after[taken].update(
                dict.fromkeys([one for one in seen if one not in after[taken]][: max(room, 0)])
            )
    return after


def _one(activations: Iterable[Activation]) -> Activation:
    """Return the only activation, or what stands for several."""
    several = sorted(set(map(str, found := list(activations))))
    if len(several) > 1:
        return Activation("+".join(several))
    return found[0] if found else NONE


@dataclass(frozen=True)
class _Value:
    """What is known of the output of a step, looking back to the fully connected layers before it."""

    source: Product | None = None
    """The fully connected layer whose output it is, but for `activation` and a new shape."""
    activation: Activation = NONE
    fresh: bool = False
    """Whether an activation here would be that of a product."""
    between: tuple[str, ...] = ()
    """What else was done to it."""
    harmless: tuple[str, ...] = ()
    """New shapes, and activations after the first: named only if nothing else explains."""
    exact: bool = True
    """Whether it is `activation` of the output of `source`, and nothing else."""


def _values(steps: Sequence[Step]) -> list[_Value]:
    values: list[_Value] = []
    for step in steps:
        before = _merged([values[taken] for taken in step.takes])
        match step.operation:
            case Product(linear=True) as product:
                value = _Value(source=product, fresh=True)
            case Product(name):
                value = _Value(fresh=True, between=_joined(before.between, name), exact=False)
            case Elementwise(activation) if activation == NONE:
                value = before
            case Elementwise(activation) if before.fresh:
                value = replace(before, activation=activation, fresh=False)
            case Elementwise(activation):
                value = replace(before, harmless=_joined(before.harmless, str(activation)), exact=False)
            case Kept(name):
                value = replace(before, harmless=_joined(before.harmless, name)) if name else before
            case Moved(name):
                value = replace(before, between=_joined(before.between, name), exact=False)
            case Other(name):
                value = _Value(between=_joined(before.between, name), harmless=before.harmless, exact=False)
            case Output():
                value = before
        values.append(value)
    return values


def _merged(values: Sequence[_Value]) -> _Value:
    """Return what is known of several values together."""
    if not values:
        return _Value()
    if len(values) == 1:
        return values[0]
    return _Value(
        between=_joined((), *(name for value in values for name in value.between)),
        harmless=_joined((), *(name for value in values for name in value.harmless)),
        exact=False,
    )


def _joined(names: tuple[str, ...], *more: str) -> tuple[str, ...]:
    """Return names without repetitions, the first of them if they are too many."""
    return tuple(dict.fromkeys([*names, *more]))[:MOST_NAMES]


def _link(
    layer: str,
    before: _Value,
    followable: set[str],
    activations: Mapping[str, Activation],
    shapes: Mapping[str, tuple[int, int]],
) -> tuple[str | None, str | None]:
    """Return the layer that `layer` follows, and what stands between."""
    if not before.exact:
        return None, "+".join(before.between or before.harmless) or None
    source = before.source
    if source is None:
        return None, None  # the input of the network
    if source.layer not in followable or layer not in followable:
        return None, source.name
    if activations[source.layer] != before.activation:
        return None, None  # its output goes elsewhere, too
    if shapes[source.layer][0] != shapes[layer][1]:
        return None, "+".join(before.harmless) or str(before.activation)
    return source.layer, None
