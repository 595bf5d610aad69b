"""What the PyTorch adapter records, of models it has never seen."""

from __future__ import annotations

import copy
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from spear_io import open_dump
from tests.backends import values_of
from tests.inverting import decibels, inverted
from tests.networks import digit_batch

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'spear-np[torch]'")

from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from spear_io.adapters.to_torch import (
    Recorder,
    RecordingError,
    RoundWriter,
    from_gradients,
    from_weights,
    record_gradients,
)
from spear_np import Activation

M, N, B = 12, 64, 5
Function = Callable[[Any], Any]


class Net(nn.Module):  # type: ignore[misc]
    """A linear layer, whatever comes after it, and a head."""

    def __init__(self, after: Function, **options: Any) -> None:
        super().__init__()
        self.fc = nn.Linear(N, M, **options)
        self.after = after
        self.head = nn.Linear(M, 10)

    def forward(self, inputs: Any) -> Any:
        return self.head(self.after(self.fc(inputs)))


def batch(b: int = B, seed: int = 3) -> tuple[Any, Any]:
    inputs, labels = digit_batch(b, seed=seed)
    return torch.tensor(inputs), torch.tensor(labels)


def step(model: Any, inputs: Any = None, labels: Any = None, **options: Any) -> Recorder:
    """Record one step; the loss works for logits of any shape."""
    if inputs is None:
        inputs, labels = batch()
    with record_gradients(model, **options) as recorder:
        logits = model(inputs)
        loss = logits.square().mean() if labels is None else functional.cross_entropy(logits, labels)
        loss.backward()
    return recorder


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(17)


RELUS: dict[str, Function] = {
    "module": nn.ReLU(),
    "module in place": nn.ReLU(inplace=True),
    "functional": functional.relu,
    "functional in place": lambda z: functional.relu(z, inplace=True),
    "function": torch.relu,
    "method": lambda z: z.relu(),
    "method in place": lambda z: z.relu_(),
    "operator": torch.ops.aten.relu,
    "clamp": lambda z: z.clamp(min=0),
    "in place, then used twice": lambda z: z.relu_() * z,
    "after a view": lambda z: z.view(-1).relu().view(-1, M),
    "after a transpose": lambda z: torch.relu(z.T).T,
    "after an identity and an idle dropout": nn.Sequential(nn.Identity(), nn.Dropout().eval(), nn.ReLU()),
    "after casts": lambda z: z.to(torch.float64).relu().float(),
    "beside things without a gradient": lambda z: z.relu() * (z.detach() > z.shape[1]).logical_not(),
}


@pytest.mark.parametrize("relu", RELUS.values(), ids=RELUS.keys())
def test_every_relu_is_seen(relu: Function) -> None:
    assert step(Net(relu)).layers["fc"].activation == "relu"


class _Unseen(torch.autograd.Function):  # type: ignore[misc, name-defined]
    @staticmethod
    def forward(ctx: Any, z: Any) -> Any:
        return z * 2

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return grad * 2


OTHERS: dict[str, tuple[Function, str | Activation]] = {
    "gelu": (nn.GELU(), "gelu"),
    "leaky": (nn.LeakyReLU(), "leaky_relu"),
    "leaky elsewhere": (nn.LeakyReLU(0.2), Activation("leaky_relu", {"negative_slope": 0.2})),
    "relu6": (functional.relu6, "relu6"),
    "clamped elsewhere": (lambda z: z.clamp(min=0.1), "clamp"),
    "clamped twice": (lambda z: z.clamp(0, 1), Activation("hardtanh", {"low": 0, "high": 1})),
    "residual": (lambda z: z + z.relu(), "add+relu"),
    "normalised first": (nn.Sequential(nn.BatchNorm1d(M), nn.ReLU()), "batch_norm"),
    "dropped out first": (nn.Sequential(nn.Dropout(), nn.ReLU()), "dropout"),
    "changed in place first": (lambda z: z.mul_(-1).relu(), "mul"),
    "partly overwritten first": (lambda z: (z.__setitem__(0, 0.0), z.relu())[1], "setitem"),
    "straight into the next layer": (nn.Identity(), "none"),
    "unseen": (_Unseen.apply, "unknown"),
}


