"""The sweep: one update under every defence at every strength, inverted and held against the truth."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

import spear_np
from spear_np.backend.host import to_host

from ..files.dump import Layer, Record
from ..files.storage import Floats, LoadedRows
from ..problems import Place
from ..show.matching import errors_of, matched, psnr
from ..show.normalisation import Normalisation, data_range_of, normalisation_of
from .defences import Defence
from .privacy import Training, epsilon
from .update import Shared

RECOGNISED = 20.0
"""dB from which an input counts as recovered: an error of a tenth of the data range, which hides no picture."""
LARGEST_PSNR = 300.0
"""dB that are told, at most: two inputs that do not differ have none."""
ENOUGH_IN_A_ROW = 2
"""Strengths at which nothing is recovered, one after the other, from which stronger ones are not tried."""
HALVINGS = 3
"""Strengths between the last that fails to protect and the first that does, for a closer break-even."""


@dataclass(frozen=True)
class Target:
    """The true inputs, or what stands for them."""

    inputs: Floats
    """(b, n), different from each other."""
    true: bool
    """Whether they come from the dump; else they are those that the update gives away without a defence."""
    place: Place
    """Of the layer, named in errors."""
    pixels: Normalisation | None = None
    """What undoes normalisation, where the dump tells it."""

    @cached_property
    def data_range(self) -> float:
        """The peak of every PSNR."""
        return data_range_of(LoadedRows(self.inputs, self.place), self.pixels)


@dataclass(frozen=True)
class Point:
    """One strength of one defence."""

    strength: float
    status: str
    claim: str
    found: int
    """Inputs handed out."""
    recovered: int
    """Of the true ones, at `RECOGNISED` or better."""
    share: float
    worst_psnr: float
    """dB; of the true inputs, 0 for one that has no counterpart."""
    median_psnr: float
    worst_bound: float | None
    """Largest error bound of what was handed out, in the units of the layer; infinite or None without one."""
    seconds: float
    reason: str
    epsilon: float | None = None
    """ε of DP-SGD at that strength, where it is noise and the accountant is installed."""
    multiplier: float | None = None
    """Noise multiplier of DP-SGD that the noise amounts to, where clipping norm and batch are known."""


@dataclass(frozen=True)
class Curve:
    """One defence."""

    defence: Defence
    points: tuple[Point, ...]
    complete: bool
    """Whether the sweep of this defence went to its end."""
    batch: int

    @property
    def break_even(self) -> tuple[float | None, float | None]:
        """Strongest strength that still gives inputs away, and the weakest one beyond it that does not; None where there is none."""
        leaking = [number for number, point in enumerate(self.points) if point.recovered]
        if not leaking:
            return None, self.points[0].strength if self.points else None
        last = leaking[-1]
        beyond = self.points[last + 1 :]
        return self.points[last].strength, beyond[0].strength if beyond else None


@dataclass(frozen=True)
class Budget:
    """What one inversion may take, and who may end the whole."""

    time_limit: float = 5.0
    """Seconds for each inversion."""
    seed: int = 0
    device: str = "cpu"
    stop: Callable[[], bool] = lambda: False
    say: Callable[[str], Callable[[spear_np.Progress], None] | None] = lambda title: None
    """Called with a title before each inversion; returns what is told of its progress."""


def target_of(
    truth: Floats | None, baseline: spear_np.Inversion, record: Record, layer: Layer
) -> Target | None:
    """Return what is protected: the `truth` (b, n), or what the update gives away without a defence; None without either."""
    pixels = normalisation_of(record.info, layer.seen, baseline.gradients.shape[1], layer.place)
    if truth is not None:
        return Target(
            np.unique(truth.astype(np.float64), axis=0), true=True, place=layer.place, pixels=pixels
        )
    if baseline.status in (spear_np.Status.EXACT, spear_np.Status.APPROXIMATE) and baseline.found:
        return Target(to_host(baseline.inputs), true=False, place=layer.place, pixels=pixels)
    return None


def measured(result: spear_np.Inversion, target: Target, strength: float, seconds: float) -> Point:
    """Hold an answer against the truth."""
    psnr = psnr_of(to_host(result.inputs), target, fit_scale=not result.scale_known)
    recovered = int(np.sum(psnr >= RECOGNISED))
    bounds = result.certificate.error_bound
    return Point(
        strength=strength,
        status=str(result.status),
        claim=result.claim,
        found=result.found,
        recovered=recovered,
        share=recovered / len(target.inputs),
        worst_psnr=float(np.min(psnr)),
        median_psnr=float(statistics.median(psnr.tolist())),
        worst_bound=float(max(bounds)) if bounds else None,
        seconds=seconds,
        reason=result.reason,
    )


def psnr_of(rows: Floats, target: Target, *, fit_scale: bool = False) -> Floats:
    """(b,): PSNR in dB of each true input with the row (k, n) that is matched to it, as `evaluate` has it; 0 for one that has none."""
    found = np.zeros(len(target.inputs))
    if not len(rows):
        return found
    # In units of the range, squares overflow nowhere but far from it.
    truth, inputs = (LoadedRows(one / target.data_range, target.place) for one in (target.inputs, rows))
    with np.errstate(over="ignore", invalid="ignore"):
        pairs = matched(inputs, truth, range(len(found)), scale_known=not fit_scale)
        for pair, error in zip(pairs, errors_of(inputs, truth, pairs, target.pixels), strict=True):
            if math.isfinite(error.mean_square):
                found[pair.truth] = min(LARGEST_PSNR, max(0.0, psnr(error.mean_square, 1.0)))
    return found


def sweep(
    update: Shared,
    target: Target,
    defences: Sequence[Defence],
    budget: Budget,
    *,
    refine: bool = True,
) -> Iterator[Curve]:
    """Yield a curve for each of the `defences` as it is measured; ends early, with what is finished, when asked to stop."""
    for defence in defences:
        points: list[Point] = []
        done = _measure(update, target, defence, defence.strengths, budget, points)
        if done and refine and defence.graded:
            done = _refine(update, target, defence, budget, points)
        if points:
            yield Curve(defence, tuple(points), done, len(target.inputs))
        if budget.stop():
            return


def _measure(
    update: Shared,
    target: Target,
    defence: Defence,
    strengths: Sequence[float],
    budget: Budget,
    points: list[Point],
) -> bool:
    """Add a point for each of the `strengths`, until stronger ones are beside the point; False if it was stopped."""
    for strength in strengths:
        if budget.stop():
            return False
        point = inverted(update, target, defence, strength, budget)
        if point is None:
            return False
        points.append(point)
        protected = [not one.recovered for one in points[-ENOUGH_IN_A_ROW:]]
        if len(points) > ENOUGH_IN_A_ROW and all(protected):
            return True
    return True


def _refine(update: Shared, target: Target, defence: Defence, budget: Budget, points: list[Point]) -> bool:
    """Add strengths between the last that leaks and the first that protects: halfway, as ratios go; False if it was stopped."""
    for _ in range(HALVINGS):
        leaks, protects = Curve(defence, tuple(points), complete=True, batch=len(target.inputs)).break_even
        if leaks is None or protects is None:
            return True
        if budget.stop():
            return False
        point = inverted(update, target, defence, float(f"{math.sqrt(leaks * protects):.2g}"), budget)
        if point is None:
            return False
        points.append(point)
        rising = defence.strengths[0] < defence.strengths[-1]
        points.sort(key=lambda one: one.strength if rising else -one.strength)
    return True


def inverted(
    update: Shared, target: Target, defence: Defence, strength: float, budget: Budget
) -> Point | None:
    """Invert an update at one strength of a defence; None if that was stopped before it ended."""
    # A number of its own for every strength, the same whatever else is swept.
    rng = np.random.default_rng([budget.seed, *defence.name.encode(), *f"{strength:g}".encode()])
    callback = budget.say(f"{defence.title}: {defence.amount(strength)}")
    started = time.perf_counter()
    options = {"time_limit": budget.time_limit, "seed": budget.seed, "device": budget.device}
    shared = defence.apply(update, strength, rng)
    best: Point | None = None
    # Who attacks may know how many inputs there are, where the gradient no longer tells it.
    for told in (None, len(target.inputs)) if defence.keeps_batch else (None,):
        try:
            result = shared.invert(stop=budget.stop, callback=callback, batch_size=told, **options)
        except spear_np.InputError as error:
            return best or _refused(strength, str(error), time.perf_counter() - started)
        if budget.stop():
            return None
        point = measured(result, target, strength, time.perf_counter() - started)
        best = point if best is None or point.recovered > best.recovered else best
        if best.recovered:
            break
    return None if best is None else replace(best, seconds=time.perf_counter() - started)


def _refused(strength: float, reason: str, seconds: float) -> Point:
    """What the solver does not even try."""
    return Point(
        strength=strength,
        status="failed",
        claim="failed",
        found=0,
        recovered=0,
        share=0.0,
        worst_psnr=0.0,
        median_psnr=0.0,
        worst_bound=None,
        seconds=seconds,
        reason=reason,
    )


def as_dp(curve: Curve, deviation: float | None, training: Training) -> Curve:
    """Return a curve of noise with what its strengths are as noise multipliers of DP-SGD.

    Parameters
    ----------
    curve : Curve
        Of noise.
    deviation : float, optional
        What a strength of one is as a noise multiplier; None if that is not known.
    training : Training
        What the accountant must know.
    """
    if deviation is None:
        return curve
    points = []
    for point in curve.points:
        multiplier = point.strength * deviation
        points.append(replace(point, multiplier=multiplier, epsilon=epsilon(multiplier, training)))
    return replace(curve, points=tuple(points))
