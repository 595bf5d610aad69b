"""Real batches and the gradients that a small ReLU network makes of them, in plain NumPy."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

Floats = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class LayerData:
    """The first layer of a network after one backward pass, and the truth behind it.

    Shapes: m units, n features, b inputs.
    """

    weight_grad: Floats
    """(m, n)."""
    bias_grad: Floats
    """(m,)."""
    weight: Floats
    """(m, n)."""
    bias: Floats
    """(m,)."""
    inputs: Floats
    """(b, n)."""
    output_grad: Floats
    """(m, b)."""


@cache
def digits() -> Floats:
    """Scanned digits, (1797, 64) float32 between 0 and 1; read-only."""
    images: Floats = (load_digits().data / 16).astype(np.float32)
    images.flags.writeable = False
    return images


@cache
def digit_labels() -> Floats:
    """Which digit each image shows, (1797,) int64; read-only."""
    labels: Floats = load_digits().target.astype(np.int64)
    labels.flags.writeable = False
    return labels


def digit_batch(b: int, *, seed: int) -> tuple[Floats, Floats]:
    """Return b different images (b, 64) and their labels (b,)."""
    chosen = np.random.default_rng(seed).choice(len(digits()), b, replace=False)
    return digits()[chosen], digit_labels()[chosen]


def relu_network_gradients(
    inputs: Floats, labels: Floats, *, width: int, depth: int = 2, seed: int, dtype: Any = np.float32
) -> LayerData:
    """Return the first layer of a fresh fully connected ReLU network after one step of mean cross-entropy.

    All arithmetic is done in `dtype`, so the noise is what a training loop of that precision shares. The
    weights are uniform in ±1/√(input features), as PyTorch draws them.

    Parameters
    ----------
    inputs, labels : (b, n) and (b,) arrays
        The batch; classes are 0 to 9.
    width : int
        Units of every hidden layer, m of the returned one.
    depth : int
        Number of linear layers; a ReLU follows all but the last.
    """
    rng = np.random.default_rng(seed)
    sizes = [inputs.shape[1], *[width] * (depth - 1), 10]
    layers = []
    for fan_in, fan_out in pairwise(sizes):
        limit = 1 / np.sqrt(fan_in)
        weight = rng.uniform(-limit, limit, (fan_out, fan_in)).astype(dtype)
        bias = rng.uniform(-limit, limit, fan_out).astype(dtype)
        layers.append((weight, bias))

    activations = [inputs.astype(dtype)]
    outputs = []
    for number, (weight, bias) in enumerate(layers):
        outputs.append(activations[-1] @ weight.T + bias)
        activations.append(np.maximum(outputs[-1], 0) if number < depth - 1 else outputs[-1])

    logits = activations[-1]
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    output_grad = ((shares - np.eye(10, dtype=dtype)[labels]) / dtype(len(labels))).astype(dtype)
    for number in range(depth - 1, 0, -1):
        output_grad = (output_grad @ layers[number][0]) * (outputs[number - 1] > 0)
    weight, bias = layers[0]
    return LayerData(
        weight_grad=output_grad.T @ activations[0],
        bias_grad=output_grad.sum(axis=0),
        weight=weight,
        bias=bias,
        inputs=activations[0],
        output_grad=output_grad.T.copy(),
    )