@pytest.mark.parametrize(("function", "name"), OTHERS.values(), ids=OTHERS.keys())
def test_other_activations_are_named(function: Function, name: str | Activation) -> None:
    recorder = step(Net(function))
    assert recorder.layers["fc"].activation == name
    assert recorder.layers["head"].activation == "none"
    assert (recorder.info.loss, recorder.info.loss_reduction) == ("cross_entropy", "mean")


def test_a_dump_holds_what_autograd_computed(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(N, M), nn.ReLU(), nn.Linear(M, M), nn.ReLU(), nn.Linear(M, 10))
    inputs, labels = batch()
    recorder = step(model, inputs, labels)
    recorder.write(
        tmp_path / "d.h5", record="client-0", labels=labels, input_shape=(1, 8, 8), input_mean=0.0, client=4
    )

    with open_dump(tmp_path / "d.h5") as dump:
        (record,) = dump.records
        assert dump.producer == f"torch {torch.__version__}"
        assert (record.name, record.info.input_shape, record.info.client) == ("client-0", (1, 8, 8), 4)
        assert record.labels is not None
        assert np.array_equal(record.labels[:], labels)
        assert [layer.name for layer in record.layers] == ["0", "2", "4"]
        assert [str(layer.activation) for layer in record.layers] == ["relu", "relu", "none"]
        assert [layer.follows for layer in record.layers] == [None, "0", "2"]
        assert (record.info.loss, record.info.loss_reduction) == ("cross_entropy", "mean")
        for layer in record.layers:
            module = model[int(layer.name)]
            for name in ("weight", "bias"):
                parameter = getattr(module, name)
                assert np.array_equal(layer.arrays[name][:], parameter.detach().numpy())
                assert np.array_equal(layer.arrays[f"{name}_grad"][:], parameter.grad.numpy())
        first, second = record.layers[0].truth, record.layers[1].truth
        assert first is not None
        assert second is not None
        assert np.array_equal(first[:], inputs)
        assert np.array_equal(second[:], model[:2](inputs).detach().numpy())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_every_precision_travels_unchanged(dtype: Any, tmp_path: Path) -> None:
    model = Net(nn.ReLU()).to(dtype)
    inputs, labels = batch()
    step(model, inputs.to(dtype), labels).write(tmp_path / "d.h5")
    with open_dump(tmp_path / "d.h5") as dump:
        layer = dump.records[0].layers[0]
        assert layer.gradients.precision == str(dtype).removeprefix("torch.")
        assert np.array_equal(layer.arrays["weight_grad"][:], model.fc.weight.grad.double().numpy())
        assert np.array_equal(layer.arrays["weight"][:], model.fc.weight.detach().double().numpy())


def test_tokens_count_as_inputs() -> None:
    inputs = torch.randn(3, 4, N)
    layer = step(Net(nn.ReLU()), inputs).layers["fc"]
    assert np.array_equal(values_of(layer.inputs), inputs.reshape(12, N))


def test_a_layer_called_twice_has_all_its_inputs() -> None:
    class Siamese(Net):
        def forward(self, pair: Any) -> Any:
            return self.head(self.fc(pair[0]).relu() - functional.relu(self.fc(pair[1])))

    model = Siamese(nn.ReLU())
    left, right = batch(seed=1)[0], batch(seed=2)[0]
    layer = step(model, torch.stack([left, right])).layers["fc"]
    assert layer.activation == "relu"
    assert np.array_equal(values_of(layer.inputs), torch.cat([left, right]))
    # The gradient is made of both halves: neither alone spans its rows.
    assert _left_outside(layer.weight_grad, layer.inputs) < 1e-6
    assert _left_outside(values_of(layer.weight_grad), values_of(layer.inputs)[:B]) > 1e-2


