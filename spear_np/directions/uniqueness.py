"""Do the zero rows of a direction determine it, and is any of them indispensable?

A combination of several inputs' directions can annul rows of its own only by a choice of its coefficients: each such
row is then indispensable to the rank of its zero rows, with leverage one among them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import array_api_compat
import numpy as np

from ..arrays import Array, HostArray, Namespace
from ..backend.algebra import TINIEST, between, gather
from ..backend.host import to_host
from ..backend.work import blocks, mapped
from ..factors.row_space import RowSpace
from ..factors.singular import SVD_ERROR, thin_svd
from ..factors.zero import ZERO_SIGMAS
from ..positive import orthonormalised, positive

NUMERICALLY_NOTHING = 1e-12
"""Eigenvalue of a Gram matrix of orthonormal columns that float64 cannot tell from zero.

Derived: the rounding of sums of some thousand products, with some margin.
"""
GRAM_ERROR = 1e-15
"""Error of a leverage computed from the inverse of a Gram matrix, in units of the norm of that inverse.

Derived: a few roundings of float64.
"""
GRAM_MARGIN = 100.0
"""Multiple of that error beyond which a leverage is known.

Heuristic: what is not known is computed again from singular values; it only costs time.
"""
UNSEEN = 1e-12
"""Squared share of an input, relative to all of it, that does not count as reached by an open direction.

Derived: a millionth of the input, a hundredth of `EXACT_TOLERANCE`.
"""
OPEN_ENERGY = 4.0
"""Mean square of the products of a direction with many rows, in noise units, that does not stand out of the noise.

Heuristic: noise has one; the mean square of ten products exceeds four with a probability of 2e-5.
"""
SPARE = 2
"""Zero rows beyond b - 1 that a direction needs to be relied on before the batch is whole.

Heuristic: among thousands of null vectors one further row agrees by chance, two hardly do.
"""
DISPENSABLE = 0.5
"""Leverage of a zero row below which the rank survives its loss.

