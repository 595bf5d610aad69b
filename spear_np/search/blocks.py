"""Blocks of starts on their way down: the steps of the descent, for blocks of several layers side by side.

What a step does is in `kernels.descent`; where blocks start and how they are tempered, in `descent`. A block for itself
is the case of one: the same steps in the same order, without padding.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from ..arrays import Array, Namespace
from ..backend.algebra import contiguous, orthogonal_complement, product, stacked
from ..backend.card import tensor_cores
from ..backend.devices import Device
from ..backend.work import SHARED_FROM, mapped
from ..backend.work import blocks as parts_of
from ..kernels.descent import TINY, move, pull, sign_weights, soft_pattern

WIDTHS = (1.0, 0.3)
"""First and last width of the logarithmic penalty, in means of |U q|.

Heuristic: from nearly the ℓ1 norm to one that hardly sees rows that are on; the concave norm is measured in docs/ablation.md.
"""
STARTS_TOGETHER = 128
"""Starts that a core of the host takes down together, at most.

Heuristic: half of a block, so that two cores share it, whatever their number: it changes no answer.
"""


@dataclass(frozen=True)
class Settings:
    """What the descent is made of; docs/ablation.md measures what each part contributes."""

    alpha: float = 1.0
    """Exponent of the row weights."""
    starts: int = 256
    """Starts of a block, at most; on a card as many more as cost it no time."""
    steps: int = 200
    """Steps of the shortest block; see `_temper` for how effort doubles them."""
    hold: float = 0.5
    """Share of the steps of constant length: in them a start commits to its column."""
    last_step: float = 1e-3
    """Length of the last step (radians): from there the polish takes over."""
    sign_weights: bool = True
    """Whether rows that the layer predicts to be on lose weight."""
    prior: bool = True
    """Whether predictions of signs know the second moments of the inputs."""
    sign_interval: int = 8
    """Steps between two predictions."""
    warm_up: float = 0.12
    """Share of the steps before the first prediction."""
    concave: bool = True
    """Whether the ℓ1 norm turns into a logarithm on the way."""
    deflation: bool = True
    """Whether known directions are used to keep the search away from them."""
    thinning: bool = True
    """Whether starts that have come together go on as one."""


THIN_AT = (0.5, 0.6, 0.75)
"""Shares of the steps after which starts that have come together are merged.

