"""Directions that the layer asks for, where noise hides which gradients are zero."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from spear_np.directions.disaggregate import Disaggregation, disaggregate
from spear_np.directions.repair import realigned
from spear_np.factors.factorize import Factors
from tests.backends import Backend
from tests.layers import digit_layer, factors_of, true_directions
from tests.networks import Floats, LayerData

B = 10


def noisy(data: LayerData, level: float, seed: int) -> LayerData:
    """Return the layer with Gaussian noise of `level` times the root mean square of weight_grad in all entries."""
    rng = np.random.default_rng(seed)
    size = level * np.sqrt(np.mean(data.weight_grad**2))
    changes = {
        name: (values + size * rng.standard_normal(values.shape)).astype(np.float32)
        for name, values in (("weight_grad", data.weight_grad), ("bias_grad", data.bias_grad))
    }
    return replace(data, weight_grad=changes["weight_grad"], bias_grad=changes["bias_grad"])


def turned(factors: Factors, truth: Floats, which: int, angle: float, seed: int) -> Disaggregation:
    """The true choice with one direction turned by `angle` radians, away from every other."""
    q = truth / np.linalg.norm(truth, axis=1, keepdims=True)
    aside = np.random.default_rng(seed).standard_normal(B)
    aside -= (aside @ q[which]) * q[which]
    q[which] = np.cos(angle) * q[which] + np.sin(angle) * aside / np.linalg.norm(aside)
    return disaggregate(factors, factors.space.device.float64(q))


def angle_to(factors: Factors, choice: Disaggregation, truth: Floats, which: int, backend: Backend) -> float:
    """Angle of a direction of `choice` to the true one, in radians."""
    q = backend.host(choice.q)[which]
    cosine = abs(q @ truth[which]) / np.linalg.norm(q) / np.linalg.norm(truth[which])
    return float(np.arccos(min(1.0, cosine)))


@pytest.mark.parametrize("seed", range(700, 704))
def test_a_direction_that_is_off_comes_back(backend: Backend, seed: int) -> None:
    data = digit_layer(B, width=150, seed=seed)
    factors = factors_of(noisy(data, 3e-3, seed), backend)
    truth = true_directions(factors, data.inputs)
    choice = turned(factors, truth, seed % B, 0.3, seed)
    better = realigned(factors, choice)
    assert (better.mean_agreement() or 0) > (choice.mean_agreement() or 0)
    # As near as the noise lets any direction come.
    noise = float(factors.space.angle_noise(factors.space.device.float64(truth[seed % B : seed % B + 1]))[0])
    assert angle_to(factors, better, truth, seed % B, backend) < noise


def test_agreement_never_falls(backend: Backend) -> None:
    data = digit_layer(B, width=150, seed=704)
    factors = factors_of(noisy(data, 3e-2, 704), backend)
    truth = true_directions(factors, data.inputs)
    for which, angle in enumerate(np.linspace(0.0, 1.5, B)):
        choice = turned(factors, truth, which, float(angle), which)
        assert (realigned(factors, choice).mean_agreement() or 0) >= (choice.mean_agreement() or 0)


def test_without_the_layer_a_choice_stays_as_it_is(backend: Backend) -> None:
    data = digit_layer(B, width=150, seed=705)
    factors = factors_of(data, backend, weight=None, bias=None)
    choice = disaggregate(factors, factors.space.device.float64(true_directions(factors, data.inputs)))
    assert realigned(factors, choice) is choice