Derived: one of 1 / 2 leaves half of what holds the direction that the row pulls at, far from nothing.
"""


@dataclass(frozen=True, eq=False)
class Uniqueness:
    """What the zero rows of each of k directions determine."""

    unique: HostArray
    """(k,) bool: rank b - 1, well above the noise."""
    redundancy: HostArray
    """(k,) int: rows that could be missing (lower bound)."""
    mixing: HostArray
    """(k, k): variance of the share of direction i in direction k, [i, k]; infinite where nothing bounds it."""
    with_layer_behind: HostArray
    """(k,) bool: whether zero rows do not do, and the layer behind can pass the direction back: a mixture of inputs it cannot,
    but for shares that hardly any row shows. What is said of these counts the rows that it ties to each other as well."""


def uniqueness(space: RowSpace, directions: Array, inputs: Array, off: Array) -> Uniqueness:
    """Rank, redundancy and error propagation of the zero rows of each direction.

    Parameters
    ----------
    directions : (k, b)
    inputs : (p, b)
        Dual vectors of the inputs whose error is asked for, in U-coordinates.
    off : (m, k) bool
        Zero rows of each direction.
    """
    xp = space.xp
    off_live = xp.take(off, space.live, axis=0).T
    k, live = off_live.shape
    b = space.batch_size
    if b == 1:
        # Nothing can be mixed in: the single column is determined without any zero row.
        # Each live row alone is a multiple of the input.
        one = np.ones(1, dtype=bool)
        return Uniqueness(one, np.asarray([live - 1]), np.zeros((1, 1)), ~one)
    parts = mapped(
        space.device,
        lambda part: _block(space, directions[part, :], inputs, off_live[part, :]),
        blocks(space.device, k, live * b),
    )
    unique, redundancy, mixing, behind = (np.concatenate(values) for values in zip(*parts, strict=True))
    return Uniqueness(unique, redundancy, mixing.T, behind)


def _block(
    space: RowSpace, q: Array, inputs: Array, zeros: Array
) -> tuple[HostArray, HostArray, HostArray, HostArray]:
    """The arrays of `Uniqueness` for a block of directions `q` (k, b) with their live `zeros` (k, ℓ); of `mixing`, the transpose."""
    xp = space.xp
    unique, redundancy, mixing = _uniqueness_block(space, q, inputs, _zero_rows(space, zeros))
    behind = np.zeros(len(unique), dtype=bool)
    few = to_host(xp.sum(xp.astype(zeros, xp.int64), axis=1)) < space.batch_size - 1 + SPARE
    which = np.flatnonzero(few | (redundancy < 1))
    if space.passed is None or not len(which):
        return unique, redundancy, mixing, behind
    # It takes twice the time: where zeros do, the layer behind is not asked.
    index = space.device.integers(which)
    q, zeros = xp.take(q, index, axis=0), xp.take(zeros, index, axis=0)
    tied = _tied_rows(space, space.passed, q, zeros)
    index = space.device.integers(np.flatnonzero(tied.fits))
    which = which[tied.fits]
    if len(which):
        answers = _uniqueness_block(space, xp.take(q, index, axis=0), inputs, tied.only(xp, index))
        unique[which], redundancy[which], mixing[which] = answers
        behind[which] = True
    return unique, redundancy, mixing, behind


@dataclass(frozen=True, eq=False)
class _Rows:
    """The rows that hold each of k directions: it has no component along any of them."""

    rows: Array
    """(k, r, b): zeros where a direction uses fewer."""
    used: Array
    """(k, r) bool."""
    fits: HostArray
    """(k,) bool: whether that is true of the direction itself."""

    def only(self, xp: Namespace, index: Array) -> _Rows:
        """Those of the directions `index`."""
        rows, used = xp.take(self.rows, index, axis=0), xp.take(self.used, index, axis=0)
        return _Rows(rows, used, self.fits[to_host(index)])


def _zero_rows(space: RowSpace, off: Array) -> _Rows:
    """The rows `off` (k, ℓ) of each direction."""
    order, used = _zeros_first(space, off)
    return _Rows(space.rows(order, used), used, np.ones(off.shape[0], dtype=bool))


def _zeros_first(space: RowSpace, off: Array) -> tuple[Array, Array]:
    """(k, r) int, the rows `off` (k, ℓ) of each direction, then others, b at least; and (k, r) bool, which are its own."""
    xp = space.xp
    count = xp.sum(xp.astype(off, xp.int64), axis=1)
    most = max(space.batch_size, int(xp.max(count)))
    order = xp.argsort(xp.astype(~off, xp.int8), axis=1, stable=True)[:, :most]
    return order, xp.arange(most, device=space.device.handle)[None, :] < count[:, None]


def indispensable_rows(space: RowSpace, q: Array, off: Array) -> HostArray:
    """(k, ℓ) bool: which of the zero rows `off` (k, ℓ) of the directions `q` (k, b) no others can stand in for.

    Without one of them a second direction has no gradient, above the noise, on those that are left.
    """
    order, used = _zeros_first(space, off)
    noise_energy = _noise_energy(space, used)
    response = _by_svd(space, q, space.rows(order, used), noise_energy, q)
    lone = np.zeros(off.shape, dtype=bool)
    np.put_along_axis(lone, to_host(order), to_host(~_dispensable(response, noise_energy)), axis=1)
    return lone


def _tied_rows(space: RowSpace, passed: Array, q: Array, off: Array) -> _Rows:
    """The rows `off` (k, ℓ), and what those with a gradient show that the layer behind cannot pass back.

    On the units that have one, a column is ``passed δ`` for some δ. What is left of their rows outside the span of `passed`
    (ℓ, t) on these units has no component along the direction either.
    """
    xp = space.xp
    on = ~(off | space.zeros(q))
    tied = on & (xp.sum(xp.astype(on, xp.int64), axis=1, keepdims=True) > passed.shape[1])
    on = xp.astype(on, xp.float64)[:, :, None]
    span = orthonormalised(xp, on * passed[None, :, :])
    rows = space.U[None, :, :] - span @ (xp.matrix_transpose(span) @ (on * space.U[None, :, :]))
    used = off | tied
    rows = rows * xp.astype(used, xp.float64)[:, :, None]
    left = xp.abs((rows @ q[:, :, None])[:, :, 0]) / space.noise_norm(q)[:, None]
    return _Rows(rows, used, to_host(xp.all(left < ZERO_SIGMAS, axis=1)))


@dataclass(frozen=True, eq=False)
class _Response:
    """How k directions answer to their zero rows, in the coordinates y = q / S, where noise is the same all round.

    Shapes: r rows, of which each direction uses some, p inputs.
    """

    leverage: Array
    """(k, r): of each row among those used."""
    heavy: Array
    """(k, h) int: all rows with a leverage of `DISPENSABLE` and more, and maybe others."""
    left: Array
    """(k, h): mean square, in noise units, with which the other rows resist the direction that this row holds."""
    pulled: Array
    """(k, h, b): that direction."""
    unique: Array
    """(k,) bool."""
    mixing: Array
    """(k, p): variance of the inputs' shares for a unit of noise."""
    unbounded: Array
    """(k, p): squared part of the inputs that no row holds."""
    certain: Array
    """(k,) bool: whether rounding cannot have changed what counts as held, and by how many rows."""


