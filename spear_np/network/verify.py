"""The certificate of a chain: every equation of every input, the gradients of all layers, and what they leave open."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..answer.certificate import Certificate, Check
from ..arrays import Array, HostArray
from ..backend.algebra import OWN_ROUNDING, inverse_or_pseudoinverse
from ..backend.host import to_host
from ..chain.equations import forward, membership_scale, ones_deviation
from ..chain.examine import APART, Examined, examine, known_of, reexamine
from ..chain.layers import Chain
from ..chain.polish import CONSISTENT
from ..checks.specification import EXACT_TOLERANCE, MAX_RESIDUAL
from ..factors.zero import ZERO_SIGMAS
from ..theory import false_member_probability
from .scale import OutputScale, output_scale

MAX_FALSE = 1e-6
"""Largest probability that an input is a point which meets the equations by chance.

Definition: one in a million.
"""
MARGIN = 1.25
"""Factor by which the noise that an input's own equations show may fall short of what has moved it.

Measured: of 5,000 rows with rounding noise of 1,700 problems, the largest error was 5.3 times its deviation by that noise, where six
times the margin are allowed for (benchmarks/chain_hunt.py, seeds 41001 to 43350).
"""
UNTESTED = 1e-5
"""Root mean square of an input's equations, in standard deviations, below which nothing but our own rounding is left of them.

Measured: inputs have 1e-2 and more; mixtures behind a layer whose units are mostly dead, 1e-9 (benchmarks/chain_hunt.py, seed 23904).
"""
NEAR = 0.4
"""Density of a normal variable at its mean, times its standard deviation.

