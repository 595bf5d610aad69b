"""Forecasts against exact enumeration, exact sums and simulation."""

from __future__ import annotations

import math
from itertools import chain, combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from spear_np import theory


def share_of_subsets_that_hit(m: int, b: int, zeros: int) -> float:
    """Count the subsets of b-1 of m rows that lie among the first `zeros` rows."""
    subsets = list(combinations(range(m), b - 1))
    return sum(max(rows, default=-1) < zeros for rows in subsets) / len(subsets)


def mean_of_last_arrival(rates: list[float]) -> float:
    """Expected maximum of independent exponential times, by inclusion and exclusion."""
    groups = chain.from_iterable(combinations(rates, size) for size in range(1, len(rates) + 1))
    return float(sum((-1) ** (len(group) + 1) / sum(group) for group in groups))


def chance_to_miss_a_column(m: int, b: int, threshold: float, draws: float) -> float:
    """Probability that one of b columns, each row zero with probability a half, is filtered out or never hit."""
    zeros = np.arange(m + 1)
    hit = np.asarray([theory.hit_probability(m, b, z / m) for z in zeros])
    lost = np.where(zeros < threshold * m, 1.0, np.exp(-hit * draws))
    one = float(np.sum(binom.pmf(zeros, m, 0.5) * lost))
    return 1 - (1 - one) ** b


class TestHitProbability:
    @pytest.mark.parametrize("m", [3, 6, 9])
    @pytest.mark.parametrize("b", [1, 2, 3, 4])
    def test_it_is_the_share_of_all_subsets(self, m: int, b: int) -> None:
        if b - 1 > m:
            pytest.skip("fewer rows than a subset has")
        for zeros in range(m + 1):
            assert theory.hit_probability(m, b, zeros / m) == pytest.approx(
                share_of_subsets_that_hit(m, b, zeros), abs=1e-12
            )

    @given(st.integers(1, 400), st.integers(1, 60), st.floats(0, 1))
    def test_it_is_a_probability(self, m: int, b: int, share: float) -> None:
        assert 0 <= theory.hit_probability(m, b, share) <= 1 + 1e-9

    @given(st.integers(2, 300), st.integers(2, 40), st.data())
    def test_more_zeros_help_and_a_larger_batch_hurts(self, m: int, b: int, data: st.DataObject) -> None:
        zeros = data.draw(st.integers(0, m - 1))
        here = theory.hit_probability(m, b, zeros / m)
        assert theory.hit_probability(m, b, (zeros + 1) / m) >= here
        assert theory.hit_probability(m, b + 1, zeros / m) <= here

    @pytest.mark.parametrize(("share", "b"), [(0.5, 5), (0.8, 12), (0.2, 3)])
    def test_in_a_large_layer_rows_are_as_good_as_independent(self, share: float, b: int) -> None:
        assert theory.hit_probability(10**6, b, share) == pytest.approx(share ** (b - 1), rel=1e-3)

    def test_too_few_zeros_never_hit(self) -> None:
        assert theory.hit_probability(100, 12, 0.1) == 0
        assert theory.hit_probability(100, 11, 0.1) > 0


