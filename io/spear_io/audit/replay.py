"""The step of a client played again: what each input of the batch adds to the update, and what more steps would share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

import spear_np
from spear_np.answer.labels import CROSS_ENTROPY, labels_from
from spear_np.backend.host import to_host
from spear_np.factors.activation import NO_ACTIVATION
from spear_np.factors.gradients import NO_DECAY

from ..files.storage import Floats
from .network import Integers, Network, Pass, cross_entropy_grad
from .update import GRADIENTS, Shared

AGREES = 1e-2
"""Share of the shared gradient of any layer by which a step that is played again may miss it.

Heuristic: rounding to bfloat16 leaves 4e-3, and to float32 3e-7; one wrong label among 30 leaves 0.15, among 300 0.04 (digits, tanh).
"""


@dataclass(frozen=True, eq=False)
class PerExample:
    """The gradients of the single inputs of a batch: their sum is the update."""

    inputs: tuple[Floats, ...]
    """(b, n) for each layer."""
    output_grads: tuple[Floats, ...]
    """(m, b) for each layer: ∂L/∂Z."""
    biases: tuple[bool, ...]
    """Whether the layer shares the gradient of its bias."""

    @classmethod
    def of(cls, result: spear_np.Inversion) -> PerExample:
        """Take them from an inversion of a whole batch, in the layer that was inverted alone."""
        shared = result.gradients.bias_grad is not None
        return cls((to_host(result.inputs),), (to_host(result.output_grad),), (shared,))

    @property
    def norms(self) -> Floats:
        """(b,): norm of the gradient of each input, in all layers, weights and bias together."""
        squares = [
            np.sum(columns**2, axis=0) * (bias + np.sum(inputs**2, axis=1))
            for inputs, columns, bias in zip(self.inputs, self.output_grads, self.biases, strict=True)
        ]
        norms: Floats = np.sqrt(np.sum(squares, axis=0))
        return norms

    def clipped(self, update: Shared, norm: float) -> Shared:
        """Return the update with the gradient of each input clipped to `norm`; what weight decay added is left out."""
        norms = self.norms
        factors = np.minimum(1.0, norm / np.maximum(norms, np.finfo(np.float64).tiny))
        layers = []
        for layer, inputs, output_grad in zip(update.layers, self.inputs, self.output_grads, strict=True):
            columns = output_grad * factors[None, :]
            weight = (columns @ inputs).astype(layer.weight_grad.dtype)
            bias = None if layer.bias_grad is None else columns.sum(axis=1).astype(layer.bias_grad.dtype)
            layers.append(replace(layer, weight_grad=weight, bias_grad=bias, precision=None, decay=NO_DECAY))
        return replace(update, layers=tuple(layers))


@dataclass(frozen=True, eq=False)
class Batch:
    """Inputs of the first layer of an update, and their labels as far as they are known."""

    inputs: Floats
    """(b, n) float64."""
    labels: Integers | None
    """(b,); None where one of them is not known."""


@dataclass(frozen=True, eq=False)
class Replay:
    """A step that was played again and gave the update that was shared."""

    network: Network
    inputs: Floats
    """(b, n) float64, of the first layer."""
    labels: Integers | None
    """(b,) under cross-entropy; None where the loss or a label is not known, and with it the gradient of a second step."""
    decay: spear_np.WeightDecay
    """What the shared gradients hold of the weights besides."""
    examples: PerExample
    scale: float
    """Of what was shared to the gradient of the summed loss: 1, or 1/b for a mean."""
    dtype: np.dtype[np.floating]
    """Of the weights in the file."""

    def trained(self, count: int, rate: float, *, mean: bool) -> Network:
        """Return the model after `count` steps on this batch, kept in the precision of the file between them, as a client keeps it.

        The loss is the `mean` over the batch, or its sum.
        """
        assert self.labels is not None
        with np.errstate(over="ignore", invalid="ignore"):
            return self.network.trained(
                self.inputs,
                self.labels,
                rate=rate,
                steps=count,
                mean=mean,
                decay=self.decay,
                dtype=self.dtype,
            )

    def stays_finite(self, count: int, rate: float, *, mean: bool) -> bool:
        """Whether `count` steps leave finite weights: a training that overflows protects nobody, it fails."""
        after = self.trained(count, rate, mean=mean)
        return all(
            bool(np.all(np.isfinite(array))) for array in (*after.weights, *after.biases) if array is not None
        )

    def steps(self, update: Shared, count: int, rate: float, *, mean: bool) -> Shared:
        """Return what the client shares after `count` steps as `trained` takes them: (W₀ - W_count) / (`rate` · `count`)."""
        after = self.trained(count, rate, mean=mean)
        layers = []
        for number, layer in enumerate(update.layers):
            weight = (self.network.weights[number] - after.weights[number]) / (rate * count)
            before, then = self.network.biases[number], after.biases[number]
            bias = None
            if layer.bias_grad is not None and before is not None and then is not None:
                bias = ((before - then) / (rate * count)).astype(layer.bias_grad.dtype)
            layers.append(
                replace(
                    layer,
                    weight_grad=weight.astype(layer.weight_grad.dtype),
                    bias_grad=bias,
                    precision=None,
                )
            )
        return replace(update, layers=tuple(layers))


def replayed(update: Shared, batches: Sequence[Batch], decay: spear_np.WeightDecay) -> Replay | str:
    """Play the step of `update` again with the first of `batches` that gives it, or say why none does.

    Under cross-entropy the labels tell the gradient at the output. Otherwise the gradient of the last layer tells it by least
    squares, if the batch has no more inputs than that layer has room for; labels that are not known are read off it. Either way
    the layers before must then have the gradients that were shared.
    """
    network, held = Network.of(update), update.first.weight
    if network is None or held is None:
        return "the file does not hold the weights of every layer that is used, or names an activation that is not known"
    why = "neither the true inputs nor all of the batch are known"
    for batch in batches:
        with np.errstate(over="ignore", invalid="ignore"):
            forward = network.forward(batch.inputs)
        if not all(np.all(np.isfinite(array)) for array in (*forward.inputs, forward.outputs)):
            why = "the step, played again with these inputs, gives numbers that are not finite"
            continue
        by_gradient = _top_by_gradient(update, forward, decay)
        labels = _labels(update, batch, by_gradient, classes=forward.outputs.shape[1])
        by_labels = None if labels is None else cross_entropy_grad(forward.outputs, labels)
        if by_labels is None and by_gradient is None:
            why = (
                "neither labels under cross-entropy nor the gradient of the last layer tell the gradient at the output: "
                f"{len(batch.inputs)} inputs are more than that layer has room for"
            )
        for top in (by_labels, by_gradient):
            if top is None:
                continue
            examples = PerExample(
                forward.inputs,
                network.backward(forward, top),
                tuple(layer.bias_grad is not None for layer in update.layers),
            )
            scale, miss = _agreement(update, examples, decay)
            if miss <= AGREES:
                scaled = replace(examples, output_grads=tuple(scale * one for one in examples.output_grads))
                told = labels if top is by_labels else None
                return Replay(network, batch.inputs, told, decay, scaled, scale, held.dtype)
            by = f" by {miss:.0%}" if math.isfinite(miss) else ""
            why = (
                f"the step, played again with these inputs, misses the gradients that were shared{by}: something stands "
                "between the layers, inputs are repeated, or the update is no plain gradient"
            )
    return why


def _labels(update: Shared, batch: Batch, top: Floats | None, *, classes: int) -> Integers | None:
    """(b,): labels under cross-entropy, as they are known or as the gradient at the output `top` (t, b) tells them.

    None where the layers do not end at the output, the loss is another, or a label is missing.
    """
    if update.layers[-1].sigma.name != NO_ACTIVATION[0] or update.loss not in (None, CROSS_ENTROPY):
        return None
    labels = batch.labels
    if labels is None and top is not None:
        labels = labels_from(top.T, update.loss)
    return labels if labels is not None and np.all((labels >= 0) & (labels < classes)) else None


def _top_by_gradient(update: Shared, forward: Pass, decay: spear_np.WeightDecay) -> Floats | None:
    """(m, b): gradient at the output of the last layer, by its own gradient; None where that leaves it open."""
    last = update.layers[-1]
    shared, inputs = _without(last, decay)["weight_grad"], forward.inputs[-1]
    if last.bias_grad is not None:
        shared = np.hstack([shared, _without(last, decay)["bias_grad"][:, None]])
        inputs = np.hstack([inputs, np.ones((len(inputs), 1))])
    top, _, rank, _ = np.linalg.lstsq(inputs.T, shared.T, rcond=None)
    return top.T if rank == len(inputs) else None


def _agreement(update: Shared, examples: PerExample, decay: spear_np.WeightDecay) -> tuple[float, float]:
    """Scale of what was shared to what the examples add up to, and the share of a layer's that they miss at that scale, at most.

    Of each layer by itself: a layer of which much is shared must not hide what another one misses.
    """
    there, again = [], []
    for layer, inputs, columns in zip(update.layers, examples.inputs, examples.output_grads, strict=True):
        sums = {"weight_grad": columns @ inputs, "bias_grad": columns.sum(axis=1)}
        held = _without(layer, decay)
        there.append(np.concatenate([values.ravel() for values in held.values()]))
        again.append(np.concatenate([sums[name].ravel() for name in held]))
    shared, played = np.concatenate(there), np.concatenate(again)
    size, norms = float(played @ played), [float(np.linalg.norm(values)) for values in there]
    if not size > 0 or not min(norms) > 0 or not math.isfinite(size):
        return 1.0, math.inf
    scale = float(played @ shared) / size
    missed = (float(np.linalg.norm(one - scale * two)) for one, two in zip(there, again, strict=True))
    return scale, max(miss / norm for miss, norm in zip(missed, norms, strict=True))


def _without(layer: spear_np.LayerGradients, decay: spear_np.WeightDecay) -> dict[str, Floats]:
    """The gradients of a layer that are shared, in float64, without weight decay."""
    found = {}
    for name, values, multiple in zip(
        GRADIENTS, (layer.weight, layer.bias), (decay.weight, decay.bias), strict=True
    ):
        gradient = getattr(layer, name)
        if gradient is not None:
            found[name] = np.asarray(gradient[...], dtype=np.float64)
            if multiple and values is not None:
                found[name] = found[name] - multiple * np.asarray(values[...], dtype=np.float64)
    return found
