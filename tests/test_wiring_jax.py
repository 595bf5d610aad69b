"""Which layer feeds which in what JAX differentiates: Flax of both kinds, and functions of anybody's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.links import holding_links, said

jax = pytest.importorskip("jax", reason="JAX is not installed: pip install 'spear-np[jax]'")
pytest.importorskip("flax", reason="Flax is not installed: pip install flax")

import jax.numpy as jnp
from flax import linen, nnx

from spear_io.adapters.to_jax import RecordingError, Update, from_gradients

B, WIDTH = 7, 6
Part = Callable[[Any], Any]

ACTIVATIONS: dict[str, tuple[str, Part]] = {
    "relu": ("relu", linen.relu),
    "maximum": ("relu", lambda z: jnp.maximum(z, 0)),
    "mask": ("relu", lambda z: z * (z > 0)),
    "relu6": ("relu6", linen.relu6),
    "clip": ("hardtanh(low=-0.5, high=0.25)", lambda z: jnp.clip(z, -0.5, 0.25)),
    "leaky": ("leaky_relu(negative_slope=0.2)", lambda z: linen.leaky_relu(z, 0.2)),
    "where": ("leaky_relu(negative_slope=0.1)", lambda z: jnp.where(z > 0, z, 0.1 * z)),
    "elu": ("elu(alpha=0.5)", lambda z: linen.elu(z, 0.5)),
    "celu": ("celu(alpha=0.7)", lambda z: linen.celu(z, 0.7)),
    "selu": ("selu", linen.selu),
    "gelu": ("gelu", lambda z: linen.gelu(z, approximate=False)),
    "gelu_tanh": ("gelu_tanh", linen.gelu),
    "silu": ("silu", linen.swish),
    "by hand": ("silu", lambda z: z / (1 + jnp.exp(-z))),
    "mish": ("mish", jax.nn.mish),
    "softplus": ("softplus", linen.softplus),
    "steep": ("softplus(beta=3)", lambda z: linen.softplus(3 * z) / 3),
    "tanh": ("tanh", linen.tanh),
    "sigmoid": ("sigmoid", linen.sigmoid),
    "hardswish": ("hardswish", linen.hard_swish),
    "hardtanh": ("hardtanh", linen.hard_tanh),
    "none": ("none", lambda z: z),
    "another": ("soft_sign", linen.soft_sign),
    "rounded": ("relu", lambda z: linen.relu(z).astype(jnp.float32)),
    "compiled": ("tanh", jax.jit(jnp.tanh)),
    "rematerialised": ("tanh", jax.checkpoint(jnp.tanh)),
}

SEPARATED: dict[str, tuple[str, Part]] = {
    "dropout": ("dropout", lambda z: linen.Dropout(0.5, deterministic=False)(z)),
    "dropout by hand": (
        "dropout",
        lambda z: jnp.where(jax.random.bernoulli(jax.random.key(3), 0.5, z.shape), z / 0.5, 0),
    ),
    "layer norm": ("layer_norm", lambda z: linen.LayerNorm()(z)),
    "rms norm": ("rms_norm", lambda z: linen.RMSNorm()(z)),
    "batch norm": ("batch_norm", lambda z: linen.BatchNorm(use_running_average=True)(z)),
    "residual sum": ("rev+add", lambda z: z + z[:, ::-1]),
    "shift": ("add", lambda z: z + 1.0),
    "scale": ("mul", lambda z: 2.0 * z),
    "concatenation": ("slice+concatenate", lambda z: jnp.concatenate([z[:, 2:], z[:, :2]], axis=1)),
    "order": ("rev", lambda z: z[:, ::-1]),
    "norm and activation": ("layer_norm", lambda z: linen.relu(linen.LayerNorm()(z))),
}

HARMLESS: dict[str, Part] = {
    "no dropout": lambda z: linen.Dropout(0.0, deterministic=False)(z),
    "a dropout in inference": lambda z: linen.Dropout(0.5, deterministic=True)(z),
    "reshapes": lambda z: z.reshape(-1, 2).reshape(z.shape),
    "an axis more": lambda z: z[:, None][:, 0],
    "turned": lambda z: z.T.T,
    "cast": lambda z: z.astype(jnp.float32),
}


class Network(linen.Module):  # type: ignore[misc]
    """Dense layers with parts behind each."""

    parts: tuple[tuple[Part, ...], ...]

    @linen.compact  # type: ignore[untyped-decorator]
    def __call__(self, x: Any) -> Any:
        for parts in self.parts:
            x = linen.Dense(WIDTH, bias_init=linen.initializers.normal(0.3))(x)
            for part in parts:
                x = part(x)
        return linen.Dense(WIDTH, bias_init=linen.initializers.normal(0.3))(x)


def dumped(network: Network, path: Path) -> Path:
    """A dump of the network with its true inputs; what stands for the gradients does not matter here."""
    x = jax.random.normal(jax.random.key(5), (B, WIDTH))
    rngs = {"dropout": jax.random.key(2)}
    variables = network.init({"params": jax.random.key(1), **rngs}, x)
    rest = {name: value for name, value in variables.items() if name != "params"}
    inputs: dict[str, Any] = {}

    def note(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if isinstance(context.module, linen.Dense) and context.method_name == "__call__":
            inputs[context.module.name] = np.asarray(args[0]).reshape(-1, WIDTH)
        return call(*args, **kwargs)

    with linen.intercept_methods(note):
        network.apply(variables, x, rngs=rngs)
    params = variables["params"]

    def loss(params: Any) -> Any:
        return (network.apply({"params": params, **rest}, x, rngs=rngs) ** 2).mean()

    from_gradients(params, params, forward=loss, inputs=inputs).write(path)
    return path


@pytest.mark.parametrize(("name", "part"), ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_every_activation_has_its_name_and_parameters(name: str, part: Part, tmp_path: Path) -> None:
    path = dumped(Network(((part,), (part,))), tmp_path / "d.h5")
    assert said(path) == {
        "Dense_0": (name, None, None),
        "Dense_1": (name, "Dense_0", None),
        "Dense_2": ("none", "Dense_1", None),
    }
    assert holding_links(path) == {"Dense_1": "Dense_0", "Dense_2": "Dense_1"}


@pytest.mark.parametrize(("name", "part"), SEPARATED.values(), ids=SEPARATED)
def test_what_stands_between_is_named_and_nothing_follows_across(
    name: str, part: Part, tmp_path: Path
) -> None:
    path = dumped(Network(((linen.gelu,), (linen.tanh, part), (linen.relu,))), tmp_path / "d.h5")
    assert said(path) == {
        "Dense_0": ("gelu_tanh", None, None),
        "Dense_1": ("tanh", "Dense_0", None),
        "Dense_2": ("relu", None, name),
        "Dense_3": ("none", "Dense_2", None),
    }
    assert holding_links(path) == {"Dense_1": "Dense_0", "Dense_3": "Dense_2"}


@pytest.mark.parametrize("seed", range(12))
def test_random_networks_say_what_they_do(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)

    def drawn(parts: dict[str, Any]) -> Any:
        return parts[list(parts)[rng.integers(len(parts))]]

    parts, expected = [], {}
    for number in range(6):
        behind = [drawn(HARMLESS)] * int(rng.integers(2))
        if rng.random() < 0.8:
            behind.append(drawn(ACTIVATIONS)[1])
        behind += [drawn(HARMLESS)] * int(rng.integers(2))
        if rng.random() < 0.4:
            behind.append(drawn(SEPARATED)[1])
        else:
            expected[f"Dense_{number + 1}"] = f"Dense_{number}"
        parts.append(tuple(behind))
    found = holding_links(dumped(Network(tuple(parts)), tmp_path / "d.h5"))
    assert expected.items() <= found.items()


def pairs(number: int = 3) -> list[dict[str, Any]]:
    """Parameters of layers whose widths all fit, in Flax's names."""
    keys = jax.random.split(jax.random.key(9), number)
    return [{"kernel": jax.random.normal(key, (WIDTH, WIDTH)), "bias": jnp.arange(6.0)} for key in keys]


