"""ReLU6: units above six have no gradient either, and an input is found as one behind a ReLU is."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import spear_np
from spear_np import Status
from spear_np.backend.algebra import orthogonal_complement
from spear_np.directions.repair import repair_candidates, units_off_last
from spear_np.factors.factorize import Factors, factorize
from spear_np.factors.layer import depth
from spear_np.factors.signs import fit_known, fit_signs, sign_model
from spear_np.search.completion import Completion
from tests.backends import Backend, assert_array
from tests.layers import true_directions
from tests.networks import LayerData, digit_batch
from tests.pools import frozen, pool_of, reached
from tests.promises import broken_promises, truth_of

CEILING = 6.0


def layer(
    b: int, *, width: int, spread: float, centre: float, seed: int, dtype: Any = np.float32
) -> LayerData:
    """Return a layer on b digits whose pre-activations have the standard deviation `spread` around `centre`."""
    rng = np.random.default_rng(seed)
    inputs = digit_batch(b, seed=seed)[0].astype(dtype)
    weight = rng.standard_normal((width, inputs.shape[1]))
    weight = (weight * spread / np.std(inputs @ weight.T)).astype(dtype)
    bias = (centre + 0.3 * spread * rng.standard_normal(width)).astype(dtype)
    z = inputs @ weight.T + bias
    output_grad = np.where((z > 0) & (z < CEILING), rng.standard_normal(z.shape), 0).astype(dtype)
    return LayerData(
        weight_grad=output_grad.T @ inputs,
        bias_grad=output_grad.sum(axis=0),
        weight=weight,
        bias=bias,
        inputs=inputs,
        output_grad=output_grad.T.copy(),
    )


def above(data: LayerData) -> float:
    """Share of the units that are above the ceiling."""
    return float(np.mean(data.inputs @ data.weight.T + data.bias > CEILING))


def factors_of(data: LayerData, backend: Backend) -> Factors:
    factors = factorize(backend.gradients(data, activation="relu6"), backend.device)
    assert isinstance(factors, Factors)
    return factors


def inverted(data: LayerData, **options: Any) -> spear_np.Inversion:
    return spear_np.invert(
        data.weight_grad, data.bias_grad, weight=data.weight, bias=data.bias, activation="relu6", **options
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("b", "width", "spread", "centre", "least"),
    [
        (4, 60, 6, 9, 0.5),
        (8, 100, 8, 0, 0.2),
        (12, 150, 3, 6, 0.4),
        (20, 200, 4, 3, 0.2),
        (30, 200, 8, 6, 0.4),
        (40, 200, 6, 2, 0.15),
    ],
)
def test_batches_with_many_units_above_six_are_found_whole(
    b: int, width: int, spread: float, centre: float, least: float, seed: int
) -> None:
    data = layer(b, width=width, spread=spread, centre=centre, seed=700 + seed)
    assert above(data) > least
    result = inverted(data, time_limit=60)
    assert result.status in (Status.EXACT, Status.APPROXIMATE), result.reason
    assert result.found == b
    assert broken_promises(result, truth_of(data, 1e-9)) == []


def test_without_the_ceiling_such_a_batch_is_never_exact() -> None:
    data = layer(8, width=100, spread=8, centre=0, seed=710)
    plain = spear_np.invert(
        data.weight_grad, data.bias_grad, weight=data.weight, bias=data.bias, time_limit=20
    )
    assert plain.status is not Status.EXACT


@pytest.mark.parametrize("ceiling", [6.0, math.inf])
def test_the_depth_of_a_unit_is_positive_where_it_is_off(backend: Backend, ceiling: float) -> None:
    z = np.asarray([-2.0, 0.5, 3.0, 5.5, 8.0])
    wanted = np.asarray([2.0, -0.5, -3.0, -0.5, 2.0] if ceiling == 6 else [2.0, -0.5, -3.0, -5.5, -8.0])
    assert_array(depth(backend.array(z), ceiling), wanted, backend)


class TestSigns:
    @pytest.mark.parametrize(("spread", "centre"), [(0.5, 0), (3, 3), (6, 0), (8, 6)])
    def test_patterns_of_inputs_are_told_from_others(
        self, backend: Backend, spread: float, centre: float
    ) -> None:
        data = layer(12, width=200, spread=spread, centre=centre, seed=720)
        factors = factors_of(data, backend)
        space, model = factors.space, sign_model(factors)
        assert model is not None
        truth = true_directions(factors, data.inputs)
        agreement, coordinates = fit_signs(space, model, ~space.zeros(backend.array(truth)))
        assert np.mean(agreement) > 0.96
        mixed, _ = fit_signs(space, model, ~space.zeros(backend.array(truth[:6] + truth[6:])))
        assert np.mean(agreement) > np.mean(mixed) + 0.05
        expected = np.linalg.inv(truth / backend.host(space.S)).T
        cosine = np.sum(coordinates * expected, axis=1)
        cosine /= np.linalg.norm(coordinates, axis=1) * np.linalg.norm(expected, axis=1)
        assert np.median(cosine) > 0.97

    def test_known_inputs_are_fitted_together(self, backend: Backend) -> None:
        data = layer(12, width=200, spread=6, centre=2, seed=721)
        factors = factors_of(data, backend)
        space, model = factors.space, sign_model(factors)
        assert model is not None
        truth = true_directions(factors, data.inputs)[:7]
        y = truth / backend.host(space.S)
        y /= np.linalg.norm(y, axis=1, keepdims=True)
        complement = orthogonal_complement(space.xp, backend.array(y.T))
        dual = backend.array(np.linalg.solve(y @ y.T, y))
        fitted = backend.host(fit_known(space, model, complement, dual, ~space.zeros(backend.array(truth))))
        expected = np.linalg.inv(true_directions(factors, data.inputs) / backend.host(space.S)).T[:7]
        cosine = np.sum(fitted * expected, axis=1)
        cosine /= np.linalg.norm(fitted, axis=1) * np.linalg.norm(expected, axis=1)
        assert np.min(cosine) > 0.98


class TestTheLastInput:
    """Few units are below zero, but many above six: all of them are off and tell the direction."""

    DATA = layer(6, width=80, spread=3, centre=5, seed=730)

    def test_both_kinds_of_units_are_counted(self) -> None:
        factors = factors_of(self.DATA, Backend.NUMPY)
        pool = pool_of(factors, true_directions(factors, self.DATA.inputs)[1:])
        z = self.DATA.inputs[0] @ self.DATA.weight.T + self.DATA.bias
        live = factors.space.live
        assert np.sum(z[live] < 0) < 6
        assert units_off_last(factors, pool) == np.sum((z[live] < 0) | (z[live] > CEILING)) > 20

    def test_its_direction_follows_from_the_others(self, backend: Backend) -> None:
        factors = factors_of(self.DATA, backend)
        truth = true_directions(factors, self.DATA.inputs)
        candidates = repair_candidates(factors, pool_of(factors, truth[1:]), None)
        assert reached(factors, backend.host(candidates), truth) == {0}

    def test_completion_finds_the_last_two(self) -> None:
        factors = factors_of(self.DATA, Backend.NUMPY)
        truth = true_directions(factors, self.DATA.inputs)
        completion = Completion.prepare(factors, sign_model(factors))
        assert completion is not None
        pool, rng, left = frozen(pool_of(factors, truth[2:])), np.random.default_rng(3), {0, 1}
        for _ in range(20):
            found = completion.propose(factors.space, pool, rng).candidates
            left -= reached(factors, np.asarray(found), truth)
        assert not left
