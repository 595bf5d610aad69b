"""What the gradients of a chain demand of one input: the equations, their noise, and least squares on them.

An input has coordinates c in the basis of the first layer, and its column of ∂L/∂Z at the top of the chain is ``T q``.
Forward, every ``a_l`` must lie in the row space of layer l, with ``s_l · c_l = 1``; backward,
``d_0 = σ_0'(z_0) ∘ W_1ᵀ d_1`` must lie in the column space of layer 0, with ``p_0 · c = 1``. In standard deviations of
their noise all of these are numbers of size one at a true input.

Shapes: k inputs, b coordinates, m units of layer 0, t numbers at the top.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from ..arrays import Array, Namespace
from ..backend.algebra import OWN_ROUNDING, inverse_or_zero
from ..backend.host import to_host
from ..factors.behind import FREE_SHARE
from ..factors.singular import right_singular, spectral_norm, thin_svd
from .layers import Chain, ChainLayer

WELL_HELD = 1.2
"""Units with a slope, for each coordinate, from which normal equations of straight pieces are formed the quick way.

Heuristic: an input that turns on hardly more units than it has coordinates is hardly determined by them, and every digit counts.
"""
ROUNDING_SHARE = 2.0
"""Error of a sum of products in the forward and backward pass, in units of the unit roundoff times the root of the sum of the
squared products.

Heuristic: one if every product were rounded once. On perceptrons of 200 units in PyTorch the largest errors of activations
were 0.45 of what two allows for.
"""


DEEPER_BENDS = 4.0
"""What the bends of deeper layers add at most to the variance that those of the first give a column of ∂L/∂Z.

Heuristic: each next layer moves by no more than the one before it where weights keep the size of activations, and passes back
no more; where it is too little, the input is refined and judged again.
"""
BACKWARD_ROUNDING_SHARE = 4.0
"""The same for the backward pass.

Measured: with two, one true input in some thousand had a backward side of 3.3 standard deviations, with four none above two
(benchmarks/chain.py).
"""


@dataclass(frozen=True)
class Forward:
    """A forward pass of k inputs through the layers 0 … K of a chain, with derivatives by c."""

    z: tuple[Array, ...]
    """(k, m_l) pre-activations of each layer."""
    slope: tuple[Array, ...]
    """(k, m_l) σ' there."""
    a: tuple[Array, ...]
    """(k, m_l) outputs: the inputs of the next layer."""
    by_coordinates: tuple[Array, ...]
    """(k, m_l, b): derivative of z; none where they were not asked for."""
    doubt: tuple[Array, ...]
    """(k, m_l): variance of `z`, by the noise of the first layer and the rounding of the pass, as far as asked for."""
    variance: tuple[Array, ...]
    """(k, m_l): of `a`, likewise."""
    spread: Array
    """(k,): standard deviation of the entries of the inputs themselves."""

    def row(self, number: int) -> Forward:
        """That of one input."""

        def one(parts: tuple[Array, ...]) -> tuple[Array, ...]:
            return tuple(part[number : number + 1, ...] for part in parts)

        return Forward(
            one(self.z),
            one(self.slope),
            one(self.a),
            one(self.by_coordinates),
            one(self.doubt),
            one(self.variance),
            self.spread[number : number + 1],
        )


@dataclass(frozen=True)
class System:
    """The equations of k inputs at one point, in standard deviations of their noise."""

    residual: Array
    """(k, e)."""
    jacobian: Array
    """(k, e, u): derivatives by the u unknowns."""
    absorbed: Array
    """(e,): share of the variance of each that its gradient has taken out already: what lies in a row or column space."""


