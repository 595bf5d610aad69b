"""Starts of several chains side by side: each goes its way as it does for itself, whatever the others are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from spear_np import Activation
from spear_np.backend.devices import CPU
from spear_np.backend.host import to_host
from spear_np.chain.sets import open_sets
from spear_np.placement import carried
from spear_np.search import fits
from spear_np.search.fits import Equations, Fit, fit_on
from spear_np.search.levenberg import Levenberg
from spear_np.search.reflect import Reflect
from spear_np.search.reflections import Fresh, Ground, Walk, walk_on
from tests.backends import Backend
from tests.cards import strict_card
from tests.chains import chain_on, digit_network
from tests.networks import Floats

STRAIGHT = (
    Activation("relu"),
    Activation("relu6"),
    Activation("leaky_relu", {"negative_slope": 0.2}),
    Activation("hardtanh", {"low": 0.5, "high": 1.5}),  # σ(0) is not 0
)
SMOOTH = (Activation("gelu"), Activation("sigmoid"), Activation("tanh"), Activation("relu"))
STEPS = 4
"""After which rounding to float32 does not yet decide where a start goes."""


@dataclass(frozen=True)
class Shape:
    """What a chain is like: its layers have `units`, its inputs `free` coordinates."""

    units: tuple[int, ...] = (12, 10)
    """Of the layers 0 … K - 1."""
    free: int = 4
    starts: int = 5


def orthonormal(rng: np.random.Generator, rows: int, columns: int) -> Floats:
    found: Floats = np.linalg.qr(rng.standard_normal((rows, columns)))[0].astype(np.float32)
    return found


def walk_of(shape: Shape, activations: Sequence[Activation], seed: int) -> Walk:
    """Starts and sets of a chain, at random."""
    rng = np.random.default_rng((seed, *shape.units, shape.free, shape.starts))
    depth = len(activations)
    # Set l holds a_l above z_l; the first z_0 alone, the last a_K alone.
    heights = [(0, shape.units[0]), *zip(shape.units, (*shape.units[1:], 0), strict=True)]
    sets = [orthonormal(rng, above + below, shape.free) for above, below in heights]
    directions = [sets[l][heights[l][0] :] for l in range(depth)]
    directions += [sets[l][: heights[l][0]] for l in range(1, depth + 1)]
    units = (*shape.units, *shape.units)
    return Walk(
        Ground(
            tuple(activations),
            tuple(map(float, rng.uniform(0.5, 2.0, depth))),
            tuple(rng.standard_normal((1, m)).astype(np.float32) for m in units),
            tuple(directions),
        ),
        tuple(rng.standard_normal((shape.starts, m)).astype(np.float32) for m in units),
        STEPS,
        settled=np.inf,
        shown=shape.starts,
    )


def fit_of(shape: Shape, activations: Sequence[Activation], seed: int) -> Fit:
    """Starts and equations of a chain, at random."""
    rng = np.random.default_rng((seed, *shape.units, shape.free, shape.starts))
    sets = [orthonormal(rng, m, shape.free) for m in (shape.units[0], *shape.units)]
    weights = [
        rng.standard_normal((after, before)).astype(np.float32) / np.float32(before**0.5)
        for before, after in zip(shape.units, shape.units[1:], strict=False)
    ]
    return Fit(
        Equations(
            tuple(activations),
            tuple(map(float, rng.uniform(0.5, 2.0, len(activations)))),
            tuple(rng.standard_normal((1, len(one))).astype(np.float32) for one in sets),
            tuple(sets),
            tuple(one.T for one in sets[1:]),
            tuple(weights),
            tuple(rng.standard_normal((1, len(one))).astype(np.float32) for one in weights),
        ),
        rng.standard_normal((shape.starts, shape.free)).astype(np.float32),
    )


def shapes(depth: int) -> st.SearchStrategy[list[Shape]]:
    shape = st.builds(
        Shape,
        units=st.tuples(*(st.integers(9, 20) for _ in range(depth))),
        free=st.integers(0, 6),  # a last input leaves none
        starts=st.integers(1, 6),
    )
    return st.lists(shape, min_size=2, max_size=4)


several = st.integers(1, 3).flatmap(shapes)


class TestWalks:
    def assert_alike(self, walks: Sequence[Walk], backend: Backend = Backend.NUMPY) -> None:
        device = backend.device
        together = walk_on(device, [carried(one, device) for one in walks])
        for one, mine in zip(walks, together, strict=True):
            (alone,) = walk_on(CPU, [one])
            for found, wanted in zip(mine.walk.points, alone.walk.points, strict=True):
                np.testing.assert_allclose(to_host(found), wanted, atol=2e-4)
            assert sorted(mine.settled) == sorted(alone.settled) == list(range(one.points[0].shape[0]))
            np.testing.assert_array_equal(mine.z, to_host(mine.walk.points[0])[mine.settled])
            assert mine.walk.kind == one.kind

    @examples(max_examples=40)
    @given(several, st.sampled_from(STRAIGHT), st.integers(0, 99))
    def test_what_others_are_changes_nothing(self, shapes: list[Shape], sigma: Activation, seed: int) -> None:
        self.assert_alike([walk_of(one, [sigma] * len(one.units), seed) for one in shapes])

    def test_under_every_library(self, backend: Backend) -> None:
        shapes = (Shape(), Shape((15, 9), 6, 2), Shape((9, 20), 2, 7))
        for sigma in STRAIGHT:
            self.assert_alike([walk_of(one, [sigma, STRAIGHT[0]], 3) for one in shapes], backend)

    def test_a_slope_for_each_unit_is_shared(self) -> None:
        sigma = Activation("prelu", {"slope": np.linspace(0.05, 0.4, 12)})
        walks = [walk_of(one, [sigma, STRAIGHT[1]], 1) for one in (Shape(), Shape((12, 16), 3, 2))]
        assert walks[0].kind == walks[1].kind
        self.assert_alike(walks)

    def test_how_far_starts_are_does_not_depend_on_units_that_are_not_there(self) -> None:
        # Where σ(0) is not 0, units that are filled up move, and must not count.
        sigmas = [STRAIGHT[3]]
        small, large = walk_of(Shape((9,), 3, 40), sigmas, 1), walk_of(Shape((60,), 3, 2), sigmas, 1)
        (alone,) = walk_on(CPU, [small])
        assert np.array_equal(walk_on(CPU, [small, large])[0].settled, alone.settled)

    def test_only_what_settles_is_shown_and_of_many_the_first(self) -> None:
        walk = walk_of(Shape(starts=20), STRAIGHT[:2], 5)
        (everything,) = walk_on(CPU, [walk])
        (few,) = walk_on(CPU, [replace(walk, shown=7)])
        assert np.array_equal(few.settled, everything.settled[:7])
        (none,) = walk_on(CPU, [replace(walk, settled=0.0)])
        assert (len(none.settled), none.z.shape) == (0, (0, 12))

    def test_fresh_starts_take_the_places_of_others(self) -> None:
        walk, others = (walk_of(Shape(starts=4), STRAIGHT[:2], seed) for seed in (1, 2))
        two = tuple(part[:2] for part in others.points)
        fresh = replace(walk, fresh=Fresh(np.asarray([0, 4, 2, 5]), two))
        (found,) = walk_on(CPU, [fresh])
        (old,), (new,) = walk_on(CPU, [walk]), walk_on(CPU, [replace(walk, points=others.points)])
        assert found.walk.fresh is None
        for part, kept, drawn in zip(found.walk.points, old.walk.points, new.walk.points, strict=True):
            np.testing.assert_allclose(part[[0, 2]], kept[[0, 2]], atol=1e-5)
            np.testing.assert_allclose(part[[1, 3]], drawn[:2], atol=1e-5)


class TestFits:
    def assert_alike(self, several: Sequence[Fit], backend: Backend = Backend.NUMPY) -> None:
        device = backend.device
        together = fit_on(device, [carried(one, device) for one in several])
        for one, mine in zip(several, together, strict=True):
            (alone,) = fit_on(CPU, [one])
            assert mine.ends.shape == one.starts.shape
            np.testing.assert_allclose(mine.residual, alone.residual, rtol=1e-3, atol=1e-5)
            np.testing.assert_allclose(mine.ends, alone.ends, atol=5e-3)
            assert mine.steps == alone.steps

    @pytest.fixture(autouse=True)
    def few_steps(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(fits, "MOST_STEPS", 2)

    @examples(max_examples=40)
    @given(several, st.sampled_from(SMOOTH), st.integers(0, 99))
    def test_what_others_are_changes_nothing(self, shapes: list[Shape], sigma: Activation, seed: int) -> None:
        self.assert_alike([fit_of(one, [sigma] * len(one.units), seed) for one in shapes])

    def test_under_every_library(self, backend: Backend) -> None:
        shapes = (Shape(), Shape((15, 9), 6, 2), Shape((9, 20), 2, 7))
        for sigma in SMOOTH:
            self.assert_alike([fit_of(one, [sigma, SMOOTH[0]], 3) for one in shapes], backend)


class TestFitsToTheirEnds:
    def test_starts_that_end_leave_the_others_alone(self) -> None:
        # Real chains, whose starts end after six to forty steps.
        made = []
        for seed, b in enumerate((6, 9, 7)):
            left = open_sets(chain_on(digit_network(b, activation="tanh", seed=seed, dtype=np.float32)), 1)
            rng = np.random.default_rng(seed)
            starts = 0.5 * rng.standard_normal((3 + seed, left.missing - 1)).astype(np.float32)
            made.append(Fit(Equations.of(left), starts))
        with np.errstate(all="ignore"):
            together = fit_on(CPU, made)
            for one, mine in zip(made, together, strict=True):
                (alone,) = fit_on(CPU, [one])
                close = alone.residual < fits.CLOSE
                assert np.count_nonzero(close) >= 2
                assert np.array_equal(mine.residual < fits.CLOSE, close)
                np.testing.assert_allclose(mine.ends[close], alone.ends[close], atol=1e-2)


class TestWhereTheyAre:
    """Of a chain on the host and its steps on a card: what goes there once, and what comes back."""

    def test_starts_and_sets_stay_on_the_card(self) -> None:
        card, data = strict_card(), digit_network(8, dtype=np.float32)
        chain = chain_on(data)
        left, rng = open_sets(chain, 1), np.random.default_rng(0)
        search = Reflect(8, device=card)
        begun = search.start(left, rng)
        first = search.propose(left, begun, rng)
        second = search.propose(left, first.memory, rng)
        assert isinstance(first.coordinates, np.ndarray)
        assert all(isinstance(part, np.ndarray) for part in begun.walk.points)
        for memory in (first.memory, second.memory):
            held = (*memory.walk.points, *memory.walk.ground.directions, *memory.walk.ground.offsets)
            assert {type(part).__module__ for part in held} == {"array_api_strict._array_object"}
        assert second.memory.walk.ground is first.memory.walk.ground
        duals = [layer.dual(data.output_grads[n])[0] for n, layer in enumerate(chain.layers[:2])]
        third = search.propose(left.without(tuple(duals)), second.memory, rng).memory
        assert third.walk.ground.directions[0].shape[1] == left.missing - 2

    def test_equations_stay_on_the_card(self) -> None:
        card = strict_card()
        left = open_sets(chain_on(digit_network(8, activation="tanh", dtype=np.float32)), 1)
        search, rng = Levenberg(2, device=card), np.random.default_rng(0)
        ends = search.propose(left, search.start(left, rng), rng)
        again = search.propose(left, ends.memory, rng)
        assert isinstance(ends.coordinates, np.ndarray)
        assert type(ends.memory.equations.offsets[0]).__module__.startswith("array_api_strict")
        assert again.memory.equations is ends.memory.equations
