"""Inputs of batches that are known in part: faint rests, withheld directions, and bounds that hold."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from spear_np.factors.factorize import Factors
from spear_np.inputs.partial import partial_inputs
from tests.backends import Backend
from tests.layers import digit_layer, factors_of, true_directions
from tests.networks import Floats, LayerData


def fainter(data: LayerData, factor: float, count: int) -> LayerData:
    """Return the layer with the gradients of its last `count` inputs scaled down."""
    scale = np.ones(len(data.inputs))
    scale[-count:] = factor
    output_grad = (data.output_grad * scale).astype(np.float32)
    return replace(
        data,
        output_grad=output_grad,
        weight_grad=output_grad @ data.inputs,
        bias_grad=output_grad.sum(axis=1),
    )


def recovered(
    factors: Factors, data: LayerData, known: slice, backend: Backend
) -> tuple[Floats, Floats, Floats]:
    """Return which inputs are bounded, their errors and their bounds, when some true directions are known."""
    truth = true_directions(factors, data.inputs)[known]
    partial = partial_inputs(factors, factors.space.device.float64(truth))
    basis = data.weight_grad.astype(np.float64).T @ backend.host(factors.space.to_basis)
    errors = np.abs(partial.coordinates @ basis.T - data.inputs[known][partial.which]).max(axis=1)
    return partial.which, errors, partial.error_bound


@pytest.mark.parametrize("factor", [1e-4, 1e-6])
def test_faint_inputs_hardly_disturb_the_others(backend: Backend, factor: float) -> None:
    data = fainter(digit_layer(12, width=150, seed=600), factor, 2)
    which, errors, bounds = recovered(factors_of(data, backend), data, slice(0, 10), backend)
    assert list(which) == list(range(10))
    assert np.all(errors <= bounds)
    # Digits have values up to one.
    assert np.max(errors) < 10 * factor
    assert np.max(bounds) < 1000 * factor


@pytest.mark.parametrize("seed", range(601, 605))
def test_bounds_hold_where_the_rest_is_not_faint(seed: int) -> None:
    data = digit_layer(20, width=200, seed=seed)
    which, errors, bounds = recovered(factors_of(data, Backend.NUMPY), data, slice(5, 20), Backend.NUMPY)
    assert len(which) == 15
    assert np.all(errors <= bounds)


def test_without_bias_grad_or_weights_nothing_is_bounded(backend: Backend) -> None:
    data = fainter(digit_layer(6, width=100, seed=606), 1e-6, 1)
    for missing in ("bias_grad", "weight"):
        changes = {missing: None} | ({"bias": None} if missing == "weight" else {})
        factors = factors_of(data, backend, **changes)
        truth = true_directions(factors, data.inputs)[:5]
        assert not len(partial_inputs(factors, factors.space.device.float64(truth)).which)
