"""The inputs and ∂L/∂Z from scaled directions, and one pass over the data to hold them against it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .backend import scatter_columns
from .disaggregate import Disaggregation
from .factorize import ZERO_SIGMAS, Factors

Array = Any


@dataclass(frozen=True)
class Reconstruction:
    """Recovered batch and what one pass over weight_grad and weight measured; shapes m, n, k inputs."""

    directions: Array
    """(k, b) scaled directions in U-coordinates."""
    dual: Array
    """(k, b): coordinates of the inputs in V."""
    output_grad: Array
    """(m, k): ∂L/∂Z, exactly zero where gradient (and layer) say off."""
    deviation: Array
    """(m, k): standard deviation of the entries of ∂L/∂Z before zeros were set."""
    recovery: Array
    """(k, m): inputs = recovery · weight_grad."""
    input_max: Array
    """(k,): largest absolute entry of each input."""
    input_norm: Array
    """(k,): Euclidean norm of each input."""
    data_range: float
    """Largest minus smallest entry of all inputs."""
    preactivation: Array | None
    """(m, k): W X + b; None without W."""
    residual: Array
    """(m,): norm of each row of weight_grad - ∂L/∂Z Xᵀ, divided by what its noise makes of √n entries."""


def reconstruct(factors: Factors, choice: Disaggregation) -> Reconstruction:
    """Recover the batch from a complete choice of directions.

    ∂L/∂Z is set to zero where the gradient is at its noise and, if W is known, the layer is off too; the inputs are
    then the least-squares solution of weight_grad = ∂L/∂Z Xᵀ with rows weighted by their noise.
    """
    xp = factors.xp
    columns = factors.columns(choice.q)
    deviation = factors.noise[:, None] * factors.noise_norm(choice.q)[None, :]
    output_grad = columns
    if factors.layer is not None and factors.signs_known:
        z = factors.layer @ choice.dual.T + factors.bias[:, None]
        output_grad = xp.where((xp.abs(columns) <= ZERO_SIGMAS * deviation) & (z < 0), 0.0, columns)
    weights = 1 / xp.take(factors.noise, factors.live)
    rows = xp.take(output_grad, factors.live, axis=0) * weights[:, None]
    Q, R = xp.linalg.qr(rows)
    inverse = xp.linalg.solve(R, Q.T) * weights[None, :]
    recovery = scatter_columns(inverse, factors.live, factors.noise.shape[0])
    return measure(factors, choice.q, choice.dual, output_grad, deviation, recovery)


def measure(
    factors: Factors, directions: Array, dual: Array, output_grad: Array, deviation: Array, recovery: Array
) -> Reconstruction:
    """Read weight_grad and weight once more: range of the inputs, pre-activations, residuals."""
    xp, gradients = factors.xp, factors.gradients
    m, n = gradients.shape
    k = recovery.shape[0]
    names = ("weight_grad",) if gradients.weight is None else ("weight_grad", "weight")
    zeros = factors.device.zeros
    largest, squares, rest = zeros(k), zeros(k), zeros(m)
    z = None if gradients.weight is None else zeros((m, k)) + factors.bias[:, None]
    low, high = float("inf"), float("-inf")
    for _, blocks in gradients.blocks(*names, device=factors.device):
        x = recovery @ blocks[0]
        largest = xp.maximum(largest, xp.max(xp.abs(x), axis=1))
        squares = squares + xp.sum(x**2, axis=1)
        rest = rest + xp.sum((blocks[0] - output_grad @ x) ** 2, axis=1)
        low, high = min(low, float(xp.min(x))), max(high, float(xp.max(x)))
        if z is not None:
            z = z + blocks[1] @ x.T
    return Reconstruction(
        directions=directions,
        dual=dual,
        output_grad=output_grad,
        deviation=deviation,
        recovery=recovery,
        input_max=largest,
        input_norm=xp.sqrt(squares),
        data_range=high - low,
        preactivation=z,
        residual=xp.sqrt(rest / n) / factors.noise,
    )