def _uniqueness_block(
    space: RowSpace, q: Array, inputs: Array, held: _Rows
) -> tuple[HostArray, HostArray, HostArray]:
    """For directions `q` (k, b) that are `held` by some rows: unique (k,), redundancy (k,), mixing (k, p)."""
    xp = space.xp
    answers = _concluded(space, q, inputs, held, _by_gram)
    doubtful = np.flatnonzero(~to_host(answers[3]))
    unique, redundancy, mixing = (np.array(to_host(answer)) for answer in answers[:3])
    if len(doubtful):
        again = space.device.integers(doubtful)
        answers = _concluded(space, xp.take(q, again, axis=0), inputs, held.only(xp, again), _by_svd)
        unique[doubtful], redundancy[doubtful], mixing[doubtful] = (to_host(answer) for answer in answers[:3])
    return unique, redundancy, mixing


def _concluded(
    space: RowSpace, q: Array, inputs: Array, held: _Rows, respond: Callable[..., _Response]
) -> tuple[Array, Array, Array, Array]:
    """Unique (k,), redundancy (k,), mixing (k, p) and certain (k,) as `respond` computes them."""
    xp = space.xp
    rows, used = held.rows, held.used
    count = xp.sum(xp.astype(used, xp.int64), axis=1)
    count = xp.maximum(count, xp.ones_like(count))
    noise_energy = _noise_energy(space, used)
    response = respond(space, q, rows, noise_energy, inputs)
    dispensable = _dispensable(response, noise_energy)
    spared = xp.all(dispensable, axis=1)
    ordered = xp.flip(xp.sort(response.leverage, axis=1), axis=1)
    # Removing rows cannot lower the rank while their leverages sum to less than one.
    removable = xp.sum(xp.astype(xp.cumulative_sum(ordered, axis=1) < 1.0, xp.int64), axis=1)
    removable = xp.minimum(removable, count - 1)
    redundancy = xp.where(spared, xp.maximum(removable, xp.ones_like(removable)), xp.zeros_like(removable))
    redundancy = xp.where(response.unique, redundancy, xp.zeros_like(redundancy))
    # Directions the zero rows leave open: what reaches an input through them is unbounded, the rest is not.
    unbounded = response.unbounded
    if not bool(xp.all(spared)):
        # What a single row holds in place may be a combination that annuls it by design: no bound through it.
        turned = xp.where(dispensable[:, :, None], xp.zeros_like(response.pulled), response.pulled)
        length = xp.linalg.vector_norm(turned, axis=2, keepdims=True)
        turned = turned / xp.where(length > 0, length, xp.ones_like(length))
        seen = inputs * space.S
        unbounded = unbounded + xp.max((turned @ seen.T) ** 2, axis=1)
    mixing = response.mixing * (space.noise_norm(q) ** 2)[:, None]
    size = xp.sum((inputs * space.S) ** 2, axis=1)[None, :]
    mixing = xp.where(unbounded > UNSEEN * size, math.inf, mixing)
    return response.unique, redundancy, mixing, response.certain


