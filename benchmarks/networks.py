"""Whole networks with known answers: what every fully connected layer shares of one step, whatever its activation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import scipy.linalg
import torch
from torch import nn
from torch.nn import functional

from benchmarks.problems import CALIBRATION, Array, Images, Source, loss_of, sample_images
from spear_np import Activation, LayerGradients

TRAINING_BATCH = 64
LEARNING_RATE = 0.1
Function = Callable[[torch.Tensor], torch.Tensor]
Init = Literal["torch", "glorot", "normal"]

FUNCTIONS: dict[str, Function] = {
    "relu": functional.relu,
    "relu6": functional.relu6,
    "leaky_relu": functional.leaky_relu,
    "leaky_relu_0.2": lambda z: functional.leaky_relu(z, 0.2),
    "elu": functional.elu,
    "celu": functional.celu,
    "selu": functional.selu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda z: functional.gelu(z, approximate="tanh"),
    "silu": functional.silu,
    "mish": functional.mish,
    "softplus": functional.softplus,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "hardswish": functional.hardswish,
    "hardtanh": functional.hardtanh,
}
"""Activations by the names of a dump; a number behind an underscore is the negative slope."""


def activation_of(name: str) -> Activation:
    """Return the solver's activation for a name of `FUNCTIONS`."""
    stem, _, number = name.rpartition("_")
    return (
        Activation(stem, {"negative_slope": float(number)})
        if number.replace(".", "").isdigit()
        else Activation(name)
    )


@dataclass(frozen=True)
class Network:
    """A multilayer perceptron to be drawn anew for every seed."""

    widths: Sequence[int] = (200, 200, 200, 200, 200)
    """Of the hidden layers."""
    activation: str | Sequence[str] = "relu"
    """Of all hidden layers, or of each."""
    source: Source | Literal["table"] = "fashion-mnist"
    init: Init = "torch"
    """PyTorch's default; Glorot uniform weights and zero biases, as in Keras; normal weights without biases."""
    weight_std: float = 0.5
    """Of normal weights."""
    gain: float = 1.0
    """Factor of all weights and biases."""
    normalised: bool = True
    share_on: float | None = None
    """Shifts the biases of every hidden layer so that its units are on for this share of other inputs."""
    steps: int = 0
    """Of SGD on other inputs."""
    dtype: torch.dtype = torch.float32
    """Of forward and backward pass."""
    gradient_dtype: torch.dtype | None = None
    """What gradients are rounded to before they are shared."""
    noise: float = 0.0
    """Standard deviation of Gaussian noise on every gradient entry, in units of the root mean square of the array."""
    local_steps: int = 1
    """Steps of SGD on the batch whose summed update is shared, divided by the learning rate."""
    learning_rate: float = 0.01


@dataclass(frozen=True)
class Shared:
    """What a network shares of one batch, and the truth."""

    layers: tuple[LayerGradients, ...]
    """In forward order, the output layer last."""
    inputs: tuple[Array, ...] = field(repr=False)
    """(b, n) true inputs of every layer, float64."""
    output_grads: tuple[Array, ...] = field(repr=False)
    """(m, b) true ∂L/∂Z of every layer, float64."""
    labels: Array
    """(b,)."""

    def errors(self, recovered: Array, layer: int = 0) -> Array:
        """(b,): largest error of the recovered row (k, n) nearest to each true input, as a share of the data range."""
        truth = self.inputs[layer]
        if not len(recovered):
            return np.full(len(truth), np.inf)
        nearest = np.argmin((recovered**2).sum(1)[None, :] - 2 * truth @ recovered.T, axis=1)
        errors = np.asarray([np.abs(recovered[k] - row).max() for k, row in zip(nearest, truth, strict=True)])
        return np.asarray(errors / np.ptp(truth))


def share(network: Network, b: int, seed: int) -> Shared:
    """Draw a network and a batch of b inputs that no other seed has, and return what one step on it shares."""
    wanted = max(network.steps * TRAINING_BATCH, CALIBRATION if network.share_on is not None else 0)
    images, others = draw(network, b, seed, wanted)
    torch.manual_seed(seed)
    rng = np.random.default_rng([seed, 77])
    names = (
        [network.activation] * len(network.widths)
        if isinstance(network.activation, str)
        else network.activation
    )
    functions = [FUNCTIONS[name] for name in names]
    sizes = [images.inputs.shape[1], *network.widths, images.classes]
    linear = [_linear(network, n, m) for n, m in pairwise(sizes)]
    if network.share_on is not None:
        _shift(linear, functions, others, network.share_on)
    _train(linear, functions, others, network.steps)
    for layer in linear:
        layer.to(network.dtype)
    x = torch.as_tensor(images.inputs, dtype=network.dtype)
    labels = torch.as_tensor(images.labels)
    first = [(_copy(layer.weight), _copy(layer.bias)) for layer in linear]
    total: list[tuple[torch.Tensor, torch.Tensor]] | None = None
    inputs: tuple[Array, ...] = ()
    grads: tuple[Array, ...] = ()
    for _ in range(network.local_steps):
        found, seen, pre = _backward(linear, functions, x, labels)
        total = (
            found if total is None else [(a + c, d + e) for (a, d), (c, e) in zip(total, found, strict=True)]
        )
        if not inputs:
            inputs = tuple(_numpy(a) for a in seen)
            grads = tuple(_numpy(z.grad).T for z in pre)
        if network.local_steps > 1:
            with torch.no_grad():
                for layer, (w, c) in zip(linear, found, strict=True):
                    layer.weight -= network.learning_rate * w
                    layer.bias -= network.learning_rate * c
    assert total is not None
    layers = []
    for (weight, bias), (weight_grad, bias_grad), name in zip(first, total, [*names, "none"], strict=True):
        layers.append(
            LayerGradients(
                _shared_array(weight_grad, network, rng),
                _shared_array(bias_grad, network, rng),
                weight,
                bias,
                activation_of(name),
                precision=_precision(network),
            )
        )
    return Shared(tuple(layers), inputs, grads, images.labels)