Heuristic: from half of the steps on, when they shorten; merging itself is measured in docs/ablation.md.
"""


@dataclass(frozen=True)
class Tempering:
    """How one block descends; drawn anew for each, so that no column starves."""

    steps: int
    first_step: float
    kappa: tuple[float, float]
    """Sharpness of the sign weights, first and last."""
    tau: float
    """Threshold of the soft pattern, in means of |U q|."""
    confined: float
    """Share of the steps spent in the complement of the known inputs."""
    thin_cosine: float
    """Starts closer than this are taken for the same."""


@dataclass(frozen=True, eq=False)
class Block:
    """Starts of one layer, and what they go down by; all arrays float32, on one device."""

    rows: Array
    """(ℓ, b), orthonormal columns."""
    start: Array
    """(k, b), of any length."""
    tempering: Tempering
    settings: Settings
    free: Array | None = None
    """(b, b'), orthonormal columns: what the first steps keep to."""
    prediction: tuple[Array, Array] | None = None
    """(ℓ, r) and (r, ℓ): their product takes soft patterns to pre-activations."""

    @classmethod
    def prepare(
        cls,
        device: Device,
        rows: Array,
        start: Array,
        tempering: Tempering,
        settings: Settings,
        *,
        signs: tuple[Array, Array] | None = None,
        known: Array | None = None,
    ) -> Block:
        """Return the block with what it needs computed.

        Parameters
        ----------
        signs : (E (ℓ, r), w (r,)), optional
            Smoother of pre-activations; without it the norm is not weighted by signs.
        known : (b, f), optional
            Orthonormal directions left out of the first steps.
        """
        free = prediction = None
        if known is not None and known.shape[1] < rows.shape[1]:
            free = device.float32(orthogonal_complement(device.xp, known))
        if signs is not None:
            spread, shrink = device.float32(signs[0]), device.float32(signs[1])
            prediction = spread * shrink, spread.T
        return cls(rows, start, tempering, settings, free, prediction)

    @property
    def pace(self) -> Hashable:
        """What blocks must have in common to go down together."""
        return self.settings, self.tempering.steps, self.prediction is None

    @property
    def release(self) -> int | None:
        """Step from which it is no longer confined; None if it never is."""
        return None if self.free is None else math.ceil(self.tempering.confined * self.tempering.steps)


def descend(device: Device, blocks: Sequence[Block]) -> list[Array]:
    """Return where the starts of each block end after its subgradient steps, (k' ≤ k, b) float32 each.

    The `blocks` have one `pace`. Their rows and coordinates may differ in number: those that a block has not are zero.

    Notes
    -----
    Nothing is read back from the device but the number of starts that go on after a merge.
    """
    xp = device.xp
    settings, steps = blocks[0].settings, blocks[0].tempering.steps
    courses = [_Course.begun(device, block) for block in blocks]
    prediction = None
    predictions = [block.prediction for block in blocks if block.prediction is not None]
    if predictions:
        gather, scatter = zip(*predictions, strict=True)
        prediction = stacked(device, gather), stacked(device, scatter)
    pace = _Pace.of(device, blocks)
    merges = {round(share * steps) for share in THIN_AT} if settings.thinning else set()
    inner = {
        step for step in (*merges, *(block.release for block in blocks)) if step is not None and step < steps
    }
    for first, stop in pairwise(sorted({0, steps, *inner})):
        for course in courses:
            if course.block.release == first:
                course.release(xp)
            if first in merges:
                course.merge(device)
        rows = stacked(device, [course.rows for course in courses])
        _Leg(device, rows, prediction, pace, first, stop).lead(courses)
    return [course.ends for course in courses]


@dataclass(eq=False)
class _Course:
    """A block on its way."""

    block: Block
    points: Array
    """(k, b'): where its starts are, unit vectors in the coordinates that they keep to."""
    rows: Array
    """(ℓ, b'): its rows in these."""
    weights: Array | None = None
    """(k, ℓ): those of the rows, by the last prediction of their signs."""
    confined: bool = False

    @classmethod
    def begun(cls, device: Device, block: Block) -> _Course:
        """The block before its first step."""
        xp = device.xp
        points, rows, confined = block.start, block.rows, block.free is not None
        if confined:
            points, rows = points @ block.free, rows @ block.free
        length = xp.linalg.vector_norm(points, axis=1, keepdims=True)
        # Of a start outside what it keeps to nothing is left: it begins along an axis.
        axis = xp.astype(xp.arange(points.shape[1], device=device.handle)[None, :] == 0, points.dtype)
        points = xp.where(length > 0, points / (length + TINY), axis)
        return cls(block, contiguous(xp, points), rows, None, confined)

    def release(self, xp: Namespace) -> None:
        """Keep to nothing any more."""
        self.points, self.rows, self.confined = contiguous(xp, self.ends), self.block.rows, False

    def merge(self, device: Device) -> None:
        """Go on with one of those starts that came together."""
        xp = device.xp
        kept = _apart(device, self.points, self.block.tempering.thin_cosine)
        self.points = xp.take(self.points, kept, axis=0)
        self.weights = None if self.weights is None else xp.take(self.weights, kept, axis=0)

    @property
    def ends(self) -> Array:
        """(k, b): where its starts are, in all coordinates."""
        return (
            self.points @ self.block.free.T if self.confined and self.block.free is not None else self.points
        )


@dataclass(frozen=True, eq=False)
class _Pace:
    """What blocks that go down together do in each step, float32 numbers for each of s blocks on their device."""

    settings: Settings
    steps: int
    counts: Array
    """(s, 1, 1) rows of each."""
    thresholds: Array
    """(s, 1, 1) of the soft pattern."""
    widths: Array
    """(steps, s, 1, 1) of the penalty, in sums of |U q| over the rows."""
    sharpness: Array
    """(steps, s, 1, 1) of the sign weights."""
    lengths: Array
    """(steps, s, 1, 1) radians."""

    @classmethod
    def of(cls, device: Device, blocks: Sequence[Block]) -> _Pace:
        """That of `blocks` of one pace."""
        settings, steps = blocks[0].settings, blocks[0].tempering.steps
        counts = [block.rows.shape[0] for block in blocks]
        temperings = [block.tempering for block in blocks]
        shares = [step / steps for step in range(steps)]

        def numbers(values: Any) -> Array:
            return device.float32(np.asarray(values)[..., None, None])

        def width(done: float) -> float:
            shrunk: float = (WIDTHS[1] / WIDTHS[0]) ** done
            return WIDTHS[0] * shrunk

        def sharpness(one: Tempering, done: float) -> float:
            return one.kappa[0] + (one.kappa[1] - one.kappa[0]) * done

        return cls(
            settings,
            steps,
            numbers(counts),
            numbers([one.tau for one in temperings]),
            numbers([[width(done) / count for count in counts] for done in shares]),
            numbers([[sharpness(one, done) for one in temperings] for done in shares]),
            numbers(
                [[_step_length(one.first_step, settings, done) for one in temperings] for done in shares]
            ),
        )

    def predicts(self, step: int) -> bool:
        """Whether signs are predicted anew in a step."""
        return step / self.steps >= self.settings.warm_up and step % self.settings.sign_interval == 0


@dataclass(frozen=True, eq=False)
class _Leg:
    """The steps `first` to `stop` of a descent, between which no start ends or is released."""

    device: Device
    rows: Array
    """(s, ℓ, b')."""
    prediction: tuple[Array, Array] | None
    """(s, ℓ, r) and (s, r, ℓ)."""
    pace: _Pace
    first: int
    stop: int

    def lead(self, courses: Sequence[_Course]) -> None:
        """Take `courses` along; a CPU shares their starts out to its cores."""
        points = stacked(self.device, [course.points for course in courses])
        for place, course in enumerate(courses):
            points[place, course.points.shape[0] :, 0] = (
                1.0  # where a block has fewer starts: any unit vector
            )
        known = [course.weights for course in courses if course.weights is not None]
        points, weights = self._all_down(points, stacked(self.device, known) if known else None)
        for place, course in enumerate(courses):
            k, b = course.points.shape
            course.points = points[place, :k, :b]
            course.weights = None if weights is None else weights[place, :k, : course.rows.shape[0]]

    def _all_down(self, q: Array, weights: Array | None) -> tuple[Array, Array | None]:
        """Return where the starts `q` (s, k, b') come to, and the `weights` (s, k, ℓ) of their rows; fewer at once where memory does not do."""
        xp, k = self.device.xp, q.shape[1]
        shared = self.device.name == "cpu" and math.prod(self.rows.shape[1:]) >= SHARED_FROM
        shares = max(1, math.ceil(k / STARTS_TOGETHER)) if shared else 1
        edges = [share * k // shares for share in range(shares + 1)]

        def down(part: slice) -> tuple[Array, Array | None]:
            known = None if weights is None else contiguous(xp, weights[:, part, :])
            return self._down(contiguous(xp, q[:, part, :]), known)

        found = mapped(self.device, down, [slice(*pair) for pair in pairwise(edges)])
        if len(found) == 1:
            return found[0]
        ends, of_rows = zip(*found, strict=True)
        return xp.concat(ends, axis=1), None if of_rows[0] is None else xp.concat(of_rows, axis=1)

    def _down(self, q: Array, weights: Array | None) -> tuple[Array, Array | None]:
        """As `_all_down`, by one core."""
        device, pace, xp = self.device, self.pace, self.device.xp
        transposed = xp.matrix_transpose(self.rows)
        if device.launch is not None:  # stacks are multiplied as they lie in memory, or copied each time
            transposed = contiguous(xp, transposed)
        values = gradient = None
        with tensor_cores(device):  # ten bits of the mantissa do: benchmarks/tf32.py
            for step in range(self.first, self.stop):
                values = product(xp, q, transposed, values)
                if self.prediction is not None and pace.predicts(step):
                    gather, scatter = self.prediction
                    pattern = soft_pattern(device, values, pace.counts, pace.thresholds)
                    predicted = product(xp, product(xp, pattern, gather, None), scatter, None)
                    weights = sign_weights(device, predicted, pace.counts, pace.sharpness[step, ...])
                width = pace.widths[step, ...] if pace.settings.concave else None
                gradient = product(xp, pull(device, values, weights, width), self.rows, gradient)
                q = move(device, q, gradient, pace.lengths[step, ...])
        return q, weights


def _apart(device: Device, q: Array, cosine: float) -> Array:
    """Indices of the rows of `q` (k, b), unit vectors, without those close to an earlier one."""
    xp = device.xp
    every = xp.arange(q.shape[0], device=device.handle)

    def close(part: slice) -> Array:
        earlier = every[None, :] < every[part, None]
        return xp.any((xp.abs(q[part, :] @ q.T) > cosine) & earlier, axis=1)

    found = mapped(device, close, parts_of(device, q.shape[0], q.shape[0]))
    return xp.nonzero(~xp.concat(found))[0]


def _step_length(first: float, settings: Settings, done: float) -> float:
    """Constant for the first `hold` of the steps, then geometric down to `last_step`."""
    if done < settings.hold:
        return first
    decay: float = (settings.last_step / first) ** ((done - settings.hold) / (1 - settings.hold))
    return first * decay
