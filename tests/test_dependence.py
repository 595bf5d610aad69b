"""Columns that depend on each other by the structure of a network: only signs tell which directions are inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import spear_np
from spear_np import Status
from spear_np.checks.dependence import dependent_columns
from tests.backends import Backend
from tests.layers import digit_layer, factors_of, layer_data_of, true_directions
from tests.networks import LayerData
from tests.test_repair import noisy


def one_logit(seed: int, outputs: int = 1) -> LayerData:
    rng = np.random.default_rng(seed)
    return layer_data_of(
        rng.random((3, 64)), rng, width=40, outputs=outputs, loss="logistic", dtype=np.float64
    )


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("seed", range(880, 884))
def test_few_outputs_make_columns_dependent(backend: Backend, seed: int, outputs: int) -> None:
    data = one_logit(seed, outputs)
    factors = factors_of(data, backend)
    assert dependent_columns(
        factors.space, factors.space.device.float64(true_directions(factors, data.inputs))
    )


@pytest.mark.parametrize("level", [0.0, 1e-5, 1e-3])
@pytest.mark.parametrize("seed", range(884, 887))
def test_ten_outputs_do_not(backend: Backend, seed: int, level: float) -> None:
    data = noisy(digit_layer(8, width=200, seed=seed), level, seed)
    factors = factors_of(data, backend)
    assert not dependent_columns(
        factors.space, factors.space.device.float64(true_directions(factors, data.inputs))
    )


def test_without_weights_no_combination_is_handed_out() -> None:
    refused = 0
    for seed in range(887, 895):
        data = one_logit(seed)
        result = spear_np.invert(data.weight_grad, data.bias_grad, max_proposals=12_000)
        rows = np.asarray(result.inputs)
        errors = np.abs(rows[:, None, :] - data.inputs[None]).max(axis=2).min(axis=1)
        assert np.all(errors <= result.certificate.error_bound)
        assert np.all(errors <= 1e-3)
        refused += result.status is Status.FAILED and "inputs pass the checks of their own" in result.reason
    assert refused >= 2


def test_with_weights_the_signs_decide() -> None:
    exact = 0
    for seed in range(895, 901):
        data = one_logit(seed)
        arguments: dict[str, Any] = {"weight": data.weight, "bias": data.bias}
        result = spear_np.invert(data.weight_grad, data.bias_grad, **arguments, max_proposals=12_000)
        errors = np.abs(np.asarray(result.inputs)[:, None, :] - data.inputs[None]).max(axis=2).min(axis=1)
        assert np.all(errors <= result.certificate.error_bound)
        exact += result.status == "exact"
    assert exact >= 2
