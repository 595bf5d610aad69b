"""Theorem 3.1: true directions give ∂L/∂Z and the inputs; a wrong choice is seen and improved."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from spear_np.directions.disaggregate import (
    EXPLAINED,
    MAX_BIAS_RESIDUAL,
    bias_direction,
    contradicting,
    disaggregate,
    doubtful,
)
from spear_np.directions.exchange import exchange_directions
from spear_np.inputs.reconstruct import reconstruct
from tests.backends import Backend, assert_array, assert_lives_on
from tests.layers import digit_layer, factors_of, true_directions
from tests.networks import Floats, LayerData
from tests.pools import frozen, pool_of

B, WIDTH = 6, 120


def layer(seed: int) -> LayerData:
    return digit_layer(B, width=WIDTH, seed=seed)


def unscaled(truth: Floats, seed: int) -> Floats:
    """Return the directions with random lengths and signs: that is all a search knows of them."""
    rng = np.random.default_rng(seed)
    rows: Floats = truth * (rng.uniform(0.1, 10, (B, 1)) * rng.choice([-1, 1], (B, 1)))
    return rows


def test_bias_grad_of_units_without_weight_grad_is_not_explained(backend: Backend) -> None:
    data = layer(126)
    plain = factors_of(data, backend)
    q = backend.array(true_directions(plain, data.inputs))
    silent = np.setdiff1d(np.arange(WIDTH), backend.host(plain.space.live))
    assert len(silent)
    assert (disaggregate(plain, q).bias_residual or 0.0) < EXPLAINED
    assert bias_direction(plain) is not None
    # As of an input that is zero: it leaves no trace in weight_grad.
    bias_grad = data.bias_grad.copy()
    bias_grad[silent[0]] = np.max(np.abs(bias_grad))
    factors = factors_of(replace(data, bias_grad=bias_grad), backend)
    assert (disaggregate(factors, q).bias_residual or 0.0) > MAX_BIAS_RESIDUAL
    assert bias_direction(factors) is None


class TestTheTheorem:
    @pytest.mark.parametrize("seed", [120, 121])
    def test_directions_of_any_length_and_sign_give_the_batch(self, backend: Backend, seed: int) -> None:
        data = layer(seed)
        factors = factors_of(data, backend)
        q = unscaled(true_directions(factors, data.inputs), seed)
        choice = disaggregate(factors, backend.array(q))
        D = data.output_grad.astype(np.float64)
        assert_array(factors.space.columns(choice.q), D, backend, atol=1e-6 * np.max(np.abs(D)))
        V = data.weight_grad.astype(np.float64).T @ backend.host(factors.space.to_basis)
        X = backend.host(choice.input_coords) @ V.T
        np.testing.assert_allclose(X, data.inputs, atol=1e-5)
        assert choice.sign_agreement is not None
        assert_array(choice.sign_agreement, np.ones(B), backend)
        assert choice.mean_agreement() == 1.0
        assert choice.bias_residual is not None
        assert choice.bias_residual < 10
        assert np.all(backend.host(choice.scale_variance) < 1e-10)

    def test_the_batch_is_reconstructed_from_it(self, backend: Backend) -> None:
        data = layer(122)
        factors = factors_of(data, backend)
        choice = disaggregate(factors, backend.array(unscaled(true_directions(factors, data.inputs), 122)))
        batch = reconstruct(factors, choice)
        weight_grad = data.weight_grad.astype(np.float64)
        X = backend.host(batch.recovery) @ weight_grad
        np.testing.assert_allclose(X, data.inputs, atol=1e-6)
        D = backend.host(batch.output_grad)
        live = backend.host(factors.space.live)
        np.testing.assert_array_equal((D != 0)[live], (data.output_grad != 0)[live])
        np.testing.assert_allclose(D, data.output_grad, atol=1e-6 * np.max(np.abs(data.output_grad)))
        assert_array(batch.input_max, np.max(np.abs(X), axis=1), backend, rtol=1e-9)
        assert_array(batch.input_norm, np.linalg.norm(X, axis=1), backend, rtol=1e-9)
        assert batch.data_range == pytest.approx(np.ptp(X))
        assert batch.preactivation is not None
        z = data.weight.astype(np.float64) @ data.inputs.T.astype(np.float64) + data.bias[:, None]
        np.testing.assert_allclose(backend.host(batch.preactivation), z, atol=1e-5)
        residual = backend.host(batch.residual)[live]
        assert 0.05 < np.sqrt(np.mean(residual**2)) < 1.5

    def test_inputs_are_not_written_to(self, backend: Backend) -> None:
        data = layer(123)
        factors = factors_of(data, backend)
        q = backend.array(true_directions(factors, data.inputs))
        before = backend.host(q).copy()
        reconstruct(factors, disaggregate(factors, q))
        np.testing.assert_array_equal(backend.host(q), before)


class TestMissingData:
    def test_without_bias_grad_columns_have_unit_length_and_the_sign_of_the_layer(
        self, backend: Backend
    ) -> None:
        data = layer(124)
        factors = factors_of(data, backend, bias_grad=None)
        choice = disaggregate(factors, backend.array(unscaled(true_directions(factors, data.inputs), 124)))
        D, X = data.output_grad.astype(np.float64), data.inputs.astype(np.float64)
        length = np.linalg.norm(D, axis=0)
        assert_array(factors.space.columns(choice.q), D / length, backend, atol=1e-6)
        V = data.weight_grad.astype(np.float64).T @ backend.host(factors.space.to_basis)
        np.testing.assert_allclose(backend.host(choice.input_coords) @ V.T, X * length[:, None], atol=1e-6)
        assert choice.bias_residual is None
        assert_array(choice.scale_variance, np.zeros(B), backend)

    def test_without_weight_nothing_is_said_of_agreement(self, backend: Backend) -> None:
        data = layer(125)
        factors = factors_of(data, backend, weight=None, bias=None)
        choice = disaggregate(factors, backend.array(true_directions(factors, data.inputs)))
        assert choice.sign_agreement is None
        assert choice.mean_agreement() is None
        pool = pool_of(factors, true_directions(factors, data.inputs))
        assert exchange_directions(factors, pool, choice) == (choice, pool)
        assert doubtful(choice, pool) == contradicting(choice, pool) == []

    def test_a_bias_grad_that_belongs_to_something_else_leaves_a_residual(self, backend: Backend) -> None:
        data = layer(126)
        shuffled = np.random.default_rng(126).permutation(data.bias_grad)
        factors = factors_of(data, backend, bias_grad=shuffled)
        choice = disaggregate(factors, backend.array(true_directions(factors, data.inputs)))
        assert choice.bias_residual is not None
        assert choice.bias_residual > 1e4
        # Nothing is known of scales that it gives: six deviations are no less than all of them.
        assert np.all(36 * backend.host(choice.scale_variance) > 0.1)

    @pytest.mark.parametrize("seed", range(131, 135))
    def test_scales_allow_for_an_input_that_only_bias_grad_shows(self, backend: Backend, seed: int) -> None:
        """A black image adds its column to bias_grad, and nothing to weight_grad."""
        data = layer(seed)
        hidden = data.output_grad[:, 0] * np.random.default_rng(seed).uniform(0.5, 1.5, WIDTH) / 3
        factors = factors_of(data, backend, bias_grad=(data.bias_grad + hidden).astype(np.float32))
        truth = true_directions(factors, data.inputs)
        choice = disaggregate(factors, backend.array(truth))
        scale = np.sum(backend.host(choice.q) * truth, axis=1) / np.sum(truth**2, axis=1)
        assert np.max(np.abs(scale - 1)) > 1e-2
        assert np.all(np.abs(scale - 1) <= 6 * np.sqrt(backend.host(choice.scale_variance)) * np.abs(scale))


class TestImprovement:
    @pytest.mark.parametrize("seed", range(127, 131))
    @pytest.mark.parametrize("wrong", [1, 2])
    def test_planted_wrong_directions_are_exchanged(self, backend: Backend, seed: int, wrong: int) -> None:
        data = layer(seed)
        factors = factors_of(data, backend)
        truth = true_directions(factors, data.inputs)
        truth /= np.linalg.norm(truth, axis=1, keepdims=True)
        planted = truth[:wrong] + 0.8 * truth[wrong : 2 * wrong]
        pool = pool_of(factors, np.concatenate([truth, planted]))
        position = [int(np.argmax(np.abs(pool.q @ (v / np.linalg.norm(v))))) for v in (*planted, *truth)]
        # The planted directions are chosen in place of the first ones.
        pool = frozen(pool.with_basis(tuple(position[:wrong] + position[2 * wrong :])))
        assert len(set(pool.basis)) == B
        start = disaggregate(factors, backend.array(pool.basis_vectors))
        assert (start.mean_agreement() or 0) < 1
        assert doubtful(start, pool)
        assert contradicting(start, pool)
        better, chosen = exchange_directions(factors, pool, start)
        assert better.mean_agreement() == 1.0
        assert sorted(chosen.basis) == sorted(position[wrong:])
        assert_lives_on(better.q, backend)
        assert doubtful(better, chosen) == contradicting(better, chosen) == []

    def test_a_good_choice_stays(self, backend: Backend) -> None:
        data = layer(131)
        factors = factors_of(data, backend)
        truth = true_directions(factors, data.inputs)
        pool = pool_of(factors, np.concatenate([truth, truth[:1] + truth[1:2]]))
        chosen = [int(np.argmax(np.abs(pool.q @ (v / np.linalg.norm(v))))) for v in truth]
        pool = pool.with_basis(tuple(chosen))
        start = disaggregate(factors, backend.array(pool.basis_vectors))
        assert exchange_directions(factors, pool, start) == (start, pool)

    def test_the_doubtful_direction_is_a_planted_one(self, backend: Backend) -> None:
        data = layer(132)
        factors = factors_of(data, backend)
        truth = true_directions(factors, data.inputs)
        truth /= np.linalg.norm(truth, axis=1, keepdims=True)
        spoiled = truth.copy()
        spoiled[2] += 0.5 * truth[4]
        pool = pool_of(factors, spoiled)
        choice = disaggregate(factors, backend.array(pool.basis_vectors))
        # Column 2 is wrong, and so is input 4, which loses a share of input 2: either may agree least.
        suspects = {
            int(np.argmax(np.abs(pool.q @ (spoiled[i] / np.linalg.norm(spoiled[i]))))) for i in (2, 4)
        }
        assert set(doubtful(choice, pool)) <= suspects
        assert set(contradicting(choice, pool)) <= suspects