def _noise_energy(space: RowSpace, used: Array) -> Array:
    """(k,): what a direction may have on all rows that are `used` (k, r) without standing out of their noise."""
    xp = space.xp
    count = xp.sum(xp.astype(used, xp.float64), axis=1)
    return OPEN_ENERGY * xp.maximum(count, xp.ones_like(count))


def _dispensable(response: _Response, noise_energy: Array) -> Array:
    """(k, h) bool: which of the heavy rows the others do without, because they still hold every other direction."""
    xp: Namespace = array_api_compat.array_namespace(noise_energy)
    leverage = xp.take_along_axis(response.leverage, response.heavy, axis=1)
    return (leverage < DISPENSABLE) | (response.left > noise_energy[:, None])


def _by_gram(space: RowSpace, q: Array, rows: Array, noise_energy: Array, inputs: Array) -> _Response:
    """From the inverse of the Gram matrices of `rows` (k, r, b): fast, but blind below the root of the rounding."""
    xp = space.xp
    unit = (q / xp.linalg.vector_norm(q, axis=1, keepdims=True))[:, :, None]
    gram = xp.matrix_transpose(rows) @ rows
    # What noise leaves of the rows along the direction itself is no resistance to anything else: it is taken out, and the
    # direction lifted, so that what remains is its complement.
    along, mixed = rows @ unit, gram @ unit
    lift = 1 + xp.matrix_transpose(unit) @ mixed
    mixed = mixed - (lift / 2) * unit
    system = positive(xp, gram - mixed @ xp.matrix_transpose(unit) - unit @ xp.matrix_transpose(mixed))
    # The trace of H⁻¹ bounds its norm, and that the least eigenvalue from below: nothing can be open where it is far above
    # every noise.
    size = system.trace_of_inverse()
    floor = noise_energy / xp.min(space.S) ** 2
    clear = size * xp.maximum(floor, xp.full_like(floor, NUMERICALLY_NOTHING)) < 0.5
    leverage = between(xp, system.forms(rows) - along[:, :, 0] ** 2, 0.0, 1.0)
    leverage = xp.where(clear[:, None], leverage, xp.zeros_like(leverage))
    heavy, some, largest = _heavy_rows(space, rows, leverage)
    some = some - (some @ unit) @ xp.matrix_transpose(unit)
    pulled = (
        xp.matrix_transpose(system.solve(xp.matrix_transpose(some))) / space.S
    )  # H⁻¹ u_j, what row j alone could turn
    pulled = xp.where(clear[:, None, None], pulled, xp.zeros_like(pulled))
    strength = largest / xp.maximum(xp.sum(pulled**2, axis=2), xp.full_like(largest, TINIEST))
    left, error = strength * (1 - largest), (GRAM_MARGIN * GRAM_ERROR * size)[:, None]
    known = 1 - largest > error
    sure = (largest < DISPENSABLE) | known
    if not bool(xp.all(sure | ~clear[:, None])):
        # What the others have along `pulled` shows how little they resist, where that is known as well as it is asked for.
        little = _resistance(space, rows, heavy, pulled) < noise_energy[:, None]
        sure = sure | (little & (error < math.sqrt(UNSEEN)))
    mixing = system.forms(inputs[None, :, :])
    mixing = xp.where(clear[:, None], mixing, xp.zeros_like(mixing))
    return _Response(
        leverage=leverage,
        heavy=heavy,
        left=xp.where(known, left, xp.zeros_like(left)),
        pulled=pulled,
        unique=clear,
        mixing=mixing,
        unbounded=xp.zeros_like(mixing),
        certain=clear & xp.all(sure, axis=1),
    )