def forward(
    chain: Chain,
    c: Array,
    depth: int,
    *,
    derivatives: bool = True,
    noisy: int | None = None,
    slopes: tuple[Array, ...] | None = None,
) -> Forward:
    """Pass the inputs with coordinates `c` (k, b) through the layers 0 … `depth`.

    Variances are passed through the first `noisy` layers alone, if given: they cost as much as the pass itself. `slopes`, one
    (k, m) a layer, stand for σ' where other derivatives than those at `c` are wanted.
    """
    xp, layers = chain.xp, chain.layers
    first = layers[0]
    z = c @ first.to_units.T
    spread = first.spread(c)
    unit = chain.roundoff * ROUNDING_SHARE
    norms = first.layer.weight_norm[None, :]
    size = xp.linalg.vector_norm(c, axis=1)
    doubt = norms**2 * (spread**2 + (unit * size) ** 2)[:, None]
    by_c = xp.broadcast_to(first.to_units[None, :, :], (c.shape[0], *first.to_units.shape))
    zs: list[Array] = []
    taken: list[Array] = []
    outputs: list[Array] = []
    jacobians: list[Array] = []
    doubts: list[Array] = []
    variances: list[Array] = []
    for number, layer in enumerate(layers[: depth + 1]):
        if number:
            if noisy is None or number < noisy:
                doubt = (variances[-1] + unit**2 * outputs[-1] ** 2) @ layer.weight_squares.T
            z = outputs[-1] @ layer.weight.T + layer.bias
            if derivatives:
                by_c = layer.weight[None, :, :] @ (taken[-1][:, :, None] * jacobians[-1])
        a, slope = layer.sigma.value_and_slope(z)
        slope = slope if slopes is None else slopes[number]
        zs.append(z)
        taken.append(slope)
        outputs.append(a)
        if noisy is None or number < noisy:
            doubts.append(doubt)
            variances.append(slope**2 * doubt + (unit * a) ** 2)
        if derivatives:
            jacobians.append(by_c)
    return Forward(
        tuple(zs),
        tuple(taken),
        tuple(outputs),
        tuple(jacobians),
        tuple(doubts),
        tuple(variances),
        spread,
    )


def membership(chain: Chain, passed: Forward, number: int, *, derivatives: bool = True) -> System:
    """(k, m + 1) equations: a_l in the row space of layer `number` = l, and s_l · c_l = 1."""
    xp, layer = chain.xp, chain.layers[number]
    a, slope = passed.a[number - 1], passed.slope[number - 1]
    c = a @ layer.basis
    scale = membership_scale(chain, passed, number)[:, None]
    total = ones_deviation(chain, layer, c, passed.variance[number - 1])
    rest = (a - c @ layer.basis.T) / scale
    residual = xp.concat([rest, ((c @ layer.ones - 1) / total)[:, None]], axis=1)
    if not derivatives:
        return System(residual, residual[:, :0, None], layer.absorbed)
    slopes = slope[:, :, None] * passed.by_coordinates[number - 1]
    return System(residual, _projected(xp, layer, slopes, scale[:, 0], total), layer.absorbed)


def membership_change(chain: Chain, passed: Forward, number: int, change: Array) -> Array:
    """(k, m + 1, u): how the equations of `membership` in layer `number` move with a `change` (k, m, u) of a_l."""
    layer = chain.layers[number]
    scale = membership_scale(chain, passed, number)
    total = ones_deviation(chain, layer, passed.a[number - 1] @ layer.basis, passed.variance[number - 1])
    return _projected(chain.xp, layer, change, scale, total)


def _projected(xp: Namespace, layer: ChainLayer, change: Array, scale: Array, total: Array) -> Array:
    """The same for the standard deviations `scale` (k,) of the equations and `total` (k,) of s · c."""
    inside = xp.matrix_transpose(layer.basis)[None, :, :] @ change
    outside = (change - layer.basis[None, :, :] @ inside) / scale[:, None, None]
    ones = (layer.ones[None, None, :] @ inside) / total[:, None, None]
    return xp.concat([outside, ones], axis=1)


@dataclass(frozen=True)
class Linearised:
    """The derivatives of the equations of `membership` at one point, as least squares need them.

    The Jacobian is ``J = (I - V Vᵀ) A`` and a row for s · c, with A the derivatives of a. Residuals have no part along V, so that
    ``Jᵀ r = Aᵀ r``; and ``JᵀJ = AᵀA - (VᵀA)ᵀ VᵀA`` takes a third of the products, but loses the digits that J is smaller by than
    A: many where activations are nearly linear, few where they have kinks.
    """

    by_units: Array
    """(k, r, b): A in standard deviations without the rows of units that have no slope; J if `projected`."""
    units: Array | None
    """(r,): which units these are; None for all."""
    projected: bool
    inside: Array
    """(k, b', b): VᵀA."""
    ones: Array
    """(k, b): derivative of s · c, in standard deviations."""
    scale: Array
    """(k,): standard deviation of an equation."""

    def gram(self, xp: Namespace) -> Array:
        """(k, b, b): JᵀJ, float64."""
        product = xp.matrix_transpose(self.by_units) @ self.by_units
        if not self.projected:
            product = product - xp.matrix_transpose(self.inside) @ self.inside
        return xp.astype(product, xp.float64) + self.ones[:, :, None] * self.ones[:, None, :]

    def system(self, chain: Chain, passed: Forward, number: int) -> System:
        """The equations of `membership` in layer `number`, with these derivatives, all units of which are here."""
        bare = membership(chain, passed, number, derivatives=False)
        return replace(bare, jacobian=chain.xp.concat([self.by_units, self.ones[:, None, :]], axis=1))

    def against(self, xp: Namespace, residual: Array) -> Array:
        """(k, b): Jᵀ times a `residual` (k, m + 1) of `membership`."""
        rest = residual[:, :-1] if self.units is None else xp.take(residual, self.units, axis=1)
        rest = xp.astype(rest, self.by_units.dtype)
        product = xp.astype((rest[:, None, :] @ self.by_units)[:, 0, :], xp.float64)
        return product + residual[:, -1:] * self.ones


