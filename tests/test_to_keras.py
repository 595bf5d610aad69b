"""What the Keras adapter makes of models of every kind; on JAX, and once more on PyTorch in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from spear_io import open_dump
from tests.inverting import decibels, inverted
from tests.networks import digit_batch

ROOT = Path(__file__).parent.parent
WIRING = Path(__file__).with_name("test_wiring_keras.py")
BACKEND = os.environ["KERAS_BACKEND"]

pytest.importorskip(BACKEND, reason=f"the backend of Keras is not installed: pip install {BACKEND}")
keras = pytest.importorskip("keras", reason="Keras is not installed: pip install 'spear-np[keras]'")

from keras import layers, ops

from spear_io.adapters.to_keras import RecordingError, RoundWriter, from_gradients, from_weights

# Of Keras' own `get_weights` on PyTorch.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

N, B = 64, 5


def batch(seed: int = 3) -> tuple[Any, Any]:
    return digit_batch(B, seed=seed)


def sequential(dtype: str = "float32") -> Any:
    keras.utils.set_random_seed(17)
    names = ("first", "second", "head")
    first, second, head = (
        layers.Dense(m, name=name, dtype=dtype) for m, name in zip((80, 70, 10), names, strict=True)
    )
    first.activation = keras.activations.relu
    return keras.Sequential([keras.Input((N,)), first, second, layers.ReLU(dtype=dtype), head])


def gradients_of(model: Any, inputs: Any, labels: Any) -> list[Any]:
    """The gradients of mean cross-entropy, as each backend gives them."""
    if BACKEND == "jax":
        import jax

        def loss(trainable: Any) -> Any:
            logits, _ = model.stateless_call(trainable, model.non_trainable_variables, inputs)
            return cross_entropy(labels, logits)

        return list(jax.jit(jax.grad(loss))([variable.value for variable in model.trainable_variables]))
    model.zero_grad()
    cross_entropy(labels, model(inputs)).backward()
    return [variable.value.grad for variable in model.trainable_variables]


def cross_entropy(labels: Any, logits: Any) -> Any:
    logits = ops.cast(logits, "float32")
    return ops.mean(keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True))


def sgd_step(model: Any, gradients: list[Any], learning_rate: float) -> None:
    keras.optimizers.SGD(learning_rate).apply(gradients, model.trainable_variables)


def as_numpy(values: Any) -> Any:
    return ops.convert_to_numpy(ops.cast(values, "float32"))


def activations(update: Any) -> dict[str, str]:
    return {name: str(layer.activation) for name, layer in update.layers.items()}


def test_gradients_are_inverted_exactly(tmp_path: Path) -> None:
    model = sequential()
    inputs, labels = batch()
    gradients = gradients_of(model, inputs, labels)
    update = from_gradients(model, gradients, inputs={"first": inputs})
    assert activations(update) == {
        "first": "relu",
        "second": "relu",
        "head": "none",
    }
    update.write(
        tmp_path / "d.h5", labels=ops.convert_to_tensor(labels), input_shape=(8, 8), input_mean=ops.zeros(1)
    )
    status, recovered = inverted(tmp_path / "d.h5")["record-0"]
    assert status == "exact"
    assert decibels(recovered, inputs) > 100
    with open_dump(tmp_path / "d.h5") as dump:
        assert dump.producer == f"keras {keras.__version__} ({BACKEND})"
        (record,) = dump.records
        truth = record.layers[0].truth
        assert truth is not None
        assert record.labels is not None
        assert np.array_equal(truth[:], inputs)
        assert np.array_equal(record.labels[:], labels)
        for number, layer in enumerate(record.layers):
            kernel, bias = (as_numpy(gradient) for gradient in gradients[2 * number : 2 * number + 2])
            assert np.array_equal(layer.arrays["weight_grad"][:], kernel.T)
            assert np.array_equal(layer.arrays["bias_grad"][:], bias)
            assert np.array_equal(layer.arrays["weight"][:], model.get_layer(layer.name).get_weights()[0].T)
            assert np.array_equal(layer.arrays["bias"][:], model.get_layer(layer.name).get_weights()[1])


def test_one_step_of_sgd_gives_the_batch_away(tmp_path: Path) -> None:
    model = sequential()
    inputs, labels = batch()
    before = model.get_weights()
    sgd_step(model, gradients_of(model, inputs, labels), 0.1)
    update = from_weights(model, before, model.get_weights(), learning_rate=0.1, local_steps=1)
    update.write(tmp_path / "d.h5")
    with h5py.File(tmp_path / "d.h5") as file:
        attributes = dict(file["records/record-0"].attrs)
        assert (attributes["update"], attributes["learning_rate"], attributes["local_steps"]) == (
            "weight_delta",
            0.1,
            1,
        )
        assert np.array_equal(file["records/record-0/layers/first/weight"][:], before[0].T)
    _, recovered = inverted(tmp_path / "d.h5")["record-0"]
    assert decibels(recovered, inputs) > 60


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_numbers_stay_narrow(dtype: str, tmp_path: Path) -> None:
    model = sequential(dtype)
    inputs, labels = batch()
    gradients = gradients_of(model, ops.cast(inputs, dtype), labels)
    before = model.get_weights()
    with RoundWriter(tmp_path / "d.h5") as dump:
        dump.add("gradient", from_gradients(model, gradients))
        sgd_step(model, gradients, 0.1)
        dump.add("difference", from_weights(model, before, model.get_weights()))
    with open_dump(tmp_path / "d.h5") as opened:
        found = {record.name: record.layers[0] for record in opened.records}
        assert {layer.gradients.precision for layer in found.values()} == {dtype}
        assert np.array_equal(found["gradient"].arrays["weight_grad"][:], as_numpy(gradients[0]).T)
    with h5py.File(tmp_path / "d.h5") as file:
        one, two = (file[f"records/{name}/layers/first/weight"] for name in ("gradient", "difference"))
        assert one == two  # the same model, however it was handed over


def test_activations_are_read_off_the_graph() -> None:
    x = keras.Input((N,))
    own = layers.Dense(20, activation="relu", name="own")(x)
    function = ops.relu(layers.Dense(20, name="function")(own))
    layer = layers.Activation("relu")(layers.Dense(20, name="layer")(function))
    other = layers.Activation("gelu")(layers.Dense(20, name="other")(layer))
    six = layers.ReLU(max_value=6.0)(layers.Dense(20, name="six")(other))
    cut = layers.ReLU(max_value=1.0)(layers.Dense(20, name="cut")(six))
    leaky = layers.ReLU(negative_slope=0.1)(layers.Dense(20, name="leaky")(cut))
    normed = layers.ReLU()(layers.BatchNormalization()(layers.Dense(20, name="normed")(leaky)))
    fork = layers.Dense(20, name="fork")(normed)
    y = layers.Dense(10, name="head", activation="softmax")(layers.ReLU()(fork) + fork)
    model = keras.Model(x, y)
    zeros = [ops.zeros(variable.shape) for variable in model.trainable_variables]
    update = from_gradients(model, zeros)
    assert activations(update) == {
        "own": "relu",
        "function": "relu",
        "layer": "relu",
        "other": "gelu",
        "six": "relu6",
        "cut": "hardtanh(low=0)",
        "leaky": "leaky_relu(negative_slope=0.1)",
        "normed": "batch_norm",
        "fork": "add+relu",
        "head": "softmax",
    }


def test_a_model_of_your_own_needs_telling() -> None:
    class Own(keras.Model):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.first = layers.Dense(20, activation="relu", name="first")
            self.block = keras.Sequential([layers.Dense(20, name="dense"), layers.ReLU()], name="block")
            self.frozen = layers.Dense(20, name="frozen", trainable=False)
            self.head = layers.Dense(10, name="head")

        def call(self, x: Any) -> Any:
            return self.head(ops.relu(self.frozen(self.block(self.first(x)))))

    model = Own()
    model(batch()[0])
    zeros = [ops.zeros(variable.shape) for variable in model.trainable_variables]
    update = from_gradients(model, zeros, activations={"head": "gelu"})
    assert activations(update) == {
        "first": "relu",
        "block.dense": "relu",
        "head": "gelu",
    }
    assert update.skipped == {"frozen": "its kernel is frozen, or computed from other variables"}
    assert activations(from_gradients(model, zeros))["head"] == "unknown"
    with pytest.raises(ValueError, match=r"`activations` names 'dense', but .* are: first, block\.dense, "):
        from_gradients(model, zeros, activations={"dense": "relu"})


def test_what_does_not_fit_is_refused() -> None:
    model = sequential()
    zeros = [ops.zeros(variable.shape) for variable in model.trainable_variables]
    with pytest.raises(RecordingError, match="5 arrays for the 6 trainable variables"):
        from_gradients(model, zeros[:-1])
    with pytest.raises(RecordingError, match=r"kernel' has shape \(80,\), but the parameter has \(64, 80\)"):
        from_gradients(model, [zeros[1], zeros[0], *zeros[2:]])
    with pytest.raises(RecordingError, match="4 arrays for the 6 weights"):
        from_weights(model, model.get_weights(), model.get_weights()[:4])


@pytest.mark.skipif(BACKEND != "jax", reason="this is the other backend")
def test_the_same_on_pytorch() -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'spear-np[torch]'")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, WIRING],
        cwd=ROOT,
        env={**os.environ, "KERAS_BACKEND": "torch"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


def test_without_keras_the_import_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "keras.py").write_text("raise ImportError")
    done = subprocess.run(
        [sys.executable, "-c", "import spear_io.adapters.to_keras"],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": f"{tmp_path}:{ROOT}:{ROOT / 'io'}", "PATH": ""},
    )
    assert done.stderr.endswith("ImportError: Keras is not installed: pip install 'spear-np[keras]'\n")