Derived: 1/√(2π).
"""


@dataclass(frozen=True, eq=False)
class Verified:
    """The inputs of a chain with their certificate; arrays on the device."""

    c: Array
    """(k, b) coordinates."""
    q: Array
    """(k, t) numbers at the top."""
    output_grad: Array
    """(k, m) columns of ∂L/∂Z of the first layer."""
    certificate: Certificate
    by_duals: bool = False
    """Whether some input is bounded only by the duals of others."""
    misscaled: float | None = None
    """What all bias_grad seem to have been multiplied by, if the outputs contradict the scale that they give."""


def verify(
    chain: Chain,
    known: tuple[Examined, ...],
    depth: int,
    cut: str | None = None,
    loss: str | None = None,
) -> Verified:
    """Bound the errors of the `known` inputs, one each, and hold the whole against the gradients of all layers.

    Inputs whose bound is too wide for exactness are first refined on all equations, forward and backward.
    """
    xp = chain.xp
    rows, bound = _narrowed(chain, known, depth)
    c = xp.concat([one.c for one in rows], axis=0)
    q = xp.concat([one.q for one in rows], axis=0)
    ahead = np.concatenate([one.forward_residual for one in rows])
    behind = np.concatenate([one.backward_residual for one in rows])
    apart = np.concatenate([one.apart for one in rows])
    columns = xp.concat([one.output_grad for one in rows], axis=0)
    size = data_range(chain, c)
    bound = bound + _own_rounding(chain, c)
    passed = forward(chain, c, 0, derivatives=False)
    complete = c.shape[0] == chain.batch_size
    residual, bias_residual = math.inf, math.inf
    if complete:
        residual, bias_residual = _residuals(chain, c, depth)
        bound = bound * max(1.0, residual, bias_residual)  # more than the noise is in the gradients
    chance = _chances(chain, c, depth)
    count = c.shape[0]
    off = to_host(xp.sum(xp.astype(passed.slope[0] == 0, xp.int64), axis=1))
    spare = spare_equations(chain, depth)
    unscaled = _scales_alike(chain)
    scale = output_scale(chain, c, q, loss) if unscaled else None
    misscaled = None
    if scale is not None and abs(scale.factor - 1) > max(EXACT_TOLERANCE, ZERO_SIGMAS * scale.deviation):
        misscaled = scale.factor
        bound = bound + abs(scale.factor - 1) * largest_entries(chain, c)
    checks = _checks(
        chain, ahead, behind, apart, chance, residual, bias_residual, float(np.max(bound)) / size, count
    )
    if chain.layers[0].unweighted:
        checks = (*checks, _features_check(chain.layers[0].unweighted))
    if unscaled:
        checks = (*checks, _scale_check(scale))
    certificate = Certificate(
        checks=checks,
        zero_count=tuple(int(n) for n in off),
        redundancy=(spare,) * count,
        sign_agreement=(math.nan,) * count,
        false_probability=tuple(float(p) for p in chance),
        error_bound=tuple(float(e) for e in bound),
        caveats=(
            *_caveats(chain, scale, unscaled=unscaled),
            *(() if cut is None else (f"the chain ends early: {cut}",)),
        ),
    )
    by_duals = any(one.by_duals for one in rows)
    return Verified(c, q, columns, certificate, by_duals, misscaled)


def _narrowed(chain: Chain, known: tuple[Examined, ...], depth: int) -> tuple[list[Examined], HostArray]:
    """The `known` inputs, those with a bound too wide for exactness after further fits where these narrow it; and all bounds (k,)."""
    noise = Noise.of(known)
    bound = error_bounds(chain, known, noise)
    size = data_range(chain, chain.xp.concat([one.c for one in known], axis=0))
    rows = list(known)
    for row in np.flatnonzero(bound > EXACT_TOLERANCE * size).tolist():
        one = known[row]
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            tried = [reexamine(chain, one, depth)]
            # Where slopes bend, duals carry the errors of their inputs, and bind more tightly than they may. The dual of an
            # input that is missing may be just what tells another one from a mixture of both.
            if chain.straight and len(known) == chain.batch_size > 1:
                others = known_of(chain, [other for other in known if other is not one])
                tried.append(examine(chain, one.c, depth, others))
        for better in tried:
            narrower = error_bounds(chain, (better,), noise)
            if better.accepted[0] and narrower[0] < bound[row]:
                rows[row], bound[row] = replace(better, apart=one.apart), narrower[0]
    return rows, bound


def spare_equations(chain: Chain, depth: int) -> int:
    """How many equations of membership an input meets beyond its number of coordinates."""
    b = chain.batch_size
    return 1 - b + sum(chain.layers[number].telling - b + 1 for number in range(1, depth + 1))


@dataclass(frozen=True)
class Noise:
    """What the equations of all inputs say of the noise, in units of its upper estimate."""

    common: float
    """Root mean square over all inputs."""
    excess: float
    """How many times more than the estimate is seen in any input, one at least: then something else than that noise is in all of
    them."""

    behind: float
    """Root mean square of the backward sides, one at least: they take part in the fit of refined inputs."""

    @classmethod
    def of(cls, known: Sequence[Examined]) -> Noise:
        """Of the `known` inputs."""
        rms = np.concatenate([one.noise_seen for one in known])
        along = np.concatenate([one.along for one in known])
        behind = np.concatenate([one.backward_residual for one in known])
        return cls(
            common=math.sqrt(float(np.mean(rms**2))),
            excess=max(1.0, float(np.max(rms)), float(np.max(along[np.isfinite(along)], initial=0.0))),
            behind=max(1.0, math.sqrt(float(np.mean(behind**2)))),
        )


def error_bounds(chain: Chain, known: Sequence[Examined], noise: Noise) -> HostArray:
    """(k,): six standard deviations of the largest error of each of the `known` inputs, in units of the inputs.

    Where noise is rounding, its size is an upper estimate: the residuals of an input's equations tell how large it is, over all of
    them and along the direction that they determine least; an input whose own equations happen to fit well is no better known than
    the others. Where none shows in any equation, none is to spare, and nothing is bounded. Units that are the same n times over make
    their equations count n times, which the bound takes back. Equations tell the coordinates of an input; what noise does to their
    basis comes on top.
    """
    layers = chain.layers[: chain.depth + 1]
    floor = 0.0 if all(layer.space.spectrum.rounding for layer in layers) else 1.0
    hidden = max(layer.space.hidden_input_factor for layer in layers)
    deviation = np.concatenate([one.deviation for one in known])
    basis = np.concatenate([_basis_deviation(chain, one.c) for one in known])
    rms = np.concatenate([one.noise_seen for one in known])
    along = np.concatenate([one.along for one in known])
    behind = np.concatenate([np.full(one.c.shape[0], noise.behind if one.refined else 1.0) for one in known])
    with np.errstate(over="ignore", invalid="ignore"):
        excess = np.maximum(noise.excess, behind)
        seen = excess * MARGIN * np.maximum(np.maximum(rms, noise.common), along)
        own = math.sqrt(chain.repetition) * hidden * deviation * np.maximum(floor, seen)
        bound: HostArray = ZERO_SIGMAS * np.hypot(own, basis)
    return np.where(rms < UNTESTED, math.inf, np.nan_to_num(bound, nan=math.inf, posinf=math.inf))


def _basis_deviation(chain: Chain, c: Array) -> HostArray:
    """(k,): what noise leaves in an entry of the inputs at `c` (k, b) by way of their basis, 1 / S_i in its vector i.

    That noise is measured, by what lies outside the row space of the first weight_grad.
    """
    norms: HostArray = to_host(chain.xp.linalg.vector_norm(c / chain.layers[0].space.S[None, :], axis=1))
    return norms


def data_range(chain: Chain, c: Array) -> float:
    """Largest minus smallest entry of the inputs at `c` (k, b)."""
    inputs = _inputs(chain, c)
    return float(chain.xp.max(inputs)) - float(chain.xp.min(inputs))


def largest_entries(chain: Chain, c: Array) -> HostArray:
    """(k,): largest absolute entry of the inputs at `c` (k, b)."""
    return to_host(chain.xp.max(chain.xp.abs(_inputs(chain, c)), axis=1))


def _own_rounding(chain: Chain, c: Array) -> HostArray:
    """(k,): what our own arithmetic makes of the largest entry of the inputs at `c` (k, b), each a sum of b products."""
    xp = chain.xp
    rows = xp.linalg.vector_norm(xp.astype(chain.layers[0].basis, xp.float64), axis=1)
    products = to_host(xp.linalg.vector_norm(c, axis=1) * xp.max(rows))
    rounding: HostArray = math.sqrt(chain.batch_size) * OWN_ROUNDING * products
    return rounding


def _inputs(chain: Chain, c: Array) -> Array:
    """(k, n)."""
    return c @ chain.xp.astype(chain.layers[0].basis, chain.xp.float64).T


def _chances(chain: Chain, c: Array, depth: int) -> HostArray:
    """(k,): bound on the probability that a point which is no input meets the equations as each input does."""
    xp = chain.xp
    passed = forward(chain, c, depth - 1, derivatives=False)
    a = passed.a[0]
    spread = xp.sqrt(xp.mean((a - xp.mean(a, axis=1, keepdims=True)) ** 2, axis=1))
    width = to_host(2 * NEAR * CONSISTENT * membership_scale(chain, passed, 1) / spread)
    m, b = chain.layers[0].space.shape[0], chain.batch_size
    spare = spare_equations(chain, depth)
    return np.asarray([false_member_probability(m, b - 1, spare, float(one)) for one in width])


def _residuals(chain: Chain, c: Array, depth: int) -> tuple[float, float]:
    """What the inputs of the layers 0 … `depth` leave of weight_grad and of bias_grad, in standard deviations, at worst.

    ∂L/∂Z is fitted to weight_grad; that it is also what the layers pass back is another check. What the noise of an input
    leaves of it in a layer counts once for every unit that it has a gradient on. Deeper layers are left out: there the
    errors of the inputs, passed on, stand out of the noise.
    """
    xp = chain.xp
    passed = forward(chain, c, depth - 1, derivatives=False)
    weight, bias = 0.0, 0.0
    for number, layer in enumerate(chain.layers[: depth + 1]):
        space = layer.space
        inputs = c if number == 0 else passed.a[number - 1]
        inside = c if number == 0 else inputs @ layer.basis
        d = space.coordinates @ inverse_or_pseudoinverse(xp, inside)  # (m, k)
        doubt = ones_deviation(chain, layer, inside, None if number == 0 else passed.variance[number - 1])
        deviation = xp.sqrt(layer.bias_noise**2 + d**2 @ doubt**2)
        left = space.live_of((layer.bias_grad - xp.sum(d, axis=1)) / deviation)
        bias = max(bias, math.sqrt(float(xp.mean(left**2))))
        if number == 0:
            continue  # what lies outside the row space of the first layer is what its noise was taken from
        squares = xp.zeros_like(layer.bias_grad)
        for where, (block,) in layer.gradients.blocks("weight_grad", device=chain.device):
            squares = squares + xp.sum((block - d @ inputs[:, where]) ** 2, axis=1)
        variance = space.noise**2 + d**2 @ membership_scale(chain, passed, number) ** 2
        scaled = space.live_of(squares / (space.shape[1] * variance))
        weight = max(weight, math.sqrt(float(xp.mean(scaled))))
    return weight, bias


def _checks(
    chain: Chain,
    ahead: HostArray,
    behind: HostArray,
    apart: HostArray,
    chance: HostArray,
    residual: float,
    bias_residual: float,
    relative: float,
    count: int,
) -> tuple[Check, ...]:
    first, second = (layer.space.spectrum for layer in chain.layers[:2])
    b = chain.batch_size
    return (
        Check("inputs_found", float(count - b), ">=", 0.0, "inputs found, beyond the rank of weight_grad"),
        Check(
            "membership",
            float(np.max(ahead)),
            "<=",
            CONSISTENT,
            "distance of σ(z) from the inputs of the next layers, in units of the noise, worst input",
        ),
        Check(
            "backward_side",
            float(np.max(behind)),
            "<=",
            CONSISTENT,
            "distance of its ∂L/∂Z from the columns of weight_grad, likewise",
        ),
        Check(
            "one_output_grad",
            float(np.min(apart)),
            ">=",
            APART,
            "how many times worse any other ∂L/∂Z would fit, worst input",
        ),
        Check(
            "chance",
            float(np.max(chance)),
            "<=",
            MAX_FALSE,
            "probability that a point which is no input meets all equations",
        ),
        Check(
            "rank",
            float(b - max(first.rank_at_least, second.rank_at_least)),
            ">=",
            0.0,
            "inputs sought, beyond the rank that the singular values of both layers show",
        ),
        Check(
            "noise_known",
            float(first.noise_known and second.noise_known),
            ">=",
            1.0,
            "1 if what lies below the rank looks like rounding or independent noise, in both layers",
        ),
        Check(
            "weight_residual",
            residual,
            "<=",
            MAX_RESIDUAL,
            "what the batch leaves of weight_grad, in units of its noise, worst layer",
        ),
        Check(
            "bias_residual",
            bias_residual,
            "<=",
            MAX_RESIDUAL,
            "what the batch leaves of bias_grad, in units of its noise, worst layer",
        ),
        Check(
            "error_bound",
            relative,
            "<=",
            EXACT_TOLERANCE,
            "largest possible error of an input, share of the data range",
        ),
    )


def _features_check(unweighted: int) -> Check:
    return Check(
        "features_weighted",
        float(unweighted),
        "<=",
        0.0,
        "features that have only zeros for weights: no equation holds their values",
    )


def _scale_check(scale: OutputScale | None) -> Check:
    return Check(
        "scale",
        math.inf if scale is None else abs(scale.factor - 1) + ZERO_SIGMAS * scale.deviation,
        "<=",
        EXACT_TOLERANCE,
        "share by which another scale of all inputs fits their outputs as well, by cross-entropy; infinite where nothing tells it",
    )


def _caveats(chain: Chain, scale: OutputScale | None, *, unscaled: bool) -> tuple[str, ...]:
    b = chain.batch_size
    told = bool(_scale_check(scale).passed)
    return (
        (
            f"{b} is the rank of the gradients, the batch may be larger: identical inputs count once, inputs with the same "
            "gradient behind the layer count once, as their mean, and inputs whose gradient lies below the noise leave no trace"
        ),
        "the layers are taken to follow each other with nothing in between, and all gradients to be of one step",
        *((UNSCALED + _as_far_as(scale),) if unscaled and not told else ()),
        *((_unweighted(chain.layers[0].unweighted),) if chain.layers[0].unweighted else ()),
    )


def _as_far_as(scale: OutputScale | None) -> str:
    if scale is None:
        return ""
    return f"; the outputs exclude all but a share of {ZERO_SIGMAS * scale.deviation:.0e}"


def _unweighted(count: int) -> str:
    return (
        f"{count} feature(s) have only zeros for weights: nothing depends on their values, which are taken from weight_grad "
        "alone, and no bound covers them"
    )


UNSCALED = (
    "weight_grad and bias_grad are taken to be scaled alike: without biases and with activations that scale with their argument, "
    "another factor for all bias_grad gives other inputs, a multiple of these, that fit as well"
)


def _scales_alike(chain: Chain) -> bool:
    """Whether inputs times any factor give outputs times that factor, so that only bias_grad tells the factor."""
    hidden = chain.layers[:-1]
    return all(
        layer.sigma.piecewise_linear
        and set(layer.sigma.kinks) <= {0.0}
        and not bool(chain.xp.any(layer.bias != 0))
        for layer in hidden
    )
