"""Weight decay told from the update itself: the multiple of W without which what is left is of low rank.

An update (W_before − W_after) / η of SGD with weight decay is ∂L/∂W + λ W, of full rank, but W is known. Outside the
row and column space of the gradient there is λ W and noise, m − b by n − b numbers for one unknown. Where the singular
values show no rank, a start comes from a pencil: with m ≤ n, ``weight_grad W⁺ = ∂L/∂W · W⁺ + λ I`` has the eigenvalue λ
m − b times. Nothing is subtracted without evidence: `fitted_decay`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from ..arrays import Array, HostArray
from ..backend.devices import Device
from ..backend.host import to_host
from .factorize import Factors, factorize
from .gradients import NO_DECAY, LayerGradients, WeightDecay
from .multiple import Multiple
from .rank import LEFT_OVER, MOST_OF_SPECTRUM, Spectrum

DECAY_SIGMAS = 8.0
"""Standard deviations from which a multiple of W is no chance.

Heuristic: 1e-15 for Gaussian noise, which leaves room for noise that is not quite independent.
"""
DECAY_SUSPECTED = 0.05
"""Share of what lies outside the spaces of weight_grad that W must explain for a decay to be fitted.

Heuristic: below, it is a small part of the noise, and to be counted with it; a first look sees at least a tenth of what a
fit will.
"""
DECAY_EXPLAINS = 0.5
"""Share of it that a fitted decay must explain to be taken out.

Definition: more than all else together, so that the noise falls by a factor of √2 at least.
"""
DECAY_REPETITIONS = 10
"""Fits of λ, each at the spaces that the last one gives.

Derived: each squares the error of the spaces; three or four do.
"""
SKETCH = 512
"""Rows of the pencil that gives a start, at most, and half of its columns.

Heuristic: its eigenvalues take a second; batches up to a good third of that leave enough of them equal.
"""
EQUAL_SHARE = 1 - MOST_OF_SPECTRUM
"""Share of the eigenvalues of the pencil that are λ at least.

