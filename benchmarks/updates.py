"""What clients share instead of the plain gradient: rounded, noised, compressed, clipped, or after several steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.problems import (
    TRAINING_BATCH,
    Array,
    Problem,
    loss_of,
    make_problem,
    mlp,
    sample_images,
    shared_gradient,
    train,
)

GRADIENTS = ("weight_grad", "bias_grad")
HELD_OUT = 2000
"""Images on which the accuracy of a trained network is measured."""
MAX_TRAINED_ON = 50_000
"""Images beyond which training goes through them once more."""


def rounded(problem: Problem, dtype: torch.dtype) -> Problem:
    """Return the gradients rounded to `dtype` and stored as float32."""
    return _changed(problem, lambda values: torch.as_tensor(values).to(dtype).float().numpy())


def noised(problem: Problem, level: float, seed: int) -> Problem:
    """Add independent Gaussian noise of `level` times the root mean square of weight_grad to all entries."""
    rng = np.random.default_rng([seed, 1])
    size = level * np.sqrt(np.mean(problem.weight_grad.astype(np.float64) ** 2))
    return _changed(problem, lambda values: values + size * rng.standard_normal(values.shape))


def sparsified(problem: Problem, share: float) -> Problem:
    """Keep the largest `share` of the entries of each gradient, set the others to zero."""

    def keep(values: Array) -> Array:
        return np.asarray(np.where(np.abs(values) >= np.quantile(np.abs(values), 1 - share), values, 0))

    return _changed(problem, keep)


def quantised(problem: Problem, bits: int) -> Problem:
    """Round each gradient to evenly spaced levels between its largest entries of either sign; one bit: signs."""

    def quantise(values: Array) -> Array:
        if bits == 1:
            return np.asarray(np.sign(values) * np.mean(np.abs(values)))
        step = np.max(np.abs(values)) / (2 ** (bits - 1) - 1)
        return np.asarray(np.rint(values / step) * step)

    return _changed(problem, quantise)


def _changed(problem: Problem, change: Any) -> Problem:
    changes: dict[str, Any] = {name: change(getattr(problem, name)).astype(np.float32) for name in GRADIENTS}
    return replace(problem, **changes)


def dp_sgd(m: int, b: int, seed: int, *, clip: float, noise: float, depth: int = 6) -> Problem:
    """Return a batch whose per-example gradients are clipped to norm `clip`, with noise of `noise` · `clip` in the sum.

    Abadi et al. (2016), "Deep Learning with Differential Privacy", Algorithm 1: the norm is that of the whole model.
    """
    problem = make_problem(m, b, seed, depth=depth)
    network = mlp(problem.images.inputs.shape[1], m, depth, seed, problem.images.classes)
    rng = np.random.default_rng([seed, 2])
    total: dict[str, Any] = {}
    for row, label in zip(problem.images.inputs, problem.images.labels, strict=True):
        network.zero_grad()
        loss_of(
            network(torch.as_tensor(row[None], dtype=torch.float32)), np.array([label]), "cross-entropy"
        ).backward()
        norm = float(torch.sqrt(sum((p.grad**2).sum() for p in network.parameters())))
        for name, parameter in zip(GRADIENTS, (network[0].weight, network[0].bias), strict=True):
            clipped = parameter.grad.double().numpy() * min(1.0, clip / norm)
            total[name] = total.get(name, 0) + clipped
    for name, values in total.items():
        total[name] = ((values + noise * clip * rng.standard_normal(values.shape)) / b).astype(np.float32)
    return replace(problem, **total)


def local_epochs(
    m: int, b: int, seed: int, *, epochs: int, learning_rate: float, batches: int = 1, depth: int = 6
) -> Problem:
    """Return minus the change of the weights after some epochs of SGD over b inputs, in mini-batches, over η.

    The weights are those that the client started from, as the server knows them.
    """
    problem = make_problem(m, b, seed, depth=depth)
    images = problem.images
    network = mlp(images.inputs.shape[1], m, depth, seed, images.classes)
    optimizer = torch.optim.SGD(network.parameters(), lr=learning_rate)
    for _ in range(epochs):
        for rows in np.array_split(np.arange(b), batches):
            optimizer.zero_grad()
            logits = network(torch.as_tensor(images.inputs[rows], dtype=torch.float32))
            loss_of(logits, images.labels[rows], "cross-entropy").backward()
            optimizer.step()
    # Weights are float32: their difference has lost what lies below their last digit.
    after = {"weight_grad": network[0].weight, "bias_grad": network[0].bias}
    before = {"weight_grad": problem.weight, "bias_grad": problem.bias}
    deltas: dict[str, Any] = {
        name: (before[name] - after[name].detach().numpy()) / np.float32(learning_rate) for name in GRADIENTS
    }
    return replace(problem, traces=None, **deltas)


def aggregated(m: int, b: int, seed: int, *, clients: int) -> Problem:
    """Return the sum of the gradients of several clients that share a model, as secure aggregation reveals it."""
    problem = make_problem(m, b * clients, seed)
    return replace(problem, weight_grad=problem.weight_grad * clients, bias_grad=problem.bias_grad * clients)


def dropped_out(m: int, b: int, seed: int, *, rate: float, depth: int = 6) -> Problem:
    """Return a batch of a network with dropout of this `rate` behind the first ReLU, whose masks the server cannot know."""
    images, _ = sample_images("fashion-mnist", b, seed)
    network = mlp(images.inputs.shape[1], m, depth, seed, images.classes)
    network.insert(2, nn.Dropout(rate))
    torch.manual_seed(seed + 1)  # the masks have nothing to do with the weights
    return shared_gradient(network, 0, images, "cross-entropy", torch.float32)


def behind(front: Callable[[], nn.Module], m: int, b: int, seed: int, *, depth: int = 6) -> Problem:
    """Return a batch of which the first fully connected layer sees what the module made by `front` does to the images.

    The inputs that are sought are those of the layer: `front` (b, n) -> (b, k) may be a norm or a convolution.
    """
    images, _ = sample_images("fashion-mnist", b, seed)
    torch.manual_seed(seed)
    first = front()
    k = first(torch.zeros(2, images.inputs.shape[1])).shape[1]
    network = nn.Sequential(first, *mlp(k, m, depth, seed, images.classes))
    return shared_gradient(network, 1, images, "cross-entropy", torch.float32)


def norm_before_relu(m: int, b: int, seed: int, *, depth: int = 6) -> Problem:
    """Return a batch of a network with batch normalisation between its first layer and the ReLU."""
    images, _ = sample_images("fashion-mnist", b, seed)
    network = mlp(images.inputs.shape[1], m, depth, seed, images.classes)
    network.insert(1, nn.BatchNorm1d(m))
    return shared_gradient(network, 0, images, "cross-entropy", torch.float32)


def same_class(m: int, b: int, seed: int, *, depth: int = 6) -> Problem:
    """Return a batch of which all inputs have the same label."""
    image, others = sample_images("fashion-mnist", 1, seed, others=MAX_TRAINED_ON)
    alike = np.flatnonzero(others.labels == image.labels[0])[:b]
    images = replace(others, inputs=others.inputs[alike], labels=others.labels[alike])
    network = mlp(images.inputs.shape[1], m, depth, seed, images.classes)
    return shared_gradient(network, 0, images, "cross-entropy", torch.float32)


def trained(m: int, b: int, seed: int, *, steps: int, depth: int = 6) -> tuple[Problem, float]:
    """Return a batch on a network after `steps` steps of SGD, and its accuracy on images it was not trained on."""
    used = min(steps * TRAINING_BATCH, MAX_TRAINED_ON)
    images, others = sample_images("fashion-mnist", b, seed, others=used + HELD_OUT)
    network = mlp(images.inputs.shape[1], m, depth, seed, images.classes)
    train(network, others.part(slice(used)), steps, "cross-entropy")
    fresh = others.part(slice(used, None))
    with torch.no_grad():
        guesses = network(torch.as_tensor(fresh.inputs, dtype=torch.float32)).argmax(dim=1).numpy()
    problem = shared_gradient(network, 0, images, "cross-entropy", torch.float32)
    return problem, float(np.mean(guesses == fresh.labels))
