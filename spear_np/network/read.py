"""From the gradients of consecutive layers to a chain, as far as they allow one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..backend import Device, suitable_threads
from ..chain.examine import CONSISTENT
from ..chain.layers import Chain, bias_noise_of, chain_of
from ..factors.factorize import Factors, factorize
from ..factors.gradients import LayerGradients
from .verify import spare_equations

LEAST_SPARE = 2
"""Equations beyond the unknowns without which a point that meets them need not be an input.

Definition: one equation may hold by chance; `Check` "chance" then says how probable that is.
"""


@dataclass(frozen=True)
class NoChain:
    """Why these layers cannot be inverted together."""

    reason: str


def read_chain(
    layers: Sequence[LayerGradients], device: Device, batch_size: int | None = None
) -> Chain | NoChain:
    """Factorise `layers`, in forward order, and link as many as say something of the inputs of the first.

    Raises
    ------
    InputError
        If an array of the first layer holds NaN or infinity, or `batch_size` is impossible for its shape.
    """
    if len(layers) < 2:
        return NoChain("there is no layer behind it")
    missing = _missing(layers[0])
    if missing is not None:
        return NoChain(f"the first layer {missing}")
    first = _factors(layers[0], device, batch_size)
    if first is None:
        return NoChain("the rank of its weight_grad cannot be told")
    if bias_misfit(first) > CONSISTENT:
        return NoChain(
            "the bias_grad of the first layer is no combination of the columns of its weight_grad: its inputs depend on each "
            "other, or the two are not of the same step"
        )
    b = first.space.batch_size
    usable = [first]
    for number, gradients in enumerate(layers[1:], start=1):
        if not layers[number - 1].sigma.known or _missing(gradients, activation=False) is not None:
            break
        factors = _factors(gradients, device, None)
        if (factors is None or factors.space.batch_size > b) and b <= min(gradients.shape):
            # Noise may hide the rank of a deeper layer; whether inputs fit it is found out later.
            factors = _factors(gradients, device, b)
        if factors is None or factors.space.batch_size > b:
            break
        usable.append(factors)
    chain = chain_of(usable, device)
    if chain.depth == 0:
        return NoChain(_too_shallow(layers, usable, b))
    if spare_equations(chain, chain.depth) < LEAST_SPARE:
        return NoChain(_too_many(chain))
    return chain


def bias_misfit(factors: Factors) -> float:
    """Root mean square of what the columns of weight_grad leave of bias_grad, in standard deviations of its noise.

    ``G = D Aᵀ`` and ``g = D·1`` have the same columns, so that none is left, if A has as many independent columns as D. It has
    not where an input is zero, or a combination of others: then no s has s · c = 1 for all inputs, and no scale is right.
    """
    space, xp = factors.space, factors.space.xp
    deviation = bias_noise_of(space, factors.bias_grad)
    g = space.live_of(factors.bias_grad / space.noise)
    left = (g - space.U @ (space.U.T @ g)) * space.live_of(space.noise / deviation)
    freedom = max(int(left.shape[0]) - space.batch_size, 1)
    return math.sqrt(float(xp.sum(left**2)) / freedom)


def _factors(gradients: LayerGradients, device: Device, batch_size: int | None) -> Factors | None:
    m, _ = gradients.shape
    with suitable_threads(device, m * m):
        factors = factorize(gradients, device, batch_size)
    return factors if isinstance(factors, Factors) else None


def _missing(gradients: LayerGradients, *, activation: bool = True) -> str | None:
    """What keeps a layer from being part of a chain."""
    for name in ("weight", "bias_grad"):
        if getattr(gradients, name) is None:
            return f"has no {name}"
    if activation and not gradients.sigma.known:
        return f"is followed by '{gradients.sigma}', which is no activation that can be computed"
    return None


def _too_shallow(layers: Sequence[LayerGradients], usable: list[Factors], b: int) -> str:
    if len(usable) < 2:
        missing = _missing(layers[1], activation=False)
        return f"the layer behind it {missing or 'has no gradient whose rank can be told'}"
    rank = usable[1].space.batch_size
    return f"the gradient of the layer behind it has rank {rank}, and so does not show its {b} inputs"


def _too_many(chain: Chain) -> str:
    """How many layers a batch would need, from the widths of those that are there."""
    b = chain.batch_size
    room = [chain.layers[number].basis.shape[0] - b + 1 for number in range(1, chain.depth + 1)]
    typical = min(room)
    if typical <= 0:
        return f"{b} inputs are as many as a layer has units: no number of layers would do"
    needed = -(-(b - 1 + LEAST_SPARE) // typical)
    return (
        f"{b} inputs meet {sum(room)} equations in {b - 1} unknowns with {chain.depth} layer(s) behind the first that "
        f"show them all: {needed} would do"
    )
