"""Three clients, one round: what a Flower server can dump of it, and what that gives away."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import spear_np
from spear_io import FileError, open_dump
from tests.inverting import decibels, inverted

flwr = pytest.importorskip("flwr", reason="Flower is not installed: pip install 'spear-np[flower]'")
pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'spear-np[torch]'")

from flwr.app import ArrayRecord, ConfigRecord
from flwr.common import (
    Code,
    FitIns,
    FitRes,
    Status,
    ndarrays_to_parameters,
    parameters_to_ndarrays,
)
from flwr.server import SimpleClientManager
from flwr.server.client_proxy import ClientProxy
from flwr.server.strategy import FedAvg as FitAvg
from flwr.serverapp.strategy import FedAvg

from spear_io.adapters._flower_rounds import Reply
from spear_io.adapters.to_flower import DumpFits, DumpUpdates, RecordingError
from tests.flower_clients import IDS, B, Clients, client_batch, network, pretend_a_run, train

RATE = 0.1
LAYERS = ("0", "2", "4")


@pytest.fixture(autouse=True)
def _in_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_a_run(monkeypatch)


def named() -> ArrayRecord:
    return ArrayRecord(network().state_dict())


def bare() -> ArrayRecord:
    return ArrayRecord([values.numpy() for values in network().state_dict().values()])


def run_round(strategy: Any, arrays: ArrayRecord, clients: Clients | None = None) -> Any:
    config = ConfigRecord({"lr": RATE})
    return strategy.start(clients or Clients(), initial_arrays=arrays, num_rounds=1, train_config=config)


def dumping(folder: Path, **options: Any) -> DumpUpdates:
    return DumpUpdates(FedAvg(min_available_nodes=3), folder, **options)


def test_every_client_of_a_round_is_recovered(tmp_path: Path) -> None:
    run_round(dumping(tmp_path / "updates", local_steps=1), named())
    dump = tmp_path / "updates" / "round-1.h5"
    with h5py.File(dump) as file:
        for name in LAYERS:
            one, two, three = (file[f"records/client-{client}/layers/{name}"] for client in IDS)
            assert one["weight"] == two["weight"] == three["weight"]
            assert one["bias"] == two["bias"] == three["bias"]
    with open_dump(dump) as opened:
        assert opened.producer == f"flwr {flwr.__version__}"
        assert {record.info.client for record in opened.records} == set(IDS)
        for record in opened.records:
            assert (record.info.update, record.info.local_steps) == ("weight_delta", 1)
            assert (record.info.learning_rate, record.info.round, record.info.batch_size) == (RATE, 1, B)
            assert tuple(layer.name for layer in record.layers) == LAYERS
            assert [str(layer.activation) for layer in record.layers] == ["relu", "relu", "none"]
    recovered = inverted(dump)
    for client in IDS:
        _, inputs = recovered[f"client-{client}"]
        assert decibels(inputs, client_batch(client)[0]) > 60


class Proxy(ClientProxy):  # type: ignore[misc]
    """A client as the older interface reaches it: asked for one thing at a time."""

    def fit(self, ins: FitIns, timeout: float | None, group_id: int | None) -> FitRes:
        sent = ArrayRecord(parameters_to_ndarrays(ins.parameters))
        trained = train(sent, int(self.cid), RATE)
        parameters = ndarrays_to_parameters(trained.to_numpy_ndarrays())
        return FitRes(Status(Code.OK, ""), parameters, num_examples=B, metrics={})

    def _unused(self, *arguments: Any, **options: Any) -> Any:
        raise NotImplementedError

    get_properties = get_parameters = evaluate = reconnect = _unused


def test_the_older_interface_gives_the_same_away(tmp_path: Path) -> None:
    clients = SimpleClientManager()
    for client in IDS:
        clients.register(Proxy(str(client)))
    inner = FitAvg(
        min_available_clients=3,
        fraction_evaluate=0.0,
        on_fit_config_fn=lambda server_round: {"lr": RATE},
        initial_parameters=ndarrays_to_parameters(bare().to_numpy_ndarrays()),
    )
    strategy = DumpFits(inner, tmp_path, local_steps=1, names=list(network().state_dict()))
    # What `Server.fit` does of one round.
    parameters = strategy.initialize_parameters(clients)
    results = [
        (client, client.fit(ins, None, None))
        for client, ins in strategy.configure_fit(1, parameters, clients)
    ]
    aggregated, _ = strategy.aggregate_fit(1, results, [])
    again, _ = FitAvg().aggregate_fit(1, results, [])
    assert aggregated == again
    assert strategy.evaluate(1, aggregated) is None
    assert strategy.configure_evaluate(1, aggregated, clients) == []
    assert strategy.aggregate_evaluate(1, [], []) == (None, {})
    with open_dump(tmp_path / "round-1.h5") as dump:
        for record in dump.records:
            assert tuple(layer.name for layer in record.layers) == LAYERS
            assert (record.info.learning_rate, record.info.round, record.info.batch_size) == (RATE, 1, B)
    recovered = inverted(tmp_path / "round-1.h5")
    for client in IDS:
        assert decibels(recovered[f"client-{client}"][1], client_batch(client)[0]) > 60


def test_training_goes_on_as_without(tmp_path: Path) -> None:
    alone = run_round(FedAvg(min_available_nodes=3), named())
    wrapped = run_round(dumping(tmp_path), named())
    for one, other in zip(alone.arrays.values(), wrapped.arrays.values(), strict=True):
        assert np.allclose(one.numpy(), other.numpy(), atol=1e-7)  # clients come in any order
    assert alone.evaluate_metrics_clientapp == wrapped.evaluate_metrics_clientapp


def test_parameters_without_names_are_paired_by_position(tmp_path: Path) -> None:
    run_round(dumping(tmp_path / "bare", learning_rate=0.5), bare())
    run_round(dumping(tmp_path / "named", names=list(network().state_dict())), bare())
    with (
        open_dump(tmp_path / "bare" / "round-1.h5") as without,
        open_dump(tmp_path / "named" / "round-1.h5") as given,
    ):
        assert [layer.name for layer in without.records[0].layers] == ["0", "2", "4"]
        assert [layer.name for layer in given.records[0].layers] == list(LAYERS)
        for one, other in zip(without.records[0].layers, given.records[0].layers, strict=True):
            assert np.array_equal(one.arrays["weight"][:], other.arrays["weight"][:])
            assert np.array_equal(one.arrays["bias"][:], other.arrays["bias"][:])
        info = without.records[0].info
        assert info.learning_rate == 0.5
        assert info.batch_size is None  # of one of several steps, for all that is known
    with pytest.raises(ValueError, match="`names` has 1 names, but 6 parameters are sent"):
        run_round(dumping(tmp_path, names=["fc.weight"]), bare())


def test_clients_that_fail_are_left_out(tmp_path: Path) -> None:
    run_round(dumping(tmp_path), named(), Clients(failing=IDS[1]))
    with open_dump(tmp_path / "round-1.h5") as dump:
        assert {record.info.client for record in dump.records} == {IDS[0], IDS[2]}


def test_a_round_without_replies_writes_nothing(tmp_path: Path) -> None:
    assert dumping(tmp_path / "updates").aggregate_train(1, []) == (None, None)
    assert list(tmp_path.iterdir()) == []


def test_a_client_that_sends_something_else_is_refused(tmp_path: Path) -> None:
    def turned(arrays: ArrayRecord, *_: Any) -> ArrayRecord:
        names = list(arrays)
        return ArrayRecord({**arrays, names[0]: arrays[names[2]]})

    with pytest.raises(
        RecordingError, match=r"'0.weight' has shape \(70, 80\), but the parameter has \(80, 64\)"
    ):
        run_round(dumping(tmp_path), named(), Clients(turned))
    assert list(tmp_path.iterdir()) == []


def test_without_flower_the_import_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "flwr.py").write_text("raise ImportError")
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", "import spear_io.adapters.to_flower"],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": f"{tmp_path}:{root}:{root / 'io'}", "PATH": ""},
    )
    assert done.stderr.endswith("ImportError: Flower is not installed: pip install 'spear-np[flower]'\n")


def links(folder: Path) -> list[tuple[str, str, str | None, str | None]]:
    with open_dump(folder / "round-1.h5") as dump:
        assert {tuple(map(link, record.layers)) for record in dump.records} == {
            tuple(map(link, dump.records[0].layers))
        }
        return [link(layer) for layer in dump.records[0].layers]


def link(layer: Any) -> tuple[str, str, str | None, str | None]:
    return layer.name, str(layer.activation), layer.follows, layer.between


def test_the_user_says_which_layer_feeds_which(tmp_path: Path) -> None:
    leaky = spear_np.Activation("leaky_relu", {"negative_slope": 0.2})
    run_round(dumping(tmp_path, follows=True, activations={"2": leaky}, loss="cross_entropy"), named())
    assert links(tmp_path) == [
        ("0", "relu", None, None),
        ("2", "leaky_relu(negative_slope=0.2)", "0", None),
        ("4", "none", "2", None),
    ]
    with open_dump(tmp_path / "round-1.h5") as dump:
        assert dump.records[0].info.loss == "cross_entropy"
    run_round(dumping(tmp_path / "bare", follows={"2": "0"}), bare())
    assert [one[2] for one in links(tmp_path / "bare")] == [None, "0", None]
    with pytest.raises(ValueError, match="`follows` names 'x', but the fully connected layers are: 0, 2, 4"):
        run_round(dumping(tmp_path / "wrong", follows={"x": "0"}), bare())
    with pytest.raises(FileError, match="layer '0': the attribute 'follows' is '2', which comes later"):
        run_round(dumping(tmp_path / "wrong", follows={"0": "2"}), bare())
    assert list((tmp_path / "wrong").iterdir()) == []


def test_names_and_shapes_alone_link_nothing(tmp_path: Path) -> None:
    run_round(dumping(tmp_path), named())
    assert [one[2:] for one in links(tmp_path)] == [(None, None)] * 3


@pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)  # of Keras' own `get_weights`
@pytest.mark.skipif(os.environ["KERAS_BACKEND"] != "jax", reason="Keras runs on another backend here")
def test_a_keras_model_tells(tmp_path: Path) -> None:
    keras = pytest.importorskip("keras", reason="Keras is not installed: pip install 'spear-np[keras]'")
    layers = keras.layers
    x = keras.Input((8, 8, 1))
    y = layers.Flatten()(layers.Conv2D(2, 3, activation="relu")(x))
    y = layers.Dense(20, activation="elu", name="b")(layers.Dense(20, activation="gelu", name="a")(y))
    y = layers.LayerNormalization()(layers.Dense(20, activation="selu", name="c")(layers.Dropout(0.2)(y)))
    model = keras.Model(x, layers.Dense(10, name="e")(layers.Dense(20, activation="tanh", name="d")(y)))
    strategy = DumpFits(FitAvg(), tmp_path, model=model, follows={"c": "b"})
    before = model.get_weights()
    reply = Reply(
        7, numbered(before), numbered([values + 1 for values in before]), examples=5, learning_rate=0.1
    )
    strategy._write(1, [reply])
    assert links(tmp_path) == [
        ("a", "gelu", None, "conv2d"),
        ("b", "elu", "a", None),
        ("c", "selu", "b", None),
        ("d", "tanh", None, "layer_norm"),
        ("e", "none", "d", None),
    ]
    with open_dump(tmp_path / "round-1.h5") as dump:
        assert dump.producer == f"flwr {flwr.__version__}"
        assert np.array_equal(dump.records[0].layers[0].arrays["weight"][:], before[2].T)
        assert dump.records[0].info.learning_rate == 0.1


def numbered(arrays: list[Any]) -> dict[str, Any]:
    return {str(position): array for position, array in enumerate(arrays)}


def test_a_torch_model_tells_and_its_example_is_not_written(tmp_path: Path) -> None:
    import torch

    run_round(
        dumping(tmp_path, model=network(), example=torch.zeros(2, 64), activations={"2": "gelu"}), bare()
    )
    assert [one[0] for one in links(tmp_path)] == ["0", "2", "4"]
    assert [one[1] for one in links(tmp_path)][:2] == ["relu", "gelu"]
    with open_dump(tmp_path / "round-1.h5") as dump:
        assert [layer.truth for layer in dump.records[0].layers] == [None] * 3
    recovered = inverted(tmp_path / "round-1.h5")
    assert decibels(recovered[f"client-{IDS[0]}"][1], client_batch(IDS[0])[0]) > 60
    for options, problem in (
        ({"model": network()}, "give an `example` of its inputs"),
        (
            {"model": torch.nn.Linear(2, 2), "example": torch.zeros(1, 2)},
            "6 parameters were sent, but `model` has 2",
        ),
        ({"model": "resnet"}, "`model` is of type str: hand over a keras.Model or a torch.nn.Module"),
    ):
        with pytest.raises(RecordingError, match=problem):
            run_round(dumping(tmp_path, **options), bare())
