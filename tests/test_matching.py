"""Pairs of recovered and true inputs: those of the assignment problem, without its table where nothing is contested."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from spear_io import Display, open_inversion
from spear_io.files.storage import LoadedRows
from spear_io.problems import FileError, Place
from spear_io.show import evaluate, matching
from spear_io.show.beside import beside
from spear_io.show.matching import Pair, matched, squared_distances
from tests.pages import answer, pictures, write_inversion


def loaded(values: Any) -> LoadedRows:
    return LoadedRows(np.asarray(values, dtype=np.float64), Place(Path("rows.npy")))


def cost(rows: Any, truth: Any, pairs: list[Pair]) -> float:
    return float(sum(np.sum((pair.scale * rows[pair.row] - truth[pair.truth]) ** 2) for pair in pairs))


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few distances at a time."""
    monkeypatch.setattr(matching, "TABLE_ENTRIES", 20)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("noise", [1e-6, 0.5, 3.0])  # nothing contested; some; nearly everything
@pytest.mark.parametrize(("k", "d"), [(9, 9), (5, 9), (9, 5), (1, 1)])
def test_pairs_are_those_of_the_assignment_problem(noise: float, k: int, d: int) -> None:
    rng = np.random.default_rng(k + d)
    truth = 100 + rng.normal(size=(d, 30))
    rows = truth[rng.integers(0, d, k) if k > d else rng.permutation(d)[:k]] + noise * rng.normal(
        size=(k, 30)
    )
    pairs = matched(loaded(rows), loaded(truth), range(d), scale_known=True)
    table = np.sum((rows[:, None, :] - truth[None, :, :]) ** 2, axis=2)
    best = table[linear_sum_assignment(table)].sum()
    assert len(pairs) == len({pair.truth for pair in pairs}) == min(k, d)
    assert cost(rows, truth, pairs) == pytest.approx(best, rel=1e-6)
    np.testing.assert_allclose(
        squared_distances(loaded(rows), loaded(truth), scale_known=True), table.min(axis=1), atol=1e-8
    )


@pytest.mark.usefixtures("small_blocks")
def test_without_a_scale_the_best_multiple_counts() -> None:
    rng = np.random.default_rng(3)
    truth = rng.normal(size=(8, 30))
    factors = rng.uniform(1, 5, 8) * rng.choice([-1, 1], 8)
    order = rng.permutation(8)
    rows = truth[order] / factors[:, None]
    pairs = matched(loaded(rows), loaded(truth), range(8), scale_known=False)
    assert [pair.truth for pair in pairs] == order.tolist()
    np.testing.assert_allclose([pair.scale for pair in pairs], factors)


def test_only_some_rows_of_the_truth_take_part() -> None:
    truth = np.arange(12.0).reshape(6, 2)
    pairs = matched(loaded(truth[[4, 0]]), loaded(truth), [0, 2, 4], scale_known=True)
    assert [(pair.row, pair.truth) for pair in pairs] == [(0, 4), (1, 0)]


def test_thousands_need_no_table_unless_two_are_nearest_to_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matching, "LARGEST_TABLE", 100)
    rows = np.random.default_rng(0).normal(size=(50, 8))
    pairs = matched(loaded(rows), loaded(rows[::-1]), range(50), scale_known=True)
    assert [pair.truth for pair in pairs] == list(range(49, -1, -1))
    with pytest.raises(FileError, match="50 recovered and 50 true inputs are too many to match"):
        matched(loaded(rows[[0] * 50]), loaded(rows), range(50), scale_known=True)


def test_a_page_does_not_wait_for_what_it_does_not_show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def taken(*_: Any) -> None:
        pytest.fail("the structural similarity was taken")

    monkeypatch.setattr(evaluate, "structural_similarity", taken)
    truth = pictures(4)
    np.save(tmp_path / "truth.npy", truth)
    path = write_inversion(tmp_path / "out.h5", [("a", "fc", answer(truth))], display=Display((1, 8, 8)))
    with open_inversion(path) as inversion, beside(tmp_path / "truth.npy", inversion) as other:
        comparison = other.compare(inversion.layers[0])
    assert comparison is not None
    assert comparison.evaluation.exact == 4
