"""Is a candidate an input? Polished in the full problem, held against every equation at the noise of the data.

Deflated problems only make starts. What is accepted here rests on the gradients themselves, not on what was found before.
Each of a stack of candidates is judged as it would be alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import array_api_compat
import numpy as np

from ..arrays import Array, HostArray, Namespace
from ..backend.algebra import replace_rows, rows_of
from ..backend.host import to_host
from .covariance import input_deviation, variance_of
from .equations import (
    Forward,
    backward_map,
    backward_side,
    columns_of,
    dual_deviation,
    forward,
    null_vectors,
)
from .kinks import across_kinks, other_slopes
from .layers import Chain
from .polish import CONSISTENT, Known, polish, rms
from .refine import refine

APART = 10.0
"""How many times worse than the best column of ∂L/∂Z the second best must fit for there to be only one.

Heuristic: a hundred and more for true inputs, one to five for others, in all batches of benchmarks/chain.py that were looked at.
"""


@dataclass(frozen=True)
class Examined:
    """k candidates after the polish; arrays on the device, figures on the host."""

    c: Array
    """(k, b)."""
    q: Array
    """(k, t): the numbers of ∂L/∂Z at the top of the chain."""
    deviation: HostArray
    """(k,): standard deviation of the least certain entry of each input, for noise of the size that the data is taken to
    have; infinite where the equations do not determine it."""
    output_grad: Array
    """(k, m): their columns of ∂L/∂Z in the first layer."""
    duals: tuple[Array, ...]
    """(k, b) for each of the layers 0 … K: what the coordinates of all other inputs are orthogonal to."""
    forward_residual: HostArray
    """(k,): root mean square of the membership equations, in standard deviations."""
    backward_residual: HostArray
    """(k,): the same of the backward side."""
    apart: HostArray
    """(k,): residual of the second best column of ∂L/∂Z over that of the best."""
    dual_deviation: Array
    """(k,): standard deviation of ``p · c`` for another input, by the doubt of this one's ∂L/∂Z, for each ``|S_0⁻¹ c|``; of
    layers of straight pieces."""
    along: HostArray
    """(k,): noise along the least certain direction, see `noise_along`."""
    refined: bool = False
    """Whether the backward side took part in the fit."""
    by_duals: bool = False
    """Whether the duals of other inputs did: what they say of an input rests on weight_grad of the first layer alone."""

    @property
    def noise_seen(self) -> HostArray:
        """(k,): root mean square of the equations that took part in the fit, the worse of both sides."""
        return (
            np.maximum(self.forward_residual, self.backward_residual)
            if self.refined
            else self.forward_residual
        )

    @property
    def accepted(self) -> HostArray:
        """(k,) bool: whether every equation holds and no other column would do."""
        holds: HostArray = (
            (self.forward_residual <= CONSISTENT)
            & (self.backward_residual <= CONSISTENT)
            & (self.apart >= APART)
        )
        return holds

    def rows(self, numbers: Sequence[int]) -> Examined:
        """Those in the places `numbers`, ascending; copies, unless they are all there are."""
        host = np.asarray(numbers, dtype=np.int64)
        xp: Namespace = array_api_compat.array_namespace(self.c)
        places = xp.asarray(host, device=array_api_compat.device(self.c))
        return replace(
            self,
            c=rows_of(self.c, places),
            q=rows_of(self.q, places),
            deviation=self.deviation[host],
            output_grad=rows_of(self.output_grad, places),
            duals=tuple(rows_of(dual, places) for dual in self.duals),
            forward_residual=self.forward_residual[host],
            backward_residual=self.backward_residual[host],
            apart=self.apart[host],
            dual_deviation=rows_of(self.dual_deviation, places),
            along=self.along[host],
        )


def known_of(chain: Chain, found: Sequence[Examined]) -> Known | None:
    """The duals of the inputs `found`, one each; None without any."""
    if not found:
        return None
    return Known(
        chain.xp.concat([one.duals[0] for one in found], axis=0),
        chain.xp.concat([one.dual_deviation for one in found], axis=0),
    )


def examine(chain: Chain, c: Array, depth: int, known: Known | None = None) -> Examined:
    """Polish the candidates `c` (k, b) on the membership up to layer `depth`, and judge them by all equations.

    With the duals of `known` inputs, they are held orthogonal to these: what an input needs that
    turns on fewer units than it has coordinates.
    """
    end = across_kinks(chain, polish(chain, c, depth, known), depth, known)
    c, covariance, ahead = end.c, end.covariance, end.residual
    passed = forward(chain, c, len(chain.layers) - 2, derivatives=False, noisy=depth)
    doubt = variance_of(chain.layers[0].to_units, covariance)
    side = _best_side(chain, c, passed, doubt)
    one_sided = np.flatnonzero((ahead <= CONSISTENT) & (side.residual > CONSISTENT)).tolist()
    side = _with_other_slopes(chain, c, passed, doubt, side, one_sided)
    return Examined(
        c=c,
        q=side.q,
        deviation=input_deviation(chain, c, covariance),
        output_grad=side.columns[0],
        duals=_duals(chain, side.columns),
        dual_deviation=_dual_deviation(chain, passed, side.q, side.columns, side.through),
        forward_residual=ahead,
        backward_residual=side.residual,
        apart=side.apart,
        along=end.along,
        by_duals=known is not None,
    )


@dataclass(frozen=True)
class _Side:
    """The backward side of k inputs at its best."""

    q: Array
    columns: list[Array]
    residual: HostArray
    apart: HostArray
    through: Array
    """The `backward_map` of the pass."""

    def row(self, number: int) -> _Side:
        """That of one input."""
        one = slice(number, number + 1)
        columns = [column[one, :] for column in self.columns]
        return _Side(self.q[one, :], columns, self.residual[one], self.apart[one], self.through[one, :, :])


def _best_side(chain: Chain, c: Array, passed: Forward, doubt: Array) -> _Side:
    """The column of ∂L/∂Z that fits the gradient of the first layer best, scaled to p · c = 1."""
    xp = chain.xp
    through = backward_map(chain, passed)
    q, best, second = null_vectors(chain, through)
    columns = columns_of(chain, passed, q)
    own = xp.sum(chain.layers[0].dual(columns[0]) * c, axis=1)
    own = xp.where(own != 0, own, xp.ones_like(own))[:, None]
    q, columns = q / own, [column / own for column in columns]
    residual = to_host(backward_side(chain, c, q, passed, columns=columns, doubt=doubt).residual)
    apart = to_host(second) / np.maximum(to_host(best), np.finfo(np.float64).tiny)
    return _Side(q, columns, rms(residual, c.shape[1] + q.shape[1]), apart, through)


def _with_other_slopes(
    chain: Chain, c: Array, passed: Forward, doubt: Array, side: _Side, rows: list[int]
) -> _Side:
    """`side` with the best that the other sides of the kinks next to them give the inputs in the places `rows`.

    Rounding may have put a unit on the other side of its kink than it is on here.
    """
    if not rows:
        return side
    xp, found = chain.xp, []
    for row in rows:
        one = slice(row, row + 1)
        best, here = side.row(row), passed.row(row)
        for other in other_slopes(chain, c[one, :], here):
            if best.residual[0] <= CONSISTENT:
                break
            tried = _best_side(chain, c[one, :], other, doubt[one, :])
            best = min(best, tried, key=lambda each: float(each.residual[0]))
        found.append(best)
    places = chain.device.integers(rows)

    def joined(whole: Array, parts: Sequence[Array]) -> Array:
        return replace_rows(whole, places, xp.concat(parts, axis=0))

    residual, apart = side.residual.copy(), side.apart.copy()
    residual[rows] = [one.residual[0] for one in found]
    apart[rows] = [one.apart[0] for one in found]
    columns = [
        joined(column, [one.columns[number] for one in found]) for number, column in enumerate(side.columns)
    ]
    through = joined(side.through, [one.through for one in found])
    return _Side(joined(side.q, [one.q for one in found]), columns, residual, apart, through)


def _duals(chain: Chain, columns: list[Array]) -> tuple[Array, ...]:
    """The duals of the layers that show all inputs."""
    count = min(len(columns), chain.depth + 1)
    return tuple(chain.layers[number].dual(columns[number]) for number in range(count))


def _dual_deviation(chain: Chain, passed: Forward, q: Array, columns: list[Array], through: Array) -> Array:
    """(k,): see `Examined`; infinite where slopes bend."""
    if chain.straight:
        return dual_deviation(chain, passed, q, columns, through)
    return chain.xp.full_like(q[:, 0], math.inf)


def reexamine(chain: Chain, seen: Examined, depth: int) -> Examined:
    """Refine candidates that the forward equations bear out on all of them, and judge them by these.

    What the forward side alone leaves open of an input bends its ∂L/∂Z: for nearly linear activations more than can be
    allowed for.
    """
    better = refine(chain, seen.c, seen.q, depth)
    passed = forward(chain, better.c, len(chain.layers) - 2, derivatives=False, noisy=0)
    columns = columns_of(chain, passed, better.q)
    residual = to_host(better.residual)
    size = chain.layers[0].space.shape[0] + 1
    b, t = better.c.shape[1], better.q.shape[1]
    return Examined(
        c=better.c,
        q=better.q,
        deviation=better.deviation,
        output_grad=columns[0],
        duals=_duals(chain, columns),
        dual_deviation=_dual_deviation(chain, passed, better.q, columns, backward_map(chain, passed)),
        forward_residual=np.where(better.converged, rms(residual[:, :-size], b), math.inf),
        backward_residual=rms(residual[:, -size:], b + t),
        apart=seen.apart,
        along=better.along,
        refined=True,
    )
