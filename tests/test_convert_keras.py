"""Keras files of three kinds, written by Keras 3 on the backend that is there."""

from __future__ import annotations

import importlib.util
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spear_io import open_dump
from tests.convert_files import BATCH, assert_exact, converted, inverted, worst_psnr
from tests.io_files import Command, command
from tests.networks import Floats, digit_batch

if not any(importlib.util.find_spec(backend) for backend in ("jax", "torch")):
    pytest.skip("Keras has no backend", allow_module_level=True)
keras = pytest.importorskip("keras", reason="Keras is not installed")

# Keras' own variables, met whenever it saves.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't:DeprecationWarning")

WIDTH = 100
SUFFIXES = (".weights.h5", ".keras", ".h5")


@pytest.fixture
def spear(capsys: pytest.CaptureFixture[str]) -> Command:
    return command(capsys)


def network(**options: Any) -> Any:
    """A network whose names say nothing of the order, trained by plain SGD."""
    keras.utils.set_random_seed(4)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((64,)),
            layers.Dense(WIDTH, name="zebra", **options),
            layers.ReLU(),
            layers.Dense(10, name="ant", **options),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(1.0), loss, jit_compile=False)
    return model


def save(model: Any, path: Path) -> Path:
    if path.name.endswith(".weights.h5"):
        model.save_weights(path)
    else:
        model.save(path)
    return path


def gradients_of(model: Any, images: Floats, labels: Floats) -> list[Floats]:
    """Return the gradients of the loss by the backend itself, one array a weight."""
    if keras.backend.backend() == "torch":
        model.zero_grad()
        keras.ops.mean(model.loss(labels, model(images))).backward()
        return [weight.value.grad.numpy() for weight in model.trainable_weights]
    import jax

    fixed = [variable.value for variable in model.non_trainable_variables]

    def loss(weights: Any) -> Any:
        outputs, _ = model.stateless_call(weights, fixed, images)
        return keras.ops.mean(model.loss(labels, outputs))

    return [np.asarray(g) for g in jax.grad(loss)([w.value for w in model.trainable_variables])]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_gradients_saved_as_a_model(spear: Command, tmp_path: Path, suffix: str) -> None:
    images, labels = digit_batch(BATCH, seed=7)
    model, holder = network(), network()
    holder.set_weights(gradients_of(model, images, labels))
    model_file, gradient_file = save(model, tmp_path / f"m{suffix}"), save(holder, tmp_path / f"g{suffix}")
    document = converted(spear, tmp_path, gradient_file, "--gradients", "--model", model_file)
    first, last = document["layers"]
    assert (first["layer"], first["shape"], first["activation"]) == ("zebra", [WIDTH, 64], "relu")
    assert (last["layer"], last["shape"], last["activation"]) == ("ant", [10, WIDTH], "none")
    assert {layer["orientation"] for layer in document["layers"]} == {"nm"}
    assert_exact(spear, tmp_path, images)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_step_between_two_files(spear: Command, tmp_path: Path, suffix: str) -> None:
    images, labels = digit_batch(BATCH, seed=7)
    model = network()
    before = save(model, tmp_path / f"before{suffix}")
    model.train_on_batch(images, labels)
    after = save(model, tmp_path / f"after{suffix}")
    converted(spear, tmp_path, "--before", before, "--after", after, "--learning-rate", 1)
    _, recovered = inverted(spear, tmp_path)
    assert worst_psnr(recovered, images) > 60


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_step_of_adam_is_said(spear: Command, tmp_path: Path, suffix: str) -> None:
    images, labels = digit_batch(BATCH, seed=2)
    for name, optimizer in (("adam", keras.optimizers.Adam()), ("sgd", keras.optimizers.SGD(0.1))):
        model = network()
        model.compile(optimizer, model.loss, jit_compile=False)
        before = save(model, tmp_path / f"{name}_before{suffix}")
        model.train_on_batch(images, labels)
        after = save(model, tmp_path / f"{name}_after{suffix}")
        document = converted(spear, tmp_path, "--before", before, "--after", after)
        assert any("a step of Adam" in note for note in document["notes"]) == (name == "adam")


def test_a_scale_of_the_inputs_is_said(spear: Command, tmp_path: Path) -> None:
    dense = [keras.layers.Dense(80, activation="relu"), keras.layers.Dense(10)]
    model = keras.Sequential([keras.Input((64,)), keras.layers.Rescaling(2.0, -1.0, name="wide"), *dense])
    document = converted(spear, tmp_path, save(model, tmp_path / "a.keras"), "--gradients")
    assert any("another scale first ('wide')" in note for note in document["notes"])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_moments_of_adam_are_no_gradients(spear: Command, tmp_path: Path, suffix: str) -> None:
    model = network()
    model.compile(keras.optimizers.Adam(), "mse", jit_compile=False)
    images, _ = digit_batch(BATCH, seed=7)
    model.train_on_batch(images, np.zeros((BATCH, 10)))
    run = spear("convert", save(model, tmp_path / f"m{suffix}"), tmp_path / "dump.h5")
    assert run.status == 2
    assert "without gradients" in run.error
    assert "'zebra'" in run.error
    assert not (tmp_path / "dump.h5").exists()


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_narrow_numbers_travel_unchanged(spear: Command, tmp_path: Path, suffix: str, precision: str) -> None:
    model = network(dtype=precision)
    converted(spear, tmp_path, save(model, tmp_path / f"m{suffix}"), "--gradients")
    kernel = keras.ops.convert_to_numpy(keras.ops.cast(model.get_layer("zebra").kernel, "float32"))
    with open_dump(tmp_path / "dump.h5") as dump:
        stored = dump.records[0].layers[0].arrays["weight_grad"]
        assert stored.precision == precision
        np.testing.assert_array_equal(stored[:].astype(np.float32), kernel.T)