def _left_outside(rows: Any, inputs: Any) -> float:
    """Share of `rows` that is no combination of `inputs`."""
    combination = np.linalg.lstsq(inputs.T, rows.T)[0]
    return float(np.linalg.norm(rows.T - inputs.T @ combination) / np.linalg.norm(rows))


def test_what_has_no_gradient_is_skipped_with_its_reason() -> None:
    class Odd(Net):
        def __init__(self) -> None:
            super().__init__(nn.ReLU())
            self.unused = nn.Linear(N, M)
            self.frozen = nn.Linear(M, M).requires_grad_(False)
            self.tied, self.twin = nn.Linear(M, M), nn.Linear(M, M)
            self.twin.weight = self.tied.weight
            self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(M, M))
            self.beside_the_loss = nn.Linear(M, M)

        def forward(self, inputs: Any) -> Any:
            hidden = self.fc(inputs).relu()
            self.beside_the_loss(hidden)
            for layer in (self.frozen, self.tied, self.twin, self.normed):
                hidden = layer(hidden).relu()
            return self.head(hidden)

    recorder = step(Odd())
    assert list(recorder.layers) == ["fc", "head"]
    assert {name: reason.partition(":")[0] for name, reason in recorder.skipped.items()} == {
        "unused": "no forward pass with gradients went through it",
        "frozen": "its weight is frozen",
        "tied": "its weight is shared with another module, and so is the gradient",
        "twin": "its weight is shared with another module, and so is the gradient",
        "normed": "its weight is computed from other parameters",
        "beside_the_loss": "it has no gradient",
    }


@pytest.mark.parametrize("case", ["no bias", "frozen bias"])
def test_a_layer_without_bias_gradient_is_recorded_without_it(case: str) -> None:
    model = Net(nn.ReLU(), bias=case != "no bias")
    if case == "frozen bias":
        model.fc.bias.requires_grad_(False)
    layer = step(model).layers["fc"]
    assert layer.bias_grad is None
    assert (layer.bias is None) == (case == "no bias")


def test_nothing_to_record_is_an_error_and_writes_nothing(tmp_path: Path) -> None:
    recorder = step(Net(nn.ReLU()).requires_grad_(False), batch()[0].requires_grad_(), batch()[1])
    with pytest.raises(RecordingError, match=r"no layer was recorded .*fc: its weight is frozen"):
        recorder.write(tmp_path / "d.h5")
    assert list(tmp_path.iterdir()) == []


def test_chosen_layers_only() -> None:
    assert list(step(Net(nn.ReLU()), layers=["fc"]).layers) == ["fc"]
    with pytest.raises(ValueError, match=r"'conv', but the fully connected layers are: fc, head"):
        step(Net(nn.ReLU()), layers=["conv"])


def test_inputs_are_kept_only_if_asked_for() -> None:
    assert step(Net(nn.ReLU()), keep_inputs=False).layers["fc"].inputs is None


def test_a_lazy_layer_and_keyword_inputs() -> None:
    class Lazy(Net):
        def forward(self, inputs: Any) -> Any:
            return self.head(self.fc(input=inputs).relu())

    model = Lazy(nn.ReLU())
    model.fc = nn.LazyLinear(M)
    assert values_of(step(model).layers["fc"].weight_grad).shape == (M, N)


