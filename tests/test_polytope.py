"""Inputs of an incomplete batch: every bound holds against the truth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from spear_np.inputs.polytope import PartialInputs, bound_inputs
from tests.backends import Backend
from tests.layers import digit_layer, factors_of, layer_data_of, true_directions
from tests.networks import Floats, LayerData

B, WIDTH = 8, 150


def known_only(
    data: LayerData, backend: Backend, known: list[int], *, scale: float = 1.0, **changes: Any
) -> tuple[PartialInputs, Floats]:
    """Bound the inputs of the true directions `known`; returns the bounds and the estimated inputs (k, n)."""
    factors = factors_of(data, backend, **changes)
    q = scale * true_directions(factors, data.inputs)[known]
    bounded = bound_inputs(factors, backend.array(q))
    V = data.weight_grad.astype(np.float64).T @ backend.host(factors.space.to_basis)
    return bounded, bounded.coordinates @ V.T


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("seed", [140, 141, 142])
def test_with_two_directions_withheld_every_row_is_within_its_bound(
    backend: Backend, dtype: Any, seed: int
) -> None:
    data = digit_layer(B, width=WIDTH, seed=seed, dtype=dtype)
    for withheld in ((0, 1), (3, 6), (2, 7)):
        known = [index for index in range(B) if index not in withheld]
        bounded, inputs = known_only(data, backend, known)
        assert len(bounded.which) == B - 2
        errors = np.max(np.abs(inputs - data.inputs[known]), axis=1)
        assert np.all(errors <= bounded.error_bound)
        assert np.all(bounded.error_bound < 2)  # of a range of one: a bound that tells something


@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1e6, 1e12])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_length_of_a_direction_means_nothing(dtype: Any, scale: float) -> None:
    data = digit_layer(B, width=WIDTH, seed=143, dtype=dtype)
    known = [0, 1, 2, 4, 5, 7]
    plain, _ = known_only(data, Backend.NUMPY, known)
    scaled, inputs = known_only(data, Backend.NUMPY, known, scale=scale)
    np.testing.assert_array_equal(scaled.which, plain.which)
    errors = np.max(np.abs(inputs - data.inputs[known]), axis=1)
    assert np.all(errors <= scaled.error_bound)
    # The axes of the boxes are free to turn, so the bounds may differ a little.
    np.testing.assert_allclose(scaled.error_bound, plain.error_bound, rtol=0.5)


def test_more_known_directions_leave_less_room() -> None:
    data = digit_layer(B, width=WIDTH, seed=144)
    bounds = []
    for count in (1, 3, 5, 7):
        bounded, inputs = known_only(data, Backend.NUMPY, [*range(count)])
        errors = np.max(np.abs(inputs - data.inputs[:count]), axis=1)
        assert np.all(errors <= bounded.error_bound)
        bounds.append(bounded.error_bound[0])
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[-1] < 0.5 * bounds[0]


@pytest.mark.parametrize("active", [0.2, 0.8])
@pytest.mark.parametrize("seed", [145, 146])
def test_bounds_hold_where_few_or_most_units_are_on(active: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    data = layer_data_of(digit_layer(6, width=10, seed=seed).inputs, rng, width=WIDTH, active=active)
    bounded, inputs = known_only(data, Backend.NUMPY, [0, 2, 3, 5])
    errors = np.max(np.abs(inputs - data.inputs[[0, 2, 3, 5]][bounded.which]), axis=1, initial=0.0)
    assert np.all(errors <= bounded.error_bound)


def test_a_bias_grad_that_the_batch_does_not_explain_gives_no_bounds() -> None:
    # An input of zeros leaves no trace in weight_grad, but one in bias_grad.
    rng = np.random.default_rng(147)
    inputs = digit_layer(B, width=10, seed=147).inputs.copy()
    inputs[0] = 0
    data = layer_data_of(inputs, rng, width=WIDTH)
    seen = LayerData(**(vars(data) | {"inputs": inputs[1:], "output_grad": data.output_grad[:, 1:]}))
    bounded, estimates = known_only(seen, Backend.NUMPY, [0, 1, 2, 4, 5])
    errors = np.max(np.abs(estimates - seen.inputs[[0, 1, 2, 4, 5]][bounded.which]), axis=1, initial=0.0)
    assert np.all(errors <= bounded.error_bound)


@pytest.mark.parametrize("missing", [{"bias_grad": None}, {"weight": None, "bias": None}])
def test_without_signs_or_scale_nothing_is_bounded(backend: Backend, missing: dict[str, Any]) -> None:
    data = digit_layer(B, width=WIDTH, seed=148)
    bounded, _ = known_only(data, backend, [0, 1, 2], **missing)
    assert len(bounded.which) == len(bounded.error_bound) == 0
    assert bounded.coordinates.shape == (0, B)


def test_with_too_much_missing_nothing_is_bounded() -> None:
    data = digit_layer(30, width=400, seed=149)
    bounded, _ = known_only(data, Backend.NUMPY, [0, 1])
    assert len(bounded.which) == 0


def test_no_directions_give_no_inputs(backend: Backend) -> None:
    data = digit_layer(B, width=WIDTH, seed=150)
    bounded, _ = known_only(data, backend, [])
    assert len(bounded.which) == 0
