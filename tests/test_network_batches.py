"""Whole batches from the gradients of networks: every activation, every shape of a chain, every array library."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from spear_np import ACTIVATIONS, Activation, LayerGradients, Status, invert_chain
from spear_np.backend.host import to_host
from tests.backends import Backend, assert_lives_on, values_of
from tests.chains import ARRAYS, NetworkData, assert_whole, digit_network, network_of, with_noise
from tests.networks import digit_batch

SECONDS = 20.0
"""What no inversion below comes near."""
GAINS = {"sigmoid": 6.0, "softplus": 4.0, "hardswish": 4.0, "hardtanh": 3.0}
"""Weights that bend activations which are nearly linear near zero."""
DTYPES = (np.float64, np.float32)


def network(activation: str | Activation | list[str], b: int = 8, **options: Any) -> NetworkData:
    """Return a network whose pre-activations reach where the activation bends."""
    gain = GAINS.get(str(activation), 2.0)
    return digit_network(b, **({"activation": activation, "gain": gain, "widths": (60, 60, 60)} | options))


class TestEveryActivation:
    @pytest.mark.parametrize("dtype", DTYPES, ids=["float64", "float32"])
    @pytest.mark.parametrize("name", [name for name in ACTIVATIONS if name != "none"])
    def test_the_batch_is_exact_and_labelled(self, name: str, dtype: Any) -> None:
        data = network(name, dtype=dtype)
        answer = invert_chain(data.layers, time_limit=SECONDS)
        assert_whole(answer, data)
        assert answer.labels is not None
        assert answer.chain == ("0", "1", "2", "3")

    def test_prelu_with_slopes_of_its_own_for_each_unit(self) -> None:
        data = network(Activation("prelu", {"slope": np.linspace(0.05, 0.4, 60)}), dtype=np.float32)
        assert_whole(invert_chain(data.layers, time_limit=SECONDS), data)

    def test_another_activation_in_each_layer(self) -> None:
        data = network(["relu", "tanh", "elu"], dtype=np.float32)
        assert_whole(invert_chain(data.layers, time_limit=SECONDS), data)


class TestShapes:
    @pytest.mark.parametrize("dtype", DTYPES, ids=["float64", "float32"])
    @pytest.mark.parametrize("activation", ["relu", "gelu"])
    @pytest.mark.parametrize("b", [1, 2, 3])
    def test_small_batches(self, b: int, activation: str, dtype: Any) -> None:
        data = network(activation, b, dtype=dtype, widths=(60, 60))
        assert_whole(invert_chain(data.layers, time_limit=SECONDS), data)

    @pytest.mark.parametrize("activation", ["relu", "tanh"])
    def test_a_chain_that_ends_in_a_hidden_layer_tells_no_labels(self, activation: str) -> None:
        data = network(activation, dtype=np.float32)
        answer = invert_chain(data.layers[:2], names=("first", "second"), time_limit=SECONDS)
        assert_whole(answer, data)
        assert answer.labels is None
        assert answer.chain == ("first", "second")

    @pytest.mark.parametrize("activation", ["relu", "tanh"])
    @pytest.mark.parametrize("b", [3, 9])
    def test_one_hidden_layer_before_the_output_layer(self, b: int, activation: str) -> None:
        data = network(activation, b, dtype=np.float32, widths=(60,))
        answer = invert_chain(data.layers, time_limit=SECONDS)
        assert_whole(answer, data)
        assert answer.labels is not None

    @pytest.mark.parametrize("activation", ["relu", "tanh"])
    def test_an_output_narrower_than_the_batch(self, activation: str) -> None:
        data = network(activation, dtype=np.float32, outputs=4)
        answer = invert_chain(data.layers, time_limit=SECONDS)
        assert_whole(answer, data)
        assert answer.labels is not None

    def test_a_second_layer_as_narrow_as_the_batch(self) -> None:
        data = network("tanh", dtype=np.float32, widths=(60, 8, 60))
        answer = invert_chain(data.layers, time_limit=SECONDS)
        assert_whole(answer, data)
        # Ten numbers at the output pass through eight units: they cannot be told, and neither can labels.
        assert answer.chain == ("0", "1")
        assert answer.labels is None

    def test_a_narrow_layer_with_units_that_are_off_hides_labels_not_inputs(self) -> None:
        data = network("relu", dtype=np.float32, widths=(60, 12, 60))
        answer = invert_chain(data.layers, time_limit=SECONDS)
        errors, rows = data.errors(answer)
        assert answer.status in (Status.EXACT, Status.APPROXIMATE)
        assert sorted(rows.tolist()) == list(range(8))
        assert np.max(errors) < 1e-4
        told = to_host(answer.labels)
        assert np.all((told == -1) | (told == data.labels[rows]))

    @pytest.mark.parametrize("activation", ["relu", "tanh"])
    def test_more_inputs_than_half_the_units(self, activation: str) -> None:
        data = network(activation, 33, widths=(60, 60, 60, 60))
        answer = invert_chain(data.layers, time_limit=SECONDS)
        assert_whole(answer, data)

    def test_inputs_with_fewer_units_on_than_the_batch_has_inputs(self) -> None:
        data = network("relu", 16, share_on=0.3)
        on = np.sum(data.pre_activations[0] > 0, axis=1)
        assert np.sum(on < 15) > 2
        answer = invert_chain(data.layers, time_limit=SECONDS)
        assert_whole(answer, data)

    @pytest.mark.parametrize("dtype", DTYPES, ids=["float64", "float32"])
    @pytest.mark.parametrize("activation", ["relu", "relu6", "leaky_relu"])
    def test_an_input_that_touches_the_kinks_of_units(self, activation: str, dtype: Any) -> None:
        data = network(activation, dtype=dtype, touching=2)
        assert np.max(np.abs(data.pre_activations[0][0, :2])) < 10 * np.finfo(dtype).eps
        assert_whole(invert_chain(data.layers, time_limit=SECONDS), data)


class TestPromises:
    @pytest.mark.parametrize("seed", range(6))
    def test_what_is_exact_is_within_its_bounds_at_the_edge_of_what_can_be_found(self, seed: int) -> None:
        # More inputs than units are on in many of them: what the equations leave open must not pass for exact.
        data = network("relu", 28, widths=(60, 60, 60), seed=seed)
        answer = invert_chain(data.layers, method="chain", time_limit=1.0)
        if answer.found:
            errors, rows = data.errors(answer)
            assert len(set(rows.tolist())) == answer.found
            assert np.all(errors <= np.asarray(answer.certificate.error_bound) / np.ptp(data.inputs[0]))
        assert (answer.status is Status.EXACT) <= (answer.found == 28)

    @pytest.mark.parametrize("activation", ["relu", "gelu"])
    def test_noise_widens_bounds_and_they_hold(self, activation: str) -> None:
        data = with_noise(network(activation), 1e-3, np.random.default_rng(3))
        answer = invert_chain(data.layers, time_limit=SECONDS)
        assert answer.status is Status.APPROXIMATE
        assert answer.found == 8
        errors, rows = data.errors(answer)
        assert sorted(rows.tolist()) == list(range(8))
        assert np.all(errors <= np.asarray(answer.certificate.error_bound) / np.ptp(data.inputs[0]))
        assert to_host(answer.labels).tolist() == data.labels[rows].tolist()

    def test_columns_of_the_loss_gradient_are_the_true_ones(self) -> None:
        data = network("gelu")
        answer = invert_chain(data.layers, time_limit=SECONDS)
        _, rows = data.errors(answer)
        truth = data.output_grads[0][rows].T
        assert np.max(np.abs(to_host(answer.output_grad) - truth)) < 1e-9 * np.max(np.abs(truth))


class TestEveryLibrary:
    @pytest.mark.parametrize("activation", ["relu", "gelu", "hardtanh", "prelu", "elu"])
    def test_the_batch_is_exact(self, backend: Backend, activation: str) -> None:
        data = network(activation, dtype=np.float32)
        answer = invert_chain(data.on(backend), time_limit=SECONDS)
        for array in (answer.inputs, answer.output_grad, answer.labels):
            assert_lives_on(array, backend)
        assert_whole(answer, data)

    def test_the_same_seed_gives_the_same_answer(self, backend: Backend) -> None:
        data = network("relu", dtype=np.float32)
        first, again = (
            invert_chain(data.on(backend), seed=4, time_limit=SECONDS, max_proposals=10**6) for _ in range(2)
        )
        assert np.array_equal(to_host(first.inputs), to_host(again.inputs))
        assert first.certificate == again.certificate
        assert first.proposals == again.proposals

    def test_inputs_stay_as_they_are(self) -> None:
        data = network("gelu", dtype=np.float32)
        before = [[getattr(layer, name).copy() for name in ARRAYS] for layer in data.layers]
        invert_chain(data.layers, time_limit=SECONDS)
        for layer, arrays in zip(data.layers, before, strict=True):
            for name, array in zip(ARRAYS, arrays, strict=True):
                assert np.array_equal(getattr(layer, name), array)

    def test_gradients_are_read_by_blocks(self) -> None:
        class Blocks:
            def __init__(self, array: Any) -> None:
                self.array, self.shape, self.dtype = array, array.shape, array.dtype

            def __getitem__(self, key: Any) -> Any:
                return self.array[key]

        data = network("gelu", dtype=np.float32)
        layers = [
            LayerGradients(
                Blocks(one.weight_grad), one.bias_grad, Blocks(one.weight), one.bias, one.activation
            )
            for one in data.layers
        ]
        assert_whole(invert_chain(layers, time_limit=SECONDS), data)


@pytest.mark.parametrize("seed", range(100, 106))
def test_bounds_hold_where_the_scale_is_what_is_known_least(seed: int) -> None:
    """Of large inputs behind small biases only bias_grad tells the scale, and two saved models leave noise in it."""
    inputs, labels = digit_batch(20, seed=seed)
    leaky = Activation("leaky_relu", {"negative_slope": 0.1})
    inputs = (inputs - inputs.min()) * (16 / np.ptp(inputs))
    data = network_of(inputs, labels, widths=(120, 90), activation=leaky, seed=seed, dtype=np.float32)
    rate = np.float32(0.05)
    layers = []
    for layer in data.layers:
        held = {name: values_of(getattr(layer, name)) for name in ("weight", "bias")}
        deltas = {
            f"{name}_grad": (value - (value - rate * values_of(getattr(layer, f"{name}_grad")))).astype(
                np.float64
            )
            / 0.05
            for name, value in held.items()
        }
        layers.append(replace(layer, precision="float32", **deltas))  # type: ignore[arg-type]
    answer = invert_chain(layers, loss="cross_entropy", time_limit=SECONDS)
    assert answer.found == 20
    errors, _ = data.errors(answer)
    assert np.all(errors * np.ptp(inputs) <= np.asarray(answer.certificate.error_bound))
