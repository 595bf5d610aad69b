"""The recipes of docs/frameworks.md, run as they stand there: each gives its batch away."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.documents import code_blocks, run
from tests.inverting import decibels, inverted
from tests.networks import digit_batch, relu_network_gradients

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "frameworks.md").read_text()
SECTIONS = dict(re.findall(r"^## (.*)\n((?:(?!## ).*\n)*)", PAGE, re.MULTILINE))
RECIPES = {title: code_blocks(text, "python") for title, text in SECTIONS.items()}

SIZES, B = (64, 80, 70, 10), 5
INPUTS, LABELS = digit_batch(B, seed=3)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def recipe(title: str, number: int = 0) -> str:
    return RECIPES[title][number]


def given_away(dump: str = "dump.h5", record: str = "record-0", inputs: Any = INPUTS) -> tuple[str, float]:
    """Return the status of a record and how near its worst row is to the truth, in dB."""
    status, recovered = inverted(dump)[record]
    return status, decibels(recovered, inputs)


def torch_setting() -> dict[str, Any]:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'spear-np[torch]'")
    torch.manual_seed(17)
    first, second, head = (torch.nn.Linear(n, m) for n, m in pairwise(SIZES))
    model = torch.nn.Sequential(first, torch.nn.ReLU(), second, torch.nn.ReLU(), head)
    return {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "criterion": torch.nn.CrossEntropyLoss(),
        "images": torch.tensor(INPUTS),
        "labels": torch.tensor(LABELS),
    }


def test_every_recipe_is_run_here() -> None:
    tested = re.findall(r"recipe\(\"(.*?)\"(?:, (\d))?\)", Path(__file__).read_text())
    assert {(title, int(number or 0)) for title, number in tested} == {
        (title, number) for title, blocks in RECIPES.items() for number in range(len(blocks))
    }
    assert all(RECIPES.values())


def test_torch_step() -> None:
    run(recipe("PyTorch, around a training step"), **torch_setting())
    status, quality = given_away()
    assert (status, quality > 100) == ("exact", True)


def test_torch_func() -> None:
    run(recipe("PyTorch, gradients of torch.func"), **torch_setting())
    status, quality = given_away()
    assert (status, quality > 100) == ("exact", True)


def test_torch_weights() -> None:
    run(recipe("PyTorch, weights before and after"), **torch_setting())
    assert given_away()[1] > 60


def test_several_clients() -> None:
    setting = torch_setting()
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    batches = {f"client-{seed}": digit_batch(B, seed=seed) for seed in range(2)}
    clients = {name: tuple(map(torch.tensor, batch)) for name, batch in batches.items()}
    run(recipe("Several clients in one file"), **setting, clients=clients)
    for name, (inputs, _) in batches.items():
        status, quality = given_away(record=name, inputs=inputs)
        assert (status, quality > 100) == ("exact", True)


def flax_or_skip() -> None:
    pytest.importorskip("jax", reason="JAX is not installed: pip install 'spear-np[jax]'")
    pytest.importorskip("flax", reason="Flax is not installed: pip install flax")


def optax_loss(logits: Any, labels: Any) -> Any:
    import optax  # comes with Flax

    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def test_flax_linen() -> None:
    flax_or_skip()
    import jax
    from flax import linen

    hidden = [layer for m in SIZES[1:-1] for layer in (linen.Dense(m), linen.relu)]
    model = linen.Sequential([*hidden, linen.Dense(SIZES[-1])])
    params = jax.jit(model.init)(jax.random.key(7), INPUTS)

    def loss(params: Any, images: Any, labels: Any) -> Any:
        return optax_loss(model.apply(params, images), labels)

    run(recipe("JAX with Flax linen"), params=params, loss=jax.jit(loss), images=INPUTS, labels=LABELS)
    status, quality = given_away()
    assert (status, quality > 100) == ("exact", True)


def test_flax_nnx() -> None:
    flax_or_skip()
    from flax import nnx

    rngs = nnx.Rngs(5)
    first, second, head = (nnx.Linear(n, m, rngs=rngs) for n, m in pairwise(SIZES))
    model = nnx.Sequential(first, nnx.relu, second, nnx.relu, head)

    def loss(model: Any, images: Any, labels: Any) -> Any:
        return optax_loss(model(images), labels)

    run(recipe("JAX with Flax nnx"), model=model, loss=nnx.jit(loss), images=INPUTS, labels=LABELS)
    status, quality = given_away()
    assert (status, quality > 100) == ("exact", True)


def test_keras() -> None:
    pytest.importorskip("jax", reason="JAX is not installed: pip install 'spear-np[jax]'")
    keras = pytest.importorskip("keras", reason="Keras is not installed: pip install 'spear-np[keras]'")
    if keras.backend.backend() != "jax":
        pytest.skip("Keras runs on another backend here: set KERAS_BACKEND=jax")
    keras.utils.set_random_seed(17)
    hidden = [keras.layers.Dense(m, activation="relu") for m in SIZES[1:-1]]
    model = keras.Sequential([keras.Input((SIZES[0],)), *hidden, keras.layers.Dense(SIZES[-1])])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    run(recipe("Keras"), model=model, loss_function=loss, images=INPUTS, labels=LABELS)
    status, quality = given_away()
    assert (status, quality > 100) == ("exact", True)


def test_flower(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("flwr", reason="Flower is not installed: pip install 'spear-np[flower]'")
    model = torch_setting()["model"]
    from tests.flower_clients import IDS, Clients, client_batch, pretend_a_run

    pretend_a_run(monkeypatch)
    run(recipe("Flower"), model=model, grid=Clients(), images=torch_setting()["images"])
    for client in IDS:
        assert given_away("updates/round-1.h5", f"client-{client}", client_batch(client)[0])[1] > 60


def test_numpy() -> None:
    data = relu_network_gradients(INPUTS, LABELS, width=SIZES[1], seed=5)
    arrays = {name: getattr(data, name) for name in ("weight_grad", "bias_grad", "weight", "bias")}
    run(recipe("NumPy, and everything else", 0), **arrays, labels=LABELS)
    status, quality = given_away()
    assert (status, quality > 100) == ("exact", True)


def test_numpy_differences() -> None:
    inputs, labels = digit_batch(B, seed=4)
    data = relu_network_gradients(INPUTS, LABELS, width=SIZES[1], seed=5)
    other = relu_network_gradients(inputs, labels, width=SIZES[1], seed=5)
    rate = np.float32(0.1)
    run(
        recipe("NumPy, and everything else", 1),
        weight=data.weight,
        bias=data.bias,
        after=data.weight - rate * data.weight_grad,
        bias_after=data.bias - rate * data.bias_grad,
        other_after=data.weight - rate * other.weight_grad,
        other_bias_after=data.bias - rate * other.bias_grad,
    )
    assert given_away(record="client-0")[1] > 60
    assert given_away(record="client-1", inputs=inputs)[1] > 60
