from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

import spear_np
from spear_np import theory
from tests.backends import Backend
from tests.chains import digit_network
from tests.layers import digit_layer


def test_it_tells_rank_noise_and_cost(backend: Backend) -> None:
    data = digit_layer(6, width=80, seed=50)
    found = spear_np.survey(backend.gradients(data))
    assert (found.shape, found.precision, found.batch_size) == ((80, 64), "float32", 6)
    assert not found.full_rank
    assert found.problem is None
    assert 1e-8 < found.relative_noise < 1e-6
    assert found.gap > 100
    assert found.plausible_batch_sizes == (6, 6)
    assert list(found.singular_values) == sorted(found.singular_values, reverse=True)
    assert len(found.singular_values) == 64
    live = int(np.sum(np.any(data.weight_grad != 0, axis=1)))
    assert found.expected_submatrices == pytest.approx(theory.expected_submatrices(live, 6))
    assert found.seconds_per_million is not None
    assert found.expected_submatrices is not None
    assert found.forecast_seconds == pytest.approx(
        found.expected_submatrices * found.seconds_per_million / 1e6
    )


def test_noise_near_the_last_singular_value_leaves_an_interval() -> None:
    data = digit_layer(12, width=120, seed=55)
    rng = np.random.default_rng(55)
    for share, most in ((1e-3, 1), (0.5, 12)):
        values = np.linalg.svd(data.weight_grad.astype(np.float64), compute_uv=False)
        size = share * values[11] / (np.sqrt(120) + np.sqrt(64))
        noisy = data.weight_grad + size * rng.standard_normal(data.weight_grad.shape)
        found = spear_np.survey(spear_np.LayerGradients(noisy.astype(np.float32)))
        assert found.plausible_batch_sizes is not None
        least, largest = found.plausible_batch_sizes
        assert least <= 12 <= largest
        assert largest - least < most
        assert (least < largest) == (share > 0.1)


def test_a_given_batch_size_is_surveyed() -> None:
    data = digit_layer(6, width=80, seed=51)
    found = spear_np.survey(Backend.NUMPY.gradients(data), batch_size=5)
    assert found.batch_size == 5


@pytest.mark.parametrize("weight", [True, False])
def test_neither_weight_nor_bias_grad_is_needed(weight: bool) -> None:
    data = digit_layer(3, width=80, seed=52)
    layer = spear_np.LayerGradients(data.weight_grad, weight=data.weight if weight else None)
    assert spear_np.survey(layer).batch_size == 3


def test_a_full_rank_is_a_problem_and_has_no_forecast(backend: Backend) -> None:
    values = np.random.default_rng(53).standard_normal((20, 30))
    found = spear_np.survey(spear_np.LayerGradients(backend.array(values)))
    assert found.full_rank
    assert found.batch_size is None
    assert math.isnan(found.relative_noise)
    assert found.expected_submatrices is found.seconds_per_million is found.forecast_seconds is None
    assert found.problem is not None
    assert "weight_grad (20 x 30) has full rank 20" in found.problem
    assert "such a batch cannot be inverted" in found.problem


def test_a_gradient_of_zeros_is_a_problem() -> None:
    found = spear_np.survey(spear_np.LayerGradients(np.zeros((20, 30), np.float32)))
    assert found.batch_size is None
    assert not found.full_rank
    assert found.problem == "weight_grad is zero everywhere: it holds no trace of an input"


def test_an_impossible_search_is_forecast_as_endless() -> None:
    found = spear_np.survey(spear_np.LayerGradients(digit_layer(40, width=60, seed=54).weight_grad))
    assert found.batch_size == 40
    assert found.expected_submatrices == found.forecast_seconds == math.inf


def test_what_is_no_number_is_refused() -> None:
    values = np.ones((4, 5))
    values[1, 2] = np.nan
    with pytest.raises(spear_np.InputError, match="holds NaN"):
        spear_np.survey(spear_np.LayerGradients(values))


@pytest.mark.parametrize(
    "activation", ["gelu", "none", spear_np.Activation("leaky_relu", {"negative_slope": 0.2})]
)
def test_rank_and_noise_do_not_depend_on_the_activation(activation: str | spear_np.Activation) -> None:
    rng = np.random.default_rng(56)
    output_grad = rng.standard_normal((40, 5)) * (rng.random((40, 5)) < 0.5)
    gradient = (output_grad @ rng.standard_normal((5, 30))).astype(np.float32)
    relu = spear_np.survey(spear_np.LayerGradients(gradient))
    found = spear_np.survey(spear_np.LayerGradients(gradient, activation=activation))
    assert (found.batch_size, found.relative_noise, found.gap) == (5, relu.relative_noise, relu.gap)
    assert found.expected_submatrices is found.seconds_per_million is found.forecast_seconds is None
    assert relu.problem is None
    assert found.problem is not None
    assert "only a ReLU leaves the zeros" in found.problem


def test_a_full_rank_is_the_problem_whatever_the_activation() -> None:
    values = np.random.default_rng(57).standard_normal((20, 30))
    found = spear_np.survey(spear_np.LayerGradients(values, activation="gelu"))
    assert found.problem is not None
    assert "full rank 20" in found.problem


@pytest.mark.parametrize("activation", ["gelu", "tanh", "leaky_relu", "none"])
def test_what_was_taken_for_a_relu_is_no_layer_to_invert(activation: str) -> None:
    data = digit_network(6, seed=58, activation=activation, widths=(90, 90)).layers[0]
    found = spear_np.survey(replace(data, activation="relu"))
    assert found.batch_size == 6
    assert found.zeros_seen is False
    assert found.problem is not None
    assert "something else than a ReLU follows this layer" in found.problem


def test_a_relu_shows_its_zeros() -> None:
    found = spear_np.survey(digit_network(6, seed=58, widths=(90, 90)).layers[0])
    assert found.zeros_seen is True
    assert found.problem is None
    assert not found.crowds_zeros


def test_a_batch_that_crowds_the_units_is_no_layer_to_invert() -> None:
    rng = np.random.default_rng(59)
    gradient = rng.standard_normal((300, 200)) @ rng.standard_normal((200, 400))
    found = spear_np.survey(spear_np.LayerGradients(gradient))
    assert (found.batch_size, found.zeros_seen, found.crowds_zeros) == (200, False, True)
    assert found.problem is not None
    assert found.problem.startswith("a batch of 200 is too large for the zeros of 300 units")
