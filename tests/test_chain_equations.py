"""The equations of one input: met by the truth at the size of the noise, missed by all else, with the right derivatives."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spear_np.backend.host import to_host
from spear_np.chain.equations import backward_map as map_back
from spear_np.chain.equations import (
    backward_side,
    columns_of,
    forward,
    membership,
    null_vectors,
    outside_columns,
    system,
    top_of,
)
from spear_np.chain.layers import Chain
from tests.backends import Backend
from tests.chains import NetworkData, chain_on, digit_network, true_coordinates, true_top, with_noise
from tests.networks import Floats

SMOOTH = ("gelu", "tanh", "elu", "softplus", "mish")
STRAIGHT = ("relu", "leaky_relu", "hardtanh")


@cache
def case(activation: str, dtype: Any = np.float64, noise: float = 0.0) -> tuple[NetworkData, Chain]:
    data = digit_network(6, activation=activation, gain=3.0, dtype=dtype)
    if noise:
        data = with_noise(data, noise, np.random.default_rng(5))
    return data, chain_on(data)


def truth(data: NetworkData, chain: Chain) -> tuple[Floats, Floats]:
    """(b, b) coordinates and (b, t) numbers at the top of the true inputs."""
    return true_coordinates(chain, data), true_top(chain, data, top_of(chain)[0])


def differences(function: Any, at: Floats, step: float) -> Floats:
    """(k, e, u): central differences of ``function(x)`` (k, e) by the columns of x (k, u)."""
    columns = []
    for unknown in range(at.shape[1]):
        move = np.zeros_like(at)
        move[:, unknown] = step
        columns.append((function(at + move) - function(at - move)) / (2 * step))
    return np.stack(columns, axis=2)


def assert_derivative(found: Floats, wanted: Floats, tolerance: float) -> None:
    assert np.max(np.abs(found - wanted)) < tolerance * np.max(np.abs(wanted))


class TestMembership:
    @pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["float64", "float32"])
    @pytest.mark.parametrize("activation", [*SMOOTH, *STRAIGHT])
    def test_the_truth_meets_it_within_rounding_and_a_mixture_does_not(
        self, activation: str, dtype: Any
    ) -> None:
        data, chain = case(activation, dtype)
        C = true_coordinates(chain, data)
        mixed = (C + np.roll(C, 1, axis=0)) / 2
        for number in range(1, chain.depth + 1):
            own = membership(chain, forward(chain, C, number - 1), number).residual
            other = membership(chain, forward(chain, mixed, number - 1), number).residual
            assert np.max(np.sqrt(np.mean(own**2, axis=1))) < 1
            assert np.min(np.sqrt(np.mean(other**2, axis=1))) > 1e3

    @pytest.mark.parametrize("level", [1e-4, 1e-3])
    @pytest.mark.parametrize("activation", ["gelu", "relu"])
    def test_with_noise_it_is_of_size_one(self, activation: str, level: float) -> None:
        data, chain = case(activation, noise=level)
        C = true_coordinates(chain, data)  # of the noisy basis: as far off as noise takes them
        residual = membership(chain, forward(chain, C, 0), 1).residual
        assert 0.2 < np.sqrt(np.mean(residual**2)) < 2

    @settings(max_examples=20)
    @given(st.sampled_from(SMOOTH), st.integers(0, 5), st.integers(1, 2))
    def test_derivatives_are_those_of_differences(self, activation: str, row: int, number: int) -> None:
        data, chain = case(activation)
        c = true_coordinates(chain, data)[row : row + 1]

        def residual(at: Floats) -> Floats:
            passed = forward(chain, at, number - 1, derivatives=False)
            return to_host(membership(chain, passed, number, derivatives=False).residual)

        found = membership(chain, forward(chain, c, number - 1), number)
        assert found.residual == pytest.approx(residual(c), abs=1e-9)
        assert_derivative(to_host(found.jacobian), differences(residual, c, 1e-5), 1e-5)


class TestBackwardSide:
    @pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["float64", "float32"])
    @pytest.mark.parametrize("activation", [*SMOOTH, *STRAIGHT])
    @pytest.mark.parametrize("count", [2, 3])
    def test_the_truth_meets_it_with_or_without_an_output_layer(
        self, activation: str, count: int, dtype: Any
    ) -> None:
        data, _ = case(activation, dtype)
        chain = chain_on(data, count=count)
        c, q = truth(data, chain)
        passed = forward(chain, c, count - 2)
        own = backward_side(chain, c, q, passed).residual
        assert np.max(np.sqrt(np.mean(own**2, axis=1))) < 2
        wrong = backward_side(chain, c, np.roll(q, 1, axis=0), passed).residual
        assert np.min(np.sqrt(np.mean(wrong**2, axis=1))) > 1e2

    def test_columns_are_passed_back_as_in_training(self) -> None:
        data, chain = case("gelu")
        c, q = truth(data, chain)
        columns = columns_of(chain, forward(chain, c, 1), q)
        for found, wanted in zip(columns, data.output_grads, strict=True):
            assert found == pytest.approx(wanted, abs=1e-10)

    @settings(max_examples=20)
    @given(st.sampled_from([*SMOOTH, *STRAIGHT]), st.integers(0, 5), st.sampled_from([2, 3]))
    def test_derivatives_are_those_of_differences(self, activation: str, row: int, count: int) -> None:
        data, _ = case(activation)
        chain = chain_on(data, count=count)
        c, q = (part[row : row + 1] for part in truth(data, chain))
        b, size = c.shape[1], np.max(np.abs(q))

        def residual(at: Floats) -> Floats:
            passed = forward(chain, at[:, :b], count - 2, derivatives=False)
            return to_host(backward_side(chain, at[:, :b], size * at[:, b:], passed).residual)

        found = backward_side(chain, c, q, forward(chain, c, count - 2)).jacobian
        wanted = differences(residual, np.concatenate([c, q / size], axis=1), 1e-6)
        assert_derivative(found[:, :, b:] * size, wanted[:, :, b:], 1e-4)
        assert np.max(np.abs(found[:, :, :b] - wanted[:, :, :b])) < 1e-4 * np.max(np.abs(wanted))

    @pytest.mark.parametrize("activation", ["gelu", "relu"])
    def test_one_column_fits_and_no_other(self, activation: str) -> None:
        data, chain = case(activation)
        c, wanted = truth(data, chain)
        q, best, second = null_vectors(chain, map_back(chain, forward(chain, c, 1)))
        cosine = np.sum(q * wanted, axis=1) / np.linalg.norm(q, axis=1) / np.linalg.norm(wanted, axis=1)
        assert np.abs(cosine) == pytest.approx(1, abs=1e-9)
        assert np.all(best < 1e-9)
        assert np.all(second > 1e-2)

    def test_what_a_narrow_layer_does_not_pass_back_is_no_second_column(self) -> None:
        data = digit_network(6, gain=2.0, widths=(60, 12, 60))
        chain = chain_on(data)
        c = true_coordinates(chain, data)
        on = np.sum(data.pre_activations[1] > 0, axis=1)
        assert np.min(on) < top_of(chain)[0].shape[1]
        through = map_back(chain, forward(chain, c, 2))
        q, best, second = null_vectors(chain, through)
        assert np.all(best < 1e-9)
        assert np.all(second > 1e-2)
        d, wanted = (through @ q[:, :, None])[:, :, 0], data.output_grads[0]
        cosine = np.sum(d * wanted, axis=1) / np.linalg.norm(d, axis=1) / np.linalg.norm(wanted, axis=1)
        assert np.abs(cosine) == pytest.approx(1, abs=1e-9)

    def test_what_is_outside_is_orthogonal_to_the_gradient(self) -> None:
        _, chain = case("relu")
        columns = np.random.default_rng(0).standard_normal((2, 60, 4))
        outside = outside_columns(chain, columns)
        assert chain.first_columns.T @ outside == pytest.approx(0, abs=1e-12)
        assert outside_columns(chain, outside) == pytest.approx(outside, abs=1e-12)


class TestSystem:
    def test_it_holds_all_equations_once(self) -> None:
        data, chain = case("gelu")
        c, q = truth(data, chain)
        one = system(chain, c, q, chain.depth)
        k, e, u = one.jacobian.shape
        assert (k, e) == one.residual.shape
        widths = [chain.layers[number].basis.shape[0] + 1 for number in range(1, chain.depth + 1)]
        assert (e, u) == (1 + sum(widths) + 61, c.shape[1] + q.shape[1])

    def test_every_library_gives_the_same(self, backend: Backend) -> None:
        data, wanted_chain = case("gelu")
        chain = chain_on(data, backend)
        # Coordinates depend on the signs of singular vectors: those of each library are taken.
        for one in (wanted_chain, chain):
            c, q = truth(data, one)
            place = backend.array if one is chain else np.asarray
            found = system(one, place(c), place(q), one.depth)
            residual = to_host(found.residual)
            assert np.sqrt(np.mean(residual**2)) < 1
            assert to_host(found.jacobian).shape == (6, residual.shape[1], c.shape[1] + q.shape[1])


def test_variances_hold_the_errors_of_a_pass_in_single_precision() -> None:
    data, chain = case("gelu", np.float32)
    passed = forward(chain, true_coordinates(chain, data), 1, derivatives=False)
    for number in range(2):
        off = np.abs(passed.a[number] - data.inputs[number + 1]) / np.sqrt(passed.variance[number])
        assert np.max(off) < 6
        assert np.sqrt(np.mean(off**2)) > 1e-3
