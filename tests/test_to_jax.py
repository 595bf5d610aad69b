"""What the JAX adapter makes of trees of parameters: Flax linen and nnx, Haiku's dicts, lists."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from spear_io import open_dump
from tests.inverting import decibels, inverted
from tests.networks import digit_batch

jax = pytest.importorskip("jax", reason="JAX is not installed: pip install 'spear-np[jax]'")
pytest.importorskip("flax", reason="Flax is not installed: pip install flax")

import jax.numpy as jnp
from flax import linen, nnx

from spear_io.adapters.to_jax import RecordingError, RoundWriter, from_gradients, from_weights

N, B = 64, 5
SIZES = (N, 80, 70, 10)
Tree = Any
Loss = Callable[[Tree, Any, Any], Any]


def cross_entropy(logits: Any, labels: Any) -> Any:
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1).mean()


def batch(seed: int = 3) -> tuple[Any, Any]:
    inputs, labels = digit_batch(B, seed=seed)
    return jnp.asarray(inputs), jnp.asarray(labels)


class Linen(linen.Module):  # type: ignore[misc]
    dtype: Any = jnp.float32

    @linen.compact  # type: ignore[untyped-decorator]
    def __call__(self, x: Any) -> Any:
        for size in SIZES[1:-1]:
            x = linen.relu(linen.Dense(size, param_dtype=self.dtype, dtype=self.dtype)(x))
        return linen.Dense(SIZES[-1], param_dtype=self.dtype, dtype=self.dtype)(x)


class Nnx(nnx.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        rngs = nnx.Rngs(5)
        self.first, self.second, self.head = (nnx.Linear(n, m, rngs=rngs) for n, m in pairwise(SIZES))
        self.dropout = nnx.Dropout(0.0, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.head(self.dropout(nnx.relu(self.second(nnx.relu(self.first(x))))))


def linen_case(dtype: Any = jnp.float32) -> tuple[Tree, Loss]:
    model = Linen(dtype)
    params = jax.jit(model.init)(jax.random.key(7), jnp.zeros((1, N)))
    return params, lambda params, x, y: cross_entropy(model.apply(params, x).astype(jnp.float32), y)


def nnx_case() -> tuple[Tree, Loss]:
    return Nnx(), lambda model, x, y: cross_entropy(model(x), y)


def haiku_case() -> tuple[Tree, Loss]:
    """Parameters as Haiku names them: "mlp/~/linear_0" with w (n, m) and b."""
    params = {f"mlp/~/linear_{i}": {"w": w, "b": b} for i, (w, b) in enumerate(plain_layers())}

    def loss(params: Tree, x: Any, y: Any) -> Any:
        return cross_entropy(forward([(p["w"], p["b"]) for p in params.values()], x), y)

    return params, loss


def pairs_case() -> tuple[Tree, Loss]:
    return plain_layers(), lambda params, x, y: cross_entropy(forward(params, x), y)


def plain_layers() -> list[tuple[Any, Any]]:
    keys = jax.random.split(jax.random.key(3), len(SIZES) - 1)
    return [
        (jax.random.normal(key, (n, m)) / np.sqrt(n), jnp.full(m, 0.01))
        for key, (n, m) in zip(keys, pairwise(SIZES), strict=True)
    ]


def forward(layers: Any, x: Any) -> Any:
    *hidden, (last, bias) = layers
    for w, b in hidden:
        x = jax.nn.relu(x @ w + b)
    return x @ last + bias


CASES = {
    "linen": (linen_case, ["Dense_0", "Dense_1", "Dense_2"]),
    "nnx": (nnx_case, ["first", "second", "head"]),
    "haiku": (haiku_case, ["mlp.~.linear_0", "mlp.~.linear_1", "mlp.~.linear_2"]),
    "list of pairs": (pairs_case, ["0", "1", "2"]),
}


def gradients_of(loss: Loss, params: Tree, x: Any, y: Any) -> Tree:
    if isinstance(params, nnx.Module):
        return nnx.jit(nnx.grad(loss))(params, x, y)
    return jax.jit(jax.grad(loss))(params, x, y)


@pytest.mark.parametrize(("case", "names"), CASES.values(), ids=CASES.keys())
def test_gradients_are_inverted_exactly(case: Callable[[], Any], names: list[str], tmp_path: Path) -> None:
    params, loss = case()
    x, y = batch()
    grads = gradients_of(loss, params, x, y)
    update = from_gradients(params, grads, inputs={names[0]: x})
    assert list(update.layers) == names
    assert [layer.activation for layer in update.layers.values()] == ["relu", "relu", "linear"]
    update.write(tmp_path / "d.h5", labels=y, input_shape=(8, 8), input_mean=jnp.zeros(1))
    status, recovered = inverted(tmp_path / "d.h5")["record-0"]
    assert status == "exact"
    assert decibels(recovered, np.asarray(x)) > 100
    kernels = [leaf for leaf in jax.tree_util.tree_leaves(grads) if leaf.ndim == 2]
    with open_dump(tmp_path / "d.h5") as dump:
        assert dump.producer == f"jax {jax.__version__}"
        (record,) = dump.records
        truth = record.layers[0].truth
        assert truth is not None
        assert np.array_equal(truth[:], x)
        for layer in record.layers:
            stored = layer.arrays["weight_grad"][:]
            assert any(
                np.array_equal(stored, kernel.T) for kernel in kernels if kernel.shape == stored.T.shape
            )


@pytest.mark.parametrize("case", [linen_case, nnx_case], ids=["linen", "nnx"])
def test_one_step_of_sgd_gives_the_batch_away(case: Callable[[], Any], tmp_path: Path) -> None:
    params, loss = case()
    before = nnx.state(params, nnx.Param) if isinstance(params, nnx.Module) else params
    x, y = batch()
    grads = gradients_of(loss, params, x, y)
    after = jax.tree.map(lambda p, g: p - 0.1 * g, before, grads)
    from_weights(before, after, learning_rate=0.1, local_steps=1).write(tmp_path / "d.h5")
    with h5py.File(tmp_path / "d.h5") as file:
        attributes = dict(file["records/record-0"].attrs)
        assert (attributes["update"], attributes["learning_rate"], attributes["local_steps"]) == (
            "weight_delta",
            0.1,
            1,
        )
    _, recovered = inverted(tmp_path / "d.h5")["record-0"]
    assert decibels(recovered, np.asarray(x)) > 60


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16], ids=["float16", "bfloat16"])
def test_narrow_numbers_stay_narrow(dtype: Any, tmp_path: Path) -> None:
    params, loss = linen_case(dtype)
    x, y = batch()
    grads = gradients_of(loss, params, x.astype(dtype), y)
    after = jax.tree.map(lambda p, g: p - (0.1 * g).astype(dtype), params, grads)
    with RoundWriter(tmp_path / "d.h5") as dump:
        dump.add("gradient", from_gradients(params, grads))
        dump.add("difference", from_weights(params, after))
    with open_dump(tmp_path / "d.h5") as opened:
        layers = {record.name: record.layers[0] for record in opened.records}
        assert {layer.gradients.precision for layer in layers.values()} == {jnp.dtype(dtype).name}
        kernel = grads["params"]["Dense_0"]["kernel"]
        assert np.array_equal(layers["gradient"].arrays["weight_grad"][:], np.float64(kernel.T))
        difference = after["params"]["Dense_0"]["kernel"] - params["params"]["Dense_0"]["kernel"]
        assert np.array_equal(-layers["difference"].arrays["weight_grad"][:], np.float64(difference.T))


def test_clients_of_one_round_share_the_model(tmp_path: Path) -> None:
    params, loss = linen_case()
    with RoundWriter(tmp_path / "round.h5") as dump:
        for client in range(2):
            grads = gradients_of(loss, params, *batch(seed=client))
            dump.add(f"client-{client}", from_gradients(params, grads), client=client)
    with h5py.File(tmp_path / "round.h5") as file:
        one, two = (file[f"records/client-{client}/layers/Dense_0"] for client in range(2))
        assert one["weight"] == two["weight"]
        assert one["weight_grad"] != two["weight_grad"]


def test_order_and_activations_can_be_told() -> None:
    params, loss = linen_case()
    grads = gradients_of(loss, params, *batch())
    update = from_gradients(
        params, grads["params"], order=["Dense_1", "Dense_0"], activations={"Dense_0": "gelu"}
    )
    assert {name: layer.activation for name, layer in update.layers.items()} == {
        "Dense_1": "relu",
        "Dense_0": "gelu",
    }
    with pytest.raises(
        ValueError, match="`activations` names 'Dense_9', but the fully connected layers are: "
    ):
        from_gradients(params, grads, activations={"Dense_9": "relu"})
    with pytest.raises(ValueError, match="`inputs` names 'images'"):
        from_gradients(params, grads, inputs={"images": jnp.zeros((B, N))})


def test_other_layers_are_skipped_with_their_reason(tmp_path: Path) -> None:
    class Mixed(linen.Module):  # type: ignore[misc]
        @linen.compact  # type: ignore[untyped-decorator]
        def __call__(self, x: Any) -> Any:
            x = linen.Conv(4, (3, 3))(x.reshape(-1, 8, 8, 1)).reshape(len(x), -1)
            x = x + linen.Embed(10, 256)(jnp.zeros(len(x), int))
            return linen.Dense(10)(linen.relu(linen.Dense(60)(linen.LayerNorm()(x))))

    model = Mixed()
    x, y = batch()
    params = jax.jit(model.init)(jax.random.key(7), x)
    grads = gradients_of(lambda params, x, y: cross_entropy(model.apply(params, x), y), params, x, y)
    update = from_gradients(params, grads)
    assert list(update.layers) == ["Dense_0", "Dense_1"]
    assert {name: reason.partition(":")[0] for name, reason in update.skipped.items()} == {
        "Conv_0": "its weight has 4 dimensions, where a fully connected layer has two",
        "Embed_0": "an embedding",
    }
    del grads["params"]["Dense_0"]["kernel"]
    assert from_gradients(params, grads).skipped["Dense_0"] == "nothing of it was given"
    conv = {"params": {"Conv_0": params["params"]["Conv_0"]}}
    with pytest.raises(RecordingError, match=r"no layer was recorded \(Conv_0: its weight has 4 dimensions"):
        from_gradients(conv, conv).write(tmp_path / "d.h5")
    assert list(tmp_path.iterdir()) == []


def test_trees_that_do_not_fit_are_refused() -> None:
    params, _ = linen_case()
    with pytest.raises(RecordingError, match=r"'bias' is no parameter: there are Dense_0\.bias, "):
        from_gradients(params, params["params"]["Dense_0"])
    turned = jax.tree.map(lambda p: p.T, params)
    with pytest.raises(RecordingError, match=r"'Dense_0.kernel' has shape \(80, 64\), but the parameter has"):
        from_weights(params, turned)


def test_without_jax_the_import_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "jax.py").write_text("raise ImportError")
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", "import spear_io.adapters.to_jax"],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": f"{tmp_path}:{root}:{root / 'io'}", "PATH": ""},
    )
    assert done.stderr.endswith("ImportError: JAX is not installed: pip install 'spear-np[jax]'\n")
