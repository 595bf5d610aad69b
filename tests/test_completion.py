"""The last directions are found by guessing inputs: whatever a guess leaves off has a null vector."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spear_np.backend.host import to_host
from spear_np.directions.polish import NEAR_ZERO
from spear_np.directions.pool import Pool
from spear_np.directions.uniqueness import SPARE
from spear_np.factors.factorize import Factors
from spear_np.factors.signs import missing_inputs, sign_model
from spear_np.search.completion import GUESSED_CANDIDATES, MOST_GUESSED, Completion
from tests.backends import Backend, assert_lives_on
from tests.cases import pick_digits
from tests.layers import digit_layer, factors_of, layer_data_of, true_directions
from tests.networks import Floats, LayerData
from tests.pools import frozen, pool_of, reached

B, WIDTH = 16, 160


def completion_for(factors: Factors) -> Completion:
    completion = Completion.prepare(factors, sign_model(factors))
    assert completion is not None
    return completion


def without_first(factors: Factors, data: LayerData, missing: int) -> tuple[Pool, Floats]:
    """Return a pool that knows all true directions but the first few, and all of them."""
    truth = true_directions(factors, data.inputs)
    if missing == len(truth):
        return frozen(Pool.empty(factors.space.batch_size, factors.space.U.shape[0])), truth
    return frozen(pool_of(factors, truth[missing:])), truth


def mostly_on(b: int, width: int, seed: int) -> LayerData:
    """Return a layer of which an input turns on four units in five."""
    rng = np.random.default_rng(seed)
    data = layer_data_of(pick_digits(b, rng), rng, width=width, active=0.8)
    assert np.mean(data.output_grad != 0) > 0.7
    return data


class TestPropose:
    def assert_found(self, backend: Backend, data: LayerData, missing: int) -> None:
        """Fail unless the candidates of a few rounds lead to all missing directions."""
        factors = factors_of(data, backend)
        pool, truth = without_first(factors, data, missing)
        completion, rng = completion_for(factors), np.random.default_rng(3)
        left = set(range(missing))
        for _ in range(8):
            proposals = completion.propose(factors.space, pool, rng)
            assert_lives_on(proposals.candidates, backend)
            left -= reached(factors, backend.host(proposals.candidates), truth)
            if not left:
                break
        assert left == set()

    @pytest.mark.parametrize("missing", [1, 2, 3, 4])
    def test_the_last_directions_are_found(self, backend: Backend, missing: int) -> None:
        self.assert_found(backend, digit_layer(B, width=WIDTH, seed=2), missing)

    @pytest.mark.parametrize("missing", [1, 2, 3, 4])
    def test_so_they_are_where_most_units_are_on(self, backend: Backend, missing: int) -> None:
        self.assert_found(backend, mostly_on(12, 150, 2), missing)

    def test_what_is_doubtful_is_not_built_on(self, backend: Backend) -> None:
        data = digit_layer(B, width=WIDTH, seed=2)
        factors = factors_of(data, backend)
        truth = true_directions(factors, data.inputs)
        mixture = np.sum(truth / np.linalg.norm(truth, axis=1, keepdims=True), axis=0)
        pool = pool_of(factors, np.concatenate([truth[2:], mixture[None, :]]))
        doubted = frozen(replace(pool, rests_on_one_row=np.arange(len(pool.q)) == pool.zero_count.argmin()))
        assert len(pool.basis) == B - 1
        completion, rng = completion_for(factors), np.random.default_rng(3)
        found: set[int] = set()
        for _ in range(4):
            candidates = completion.propose(factors.space, doubted, rng).candidates
            found |= reached(factors, backend.host(candidates), truth)
        assert {0, 1} <= found

    def test_a_wrong_direction_that_nothing_speaks_against_is_doubted_at_times(
        self, backend: Backend
    ) -> None:
        data = digit_layer(B, width=WIDTH, seed=2)
        factors = factors_of(data, backend)
        truth = true_directions(factors, data.inputs)
        mixture = np.sum(truth / np.linalg.norm(truth, axis=1, keepdims=True), axis=0)
        pool = frozen(pool_of(factors, np.concatenate([truth[2:], mixture[None, :]])))
        assert len(pool.trusted) == B - 1
        completion, rng = completion_for(factors), np.random.default_rng(3)
        rounds = [
            reached(factors, backend.host(completion.propose(factors.space, pool, rng).candidates), truth)
            for _ in range(12)
        ]
        both = [{0, 1} <= found for found in rounds]
        assert 0 < sum(both) < len(both)

    @pytest.mark.parametrize("b", [2, 3, 5])
    def test_in_a_small_batch_nothing_need_be_known(self, b: int) -> None:
        self.assert_found(Backend.NUMPY, digit_layer(b, width=WIDTH, seed=451), b)

    def test_one_direction_needs_one_candidate(self, backend: Backend) -> None:
        # All guesses coincide: what the others leave of the input is a point.
        data = digit_layer(B, width=WIDTH, seed=452)
        factors = factors_of(data, backend)
        pool, truth = without_first(factors, data, 1)
        candidates = (
            completion_for(factors).propose(factors.space, pool, np.random.default_rng(452)).candidates
        )
        assert candidates.shape == (1, B)
        assert 0 in reached(factors, backend.host(candidates), truth)

    @pytest.mark.parametrize("missing", [1, 3, 8])
    def test_candidates_are_distinct_unit_vectors_that_further_rows_agree_with(
        self, backend: Backend, missing: int
    ) -> None:
        data = mostly_on(B, WIDTH, seed=453)
        factors = factors_of(data, backend)
        pool, _ = without_first(factors, data, missing)
        proposals = completion_for(factors).propose(factors.space, pool, np.random.default_rng(453))
        assert proposals.search == "completion"
        candidates = backend.host(proposals.candidates)
        assert 0 < len(candidates) <= GUESSED_CANDIDATES < proposals.examined
        np.testing.assert_allclose(np.linalg.norm(candidates, axis=1), 1, rtol=1e-9)
        assert np.max(np.abs(candidates @ candidates.T) - np.eye(len(candidates))) < 1 - 1e-9
        units = backend.host(factors.space.noise_units(proposals.candidates))
        assert np.all(np.sum(units < NEAR_ZERO, axis=1) >= B - 1 + SPARE)

    def test_the_same_arguments_give_the_same_candidates(self, backend: Backend) -> None:
        data = digit_layer(B, width=WIDTH, seed=454)
        factors = factors_of(data, backend)
        pool, _ = without_first(factors, data, 4)
        first, again, other = (
            backend.host(
                completion_for(factors).propose(factors.space, pool, np.random.default_rng(seed)).candidates
            )
            for seed in (1, 1, 2)
        )
        np.testing.assert_array_equal(first, again)
        assert not np.array_equal(first, other)

    def test_where_no_guess_leaves_enough_units_off_there_are_no_candidates(self, backend: Backend) -> None:
        rng = np.random.default_rng(455)
        data = digit_layer(6, width=80, seed=455)
        output_grad = rng.standard_normal((80, 6)).astype(np.float32)
        bright = replace(
            data,
            bias=data.bias + 100,
            output_grad=output_grad,
            weight_grad=output_grad @ data.inputs,
            bias_grad=output_grad.sum(axis=1),
        )
        factors = factors_of(bright, backend)
        pool, _ = without_first(factors, bright, 2)
        proposals = completion_for(factors).propose(factors.space, pool, rng)
        assert proposals.candidates.shape == (0, 6)
        assert proposals.examined > 0

    def test_there_is_no_forecast(self) -> None:
        factors = factors_of(digit_layer(4, width=80, seed=456), Backend.NUMPY)
        assert completion_for(factors).forecast(factors.space) is None


class TestGuesses:
    @given(st.integers(2, 20), st.integers(0, 20), st.data())
    @settings(max_examples=20)
    def test_known_directions_do_not_see_them_and_the_bias_gradient_does(
        self, b: int, seed: int, data: st.DataObject
    ) -> None:
        layer = digit_layer(b, width=120, seed=seed)
        factors = factors_of(layer, Backend.NUMPY)
        missing = data.draw(st.integers(1, b))
        pool, truth = without_first(factors, layer, missing)
        completion = completion_for(factors)
        mean, root = (
            to_host(a)
            for a in missing_inputs(factors.space, completion.model, completion.total, pool.q[pool.trusted])
        )
        guesses = mean + np.random.default_rng(seed).standard_normal((30, b)) @ root.T
        y = truth[missing:] / to_host(factors.space.S)
        y /= np.linalg.norm(y, axis=1, keepdims=True)
        size = np.linalg.norm(guesses, axis=1, keepdims=True)
        np.testing.assert_allclose(guesses @ y.T / size, 0, atol=1e-6)
        np.testing.assert_allclose(guesses @ completion.total, 1, atol=1e-6)
        # Nothing else is fixed: guesses differ in as many dimensions as are open.
        spread = np.linalg.svd(guesses - mean, compute_uv=False) / np.linalg.norm(mean)
        assert np.count_nonzero(spread > 1e-6) == missing - 1

    def test_true_inputs_are_among_what_may_be_guessed(self, backend: Backend) -> None:
        data = digit_layer(B, width=WIDTH, seed=460)
        factors = factors_of(data, backend)
        pool, _ = without_first(factors, data, 5)
        completion = completion_for(factors)
        known = pool.q[pool.trusted]
        guessed = missing_inputs(factors.space, completion.model, completion.total, known)
        mean, root = (backend.host(a) for a in guessed)
        weight_grad = data.weight_grad.astype(np.float64)
        c = data.inputs[:5].astype(np.float64) @ (weight_grad.T @ backend.host(factors.space.to_basis))
        steps = (c - mean) @ np.linalg.pinv(root, rtol=1e-5).T
        np.testing.assert_allclose(steps @ root.T + mean, c, atol=1e-4 * np.max(np.abs(c)))


class TestSuits:
    @pytest.mark.parametrize(
        ("missing", "suits"), [(0, False), (1, True), (MOST_GUESSED, True), (MOST_GUESSED + 1, False)]
    )
    def test_few_directions_must_be_missing(self, missing: int, suits: bool) -> None:
        data = digit_layer(B, width=WIDTH, seed=470)
        factors = factors_of(data, Backend.NUMPY)
        pool, _ = without_first(factors, data, missing)
        assert completion_for(factors).suits(pool) == suits

    @pytest.mark.parametrize("doubt", ["pattern_fit", "penalty", "rests_on_one_row"])
    def test_doubtful_directions_count_as_missing(self, doubt: str) -> None:
        data = digit_layer(B, width=WIDTH, seed=471)
        factors = factors_of(data, Backend.NUMPY)
        pool, _ = without_first(factors, data, 0)
        first = np.arange(B) == 0
        doubts: dict[str, Any] = {
            "pattern_fit": 1 - 0.5 * first,
            "penalty": 1 * first,
            "rests_on_one_row": first,
        }
        completion = completion_for(factors)
        assert not completion.suits(pool)
        assert completion.suits(replace(pool, **{doubt: doubts[doubt]}))


class TestPrepare:
    @pytest.mark.parametrize(
        ("missing", "there"),
        [
            ([], True),
            (["bias"], True),
            (["weight", "bias"], False),
            (["bias_grad"], False),
            (["bias_grad", "bias"], False),
        ],
    )
    def test_it_needs_weight_and_bias_grad(self, missing: list[str], there: bool) -> None:
        changes = dict.fromkeys(missing)
        factors = factors_of(digit_layer(5, width=100, seed=480), Backend.NUMPY, **changes)
        assert (Completion.prepare(factors, sign_model(factors)) is not None) == there

    @pytest.mark.parametrize("change", ["permuted", "zero"])
    def test_a_bias_gradient_that_contradicts_is_not_used(self, change: str) -> None:
        data = digit_layer(5, width=100, seed=481)
        wrong = {
            "permuted": np.random.default_rng(481).permutation(data.bias_grad),
            "zero": np.zeros_like(data.bias_grad),
        }
        factors = factors_of(data, Backend.NUMPY, bias_grad=wrong[change])
        model = sign_model(factors)
        assert model is not None
        assert Completion.prepare(factors, model) is None

    def test_the_bias_gradient_says_what_all_inputs_have_in_common(self, backend: Backend) -> None:
        data = digit_layer(B, width=WIDTH, seed=482)
        factors = factors_of(data, backend)
        weight_grad = data.weight_grad.astype(np.float64)
        c = data.inputs.astype(np.float64) @ (weight_grad.T @ backend.host(factors.space.to_basis))
        np.testing.assert_allclose(c @ completion_for(factors).total, 1, atol=1e-4)