def _heavy_rows(space: RowSpace, rows: Array, leverage: Array) -> tuple[Array, Array, Array]:
    """Which of `rows` (k, r, b) are `_Response.heavy` (k, h), these rows (k, h, b), and their `leverage` (k, h)."""
    xp, (k, r, b) = space.xp, rows.shape
    most = max(1, int(xp.max(xp.sum(xp.astype(leverage >= DISPENSABLE, xp.int64), axis=1))))
    heavy = xp.argsort(-leverage, axis=1)[:, :most]
    first = r * xp.arange(k, dtype=heavy.dtype, device=space.device.handle)[:, None]
    some = gather(xp, xp.reshape(rows, (k * r, b)), first + heavy)
    return heavy, some, xp.take_along_axis(leverage, heavy, axis=1)


def _resistance(space: RowSpace, rows: Array, heavy: Array, pulled: Array) -> Array:
    """(k, h): the energy in noise units that all of `rows` (k, r, b) but the `heavy` one (k, h) have along what it has `pulled` (k, h, b).

    Not less than what they have along the direction that they resist least, but for the rounding of the products.
    """
    xp = space.xp
    length = xp.linalg.vector_norm(pulled, axis=2, keepdims=True)
    turned = space.S * pulled / xp.where(length > 0, length, xp.ones_like(length))
    along = rows @ xp.matrix_transpose(turned)
    every = xp.arange(rows.shape[1], dtype=heavy.dtype, device=space.device.handle)
    others = xp.astype(every[None, :, None] != heavy[:, None, :], xp.float64)
    return xp.sum((others * along) ** 2, axis=1)


def _by_svd(space: RowSpace, q: Array, rows: Array, noise_energy: Array, inputs: Array) -> _Response:
    """From the singular values of `rows` (k, r ≥ b, b) in noise units: nothing is squared before it is known.

    Noise alone would give a direction the mean square one over the rows; rounding gives it an energy near that of
    the largest times the unit roundoff. Singular vectors with no more than that are open.
    """
    xp = space.xp
    y = q / space.S
    # A reflection takes y to the first axis: the other axes are its complement.
    mirror = y / xp.linalg.vector_norm(y, axis=1, keepdims=True)
    first = mirror[:, :1]
    mirror = xp.concat(
        [first + xp.where(first < 0, -xp.ones_like(first), xp.ones_like(first)), mirror[:, 1:]], axis=1
    )
    mirror = mirror / xp.linalg.vector_norm(mirror, axis=1, keepdims=True)
    complement = space.device.eye(q.shape[1])[None, :, 1:] - 2 * mirror[:, :, None] * mirror[:, None, 1:]
    left, values, right = thin_svd(xp, (rows * space.S) @ complement)
    floor = xp.maximum(xp.sqrt(noise_energy), SVD_ERROR * values[:, 0])[:, None]
    open_ = values <= floor
    held = xp.astype(~open_, xp.float64)
    inverse = held / xp.where(open_, xp.ones_like(values), values)
    left = left * held[:, None, :]
    hat = left @ xp.matrix_transpose(left)
    leverage = xp.linalg.diagonal(hat)
    own = space.device.eye(hat.shape[1])[None, :, :]
    pulled = (left * inverse[:, None, :]) @ right
    strength = 1 / xp.maximum(xp.sum(pulled**2, axis=2), xp.full_like(leverage, TINIEST))
    others = xp.sum((hat * (1 - own)) ** 2, axis=2) * strength
    seen = inputs * space.S
    shares = (seen[None, :, :] @ complement) @ xp.matrix_transpose(right)
    every = xp.arange(rows.shape[1], device=space.device.handle)
    return _Response(
        leverage=leverage,
        heavy=xp.broadcast_to(every[None, :], leverage.shape),
        left=xp.where(others > floor**2, others, xp.zeros_like(others)),
        pulled=pulled @ xp.matrix_transpose(complement),
        unique=~xp.any(open_, axis=1),
        mixing=xp.sum((shares * inverse[:, None, :]) ** 2, axis=2),
        unbounded=xp.sum((shares * (1 - held)[:, None, :]) ** 2, axis=2),
        certain=xp.ones_like(open_[:, 0]),
    )


