"""A chain that gives nothing says what it looks like: another activation, an output that is used elsewhere."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from spear_np import Activation, Status, invert_chain
from tests.chains import digit_network

SECONDS = 60
FEW = 4000
"""Steps: enough to see that nothing comes."""


@pytest.mark.parametrize(
    ("true", "said"),
    [
        (Activation("gelu"), Activation("silu")),
        (Activation("leaky_relu", {"negative_slope": 0.2}), Activation("relu")),
        (Activation("tanh"), Activation("sigmoid")),
    ],
    ids=str,
)
def test_a_wrong_activation_is_told_from_the_right_one(true: Activation, said: Activation) -> None:
    data = digit_network(8, activation=true, gain=2.0, widths=(60, 60), dtype=np.float32)
    layers = [replace(layer, activation=said) if layer.sigma == true else layer for layer in data.layers]
    answer = invert_chain(layers, method="chain", time_limit=SECONDS, max_proposals=FEW)
    assert answer.status == Status.FAILED
    assert f"it looks as if '{true}' followed the first layer, not '{said}'" in answer.reason


def test_layers_of_two_networks_look_like_nothing() -> None:
    first, second = (
        digit_network(8, activation="gelu", gain=2.0, widths=(60, 60), seed=seed, dtype=np.float32)
        for seed in (1, 2)
    )
    answer = invert_chain(
        [first.layers[0], *second.layers[1:]], method="chain", time_limit=SECONDS, max_proposals=FEW
    )
    assert answer.status == Status.FAILED
    assert answer.found == 0
    assert "looks as if" not in answer.reason


def test_a_sum_behind_the_layers_is_noticed_on_the_way_back() -> None:
    # The second layer's input also feeds a sum: forward the chain holds, backward it does not.
    data = digit_network(8, activation="gelu", gain=2.0, widths=(60, 60), dtype=np.float32)
    rng = np.random.default_rng(5)
    first = data.layers[0]
    more = rng.standard_normal(np.asarray(data.output_grads[0]).shape) * np.std(data.output_grads[0])
    d = np.asarray(data.output_grads[0]) + more
    inputs = np.asarray(data.inputs[0])
    d = d if d.shape[0] == first.shape[0] else d.T
    changed = replace(
        first,
        weight_grad=(d @ inputs).astype(np.float32),
        bias_grad=d.sum(axis=1).astype(np.float32),
    )
    answer = invert_chain([changed, *data.layers[1:]], method="chain", time_limit=SECONDS, max_proposals=FEW)
    assert answer.status == Status.FAILED
    assert "does not fit the gradient that it passes back" in answer.reason