def linearised(chain: Chain, passed: Forward, number: int, *, rough: bool = False) -> Linearised:
    """The derivatives of `membership` in layer `number`; products in float32, and the quick way where it will do, if `rough`.

    Where it matters what equations leave open, rounding must not hide it.
    """
    xp, layer = chain.xp, chain.layers[number]
    slope, by_c, basis = passed.slope[number - 1], passed.by_coordinates[number - 1], layer.basis
    scale = membership_scale(chain, passed, number)
    total = ones_deviation(chain, layer, passed.a[number - 1] @ basis, passed.variance[number - 1])
    units, projected = None, not (rough and chain.straight)
    if not projected:
        sloped = slope != 0
        # Of a stack all, if one of them needs it.
        fewest = to_host(xp.sum(xp.astype(sloped, xp.int64), axis=1)).min(initial=slope.shape[1])
        projected = bool(fewest < WELL_HELD * by_c.shape[2])
    if not projected and slope.shape[0] == 1:
        units = xp.nonzero(sloped[0, :])[0]
        slope, by_c = xp.take(slope, units, axis=1), xp.take(by_c, units, axis=1)
        basis = xp.take(basis, units, axis=0)
    by_units = (slope / scale[:, None])[:, :, None] * by_c
    if rough:
        by_units, basis = xp.astype(by_units, xp.float32), xp.astype(basis, xp.float32)
    inside = xp.matrix_transpose(basis)[None, :, :] @ by_units
    if projected:
        by_units = by_units - basis[None, :, :] @ inside
    ones = (layer.ones[None, None, :] @ xp.astype(inside, xp.float64))[:, 0, :]
    return Linearised(by_units, units, projected, inside, ones * (scale / total)[:, None], scale)


def membership_noise(chain: Chain, passed: Forward, number: int, linear: Linearised | None = None) -> Array:
    """(k, b, b): what noise alone adds to JᵀJ of the equations of `membership`, in expectation.

    `linear` are their derivatives, if they are at hand.

    Notes
    -----
    The derivative of ``a - V Vᵀa`` along a change δ of c is as uncertain as the basis V is along ``δa``: its entries have the
    variance ``|S_l⁻¹ Vᵀδa|²``, and by the doubt of the first layer's basis ``|S_0⁻¹ δ|²`` times what the layers make of it.
    A direction along which J shows no more than that is not determined, however small the noise of the equations is at c:
    two inputs between which no unit changes its side are the ends of such a line.
    """
    xp, layer = chain.xp, chain.layers[number]
    linear = linearised(chain, passed, number) if linear is None else linear
    inside = linear.inside * linear.scale[:, None, None]
    c = passed.a[number - 1] @ layer.basis
    variance = passed.variance[number - 1]
    squares = membership_scale(chain, passed, number) ** 2
    total = ones_deviation(chain, layer, c, variance) ** 2
    own = inside / layer.space.S[None, :, None]
    weight = layer.basis.shape[0] / squares + (layer.bias_ratio**2 + xp.sum(layer.ones**2)) / total
    passed_on = layer.basis.shape[0] * xp.max(variance, axis=1) / squares
    passed_on = passed_on + variance @ (layer.basis @ layer.ones) ** 2 / total
    noise = (xp.matrix_transpose(own) @ own) * weight[:, None, None]
    return noise + doubt_of_first(chain, passed, passed_on)


