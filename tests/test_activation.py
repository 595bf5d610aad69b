"""Every activation against PyTorch: values, slopes, kinks, limits, and parameters that are refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spear_np import ACTIVATIONS, Activation, InputError
from spear_np.factors.activation import PARAMETERS
from tests.backends import Backend, assert_array
from tests.networks import Floats

torch = pytest.importorskip("torch")
F = torch.nn.functional

SLOPES = np.linspace(0.05, 0.4, 41)
IN_TORCH = {
    "relu": (Activation("relu"), F.relu),
    "relu6": (Activation("relu6"), F.relu6),
    "leaky_relu": (Activation("leaky_relu", {"negative_slope": 0.2}), lambda z: F.leaky_relu(z, 0.2)),
    "prelu": (
        Activation("prelu", {"slope": SLOPES}),
        lambda z: torch.where(z > 0, z, torch.tensor(SLOPES) * z),
    ),
    "elu": (Activation("elu", {"alpha": 0.7}), lambda z: F.elu(z, 0.7)),
    "celu": (Activation("celu", {"alpha": 0.7}), lambda z: F.celu(z, 0.7)),
    "selu": (Activation("selu"), F.selu),
    "gelu": (Activation("gelu"), F.gelu),
    "gelu_tanh": (Activation("gelu_tanh"), lambda z: F.gelu(z, approximate="tanh")),
    "silu": (Activation("silu"), F.silu),
    "mish": (Activation("mish"), F.mish),
    "softplus": (Activation("softplus", {"beta": 2.0}), lambda z: F.softplus(z, 2.0, threshold=500)),
    "tanh": (Activation("tanh"), torch.tanh),
    "sigmoid": (Activation("sigmoid"), torch.sigmoid),
    "hardswish": (Activation("hardswish"), F.hardswish),
    "hardtanh": (Activation("hardtanh", {"low": -0.5, "high": 1.5}), lambda z: F.hardtanh(z, -0.5, 1.5)),
    "none": (Activation("none"), lambda z: z),
}


def grid() -> Floats:
    """(50, 41) pre-activations from tiny to large, of both signs, none of them at a kink."""
    magnitude = np.logspace(-6, 2.5, 25)[:, None] * np.linspace(0.9, 1.1, 41)[None, :]
    return np.concatenate([magnitude, -magnitude])


def test_every_activation_is_compared() -> None:
    assert set(IN_TORCH) == set(ACTIVATIONS)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_value_and_slope_are_those_of_pytorch(backend: Backend, name: str) -> None:
    activation, function = IN_TORCH[name]
    z = torch.tensor(grid(), requires_grad=True)
    expected = function(z)
    (slope,) = torch.autograd.grad(expected.sum(), z)
    array = backend.array(grid())
    for found, wanted in zip(activation.value_and_slope(array), (expected, slope), strict=True):
        assert_array(
            found, wanted.detach().numpy(), backend, rtol=1e-6, atol=1e-12
        )  # float32 constants in PyTorch


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_float32_stays_float32_and_is_accurate(name: str) -> None:
    activation, _ = IN_TORCH[name]
    single = activation.value_and_slope(grid().astype(np.float32))
    double = activation.value_and_slope(grid().astype(np.float32).astype(np.float64))
    for found, wanted in zip(single, double, strict=True):
        assert found.dtype == np.float32
        np.testing.assert_allclose(
            found, wanted, rtol=3e-6, atol=1e-6 * max(1.0, float(np.max(np.abs(wanted))))
        )


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_huge_pre_activations_give_limits(name: str) -> None:
    activation, _ = IN_TORCH[name]
    with np.errstate(all="raise", under="ignore"):
        for dtype, largest in ((np.float32, 1e30), (np.float64, 1e200)):
            z = np.full((2, 41), largest, dtype=dtype) * np.asarray([[1.0], [-1.0]], dtype=dtype)
            value, slope = activation.value_and_slope(z)
            assert np.all(np.isfinite(value))
            assert np.all(np.isfinite(slope))
            assert np.all(np.abs(slope) <= 1.1)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_slope_jumps_at_kinks_and_nowhere_else(name: str) -> None:
    activation, _ = IN_TORCH[name]
    z = np.linspace(-8, 8, 160_001)[:, None] + np.zeros((1, 41))
    _, slope = activation.value_and_slope(z + 5e-5)
    jumps = np.flatnonzero(np.max(np.abs(np.diff(slope, axis=0)), axis=1) > 1e-2)
    found = sorted({round(float(z[jump + 1, 0]), 3) for jump in jumps})
    assert found == pytest.approx(sorted(activation.kinks), abs=1e-3)


@given(st.sampled_from(["elu", "celu", "softplus", "leaky_relu"]), st.floats(0.05, 3.0), st.floats(-6.0, 6.0))
def test_the_slope_is_the_derivative(name: str, parameter: float, z: float) -> None:
    (key,) = PARAMETERS[name]
    activation = Activation(name, {key: parameter})
    step = 1e-6
    if any(abs(z - kink) < 2 * step for kink in activation.kinks):
        return
    around = np.asarray([z - step, z, z + step])
    value, slope = activation.value_and_slope(around)
    assert slope[1] == pytest.approx((value[2] - value[0]) / (2 * step), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        (
            "leaky_relu",
            {"negative_slope": math.nan},
            "'negative_slope' of 'leaky_relu' is nan, but must be a finite",
        ),
        ("elu", {"alpha": math.inf}, "'alpha' of 'elu' is inf, but must be a finite number"),
        ("elu", {"alpha": 0.0}, "'alpha' of 'elu' is 0, but must be above zero"),
        ("celu", {"alpha": -1.0}, "'alpha' of 'celu' is -1, but must be above zero"),
        ("softplus", {"beta": 0}, "'beta' of 'softplus' is 0, but must be above zero"),
        ("hardtanh", {"low": 1.0}, "low 1, high 1: low must be below high"),
        ("relu", {"slope": 0.1}, "'relu' has no parameter 'slope': it has none"),
        ("elu", {"beta": 1.0}, "'elu' has no parameter 'beta': it has alpha"),
        ("elu", {"alpha": "large"}, "'alpha' of 'elu' is 'large', but must be a finite number"),
        ("elu", {"alpha": np.ones(3)}, "'alpha' of 'elu' has shape (3,), but must be one number"),
        ("prelu", {"slope": np.ones((2, 3))}, "'slope' of 'prelu' has shape (2, 3), but must be one number"),
        (
            "prelu",
            {"slope": np.asarray([0.1, np.nan])},
            "'slope' of 'prelu' holds nan, but must be a finite number",
        ),
    ],
)
def test_parameters_out_of_range_are_refused(name: str, parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        Activation(name, parameters)
    assert message in str(caught.value)


def test_names_are_settled_and_shown() -> None:
    assert str(Activation("ReLU")) == "relu"
    assert Activation("linear") == Activation("identity") == Activation("none")
    assert str(Activation("leaky_relu")) == "leaky_relu"
    assert str(Activation("leaky_relu", {"negative_slope": 0.2})) == "leaky_relu(negative_slope=0.2)"
    assert str(Activation("prelu", {"slope": SLOPES})) == "prelu(slope=(41,))"
    assert Activation("elu") == Activation("elu", {"alpha": 1})
    assert Activation("elu") != Activation("elu", {"alpha": 2})
    assert Activation("prelu", {"slope": SLOPES}) == Activation("prelu", {"slope": SLOPES.copy()})


def test_an_unknown_activation_keeps_its_name() -> None:
    unknown = Activation("SquarePlus")
    assert not unknown.known
    assert unknown.name == str(unknown) == "SquarePlus"
    assert unknown.ceiling is None


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_curvature_is_that_of_pytorch(backend: Backend, name: str) -> None:
    activation, function = IN_TORCH[name]
    points = np.linspace(-4.95, 4.95, 38)[:, None] + np.linspace(0, 0.01, 41)[None, :]
    z = torch.tensor(points, requires_grad=True)
    (slope,) = torch.autograd.grad(function(z).sum(), z, create_graph=True)
    bend = torch.zeros_like(z)
    if slope.requires_grad:
        (bend,) = torch.autograd.grad(slope.sum(), z)
    found = activation.curvature(backend.array(points))
    assert_array(found, bend.detach().numpy(), backend, rtol=1e-6, atol=3e-8)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_pieces_are_linear_where_it_is_said_and_nowhere_else(name: str) -> None:
    activation, _ = IN_TORCH[name]
    z = np.linspace(-5, 5, 10_001)[:, None] + np.zeros((1, 41))
    away = np.all([np.abs(z - kink) > 0.01 for kink in activation.kinks], axis=0) | np.zeros(z.shape, bool)
    value, _ = activation.value_and_slope(z)
    bend = np.abs(value[2:] - 2 * value[1:-1] + value[:-2])[away[1:-1]] / 1e-6
    assert activation.piecewise_linear == bool(np.max(bend) < 1e-6)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_curvature_next_to_a_kink_is_none(name: str) -> None:
    activation, _ = IN_TORCH[name]
    for kink in activation.kinks:
        near = np.full((1, 41), kink) + np.linspace(-1.5e-5, 1.5e-5, 41)[None, :]
        assert np.all(activation.curvature(near) == 0)
