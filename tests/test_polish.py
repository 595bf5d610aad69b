"""Candidates snap to true directions, mixtures come apart, garbage is dropped."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from spear_np.backend.host import to_host
from spear_np.directions.null_space import null_space
from spear_np.directions.polish import Directions, polish
from spear_np.directions.pool import Pool
from spear_np.factors.factorize import Factors
from tests.backends import Backend, assert_lives_on
from tests.layers import digit_layer, factors_of, layer_with_patterns, true_directions
from tests.networks import Floats, LayerData
from tests.pools import frozen, pool_of
from tests.test_factorize import rounded
from tests.test_partial import fainter
from tests.test_sampling import angles

WIDTH = 120


def polished(factors: Factors, candidates: Floats, pool: Pool | None = None, seed: int = 0) -> Directions:
    if pool is None:
        pool = Pool.empty(factors.space.batch_size, factors.space.U.shape[0])
    on_device = factors.space.device.float64(candidates)
    return polish(factors.space, on_device, frozen(pool), np.random.default_rng(seed))


def blur(directions: Floats, angle: float, seed: int) -> Floats:
    """Turn unit vectors by `angle` radians, each into a direction of its own."""
    unit = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    aside = np.random.default_rng(seed).standard_normal(unit.shape)
    aside -= np.sum(aside * unit, axis=1, keepdims=True) * unit
    turned: Floats = unit + np.tan(angle) * aside / np.linalg.norm(aside, axis=1, keepdims=True)
    return turned


class TestSnapping:
    @pytest.mark.parametrize(("b", "angle"), [(2, 1e-3), (6, 1e-3), (6, 0.0), (12, 1e-6), (12, 1e-4)])
    def test_an_approximate_direction_becomes_exact(self, backend: Backend, b: int, angle: float) -> None:
        data = digit_layer(b, width=WIDTH, seed=80)
        factors = factors_of(data, backend)
        truth = true_directions(factors, data.inputs)
        found = polished(factors, blur(truth, angle, seed=80))
        noise = backend.host(factors.space.angle_noise(factors.space.device.float64(truth)))
        missed = np.count_nonzero(angles(found.q, truth).min(axis=0) >= noise)
        # Among the rows a blurred candidate starts from may be one that is not a zero row.
        assert missed <= (b // 10 if angle > 1e-5 else 0)
        # Whatever else the blurred candidates fell onto has more zero rows than any direction can be given.
        assert np.all(found.zero_mask.sum(axis=1) >= b)

    @pytest.mark.parametrize("precision", ["float64", "float32", "float16"])
    @pytest.mark.parametrize("seed", [81, 82, 83])
    def test_true_directions_stay_at_every_precision(self, precision: str, seed: int) -> None:
        data = rounded(digit_layer(5, width=WIDTH, seed=seed, dtype=np.float64), precision)
        factors = factors_of(data, Backend.NUMPY)
        truth = true_directions(factors, data.inputs)
        found = polished(factors, truth)
        sines = angles(found.q, truth)
        assert np.all(sines.min(axis=0) < factors.space.angle_noise(truth))
        for index, zeros in zip(sines.argmin(axis=1), found.zero_mask, strict=True):
            silent = data.output_grad[to_host(factors.space.live), index] == 0
            assert np.all(zeros[silent])
            # A gradient that is there may drown in the noise of its row, at low precision.
            assert np.count_nonzero(zeros & ~silent) <= 2

    def test_more_rows_average_the_noise(self) -> None:
        data = digit_layer(6, width=400, seed=84)
        factors = factors_of(data, Backend.NUMPY)
        truth = true_directions(factors, data.inputs)
        silent = data.output_grad[to_host(factors.space.live)] == 0
        rng = np.random.default_rng(84)
        few = []
        for column in silent.T:
            rows = factors.space.U[rng.choice(np.flatnonzero(column), 5, replace=False)]
            few.append(np.linalg.svd(rows)[2][-1])
        before = angles(np.asarray(few), truth).diagonal()
        after = angles(polished(factors, np.asarray(few)).q, truth).min(axis=0)
        assert np.median(before) > 3 * np.median(after)

    @pytest.mark.parametrize("seed", [111, 114, 116, 117])
    @pytest.mark.parametrize("share", [1e-5, 1e-4, 1e-3])
    def test_a_faint_input_on_few_units_of_its_own_does_not_stick(
        self, backend: Backend, seed: int, share: float
    ) -> None:
        """Beside gradients 1e5 times larger it drowns on most units: only those that it has for itself forbid it."""
        data = fainter(digit_layer(10, width=150, seed=seed), 1e-5, 2)
        factors = factors_of(data, backend)
        truth = true_directions(factors, data.inputs)
        silent = data.output_grad[backend.host(factors.space.live)] == 0
        back = []
        for strong in range(3):
            mixture = mixed(truth, (strong, 1.0), (9, share))
            assert not np.all(
                backend.host(factors.space.zeros(factors.space.device.float64(mixture)))[0][silent[:, strong]]
            )
            found = polished(factors, mixture)
            near = angles(found.q, truth[[strong]])[:, 0] < 10 * share
            assert np.all(found.zero_mask[near][:, silent[:, strong]])
            back.append(np.any(near))
        assert np.mean(back) > 0.5  # some mixtures come apart into other directions

    def test_what_comes_back_is_described(self, backend: Backend) -> None:
        data = digit_layer(6, width=WIDTH, seed=85)
        factors = factors_of(data, backend)
        found = polished(factors, true_directions(factors, data.inputs))
        np.testing.assert_allclose(np.linalg.norm(found.q, axis=1), 1)
        on_device = factors.space.device.float64(found.q)
        np.testing.assert_array_equal(found.zero_mask, backend.host(factors.space.zeros(on_device)))
        np.testing.assert_array_equal(found.angle, backend.host(factors.space.angle_noise(on_device)))

    def test_the_same_arguments_give_the_same_directions(self, backend: Backend) -> None:
        data = digit_layer(6, width=WIDTH, seed=86)
        factors = factors_of(data, backend)
        candidates = blur(true_directions(factors, data.inputs), 1e-3, seed=86)
        candidates = np.concatenate([candidates, candidates[:3] + candidates[3:]])
        first, second = polished(factors, candidates, seed=1), polished(factors, candidates, seed=1)
        np.testing.assert_array_equal(first.q, second.q)

    def test_a_batch_of_one_has_one_direction(self, backend: Backend) -> None:
        factors = factors_of(digit_layer(1, width=WIDTH, seed=87), backend)
        np.testing.assert_array_equal(np.abs(polished(factors, np.ones((4, 1))).q), [[1.0]])


class TestGarbage:
    @pytest.mark.parametrize("seed", [88, 89])
    def test_directions_without_zero_rows_are_dropped(self, backend: Backend, seed: int) -> None:
        factors = factors_of(digit_layer(8, width=WIDTH, seed=seed), backend)
        candidates = np.random.default_rng(seed).standard_normal((60, 8))
        found = polished(factors, candidates)
        # A random start may fall onto a true direction by luck, but never onto anything else.
        truth = true_directions(factors, digit_layer(8, width=WIDTH, seed=seed).inputs)
        assert np.all(angles(found.q, truth).min(axis=1, initial=0.0) < 1e-5)
        assert len(found.q) < 30

    def test_vectors_that_are_none_are_dropped(self, backend: Backend) -> None:
        data = digit_layer(4, width=WIDTH, seed=90)
        factors = factors_of(data, backend)
        good = true_directions(factors, data.inputs)[:1]
        bad = np.asarray([[0.0] * 4, [np.nan] * 4, [np.inf, 0, 0, 0]])
        found = polished(factors, np.concatenate([bad, good]))
        assert np.all(angles(found.q, good) < 1e-6)
        assert len(found.q) >= 1

    def test_no_candidates_give_no_directions(self, backend: Backend) -> None:
        factors = factors_of(digit_layer(4, width=WIDTH, seed=91), backend)
        found = polished(factors, np.empty((0, 4)))
        assert found.q.shape == (0, 4)
        assert found.zero_mask.shape == (0, factors.space.U.shape[0])

    def test_what_the_pool_knows_is_not_polished_again(self, backend: Backend) -> None:
        data = digit_layer(6, width=WIDTH, seed=92)
        factors = factors_of(data, backend)
        truth = true_directions(factors, data.inputs)
        found = polished(factors, truth, pool_of(factors, truth[:4]))
        assert sorted(angles(found.q, truth).argmin(axis=1)) == [4, 5]


def mixed(truth: Floats, *parts: tuple[int, float]) -> Floats:
    """(1, b): a sum of true directions, each of unit length before it is weighted."""
    unit = truth / np.linalg.norm(truth, axis=1, keepdims=True)
    total: Floats = sum((weight * unit[[index]] for index, weight in parts), np.zeros_like(unit[:1]))
    return total


class TestMixtures:
    @pytest.mark.parametrize("seed", range(93, 97))
    def test_two_inputs_come_apart(self, backend: Backend, seed: int) -> None:
        data = digit_layer(6, width=200, seed=seed)
        factors = factors_of(data, backend)
        truth = true_directions(factors, data.inputs)
        found = polished(factors, mixed(truth, (1, 1.0), (4, -0.6)))
        assert np.all(angles(found.q, truth[[1, 4]]).min(axis=0) < 1e-5)

    @pytest.mark.parametrize("seed", range(93, 97))
    def test_three_inputs_come_apart(self, backend: Backend, seed: int) -> None:
        data = digit_layer(6, width=300, seed=seed)
        factors = factors_of(data, backend)
        truth = true_directions(factors, data.inputs)
        found = polished(factors, mixed(truth, (0, 1.0), (2, 0.7), (5, -0.5)))
        assert np.all(angles(found.q, truth[[0, 2, 5]]).min(axis=0) < 1e-5)

    @staticmethod
    def nested(seed: int) -> LayerData:
        """Input 1 turns on part of the units of input 0, and input 2 part of those of input 1."""
        rng = np.random.default_rng(seed)
        active = rng.random((120, 5)) < 0.5
        active[:, 0] |= rng.random(120) < 0.5
        active[:, 1] = active[:, 0] & (rng.random(120) < 0.7)
        active[:, 2] = active[:, 1] & (rng.random(120) < 0.6)
        return layer_with_patterns(active, rng)

    @pytest.mark.parametrize("seed", range(100, 104))
    def test_of_two_nested_inputs_the_inner_one_is_found(self, backend: Backend, seed: int) -> None:
        data = self.nested(seed)
        factors = factors_of(data, backend, weight=None, bias=None)
        truth = true_directions(factors, data.inputs)
        # The zero rows of input 1 are zero in input 2 as well: they cannot tell its direction from a sum.
        found = polished(factors, mixed(truth, (1, 0.4), (2, 1.0)))
        assert np.all(angles(found.q, truth[[2]]).min(axis=0) < 1e-5)

    @pytest.mark.parametrize("seed", range(100, 104))
    def test_of_three_nested_inputs_the_innermost_is_found(self, backend: Backend, seed: int) -> None:
        data = self.nested(seed)
        factors = factors_of(data, backend, weight=None, bias=None)
        truth = true_directions(factors, data.inputs)
        found = polished(factors, mixed(truth, (0, 0.4), (1, 1.0), (2, 0.8)))
        assert np.all(angles(found.q, truth[[2]]).min(axis=0) < 1e-5)


class TestNullSpace:
    def test_it_has_as_many_directions_as_the_rows_leave_open(self, backend: Backend) -> None:
        data = digit_layer(6, width=200, seed=105)
        factors = factors_of(data, backend)
        silent = data.output_grad[backend.host(factors.space.live)] == 0
        groups: list[Any] = [[0], [0, 1], [0, 1, 2]]
        rows = [np.flatnonzero(silent[:, group].all(axis=1)) for group in groups]
        most = max(len(picked) for picked in rows)
        order = np.asarray([np.pad(picked, (0, most - len(picked))) for picked in rows])
        counts = np.asarray([len(picked) for picked in rows])
        space = null_space(
            factors.space, factors.space.device.integers(order), factors.space.device.integers(counts)
        )
        assert_lives_on(space.basis, backend)
        energy = backend.host(space.energy)
        assert list(np.sum(energy < 36, axis=1)) == [1, 2, 3]
        assert np.all(np.diff(energy, axis=1) >= 0)
        truth = true_directions(factors, data.inputs)
        assert angles(backend.host(space.basis)[0, :1], truth[:1]).item() < 1e-6
