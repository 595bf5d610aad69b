"""What noise, compression, several steps and other activations leave: all inputs, within their stated bounds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import spear_np
from spear_np import Inversion, Status
from tests.layers import digit_layer, layer_data_of, with_bias
from tests.networks import Floats, LayerData

B, WIDTH = 8, 150


def answer(data: LayerData, **changes: Any) -> Inversion:
    arguments = {name: getattr(data, name) for name in ("weight_grad", "bias_grad", "weight", "bias")}
    return spear_np.invert(**(arguments | changes), time_limit=30)


def assert_all_found(result: Inversion, inputs: Floats, status: Status = Status.APPROXIMATE) -> Floats:
    """Fail unless every input is there, each within its bound; returns their PSNR in dB."""
    assert result.status is status, result.reason
    distance = np.abs(np.asarray(result.inputs)[:, None, :] - inputs[None]).max(axis=2)
    partner = distance.argmin(axis=1)
    assert sorted(partner) == list(range(len(inputs)))
    assert np.all(distance.min(axis=1) <= result.certificate.error_bound)
    error = np.mean((np.asarray(result.inputs) - inputs[partner]) ** 2, axis=1)
    psnr: Floats = 10 * np.log10(np.ptp(inputs) ** 2 / error)
    return psnr


@pytest.mark.parametrize(("level", "least"), [(1e-4, 70), (1e-3, 50), (1e-2, 30)])
@pytest.mark.parametrize("seed", [620, 621])
def test_gaussian_noise(seed: int, level: float, least: float) -> None:
    data = digit_layer(B, width=WIDTH, seed=seed)
    rng = np.random.default_rng(seed)
    size = level * np.sqrt(np.mean(data.weight_grad.astype(np.float64) ** 2))
    noisy = {
        name: getattr(data, name) + size * rng.standard_normal(getattr(data, name).shape)
        for name in ("weight_grad", "bias_grad")
    }
    assert np.min(assert_all_found(answer(data, **noisy), data.inputs)) > least


@pytest.mark.parametrize("seed", range(640, 644))
def test_columns_of_a_network_that_is_sure_of_most_inputs(seed: int) -> None:
    data = digit_layer(B, width=WIDTH, seed=seed)
    faint = data.output_grad * 10.0 ** -np.random.default_rng(seed).uniform(0, 5, B)
    weight_grad = (faint @ data.inputs.astype(np.float64)).astype(np.float32)
    result = answer(data, weight_grad=weight_grad, bias_grad=faint.sum(axis=1).astype(np.float32))
    assert result.found == B, result.reason
    distance = np.abs(np.asarray(result.inputs)[:, None, :] - data.inputs[None]).max(axis=2)
    assert sorted(distance.argmin(axis=1)) == list(range(B))
    assert np.all(distance.min(axis=1) <= result.certificate.error_bound)
    assert np.max(distance.min(axis=1)) < 1e-2


@pytest.mark.parametrize(("bits", "least"), [(12, 60), (8, 35)])
def test_quantisation(bits: int, least: float) -> None:
    # Pixels that are seldom used would leave the rounded gradient with exactly zero columns, and a rank of its own.
    rng = np.random.default_rng(622)
    data = layer_data_of(rng.random((B, 100)), rng, width=WIDTH)
    rough = {}
    for name in ("weight_grad", "bias_grad"):
        values = getattr(data, name)
        step = np.max(np.abs(values)) / (2 ** (bits - 1) - 1)
        rough[name] = (np.rint(values / step) * step).astype(np.float32)
    assert np.min(assert_all_found(answer(data, **rough), data.inputs)) > least


@pytest.mark.parametrize("drift", [1e-3, 1e-2])
def test_several_steps_in_one_update(drift: float) -> None:
    """The biases move a little from step to step, and with them the units that are on."""
    data = digit_layer(B, width=WIDTH, seed=623)
    rng = np.random.default_rng(623)
    spread = np.std(data.inputs @ data.weight.T)
    steps = [with_bias(data, data.bias + k * drift * spread, rng) for k in range(5)]
    total = {
        name: np.sum([getattr(step, name) for step in steps], axis=0) for name in ("weight_grad", "bias_grad")
    }
    assert np.min(assert_all_found(answer(data, **total), data.inputs)) > 100


def test_relu6() -> None:
    data = digit_layer(B, width=WIDTH, seed=625)
    rng = np.random.default_rng(625)
    # Pre-activations that go well beyond six.
    data = replace(data, weight=data.weight * np.float32(8 / np.std(data.inputs @ data.weight.T)))
    z = data.inputs @ data.weight.T + data.bias
    output_grad = np.where((z > 0) & (z < 6), rng.standard_normal(z.shape), 0).astype(np.float32)
    assert np.mean(z > 6) > 0.1
    data = replace(
        data,
        output_grad=output_grad.T.copy(),
        weight_grad=output_grad.T @ data.inputs,
        bias_grad=output_grad.sum(axis=0),
    )
    assert_all_found(answer(data, activation="relu6"), data.inputs, Status.EXACT)
    assert answer(data).status is not Status.EXACT


@pytest.mark.parametrize("activation", ["leaky_relu", "gelu"])
def test_activations_that_leave_no_zeros_are_refused(activation: str) -> None:
    with pytest.raises(spear_np.InputError, match="only a ReLU leaves the zeros"):
        answer(digit_layer(3, width=60, seed=626), activation=activation)