def test_evaluation_inside_the_block_does_not_count() -> None:
    model = Net(nn.ReLU())
    inputs, labels = batch()
    with record_gradients(model) as recorder:
        with torch.no_grad():
            model(torch.randn(7, N)).argmax(1)
        functional.cross_entropy(model(inputs), labels).backward()
    assert np.array_equal(values_of(recorder.layers["fc"].inputs), inputs)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_passes_count_once(reentrant: bool) -> None:
    model = Net(nn.ReLU())
    inputs, labels = batch()
    inputs.requires_grad_()
    with record_gradients(model) as recorder:
        logits = checkpoint(model, inputs, use_reentrant=reentrant)
        functional.cross_entropy(logits, labels).backward()
    layer = recorder.layers["fc"]
    assert np.array_equal(values_of(layer.inputs), inputs.detach())
    # A reentrant checkpoint calls the functions out of sight.
    assert layer.activation == ("unknown" if reentrant else "relu")
    assert recorder.layers["head"].follows == (None if reentrant else "fc")


def test_the_gradient_is_what_is_shared_at_the_end_of_the_block() -> None:
    model = Net(nn.ReLU())
    inputs, labels = batch()
    with record_gradients(model) as recorder:
        functional.cross_entropy(model(inputs), labels).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    assert np.array_equal(values_of(recorder.layers["fc"].weight_grad), model.fc.weight.grad.numpy())
    assert np.linalg.norm(values_of(recorder.layers["fc"].weight_grad)) < 1e-3


def test_the_weight_is_that_of_the_forward_pass() -> None:
    model = Net(nn.ReLU())
    before = model.fc.weight.detach().clone()
    optimizer = torch.optim.Adam(model.parameters())
    inputs, labels = batch()
    with record_gradients(model) as recorder:
        optimizer.zero_grad()
        functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    assert not torch.equal(before, model.fc.weight)
    assert np.array_equal(values_of(recorder.layers["fc"].weight), before)


def test_micro_batches_add_up() -> None:
    model = Net(nn.ReLU())
    inputs, labels = batch()
    with record_gradients(model) as recorder:
        for part in (slice(0, 3), slice(3, B)):
            functional.cross_entropy(model(inputs[part]), labels[part], reduction="sum").backward()
    layer = recorder.layers["fc"]
    assert np.array_equal(values_of(layer.inputs), inputs)
    assert np.linalg.matrix_rank(values_of(layer.weight_grad)) == B


def test_a_gradient_left_over_is_refused() -> None:
    model = Net(nn.ReLU())
    step(model)
    with pytest.raises(RecordingError, match="still holds the gradient of an earlier step"):
        step(model)
    model.zero_grad(set_to_none=False)
    assert step(model).layers


def test_two_steps_in_one_block_are_refused() -> None:
    model = Net(nn.ReLU())
    inputs, labels = batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def train() -> None:
        with record_gradients(model):
            for _ in range(2):
                optimizer.zero_grad()
                functional.cross_entropy(model(inputs), labels).backward()
                optimizer.step()

    with pytest.raises(RecordingError, match="'fc' changed between two forward passes"):
        train()


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(fails: bool) -> None:
    model = Net(nn.ReLU())
    inputs, labels = batch()

    def run() -> None:
        with record_gradients(model):
            functional.cross_entropy(model(inputs), labels).backward()
            if fails:
                raise KeyboardInterrupt

    if fails:
        with pytest.raises(KeyboardInterrupt):
            run()
    else:
        run()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not any(parameter._backward_hooks for parameter in model.parameters())
    assert torch.overrides._get_current_function_mode() is None


def test_clients_of_one_round_share_the_model(tmp_path: Path) -> None:
    model = Net(nn.ReLU())
    with RoundWriter(tmp_path / "round.h5", compression="gzip") as dump:
        for client in range(3):
            inputs, labels = batch(seed=client)
            if client == 2:
                with torch.no_grad():
                    model.head.bias.add_(1)
            dump.add(f"client-{client}", step(model, inputs, labels), labels=labels, client=client)
            model.zero_grad()

    with h5py.File(tmp_path / "round.h5") as file:
        first, second, third = (file[f"records/client-{client}/layers/fc"] for client in range(3))
        assert first["weight"] == second["weight"]
        assert first["bias"] == second["bias"]
        assert first["weight_grad"] != second["weight_grad"]
        # One changed number, and the record has a model of its own.
        assert first["weight"] != third["weight"]
    with open_dump(tmp_path / "round.h5") as opened:
        assert [record.info.client for record in opened.records] == [0, 1, 2]
        assert all(len(record.layers[1].arrays) == 4 for record in opened.records)


