"""The scale of inputs where only bias_grad tells it is held against what the outputs say under cross-entropy."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

import spear_np
from spear_np import LayerGradients
from tests.backends import values_of
from tests.networks import Floats, digit_batch

B, WIDTHS = 12, (64, 60, 60, 10)


def scaled_network(
    factor: float, *, dtype: Any = np.float32, smoothing: float = 0.0
) -> tuple[Floats, tuple[LayerGradients, ...]]:
    """Inputs and gradients of a network without biases, every bias_grad times `factor`; labels may be smoothed."""
    rng = np.random.default_rng(17)
    inputs, labels = digit_batch(B, seed=3)
    a, seen, pre, weights = inputs.astype(dtype), [], [], []
    for n, m in pairwise(WIDTHS):
        weights.append((rng.uniform(-1.7, 1.7, (m, n)) / np.sqrt(n)).astype(dtype))
        seen.append(a)
        pre.append(a @ weights[-1].T)
        a = np.maximum(pre[-1], 0)
    odds = np.exp(pre[-1] - np.max(pre[-1], axis=1, keepdims=True))
    wanted = (1 - smoothing) * np.eye(10)[labels % 10] + smoothing / 10
    d = ((odds / odds.sum(axis=1, keepdims=True) - wanted) / B).astype(dtype)
    layers: list[LayerGradients] = []
    for number in reversed(range(len(weights))):
        zeros = np.zeros(len(weights[number]), dtype=dtype)
        sigma = "none" if number == len(weights) - 1 else "relu"
        bias_grad = (factor * d.sum(axis=0)).astype(dtype)
        layers.insert(0, LayerGradients(d.T @ seen[number], bias_grad, weights[number], zeros, sigma))
        if number:
            d = (d @ weights[number]) * (pre[number - 1] > 0)
    return inputs, tuple(layers)


def inverted(layers: tuple[LayerGradients, ...], loss: str | None = "cross_entropy") -> spear_np.Inversion:
    return spear_np.invert_chain(layers, method="chain", loss=loss, time_limit=30)


def mentions_scale(answer: spear_np.Inversion) -> bool:
    return any("scaled alike" in caveat for caveat in answer.certificate.caveats)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("loss", ["cross_entropy", None])
def test_outputs_confirm_the_scale_of_true_gradients(dtype: Any, loss: str | None) -> None:
    _, layers = scaled_network(1.0, dtype=dtype)
    answer = inverted(layers, loss)
    assert answer.status is spear_np.Status.EXACT
    assert answer.certificate["scale"].passed
    assert not mentions_scale(answer)


@pytest.mark.parametrize("factor", [0.1, 0.99, 1.001, 2.0])
def test_another_factor_of_all_bias_gradients_is_seen(factor: float) -> None:
    inputs, layers = scaled_network(factor)
    answer = inverted(layers)
    close = abs(factor - 1) < 0.1  # rows that may be off by a third of the range are not handed out
    assert answer.status is (spear_np.Status.APPROXIMATE if close else spear_np.Status.FAILED)
    assert ("scale" if close else f"{factor:.4g} times") in answer.reason
    if not close:
        return
    assert answer.certificate["scale"].value == pytest.approx(abs(factor - 1), rel=3e-2)
    rows = np.asarray(answer.inputs)
    errors = np.min(np.max(np.abs(rows[:, None, :] - inputs[None, :, :] / factor), axis=2), axis=1)
    assert np.max(errors) < 1e-4 * np.ptp(inputs) / factor  # what comes back is a multiple of the inputs
    own = np.abs(1 - factor) * np.max(np.abs(rows), axis=1)
    assert np.all(np.asarray(answer.certificate.error_bound) >= own * 0.999)


def test_gradients_of_another_loss_tell_no_scale() -> None:
    _, layers = scaled_network(1.0)
    answer = inverted(layers, "mse")
    assert answer.status is spear_np.Status.APPROXIMATE
    assert mentions_scale(answer)
    assert answer.certificate["scale"].value == np.inf


def test_smoothed_labels_are_not_taken_for_another_scale() -> None:
    _, layers = scaled_network(1.0, smoothing=0.3)
    answer = inverted(layers)
    assert answer.status is spear_np.Status.EXACT
    assert answer.certificate["scale"].passed


def test_biases_tell_the_scale_themselves() -> None:
    _, layers = scaled_network(1.0)
    small = replace(layers[0], bias=values_of(layers[0].bias) + np.float32(1e-30))
    answer = inverted((small, *layers[1:]))
    with pytest.raises(KeyError):
        answer.certificate["scale"]