Definition: the complement of `MOST_OF_SPECTRUM`, the largest share of the spectrum that may be signal.
"""


@dataclass(frozen=True, eq=False)
class Decayed:
    """A layer as it is to be read."""

    gradients: LayerGradients
    """With its decay, that of the factors."""
    factors: Factors | Spectrum
    """At the most plausible reading of its singular values."""

    @property
    def told(self) -> bool:
        """Whether a multiple of W would have shown here, so that `gradients.decay` is a finding."""
        return shows_decay(self.gradients) and not _cannot_tell(self.factors)


def shows_decay(gradients: LayerGradients) -> bool:
    """Whether a layer has the weights, and the size, for a multiple of them to be told from its update."""
    return gradients.weight is not None and min(gradients.shape) > LEFT_OVER


def without_decay(
    gradients: LayerGradients,
    device: Device,
    batch_size: int | None = None,
    *,
    elsewhere: WeightDecay = NO_DECAY,
) -> Decayed:
    """Return `gradients` with the weight decay that their singular values show, none without evidence.

    What `gradients.decay` says is taken out first, or else `elsewhere`, the decay of another layer of the same update, unless
    the update shows a rank only without. A further multiple of W, of either sign, is looked for beyond it where the layer
    is large enough to tell one.

    Raises
    ------
    InputError
        As `factorize`.
    """
    if gradients.weight is None:
        return Decayed(gradients, factorize(gradients, device, batch_size))
    stated = gradients.decay.present
    assumed = gradients if stated else replace(gradients, decay=elsewhere)
    factors = factorize(assumed, device, batch_size)
    if assumed.decay.present and _cannot_tell(factors):
        plain = replace(gradients, decay=NO_DECAY)
        without = factorize(plain, device, batch_size)
        if _relative_noise(without) < _relative_noise(factors):
            assumed, factors = plain, without
    if isinstance(factors, Factors):
        assumed = replace(assumed, precision=factors.gradients.precision)  # by the digits
    if shows_decay(gradients) and _suspicious(factors):
        fit = _fitted(assumed, device, batch_size)
        if fit is not None:
            assumed = replace(assumed, decay=fit)
            factors = factorize(assumed, device, batch_size)
    if stated or assumed.decay.present:
        return _with_bias_settled(assumed, factors, device)
    return Decayed(gradients, factors)


def _relative_noise(factors: Factors | Spectrum) -> float:
    """How much of weight_grad is noise at its rank; all of it without one."""
    return factors.space.relative_noise if isinstance(factors, Factors) else 1.0


def _cannot_tell(factors: Factors | Spectrum) -> bool:
    """Whether too little lies outside the spaces of weight_grad to see a multiple of W there."""
    if isinstance(factors, Spectrum):
        return factors.rank is None
    return factors.space.batch_size > MOST_OF_SPECTRUM * min(factors.space.shape)


def _suspicious(factors: Factors | Spectrum) -> bool:
    """Whether W shows in what weight_grad leaves, or nothing can be said of it."""
    if isinstance(factors, Spectrum) or factors.multiple is None or _cannot_tell(factors):
        return _cannot_tell(factors)
    found = factors.multiple
    return abs(found.value) > DECAY_SIGMAS * found.deviation and found.share(found.value) > DECAY_SUSPECTED


def _with_bias_settled(gradients: LayerGradients, factors: Factors | Spectrum, device: Device) -> Decayed:
    decay = replace(gradients.decay, bias=_bias_decay(gradients, factors, device))
    gradients = replace(gradients, decay=decay)
    if isinstance(factors, Factors):
        bias_grad = None if factors.bias_grad is None else gradients.vector("bias_grad", device=device)
        factors = replace(factors, gradients=gradients, bias_grad=bias_grad)
    return Decayed(gradients, factors)


def _fitted(gradients: LayerGradients, device: Device, batch_size: int | None) -> WeightDecay | None:
    """The decay that a fit finds; None if there is no evidence for it.

    Where the singular values show no rank at λ either, or one too high, a quarter of them counts as signal: λ stands out all
    the same.
    """
    gram = _gram(gradients, device)
    stated, value = gradients.decay.weight, _start(gradients, device)
    for _ in range(DECAY_REPETITIONS):
        decayed = replace(gradients, decay=WeightDecay(value, value))
        factors = factorize(decayed, device, batch_size, weight_gram=gram)
        if batch_size is None and _cannot_tell(factors):
            forced = math.ceil(EQUAL_SHARE * min(gradients.shape))
            factors = factorize(decayed, device, forced, weight_gram=gram)
        if isinstance(factors, Spectrum) or factors.multiple is None:
            return None
        found = factors.multiple
        value += found.value
        if abs(found.value) <= found.deviation:
            break
    else:
        return None
    change = value - stated
    known = abs(change) > DECAY_SIGMAS * found.deviation and found.share(change) >= DECAY_EXPLAINS
    if not known or _cannot_tell(factors):
        return None
    if abs(value) <= DECAY_SIGMAS * found.deviation:
        return NO_DECAY  # what was stated is not there
    return WeightDecay(value, value, found.deviation)


def _gram(gradients: LayerGradients, device: Device) -> Array:
    """(m, m): W Wᵀ."""
    m, _ = gradients.shape
    gram = device.zeros((m, m))
    for _, (block,) in gradients.blocks("weight", device=device):
        gram = gram + block @ block.T
    return gram


def _start(gradients: LayerGradients, device: Device) -> float:
    """λ as the eigenvalue that a pencil of weight_grad and W has most often, both seen through random matrices."""
    xp = device.xp
    rng = np.random.default_rng(0)
    m, n = gradients.shape
    rows = device.normal(rng, (SKETCH, m)) if m > SKETCH else None
    narrow = n <= 2 * SKETCH
    parts: list[list[Array]] = [[], []]
    for columns, blocks in gradients.blocks("weight_grad", "weight", device=device):
        mixed = None if narrow else device.normal(rng, (columns.stop - columns.start, 2 * SKETCH))
        for part, block in zip(parts, blocks, strict=True):
            seen = block if rows is None else rows @ block
            if mixed is None:
                part.append(seen)
            else:
                part[:] = [seen @ mixed if not part else part[0] + seen @ mixed]
    update, weight = (to_host(xp.concat(part, axis=1)) for part in parts)
    if update.shape[0] > update.shape[1]:
        update, weight = update.T, weight.T
    return gradients.decay.weight + _most_frequent(np.linalg.eigvals(update @ np.linalg.pinv(weight)).real)


def _most_frequent(values: HostArray) -> float:
    """The middle of the shortest interval that holds a quarter of `values`."""
    ordered = np.sort(values)
    count = min(len(ordered), max(LEFT_OVER, math.ceil(EQUAL_SHARE * len(ordered))))
    width = ordered[count - 1 :] - ordered[: len(ordered) - count + 1]
    first = int(np.argmin(width))
    return float(np.median(ordered[first : first + count]))


def _bias_decay(gradients: LayerGradients, factors: Factors | Spectrum, device: Device) -> float:
    """The multiple of the bias in bias_grad: that of the weights, none, or its own where neither fits and another does.

    bias_grad is D·1, in the column space of weight_grad; what lies outside it of the bias tells.
    """
    both = gradients.decay.weight
    if gradients.bias_grad is None or gradients.bias is None or not isinstance(factors, Factors):
        return gradients.decay.bias
    plain = replace(gradients, decay=NO_DECAY)
    found = _multiple_of_bias(
        factors, plain.vector("bias_grad", device=device), plain.vector("bias", device=device)
    )
    nearer = both if abs(found.value - both) <= abs(found.value) else 0.0
    spare = factors.space.shape[0] - factors.space.batch_size  # with few, the deviation is a guess
    apart = spare > LEFT_OVER and abs(found.value - nearer) > DECAY_SIGMAS * found.deviation
    return found.value if apart and found.share(found.value - nearer) >= DECAY_EXPLAINS else nearer


def _multiple_of_bias(factors: Factors, bias_grad: Array, bias: Array) -> Multiple:
    """The multiple of the bias outside the column space of weight_grad."""
    space, xp = factors.space, factors.space.xp
    U = space.whole(space.U)
    update, own = ((vector / space.noise) for vector in (bias_grad, bias))
    update, own = update - U @ (U.T @ update), own - U @ (U.T @ own)
    energy = float(xp.sum(own**2))
    if energy == 0:
        return Multiple(0.0, math.inf, 0.0, float(xp.sum(update**2)))
    value = float(xp.sum(update * own)) / energy
    left = float(xp.sum((update - value * own) ** 2))
    freedom = max(space.shape[0] - space.batch_size - 1, 1)
    return Multiple(value, math.sqrt(left / freedom / energy), energy, left)