def wide() -> Any:
    """A network whose first layer gives batches of five away."""
    return nn.Sequential(nn.Linear(N, 80), nn.ReLU(), nn.Linear(80, 70), nn.ReLU(), nn.Linear(70, 10))


def parameters_of(model: Any) -> dict[str, Any]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def functional_gradients(model: Any, parameters: dict[str, Any], inputs: Any, labels: Any) -> dict[str, Any]:
    def loss(parameters: dict[str, Any]) -> Any:
        logits = torch.func.functional_call(model, parameters, (inputs,))
        return functional.cross_entropy(logits.float(), labels)

    gradients: dict[str, Any] = torch.func.grad(loss)(parameters)
    return gradients


def sgd_step(model: Any, inputs: Any, labels: Any, learning_rate: float) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)
    optimizer.zero_grad()
    functional.cross_entropy(model(inputs), labels).backward()
    optimizer.step()


def test_functional_gradients_are_inverted_exactly(tmp_path: Path) -> None:
    model = wide()
    inputs, labels = batch()
    gradients = functional_gradients(model, parameters_of(model), inputs, labels)
    update = from_gradients(model, gradients, inputs=inputs)
    assert [layer.activation for layer in update.layers.values()] == ["relu", "relu", "none"]
    assert np.array_equal(values_of(update.layers["2"].inputs), model[:2](inputs).detach())
    update.write(tmp_path / "d.h5", labels=labels)
    status, recovered = inverted(tmp_path / "d.h5")["record-0"]
    assert status == "exact"
    assert decibels(recovered, inputs.numpy()) > 100
    with open_dump(tmp_path / "d.h5") as dump:
        for layer in dump.records[0].layers:
            assert np.array_equal(layer.arrays["weight_grad"][:], gradients[f"{layer.name}.weight"])
            assert np.array_equal(layer.arrays["bias_grad"][:], gradients[f"{layer.name}.bias"])


def test_without_inputs_a_relu_is_taken_to_follow_all_but_the_last_layer() -> None:
    model = wide()
    gradients = functional_gradients(model, parameters_of(model), *batch())
    update = from_gradients(model, gradients, activations={"2": "gelu"})
    assert {name: layer.activation for name, layer in update.layers.items()} == {
        "0": "relu",
        "2": "gelu",
        "4": "linear",
    }
    with pytest.raises(
        ValueError, match="`activations` names 'fc', but the fully connected layers are: 0, 2, 4"
    ):
        from_gradients(model, gradients, activations={"fc": "relu"})


def test_gradients_at_parameters_outside_the_module(tmp_path: Path) -> None:
    model = wide()
    moved = {name: p + 0.01 for name, p in parameters_of(model).items()}
    inputs, labels = batch()
    gradients = functional_gradients(model, moved, inputs, labels)
    with RoundWriter(tmp_path / "round.h5") as dump:
        dump.add("moved", from_gradients(model, gradients, parameters=moved, inputs=inputs))
        dump.add("again", from_gradients(model, gradients, parameters=moved))
        dump.add("own", from_gradients(model, gradients))
    with h5py.File(tmp_path / "round.h5") as file:
        one, two, other = (file[f"records/{name}/layers/0/weight"] for name in ("moved", "again", "own"))
        assert np.array_equal(one[:], moved["0.weight"])
        assert one == two
        assert one != other