def doubt_of_first(chain: Chain, passed: Forward, weight: Array) -> Array:
    """(k, b, b): ``weight |S_0⁻¹ δ|² / |S_0⁻¹ c|²`` as a form in δ, for the `weight` (k,) that the variance at c has."""
    xp, first = chain.xp, chain.layers[0]
    return (
        (weight / passed.spread**2)[:, None, None]
        * xp.eye(first.rank, dtype=xp.float64, device=chain.device.handle)[None, :, :]
        / (first.space.S**2)[None, :, None]
    )


def membership_scale(chain: Chain, passed: Forward, number: int) -> Array:
    """(k,): standard deviation of an equation of membership in layer `number`.

    What is projected out of a spreads the doubt of single entries over all of them: the largest stands for each.
    """
    xp, layer = chain.xp, chain.layers[number]
    largest = xp.max(passed.variance[number - 1], axis=1)
    return xp.sqrt(layer.spread(passed.a[number - 1] @ layer.basis) ** 2 + largest)


def ones_deviation(chain: Chain, layer: ChainLayer, c: Array, variance: Array | None) -> Array:
    """(k,): standard deviation of s · c by the noise of bias_grad and weight_grad, and by that of the input itself."""
    xp = chain.xp
    squares = layer.spread(c) ** 2 * (layer.bias_ratio**2 + xp.sum(layer.ones**2))
    if variance is not None:
        squares = squares + variance @ (layer.basis @ layer.ones) ** 2
    return xp.sqrt(squares)


def top_of(chain: Chain) -> tuple[Array, bool]:
    """T (m_T, t), what columns of ∂L/∂Z the last layer of the chain can have, and whether noise enters it.

    All its numbers are unknown if they are few, as behind an output layer: then no noise of that layer's gradient enters.
    Otherwise it is the column space of its gradient.
    """
    first, last = chain.layers[0], chain.layers[-1]
    units = last.space.shape[0]
    if units <= FREE_SHARE * (first.space.shape[0] - chain.batch_size):
        return chain.device.eye(units), False
    return last.columns, True


def columns_of(chain: Chain, passed: Forward, q: Array) -> list[Array]:
    """[(k, m_l)]: the columns of ∂L/∂Z in all layers, passed back from the numbers `q` (k, t) at the top."""
    columns = [q @ top_of(chain)[0].T]
    for number in reversed(range(len(chain.layers) - 1)):
        columns.insert(0, passed.slope[number] * (columns[0] @ chain.layers[number + 1].weight))
    return columns


def backward_map(chain: Chain, passed: Forward) -> Array:
    """(k, m, t): the columns of ∂L/∂Z in the first layer by the numbers at the top."""
    xp = chain.xp
    top, _ = top_of(chain)
    through = xp.broadcast_to(top[None, :, :], (passed.z[0].shape[0], *top.shape))
    for number in reversed(range(len(chain.layers) - 1)):
        weight = xp.matrix_transpose(chain.layers[number + 1].weight)
        through = passed.slope[number][:, :, None] * (weight[None, :, :] @ through)
    return through


def null_vectors(chain: Chain, through: Array) -> tuple[Array, Array, Array]:
    """The q (k, t) whose columns ``through q``, `through` (k, m, t), fit the gradient of the first layer best, and how well.

    Returns also the residuals (k,) of the best and of the second best, as a share of all of the column.
    """
    xp, layer = chain.xp, chain.layers[0]
    columns = through / layer.space.noise[:, None]
    length = xp.linalg.vector_norm(columns, axis=1)
    length = xp.where(length > 0, length, xp.ones_like(length))
    columns = columns / length[:, None, :]
    # What overflowed fits nothing, and decompositions refuse it.
    columns = xp.where(xp.isfinite(columns), columns, xp.zeros_like(columns))
    inside = xp.matrix_transpose(columns) @ columns
    dependent = to_host(xp.all(inverse_or_zero(xp, inside) == 0, axis=(1, 2)))
    if not np.any(dependent):
        y, best, second = _best_of_all(chain, columns)
    elif np.all(dependent):
        y, best, second = _best_in_range(chain, columns)
    else:
        order = np.argsort(dependent, kind="stable")
        few, many = np.split(order, [np.count_nonzero(~dependent)])
        found = (
            _best_of_all(chain, xp.take(columns, chain.device.integers(few), axis=0)),
            _best_in_range(chain, xp.take(columns, chain.device.integers(many), axis=0)),
        )
        places = chain.device.integers(np.argsort(order))
        y, best, second = (
            xp.take(xp.concat(parts, axis=0), places, axis=0) for parts in zip(*found, strict=True)
        )
    return y / length, best, second


