"""The yardstick must solve what it is a yardstick for."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'spear-np[torch]'")

from benchmarks import published
from benchmarks.problems import make_problem


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("b", [4, 8])
def test_the_published_algorithm_recovers_the_batch(b: int, seed: int) -> None:
    problem = make_problem(200, b, seed)
    result = published.recover(**problem.arguments, seed=seed, time_limit=60)
    assert result.inputs is not None
    assert problem.error(result.inputs) < 1e-5


def test_an_unsolved_batch_is_no_answer() -> None:
    problem = make_problem(200, 16, seed=1)
    result = published.recover(**problem.arguments, time_limit=0.1)
    assert result.inputs is None


def test_the_error_measure_sees_missing_repeated_and_wrong_inputs() -> None:
    problem = make_problem(50, 3, seed=1)
    truth = problem.images.inputs
    assert problem.error(truth[[2, 0, 1]]) == 0
    assert problem.error(truth[:2]) == np.inf
    assert problem.error(truth[[0, 1, 1]]) == np.inf
    spoiled = truth.copy()
    spoiled[1, 5] += 0.5
    assert problem.error(spoiled) == pytest.approx(0.5 / np.ptp(truth))
