"""Directions fitted to everything that is known to be zero: nearer to the truth than any found a column at a time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from spear_np.arrays import Array
from spear_np.backend.host import to_host
from spear_np.directions.disaggregate import Disaggregation, disaggregate
from spear_np.directions.null_space import null_space
from spear_np.directions.refine import gauss_newton_step, refined
from spear_np.directions.support import zero_support
from spear_np.factors.factorize import Factors, factorize
from spear_np.inputs.reconstruct import reconstruct
from tests.backends import Backend, assert_lives_on
from tests.layers import digit_layer, factors_of, true_directions
from tests.networks import Floats, LayerData
from tests.test_repair import noisy

B = 12


def choice_of(factors: Factors, data: LayerData) -> Disaggregation:
    """For each input the null vector of the units that it truly leaves off: the best there is, a column at a time."""
    off = data.output_grad[to_host(factors.space.live)] == 0
    order = factors.space.device.integers(np.argsort(~off.T, axis=1, stable=True))
    counts = factors.space.device.integers(off.sum(axis=0))
    return disaggregate(factors, null_space(factors.space, order, counts).basis[:, 0, :])


def unexplained(factors: Factors, dual: Array, off: Array) -> float:
    """What the best ∂L/∂Z without gradient where `off` (ℓ, b) leaves of the rows, by plain least squares, row by row."""
    total = 0.0
    rows = np.asarray(factors.space.U * factors.space.S)
    for row, zeros in zip(rows, np.asarray(off), strict=True):
        inputs = np.asarray(dual)[~zeros].T
        total += float(np.sum((row - inputs @ np.linalg.lstsq(inputs, row, rcond=None)[0]) ** 2))
    return total


def errors(factors: Factors, choice: Disaggregation, data: LayerData, backend: Backend) -> Floats:
    """(b,): root mean square error of each recovered input."""
    recovery = backend.host(reconstruct(factors, choice).recovery)
    difference = recovery @ data.weight_grad.astype(np.float64) - data.inputs
    values: Floats = np.sqrt(np.mean(difference**2, axis=1))
    return values


@pytest.mark.parametrize("level", [1e-3, 1e-2, 3e-2])
def test_inputs_come_nearer_to_the_truth(backend: Backend, level: float) -> None:
    before, after = [], []
    for seed in range(800, 806):
        data = noisy(digit_layer(B, width=120, seed=seed), level, seed)
        factors = factors_of(data, backend)
        choice = choice_of(factors, data)
        better = refined(factors, choice)
        assert_lives_on(better.q, backend)
        before.append(errors(factors, choice, data, backend))
        after.append(errors(factors, better, data, backend))
    assert np.mean(np.log(after)) < np.mean(np.log(before)) - 0.02
    assert np.max(after) < 1.1 * np.max(before)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.floats(1e-4, 3e-2), st.integers(3, 14))
def test_no_other_small_step_explains_more(seed: int, level: float, b: int) -> None:
    data = noisy(digit_layer(b, width=100, seed=seed), level, seed)
    factors = factorize(Backend.NUMPY.gradients(data), Backend.NUMPY.device)
    assume(isinstance(factors, Factors))  # much noise hides the rank
    assert isinstance(factors, Factors)
    assume(factors.space.batch_size == b)
    choice = refined(factors, choice_of(factors, data))
    off = zero_support(factors, choice.q, choice.input_coords)[factors.space.live]
    best = unexplained(factors, choice.input_coords, off)
    rng = np.random.default_rng(seed)
    for size in (1e-6, 1e-5, 1e-4, 1e-3):
        mixed = (np.eye(b) + size * rng.standard_normal((b, b))) @ choice.input_coords
        # f is a sum of some hundred squares of noise: its own spread is a thousand times as large.
        assert best <= unexplained(factors, mixed, off) * (1 + 1e-4)


@pytest.mark.parametrize("level", [1e-3, 3e-2])
def test_a_step_ends_where_f_is_flat(level: float) -> None:
    """Central differences of f by plain least squares, along random mixings of the inputs."""
    data = noisy(digit_layer(B, width=120, seed=810), level, 810)
    factors = factors_of(data, Backend.NUMPY)
    choice = choice_of(factors, data)
    off = zero_support(factors, choice.q, choice.input_coords)[factors.space.live]
    Y, rows = (choice.q / factors.space.S).T, factors.space.U * factors.space.S
    slopes, rng = [], np.random.default_rng(810)
    mixings = rng.standard_normal((4, B, B)) * (1 - np.eye(B))
    for _ in range(6):
        duals = np.linalg.inv(Y)
        step = 1e-5
        slopes.append(
            [
                (
                    unexplained(factors, duals + step * m @ duals, off)
                    - unexplained(factors, duals - step * m @ duals, off)
                )
                / (2 * step)
                for m in mixings
            ]
        )
        moved = gauss_newton_step(factors.space, rows, Y, np.asarray(off, dtype=np.float64))
        if moved is None:
            break
        Y = moved
    assert np.max(np.abs(slopes[-1])) < 1e-3 * np.max(np.abs(slopes[0]))


def test_what_only_rounding_disturbs_stays_as_it_is(backend: Backend) -> None:
    data = digit_layer(B, width=120, seed=807)
    factors = factors_of(data, backend)
    choice = disaggregate(factors, factors.space.device.float64(true_directions(factors, data.inputs)))
    assert refined(factors, choice) is choice


def test_without_the_layer_a_choice_stays_as_it_is(backend: Backend) -> None:
    data = noisy(digit_layer(B, width=120, seed=808), 1e-2, 808)
    factors = factors_of(data, backend, weight=None, bias=None)
    choice = disaggregate(factors, factors.space.device.float64(true_directions(factors, data.inputs)))
    assert refined(factors, choice) is choice


def test_a_layer_too_large_for_its_covariances_is_fitted_by_columns(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = noisy(digit_layer(B, width=120, seed=809), 1e-2, 809)
    factors = factors_of(data, backend)
    choice = choice_of(factors, data)
    whole = errors(factors, refined(factors, choice), data, backend)
    monkeypatch.setattr("spear_np.directions.refine.COVARIANCE_NUMBERS", 0)
    by_columns = errors(factors, refined(factors, choice), data, backend)
    assert not np.array_equal(whole, by_columns)
    assert np.max(by_columns) < 1.5 * np.max(whole)