def links(forward: Callable[[Any], Any], params: Any = None) -> dict[str, tuple[str | None, str | None]]:
    params = pairs() if params is None else params
    update = from_gradients(params, params, forward=forward)
    return {name: (layer.follows, layer.between) for name, layer in update.layers.items()}


X = jax.random.normal(jax.random.key(4), (WIDTH, WIDTH))


def affine(layer: Any, x: Any) -> Any:
    return x @ layer["kernel"] + layer["bias"]


def test_the_order_is_that_of_the_forward_pass() -> None:
    assert list(links(lambda p: affine(p[0], jnp.tanh(affine(p[2], jnp.tanh(affine(p[1], X))))))) == [
        "1",
        "2",
        "0",
    ]


def test_units_may_lie_in_rows_and_examples_be_mapped() -> None:
    """As Equinox does."""
    params = [{"weight": one["kernel"], "bias": one["bias"]} for one in pairs()]

    def forward(params: Any) -> Any:
        def one(x: Any) -> Any:
            for layer in params[:-1]:
                x = jax.nn.silu(layer["weight"] @ x + layer["bias"])
            return params[-1]["weight"] @ x + params[-1]["bias"]

        return jax.vmap(one)(X).mean()

    assert links(forward, params) == {"0": (None, None), "1": ("0", None), "2": ("1", None)}