class TestExpectedSubmatrices:
    @given(st.lists(st.integers(4, 20), min_size=1, max_size=5))
    def test_it_is_the_mean_of_the_last_of_independent_arrivals(self, zero_counts: list[int]) -> None:
        b = len(zero_counts)
        rates = [theory.hit_probability(20, b, zeros / 20) for zeros in zero_counts]
        assert theory.expected_submatrices_for(20, zero_counts) == pytest.approx(
            mean_of_last_arrival(rates), rel=1e-6
        )

    @given(st.integers(10, 60), st.integers(1, 6))
    def test_equal_counts_need_no_integral(self, m: int, b: int) -> None:
        share = round(m / 2) / m
        assert theory.expected_submatrices_for(m, [round(m / 2)] * b) == pytest.approx(
            theory.expected_submatrices(m, b, share), rel=1e-6
        )

    def test_it_is_infinite_where_a_column_cannot_be_hit(self) -> None:
        assert theory.expected_submatrices(100, 60) == math.inf
        assert theory.expected_submatrices_for(100, [50, 50, 1]) == math.inf

    @pytest.mark.parametrize(("m", "b"), [(16, 3), (24, 4)])
    def test_a_simulated_search_needs_as_many(self, m: int, b: int) -> None:
        rng = np.random.default_rng(8847)
        needed = []
        for _ in range(1500):
            zero = np.zeros((b, m), dtype=bool)
            for column in zero:
                column[rng.choice(m, m // 2, replace=False)] = True
            # Rows drawn for one submatrix each; a column is seen once all of its rows are zero in it.
            rows = np.argpartition(rng.random((600, m)), b - 1, axis=1)[:, : b - 1]
            seen = zero[:, rows].all(axis=2)
            needed.append(np.max(np.argmax(seen, axis=1)) + 1 if bool(np.all(np.any(seen, axis=1))) else 600)
        assert np.mean(needed) == pytest.approx(theory.expected_submatrices(m, b), rel=0.1)


class TestFailureProbability:
    @pytest.mark.parametrize(
        ("m", "b", "threshold"), [(20, 5, 0.3), (50, 8, 0.3), (100, 8, 0.4), (200, 10, 0.4), (200, 12, 0.3)]
    )
    @pytest.mark.parametrize("times", [2, 5, 10])
    def test_it_bounds_the_chance_to_miss_a_column(
        self, m: int, b: int, threshold: float, times: float
    ) -> None:
        draws = times / theory.hit_probability(m, b)
        assert theory.failure_probability(m, b, threshold, draws) >= chance_to_miss_a_column(
            m, b, threshold, draws
        )

    @given(st.integers(2, 200), st.integers(1, 30), st.floats(0, 0.5), st.floats(0, 1e9))
    def test_it_is_a_probability_that_falls_with_the_effort(
        self, m: int, b: int, threshold: float, draws: float
    ) -> None:
        here = theory.failure_probability(m, b, threshold, draws)
        assert 0 <= theory.failure_probability(m, b, threshold, 2 * draws) <= here <= 1

    def test_without_a_draw_everything_is_missed(self) -> None:
        assert theory.failure_probability(100, 5, 0.2, 0) == 1

    def test_a_threshold_above_the_zeros_filters_everything_out(self) -> None:
        assert theory.failure_probability(100, 5, 0.9, 1e12) == pytest.approx(1)


class TestFalseDirections:
    def test_it_is_the_union_bound(self) -> None:
        assert theory.false_direction_probability(5, 2, 0.1) == pytest.approx(10 * 0.01)
        assert theory.false_direction_probability(200, 4, 1e-4) == pytest.approx(math.comb(200, 4) * 1e-16)

    def test_without_a_row_to_spare_nothing_is_known(self) -> None:
        assert theory.false_direction_probability(200, 0, 1e-9) == 1
        assert theory.false_direction_probability(200, 3, 1.0) == 1
        assert theory.false_direction_probability(200, 3, 0.0) == 0

    @given(st.integers(1, 3000), st.integers(1, 40), st.floats(1e-12, 0.5))
    def test_it_is_a_probability_that_falls_with_every_bit_of_precision(
        self, rows: int, redundancy: int, chance: float
    ) -> None:
        p = theory.false_direction_probability(rows, redundancy, chance)
        assert 0 <= p <= 1
        assert theory.false_direction_probability(rows, redundancy, chance / 2) <= p


class TestFalseMembers:
    @staticmethod
    def cells(units: int, unknowns: int) -> int:
        return sum(math.comb(units, i) for i in range(min(units, unknowns) + 1))

    @pytest.mark.parametrize(("units", "unknowns"), [(1, 0), (4, 2), (10, 3), (30, 12), (5, 9)])
    def test_it_is_the_union_bound_over_cells(self, units: int, unknowns: int) -> None:
        for spare in (1, 4):
            expected = min(1.0, self.cells(units, unknowns) * 1e-6**spare)
            assert theory.false_member_probability(units, unknowns, spare, 1e-6) == pytest.approx(expected)

    @pytest.mark.parametrize("units", [3, 5, 8])
    def test_lines_cut_a_plane_into_as_many_cells_as_it_counts(self, units: int) -> None:
        rng = np.random.default_rng(units)
        normals, offsets = rng.standard_normal((units, 2)), 0.1 * rng.standard_normal(units)
        points = rng.standard_normal((200_000, 2)) * np.exp(rng.uniform(-3, 3, (200_000, 1)))
        seen = len(np.unique(points @ normals.T > offsets, axis=0))
        bound = theory.false_member_probability(units, 2, 1, 1e-9) / 1e-9
        assert seen <= round(bound)
        assert seen >= 0.9 * bound

    def test_without_a_spare_equation_nothing_is_known(self) -> None:
        assert theory.false_member_probability(200, 19, 0, 1e-9) == 1
        assert theory.false_member_probability(200, 19, -3, 1e-9) == 1
        assert theory.false_member_probability(200, 19, 5, 1.0) == 1
        assert theory.false_member_probability(200, 19, 5, 0.0) == 0

    @given(st.integers(1, 3000), st.integers(0, 400), st.integers(1, 3000), st.floats(1e-12, 0.9))
    def test_it_is_a_probability_that_falls_with_every_equation_and_rises_with_every_unit(
        self, units: int, unknowns: int, spare: int, chance: float
    ) -> None:
        p = theory.false_member_probability(units, unknowns, spare, chance)
        assert 0 <= p <= 1
        assert theory.false_member_probability(units, unknowns, spare + 1, chance) <= p
        assert theory.false_member_probability(units + 1, unknowns, spare, chance) >= p * (1 - 1e-9)
        assert theory.false_member_probability(units, unknowns + 1, spare, chance) >= p * (1 - 1e-9)


@pytest.mark.parametrize(
    ("widths", "last", "largest"),
    [
        ((200,), None, 100),
        ((200, 200), None, 134),
        ((200,), 10, 10),  # an output layer of ten classes shows ten inputs at most
        ((200, 200), 10, 100),
        ((30,), 40, 15),
        ((200, 20, 200), 10, 20),
    ],
)
def test_largest_batch_of_a_chain_by_counting(
    widths: tuple[int, ...], last: int | None, largest: int
) -> None:
    assert theory.largest_chain_batch(widths, last) == largest
