"""From the gradients of consecutive layers to a chain, as far as they allow one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..backend.devices import Device
from ..backend.work import suitable_threads
from ..chain.equations import top_of
from ..chain.layers import Chain, ChainLayer, bias_misfit, cancelled, chain_of, passing_layer
from ..chain.polish import CONSISTENT
from ..errors import InputError
from ..factors.activation import NO_ACTIVATION
from ..factors.decay import without_decay
from ..factors.factorize import Factors
from ..factors.gradients import NO_DECAY, LayerGradients, WeightDecay
from .verify import spare_equations

ENOUGH = 0.8
"""Equations beyond the unknowns, for each input, from which no further layer is factorised.

Derived: as many as at the lower of the two shares of `ROOM`, up to which one layer behind the first finds inputs quickly.
"""
LEAST_SPARE = 2
"""Equations beyond the unknowns without which a point that meets them need not be an input.

Definition: one equation may hold by chance; `Check` "chance" then says how probable that is.
"""


@dataclass(frozen=True)
class NoChain:
    """Why these layers cannot be inverted together."""

    reason: str


@dataclass(frozen=True, eq=False)
class Linked:
    """A chain, and why it ends before the last of the layers, if it does."""

    chain: Chain
    cut: str | None


def read_chain(
    layers: Sequence[LayerGradients],
    device: Device,
    batch_size: int | None = None,
    names: Sequence[str] = (),
) -> Linked | NoChain:
    """Factorise `layers`, in forward order, and link as many as say something of the inputs of the first.

    `names` are what messages call them.

    Raises
    ------
    InputError
        If an array holds NaN or infinity or leaves no room for arithmetic, or `batch_size` is impossible for its shape.
    """
    if len(layers) < 2:
        return NoChain("there is no layer behind it")
    missing = _missing(layers[0])
    if missing is not None:
        return NoChain(f"the first layer {missing}")
    if layers[0].sigma.name == NO_ACTIVATION[0]:
        return NoChain(
            "no activation follows the first layer, so that mixtures of inputs fit the layer behind it as well"
        )
    first = _factors(layers[0], device, batch_size)
    if first is None:
        return NoChain("the rank of its weight_grad cannot be told")
    decay = first.gradients.decay
    assert first.bias_grad is not None  # `_missing` says so
    if bias_misfit(first.space, first.bias_grad) > CONSISTENT * cancelled(first.space):
        return NoChain(
            "the bias_grad of the first layer is no combination of the columns of its weight_grad: its inputs depend on each "
            "other, or the two are not of the same step"
        )
    b = first.space.batch_size
    usable: list[Factors | ChainLayer] = [first]
    cut = None
    spare = 1 - b
    for number, gradients in enumerate(layers[1:], start=1):
        last = number == len(layers) - 1
        passing = spare >= ENOUGH * b and not last
        factors = _deeper(layers[number - 1], gradients, device, b, decay, passing=passing)
        if isinstance(factors, str):
            cut = f"layer '{names[number] if names else number}' {factors}"
            break
        usable.append(factors)
        if isinstance(factors, Factors) and factors.space.batch_size == b:
            spare += gradients.shape[1] - b + 1
    if not isinstance(usable[-1], Factors):  # what is behind the last gradient that is used passes nothing on
        usable = [one for one in usable if isinstance(one, Factors)]
    chain = _without_bottlenecks(chain_of(usable, device))
    if chain.depth == 0:
        return NoChain(_too_shallow(chain, cut))
    if spare_equations(chain, chain.depth) < LEAST_SPARE:
        return NoChain(_too_many(chain))
    return Linked(chain, cut)


def _deeper(
    before: LayerGradients,
    gradients: LayerGradients,
    device: Device,
    b: int,
    decay: WeightDecay,
    *,
    passing: bool,
) -> Factors | ChainLayer | str:
    """The factors of a layer behind another of a chain of b inputs, or why the chain ends before it.

    `decay` is that of the first layer, taken to be that of all where they do not say otherwise.

    A layer that only has to pass on what others say is not factorised.
    """
    if not before.sigma.known:
        return f"comes behind '{before.sigma}', which is no activation that can be computed"
    if before.sigma.name == NO_ACTIVATION[0]:
        return "comes behind a layer that no activation follows, and so says nothing that the layers before it do not"
    missing = _missing(gradients, before)
    if missing is not None:
        return missing
    try:
        if passing:
            return passing_layer(gradients, device)
        factors = _factors(gradients, device, None, decay)
        if (factors is None or factors.space.batch_size > b) and b <= min(gradients.shape):
            # Noise may hide the rank of a deeper layer; whether inputs fit it is found out later.
            factors = _factors(gradients, device, b, decay)
    except InputError as error:
        return f"cannot be used: {error}"
    if factors is None or factors.space.batch_size > b:
        return "has a gradient that does not have the rank of the batch"
    return factors


def _without_bottlenecks(chain: Chain) -> Chain:
    """The chain as far as its layers pass back all that the last one can tell: none with fewer units than that has numbers."""
    layers = chain.layers
    while len(layers) > 2:
        numbers = top_of(replace(chain, layers=layers))[0].shape[1]
        if numbers <= min(layer.units for layer in layers[1:]):
            break
        layers = layers[:-1]
        while layers[-1].space is None:
            layers = layers[:-1]
    return replace(chain, layers=layers)


def _factors(
    gradients: LayerGradients, device: Device, batch_size: int | None, decay: WeightDecay = NO_DECAY
) -> Factors | None:
    m, _ = gradients.shape
    with suitable_threads(device, m * m):
        factors = without_decay(gradients, device, batch_size, elsewhere=decay).factors
    return factors if isinstance(factors, Factors) else None


def _missing(gradients: LayerGradients, before: LayerGradients | None = None) -> str | None:
    """What keeps a layer from being part of a chain: as the first of them, or behind the one `before` it."""
    for name in ("weight", "bias_grad"):
        if getattr(gradients, name) is None:
            return f"has no {name}"
    if before is not None and gradients.shape[1] != before.shape[0]:
        return f"takes {gradients.shape[1]} features, but {before.shape[0]} units lead to it"
    if before is None and not gradients.sigma.known:
        return f"is followed by '{gradients.sigma}', which is no activation that can be computed"
    return None


def _too_shallow(chain: Chain, cut: str | None) -> str:
    if len(chain.layers) < 2 and cut is not None:
        return cut
    rank = chain.layers[1].rank
    return f"the gradient of the layer behind it has rank {rank}, and so does not show its {chain.batch_size} inputs"


def _too_many(chain: Chain) -> str:
    """How many layers a batch would need, from the widths of those that are there."""
    b = chain.batch_size
    room = [chain.layers[number].telling - b + 1 for number in range(1, chain.depth + 1)]
    typical = min(room)
    if typical <= 0:
        return f"{b} inputs are as many as a layer has units: no number of layers would do"
    needed = -(-(b - 1 + LEAST_SPARE) // typical)
    return (
        f"{b} inputs meet {sum(room)} equations in {b - 1} unknowns with {chain.depth} layer(s) behind the first that "
        f"show them all: {needed} would do"
    )
