"""Which layer of a Keras model feeds which: of the model itself, and of its files through `spear-np convert`."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import spear_np
from tests.io_files import Command, command
from tests.links import holding_links, said

BACKEND = os.environ["KERAS_BACKEND"]
pytest.importorskip(BACKEND, reason=f"the backend of Keras is not installed: pip install {BACKEND}")
keras = pytest.importorskip("keras", reason="Keras is not installed: pip install 'spear-np[keras]'")

from keras import activations, layers, ops

from spear_io.adapters.to_keras import from_gradients

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

B, WIDTH = 7, 6
FILES = (".keras", ".h5")

Part = Callable[[Any], Any]


@pytest.fixture
def spear(capsys: pytest.CaptureFixture[str]) -> Command:
    return command(capsys)


def dense(name: str, **options: Any) -> Any:
    # Biases that are zero would hide one that is forgotten.
    return layers.Dense(WIDTH, name=name, bias_initializer="random_normal", **options)


def captured(model: Any) -> dict[str, Any]:
    """The true inputs of every `Dense` layer of the outermost model, in one call in training mode."""
    found = {layer.name: layer.input for layer in model.layers if isinstance(layer, layers.Dense)}
    rng = np.random.default_rng(5)
    inputs = [rng.standard_normal((B, *one.shape[1:])).astype(np.float32) for one in model.inputs]
    values = keras.Model(model.inputs, list(found.values()))(inputs, training=True)
    return {
        name: ops.convert_to_numpy(value).reshape(-1, value.shape[-1])
        for name, value in zip(found, keras.tree.flatten(values), strict=True)
    }


def dumped(model: Any, path: Path, **options: Any) -> Path:
    """A dump of the model with its true inputs; what stands for the gradients does not matter here."""
    gradients = [variable.value for variable in model.trainable_variables]
    from_gradients(model, gradients, inputs=captured(model), **options).write(path)
    return path


def converted(spear: Command, model: Any, folder: Path, suffix: str) -> Path:
    """The same through a file of the model, which stands for its gradients as well."""
    file, dump = folder / f"model{suffix}", folder / f"converted{suffix}"
    model.save(file)
    run = spear("convert", file, dump, "--gradients", "--model", file, "--json")
    assert run.status == 0, run.error
    return dump


ACTIVATIONS: dict[str, tuple[str, Part]] = {
    "relu": ("relu", layers.Activation("relu")),
    "layer": ("relu", layers.ReLU()),
    "relu6": ("relu6", layers.ReLU(max_value=6.0)),
    "clipped": ("hardtanh(low=0, high=0.5)", layers.ReLU(max_value=0.5)),
    "bent": ("leaky_relu(negative_slope=0.3)", layers.ReLU(negative_slope=0.3)),
    "leaky": ("leaky_relu(negative_slope=0.15)", layers.LeakyReLU(0.15)),
    "leaky name": ("leaky_relu(negative_slope=0.2)", layers.Activation("leaky_relu")),
    "elu": ("elu(alpha=0.5)", layers.ELU(0.5)),
    "celu": ("celu(alpha=0.7)", lambda x: ops.celu(x, 0.7)),
    "gelu": ("gelu", layers.Activation("gelu")),
    "gelu_tanh": ("gelu_tanh", lambda x: ops.gelu(x)),
    "silu": ("silu", layers.Activation("swish")),
    "mish": ("mish", layers.Activation("mish")),
    "softplus": ("softplus", layers.Activation("softplus")),
    "selu": ("selu", layers.Activation("selu")),
    "tanh": ("tanh", layers.Activation("tanh")),
    "sigmoid": ("sigmoid", lambda x: ops.sigmoid(x)),
    "hard_swish": ("hardswish", layers.Activation("hard_swish")),
    "hard_tanh": ("hardtanh", layers.Activation("hard_tanh")),
    "none": ("none", layers.Activation("linear")),
    "softsign": ("softsign", layers.Activation("softsign")),
    "hard_sigmoid": ("hard_sigmoid", layers.Activation("hard_sigmoid")),
    "threshold": ("relu(max_value=None, negative_slope=0, threshold=0.5)", layers.ReLU(threshold=0.5)),
}


@pytest.mark.parametrize(("name", "part"), ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_every_activation_has_its_name_and_parameters(
    spear: Command, name: str, part: Part, tmp_path: Path
) -> None:
    x = keras.Input((WIDTH,))
    model = keras.Model(x, dense("head")(part(dense("first")(x))))
    for path in (dumped(model, tmp_path / "d.h5"), *(converted(spear, model, tmp_path, s) for s in FILES)):
        assert said(path)["first"] == (name.removesuffix(", high=1)"), None, None)
        assert said(path)["head"] == ("none", "first", None)
    assert holding_links(tmp_path / "d.h5") == {"head": "first"}


@pytest.mark.parametrize("shared_axes", [None, [1]])
def test_a_prelu_has_its_slopes(spear: Command, shared_axes: Any, tmp_path: Path) -> None:
    x = keras.Input((WIDTH,))
    prelu = layers.PReLU("random_uniform", shared_axes=shared_axes, name="prelu")
    model = keras.Model(x, dense("head")(prelu(dense("first")(x))))
    slopes = ops.convert_to_numpy(prelu.alpha)
    for path in (dumped(model, tmp_path / "d.h5"), *(converted(spear, model, tmp_path, s) for s in FILES)):
        from spear_io import open_dump

        with open_dump(path) as dump:
            first, head = dump.records[0].layers
            assert first.activation == spear_np.Activation("prelu", {"slope": slopes})
            assert head.follows == "first"
    assert holding_links(tmp_path / "d.h5") == {"head": "first"}
    model.save(tmp_path / "g.keras")
    run = spear("convert", tmp_path / "g.keras", tmp_path / "alone.h5", "--gradients")
    assert run.status == 0
    assert (
        said(tmp_path / "alone.h5")["first"][0] == "prelu_of_unknown_slope"
    )  # what is there is its gradient


def twice(x: Any) -> Any:
    return 2 * ops.relu(x)


def gelu(x: Any) -> Any:
    """Not the one that is called so."""
    return ops.tanh(x)


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (partial(activations.leaky_relu, negative_slope=0.4), "leaky_relu(negative_slope=0.4)"),
        (partial(activations.gelu, approximate=True), "gelu_tanh"),
        (partial(activations.relu, max_value=6), "relu6"),
        (layers.LeakyReLU(0.3), "leaky_relu(negative_slope=0.3)"),
        (lambda x: ops.maximum(x, 0.05 * x), "leaky_relu(negative_slope=0.05)"),
        (gelu, "tanh"),
        (twice, "twice"),
    ],
    ids=["leaky_relu", "gelu", "relu", "layer", "lambda", "misnamed", "new"],
)
def test_a_function_of_your_own_is_known_by_its_values(function: Any, name: str, tmp_path: Path) -> None:
    x = keras.Input((WIDTH,))
    model = keras.Model(x, dense("head")(dense("first", activation=function)(x)))
    assert said(dumped(model, tmp_path / "d.h5")) == {
        "first": (name, None, None),
        "head": ("none", "first", None),
    }
    assert holding_links(tmp_path / "d.h5") == {"head": "first"}


def test_in_a_file_a_function_of_your_own_is_a_name(spear: Command, tmp_path: Path) -> None:
    x = keras.Input((WIDTH,))
    model = keras.Model(x, dense("head")(dense("first", activation=twice)(x)))
    assert said(converted(spear, model, tmp_path, ".keras"))["first"][0] == "twice"


SEPARATED: dict[str, tuple[str, Part]] = {
    "dropout": ("dropout", layers.Dropout(0.5)),
    "dropout in inference": ("dropout", lambda x: layers.Dropout(0.5)(x, training=False)),
    "another dropout": ("alpha_dropout", layers.AlphaDropout(0.5)),
    "noise": ("gaussian_noise", layers.GaussianNoise(0.5)),
    "layer norm": ("layer_norm", layers.LayerNormalization()),
    "batch norm": ("batch_norm", layers.BatchNormalization()),
    "unit norm": ("unit_norm", layers.UnitNormalization()),
    "residual sum": ("add", lambda x: layers.Add()([x, layers.Identity()(x)])),
    "operator": ("add", lambda x: x + 1.0),
    "product": ("multiply", lambda x: 2.0 * x),
    "concatenation": ("concatenate", lambda x: layers.Concatenate()([x[:, :2], x[:, 2:]])),
    "order": ("permute", lambda x: layers.Flatten()(layers.Permute((2, 1))(layers.Reshape((2, 3))(x)))),
    "two activations": ("tanh", layers.Activation("tanh")),
    "norm and activation": ("layer_norm", lambda x: layers.ReLU()(layers.LayerNormalization()(x))),
    "several": ("dropout+layer_norm", lambda x: layers.LayerNormalization()(layers.Dropout(0.5)(x))),
    "softmax": ("softmax", layers.Softmax()),
}


@pytest.mark.parametrize(("name", "part"), SEPARATED.values(), ids=SEPARATED)
def test_what_stands_between_is_named_and_nothing_follows_across(
    spear: Command, name: str, part: Part, tmp_path: Path
) -> None:
    x = keras.Input((WIDTH,))
    first = dense("second", activation="tanh")(dense("first", activation="gelu")(x))
    model = keras.Model(x, dense("last")(dense("head", activation="relu")(part(first))))
    for path in (dumped(model, tmp_path / "d.h5"), *(converted(spear, model, tmp_path, s) for s in FILES)):
        found = said(path)
        assert {key: value[1] for key, value in found.items()} == {
            "first": None,
            "second": "first",
            "head": None,
            "last": "head",
        }
        assert {key: value[2] for key, value in found.items() if value[2]} == (
            {"head": "get_item+concatenate"} if name == "concatenate" else {"head": name}
        )
    assert holding_links(tmp_path / "d.h5") == {"second": "first", "last": "head"}


HARMLESS: dict[str, Part] = {
    "flatten": layers.Flatten(),
    "identity": layers.Identity(),
    "no dropout": layers.Dropout(0.0),
    "reshapes": lambda x: layers.Reshape((WIDTH,))(layers.Reshape((3, 2))(x)),
    "linear": layers.Activation("linear"),
}


@pytest.mark.parametrize("seed", range(12))
def test_random_networks_say_what_they_do(spear: Command, seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)

    def drawn(parts: dict[str, Any]) -> Any:
        return parts[list(parts)[rng.integers(len(parts))]]

    keras.utils.set_random_seed(seed)
    x = inputs = keras.Input((WIDTH,))
    expected: dict[str, str] = {}
    before = None
    for number in range(6):
        x = dense(f"d{number}")(x)
        if before is not None:
            expected[f"d{number}"] = before
        before = f"d{number}"
        for _ in range(rng.integers(2)):
            x = drawn(HARMLESS)(x)
        if rng.random() < 0.8:
            x = drawn(ACTIVATIONS)[1](x)
        for _ in range(rng.integers(2)):
            x = drawn(HARMLESS)(x)
        if rng.random() < 0.4:
            x, before = drawn(SEPARATED)[1](x), None
    model = keras.Model(inputs, dense("head")(x))
    if before is not None:
        expected["head"] = before
    # More than is expected: an activation in front of which there is none is that of the layer.
    found = holding_links(dumped(model, tmp_path / "d.h5"))
    assert expected.items() <= found.items()
    live = said(tmp_path / "d.h5")
    for suffix in FILES:
        assert said(converted(spear, model, tmp_path, suffix)) == live


def test_models_inside_models_are_seen_through(spear: Command, tmp_path: Path) -> None:
    block = keras.Sequential(
        [keras.Input((WIDTH,)), dense("one", activation="gelu"), dense("two")], name="block"
    )
    y = keras.Input((WIDTH,))
    tail = keras.Model(y, dense("four")(layers.ELU(0.5)(dense("three")(y))), name="tail")
    x = keras.Input((WIDTH,))
    z = tail(layers.ReLU()(block(dense("zero", activation="tanh")(x))))
    model = keras.Model(x, dense("head")(z))
    update = from_gradients(model, [v.value for v in model.trainable_variables])
    assert {name: (str(one.activation), one.follows) for name, one in update.layers.items()} == {
        "zero": ("tanh", None),
        "block.one": ("gelu", "zero"),
        "block.two": ("relu", "block.one"),
        "tail.three": ("elu(alpha=0.5)", "block.two"),
        "tail.four": ("none", "tail.three"),
        "head": ("none", "tail.four"),
    }
    for suffix in FILES:
        found = said(converted(spear, model, tmp_path, suffix))
        assert [value[:2] for value in found.values()] == [
            ("tanh", None),
            ("gelu", "zero"),
            ("relu", "one"),
            ("elu(alpha=0.5)", "two"),
            ("none", "three"),
            ("none", "four"),
        ]


def test_convolutions_in_front_are_named(spear: Command, tmp_path: Path) -> None:
    x = keras.Input((8, 8, 1))
    y = layers.MaxPooling2D()(layers.Conv2D(4, 3, activation="relu", name="filters")(x))
    y = dense("first", activation="relu")(layers.Flatten()(y))
    y = layers.Dropout(0.3)(dense("second", activation="selu")(y))
    model = keras.Model(x, layers.Dense(10, name="head", activation="softmax")(y))
    for path in (dumped(model, tmp_path / "d.h5"), *(converted(spear, model, tmp_path, s) for s in FILES)):
        assert {name: value for name, value in said(path).items() if name != "filters"} == {
            "first": ("relu", None, "conv2d+max_pool2d"),
            "second": ("selu", "first", None),
            "head": ("softmax", None, "dropout"),
        }
    assert holding_links(tmp_path / "d.h5") == {"second": "first"}


def test_a_layer_whose_output_goes_elsewhere_is_not_followed(tmp_path: Path) -> None:
    x = keras.Input((WIDTH,))
    fork = dense("fork")(x)
    one, two = dense("one")(layers.ReLU()(fork)), dense("two")(layers.Activation("tanh")(fork))
    both = dense("both", activation="relu")(x)
    three, four = dense("three")(both), dense("four")(both)
    shared = dense("shared", activation="relu")
    five = dense("five")(layers.Concatenate()([shared(three), shared(four)])[:, :WIDTH])
    frozen = dense("frozen", activation="relu", trainable=False)
    model = keras.Model(x, [one, two, five, dense("six")(frozen(x)), dense("seven")(shared(one))])
    update = from_gradients(model, [v.value for v in model.trainable_variables])
    assert {name: (one.follows, one.between) for name, one in update.layers.items()} == {
        "fork": (None, None),
        "one": (None, None),
        "two": (None, None),
        "both": (None, None),
        "three": ("both", None),
        "four": ("both", None),
        "shared": (None, None),
        "five": (None, "concatenate+get_item"),
        "six": (None, "dense"),
        "seven": (None, "dense"),
    }
    assert str(update.layers["fork"].activation) == "relu+tanh"


def test_one_activation_layer_may_serve_several(tmp_path: Path) -> None:
    act, x = layers.ReLU(), keras.Input((WIDTH,))
    model = keras.Model(x, dense("c")(act(dense("b")(act(dense("a")(x))))))
    assert holding_links(dumped(model, tmp_path / "d.h5")) == {"b": "a", "c": "b"}


def test_tokens_follow_where_their_features_stay_together(tmp_path: Path) -> None:
    x = keras.Input((4, WIDTH))
    y = dense("b", activation="tanh")(dense("a", activation="relu")(x))
    flat = layers.Dense(WIDTH, name="flat")(layers.Flatten()(y))
    model = keras.Model(x, [flat, dense("again")(layers.Reshape((2, 2, WIDTH))(y))])
    assert holding_links(dumped(model, tmp_path / "d.h5")) == {"b": "a", "again": "b"}
    assert said(tmp_path / "d.h5")["flat"] == ("none", None, "flatten")


def test_the_user_knows_better(tmp_path: Path) -> None:
    x = keras.Input((WIDTH,))
    y = layers.Dropout(0.5)(dense("b", activation="tanh")(dense("a", activation="relu")(x)))
    model = keras.Model(x, dense("d")(layers.Lambda(lambda z: z)(dense("c")(y))))

    def links(follows: Any) -> dict[str, Any]:
        gradients = [variable.value for variable in model.trainable_variables]
        update = from_gradients(model, gradients, follows=follows)
        return {name: (layer.follows or layer.between) for name, layer in update.layers.items()}

    seen = {"a": None, "b": "a", "c": "dropout", "d": "lambda"}
    assert links(None) == links(True) == seen
    assert links({"c": "b"}) == seen | {"c": "b"}
    assert links({"b": None, "d": "c"}) == seen | {"b": None, "d": "c"}
    assert links(False) == seen | {"b": None}
    with pytest.raises(
        ValueError, match="`follows` names 'z', but the fully connected layers are: a, b, c, d"
    ):
        links({"d": "z"})


def test_a_model_of_your_own_is_told(tmp_path: Path) -> None:
    class Own(keras.Model):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.block = keras.Sequential(
                [dense("one", activation="gelu"), dense("two", activation="tanh")], name="block"
            )
            self.head = dense("head")

        def call(self, x: Any) -> Any:
            return self.head(2 * self.block(x))

    model = Own()
    model(np.ones((B, WIDTH), np.float32))
    gradients = [variable.value for variable in model.trainable_variables]
    seen = from_gradients(model, gradients).layers
    assert {name: layer.follows for name, layer in seen.items()} == {
        "block.one": None,
        "block.two": "block.one",
        "head": None,
    }
    told = from_gradients(model, gradients, follows=True).layers
    assert told["head"].follows == "block.two"


class Scaled(layers.Dense):  # type: ignore[misc]
    def call(self, x: Any, training: Any = None) -> Any:
        return super().call(2 * x)


class LeakyReLU(layers.LeakyReLU):  # type: ignore[misc]
    """Not the one that is called so."""

    def call(self, x: Any) -> Any:
        return 2 * super().call(x)


def test_what_is_called_as_a_layer_of_keras_may_be_none(spear: Command, tmp_path: Path) -> None:
    x = keras.Input((WIDTH,))
    y = Scaled(WIDTH, name="scaled", activation="relu")(dense("a", activation="relu")(x))
    model = keras.Model(x, dense("head")(LeakyReLU()(dense("b")(y))))
    for path in (dumped(model, tmp_path / "d.h5"), converted(spear, model, tmp_path, ".keras")):
        assert said(path) == {
            "a": ("relu", None, None),
            "scaled": ("relu", None, "scaled"),
            "b": ("leaky_re_lu", None, "scaled"),
            "head": ("none", None, "leaky_re_lu"),
        }
