"""Mixtures of two known directions are taken apart by the vote of the rows."""

from __future__ import annotations

import numpy as np
import pytest

from spear_np.directions.reduction import reduce_pairs
from spear_np.factors.factorize import Factors
from tests.backends import Backend, assert_lives_on
from tests.layers import digit_layer, factors_of, layer_data_of, true_directions
from tests.networks import Floats
from tests.pools import frozen, pool_of
from tests.test_sampling import angles

B = 6


def unit_truth(factors: Factors, seed: int) -> Floats:
    truth = true_directions(factors, digit_layer(B, width=150, seed=seed).inputs)
    rows: Floats = truth / np.linalg.norm(truth, axis=1, keepdims=True)
    return rows


@pytest.mark.parametrize("weight", [1.0, -0.3, 0.05])
@pytest.mark.parametrize("seed", [110, 111])
def test_a_mixture_gives_the_other_input_away(backend: Backend, weight: float, seed: int) -> None:
    factors = factors_of(digit_layer(B, width=150, seed=seed), backend)
    truth = unit_truth(factors, seed)
    known = truth[[0, 1, 2]].copy()
    known[0] = truth[3] + weight * truth[1]
    pool = frozen(pool_of(factors, known))
    found = reduce_pairs(factors.space, pool, np.arange(len(pool.basis)))
    assert_lives_on(found, backend)
    assert found.shape[0] > 0
    assert angles(backend.host(found), truth[[3]]).min() < 1e-5


def test_only_fresh_directions_are_tried() -> None:
    factors = factors_of(digit_layer(B, width=150, seed=112), Backend.NUMPY)
    truth = unit_truth(factors, 112)
    pool = pool_of(factors, np.concatenate([truth[[3]] + 0.5 * truth[[1]], truth[[1, 2]]]))
    (mixture,) = np.flatnonzero(angles(pool.basis_vectors, truth[[1, 2]]).min(axis=1) > 1e-3)
    others = np.setdiff1d(np.arange(3), [mixture])
    assert reduce_pairs(factors.space, pool, np.asarray([mixture])).shape[0] > 0
    # The ratio is read off the mixture or off its partner alike, but a third direction knows nothing of it.
    unrelated = [i for i in others if angles(pool.basis_vectors[[i]], truth[[2]]).item() < 1e-6]
    assert reduce_pairs(factors.space, pool, np.asarray(unrelated)).shape[0] == 0


@pytest.mark.parametrize("seed", range(113, 117))
def test_true_directions_are_left_alone(backend: Backend, seed: int) -> None:
    factors = factors_of(digit_layer(B, width=150, seed=seed), backend)
    pool = pool_of(factors, unit_truth(factors, seed))
    assert reduce_pairs(factors.space, pool, np.arange(B)).shape == (0, B)


def test_without_a_pair_there_is_nothing_to_reduce(backend: Backend) -> None:
    factors = factors_of(digit_layer(B, width=150, seed=118), backend)
    truth = unit_truth(factors, 118)
    assert reduce_pairs(factors.space, pool_of(factors, truth[:1]), np.arange(1)).shape == (0, B)
    assert reduce_pairs(factors.space, pool_of(factors, truth), np.arange(0)).shape == (0, B)


def test_rows_on_which_nothing_can_vote_are_no_error() -> None:
    # Two inputs that share hardly any unit: no row stands out in both directions.
    for seed in range(30):
        rng = np.random.default_rng(seed)
        data = layer_data_of(rng.random((3, 12)), rng, width=14, outputs=2, active=0.2)
        if np.linalg.matrix_rank(data.output_grad) < 3:
            continue
        factors = factors_of(data, Backend.NUMPY)
        pool = pool_of(factors, true_directions(factors, data.inputs))
        assert np.isfinite(reduce_pairs(factors.space, pool, np.arange(len(pool.basis)))).all()