def _best_of_all(chain: Chain, columns: Array) -> tuple[Array, Array, Array]:
    """As `null_vectors`, for independent `columns` (k, m, t) of length one."""
    xp = chain.xp
    values, right = right_singular(xp, outside_columns(chain, columns))
    total = xp.linalg.vector_norm(columns @ xp.matrix_transpose(right), axis=1)
    share = values / xp.where(total > 0, total, xp.ones_like(total))
    second = share[:, -2] if share.shape[1] > 1 else xp.ones_like(share[:, -1])
    return right[:, -1, :], share[:, -1], second


def _best_in_range(chain: Chain, columns: Array) -> tuple[Array, Array, Array]:
    """As `null_vectors`, for `columns` (k, m, t) that depend on each other: of what makes no difference, the part that is zero.

    Units that are off in a narrow layer pass nothing on, so that several q have the same columns.
    """
    xp = chain.xp
    t = int(columns.shape[2])
    Q, values, turn = thin_svd(xp, columns)
    lost = values <= t * OWN_ROUNDING * values[:, :1]
    # What is lost must not be taken for a column that fits: it counts as one that does not fit at all.
    penalty = xp.astype(lost, Q.dtype)[:, :, None] * chain.device.eye(t)[None, :, :]
    kept = xp.where(lost[:, None, :], xp.zeros_like(Q), Q)
    share, right = right_singular(xp, xp.concat([outside_columns(chain, kept), penalty], axis=1))
    y = right[:, -1, :] / xp.where(lost, xp.full_like(values, math.inf), values)
    return (y[:, None, :] @ turn)[:, 0, :], share[:, -1], share[:, -2]


def dual_deviation(chain: Chain, passed: Forward, q: Array, columns: list[Array], through: Array) -> Array:
    """(k,): what the uncertainty of ``q`` (k, t) adds to ``p · c`` of another input, at most, in units of ``|S_0⁻¹ c|``.

    Notes
    -----
    q is the null vector of ``(I - U Uᵀ) M`` for the columns M of `backward_map` in units of their noise. With its other
    singular values σ_i and right vectors v_i, and noise of size ν in the equations, q is uncertain by ``v_i ν / σ_i``, and p
    by ``S_0⁻¹ UᵀM`` of it. Of σ_i² only what exceeds the noise of U along ``M v_i`` counts; where nothing does, the result is
    infinite. Rounding on the way down comes on top. `columns` are those of q in
    all layers, `through` (k, m, t) is the `backward_map`.
    """
    xp, first = chain.xp, chain.layers[0]
    space, noise, U = first.space, first.space.noise, chain.first_columns
    variance = _backward_variance(chain, passed, q, columns) / noise**2
    p = ((columns[0] / noise) @ U) / space.S
    passed_back = through / noise[:, None]
    scale = xp.sum(p**2, axis=1) + xp.mean(variance, axis=1)
    length = xp.linalg.vector_norm(passed_back, axis=1)
    passed_back = passed_back / xp.where(length > 0, length, xp.ones_like(length))[:, None, :]
    values, right = right_singular(xp, outside_columns(chain, passed_back))
    along = xp.matrix_transpose(U)[None, :, :] @ (passed_back @ xp.matrix_transpose(right))  # (k, b, t)
    doubt = space.shape[0] * xp.sum((along / space.S[None, :, None]) ** 2, axis=1)
    left = values[:, :-1] ** 2 - doubt[:, :-1]
    told = left > 0
    moved = along[:, :, :-1] / xp.sqrt(xp.where(told, left, xp.ones_like(left)))[:, None, :]
    largest = xp.zeros_like(scale)
    if moved.shape[2]:
        largest = spectral_norm(xp, moved)
    deviation = xp.sqrt(scale * largest**2 + xp.max(variance, axis=1))
    return xp.where(xp.all(told, axis=1), deviation, xp.full_like(deviation, math.inf))


def outside_columns(chain: Chain, columns: Array) -> Array:
    """The part of `columns` (k, m, t), in units of the noise, that the gradient of the first layer does not span."""
    xp, U = chain.xp, chain.first_columns
    return columns - U[None, :, :] @ (xp.matrix_transpose(U)[None, :, :] @ columns)


