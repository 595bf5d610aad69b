"""What whole networks share of a batch of digits, and the truth behind it, in plain NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np

import spear_np
from spear_np import Activation, Inversion, LayerGradients
from spear_np.arrays import Array
from spear_np.backend.host import to_host
from spear_np.chain.layers import Chain
from spear_np.factors.activation import as_activation
from spear_np.network.read import Linked, read_chain
from tests.backends import Backend
from tests.networks import Floats, digit_batch

Loss = Literal["cross_entropy", "mse"]

ARRAYS = ("weight_grad", "bias_grad", "weight", "bias")


@dataclass(frozen=True)
class NetworkData:
    """The gradients of the layers of a network, in forward order, and the truth. Shapes: b inputs, m units, n features."""

    layers: tuple[LayerGradients, ...]
    inputs: tuple[Floats, ...]
    """(b, n) of each layer."""
    pre_activations: tuple[Floats, ...]
    """(b, m) of each layer."""
    output_grads: tuple[Floats, ...]
    """(b, m): ∂L/∂Z of each layer, one input a row."""
    labels: Floats
    """(b,)."""

    def on(self, backend: Backend, count: int | None = None) -> tuple[LayerGradients, ...]:
        """Return the first `count` layers, all by default, with their arrays on `backend`."""
        return tuple(
            replace(layer, **{name: backend.array(getattr(layer, name)) for name in ARRAYS})
            for layer in self.layers[:count]
        )

    def changed(self, number: int, **changes: Any) -> tuple[LayerGradients, ...]:
        """Return the layers with `changes` to the one called `number`."""
        layers = list(self.layers)
        layers[number] = replace(layers[number], **changes)
        return tuple(layers)

    def errors(self, answer: Inversion) -> tuple[Floats, Floats]:
        """(k,) largest error of each row of `answer` as a share of the data range, and the numbers of the inputs next to them."""
        truth = self.inputs[0].astype(np.float64)
        rows = to_host(answer.inputs)
        largest = np.max(np.abs(rows[:, None, :] - truth[None, :, :]), axis=2)
        return np.min(largest, axis=1) / np.ptp(truth), np.argmin(largest, axis=1)


def network_of(
    inputs: Floats,
    labels: Floats,
    *,
    widths: Sequence[int] = (60, 60),
    activation: str | Activation | Sequence[str | Activation] = "relu",
    outputs: int = 10,
    seed: int = 0,
    dtype: Any = np.float64,
    gain: float = 1.0,
    loss: Loss = "cross_entropy",
    share_on: float | None = None,
    touching: int = 0,
) -> NetworkData:
    """Return what a fresh network shares of one step on a batch; all arithmetic is done in `dtype`.

    Parameters
    ----------
    inputs, labels : (b, n) and (b,) arrays
        The batch; classes are 0 to `outputs` - 1.
    widths : sequence of int
        Units of the hidden layers; the output layer comes on top.
    activation : str, Activation, or one of these for each hidden layer
        What follows them. Weights are uniform in ±gain/√features, as PyTorch draws them.
    share_on : float, optional
        Share of the units of the first layer with a positive pre-activation, by shifting its biases.
    touching : int
        How many units of the first layer are exactly at zero for the first input, as near as `dtype` comes to it.
    """
    rng = np.random.default_rng([seed, 31])
    b = len(inputs)
    names = [activation] * len(widths) if isinstance(activation, str | Activation) else activation
    sigmas = [as_activation(one) for one in (*names, "none")]
    a, seen, pre, slopes, drawn = inputs.astype(dtype), [], [], [], []
    for number, (n, m) in enumerate(pairwise([inputs.shape[1], *widths, outputs])):
        limit = gain / np.sqrt(n)
        weight = rng.uniform(-limit, limit, (m, n)).astype(dtype)
        bias = rng.uniform(-limit, limit, m).astype(dtype)
        if number == 0 and share_on is not None:
            bias = (bias - np.quantile(a @ weight.T + bias, 1 - share_on)).astype(dtype)
        if number == 0:
            bias[:touching] = -(a @ weight.T)[0, :touching]
        seen.append(a)
        pre.append(a @ weight.T + bias)
        a, slope = map(to_host, sigmas[number].value_and_slope(pre[-1]))
        slopes.append(slope)
        drawn.append((weight, bias))
    grads = [(_loss_slope(a, labels, loss, rng) / b).astype(dtype)]
    for number in range(len(widths) - 1, -1, -1):
        grads.insert(0, slopes[number] * (grads[0] @ drawn[number + 1][0]))
    layers = tuple(
        LayerGradients(grad.T @ below, grad.sum(axis=0), weight, bias, sigma)
        for grad, below, (weight, bias), sigma in zip(grads, seen, drawn, sigmas, strict=True)
    )
    return NetworkData(layers, tuple(seen), tuple(pre), tuple(grads), labels)


def _loss_slope(outputs: Floats, labels: Floats, loss: Loss, rng: np.random.Generator) -> Floats:
    """∂L/∂outputs (b, c) of the summed loss."""
    if loss == "mse":
        squares: Floats = outputs - rng.standard_normal(outputs.shape)
        return squares
    shares = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    softmax: Floats = shares - np.eye(outputs.shape[1])[labels]
    return softmax


def digit_network(b: int, *, seed: int = 0, **options: Any) -> NetworkData:
    """Return what a fresh network shares of b different digits; options as in `network_of`."""
    inputs, labels = digit_batch(b, seed=seed)
    return network_of(inputs, labels % options.get("outputs", 10), seed=seed, **options)


def with_noise(data: NetworkData, level: float, rng: np.random.Generator) -> NetworkData:
    """Return the network with Gaussian noise on every gradient entry, `level` times the root mean square of its array."""

    def noisy(array: Floats) -> Floats:
        spread = level * np.sqrt(np.mean(array.astype(np.float64) ** 2))
        noise: Floats = (array + spread * rng.standard_normal(array.shape)).astype(array.dtype)
        return noise

    layers = tuple(
        replace(one, weight_grad=noisy(to_host(one.weight_grad)), bias_grad=noisy(to_host(one.bias_grad)))
        for one in data.layers
    )
    return replace(data, layers=layers)


def chain_on(data: NetworkData, backend: Backend = Backend.NUMPY, count: int | None = None) -> Chain:
    """Return the chain of the first `count` layers of a network, on `backend`."""
    linked = read_chain(data.on(backend, count), backend.device)
    assert isinstance(linked, Linked), linked
    return linked.chain


def true_coordinates(chain: Chain, data: NetworkData, number: int = 0) -> Floats:
    """(b, b): coordinates of the true inputs of one layer of the chain, one input a row, from the truth alone.

    Those of the first layer fit its factors in float64, whose basis the chain keeps in float32 only.
    """
    layer = chain.layers[number]
    basis = to_host(layer.gradients.weight_grad).astype(np.float64).T @ to_host(layer.space.to_basis)
    coordinates: Floats = data.inputs[number].astype(np.float64) @ basis
    return coordinates


def true_top(chain: Chain, data: NetworkData, top: Array) -> Floats:
    """(b, t): numbers q at the top of the chain, for its T (m, t), from the true ∂L/∂Z there."""
    grads = data.output_grads[len(chain.layers) - 1].astype(np.float64)
    numbers: Floats = np.linalg.lstsq(to_host(top), grads.T, rcond=None)[0].T
    return numbers


def assert_whole(answer: Inversion, data: NetworkData, *, tolerance: float = 1e-4) -> None:
    """Fail unless `answer` is exact, holds every input once within its bound, and labels them rightly where it does."""
    assert answer.status is spear_np.Status.EXACT, answer.reason
    errors, rows = data.errors(answer)
    assert sorted(rows.tolist()) == list(range(len(data.labels)))
    bounds = np.asarray(answer.certificate.error_bound) / np.ptp(data.inputs[0])
    assert np.all(errors <= tolerance)
    assert np.all(errors <= bounds)
    if answer.labels is not None:
        assert to_host(answer.labels).tolist() == data.labels[rows].tolist()
