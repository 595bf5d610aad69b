from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spear_np.directions.null_vectors import draw_subsets, null_vectors
from spear_np.directions.pool import Pool
from spear_np.factors.factorize import Factors
from spear_np.search.sampling import Sampling
from tests.backends import Backend, assert_array, assert_lives_on
from tests.layers import digit_layer, factors_of, true_directions
from tests.networks import Floats
from tests.pools import frozen, pool_of


class TestDrawSubsets:
    @given(st.integers(1, 40), st.data())
    def test_a_subset_has_no_index_twice(self, total: int, data: st.DataObject) -> None:
        size = data.draw(st.integers(0, total))
        subsets = draw_subsets(total, size, 25, np.random.default_rng(total))
        assert subsets.shape == (25, size)
        assert np.issubdtype(subsets.dtype, np.integer)
        for subset in subsets:
            assert len(set(subset)) == size
            assert all(0 <= index < total for index in subset)

    def test_every_subset_is_drawn_equally_often(self) -> None:
        subsets = draw_subsets(5, 2, 40_000, np.random.default_rng(61))
        names = np.sort(subsets, axis=1) @ [5, 1]
        _, counts = np.unique(names, return_counts=True)
        assert len(counts) == 10
        # Five standard deviations of a count of 40,000 draws that hits with probability 1/10.
        assert np.all(np.abs(counts - 4000) < 5 * np.sqrt(40_000 * 0.1 * 0.9))


class TestNullVectors:
    @pytest.mark.parametrize("r", [2, 3, 8, 20])
    def test_they_are_unit_vectors_that_every_row_annuls(self, backend: Backend, r: int) -> None:
        stack = np.random.default_rng(65).standard_normal((30, r - 1, r))
        vectors = backend.host(null_vectors(backend.xp, backend.array(stack)))
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-12)
        np.testing.assert_allclose(np.einsum("kij,kj->ki", stack, vectors), 0, atol=1e-9)

    def test_a_singular_matrix_gives_zeros_and_leaves_the_others_alone(self, backend: Backend) -> None:
        stack = np.random.default_rng(66).standard_normal((4, 3, 4))
        good = null_vectors(backend.xp, backend.array(stack[[0, 2, 3]]))
        stack[1, 2] = 0
        vectors = backend.host(null_vectors(backend.xp, backend.array(stack)))
        np.testing.assert_array_equal(vectors[1], 0)
        np.testing.assert_allclose(vectors[[0, 2, 3]], backend.host(good), rtol=1e-12)

    def test_a_batch_of_one_has_one_direction(self, backend: Backend) -> None:
        vectors = null_vectors(backend.xp, backend.array(np.empty((3, 0, 1))))
        assert_array(vectors, np.ones((3, 1)), backend)


def angles(candidates: Floats, directions: Floats) -> Floats:
    """(k, b): sines of the angles between candidates and directions."""
    unit = candidates / np.linalg.norm(candidates, axis=1, keepdims=True)
    other = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    cosine = unit @ other.T
    sines: Floats = np.linalg.norm(unit[:, None, :] - cosine[:, :, None] * other[None, :, :], axis=2)
    return sines


class TestPropose:
    B = 6

    @pytest.fixture
    def factors(self, backend: Backend) -> Factors:
        return factors_of(digit_layer(self.B, width=100, seed=67), backend)

    @pytest.fixture
    def truth(self, factors: Factors) -> Floats:
        return true_directions(factors, digit_layer(self.B, width=100, seed=67).inputs)

    def propose(self, factors: Factors, pool: Pool, seed: int) -> Floats:
        return np.asarray(Sampling().propose(factors.space, pool, np.random.default_rng(seed)).candidates)

    def test_true_directions_are_among_the_candidates(
        self, backend: Backend, factors: Factors, truth: Floats
    ) -> None:
        pool = Pool.empty(self.B, factors.space.U.shape[0])
        found = np.full(self.B, np.inf)
        for seed in range(8):
            proposals = Sampling().propose(factors.space, pool, np.random.default_rng(seed))
            assert_lives_on(proposals.candidates, backend)
            assert proposals.examined > 1000
            found = np.minimum(found, angles(backend.host(proposals.candidates), truth).min(axis=0))
        assert np.all(found < 1e-3)

    def test_candidates_are_distinct(self, backend: Backend, factors: Factors) -> None:
        pool = Pool.empty(self.B, factors.space.U.shape[0])
        q = backend.host(Sampling().propose(factors.space, pool, np.random.default_rng(68)).candidates)
        assert len(q) > 1
        apart = angles(q, q) + np.eye(len(q))
        assert np.min(apart) > 1e-4

    @pytest.mark.parametrize("known", [0, 4])
    def test_the_same_arguments_give_the_same_candidates(
        self, backend: Backend, factors: Factors, truth: Floats, known: int
    ) -> None:
        pool = frozen(pool_of(factors, truth[:known]))
        different = 0
        for seed in range(6):
            first, second, other = (
                Sampling().propose(factors.space, pool, np.random.default_rng(s))
                for s in (seed, seed, seed + 100)
            )
            np.testing.assert_array_equal(backend.host(first.candidates), backend.host(second.candidates))
            assert first.examined == second.examined
            different += not np.array_equal(backend.host(first.candidates), backend.host(other.candidates))
        assert different > 0

    def test_what_is_known_is_not_proposed_again(
        self, backend: Backend, factors: Factors, truth: Floats
    ) -> None:
        pool = pool_of(factors, truth[:4])
        missing = np.full(2, np.inf)
        for seed in range(12):
            q = backend.host(Sampling().propose(factors.space, pool, np.random.default_rng(seed)).candidates)
            if len(q):
                sines = angles(q, truth)
                assert np.all(sines[:, :4] > 1e-6)
                missing = np.minimum(missing, sines[:, 4:].min(axis=0))
        assert np.any(missing < 1e-3)

    def test_one_block_stays_within_its_size(self, factors: Factors) -> None:
        pool = Pool.empty(self.B, factors.space.U.shape[0])
        proposals = Sampling(submatrices=500).propose(factors.space, pool, np.random.default_rng(69))
        assert proposals.examined == 500

    def test_a_batch_of_one_needs_no_search(self, backend: Backend) -> None:
        factors = factors_of(digit_layer(1, width=50, seed=70), backend)
        pool = Pool.empty(1, factors.space.U.shape[0])
        proposals = Sampling().propose(factors.space, pool, np.random.default_rng(0))
        assert_array(proposals.candidates, np.ones((1, 1)), backend)
        assert proposals.examined == 1
