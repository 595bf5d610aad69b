"""A small layer on a card: the search there, everything else on the host, and the answer where it was asked for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from spear_np import Inversion, LayerGradients
from spear_np.backend.devices import CPU, Device
from spear_np.backend.host import to_host
from spear_np.layer.problem import LayerProblem, layer_readings
from spear_np.loop.budget import Budget
from spear_np.loop.options import Options
from spear_np.loop.run import Run, invert_readings
from spear_np.placement import HOST_UNITS, algebra_device, carried
from spear_np.search.elsewhere import Elsewhere
from tests.backends import Backend
from tests.cards import Card, strict_card
from tests.layers import digit_layer, factors_of
from tests.networks import LayerData

M = 100


@pytest.fixture
def card() -> Card:
    return strict_card()


def inverted(data: LayerData, device: Device, method: str = "auto") -> Inversion:
    gradients = LayerGradients(data.weight_grad, data.bias_grad, data.weight, data.bias)
    options = Options(None, None, method, 3, 60.0, None)
    run = Run(options, Budget(60.0, None, lambda: False), lambda _: None)
    return invert_readings(layer_readings(gradients, device, options), run)


@pytest.mark.parametrize("method", ["auto", "descent", "sampling"])
def test_the_answer_is_that_of_the_host_where_it_was_asked_for(card: Card, method: str) -> None:
    data = digit_layer(10, width=M, seed=4)
    here, there = inverted(data, CPU, method), inverted(data, card, method)
    assert (there.status, there.device, there.where) == ("exact", "gpu:0", card)
    assert (here.status, here.proposals, here.certificate) == (
        there.status,
        there.proposals,
        there.certificate,
    )
    for name in ("output_grad", "recovery"):
        held = getattr(there, name)
        assert type(held).__module__.startswith("array_api_strict")
        np.testing.assert_array_equal(to_host(held), getattr(here, name))
    np.testing.assert_allclose(to_host(there.inputs), here.inputs, rtol=1e-12, atol=1e-12)
    assert Card.entered, "nothing ran on the card"


def test_only_searches_of_many_starts_are_there(card: Card) -> None:
    data = digit_layer(10, width=M, seed=4)
    gradients = LayerGradients(data.weight_grad, data.bias_grad, data.weight, data.bias)
    posed = layer_readings(gradients, card, Options(None, None, "descent", 0, 60.0, None))(0).posed
    assert isinstance(posed, LayerProblem)
    assert posed.factors.space.device is CPU
    assert isinstance(posed.search, Elsewhere)
    assert posed.search.space.device is card
    assert type(posed.search.space.U).__module__.startswith("array_api_strict")


def test_whatever_is_carried_is_the_same(card: Card) -> None:
    space = factors_of(digit_layer(6, width=M, seed=1), Backend.NUMPY).space
    there = carried(space, card)
    assert there.device is card
    assert there.live.dtype == card.xp.int64
    for name in ("U", "S", "live", "noise", "row_norm", "to_basis", "coordinates"):
        np.testing.assert_array_equal(to_host(getattr(there, name)), to_host(getattr(space, name)))
    assert (there.spectrum, there.shape) == (space.spectrum, space.shape)


def test_large_layers_are_on_the_card_and_nothing_leaves_the_host_unasked(card: Card) -> None:
    assert algebra_device(card, HOST_UNITS) is CPU
    assert algebra_device(card, HOST_UNITS + 1) is card
    assert algebra_device(CPU, 10) is CPU
    strict = replace(CPU, xp=Backend.STRICT.xp, handle=Backend.STRICT.handle)
    assert algebra_device(strict, 10) is strict