def test_what_was_not_given_is_skipped() -> None:
    model = wide()
    gradients = functional_gradients(model, parameters_of(model), *batch())
    del gradients["0.weight"], gradients["2.bias"]
    update = from_gradients(model, gradients)
    assert update.skipped == {"0": "nothing of it was given"}
    assert update.layers["2"].bias_grad is None
    assert update.layers["2"].bias is not None
    with pytest.raises(
        RecordingError, match=r"'4.weight' has shape \(70, 10\), but the parameter has \(10, 70\)"
    ):
        from_gradients(model, {"4.weight": gradients["4.weight"].T})


def test_looking_at_the_inputs_leaves_everything_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(N, M), nn.BatchNorm1d(M), nn.ReLU(), nn.Dropout(0.5), nn.Linear(M, 10))
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    inputs, _ = batch()
    with torch.no_grad():
        update = from_gradients(model, parameters_of(model), inputs=inputs)
    assert [layer.activation for layer in update.layers.values()] == ["batch_norm", "none"]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("learning_rate", [None, 0.1])
def test_one_step_between_two_states_gives_the_batch_away(
    tmp_path: Path, learning_rate: float | None
) -> None:
    model = wide()
    inputs, labels = batch()
    before = copy.deepcopy(model.state_dict())
    sgd_step(model, inputs, labels, 0.1)
    update = from_weights(
        model, before, model.state_dict(), learning_rate=learning_rate, local_steps=1, inputs=inputs
    )
    update.write(tmp_path / "d.h5", client="c")
    with h5py.File(tmp_path / "d.h5") as file:
        record = file["records/record-0"]
        assert record.attrs["update"] == "weight_delta"
        assert record.attrs.get("learning_rate") == learning_rate
        assert (record.attrs["local_steps"], record.attrs["client"]) == (1, "c")
        stored = record["layers/0/weight_grad"][:]
        assert np.array_equal(stored, model[0].weight.detach().numpy() - before["0.weight"].numpy())
        assert np.array_equal(record["layers/0/weight"][:], before["0.weight"])
    _, recovered = inverted(tmp_path / "d.h5")["record-0"]
    assert decibels(recovered, inputs.numpy()) > 60


def test_two_states_that_are_one_are_refused() -> None:
    model = wide()
    before = model.state_dict()  # no copy
    sgd_step(model, *batch(), 0.1)
    with pytest.raises(
        RecordingError, match=r"are the same tensors: .* copy.deepcopy\(model.state_dict\(\)\)"
    ):
        from_weights(model, before, model.state_dict())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_narrow_numbers_in_hand_stay_narrow(tmp_path: Path, dtype: Any) -> None:
    model = wide().to(dtype)
    inputs, labels = batch()
    gradients = functional_gradients(model, parameters_of(model), inputs.to(dtype), labels)
    after = {name: p - 0.1 * gradients[name] for name, p in parameters_of(model).items()}
    with RoundWriter(tmp_path / "d.h5") as dump:
        dump.add("gradient", from_gradients(model, gradients))
        dump.add("difference", from_weights(model, parameters_of(model), after))
    with open_dump(tmp_path / "d.h5") as opened:
        layers = {record.name: record.layers[0] for record in opened.records}
        assert {layer.gradients.precision for layer in layers.values()} == {str(dtype).removeprefix("torch.")}
        stored = layers["gradient"].arrays["weight_grad"][:]
        assert np.array_equal(stored, gradients["0.weight"].double())
        difference = after["0.weight"] - model[0].weight.detach()
        assert np.array_equal(-layers["difference"].arrays["weight_grad"][:], difference.double())


def test_nothing_is_copied_unless_asked_for() -> None:
    model = wide()
    inputs, labels = batch()
    with record_gradients(model, copy=False, keep_inputs=False) as recorder:
        functional.cross_entropy(model(inputs), labels).backward()
    handed = from_gradients(model, {name: p.grad for name, p in model.named_parameters()})
    for update in (recorder, handed):
        layer = update.layers["0"]
        assert np.shares_memory(values_of(layer.weight_grad), model[0].weight.grad.numpy())
        assert np.shares_memory(values_of(layer.bias_grad), model[0].bias.grad.numpy())
        assert np.shares_memory(values_of(layer.weight), model[0].weight.detach().numpy())
        assert np.shares_memory(values_of(layer.bias), model[0].bias.detach().numpy())