def _precision(network: Network) -> str | None:
    dtype = network.gradient_dtype
    return None if dtype is None or network.noise else str(dtype).rsplit(".", maxsplit=1)[-1]


def _shared_array(values: torch.Tensor, network: Network, rng: np.random.Generator) -> Array:
    if network.gradient_dtype is not None:
        values = values.to(network.gradient_dtype).to(values.dtype)
    array: Array = values.numpy().copy()
    if network.noise:
        spread = network.noise * np.sqrt(np.mean(array.astype(np.float64) ** 2))
        array = (array + spread * rng.standard_normal(array.shape)).astype(array.dtype)
    return array


def _backward(
    linear: list[nn.Linear], functions: list[Function], x: torch.Tensor, labels: torch.Tensor
) -> tuple[list[tuple[torch.Tensor, torch.Tensor]], list[torch.Tensor], list[torch.Tensor]]:
    """Gradients of every layer, its inputs, and its pre-activations with their gradients."""
    seen, pre, a = [], [], x
    for layer, function in zip(linear, [*functions, None], strict=True):
        layer.zero_grad()
        seen.append(a.detach())
        z = layer(a)
        z.retain_grad()
        pre.append(z)
        a = z if function is None else function(z)
    loss_of(a, labels.numpy(), "cross-entropy").backward()
    return [(_copy(layer.weight.grad), _copy(layer.bias.grad)) for layer in linear], seen, pre


def _copy(tensor: torch.Tensor) -> Any:
    return tensor.detach().clone()


def _numpy(tensor: torch.Tensor) -> Array:
    return np.asarray(tensor.double().numpy().copy())


def _linear(network: Network, n: int, m: int) -> nn.Linear:
    layer = nn.Linear(n, m)
    if network.init == "glorot":
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
    elif network.init == "normal":
        nn.init.normal_(layer.weight, std=network.weight_std)
        nn.init.zeros_(layer.bias)
    with torch.no_grad():
        layer.weight *= network.gain
        layer.bias *= network.gain
    return layer


def _shift(linear: list[nn.Linear], functions: list[Function], others: Images, share_on: float) -> None:
    a = torch.as_tensor(others.inputs[:CALIBRATION], dtype=torch.float32)
    with torch.no_grad():
        for layer, function in zip(linear, functions, strict=False):
            z = a @ layer.weight.T
            layer.bias.copy_(-z.quantile(1 - share_on, dim=0))
            a = function(z + layer.bias)


def _train(linear: list[nn.Linear], functions: list[Function], others: Images, steps: int) -> None:
    for step in range(steps):
        rows = np.arange(step * TRAINING_BATCH, (step + 1) * TRAINING_BATCH) % len(others.inputs)
        x = torch.as_tensor(others.inputs[rows], dtype=torch.float32)
        found, _, _ = _backward(linear, functions, x, torch.as_tensor(others.labels[rows]))
        with torch.no_grad():
            for layer, (w, c) in zip(linear, found, strict=True):
                layer.weight -= LEARNING_RATE * w
                layer.bias -= LEARNING_RATE * c


def draw(network: Network, b: int, seed: int, others: int) -> tuple[Images, Images]:
    """Return b inputs with labels, and as many `others` besides, or as many as there are."""
    if network.source == "table":
        return _table(b, others, seed)
    return sample_images(network.source, b, seed, others=others, normalised=network.normalised)


def _table(b: int, others: int, seed: int) -> tuple[Images, Images]:
    """Rows of a table with every column one-hot, none a combination of others: such a batch has a lower rank, and is lost."""
    images, rest = sample_images("adult", 4 * b, seed, others=others)
    categories = images.inputs[:, 6:]
    _, _, order = scipy.linalg.qr(categories.T, mode="economic", pivoting=True)
    chosen = np.sort(order[:b])
    if np.linalg.matrix_rank(categories[chosen]) < b:
        msg = f"fewer than {b} independent rows"
        raise ValueError(msg)
    kept = replace(images, inputs=categories[chosen], labels=images.labels[chosen])
    return kept, replace(rest, inputs=rest.inputs[:, 6:])
