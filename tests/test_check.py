"""Claimed inputs: true ones are certified, false ones are not, and what is wrong is said."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import spear_np
from spear_np import LayerGradients, Status
from tests.backends import Backend
from tests.layers import digit_layer
from tests.networks import Floats, LayerData

B = 8
DATA = digit_layer(B, width=120, seed=900)


def checked(claims: Any, data: LayerData = DATA, **changes: Any) -> spear_np.Inversion:
    arrays = {"bias_grad": data.bias_grad, "weight": data.weight, "bias": data.bias} | changes
    return spear_np.check(LayerGradients(data.weight_grad, **arrays), claims)


def claims_of(kind: str, rng: np.random.Generator) -> Floats:
    """Inputs that are not those behind the gradient."""
    inputs = DATA.inputs.astype(np.float64)
    other = digit_layer(B, width=120, seed=901).inputs.astype(np.float64)
    kinds: dict[str, Floats] = {
        "one of another batch": np.concatenate([inputs[:-1], other[:1]]),
        "another batch": other,
        "two mixed": np.concatenate([inputs[:-1], 0.5 * inputs[-1:] + 0.5 * inputs[:1]]),
        "one twice": np.concatenate([inputs[:-1], inputs[:1]]),
        "noise": np.asarray(rng.random(inputs.shape)),
        "zeros": np.zeros_like(inputs),
    }
    return kinds[kind]


@pytest.mark.parametrize("seed", range(5))
def test_true_inputs_are_certified_in_their_order(backend: Backend, seed: int) -> None:
    rng = np.random.default_rng(seed)
    data = digit_layer(B, width=120, seed=910 + seed)
    claims = data.inputs[rng.permutation(B)]
    result = spear_np.check(backend.gradients(data), claims)
    assert result.status is Status.EXACT, str(result.certificate)
    assert result.method == "check"
    assert result.certificate["claims"].passed
    np.testing.assert_allclose(backend.host(result.inputs), claims, atol=1e-5)


def test_what_invert_finds_passes() -> None:
    found = spear_np.invert(DATA.weight_grad, DATA.bias_grad, weight=DATA.weight, bias=DATA.bias)
    assert checked(np.asarray(found.inputs)).status is Status.EXACT


@pytest.mark.parametrize(
    "kind", ["one of another batch", "another batch", "two mixed", "one twice", "noise", "zeros"]
)
def test_false_claims_are_never_exact(kind: str) -> None:
    result = checked(claims_of(kind, np.random.default_rng(3)))
    assert result.status is not Status.EXACT
    assert result.reason


def test_a_claim_that_is_slightly_off_is_told() -> None:
    for size, status in ((1e-7, Status.EXACT), (1e-3, Status.APPROXIMATE)):
        off = DATA.inputs + size * np.random.default_rng(4).standard_normal(DATA.inputs.shape)
        result = checked(off)
        assert result.status is status, (size, str(result.certificate))
        assert result.certificate["claims"].passed == (status is Status.EXACT)
        assert ("the claims are off by up to" in result.reason) == (status is not Status.EXACT)


def test_claims_of_another_scale_are_told() -> None:
    result = checked(2 * DATA.inputs)
    assert result.status is Status.APPROXIMATE
    assert result.certificate["claims"].passed is False


def test_without_weights_true_inputs_are_approximate() -> None:
    result = checked(DATA.inputs, weight=None, bias=None)
    assert (result.status, result.found) == (Status.APPROXIMATE, B)
    assert "without weight" in result.reason


@pytest.mark.parametrize(
    ("claims", "message"),
    [
        (DATA.inputs[:-1], f"`inputs` has {B - 1} rows, but weight_grad shows {B} inputs"),
        (DATA.inputs[:, :-1], r"`inputs` has shape \(8, 63\): expected one row of 64 numbers"),
        (DATA.inputs[0], r"`inputs` has shape \(64,\)"),
        (np.full_like(DATA.inputs, np.nan), "`inputs` holds NaN or infinity"),
    ],
)
def test_claims_that_cannot_be_inputs_are_refused(claims: Floats, message: str) -> None:
    with pytest.raises(spear_np.InputError, match=message):
        checked(claims)


def test_a_gradient_without_a_rank_is_answered() -> None:
    rng = np.random.default_rng(5)
    noise = np.asarray(rng.standard_normal(DATA.weight_grad.shape))
    full = replace(DATA, weight_grad=noise)
    result = checked(DATA.inputs, full)
    assert result.status is Status.FAILED
    assert "full rank" in result.reason
