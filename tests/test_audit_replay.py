"""A client's step played again: it gives what was shared, tells inputs apart, and goes on as a training does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spear_io import LayerArrays, RecordInfo, write_dump
from spear_io.audit.defences import STEPS
from spear_io.audit.network import Network
from spear_io.audit.possible import Known, _whole, possible_defences
from spear_io.audit.replay import Batch, Replay, replayed
from spear_io.audit.result import Asked
from spear_io.audit.run import audit
from spear_io.audit.sweep import Budget
from spear_io.audit.update import Shared
from spear_np.factors.gradients import NO_DECAY, WeightDecay
from tests.backends import values_of
from tests.chains import Loss, NetworkData, network_of
from tests.networks import digit_batch

B = 6


def data_of(loss: Loss = "cross_entropy", dtype: Any = np.float32) -> NetworkData:
    inputs, labels = digit_batch(B, seed=7)
    return network_of(inputs, labels, widths=(30, 20), activation="tanh", seed=7, dtype=dtype, loss=loss)


def shared(data: NetworkData, loss: str | None = "cross_entropy") -> Shared:
    return Shared(data.layers, ("a", "b", "c"), loss)


def batch_of(data: NetworkData, labels: Any = None) -> Batch:
    return Batch(data.inputs[0].astype(np.float64), data.labels if labels is None else labels)


def played(data: NetworkData, batch: Batch | None = None, loss: str | None = "cross_entropy") -> Replay:
    replay = replayed(shared(data, loss), [batch or batch_of(data)], NO_DECAY)
    assert isinstance(replay, Replay), replay
    return replay


@pytest.mark.parametrize(
    ("loss", "said", "labelled"),
    [("cross_entropy", "cross_entropy", True), ("cross_entropy", None, True), ("mse", "mse", False)],
)
def test_each_input_is_told_its_part(loss: Loss, said: str | None, labelled: bool) -> None:
    data = data_of(loss)
    replay = played(data, loss=said)
    assert (replay.labels is not None) is labelled
    for found, true in zip(replay.examples.output_grads, data.output_grads, strict=True):
        np.testing.assert_allclose(found.T, true, atol=1e-4 * np.abs(true).max())
    for one in range(B):
        parts = [
            np.append(np.outer(d[one], a[one]), d[one])
            for d, a in zip(data.output_grads, data.inputs, strict=True)
        ]
        assert replay.examples.norms[one] == pytest.approx(np.linalg.norm(np.concatenate(parts)), rel=1e-4)


def test_a_bias_that_is_not_shared_has_no_norm() -> None:
    data = data_of()
    update = replace(shared(data), layers=tuple(replace(layer, bias_grad=None) for layer in data.layers))
    replay = replayed(update, [batch_of(data)], NO_DECAY)
    assert isinstance(replay, Replay), replay
    parts = [np.outer(d[0], a[0]).ravel() for d, a in zip(data.output_grads, data.inputs, strict=True)]
    assert replay.examples.norms[0] == pytest.approx(np.linalg.norm(np.concatenate(parts)), rel=1e-4)


def test_clipped_parts_add_up_in_every_layer() -> None:
    data = data_of()
    examples = played(data).examples
    whole = examples.clipped(shared(data), float("inf"))
    norm = float(np.median(examples.norms))
    half = examples.clipped(shared(data), norm)
    factors = np.minimum(1, norm / examples.norms)
    for number, layer in enumerate(data.layers):
        np.testing.assert_allclose(
            values_of(whole.layers[number].weight_grad), values_of(layer.weight_grad), atol=1e-6
        )
        scaled = (data.output_grads[number] * factors[:, None]).T
        np.testing.assert_allclose(
            values_of(half.layers[number].weight_grad), scaled @ data.inputs[number], atol=1e-6
        )
        np.testing.assert_allclose(values_of(half.layers[number].bias_grad), scaled.sum(axis=1), atol=1e-6)


def test_weight_decay_is_no_part_of_any_input() -> None:
    data = data_of()
    decay = WeightDecay(0.01, 0.02)
    decayed = tuple(
        replace(
            layer,
            weight_grad=values_of(layer.weight_grad) + np.float32(0.01) * values_of(layer.weight),
            bias_grad=values_of(layer.bias_grad) + np.float32(0.02) * values_of(layer.bias),
            decay=decay,
        )
        for layer in data.layers
    )
    update = replace(shared(data), layers=decayed)
    replay = replayed(update, [batch_of(data)], decay)
    assert isinstance(replay, Replay), replay
    whole = replay.examples.clipped(update, float("inf"))
    for clipped, plain in zip(whole.layers, data.layers, strict=True):
        assert not clipped.decay.present
        np.testing.assert_allclose(values_of(clipped.weight_grad), values_of(plain.weight_grad), atol=1e-6)


def test_labels_are_read_off_the_gradient_at_the_output() -> None:
    data = data_of()
    replay = played(data, Batch(data.inputs[0].astype(np.float64), None))
    np.testing.assert_array_equal(replay.labels, data.labels)


@pytest.mark.parametrize("what", ["label", "inputs", "weights"])
def test_what_does_not_give_the_update_is_refused(what: str) -> None:
    data = data_of()
    update, batch = shared(data), batch_of(data)
    if what == "label":
        # A last layer with too little room leaves the labels alone to tell the gradient at the output.
        inputs, labels = digit_batch(24, seed=7)
        data = network_of(inputs, labels, widths=(40, 12), activation="tanh", seed=7, dtype=np.float32)
        update = shared(data)
        wrong = data.labels.copy()
        wrong[0] = (wrong[0] + 1) % 10
        assert isinstance(replayed(update, [batch_of(data)], NO_DECAY), Replay)
        batch = batch_of(data, wrong)
    if what == "inputs":
        batch = Batch(batch.inputs[::-1] * 1.3, batch.labels)
    if what == "weights":
        update = replace(
            update, layers=data.changed(1, weight=values_of(data.layers[1].weight) * np.float32(1.3))
        )
    found = replayed(update, [batch], NO_DECAY)
    assert isinstance(found, str)
    assert "misses the gradients" in found


def test_a_small_gradient_of_the_first_layer_counts_like_any_other() -> None:
    data = data_of()
    faint = data.changed(0, weight_grad=1.5 * values_of(data.layers[0].weight_grad))
    last = 1e4 * values_of(data.layers[2].weight_grad), 1e4 * values_of(data.layers[2].bias_grad)
    layers = (*faint[:2], replace(faint[2], weight_grad=last[0], bias_grad=last[1]))
    network = tuple(
        replace(layer, weight=(1e-4 if number == 2 else 1) * values_of(layer.weight))
        for number, layer in enumerate(layers)
    )
    found = replayed(Shared(network, ("a", "b", "c"), "mse"), [batch_of(data)], NO_DECAY)
    assert isinstance(found, str)
    assert "misses the gradients" in found


def test_a_network_of_one_class_has_no_gradient_to_compare() -> None:
    inputs, _ = digit_batch(B, seed=7)
    data = network_of(inputs, np.zeros(B, dtype=np.int64), widths=(30, 20), outputs=1, activation="tanh")
    found = replayed(shared(data), [batch_of(data)], NO_DECAY)
    assert isinstance(found, str)
    assert "misses the gradients that were shared:" in found


def test_numbers_that_overflow_are_refused() -> None:
    data = data_of(dtype=np.float64)
    layers = tuple(
        replace(layer, weight=1e200 * values_of(layer.weight), activation="relu" if number < 2 else "none")
        for number, layer in enumerate(data.layers)
    )
    found = replayed(Shared(layers, ("a", "b", "c"), None), [batch_of(data)], NO_DECAY)
    assert isinstance(found, str)
    assert "not finite" in found


@pytest.mark.parametrize("label", [1e300, float(2**60), np.nan, 0.5])
def test_labels_that_name_no_class_are_none(label: float) -> None:
    assert _whole(np.asarray([label, 1.0])) is None


@pytest.mark.parametrize(("reduction", "mean"), [(None, False), ("sum", False), ("mean", True)])
def test_a_sum_is_told_by_the_labels_where_the_record_says_nothing(reduction: str | None, mean: bool) -> None:
    data = data_of(dtype=np.float64)
    summed = tuple(
        replace(layer, weight_grad=B * values_of(layer.weight_grad), bias_grad=B * values_of(layer.bias_grad))
        for layer in data.layers
    )
    update = shared(replace(data, layers=summed))
    baseline = update.invert(time_limit=5.0)
    known = Known(RecordInfo(loss_reduction=reduction), data.inputs[0], data.labels, baseline)
    possible = possible_defences(update, known, (), Asked())
    assert possible.in_mean == (B if mean else 1)
    whole = possible_defences(
        shared(data), replace(known, info=RecordInfo()), (), Asked()
    )  # a mean, as is taken for granted
    assert whole.in_mean == B


def test_a_training_that_overflows_is_no_defence() -> None:
    inputs, labels = digit_batch(B, seed=7)
    data = network_of(inputs, labels, widths=(30, 20), activation="relu", seed=7, dtype=np.float32)
    baseline = shared(data).invert(time_limit=5.0)
    known = Known(RecordInfo(), data.inputs[0], data.labels, baseline)
    for rate, wanted in ((1e-2, STEPS), (1e8, (1.0, 2.0)), (1e45, ())):
        possible = possible_defences(
            shared(data), known, (), Asked(defences=("local_steps",), learning_rate=rate)
        )
        assert tuple(count for one in possible.defences for count in one.strengths) == wanted
        assert bool(possible.not_tried) is (not wanted)


def test_one_step_is_the_gradient_and_five_are_those_of_pytorch() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    data = data_of()
    update, rate, count = shared(data), 0.05, 5
    steps = played(data).steps(update, count, rate, mean=True)
    model = torch.nn.Sequential(
        *(part for layer in data.layers for part in (torch.nn.Linear(*layer.shape[::-1]), torch.nn.Tanh()))
    )[:-1]
    linear = [part for part in model if isinstance(part, torch.nn.Linear)]
    with torch.no_grad():
        for part, layer in zip(linear, data.layers, strict=True):
            part.weight.copy_(torch.tensor(layer.weight))
            part.bias.copy_(torch.tensor(layer.bias))
    optimiser = torch.optim.SGD(model.parameters(), lr=rate)
    inputs, labels = torch.tensor(data.inputs[0]), torch.tensor(data.labels)
    for _ in range(count):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(model(inputs), labels).backward()
        optimiser.step()
    for part, before, after in zip(linear, data.layers, steps.layers, strict=True):
        for name, trained in (("weight", part.weight), ("bias", part.bias)):
            wanted = (getattr(before, name) - trained.detach().numpy()) / (rate * count)
            found = getattr(after, f"{name}_grad")
            # Weights of 0.2 are rounded to 1.5e-8 after each step.
            np.testing.assert_allclose(found, wanted, atol=1e-6)
            assert np.max(np.abs(wanted - getattr(before, f"{name}_grad"))) > 1e-4
    one = played(data).steps(update, 1, rate, mean=True)
    np.testing.assert_allclose(
        values_of(one.first.weight_grad), values_of(data.layers[0].weight_grad), atol=1e-6
    )


def test_a_layer_without_a_bias_gets_none_by_training() -> None:
    data = data_of(dtype=np.float64)
    unbiased = tuple(replace(layer, bias=np.zeros(layer.shape[0])) for layer in data.layers)
    zero = Network.of(Shared(unbiased, ("a", "b", "c"), None))
    none = Network.of(
        Shared(
            tuple(replace(layer, bias=None, bias_grad=None) for layer in data.layers), ("a", "b", "c"), None
        )
    )
    assert zero is not None
    assert none is not None
    inputs, labels = data.inputs[0], np.asarray(data.labels)
    options: dict[str, Any] = {"rate": 0.1, "mean": True, "decay": NO_DECAY, "dtype": np.float64}
    np.testing.assert_array_equal(none.forward(inputs).outputs, zero.forward(inputs).outputs)
    one, with_one = (net.trained(inputs, labels, steps=1, **options) for net in (none, zero))
    assert one.biases == (None, None, None)
    np.testing.assert_array_equal(one.weights[0], with_one.weights[0])
    two, with_two = (net.trained(inputs, labels, steps=2, **options) for net in (none, zero))
    assert np.max(np.abs(two.weights[0] - with_two.weights[0])) > 1e-6


def test_a_summed_loss_takes_steps_as_much_larger() -> None:
    data = data_of(dtype=np.float64)
    summed, mean = (
        played(data).steps(shared(data), 2, rate, mean=mean)
        for rate, mean in ((0.01, False), (0.01 * B, True))
    )
    np.testing.assert_allclose(
        values_of(summed.first.weight_grad), B * values_of(mean.first.weight_grad), rtol=1e-9, atol=1e-12
    )


def test_a_network_without_its_weights_is_not_played() -> None:
    data = data_of()
    update = replace(shared(data), layers=data.changed(2, weight=None))
    assert Network.of(update) is None
    assert "weights of every layer" in str(replayed(update, [batch_of(data)], NO_DECAY))


def write_chain(path: Path, data: NetworkData, *, truth: bool = True, count: int = 3, **info: Any) -> None:
    layers = {
        name: LayerArrays(
            layer.weight_grad,
            layer.bias_grad,
            layer.weight,
            layer.bias,
            inputs=data.inputs[number] if truth else None,
            activation=layer.sigma,
            follows="abc"[number - 1] if number else None,
        )
        for number, (name, layer) in enumerate(zip("abc"[:count], data.layers[:count], strict=True))
    }
    write_dump(path, layers, info=RecordInfo(**info), labels=data.labels if truth else None)


@pytest.mark.parametrize("truth", [True, False])
def test_a_chain_is_put_under_dp_sgd_and_local_steps(tmp_path: Path, truth: bool) -> None:
    write_chain(tmp_path / "dump.h5", data_of(), truth=truth, loss="cross_entropy")
    asked = Asked(defences=("dp_sgd", "clip_examples", "local_steps"), learning_rate=0.1, refine=False)
    found = audit(tmp_path / "dump.h5", None, asked, Budget(time_limit=3.0))
    assert found.not_tried == {}
    by_name = {curve.defence.name: curve for curve in found.curves}
    weak, strong = by_name["dp_sgd"].points[0], by_name["dp_sgd"].points[-1]
    assert (weak.recovered, strong.recovered) == (B, 0)
    assert [point.recovered for point in by_name["clip_examples"].points] == [B] * 3
    assert by_name["local_steps"].points[0].recovered == B
    assert {point.strength for point in by_name["local_steps"].points} <= set(STEPS)
    assert "at a learning rate of 0.1" in by_name["local_steps"].defence.title


@pytest.mark.parametrize(
    ("loss", "count", "fragment"),
    [("mse", 3, "cross-entropy as the loss"), ("cross_entropy", 2, "linked up to the output")],
)
def test_why_local_steps_are_not_tried(tmp_path: Path, loss: Loss, count: int, fragment: str) -> None:
    write_chain(tmp_path / "dump.h5", data_of(loss), count=count, loss=loss)
    found = audit(tmp_path / "dump.h5", None, Asked(defences=("local_steps",)), Budget(time_limit=2.0))
    assert found.curves == ()
    assert fragment in found.not_tried["local_steps"]


def test_the_rate_of_the_record_comes_before_the_default(tmp_path: Path) -> None:
    asked = Asked(defences=("local_steps",))
    for name, rate, said in (("stated", 0.002, "0.002"), ("silent", None, "0.01")):
        write_chain(tmp_path / f"{name}.h5", data_of(), learning_rate=rate)
        (curve,) = audit(tmp_path / f"{name}.h5", None, asked, Budget(time_limit=2.0)).curves
        assert curve.defence.title.endswith(f"at a learning rate of {said}")
        assert ("which is assumed" in curve.defence.limits) == (name == "silent")
