"""Layers made to order from pre-activations and gradients, and batches that hide between inputs that fit as well."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tests.networks import Floats, LayerData


def layer_from(z: Floats, output_grad: Floats, rng: np.random.Generator) -> LayerData:
    """Return a layer whose pre-activations are `z` (m, b) and whose ∂L/∂Z is `output_grad` (m, b), float64.

    Inputs and biases are random, weights fit them.
    """
    m, b = z.shape
    inputs, bias = rng.standard_normal((b, b + 20)), 0.3 * rng.standard_normal(m)
    weight = (z - bias[:, None]) @ np.linalg.pinv(inputs).T
    return LayerData(
        weight_grad=output_grad @ inputs,
        bias_grad=output_grad.sum(axis=1),
        weight=weight,
        bias=bias,
        inputs=inputs,
        output_grad=output_grad,
    )


@dataclass(frozen=True)
class Hidden:
    """A true batch, and another one that reproduces its gradients and has the sign of every gradient."""

    data: LayerData
    """Of the true batch: some of its inputs turn on the same units."""
    others: Floats
    """(b, n): inputs of the other batch. True ones lie between them."""


def hidden_batch(rng: np.random.Generator, together: int, apart: int = 3, *, units: int = 60) -> Hidden:
    """Return a batch of which `together` inputs hide between as many others, beside inputs that are `apart`.

    Each column of the other batch mixes the true ones so that they cancel on `together` - 1 units, which its input leaves
    off and all others, and the true ones, turn on.
    """
    c, b = together, together + apart
    shares = np.eye(b)
    while True:
        shares[:c, :c] = rng.dirichlet(np.ones(c), size=c)
        if abs(np.linalg.det(shares)) > 0.05 and np.max(shares[:c, :c]) < 0.9:
            break
    z = rng.standard_normal((units, b))
    z[:, :c] = np.abs(z[:, :c]) * rng.choice([-1.0, 1.0], (units, 1))
    truly_on = z > 0
    output_grad = rng.standard_normal((units, b))
    for row, (index, _) in enumerate((i, k) for i in range(c) for k in range(c - 1)):
        z[row, :c] = 1 + rng.random(c)
        z[row, index] = -0.1 * rng.random() - 0.01
        truly_on[row, :c] = True
        own = shares[:c, index]
        output_grad[row, :c] -= own * (own @ output_grad[row, :c]) / (own @ own)
    output_grad = np.where(truly_on, output_grad, 0)
    assert np.all((z @ shares.T > 0) == truly_on)
    mixed = output_grad @ shares
    mixed[np.abs(mixed) < 1e-12] = 0
    assert np.all((mixed != 0) == (z > 0))
    other = layer_from(z, mixed, rng)
    inputs = shares @ other.inputs
    data = LayerData(
        weight_grad=output_grad @ inputs,
        bias_grad=output_grad.sum(axis=1),
        weight=other.weight,
        bias=other.bias,
        inputs=inputs,
        output_grad=output_grad,
    )
    return Hidden(data, other.inputs)