def system(chain: Chain, c: Array, q: Array, depth: int, passed: Forward | None = None) -> System:
    """All equations of k inputs at `c` (k, b) and `q` (k, t): membership up to layer `depth`, and the backward side.

    The slopes are those of the pass, if one is given.
    """
    xp = chain.xp
    first = chain.layers[0]
    k, b = c.shape
    t = q.shape[1]
    passed = forward(chain, c, len(chain.layers) - 2) if passed is None else passed
    blocks = [membership(chain, passed, number) for number in range(1, depth + 1)]
    none = xp.zeros((k, 1, t), dtype=c.dtype, device=chain.device.handle)
    total = ones_deviation(chain, first, c, None)
    residuals = [((c @ first.ones - 1) / total)[:, None]]
    jacobians = [
        xp.concat(
            [xp.broadcast_to(first.ones[None, None, :], (k, 1, b)) / total[:, None, None], none], axis=2
        )
    ]
    absorbed = [xp.zeros_like(total[:1])]
    for block in blocks:
        residuals.append(block.residual)
        absorbed.append(block.absorbed)
        zero = xp.broadcast_to(none, (k, block.residual.shape[1], t))
        jacobians.append(xp.concat([block.jacobian, zero], axis=2))
    side = backward_side(chain, c, q, passed)
    residuals.append(side.residual)
    jacobians.append(side.jacobian)
    absorbed.append(side.absorbed)
    return System(xp.concat(residuals, axis=1), xp.concat(jacobians, axis=1), xp.concat(absorbed))


def system_noise(chain: Chain, c: Array, q: Array, depth: int, passed: Forward) -> Array:
    """(k, u, u): what noise alone adds to JᵀJ of `system`, in expectation; see `membership_noise`."""
    xp = chain.xp
    first = chain.layers[0]
    b = c.shape[1]
    ahead = doubt_of_first(
        chain,
        passed,
        passed.spread**2
        * (first.bias_ratio**2 + xp.sum(first.ones**2))
        / ones_deviation(chain, first, c, None) ** 2,
    )
    for number in range(1, depth + 1):
        ahead = ahead + membership_noise(chain, passed, number)
    behind = backward_noise(chain, c, q, passed)
    corner = behind[:, :b, :b] + ahead
    upper = xp.concat([corner, behind[:, :b, b:]], axis=2)
    return xp.concat([upper, behind[:, b:, :]], axis=1)


def backward_noise(chain: Chain, c: Array, q: Array, passed: Forward) -> Array:
    """(k, u, u): what noise alone adds to JᵀJ of the equations of `backward_side`, in expectation.

    Notes
    -----
    Along a change of the column d_0 by δd, the part of it outside of U is as uncertain as U is: by ``|S_0⁻¹ Uᵀδd|`` in each
    of its m entries, in units of their noise; along a change ω of q, by the noise of the last gradient, ``|S_K⁻¹ ω|`` times what
    the layers make of it on the way down.
    """
    xp, first, last = chain.xp, chain.layers[0], chain.layers[-1]
    space, noise, U = first.space, first.space.noise, chain.first_columns
    b, t = c.shape[1], q.shape[1]
    columns = columns_of(chain, passed, q)
    variance = _backward_variance(chain, passed, q, columns)
    p = ((columns[0] / noise) @ U) / space.S
    size = xp.linalg.vector_norm(p, axis=1)
    scale = size[:, None] ** 2 + variance / noise**2  # (k, m)
    product = 2 * (size * passed.spread) ** 2 + xp.sum(
        variance / noise**2 * ((c / space.S) @ U.T) ** 2, axis=1
    )
    by_all = xp.concat([_bends(chain, passed, columns), backward_map(chain, passed)], axis=2) / noise[:, None]
    own = (xp.matrix_transpose(U)[None, :, :] @ by_all) / space.S[None, :, None]
    weight = xp.sum(1 / scale, axis=1) + 2 * passed.spread**2 / product
    result = (xp.matrix_transpose(own) @ own) * weight[:, None, None]
    top = xp.zeros((c.shape[0], t), dtype=xp.float64, device=chain.device.handle)
    if top_of(chain)[1]:
        dual = xp.sum((q / last.space.S) ** 2, axis=1)
        share = xp.sum(variance / noise**2 / scale, axis=1) / xp.where(dual > 0, dual, xp.ones_like(dual))
        top = share[:, None] / (last.space.S**2)[None, :]
    of_c = doubt_of_first(chain, passed, 2 * (size * passed.spread) ** 2 / product)
    diagonal = xp.concat([xp.linalg.diagonal(of_c), top], axis=1)
    return result + diagonal[:, :, None] * chain.device.eye(b + t)[None, :, :]


