"""Layers of many kinds with the truth behind them: losses, widths, weights, activation rates."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np

from spear_np.backend.host import to_host
from spear_np.factors.factorize import Factors, factorize
from tests.backends import Backend
from tests.networks import Floats, LayerData, digit_batch, relu_network_gradients

Loss = Literal["softmax", "logistic", "squares", "linear"]


def digit_layer(b: int, *, width: int, seed: int, dtype: Any = np.float32) -> LayerData:
    """Return the first layer of a fresh two-layer network after a step on b digits."""
    inputs, labels = digit_batch(b, seed=seed)
    return relu_network_gradients(inputs, labels, width=width, seed=seed, dtype=dtype)


def factors_of(data: LayerData, backend: Backend, **changes: Any) -> Factors:
    """Return the factors of a layer that has a rank, on `backend`."""
    factors = factorize(backend.gradients(data, **changes), backend.device)
    assert isinstance(factors, Factors)
    return factors


def true_directions(factors: Factors, inputs: Floats) -> Floats:
    """(b, b): the directions of the true `inputs` (b, n), one a row, scaled so that they give ∂L/∂Z."""
    basis = to_host(factors.space.to_basis)
    weight_grad = to_host(factors.gradients.weight_grad).astype(np.float64)
    coordinates = inputs.astype(np.float64) @ (weight_grad.T @ basis)
    directions: Floats = np.linalg.inv(coordinates).T * to_host(factors.space.S)
    return directions


def layer_data_of(
    inputs: Floats,
    rng: np.random.Generator,
    *,
    width: int,
    depth: int = 2,
    outputs: int = 10,
    loss: Loss = "softmax",
    weight_scale: float | None = None,
    active: float | None = None,
    dtype: Any = np.float32,
) -> LayerData:
    """Return the first layer of a fresh network after one backward pass, all arithmetic in `dtype`.

    Parameters
    ----------
    inputs : (b, n) array
        The batch; labels are drawn.
    width : int
        m, units of every hidden layer.
    depth : int
        Linear layers, a ReLU between any two.
    outputs : int
        Numbers the network puts out.
    weight_scale : float, optional
        Standard deviation of the weights; by default they are uniform in ±1/√(features), as PyTorch draws them.
    active : float, optional
        Share of the first layer's units that an input turns on, by shifting its biases; about a half by default.
    """
    sizes = [inputs.shape[1], *[width] * (depth - 1), outputs]
    layers = []
    for number in range(depth):
        fan_in, fan_out = sizes[number], sizes[number + 1]
        limit = 1 / np.sqrt(fan_in)
        if weight_scale is None:
            weight = rng.uniform(-limit, limit, (fan_out, fan_in))
        else:
            weight = rng.normal(0, weight_scale, (fan_out, fan_in))
        layers.append((weight.astype(dtype), rng.uniform(-limit, limit, fan_out).astype(dtype)))
    if active is not None:
        weight, bias = layers[0]
        shift = np.quantile(inputs.astype(dtype) @ weight.T + bias, 1 - active)
        layers[0] = (weight, (bias - shift).astype(dtype))
    return _backward(inputs, layers, _output_grad(loss, rng), dtype)


def with_bias(data: LayerData, bias: Floats, rng: np.random.Generator) -> LayerData:
    """Return the layer with other biases (m,), and random gradients where its units are then on."""
    active = data.inputs @ data.weight.T + bias > 0
    output_grad = np.where(active, rng.standard_normal(active.shape), 0).astype(data.weight.dtype)
    return replace(
        data,
        bias=bias,
        output_grad=output_grad.T.copy(),
        weight_grad=output_grad.T @ data.inputs,
        bias_grad=output_grad.sum(axis=0),
    )


def layer_with_patterns(active: Floats, rng: np.random.Generator, *, dtype: Any = np.float32) -> LayerData:
    """Return a made-up layer whose units are on as `active` (m, b) bool says; its weights fit the pattern.

    Inputs and gradients are random; the biases are zero and every pre-activation is ±1, so more inputs than
    features cannot be had.
    """
    m, b = active.shape
    n = 4 * b + 20
    inputs = rng.standard_normal((b, n)).astype(dtype)
    output_grad = np.where(active, rng.standard_normal((m, b)), 0).astype(dtype)
    weight = np.where(active, 1.0, -1.0) @ np.linalg.pinv(inputs.astype(np.float64)).T
    return LayerData(
        weight_grad=output_grad @ inputs,
        bias_grad=output_grad.sum(axis=1),
        weight=weight.astype(dtype),
        bias=np.zeros(m, dtype=dtype),
        inputs=inputs,
        output_grad=output_grad,
    )


def _output_grad(loss: Loss, rng: np.random.Generator) -> Any:
    """Return ∂L/∂outputs (b, c) as a function of the outputs (b, c)."""

    def softmax(outputs: Floats) -> Floats:
        shares = np.exp(outputs - outputs.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        labels = rng.integers(outputs.shape[1], size=len(outputs))
        slope: Floats = shares - np.eye(outputs.shape[1], dtype=outputs.dtype)[labels]
        return slope

    def logistic(outputs: Floats) -> Floats:
        return (1 + np.tanh(outputs / 2)) / 2 - rng.integers(2, size=outputs.shape)

    def squares(outputs: Floats) -> Floats:
        return outputs - rng.standard_normal(outputs.shape)

    def linear(outputs: Floats) -> Floats:
        return np.ones_like(outputs)

    return {"softmax": softmax, "logistic": logistic, "squares": squares, "linear": linear}[loss]


def _backward(inputs: Floats, layers: list[tuple[Floats, Floats]], output_grad: Any, dtype: Any) -> LayerData:
    activations, outputs = [inputs.astype(dtype)], []
    for number, (weight, bias) in enumerate(layers):
        outputs.append(activations[-1] @ weight.T + bias)
        activations.append(np.maximum(outputs[-1], 0) if number < len(layers) - 1 else outputs[-1])
    grad = (output_grad(outputs[-1]) / len(inputs)).astype(dtype)
    for number in range(len(layers) - 1, 0, -1):
        grad = (grad @ layers[number][0]) * (outputs[number - 1] > 0)
    return LayerData(
        weight_grad=grad.T @ activations[0],
        bias_grad=grad.sum(axis=0),
        weight=layers[0][0],
        bias=layers[0][1],
        inputs=activations[0],
        output_grad=grad.T.copy(),
    )
