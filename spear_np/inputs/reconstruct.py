"""The inputs and ∂L/∂Z from scaled directions, and one pass over the data to hold them against it."""

from __future__ import annotations

from dataclasses import dataclass

from ..arrays import Array
from ..backend.algebra import inverse_or_pseudoinverse, scatter_columns, solve_or_nan
from ..backend.work import blocks, narrowing, one_by_one
from ..directions.disaggregate import Disaggregation
from ..directions.support import restricted, zero_support
from ..factors.factorize import Factors
from ..factors.row_space import RowSpace


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """Recovered batch and what one pass over weight_grad and weight measured; shapes m, n, k inputs."""

    directions: Array
    """(k, b) scaled directions in U-coordinates."""
    input_coords: Array
    """(k, b): coordinates of the inputs in V."""
    output_grad: Array
    """(m, k): ∂L/∂Z, exactly zero where gradient (and layer) say off."""
    deviation: Array
    """(m, k): standard deviation of the entries of ∂L/∂Z before zeros were set."""
    recovery: Array
    """(k, m): inputs = recovery · weight_grad."""
    input_max: Array
    """(k,): largest absolute entry of each input."""
    input_low: Array
    """(k,): smallest entry of each input."""
    input_high: Array
    """(k,): largest entry of each input."""
    input_norm: Array
    """(k,): Euclidean norm of each input."""
    data_range: float
    """Largest minus smallest entry of all inputs."""
    preactivation: Array | None
    """(m, k): W X + b; None without W."""
    largest_residual: Array
    """(m,): largest magnitude in each row of weight_grad - ∂L/∂Z Xᵀ."""
    residual: Array
    """(m,): norm of each row of weight_grad - ∂L/∂Z Xᵀ, divided by what its noise makes of √n entries."""


def reconstruct(factors: Factors, choice: Disaggregation) -> Reconstruction:
    """Recover the batch from a complete choice of directions.

    ∂L/∂Z is set to zero where the gradient is at its noise and the layer, if W is known, is off too; the inputs are
    then the least-squares solution of weight_grad = ∂L/∂Z Xᵀ with rows weighted by their noise. Where noise is more
    than rounding, ∂L/∂Z on its support and the inputs are fitted in turn: the maximum-likelihood answer under Gaussian
    noise, with the support estimated anew each time.
    """
    space, xp = factors.space, factors.space.xp
    off = zero_support(factors, choice.q, choice.input_coords)
    output_grad = xp.where(off, 0.0, space.columns(choice.q))
    if space.noisy:
        fitted = _least_squares_gradients(space, factors.bias_grad, choice.input_coords, ~off)
        if bool(xp.all(xp.isfinite(fitted))):  # else inputs depend on each other
            output_grad = fitted
    recovery = least_squares_inputs(space, output_grad)
    return measure(factors, choice.q, choice.input_coords, output_grad, recovery)


def least_squares_inputs(space: RowSpace, output_grad: Array) -> Array:
    """(k, m): inputs = recovery · weight_grad minimise ‖weight_grad - ∂L/∂Z Xᵀ‖, rows weighted by their noise."""
    xp = space.xp
    weights = 1 / space.live_of(space.noise)
    Q, R = xp.linalg.qr(space.live_of(output_grad) * weights[:, None])
    inverse = (inverse_or_pseudoinverse(xp, R) @ Q.T) * weights[None, :]
    return scatter_columns(inverse, space.live, space.shape[0])


def _least_squares_gradients(space: RowSpace, bias_grad: Array | None, dual: Array, support: Array) -> Array:
    """∂L/∂Z (m, k), zero outside `support` (m, k), that minimises ‖weight_grad - ∂L/∂Z Xᵀ‖² + ‖bias_grad - ∂L/∂Z 1‖².

    `dual` (k, b) holds the coordinates of the inputs in V. The noise of a row is the same in all its entries, so each
    row is a least-squares problem of its own; NaN where it has no single solution.
    """
    xp = space.xp
    rows, inputs = space.coordinates, dual
    if bias_grad is not None:
        rows = xp.concat([rows, bias_grad[:, None]], axis=1)
        inputs = xp.concat([inputs, xp.ones_like(inputs[:, :1])], axis=1)
    gram, right = inputs @ inputs.T, rows @ inputs.T
    k = dual.shape[0]

    def fitted(part: slice) -> Array:
        used = xp.astype(support[part, :], xp.float64)
        system = restricted(space.device, gram, used)
        target = used * right[part, :]
        return solve_or_nan(xp, system, target[:, :, None])[:, :, 0]

    parts = blocks(space.device, rows.shape[0], k * k)
    return xp.concat(one_by_one(space.device, fitted, parts), axis=0)


def measure(
    factors: Factors, directions: Array, dual: Array, output_grad: Array, recovery: Array
) -> Reconstruction:
    """Read weight_grad and weight once more: range of the inputs, pre-activations, residuals."""
    space = factors.space
    return narrowing(
        space.device, space.shape[0], lambda: _measured(factors, directions, dual, output_grad, recovery)
    )


def _measured(
    factors: Factors, directions: Array, dual: Array, output_grad: Array, recovery: Array
) -> Reconstruction:
    """`measure`, with blocks of one size."""
    space, gradients, xp = factors.space, factors.gradients, factors.space.xp
    m, n = gradients.shape
    k = recovery.shape[0]
    names = ("weight_grad",) if factors.layer is None else ("weight_grad", "weight")
    zeros = space.device.zeros
    squares, rest, largest = zeros(k), zeros(m), zeros(m)
    z = None if factors.layer is None else zeros((m, k)) + factors.layer.bias[:, None]
    low, high = zeros(k) + float("inf"), zeros(k) - float("inf")
    for _, read in gradients.blocks(*names, device=space.device):
        x = recovery @ read[0]
        squares = squares + xp.sum(x**2, axis=1)
        left = read[0] - output_grad @ x
        rest, largest = rest + xp.sum(left**2, axis=1), xp.maximum(largest, xp.max(xp.abs(left), axis=1))
        low, high = xp.minimum(low, xp.min(x, axis=1)), xp.maximum(high, xp.max(x, axis=1))
        if z is not None:
            z = z + read[1] @ x.T
    return Reconstruction(
        directions=directions,
        input_coords=dual,
        output_grad=output_grad,
        deviation=space.deviation(directions),
        recovery=recovery,
        input_max=xp.maximum(high, -low),
        input_low=low,
        input_high=high,
        input_norm=xp.sqrt(squares),
        data_range=float(xp.max(high)) - float(xp.min(low)),
        preactivation=z,
        largest_residual=largest,
        residual=xp.sqrt(rest / n) / space.noise,
    )