def backward_side(
    chain: Chain,
    c: Array,
    q: Array,
    passed: Forward,
    *,
    columns: list[Array] | None = None,
    doubt: Array | None = None,
) -> System:
    """(k, m + 1) equations: d_0 in the column space of the first gradient, and p_0 · c = 1.

    Without derivatives if the forward pass has none. `doubt` (k, m) is the variance of the pre-activations of the first
    layer where c is given: it bends the slopes. `columns` are those of `q`, if they are at hand.
    """
    xp = chain.xp
    first = chain.layers[0]
    space, noise = first.space, first.space.noise
    columns = columns_of(chain, passed, q) if columns is None else columns
    variance = _backward_variance(chain, passed, q, columns)
    if doubt is not None:
        bend = first.sigma.curvature(passed.z[0]) * (columns[1] @ chain.layers[1].weight)
        variance = variance + DEEPER_BENDS * bend**2 * doubt
    U = chain.first_columns
    d = columns[0] / noise
    along = d @ U
    p = along / space.S
    size = xp.linalg.vector_norm(p, axis=1)
    scale = xp.sqrt(size[:, None] ** 2 + variance / noise**2)
    spread = first.spread(c)
    seen = (c / space.S) @ U.T
    product = xp.sqrt(2 * (size * spread) ** 2 + xp.sum(variance / noise**2 * seen**2, axis=1))
    own = (xp.sum(p * c, axis=1) - 1) / product
    residual = xp.concat([(d - along @ U.T) / scale, own[:, None]], axis=1)
    if not passed.by_coordinates:
        return System(residual, residual[:, :0, None], chain.absorbed_behind)
    by_all = xp.concat([_bends(chain, passed, columns), backward_map(chain, passed)], axis=2) / noise[:, None]
    by_along = xp.matrix_transpose(U)[None, :, :] @ by_all
    by_rest = (by_all - U[None, :, :] @ by_along) / scale[:, :, None]
    by_own = (c[:, None, :] @ (by_along / space.S[None, :, None]))[:, 0, :]
    by_own = (by_own + xp.concat([p, xp.zeros_like(q)], axis=1)) / product[:, None]
    return System(residual, xp.concat([by_rest, by_own[:, None, :]], axis=1), chain.absorbed_behind)


def _bends(chain: Chain, passed: Forward, columns: list[Array]) -> Array:
    """(k, m, b): derivative of d_0 by c, through the slopes of its own layer and of all behind it."""
    xp, layers = chain.xp, chain.layers
    bends: Array | None = None
    for number in reversed(range(len(layers) - 1)):
        weight, layer = layers[number + 1].weight, layers[number]
        below = None if bends is None else xp.matrix_transpose(weight)[None, :, :] @ bends
        bends = None if below is None else passed.slope[number][:, :, None] * below
        if not layer.sigma.piecewise_linear:
            bend = layer.sigma.curvature(passed.z[number]) * (columns[number + 1] @ weight)
            own = bend[:, :, None] * passed.by_coordinates[number]
            bends = own if bends is None else bends + own
    return xp.zeros_like(passed.by_coordinates[0]) if bends is None else bends


def _backward_variance(chain: Chain, passed: Forward, q: Array, columns: list[Array]) -> Array:
    """(k, m): variance of d_0 by rounding on the way down, and by the noise of the last gradient if it spans the top."""
    last = chain.layers[-1]
    unit = chain.roundoff * BACKWARD_ROUNDING_SHARE
    variance = (unit * columns[-1]) ** 2
    if top_of(chain)[1]:
        dual = chain.xp.linalg.vector_norm(q / last.space.S, axis=1)
        variance = variance + last.space.noise[None, :] ** 2 * dual[:, None] ** 2
    for number in reversed(range(len(chain.layers) - 1)):
        behind = chain.layers[number + 1]
        arriving = (variance + unit**2 * columns[number + 1] ** 2) @ behind.weight_squares
        variance = passed.slope[number] ** 2 * arriving + (unit * columns[number]) ** 2
        if not chain.layers[
            number
        ].sigma.piecewise_linear:  # slopes near one are rounded to the same steps as one
            variance = variance + (unit * (columns[number + 1] @ behind.weight)) ** 2
    return variance