@pytest.mark.parametrize("way", ["recorded", "gradients", "weights"])
def test_a_large_model_is_not_held_twice(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spear_io.files.storage.BLOCK_BYTES", 2**18)
    model = nn.Sequential(nn.Linear(2000, 1000), nn.ReLU(), nn.Linear(1000, 10))
    size = 4 * 2000 * 1000
    inputs = torch.rand(2, 2000)
    before = copy.deepcopy(model.state_dict())
    with record_gradients(model, copy=False) as update:
        model(inputs).square().sum().backward()
    if way == "gradients":
        update = from_gradients(model, {name: p.grad for name, p in model.named_parameters()})
    elif way == "weights":
        torch.optim.SGD(model.parameters(), lr=0.1).step()
        update = from_weights(model, before, model.state_dict())
    tracemalloc.start()
    try:
        update.write(tmp_path / "d.h5")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (tmp_path / "d.h5").stat().st_size > 2 * size
    assert peak < size / 10


def test_what_changes_before_it_is_written_is_refused(tmp_path: Path) -> None:
    model = wide()
    inputs, labels = batch()
    with record_gradients(model, copy=False) as recorder:
        functional.cross_entropy(model(inputs), labels).backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    with pytest.raises(RecordingError, match="changed after it was handed over"):
        recorder.write(tmp_path / "d.h5")
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_trains_on_is_not_taken_for_the_same(tmp_path: Path) -> None:
    model = wide()
    inputs, labels = batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with RoundWriter(tmp_path / "rounds.h5") as dump:
        for number in range(2):
            for client in range(2):
                optimizer.zero_grad()
                with record_gradients(model, copy=False) as recorder:
                    functional.cross_entropy(model(inputs), labels).backward()
                dump.add(f"{number}-{client}", recorder)
            optimizer.step()
    with h5py.File(tmp_path / "rounds.h5") as file:
        weights = {name: record["layers/0/weight"] for name, record in file["records"].items()}
        assert weights["0-0"] == weights["0-1"]
        assert weights["1-0"] == weights["1-1"]
        assert not np.array_equal(weights["0-0"][:], weights["1-0"][:])


def test_functional_gradients_leave_nothing_to_record() -> None:
    model = wide()
    with record_gradients(model) as recorder:
        functional_gradients(model, parameters_of(model), *batch())
    assert recorder.layers == {}
    assert {reason.partition(":")[0] for reason in recorder.skipped.values()} == {"it has no gradient"}


def test_without_pytorch_the_import_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError")
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", "import spear_io.adapters.to_torch"],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": f"{tmp_path}:{root}:{root / 'io'}", "PATH": ""},
    )
    assert done.stderr.endswith("ImportError: PyTorch is not installed: pip install 'spear-np[torch]'\n")


def listed(values: dict[str, Any]) -> Any:
    return tuple(values.values())


def as_numpy(values: dict[str, Any]) -> Any:
    return {name: value.numpy() for name, value in values.items()}


def listed_numpy(values: dict[str, Any]) -> Any:
    return [value.numpy() for value in values.values()]


def compiled(values: dict[str, Any]) -> Any:
    return {f"_orig_mod.{name}": value for name, value in values.items()}


def parallel(values: dict[str, Any]) -> Any:
    return {f"module._orig_mod.{name}": value for name, value in values.items()}


HANDED_OVER = (listed, as_numpy, listed_numpy, compiled, parallel)