@pytest.mark.parametrize(
    ("second", "follows"),
    [
        (lambda p, z: affine(p[1], jnp.tanh(z)), "0"),
        (lambda p, z: affine(*jax.lax.optimization_barrier((p[1], jnp.tanh(z)))), "0"),
        (lambda p, z: affine(p[1], jnp.tanh(z).T), None),  # units in the place of examples
        (lambda p, z: affine(p[1], jnp.tanh(z + z.T)), None),
        (lambda p, z: affine(p[1], jnp.tanh(z)[:, None] + jnp.tanh(z)[None]), None),
        (lambda p, z: affine(p[1], jnp.tanh(z - p[0]["bias"] + p[1]["bias"])), None),  # another bias
        (lambda p, z: affine(p[1], jnp.tanh(z + p[0]["bias"])), None),  # twice the bias
        (lambda p, z: affine(p[1], jnp.tanh(z)) + z @ p[1]["kernel"].T, None),  # tied weights
        (lambda p, z: affine(p[1], affine(p[1], jnp.tanh(z))), None),  # one layer used twice
        (
            lambda p, z: jax.lax.scan(lambda a, _: (affine(p[1], a), None), jnp.tanh(z), None, length=2)[0],
            None,
        ),
        (lambda p, z: affine({**p[1], "kernel": p[1]["kernel"] * 2}, jnp.tanh(z)), None),
        (lambda p, z: affine(p[1], jax.nn.softmax(z)), None),
        (
            lambda p, z: affine({**p[1], "kernel": p[1]["kernel"].astype(int).astype(float)}, jnp.tanh(z)),
            None,
        ),
        (lambda p, z: affine({**p[1], "kernel": p[1]["kernel"].T}, jnp.tanh(z)), None),
        (lambda p, z: affine({**p[1], "kernel": p[1]["kernel"].T.T}, jnp.tanh(z)), "0"),
        (lambda p, z: affine(p[1], jnp.tanh(z).astype(int).astype(float)), None),
        (lambda p, z: affine(p[1], jnp.tanh(z).round(2)), None),
        (lambda p, z: affine(p[1], jnp.tanh(z) * X), None),  # by as many numbers of its own
        (lambda p, z: affine(p[1], jnp.where(X > 0, jnp.tanh(z), 0)), None),
        (lambda p, z: affine(p[1], jnp.cumsum(jnp.tanh(z), axis=1)), None),
    ],
)
def test_only_the_very_same_numbers_follow(second: Any, follows: str | None) -> None:
    found = links(lambda p: second(p, affine(p[0], X)), pairs(2))
    assert found["1"][0] == follows


def test_a_bias_with_an_axis_more_is_no_bias_that_is_known() -> None:
    params = [{"kernel": one["kernel"], "bias": one["bias"][None]} for one in pairs(2)]
    update = from_gradients(
        {"a": {"kernel": params[0]["kernel"]}, "b": params[0]["bias"], "c": {"kernel": params[1]["kernel"]}},
        {"a": {"kernel": params[0]["kernel"]}, "c": {"kernel": params[1]["kernel"]}},
        forward=lambda p: jnp.tanh(X @ p["a"]["kernel"] + p["b"][0]) @ p["c"]["kernel"],
    )
    assert [layer.follows for layer in update.layers.values()] == [None, None]


@pytest.mark.parametrize(
    ("first", "follows"),
    [
        (lambda z, b: z + b, "0"),
        (lambda z, b: z + b.reshape(1, -1), "0"),
        (lambda z, b: z + jnp.broadcast_to(b, z.shape), "0"),
        (lambda z, b: b + z, "0"),
        (lambda z, b: z, None),
        (lambda z, b: z * b, None),
        (lambda z, b: z - b, None),
        (lambda z, b: z + b[:, None], None),  # to examples, of which there are as many
        (lambda z, b: z + 2 * b, None),
        (lambda z, b: z + b[::-1], None),
        (lambda z, b: z + b + b, None),
        (lambda z, b: 2 * z + b, None),
    ],
)
def test_the_bias_is_what_is_added_to_every_example(first: Any, follows: str | None) -> None:
    found = links(lambda p: affine(p[1], jnp.tanh(first(X @ p[0]["kernel"], p[0]["bias"]))), pairs(2))
    assert found["1"][0] == follows