def sharpened(space: RowSpace, q: Array, off: Array, unique: Uniqueness, which: HostArray) -> Uniqueness:
    """`unique` of the directions `q` (k, b) with zero rows `off` (m, k), the rows to spare of `which` counted again.

    The rank survives the loss of the rows R if the largest eigenvalue of their part of the projector on the rows' span
    stays below one: at most the largest sum, over a row of it, of the magnitudes in R (Gershgorin), where the sum of
    the leverages is the trace. That takes the whole projector of each direction.
    """
    xp = space.xp
    redundancy = unique.redundancy.copy()
    for index in which.tolist() if space.batch_size > 1 else ():
        zeros = xp.take(off[:, index], space.live)
        if unique.with_layer_behind[index] and space.passed is not None:
            rows = _tied_rows(space, space.passed, q[index : index + 1, :], zeros[None, :]).rows[0, :, :]
        else:
            rows = xp.take(space.U, xp.nonzero(zeros)[0], axis=0)
        redundancy[index] = max(redundancy[index], _removable(space, q[index, :], rows))
    return replace(unique, redundancy=redundancy)


def _removable(space: RowSpace, q: Array, rows: Array) -> int:
    """How many of `rows` (r, b), any of them, may go without leaving another null vector than `q` (b,): a lower bound."""
    xp = space.xp
    unit = q / xp.linalg.vector_norm(q)
    left, values, _ = thin_svd(xp, rows - (rows @ unit)[:, None] * unit[None, :])
    left = left[:, : space.batch_size - 1]
    magnitude = xp.abs(left @ left.T)
    leverage = xp.linalg.diagonal(magnitude)
    others = xp.flip(xp.sort(magnitude - leverage[:, None] * space.device.eye(rows.shape[0]), axis=1), axis=1)
    largest = xp.max(leverage[:, None] + xp.cumulative_sum(others, axis=1), axis=0)
    safe = float(values[space.batch_size - 2]) > SVD_ERROR * float(values[0])
    spare = 1 + int(xp.sum(xp.astype(largest < 1.0, xp.int64)))
    return min(spare, rows.shape[0] - (space.batch_size - 1)) if safe else 0


def single_row_support(space: RowSpace, q: Array, zero_mask: HostArray) -> HostArray:
    """(k,) bool: which directions `q` (k, b) with zeros `zero_mask` (k, ℓ) may rest on a single row."""
    if not len(zero_mask) or space.batch_size == 1:
        return np.zeros(len(zero_mask), dtype=bool)
    # Among thousands of null vectors one further row agrees by chance.
    lone: HostArray = zero_mask.sum(axis=1) < space.batch_size - 1 + SPARE
    asked = np.flatnonzero(~lone) if space.passed is None else np.arange(len(lone))
    if not len(asked):
        return lone
    none = space.device.zeros((1, space.batch_size))
    off = space.expand(space.device.booleans(zero_mask[asked]))
    held = uniqueness(space, space.xp.take(q, space.device.integers(asked), axis=0), none, off)
    lone[asked] = (lone[asked] | (held.redundancy < 1)) & ~held.with_layer_behind
    return lone
