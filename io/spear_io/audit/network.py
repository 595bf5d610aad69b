"""The network of a client in NumPy: forward, backward, and the steps that a client takes on its own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

import spear_np
from spear_np.backend.host import to_host

from ..files.storage import Floats
from .update import Shared

Integers = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


@dataclass(frozen=True, eq=False)
class Pass:
    """What a batch of b inputs leaves in every layer on its way forward."""

    inputs: tuple[Floats, ...]
    """(b, n) each: what the layer takes in."""
    slopes: tuple[Floats, ...]
    """(b, m) each: slope of its activation."""
    outputs: Floats
    """(b, t): what the last layer gives."""


@dataclass(frozen=True, eq=False)
class Network:
    """Fully connected layers that feed each other, in float64."""

    weights: tuple[Floats, ...]
    """(m, n) each."""
    biases: tuple[Floats | None, ...]
    """(m,) each; None where the layer has none."""
    activations: tuple[spear_np.Activation, ...]

    @classmethod
    def of(cls, update: Shared) -> Network | None:
        """Take the model from an update; None where a weight is not known, or an activation cannot be computed.

        A bias whose gradient is shared, but not itself, is taken for zero.
        """
        layers = update.layers
        weights = [layer.weight for layer in layers if layer.weight is not None]
        if len(weights) < len(layers) or not all(layer.sigma.known for layer in layers):
            return None
        return cls(
            tuple(np.asarray(weight[...], dtype=np.float64) for weight in weights),
            tuple(_bias_of(layer) for layer in layers),
            tuple(layer.sigma for layer in layers),
        )

    def forward(self, inputs: Floats) -> Pass:
        """Send `inputs` (b, n) through every layer."""
        taken, slopes = [], []
        passed = inputs
        for weight, bias, activation in zip(self.weights, self.biases, self.activations, strict=True):
            taken.append(passed)
            summed = passed @ weight.T
            values, slope = activation.value_and_slope(summed if bias is None else summed + bias)
            passed = to_host(values)
            slopes.append(to_host(slope))
        return Pass(tuple(taken), tuple(slopes), passed)

    def backward(self, forward: Pass, top: Floats) -> tuple[Floats, ...]:
        """(m, b) for each layer: ∂L/∂Z, where `top` (m, b) is that of the last one."""
        found = [top]
        for weight, slope in zip(self.weights[:0:-1], forward.slopes[-2::-1], strict=True):
            found.append((weight.T @ found[-1]) * slope.T)
        return tuple(reversed(found))

    def trained(
        self,
        inputs: Floats,
        labels: Integers,
        *,
        rate: float,
        steps: int,
        mean: bool,
        decay: spear_np.WeightDecay,
        dtype: type[np.floating] | np.dtype[np.floating],
    ) -> Network:
        """Return the network after `steps` of SGD on one batch, its numbers kept in `dtype` between them.

        The loss is cross-entropy, its `mean` over the batch or its sum.
        """
        share = 1 / len(labels) if mean else 1.0
        weights, biases = list(self.weights), list(self.biases)
        for _ in range(steps):
            now = Network(tuple(weights), tuple(biases), self.activations)
            forward = now.forward(inputs)
            columns = now.backward(forward, share * cross_entropy_grad(forward.outputs, labels))
            for number, (column, taken) in enumerate(zip(columns, forward.inputs, strict=True)):
                step = column @ taken + decay.weight * weights[number]
                weights[number] = (weights[number] - rate * step).astype(dtype).astype(np.float64)
                bias = biases[number]
                if bias is not None:
                    bias_step = column.sum(axis=1) + decay.bias * bias
                    biases[number] = (bias - rate * bias_step).astype(dtype).astype(np.float64)
        return Network(tuple(weights), tuple(biases), self.activations)


def _bias_of(layer: spear_np.LayerGradients) -> Floats | None:
    if layer.bias is not None:
        return np.asarray(layer.bias[...], dtype=np.float64)
    return None if layer.bias_grad is None else np.zeros(layer.shape[0])


def cross_entropy_grad(outputs: Floats, labels: Integers) -> Floats:
    """(t, b): gradient of the sum of the cross-entropies at the outputs (b, t), softmax less one at the label."""
    powers = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    grad: Floats = powers / powers.sum(axis=1, keepdims=True)
    grad[np.arange(len(labels)), labels] -= 1
    return grad.T