class Nnx(nnx.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        rngs = nnx.Rngs(5)
        self.conv = nnx.Conv(1, 2, (3, 3), rngs=rngs)
        self.a, self.b, self.c, self.d, self.e = (
            nnx.Linear(128 if not at else WIDTH, WIDTH, rngs=rngs) for at in range(5)
        )
        self.dropout, self.norm = nnx.Dropout(0.5, rngs=rngs), nnx.LayerNorm(WIDTH, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = nnx.relu(self.conv(x)).reshape(len(x), -1)
        x = nnx.elu(self.b(nnx.gelu(self.a(x))))
        x = self.norm(nnx.tanh(self.c(self.dropout(x))))
        return self.e(x + nnx.silu(self.d(x)))


def test_nnx_modules_are_seen_through_with_their_random_numbers() -> None:
    model, x = Nnx(), jnp.ones((B, 8, 8, 1))
    params = nnx.state(model, nnx.Param)
    update = from_gradients(model, params, forward=lambda model: model(x).sum())
    assert told(update) == {
        "a": ("gelu_tanh", None, "conv2d"),
        "b": ("elu", "a", None),
        "c": ("tanh", None, "dropout"),
        "d": ("silu", None, "layer_norm"),
        "e": ("none", None, "layer_norm+add"),
    }
    assert list(update.skipped) == ["conv"]


def told(update: Update) -> dict[str, tuple[str, str | None, str | None]]:
    return {name: (str(one.activation), one.follows, one.between) for name, one in update.layers.items()}


def test_convolutions_in_front_are_named() -> None:
    class Front(linen.Module):  # type: ignore[misc]
        @linen.compact  # type: ignore[untyped-decorator]
        def __call__(self, x: Any) -> Any:
            x = linen.max_pool(linen.relu(linen.Conv(3, (3, 3))(x)), (2, 2), (2, 2))
            x = linen.softplus(linen.Dense(5)(x.reshape(len(x), -1)))
            return linen.Dense(4)(x)

    model, x = Front(), jnp.ones((B, 8, 8, 1))
    params = model.init(jax.random.key(0), x)
    assert told(from_gradients(params, params, forward=lambda params: model.apply(params, x))) == {
        "Dense_0": ("softplus", None, "conv2d+max_pool2d"),
        "Dense_1": ("none", "Dense_0", None),
    }


def test_a_prelu_has_the_slope_that_it_has_learnt() -> None:
    class Bent(linen.Module):  # type: ignore[misc]
        @linen.compact  # type: ignore[untyped-decorator]
        def __call__(self, x: Any) -> Any:
            x = linen.PReLU(negative_slope_init=0.35)(linen.Dense(5)(x))
            return linen.Dense(3)(x)

    model = Bent()
    params = model.init(jax.random.key(0), X)
    found = told(from_gradients(params, params, forward=lambda params: model.apply(params, X)))
    assert found["Dense_0"][0] == "leaky_relu(negative_slope=0.35)"
    assert found["Dense_1"][1] == "Dense_0"


def test_names_and_shapes_alone_link_nothing_unless_told() -> None:
    params = pairs()
    plain = from_gradients(params, params).layers
    assert [layer.follows for layer in plain.values()] == [None, None, None]
    chain = from_gradients(params, params, follows=True, activations={"1": "gelu"}).layers
    assert [layer.follows for layer in chain.values()] == [None, "0", "1"]
    some = from_gradients(params, params, follows={"2": "1"}).layers
    assert [layer.follows for layer in some.values()] == [None, None, "1"]
    with pytest.raises(ValueError, match="`follows` names 'x', but the fully connected layers are: 0, 1, 2"):
        from_gradients(params, params, follows={"2": "x"})


def test_the_user_knows_better_than_the_trace() -> None:
    params = pairs()

    def forward(p: Any) -> Any:
        return affine(p[2], 2 * jnp.tanh(affine(p[1], jnp.tanh(affine(p[0], X)))))

    def found(follows: Any) -> list[str | None]:
        layers = from_gradients(params, params, forward=forward, follows=follows).layers
        return [layer.follows or layer.between for layer in layers.values()]

    assert found(None) == found(True) == [None, "0", "mul"]
    assert found({"2": "1"}) == [None, "0", "1"]
    assert found(False) == [None, None, "mul"]


def test_a_function_that_cannot_be_traced_is_one_line() -> None:
    params = pairs()
    with pytest.raises(RecordingError, match=r"`forward` cannot be traced .*\(no such thing\)$"):
        from_gradients(params, params, forward=refuse)


def refuse(params: Any) -> Any:
    msg = "no such thing\nat all"
    raise RuntimeError(msg)
