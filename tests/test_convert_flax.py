"""Flax parameters in msgpack: linen and nnx networks, gradients by JAX."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.convert_files import BATCH, WIDTH, assert_exact, converted, inverted, worst_psnr
from tests.io_files import Command, command
from tests.networks import Floats, digit_batch

jax = pytest.importorskip("jax", reason="JAX is not installed")
pytest.importorskip("flax", reason="Flax is not installed")

import jax.numpy as jnp
from flax import linen, nnx, serialization


@pytest.fixture
def spear(capsys: pytest.CaptureFixture[str]) -> Command:
    return command(capsys)


class Linen(linen.Module):  # type: ignore[misc]
    """The output layer is made first, and so has the lower number."""

    @linen.compact  # type: ignore[untyped-decorator]
    def __call__(self, x: Any) -> Any:
        return linen.Dense(10)(linen.relu(linen.Dense(WIDTH)(x)))


def loss(logits: Any, labels: Floats) -> Any:
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1).mean()


def linen_step() -> tuple[Any, Any, Floats]:
    """Return parameters, gradients and images."""
    images, labels = digit_batch(BATCH, seed=5)
    net = Linen()
    params = net.init(jax.random.key(1), images)
    return params, jax.grad(lambda p: loss(net.apply(p, images), labels))(params), images


def nnx_step() -> tuple[Any, Any, Floats]:
    """Return pure dictionaries of parameters and gradients, and images."""
    images, labels = digit_batch(BATCH, seed=5)
    rngs = nnx.Rngs(2)
    net = nnx.Sequential(nnx.Linear(64, WIDTH, rngs=rngs), nnx.relu, nnx.Linear(WIDTH, 10, rngs=rngs))
    gradients = nnx.grad(lambda model: loss(model(images), labels))(net)
    return nnx.to_pure_dict(nnx.state(net, nnx.Param)), nnx.to_pure_dict(gradients), images


@pytest.mark.parametrize("step", [linen_step, nnx_step], ids=["linen", "nnx"])
def test_gradients_beside_the_parameters(spear: Command, tmp_path: Path, step: Any) -> None:
    params, gradients, images = step()
    tree = jax.tree.map(np.asarray, {"params": params, "grads": gradients})
    (tmp_path / "state").write_bytes(serialization.msgpack_serialize(keys_as_text(tree)))
    first, last = converted(spear, tmp_path, tmp_path / "state")["layers"]
    assert (first["shape"], first["orientation"]) == ([WIDTH, 64], "nm")
    assert (last["shape"], last["activation"]) == ([10, WIDTH], "none")
    assert_exact(spear, tmp_path, images)


def test_gradients_and_model_in_two_files(spear: Command, tmp_path: Path) -> None:
    params, gradients, images = linen_step()
    (tmp_path / "params").write_bytes(serialization.to_bytes(params))
    (tmp_path / "grads").write_bytes(serialization.to_bytes(gradients))
    document = converted(spear, tmp_path, tmp_path / "grads", "--gradients", "--model", tmp_path / "params")
    assert [layer["layer"] for layer in document["layers"]] == ["Dense_1", "Dense_0"]
    assert any("only order" in note for note in document["notes"])
    assert_exact(spear, tmp_path, images)


def test_a_step_between_two_files(spear: Command, tmp_path: Path) -> None:
    params, gradients, images = linen_step()
    after = jax.tree.map(lambda p, g: p - g, params, gradients)
    (tmp_path / "before").write_bytes(serialization.to_bytes(params))
    (tmp_path / "after").write_bytes(serialization.to_bytes(after))
    converted(spear, tmp_path, "--before", tmp_path / "before", "--after", tmp_path / "after")
    _, recovered = inverted(spear, tmp_path)
    assert worst_psnr(recovered, images) > 60


def test_arrays_in_chunks(spear: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrays beyond a gigabyte are split by the library; here beyond a kilobyte."""
    params, gradients, images = linen_step()
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 1024)
    raw = serialization.msgpack_serialize(jax.tree.map(np.asarray, {**params, "grads": gradients["params"]}))
    assert b"__msgpack_chunked_array__" in raw
    (tmp_path / "state").write_bytes(raw)
    converted(spear, tmp_path, tmp_path / "state")
    assert_exact(spear, tmp_path, images)


def test_moments_of_a_training_state_are_no_gradients(spear: Command, tmp_path: Path) -> None:
    params, gradients, _ = linen_step()
    state = {
        "params": params["params"],
        "opt_state": {"0": {"mu": gradients["params"], "nu": params["params"]}},
    }
    (tmp_path / "state").write_bytes(serialization.to_bytes(state))
    run = spear("convert", tmp_path / "state", tmp_path / "dump.h5")
    assert run.status == 2
    assert "without gradients" in run.error
    assert not (tmp_path / "dump.h5").exists()


def keys_as_text(tree: Any) -> Any:
    """Flax writes keys of text alone; nnx numbers the layers of a sequence."""
    return {str(k): keys_as_text(v) for k, v in tree.items()} if isinstance(tree, dict) else tree