@pytest.mark.parametrize("handed", HANDED_OVER, ids=lambda handed: handed.__name__)
def test_gradients_and_weights_come_in_every_shape_that_people_hold(handed: Any) -> None:
    model = wide()
    before = parameters_of(model)
    gradients = functional_gradients(model, before, *batch())
    after = {name: p - gradients[name] for name, p in before.items()}
    for update, wanted in (
        (from_gradients(model, handed(gradients)), gradients),
        (from_gradients(model, handed(gradients), parameters=handed(before)), gradients),
        (from_weights(model, handed(before), after), {name: after[name] - before[name] for name in after}),
        (from_weights(model, before, handed(after)), {name: after[name] - before[name] for name in after}),
    ):
        assert list(update.layers) == ["0", "2", "4"]
        for name, layer in update.layers.items():
            assert np.array_equal(values_of(layer.weight_grad), wanted[f"{name}.weight"])
            assert np.array_equal(values_of(layer.bias_grad), wanted[f"{name}.bias"])
            assert np.array_equal(values_of(layer.weight), before[f"{name}.weight"])


def test_the_model_may_be_the_wrapped_side() -> None:
    model = wide()
    gradients = functional_gradients(model, parameters_of(model), *batch())
    update = from_gradients(nn.Sequential(model), gradients)
    assert [name.removeprefix("0.") for name in update.layers] == ["0", "2", "4"]
    assert np.array_equal(values_of(update.layers["0.4"].weight_grad), gradients["4.weight"])


def test_a_list_may_leave_out_what_is_frozen() -> None:
    model = wide()
    for parameter in model[0].parameters():
        parameter.requires_grad_(False)
    trained = [p for p in model.parameters() if p.requires_grad]
    inputs, labels = batch()
    gradients = torch.autograd.grad(functional.cross_entropy(model(inputs), labels), trained)
    for given in (gradients, (None, None, *gradients)):
        update = from_gradients(model, given)
        assert update.skipped == {"0": "its weight is frozen"}
        assert np.array_equal(values_of(update.layers["2"].weight_grad), gradients[0])


@pytest.mark.parametrize("number", [4, 5, 7])
def test_a_list_that_does_not_fit_is_refused(number: int) -> None:
    model = wide()
    gradients = [*parameters_of(model).values(), torch.ones(3)][:number]
    with pytest.raises(RecordingError, match=f"holds {number} arrays, which do not fit the 6 parameters"):
        from_gradients(model, gradients)
    with pytest.raises(RecordingError, match="do not fit the 6 parameters"):
        from_gradients(model, [*parameters_of(model).values()][::-1])


def test_names_of_another_model_are_refused() -> None:
    with pytest.raises(
        RecordingError, match=r"no name in `gradients` is one of the model: there is 'fc\.weight'"
    ):
        from_gradients(wide(), {"fc.weight": torch.ones(3)})
    two = {f"{side}.{name}": p for side in ("a", "b") for name, p in parameters_of(wide()).items()}
    with pytest.raises(RecordingError, match=r"in several ways: without 'a\.' or 'b\.'"):
        from_weights(wide(), parameters_of(wide()), two)


@pytest.mark.parametrize("first", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("then", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_states_of_two_precisions_differ_in_the_wider_one(tmp_path: Path, first: Any, then: Any) -> None:
    model = wide()
    before = {name: p.to(first) for name, p in parameters_of(model).items()}
    after = {name: (p + 0.25).to(then) for name, p in parameters_of(model).items()}
    from_weights(model, before, after).write(tmp_path / "d.h5")
    with open_dump(tmp_path / "d.h5") as dump:
        stored = dump.records[0].layers[0].arrays
        assert stored["weight"].precision == str(first).removeprefix("torch.")
        wider = torch.promote_types(first, then)
        assert stored["weight_grad"].precision == str(wider).removeprefix("torch.")
        wanted = after["0.weight"].to(wider) - before["0.weight"].to(wider)
        np.testing.assert_array_equal(-stored["weight_grad"][:], wanted.double().numpy())