def test_the_configuration_tells_what_follows_each_layer(spear: Command, tmp_path: Path) -> None:
    layers = keras.layers
    inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(4, 3, activation="relu", name="filters")(inputs)
    x = layers.Flatten()(x)
    x = layers.Dense(30, name="normalised")(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Dense(20, name="clipped", activation="relu6")(x)
    x = layers.Dense(20, name="split")(x)
    x = layers.Add()([layers.Activation("relu")(x), layers.Reshape((20,))(x)])
    model = keras.Model(inputs, layers.Dense(10, name="head", activation="softmax")(x))
    document = converted(spear, tmp_path, save(model, tmp_path / "m.keras"), "--gradients")
    assert [(layer["layer"], layer["activation"]) for layer in document["layers"]] == [
        ("filters", "relu"),
        ("normalised", "batch_norm"),
        ("clipped", "relu6"),
        ("split", "add+relu"),
        ("head", "softmax"),
    ]
    reasons = set(document["skipped"].values())
    assert reasons == {"belongs to a layer of class BatchNormalization"}
    run = spear("inspect", tmp_path / "dump.h5")
    for reason in ("'conv2d' layer", "'batch_norm'", "'add+relu'", "'softmax'"):
        assert reason in run.out


def test_recurrent_layers_and_embeddings_are_not_taken_for_dense_ones(spear: Command, tmp_path: Path) -> None:
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((5,)),
            layers.Embedding(9, 8, name="table"),
            layers.LSTM(6, name="memory"),
            layers.Dense(4),
        ]
    )
    for suffix in SUFFIXES:
        document = converted(spear, tmp_path, save(model, tmp_path / f"m{suffix}"), "--gradients")
        assert [layer["shape"] for layer in document["layers"]] == [[4, 6]], suffix


def test_a_bomb_in_the_place_of_the_weights(spear: Command, tmp_path: Path) -> None:
    path = save(network(), tmp_path / "m.keras")
    with zipfile.ZipFile(path) as archive:
        config = archive.read("config.json")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", config)
        archive.writestr("model.weights.h5", bytes(70 * 2**20))
    run = spear("convert", path, tmp_path / "dump.h5", "--gradients")
    assert run.status == 2
    assert "would unpack to 73.4 MB" in run.error


def towers(names: tuple[str, str] = ("encoder", "decoder")) -> Any:
    """Two models in one, whose layers have the same names, and an activation called as a layer of the other."""
    keras.utils.set_random_seed(4)
    layers = keras.layers

    def tower(name: str, out: Any) -> Any:
        inner = [layers.Dense(WIDTH, activation="relu", name="hidden"), out]
        return keras.Sequential(inner, name=name)

    inputs = keras.Input((64,))
    x = tower(names[0], layers.Dense(40, activation="relu", name="out"))(inputs)
    x = tower(names[1], layers.Dense(40, activation="tanh", name="out"))(x)
    model = keras.Model(inputs, layers.Dense(10, name="head")(x))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(1.0), loss, jit_compile=False)
    return model


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("names", [("encoder", "decoder"), ("zebra", "ant")])
def test_models_inside_a_model_keep_their_layers_apart(
    spear: Command, tmp_path: Path, suffix: str, names: tuple[str, str]
) -> None:
    model = towers(names)
    images, labels = digit_batch(BATCH, seed=7)
    before = save(model, tmp_path / f"before{suffix}")
    model.train_on_batch(images, labels)
    after = save(model, tmp_path / f"after{suffix}")
    document = converted(spear, tmp_path, "--before", before, "--after", after)
    wanted = [f"{names[0]}.hidden", f"{names[0]}.out", f"{names[1]}.hidden", f"{names[1]}.out", "head"]
    assert [layer["layer"] for layer in document["layers"]] == wanted
    if suffix != ".weights.h5":  # which has no configuration
        assert [layer["activation"] for layer in document["layers"]] == [
            "relu",
            "relu",
            "relu",
            "tanh",
            "none",
        ]
        assert [layer["follows"] for layer in document["layers"]] == [None, *wanted[:-1]]
    status, recovered = inverted(spear, tmp_path)
    assert status in ("exact", "approximate")
    assert worst_psnr(recovered, images) > 60


def test_weights_in_shards(spear: Command, tmp_path: Path) -> None:
    model = towers()
    images, labels = digit_batch(BATCH, seed=7)
    model.save_weights(tmp_path / "before.weights.json", max_shard_size=0.00003)
    model.train_on_batch(images, labels)
    model.save_weights(tmp_path / "after.weights.json", max_shard_size=0.00003)
    assert len(list(tmp_path.glob("before_*.weights.h5"))) > 1
    models = ("--before", tmp_path / "before.weights.json", "--after", tmp_path / "after.weights.json")
    document = converted(spear, tmp_path, *models)
    assert document["format"] == "Keras .weights.json"
    assert document["layers"][0]["layer"] == "encoder.hidden"
    status, recovered = inverted(spear, tmp_path)
    assert status in ("exact", "approximate")
    assert worst_psnr(recovered, images) > 60
