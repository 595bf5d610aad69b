"""ℓ1 descent: starts end on true directions, and each part of it does what it is there for."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spear_np.backend.host import to_host
from spear_np.directions.pool import Pool
from spear_np.factors.factorize import Factors
from spear_np.factors.signs import sign_model, smoother
from spear_np.search.blocks import Block, Settings, Tempering, _apart, _step_length, descend
from spear_np.search.descent import DESCENDED_CANDIDATES, MAX_EFFORT, Descent, _temper
from tests.backends import Backend, assert_array, assert_lives_on
from tests.layers import digit_layer, factors_of, true_directions
from tests.networks import Floats
from tests.pools import frozen, pool_of, reached
from tests.test_sampling import angles

B, WIDTH, SEED = 20, 160, 3
CLOSE = 0.01
"""Radians: an end this close to a true direction is meant by it; random vectors are some 0.5 away."""
SWITCHES = ("sign_weights", "prior", "concave", "deflation", "thinning")


def problem(backend: Backend, b: int = B, seed: int = SEED, **changes: Any) -> tuple[Factors, Floats]:
    """Return the factors of a batch of digits and its true directions."""
    data = digit_layer(b, width=WIDTH, seed=seed)
    factors = factors_of(data, backend, **changes)
    return factors, true_directions(factors, data.inputs)


def nothing_known(factors: Factors) -> Pool:
    return frozen(Pool.empty(factors.space.batch_size, factors.space.U.shape[0]))


def descent_for(factors: Factors, settings: Settings | None = None) -> Descent:
    return Descent.prepare(factors.space, sign_model(factors), settings)


def proposed(descent: Descent, factors: Factors, pool: Pool, seed: int) -> Floats:
    return to_host(descent.propose(factors.space, pool, np.random.default_rng(seed)).candidates)


def met(candidates: Floats, directions: Floats) -> set[int]:
    """Which of `directions` some candidate is close to."""
    if not len(candidates):
        return set()
    return {int(i) for i in np.flatnonzero(angles(candidates, directions).min(axis=0) < CLOSE)}


def unit(vectors: Floats) -> Floats:
    rows: Floats = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return rows


class TestWeighting:
    @pytest.mark.parametrize("b", [2, 20])
    def test_weighted_rows_are_orthonormal(self, backend: Backend, b: int) -> None:
        factors, _ = problem(backend, b)
        rows = descent_for(factors).weighting.rows
        assert_array(rows.T @ rows, np.eye(b, dtype=np.float32), backend, atol=2e-6)

    @given(st.integers(2, 24), st.integers(0, 30), st.floats(0, 3))
    @settings(max_examples=15)
    def test_there_and_back_again_is_no_change(self, b: int, seed: int, alpha: float) -> None:
        factors, _ = problem(Backend.NUMPY, b, seed)
        weighting = descent_for(factors, Settings(alpha=alpha)).weighting
        np.testing.assert_allclose(weighting.to_q @ weighting.to_weighted, np.eye(b), atol=1e-9)
        np.testing.assert_allclose(weighting.to_weighted @ weighting.to_q, np.eye(b), atol=1e-9)

    @pytest.mark.parametrize("alpha", [0.0, 1.0, 2.0])
    def test_rows_are_scaled_by_their_leverage_and_zeros_stay_zeros(
        self, backend: Backend, alpha: float
    ) -> None:
        data = digit_layer(B, width=WIDTH, seed=SEED)
        factors, truth = problem(backend)
        live = backend.host(factors.space.live)
        left = np.linalg.svd(data.weight_grad[live].astype(np.float64), full_matrices=False)[0][:, :B]
        leverage = np.linalg.norm(left, axis=1)
        weighting = descent_for(factors, Settings(alpha=alpha)).weighting
        seen = backend.host(weighting.rows) @ (backend.host(weighting.to_weighted) @ truth.T)
        wanted = data.output_grad[live] * leverage[:, None] ** -alpha
        factor = np.sum(seen * wanted) / np.sum(wanted**2)
        np.testing.assert_allclose(seen, factor * wanted, atol=1e-5 * np.max(np.abs(seen)))


class TestPropose:
    @pytest.mark.parametrize(
        ("changes", "each", "together"),
        [({}, 6, 10), ({"weight": None, "bias": None}, 1, 4)],
        ids=["with W", "without W"],
    )
    def test_true_directions_are_among_the_candidates(
        self, backend: Backend, changes: dict[str, Any], each: int, together: int
    ) -> None:
        factors, truth = problem(backend, **changes)
        descent, pool = descent_for(factors), nothing_known(factors)
        found: set[int] = set()
        for seed in range(3):
            proposals = descent.propose(factors.space, pool, np.random.default_rng(seed))
            assert_lives_on(proposals.candidates, backend)
            here = met(backend.host(proposals.candidates), truth)
            assert len(here) >= each
            found |= here
        assert len(found) >= together

    @pytest.mark.parametrize("b", [16, 24])
    def test_they_are_near_enough_for_the_polish(self, backend: Backend, b: int) -> None:
        factors, truth = problem(backend, b, seed=4)
        descent, pool = descent_for(factors), nothing_known(factors)
        ends = proposed(descent, factors, pool, seed=0)
        assert len(reached(factors, ends, truth)) >= b // 6
        # The polish alone leads nowhere: it is the descent that finds them.
        assert not reached(factors, np.random.default_rng(0).standard_normal((256, b)), truth)

    def test_the_signs_of_the_layer_help(self) -> None:
        found = {}
        for name, changes in {"with": {}, "without": {"weight": None, "bias": None}}.items():
            factors, truth = problem(Backend.NUMPY, 24, seed=4, **changes)
            descent, pool = descent_for(factors), nothing_known(factors)
            found[name] = sum(len(met(proposed(descent, factors, pool, seed), truth)) for seed in range(3))
        assert found["with"] > 2 * found["without"] + 3

    @given(st.integers(2, 24), st.integers(0, 1000), st.booleans())
    @settings(max_examples=15)
    def test_ends_are_finite_unit_vectors_that_differ(self, b: int, seed: int, thinning: bool) -> None:
        factors, _ = problem(Backend.NUMPY, b, seed=seed % 7)
        descent = descent_for(factors, Settings(thinning=thinning))
        candidates = proposed(descent, factors, nothing_known(factors), seed)
        assert candidates.shape[1:] == (b,)
        assert len(candidates) > 0
        assert np.all(np.isfinite(candidates))
        ends = candidates @ to_host(descent.weighting.to_weighted).T
        np.testing.assert_allclose(np.linalg.norm(ends, axis=1), 1, atol=1e-4)
        assert np.max(np.abs(ends @ ends.T) - np.eye(len(ends))) < 0.9996

    def test_the_clearest_zeros_come_first(self, backend: Backend) -> None:
        factors, truth = problem(backend)
        descent = descent_for(factors)
        candidates = proposed(descent, factors, nothing_known(factors), seed=5)
        weighting = descent.weighting
        sizes = np.abs(
            candidates @ backend.host(weighting.to_weighted).T @ backend.host(weighting.rows).T.astype(float)
        )
        smallest = np.sort(sizes, axis=1)[:, : int(1.25 * B) + 2]
        sharpness = smallest.mean(axis=1) / sizes.mean(axis=1)
        assert np.all(np.diff(sharpness) > -1e-4)
        close = angles(candidates, truth).min(axis=1) < CLOSE
        assert np.all(close[:5])
        assert not np.any(close[-5:])

    @pytest.mark.parametrize("known", [0, 10])
    def test_the_same_arguments_give_the_same_candidates(self, backend: Backend, known: int) -> None:
        factors, truth = problem(backend)
        pool = frozen(pool_of(factors, truth[:known])) if known else nothing_known(factors)
        options = Settings(steps=50)
        first, again, other = (
            proposed(descent_for(factors, options), factors, pool, seed) for seed in (6, 6, 7)
        )
        np.testing.assert_array_equal(first, again)
        assert not np.array_equal(first, other)

    def test_every_start_is_counted_and_few_candidates_are_handed_on(self) -> None:
        factors, _ = problem(Backend.NUMPY)
        descent, pool = descent_for(factors, Settings(starts=900, steps=1)), nothing_known(factors)
        # After a single step hardly any two starts have met.
        proposals = descent.propose(factors.space, replace(pool, effort=1), np.random.default_rng(5))
        assert proposals.examined == 900
        assert proposals.candidates.shape == (DESCENDED_CANDIDATES, B)
        # None has come near a minimum, which matters as long as others do.
        assert not descent.propose(factors.space, pool, np.random.default_rng(5)).candidates.shape[0]

    def test_there_is_no_forecast(self) -> None:
        factors, _ = problem(Backend.NUMPY)
        assert descent_for(factors).forecast(factors.space) is None


class TestDeflation:
    @pytest.mark.parametrize("known", [10, 16, 19])
    def test_known_directions_make_way_for_unknown_ones(self, backend: Backend, known: int) -> None:
        factors, truth = problem(backend)
        pool = frozen(pool_of(factors, truth[:known]))
        descent = descent_for(factors)
        ends = [proposed(descent, factors, pool, seed) for seed in range(2)]
        new = [met(candidates, truth[known:]) for candidates in ends]
        assert all(new)
        assert len(set.union(*new)) >= min(2, B - known)
        assert sum(len(met(candidates, truth[:known])) for candidates in ends) < sum(map(len, new))

    def test_it_brings_more_than_a_search_that_ignores_what_is_known(self) -> None:
        known = 12
        factors, truth = problem(Backend.NUMPY, 24, seed=5)
        pool = pool_of(factors, truth[:known])
        brought = {}
        for deflation in (True, False):
            descent = descent_for(factors, Settings(deflation=deflation))
            ends = [proposed(descent, factors, pool, seed) for seed in range(4)]
            brought[deflation] = sum(len(met(candidates, truth[known:])) for candidates in ends)
        assert brought[True] > 1.3 * brought[False]

    def test_fewer_starts_are_spent_on_fewer_directions(self, backend: Backend) -> None:
        factors, truth = problem(backend)
        descent = descent_for(factors, Settings(steps=1))
        pools = [nothing_known(factors), pool_of(factors, truth[:2]), pool_of(factors, truth[:15])]
        examined = [descent.propose(factors.space, pool, np.random.default_rng(8)).examined for pool in pools]
        assert examined == [256, 4 * (B - 2), 64]

    @pytest.mark.parametrize("doubt", ["pattern_fit", "penalty", "rests_on_one_row", "no W", "deflation off"])
    def test_doubtful_directions_are_not_relied_on(self, doubt: str) -> None:
        changes: dict[str, Any] = {"weight": None, "bias": None} if doubt == "no W" else {}
        factors, truth = problem(Backend.NUMPY, **changes)
        pool = pool_of(factors, truth[:15])
        # Where the layer explains the zeros of few directions, it is the layer that is doubted.
        few = np.arange(15) < 7
        doubts: dict[str, dict[str, Any]] = {
            "pattern_fit": {"pattern_fit": np.where(few, 0.96, 1.0), "rests_on_one_row": ~few},
            "penalty": {"penalty": np.ones(15, dtype=np.int64)},
            "rests_on_one_row": {"rests_on_one_row": np.ones(15, dtype=bool)},
        }
        pool = replace(pool, **doubts.get(doubt, {}))
        descent = descent_for(factors, Settings(steps=1, deflation=doubt != "deflation off"))
        for seed in range(3):
            assert descent.propose(factors.space, pool, np.random.default_rng(seed)).examined == 256

    def test_a_complete_basis_still_leaves_something_to_search(self, backend: Backend) -> None:
        factors, truth = problem(backend)
        candidates = proposed(descent_for(factors), factors, pool_of(factors, truth), seed=9)
        assert len(candidates) > 0
        assert np.all(np.isfinite(candidates))

    @pytest.mark.parametrize(
        ("stale", "effort", "relied"),
        [(0, 0, {3}), (3, 0, {1, 2, 3}), (0, 2, {0, 3})],
        ids=["news", "no news", "little news"],
    )
    def test_without_news_some_rounds_rely_on_less(self, stale: int, effort: int, relied: set[int]) -> None:
        factors, truth = problem(Backend.NUMPY)
        pool = replace(pool_of(factors, truth[:3]), stale=stale, effort=effort)
        descent = descent_for(factors, Settings(steps=1))
        # The number of starts tells on how many directions a round relied.
        starts_for = {4 * (B - 3): 3, 4 * (B - 2): 2, 4 * (B - 1): 1, 256: 0}
        examined = [
            descent.propose(factors.space, pool, np.random.default_rng(s)).examined for s in range(30)
        ]
        assert relied <= {starts_for[count] for count in examined}
        if stale == effort == 0:
            assert set(examined) == {4 * (B - 3)}


def tempering(**changes: Any) -> Tempering:
    return replace(Tempering(200, 0.3, (0.0, 10.0), 0.5, 0.35, 0.98), **changes)


def starts(backend: Backend, rows: Floats, count: int, seed: int) -> Any:
    picks = np.random.default_rng(seed).integers(0, len(rows), count)
    return backend.array(rows[picks])


class TestDescend:
    """One block of starts, on rows that cannot be written to where the backend can refuse it."""

    @pytest.fixture
    def factors(self, backend: Backend) -> Factors:
        return problem(backend)[0]

    def rows(self, factors: Factors) -> Floats:
        return to_host(descent_for(factors).weighting.rows)

    def run(
        self, backend: Backend, factors: Factors, options: Settings, known: Floats | None = None, **kw: Any
    ) -> tuple[Floats, Floats]:
        """Return starts and ends of one block in weighted coordinates."""
        rows = self.rows(factors)
        start = starts(backend, rows, 60, seed=11)
        model = sign_model(factors)
        signs = smoother(factors.space, model, None) if model is not None and options.sign_weights else None
        aside = None if known is None else backend.array(known)
        device = factors.space.device
        block = Block.prepare(
            device, backend.array(rows), start, tempering(**kw), options, signs=signs, known=aside
        )
        ends = descend(device, [block])[0]
        assert_lives_on(ends, backend)
        return backend.host(start), backend.host(ends)

    @pytest.mark.parametrize("concave", [True, False])
    def test_the_norm_falls(self, backend: Backend, factors: Factors, concave: bool) -> None:
        options = Settings(sign_weights=False, thinning=False, concave=concave)
        start, ends = self.run(backend, factors, options)
        assert start.shape == ends.shape
        rows = self.rows(factors)
        before = np.abs(unit(start) @ rows.T).sum(axis=1)
        after = np.abs(ends @ rows.T).sum(axis=1)
        assert np.all(after < before)
        assert np.mean(after / before) < 0.9

    def test_near_a_true_direction_it_ends_there(self, backend: Backend, factors: Factors) -> None:
        truth = true_directions(factors, digit_layer(B, width=WIDTH, seed=SEED).inputs)
        weighting = descent_for(factors).weighting
        wanted = unit(truth @ backend.host(weighting.to_weighted).T)
        aside = unit(np.random.default_rng(12).standard_normal((B, B)))
        begun = (wanted + 0.3 * aside).astype(np.float32)
        options = Settings(thinning=False)
        model = sign_model(factors)
        assert model is not None
        block = Block.prepare(
            factors.space.device,
            weighting.rows,
            backend.array(begun),
            tempering(first_step=0.05),
            options,
            signs=smoother(factors.space, model, None),
        )
        ends = descend(factors.space.device, [block])[0]
        before, after = (angles(q, wanted).diagonal() for q in (begun, backend.host(ends)))
        assert np.min(before) > 0.1
        assert np.mean(after < CLOSE) > 0.8

    def test_confined_starts_never_leave_the_complement(self, backend: Backend, factors: Factors) -> None:
        known = np.linalg.qr(np.random.default_rng(13).standard_normal((B, 7)))[0]
        _, ends = self.run(backend, factors, Settings(), known, confined=2.0)
        np.testing.assert_allclose(ends @ known, 0, atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(ends, axis=1), 1, atol=1e-5)
        _, released = self.run(backend, factors, Settings(), known, confined=0.3)
        assert np.median(np.abs(released @ known).max(axis=1)) > 0.05

    def test_starts_that_come_together_go_on_as_one(self, backend: Backend, factors: Factors) -> None:
        start, merged = self.run(backend, factors, Settings(), thin_cosine=0.98)
        _, alone = self.run(backend, factors, Settings(thinning=False))
        assert len(start) == len(alone)
        assert len(merged) < 0.8 * len(alone)
        # Of the places where starts gather none is lost.
        crowded = alone[np.sum(np.abs(alone @ alone.T) > 0.999, axis=1) >= 4]
        assert len(crowded) > 0
        assert np.all(np.abs(crowded @ merged.T).max(axis=1) > 0.99)

    def test_hardly_any_step_leads_hardly_anywhere(self, backend: Backend, factors: Factors) -> None:
        start, ends = self.run(backend, factors, Settings(thinning=False), steps=3, first_step=1e-3)
        assert np.max(angles(ends, start).diagonal()) < 3.1e-3
        assert np.min(angles(ends, start).diagonal()) > 5e-4


class TestApart:
    @given(st.integers(2, 6), st.lists(st.integers(0, 5), min_size=1, max_size=20), st.integers(0, 100))
    def test_it_keeps_the_first_of_each_group(self, b: int, groups: list[int], seed: int) -> None:
        rng = np.random.default_rng(seed)
        centres = np.linalg.qr(rng.standard_normal((b, b)))[0]
        members = np.asarray([group % b for group in groups])
        signs = rng.choice([-1.0, 1.0], (len(members), 1))
        q = unit(signs * centres[members] + 0.02 * rng.standard_normal((len(members), b)))
        kept = to_host(_apart(Backend.NUMPY.device, q, 0.9))
        assert list(kept) == sorted(np.unique(members, return_index=True)[1])

    @given(st.integers(1, 12), st.integers(0, 100))
    def test_it_keeps_all_of_a_spread_set(self, b: int, seed: int) -> None:
        q = np.linalg.qr(np.random.default_rng(seed).standard_normal((b, b)))[0]
        np.testing.assert_array_equal(_apart(Backend.NUMPY.device, q, 0.1), np.arange(b))

    @given(st.integers(2, 3), st.integers(1, 40), st.floats(0.3, 0.99), st.integers(0, 100))
    def test_what_goes_is_close_to_an_earlier_one(self, b: int, count: int, cosine: float, seed: int) -> None:
        q = unit(np.random.default_rng(seed).standard_normal((count, b)))
        kept = {int(i) for i in np.asarray(_apart(Backend.NUMPY.device, q, cosine))}
        close = np.abs(q @ q.T)
        assert 0 in kept
        for i, k in itertools.combinations(sorted(kept), 2):
            assert close[i, k] <= cosine + 1e-12
        for index in set(range(count)) - kept:
            assert np.max(close[index, :index]) > cosine - 1e-12

    def test_on_every_backend_alike(self, backend: Backend) -> None:
        q = unit(np.random.default_rng(14).standard_normal((50, 3))).astype(np.float32)
        kept = _apart(backend.device, backend.array(q), 0.8)
        assert_array(kept, _apart(Backend.NUMPY.device, q, 0.8), backend)
        assert 1 < kept.shape[0] < 50


class TestStepLength:
    LENGTHS = st.floats(1e-2, 0.5)
    HOLDS = st.floats(0.0, 0.9)

    @given(LENGTHS, HOLDS)
    def test_it_is_constant_and_then_falls_to_the_last_step(self, first: float, hold: float) -> None:
        options = Settings(hold=hold, last_step=1e-3)
        lengths = [_step_length(first, options, done) for done in np.linspace(0, 1, 41)]
        held = np.linspace(0, 1, 41) <= hold
        np.testing.assert_allclose(np.asarray(lengths)[held], first)
        assert np.all(np.diff(np.asarray(lengths)[~held]) < 0)
        assert lengths[-1] == pytest.approx(1e-3)

    @given(LENGTHS, HOLDS, st.floats(0, 0.09))
    def test_equal_shares_of_the_way_shorten_it_by_equal_factors(
        self, first: float, hold: float, share: float
    ) -> None:
        options = Settings(hold=hold)
        places = [hold + k * share * (1 - hold) for k in range(4)]
        one, two, three, four = (_step_length(first, options, place) for place in places)
        assert two / one == pytest.approx(three / two)
        assert three / two == pytest.approx(four / three)


class TestTempering:
    @given(st.integers(0, 12), st.booleans(), st.integers(0, 200))
    def test_it_stays_within_its_limits(self, effort: int, few: bool, seed: int) -> None:
        drawn = _temper(np.random.default_rng(seed), Settings(steps=50), effort=effort, few=few)
        assert drawn.steps in [50 * 2**k for k in range(min(effort, MAX_EFFORT) + 1)]
        assert 0 < drawn.first_step < 1
        assert 0 < drawn.confined < 1
        assert 0 <= drawn.kappa[0] < drawn.kappa[1]

    def test_effort_makes_descents_longer(self) -> None:
        rng = np.random.default_rng(15)
        longest, mean = [], []
        for effort in range(MAX_EFFORT + 2):
            steps = [_temper(rng, Settings(steps=1), effort=effort, few=False).steps for _ in range(40)]
            longest.append(max(steps))
            mean.append(np.mean(steps))
        assert longest == [*(2**k for k in range(MAX_EFFORT + 1)), 2**MAX_EFFORT]
        assert np.all(np.diff(mean[:-1]) > 0)

    def test_it_differs_from_block_to_block(self) -> None:
        drawn = {_temper(np.random.default_rng(s), Settings(), effort=0, few=False) for s in range(20)}
        assert len(drawn) > 10

    def test_without_news_only_what_has_converged_is_merged(self) -> None:
        early, late = (
            _temper(np.random.default_rng(15), Settings(), effort=effort, few=False) for effort in (1, 2)
        )
        assert early.thin_cosine < late.thin_cosine < 1

    def test_for_the_last_few_columns_signs_are_sharp(self) -> None:
        sharp, soft = (
            _temper(np.random.default_rng(16), Settings(), effort=0, few=few) for few in (True, False)
        )
        assert sharp.kappa > soft.kappa


def without(part: str) -> Settings:
    """Return the usual settings with one part switched off."""
    off: dict[str, Any] = {part: False}
    return replace(Settings(), **off)


class TestSettings:
    @pytest.mark.parametrize("off", SWITCHES)
    def test_every_part_can_be_left_out(self, backend: Backend, off: str) -> None:
        factors, truth = problem(backend, 8, seed=19)
        descent = descent_for(factors, without(off))
        found: set[int] = set()
        for pool in (nothing_known(factors), frozen(pool_of(factors, truth[:3]))):
            candidates = proposed(descent, factors, pool, seed=17)
            assert np.all(np.isfinite(candidates))
            found |= met(candidates, truth)
        assert len(found) >= 5

    @pytest.mark.parametrize("off", SWITCHES)
    def test_every_part_makes_a_difference(self, off: str) -> None:
        factors, truth = problem(Backend.NUMPY)
        pool = pool_of(factors, truth[:6])
        with_it, without_it = (
            proposed(descent_for(factors, options), factors, pool, 18)
            for options in (Settings(), without(off))
        )
        assert not np.array_equal(with_it, without_it)
