"""Polish, examination and refinement of candidates: what is let through, what is refused, what is left open."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spear_np.arrays import Array
from spear_np.backend.host import to_host
from spear_np.chain.covariance import input_deviation, noise_along, rests_on_level, slopes_beside, wider
from spear_np.chain.equations import System, forward, membership_change
from spear_np.chain.examine import examine, reexamine
from spear_np.chain.layers import Chain
from spear_np.chain.polish import CONSISTENT, Known, polish
from spear_np.chain.refine import refine
from tests.backends import Backend, assert_lives_on
from tests.chains import NetworkData, chain_on, digit_network, true_coordinates
from tests.networks import Floats

DTYPES = (np.float64, np.float32)
ACTIVATIONS = ("relu", "leaky_relu", "gelu", "tanh", "elu")


@cache
def case(activation: str, dtype: Any = np.float64, **options: Any) -> tuple[NetworkData, Chain]:
    data = digit_network(8, activation=activation, dtype=dtype, **({"gain": 2.0} | options))
    return data, chain_on(data)


def errors(chain: Chain, data: NetworkData, c: Array) -> Floats:
    """(k,): largest entry by which each input at `c` (k, b) differs from the true one next to it."""
    gradients = to_host(chain.layers[0].gradients.weight_grad).astype(np.float64)
    found = to_host(c) @ to_host(chain.layers[0].space.to_basis).T @ gradients
    distance: Floats = np.max(np.abs(found[:, None, :] - data.inputs[0][None, :, :]), axis=2)
    nearest: Floats = np.min(distance, axis=1)
    return nearest


def near(chain: Chain, data: NetworkData, share: float, seed: int = 0) -> Floats:
    """(b, b): the true coordinates, each moved towards a mixture of others by this `share`."""
    C = true_coordinates(chain, data)
    weights = np.random.default_rng(seed).dirichlet(np.ones(len(C)), len(C))
    return np.asarray((1 - share) * C + share * weights @ C)


class TestExamine:
    @pytest.mark.parametrize("dtype", DTYPES, ids=["float64", "float32"])
    @pytest.mark.parametrize("activation", ACTIVATIONS)
    def test_what_is_near_an_input_ends_on_it_within_its_deviation(self, activation: str, dtype: Any) -> None:
        data, chain = case(activation, dtype)
        for row in near(chain, data, 1e-3):
            seen = examine(chain, row[None, :], 1)
            assert seen.accepted[0]
            assert errors(chain, data, seen.c)[0] <= 6 * seen.deviation[0]
            assert seen.deviation[0] < 1e-3

    @pytest.mark.parametrize("activation", ACTIVATIONS)
    @pytest.mark.parametrize("depth", [1, 2])
    def test_several_at_once_are_as_good_as_one_by_one(self, activation: str, depth: int) -> None:
        data, chain = case(activation)
        seen = examine(chain, near(chain, data, 1e-6), depth)
        assert seen.accepted.tolist() == [True] * 8
        assert np.all(errors(chain, data, seen.c) <= 6 * seen.deviation)

    @settings(max_examples=25)
    @given(st.sampled_from(ACTIVATIONS), st.integers(0, 10**6))
    def test_whatever_is_let_through_is_an_input(self, activation: str, seed: int) -> None:
        data, chain = case(activation)
        c = near(chain, data, 0.3, seed)[:1]
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            seen = examine(chain, c, 1)
        if seen.accepted[0] and np.isfinite(seen.deviation[0]):
            assert errors(chain, data, seen.c)[0] <= 6 * seen.deviation[0]

    def test_a_mixture_is_refused(self) -> None:
        data, chain = case("relu")
        C = true_coordinates(chain, data)
        mixed = (C + np.roll(C, 1, axis=0)) / 2
        seen = examine(chain, mixed, 1)
        off = errors(chain, data, seen.c) > 1e-6
        assert np.any(off)
        assert not np.any(seen.accepted & off)

    def test_duals_see_one_input_each(self) -> None:
        data, chain = case("gelu")
        seen = examine(chain, near(chain, data, 1e-6), 1)
        for number, dual in enumerate(seen.duals):
            products = dual @ true_coordinates(chain, data, number).T
            assert products == pytest.approx(np.eye(8), abs=1e-6)
        assert seen.output_grad == pytest.approx(data.output_grads[0], abs=1e-10)

    @pytest.mark.parametrize("dtype", DTYPES, ids=["float64", "float32"])
    @pytest.mark.parametrize("activation", ["relu", "relu6", "leaky_relu"])
    def test_an_input_at_the_kink_of_a_unit_is_let_through(self, activation: str, dtype: Any) -> None:
        data, chain = case(activation, dtype, touching=2)
        first = true_coordinates(chain, data)[:1]
        toward = np.linalg.pinv(chain.layers[0].to_units[:2])
        for side in (1e-4, -1e-4):
            moved = first + (toward @ np.full(2, side))[None, :]
            moved /= moved @ chain.layers[0].ones
            seen = examine(chain, moved, 1)
            assert seen.accepted[0]
            assert errors(chain, data, seen.c)[0] <= 6 * seen.deviation[0]


class TestWhatIsOpen:
    @staticmethod
    def case() -> tuple[NetworkData, Chain, int]:
        """An input that turns on fewer units than it has coordinates."""
        data, chain = case("relu", share_on=0.1)
        on = np.sum(data.pre_activations[0] > 0, axis=1)
        row = int(np.argmin(on))
        assert on[row] < 6
        return data, chain, row

    def test_too_few_units_leave_an_input_open(self) -> None:
        data, chain, row = self.case()
        c = true_coordinates(chain, data)[row : row + 1]
        seen = examine(chain, c, 1)
        assert seen.forward_residual[0] < CONSISTENT
        assert seen.deviation[0] == np.inf

    def test_so_do_units_that_only_stand_at_their_kinks(self) -> None:
        data, chain, row = self.case()
        first = chain.layers[0]
        c = true_coordinates(chain, data)[row]
        # Slide along what is open until further units are about to turn on, as a vertex of what fits.
        for _ in range(8):
            z = first.to_units @ c
            held = np.concatenate([first.to_units[z > -1e-12], first.ones[None, :]])
            left = np.linalg.svd(held)[2][np.linalg.matrix_rank(held) :]
            if not len(left):
                break
            speed = first.to_units @ left[0]
            off = (z < -1e-12) & (np.abs(speed) > 1e-9)
            times = np.where(off, -z / np.where(off, speed, 1.0), np.inf)
            c = c + left[0] * times[np.argmin(np.abs(times))]
        assert errors(chain, data, c[None, :])[0] > 1e-2
        seen = examine(chain, c[None, :], 1)
        assert seen.forward_residual[0] < CONSISTENT
        assert seen.deviation[0] == np.inf

    def test_duals_of_other_inputs_close_it(self) -> None:
        data, chain, row = self.case()
        C = true_coordinates(chain, data)
        others = np.delete(chain.layers[0].dual(data.output_grads[0]), row, axis=0)
        moved = C[row] + 1e-4 * np.linalg.svd(chain.layers[0].ones[None, :])[2][1]
        seen = examine(chain, moved[None, :], 1, Known(others, np.zeros(len(others))))
        assert seen.deviation[0] < 1e-6
        assert errors(chain, data, seen.c)[0] <= 6 * seen.deviation[0]

    def test_slopes_stay_where_no_unit_is_near_a_kink(self) -> None:
        data, chain = case("relu")
        passed = forward(chain, true_coordinates(chain, data), 1)
        tiny = np.zeros((8, 8, 8))
        assert slopes_beside(chain, passed, tiny) == []

    def test_slopes_of_units_near_a_kink_are_those_of_either_side(self) -> None:
        data, chain = case("leaky_relu")
        passed = forward(chain, true_coordinates(chain, data), 0)
        wide = np.eye(8)[None, :, :] * np.full((8, 1, 1), 1e4)
        flat, steep = slopes_beside(chain, passed, wide)
        assert flat[0] == pytest.approx(0.01)
        assert steep[0] == pytest.approx(1)

    def test_the_wider_of_two_covariances_and_the_open_one(self) -> None:
        one, two, open_ = (np.eye(3)[None] * size for size in (1.0, 2.0, 0.0))
        assert np.all(wider(one, two, 3) == two)
        assert np.all(wider(two, one, 3) == two)
        assert np.all(wider(one, open_, 3) == open_)
        assert np.all(wider(open_, one, 3) == open_)

    @pytest.mark.parametrize("loud", [1.0, 30.0])
    def test_noise_along_is_that_of_the_equations_that_move_the_input(self, loud: float) -> None:
        """Coordinates that each have equations of their own; those of the first are louder than the others by a factor."""
        _, chain = case("gelu")
        rng = np.random.default_rng(0)
        count = 400
        jacobian = np.repeat(np.eye(8), count, axis=0)
        jacobian[:count] *= 0.5  # the first is the least certain
        residual = rng.standard_normal(8 * count) * np.where(np.arange(8 * count) < count, loud, 1.0)
        left = residual - jacobian @ np.linalg.lstsq(jacobian, residual, rcond=None)[0]
        covariance = np.linalg.inv(jacobian.T @ jacobian)[None]
        equations = System(left[None], jacobian[None], np.zeros(8 * count))
        shares = chain.layers[0].basis ** 2 * np.diag(covariance[0])
        least = shares[np.argmax(np.sum(shares, axis=1))]
        expected = np.sqrt(np.sum(least * np.array([loud**2] + [1.0] * 7)) / np.sum(least))
        assert noise_along(chain, equations, covariance, covariance)[0] == pytest.approx(expected, rel=0.1)

    def test_nothing_tests_what_one_equation_decides(self) -> None:
        _, chain = case("gelu")
        jacobian = np.concatenate([np.repeat(np.eye(8)[1:], 5, axis=0), np.eye(8)[:1]])
        covariance = np.linalg.inv(jacobian.T @ jacobian)[None]
        # What takes nothing out of an equation is a condition of scale, which always stands alone.
        for absorbed, expected in ((1e-9, np.inf), (0.0, 0.0)):
            equations = System(np.zeros((1, 36)), jacobian[None], np.full(36, absorbed))
            assert noise_along(chain, equations, covariance, covariance)[0] == expected

    @pytest.mark.parametrize("followed", [True, False])
    def test_a_level_that_the_input_can_follow_is_not_tested(self, followed: bool) -> None:
        data, chain = case("relu")
        passed = forward(chain, true_coordinates(chain, data)[:1], 0)
        flat = np.arange(chain.layers[0].units)[None, :] == 3
        passed = replace(passed, a=(np.where(flat, 1.0, passed.a[0]),), slope=(np.where(flat, 0.0, 1.0),))
        level = membership_change(chain, passed, 1, flat.astype(float)[:, :, None])
        jacobian = np.random.default_rng(0).standard_normal((1, level.shape[1], 8))
        if followed:
            jacobian[:, :, :1] = level
        inverse = np.linalg.inv(jacobian[0].T @ jacobian[0])[None]
        assert bool(rests_on_level(chain, passed, 1, jacobian, inverse)[0]) is followed

    def test_deviation_is_that_of_the_least_certain_entry(self) -> None:
        data, chain = case("gelu")
        rng = np.random.default_rng(0)
        root = 1e-3 * rng.standard_normal((8, 8))
        covariance = np.broadcast_to(root @ root.T, (2, 8, 8))
        expected = np.max(np.linalg.norm(chain.layers[0].basis @ root, axis=1))
        found = input_deviation(chain, true_coordinates(chain, data)[:2], covariance)
        assert found == pytest.approx(expected, rel=1e-5)
        assert np.all(np.isinf(input_deviation(chain, np.ones((1, 8)), np.zeros((1, 8, 8)))))


class TestRefine:
    @pytest.mark.parametrize("dtype", DTYPES, ids=["float64", "float32"])
    @pytest.mark.parametrize("activation", ["gelu", "tanh", "softplus"])
    def test_all_equations_together_are_no_worse(self, activation: str, dtype: Any) -> None:
        data, chain = case(activation, dtype)
        seen = examine(chain, near(chain, data, 1e-6), 1)
        better = refine(chain, seen.c, seen.q, 1)
        assert np.all(better.converged)
        assert np.all(better.deviation <= 1.01 * seen.deviation)
        assert np.all(errors(chain, data, better.c) <= 6 * better.deviation)

    def test_it_closes_what_nearly_linear_activations_leave_open(self) -> None:
        data, chain = case("sigmoid", np.float32, gain=1.0)
        seen = examine(chain, true_coordinates(chain, data)[:1], 1)
        better = reexamine(chain, seen, 1)
        assert better.refined
        assert better.accepted[0]
        assert better.deviation[0] < seen.deviation[0] / 2


class TestEveryLibrary:
    @pytest.mark.parametrize("activation", ["relu", "gelu", "elu"])
    def test_examine_and_refine(self, backend: Backend, activation: str) -> None:
        data, _ = case(activation)
        chain = chain_on(data, backend)
        c = backend.array(near(chain, data, 1e-6))
        seen = examine(chain, c, 2)
        assert seen.accepted.tolist() == [True] * 8
        one = examine(chain, c[:1, :], 1, Known(seen.duals[0][1:, :], backend.array(np.zeros(7))))
        assert one.accepted[0]
        again = reexamine(chain, one, 1)
        better = refine(chain, seen.c, seen.q, 1)
        for array in (seen.c, seen.q, seen.output_grad, *seen.duals, again.c, better.c, better.residual):
            assert_lives_on(array, backend)
        assert np.max(errors(chain, data, seen.c)) < 1e-9
        assert np.max(errors(chain, data, again.c)) < 1e-9

    def test_polish(self, backend: Backend) -> None:
        data, _ = case("gelu")
        chain = chain_on(data, backend)
        end = polish(chain, backend.array(near(chain, data, 1e-3)), 1)
        c, covariance, residual = end.c, end.covariance, end.residual
        assert np.all(residual < 1)
        assert np.max(errors(chain, data, backend.host(c))) < 1e-9
        host = backend.host(covariance)
        assert host == pytest.approx(np.swapaxes(host, 1, 2), rel=1e-3, abs=1e-6 * np.max(host))

    def test_a_candidate_of_zeros_or_without_bounds_is_refused(self, backend: Backend) -> None:
        data, _ = case("gelu")
        chain = chain_on(data, backend)
        with np.errstate(all="ignore"):
            for candidate in (np.zeros((1, 8)), np.full((1, 8), np.nan), np.full((1, 8), 1e200)):
                seen = examine(chain, backend.array(candidate), 1)
                assert not seen.accepted[0] or errors(chain, data, seen.c)[0] < 1e-6
