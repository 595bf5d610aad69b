"""Behind dropout: zeros of ∂L/∂Z that the layer does not explain, and masks that nobody knows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import spear_np
from spear_np import Status
from spear_np.backend.host import to_host
from spear_np.directions.disaggregate import disaggregate
from spear_np.directions.pool import Pool
from spear_np.factors.factorize import Factors
from spear_np.factors.signs import SignModel, fit_signs, sign_model
from spear_np.inputs.partial import partial_inputs
from spear_np.search.descent import Descent
from tests.backends import Backend
from tests.layers import digit_layer, factors_of, true_directions
from tests.networks import LayerData
from tests.pools import candidates_of

B, WIDTH = 16, 200
SMALL = 10
"""Inputs of the batches that are inverted."""


def dropped_out(b: int, *, rate: float, seed: int, width: int = WIDTH) -> LayerData:
    """Return a layer whose units were dropped for each input with probability `rate`."""
    data = digit_layer(b, width=width, seed=seed)
    kept = np.random.default_rng(seed).random(data.output_grad.shape) >= rate
    output_grad = data.output_grad.astype(np.float64) * kept / (1 - rate)
    return replace(
        data,
        output_grad=output_grad.astype(np.float32),
        weight_grad=(output_grad @ data.inputs.astype(np.float64)).astype(np.float32),
        bias_grad=output_grad.sum(axis=1).astype(np.float32),
    )


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.2, 0.5])
@pytest.mark.parametrize("seed", range(860, 864))
def test_all_inputs_are_found_within_their_bounds(seed: int, rate: float) -> None:
    data = dropped_out(SMALL, rate=rate, seed=seed)
    result = spear_np.invert(
        data.weight_grad, data.bias_grad, weight=data.weight, bias=data.bias, time_limit=30
    )
    assert result.status is Status.APPROXIMATE, result.reason
    assert "sign agreement" in result.reason
    distance = np.abs(np.asarray(result.inputs)[:, None, :] - data.inputs[None]).max(axis=2)
    assert sorted(distance.argmin(axis=1)) == list(range(SMALL))
    assert np.all(distance.min(axis=1) <= result.certificate.error_bound)
    assert np.max(distance.min(axis=1)) < 1e-3


def test_lenient_agreement_is_whole_for_the_truth_and_not_for_mixtures(backend: Backend) -> None:
    data = dropped_out(B, rate=0.3, seed=865)
    factors = factors_of(data, backend)
    q = true_directions(factors, data.inputs)
    strict, lenient = (
        disaggregate(factors, factors.space.device.float64(q), lenient=lenient) for lenient in (False, True)
    )
    assert (strict.mean_agreement() or 1) < 0.95
    assert lenient.mean_agreement() == 1
    q[0] += q[1]
    mixed = disaggregate(factors, factors.space.device.float64(q), lenient=True)
    assert to_host(mixed.sign_agreement)[0] < 0.9


def pool_behind(rate: float) -> tuple[Factors, SignModel, Pool]:
    """Return a layer behind dropout, and the pool of its true directions with what the layer says of them."""
    data = dropped_out(B, rate=rate, seed=866)
    factors = factors_of(data, Backend.NUMPY)
    model = sign_model(factors)
    assert model is not None
    q = true_directions(factors, data.inputs)
    agreement, _ = fit_signs(factors.space, model, ~factors.space.zeros(factors.space.device.float64(q)))
    pool = Pool.empty(B, factors.space.U.shape[0]).merge(candidates_of(factors, q, agreement))
    return factors, model, pool


def test_dropout_shows_in_the_pool() -> None:
    assert pool_behind(0.0)[2].unexplained == 0
    assert pool_behind(0.5)[2].unexplained == 1
    assert Pool.empty(4, 10).unexplained == 0


def test_what_rests_on_single_rows_is_not_unexplained() -> None:
    pool = pool_behind(0.5)[2]
    resting = replace(pool, rests_on_one_row=np.ones_like(pool.rests_on_one_row))
    assert resting.unexplained == 0
    assert not resting.trusted_without_signs


def test_descent_relies_on_what_the_layer_cannot_explain_only_without_its_signs() -> None:
    factors, model, pool = pool_behind(0.5)
    descent = Descent.prepare(factors.space, model)
    rng = np.random.default_rng(866)
    assert not len(descent._trusted(pool, rng, mistrusted=False))
    assert len(descent._trusted(pool, rng, mistrusted=True)) == B - 1


@pytest.mark.parametrize("missing", [1, 2])
@pytest.mark.parametrize(("rate", "seed"), [(0, 871), (0.01, 871), (0.01, 876), (0.01, 878), (0.02, 874)])
def test_bounds_hold_where_gradients_are_missing_without_a_reason(
    rate: float, seed: int, missing: int
) -> None:
    data = dropped_out(B, rate=rate, seed=seed)
    factors = factors_of(data, Backend.NUMPY)
    known = true_directions(factors, data.inputs)[missing:]
    bounded = partial_inputs(factors, factors.space.device.float64(known))
    assert len(bounded.which) == (0 if rate else B - missing)
    basis = data.weight_grad.astype(np.float64).T @ to_host(factors.space.to_basis)
    error = np.abs(bounded.coordinates @ basis.T - data.inputs[missing:][bounded.which]).max(axis=1)
    assert np.all(error <= bounded.error_bound)
