"""The pool of candidates: distinct, ordered by merit, and never blind to a better direction."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from spear_np.directions.pool import Candidates, Pool, covered, greedy_basis
from tests.backends import Backend
from tests.networks import Floats
from tests.pools import frozen

B, LIVE = 4, 30
SHARP = 1e-6
"""Radians: the noise of a direction at float32."""


def candidates(
    q: Floats,
    zero_count: list[int],
    *,
    angle: float = SHARP,
    pattern_fit: list[float] | None = None,
    rests_on_one_row: list[bool] | None = None,
) -> Candidates:
    """Return directions that leave the first so many rows without gradient."""
    return Candidates(
        q=np.asarray(q, dtype=np.float64),
        zero_mask=np.arange(LIVE)[None, :] < np.asarray(zero_count)[:, None],
        angle=np.full(len(q), angle),
        pattern_fit=np.ones(len(q)) if pattern_fit is None else np.asarray(pattern_fit),
        coordinates=np.zeros_like(q, dtype=np.float64),
        rests_on_one_row=np.zeros(len(q), dtype=bool)
        if rests_on_one_row is None
        else np.asarray(rests_on_one_row),
    )


@st.composite
def directions(draw: st.DrawFn, *, least: int = 1, most: int = 7) -> Floats:
    """Vectors of small integers, so that some are parallel and some dependent, none of them zero."""
    numbers = st.lists(st.integers(-2, 2), min_size=B, max_size=B).filter(any)
    rows: Floats = np.asarray(draw(st.lists(numbers, min_size=least, max_size=most)), dtype=np.float64)
    return rows


@st.composite
def pools(draw: st.DrawFn, *, least: int = 0) -> Pool:
    q = draw(directions(least=max(least, 1)))
    counts = draw(st.lists(st.integers(B, LIVE), min_size=len(q), max_size=len(q)))
    pool = Pool.empty(B, LIVE)
    return pool if not least and draw(st.integers(0, 9)) == 0 else pool.merge(candidates(q, counts))


def unit(vectors: Floats) -> Floats:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    rows: Floats = vectors / lengths
    return rows


def as_lines(vectors: Floats) -> set[tuple[float, ...]]:
    """Directions without sign or order, fit for comparison."""
    rows = unit(vectors) if len(vectors) else vectors
    first = np.argmax(np.abs(rows) > 1e-9, axis=1)
    signs = np.sign(rows[np.arange(len(rows)), first])
    return {tuple(np.round(row, 9) + 0.0) for row in rows * signs[:, None]}


def as_line(vector: Floats) -> tuple[float, ...]:
    """One direction without sign, fit for comparison."""
    (line,) = as_lines(vector[None, :])
    return line


class TestGreedyBasis:
    @given(directions(least=0))
    def test_it_is_the_first_of_all_maximal_independent_sets(self, q: Floats) -> None:
        rows = unit(q) if len(q) else np.empty((0, B))
        chosen = greedy_basis(rows, np.full(len(rows), SHARP))
        assert chosen == sorted(chosen)
        assert np.linalg.matrix_rank(rows[chosen]) == len(chosen) if chosen else len(rows) == 0
        for index in range(len(rows)):
            before = [i for i in chosen if i < index]
            adds_rank = np.linalg.matrix_rank(rows[[*before, index]]) > len(before)
            assert (index in chosen) == adds_rank

    @given(directions(), st.data())
    def test_no_other_basis_has_more_zeros(self, q: Floats, data: st.DataObject) -> None:
        counts = np.sort(data.draw(st.lists(st.integers(0, LIVE), min_size=len(q), max_size=len(q))))[::-1]
        rows = unit(q)
        chosen = greedy_basis(rows, np.full(len(rows), SHARP))
        most = max(
            sum(counts[list(other)])
            for other in combinations(range(len(rows)), len(chosen))
            if np.linalg.matrix_rank(rows[list(other)]) == len(chosen)
        )
        assert sum(counts[chosen]) == most

    @pytest.mark.parametrize("apart", [1e-3, 1e-6, 1e-9])
    def test_nearly_parallel_vectors_are_independent_if_their_noise_allows(self, apart: float) -> None:
        rows = unit(np.asarray([[1.0, 0, 0, 0], [1.0, apart, 0, 0], [1.0, 0, apart, 0]]))
        assert greedy_basis(rows, np.full(3, apart / 10)) == [0, 1, 2]
        assert greedy_basis(rows, np.full(3, apart * 10)) == [0]


class TestMerge:
    @given(pools())
    def test_no_direction_is_there_twice(self, pool: Pool) -> None:
        cosine = np.abs(pool.q @ pool.q.T) - np.eye(len(pool.q))
        assert np.all(cosine < 1 - 1e-9)
        np.testing.assert_allclose(np.linalg.norm(pool.q, axis=1), 1)

    @given(pools())
    def test_the_basis_comes_first_by_merit_and_is_independent(self, pool: Pool) -> None:
        assert pool.basis == tuple(range(len(pool.basis)))
        assert list(pool.zero_count[list(pool.basis)]) == sorted(
            pool.zero_count[list(pool.basis)], reverse=True
        )
        assert np.linalg.matrix_rank(pool.q) == len(pool.basis) if len(pool.q) else not pool.basis
        assert pool.complete == (len(pool.basis) == B)
        assert greedy_basis(pool.basis_vectors, pool.angle[list(pool.basis)]) == list(range(len(pool.basis)))

    @given(pools())
    def test_merging_what_is_known_changes_nothing(self, pool: Pool) -> None:
        again = pool.merge(
            Candidates(
                pool.q, pool.zero_mask, pool.angle, pool.pattern_fit, pool.coordinates, pool.rests_on_one_row
            )
        )
        assert as_lines(again.q) == as_lines(pool.q)
        assert as_lines(again.basis_vectors) == as_lines(pool.basis_vectors)
        mirrored = pool.merge(
            Candidates(
                -pool.q, pool.zero_mask, pool.angle, pool.pattern_fit, pool.coordinates, pool.rests_on_one_row
            )
        )
        assert as_lines(mirrored.q) == as_lines(pool.q)

    @given(directions(), st.permutations(range(7)), st.data())
    def test_the_order_of_arrival_does_not_matter(
        self, q: Floats, order: list[int], data: st.DataObject
    ) -> None:
        counts = np.asarray(
            data.draw(st.lists(st.integers(B, LIVE), min_size=len(q), max_size=len(q), unique=True))
        )
        order = [index for index in order if index < len(q)]
        at_once = Pool.empty(B, LIVE).merge(candidates(q, list(counts)))
        one_by_one = Pool.empty(B, LIVE)
        for index in order:
            one_by_one = one_by_one.merge(candidates(q[[index]], [counts[index]]))
        assert as_lines(one_by_one.q) == as_lines(at_once.q)
        assert as_lines(one_by_one.basis_vectors) == as_lines(at_once.basis_vectors)

    def test_the_copy_with_more_zeros_replaces_the_other(self) -> None:
        blurred, sharp = np.asarray([[1.0, 4e-7, 0, 0]]), np.asarray([[1.0, 0, 0, 0]])
        pool = Pool.empty(B, LIVE).merge(candidates(blurred, [10])).merge(candidates(-sharp, [20]))
        assert list(pool.zero_count) == [20]
        np.testing.assert_array_equal(np.abs(pool.q), sharp)
        pool = pool.merge(candidates(blurred, [15]))
        np.testing.assert_array_equal(np.abs(pool.q), sharp)

    def test_a_pattern_that_no_input_produces_ranks_lower(self) -> None:
        q = np.asarray([[1.0, 0, 0, 0], [0, 1.0, 0, 0], [1.0, 1.0, 0, 0]])
        pool = Pool.empty(B, LIVE).merge(candidates(q, [18, 16, 20], pattern_fit=[1.0, 1.0, 0.6]))
        assert as_lines(pool.basis_vectors) == as_lines(q[:2])

    def test_nothing_is_changed_in_place(self) -> None:
        pool = frozen(Pool.empty(B, LIVE).merge(candidates(np.eye(B), [12, 11, 10, 9])))
        found = candidates(np.asarray([[1.0, 1.0, 0, 0]]), [20])
        for array in (found.q, found.zero_mask, found.angle):
            array.flags.writeable = False
        grown = pool.merge(found).blame([0]).after_round(news=0)
        assert len(grown.q) == 5
        assert len(pool.q) == 4

    def test_it_forgets_the_least_sparse_of_very_many(self) -> None:
        rng = np.random.default_rng(71)
        counts = [int(c) for c in rng.integers(B, LIVE, 400)]
        pool = Pool.empty(B, LIVE).merge(candidates(rng.standard_normal((400, B)), counts))
        assert B < len(pool.q) < 200
        assert min(pool.zero_count) >= sorted(counts, reverse=True)[len(pool.q)]


class TestRedundant:
    @given(pools(least=1), directions(most=1), st.integers(B, LIVE), st.sampled_from([SHARP, 1e-3, 0.1]))
    def test_what_adds_a_dimension_is_never_dropped(
        self, pool: Pool, q: Floats, count: int, angle: float
    ) -> None:
        blurred = Pool.empty(B, LIVE).merge(
            Candidates(
                pool.q,
                pool.zero_mask,
                np.full(len(pool.q), angle),
                pool.pattern_fit,
                pool.coordinates,
                pool.rests_on_one_row,
            )
        )
        outside = unit(q) - unit(q) @ np.linalg.pinv(blurred.basis_vectors) @ blurred.basis_vectors
        assume(np.linalg.norm(outside) > 2 * angle)
        assert not blurred.redundant(q, np.asarray([count])).any()

    @given(
        pools(least=1),
        st.lists(st.sampled_from([0, 0, 1, -1, 2, 0.5, 1e-2, 5e-4, 1e-4]), min_size=B, max_size=B).filter(
            any
        ),
        st.integers(B, LIVE),
    )
    def test_a_mixture_that_would_change_the_basis_is_never_dropped(
        self, pool: Pool, mixture: list[float], count: int
    ) -> None:
        q = np.asarray([mixture[: len(pool.basis)]]) @ pool.basis_vectors
        assume(np.linalg.norm(q) > 0.1)
        changed = pool.merge(candidates(q, [count]))
        if as_lines(changed.basis_vectors) != as_lines(pool.basis_vectors):
            assert not pool.redundant(q, np.asarray([count])).any()

    def test_repetitions_and_dense_mixtures_are_dropped(self) -> None:
        pool = Pool.empty(B, LIVE).merge(candidates(np.eye(B)[:3], [20, 18, 16]))
        q = np.asarray(
            [[-2.0, 0, 0, 0], [1.0, 1.0, 0, 0], [1.0, 0, 1.0, 0], [0, 0, 0, 1.0], [1.0, 1.0, 0, 0]]
        )
        dropped = pool.redundant(q, np.asarray([20, 18, 17, 5, 19]))
        np.testing.assert_array_equal(dropped, [True, True, False, False, False])

    def test_an_empty_pool_drops_nothing(self) -> None:
        assert not Pool.empty(B, LIVE).redundant(np.eye(B), np.full(B, 5)).any()


class TestBlame:
    def test_a_blamed_direction_gives_way_to_the_next_best(self) -> None:
        q = np.asarray([[1.0, 1.0, 0, 0], [1.0, 0, 0, 0], [0, 1.0, 0, 0]])
        pool = Pool.empty(B, LIVE).merge(candidates(q, [20, 19, 18]))
        assert as_lines(pool.basis_vectors) == as_lines(q[:2])
        for _ in range(3):
            (mixture,) = np.flatnonzero(pool.zero_count == 20)
            pool = pool.blame([int(mixture)])
        assert as_lines(pool.basis_vectors) == as_lines(q[1:])

    def test_what_is_forgotten_is_gone_and_blame_with_it(self) -> None:
        pool = Pool.empty(B, LIVE).merge(candidates(np.eye(B), [20, 19, 18, 17])).blame([1])
        left = pool.without(np.asarray([True, False, False, False]))
        assert as_lines(left.q) == as_lines(pool.q[1:])
        assert not left.penalty.any()


class TestLone:
    """Directions that rest on a single row, as mixtures do."""

    @given(
        directions(least=2),
        st.lists(st.integers(B, LIVE // 2), min_size=7, max_size=7),
        st.lists(st.booleans(), min_size=7, max_size=7),
    )
    @settings(max_examples=50)
    def test_they_rank_behind_all_others(
        self, q: Floats, counts: list[int], rests_on_one_row: list[bool]
    ) -> None:
        pool = Pool.empty(B, LIVE).merge(
            candidates(q, counts[: len(q)], rests_on_one_row=rests_on_one_row[: len(q)])
        )
        in_basis = list(pool.rests_on_one_row[list(pool.basis)])
        assert in_basis == sorted(in_basis)
        # None of them is chosen for a dimension that the others span already.
        others = pool.q[~pool.rests_on_one_row]
        assert in_basis.count(False) == (np.linalg.matrix_rank(others) if len(others) else 0)
        assert len(in_basis) == np.linalg.matrix_rank(pool.q)

    def test_a_sparse_mixture_gives_way_to_what_it_mixes(self) -> None:
        q = np.asarray([[1.0, 1.0, 0, 0], [1.0, 0, 0, 0], [0, 1.0, 0, 0]])
        pool = Pool.empty(B, LIVE).merge(candidates(q, [20, 10, 8], rests_on_one_row=[True, False, False]))
        assert as_lines(pool.basis_vectors) == as_lines(q[1:])

    def test_they_complete_a_basis_that_lacks_others(self) -> None:
        pool = Pool.empty(B, LIVE).merge(
            candidates(np.eye(B), [20, 10, 12, 8], rests_on_one_row=[True, False, False, True])
        )
        assert pool.complete
        np.testing.assert_array_equal(pool.basis_vectors, np.eye(B)[[2, 1, 0, 3]])

    def test_they_are_not_relied_on(self) -> None:
        pool = Pool.empty(B, LIVE).merge(
            candidates(
                np.eye(B),
                [20, 19, 18, 17],
                pattern_fit=[1, 0.9, 1, 1],
                rests_on_one_row=[True, False, False, False],
            )
        )
        assert pool.complete
        assert as_lines(pool.q[pool.trusted]) == as_lines(np.eye(B)[2:])
        # A copy of a direction that is not relied on is no repetition: it is worth a second look.
        redundant = pool.redundant(np.eye(B), np.full(B, 5))
        np.testing.assert_array_equal(redundant, [False, False, True, True])

    @given(
        st.lists(st.integers(B, LIVE), min_size=6, max_size=6),
        st.lists(st.booleans(), min_size=6, max_size=6),
    )
    @settings(max_examples=40)
    def test_the_mark_stays_with_its_direction(self, counts: list[int], rests_on_one_row: list[bool]) -> None:
        q = unit(np.concatenate([np.eye(B), [[1.0, 2, 0, 0], [0, 1, 2, 3]]]))
        wanted = {as_line(row): mark for row, mark in zip(q, rests_on_one_row, strict=True)}
        pool = Pool.empty(B, LIVE).merge(candidates(q[:3], counts[:3], rests_on_one_row=rests_on_one_row[:3]))
        pool = pool.merge(candidates(q[3:], counts[3:], rests_on_one_row=rests_on_one_row[3:]))
        for changed in (
            pool,
            pool.blame([1]),
            pool.merge(candidates(q, counts, rests_on_one_row=rests_on_one_row)),
        ):
            assert {
                as_line(row): bool(mark)
                for row, mark in zip(changed.q, changed.rests_on_one_row, strict=True)
            } == wanted
        left = pool.without(np.asarray([True, False, False, False]))
        assert len(left.q) == B - 1
        assert all(
            wanted[as_line(row)] == mark for row, mark in zip(left.q, left.rests_on_one_row, strict=True)
        )

    def test_a_copy_with_more_zeros_brings_its_own_mark(self) -> None:
        pool = Pool.empty(B, LIVE).merge(candidates(np.eye(B)[:1], [6], rests_on_one_row=[True]))
        assert list(
            pool.merge(candidates(np.eye(B)[:1], [5], rests_on_one_row=[False])).rests_on_one_row
        ) == [True]
        assert list(
            pool.merge(candidates(np.eye(B)[:1], [12], rests_on_one_row=[False])).rests_on_one_row
        ) == [False]


class TestRounds:
    WANTED = 40
    """Directions of a larger batch, of which a round may bring few or many."""

    def after(self, pool: Pool, news: int) -> Pool:
        """Return the pool after a round that brought so many directions."""
        known = len(pool.basis)
        fresh = np.eye(self.WANTED)[known : known + news]
        return pool.merge(candidates(fresh, [20] * news)).after_round(news=news)

    def test_rounds_without_news_are_counted(self) -> None:
        pool = Pool.empty(B, LIVE).after_round(news=0).after_round(news=0)
        assert pool.stale == 2
        assert pool.after_round(news=1).stale == 0

    def test_little_news_asks_for_more_effort_and_much_for_less(self) -> None:
        pool = replace(Pool.empty(self.WANTED, LIVE), effort=3)
        # Of 40 directions that are missing.
        efforts = {news: self.after(pool, news).effort for news in range(self.WANTED + 1)}
        assert [efforts[news] for news in (0, 1)] == [4, 4]
        assert [efforts[news] for news in (4, 6)] == [3, 3]
        assert [efforts[news] for news in (8, 20, 40)] == [2, 2, 2]
        assert list(efforts.values()) == sorted(efforts.values(), reverse=True)

    def test_what_counts_is_the_share_of_what_is_missing(self) -> None:
        # One direction is little news among forty and much among three.
        for known, change in ((0, 1), (30, 0), (37, -1)):
            pool = Pool.empty(self.WANTED, LIVE).merge(candidates(np.eye(self.WANTED)[:known], [20] * known))
            assert self.after(replace(pool, effort=2), 1).effort == 2 + change

    def test_effort_is_never_negative_and_grows_without_limit(self) -> None:
        pool = Pool.empty(self.WANTED, LIVE)
        for round_number in range(12):
            assert pool.effort == round_number
            pool = self.after(pool, 0)
        for _ in range(20):
            pool = self.after(pool, 1 if len(pool.basis) > 30 else 10)
        assert pool.effort == 0

    @given(st.lists(st.integers(0, 8), max_size=10), st.integers(0, 5))
    @settings(max_examples=25)
    def test_effort_changes_by_one_step_a_round(self, news: list[int], effort: int) -> None:
        pool = replace(Pool.empty(self.WANTED, LIVE), effort=effort)
        for number in news:
            before, pool = pool, self.after(pool, min(number, self.WANTED - len(pool.basis)))
            assert pool.effort >= 0
            assert abs(pool.effort - before.effort) <= 1

    def test_candidates_alone_change_neither(self) -> None:
        pool = replace(Pool.empty(B, LIVE), stale=4, effort=3)
        for changed in (
            pool.merge(candidates(np.eye(B), [20, 19, 18, 17])),
            pool.merge(candidates(np.eye(B), [20, 19, 18, 17])).blame([0]).without(np.arange(B) == 1),
            pool.with_basis(()),
        ):
            assert (changed.stale, changed.effort) == (4, 3)


def test_fresh_positions_are_those_that_were_not_there_before() -> None:
    pool = Pool.empty(B, LIVE).merge(candidates(np.eye(B)[:2], [20, 18]))
    before = pool.basis_vectors
    np.testing.assert_array_equal(pool.fresh_positions(before), [])
    np.testing.assert_array_equal(pool.fresh_positions(np.empty((0, B))), [0, 1])
    grown = pool.merge(candidates(np.eye(B)[2:3], [19]))
    np.testing.assert_array_equal(grown.basis_vectors[grown.fresh_positions(before)], np.eye(B)[2:3])


def test_another_basis_can_be_chosen() -> None:
    pool = Pool.empty(B, LIVE).merge(candidates(np.eye(B), [20, 19, 18, 17]))
    np.testing.assert_array_equal(pool.with_basis((2, 0)).basis_vectors, pool.q[[2, 0]])


class TestCovered:
    """Which candidates combine the basis: as least squares by singular values say, for bases that are nearly dependent too."""

    @given(
        f=st.integers(1, 12),
        more=st.integers(0, 6),
        nearness=st.floats(0, 7),
        seed=st.integers(0, 2**32 - 1),
    )
    def test_it_is_what_singular_values_say(self, f: int, more: int, nearness: float, seed: int) -> None:
        rng, b, k = np.random.default_rng(seed), f + more, 12
        basis = rng.standard_normal((f, b))
        basis[-1] = basis[0] + 10**-nearness * basis[-1]
        basis /= np.linalg.norm(basis, axis=1, keepdims=True)
        shares = rng.standard_normal((k, f)) * (rng.random((k, f)) < 0.4)
        shares[:, 0] += np.all(shares == 0, axis=1)
        q = shares @ basis + np.where(np.arange(k) % 3 == 0, 0.1, 0.0)[:, None] * rng.standard_normal((k, b))
        counts, basis_counts = rng.integers(5, 30, k), rng.integers(5, 30, f)
        angle = np.full(f, 1e-5)
        unit = q / np.linalg.norm(q, axis=1, keepdims=True)
        coefficients = np.linalg.lstsq(basis.T, unit.T, rcond=None)[0].T
        inside = np.linalg.norm(unit - coefficients @ basis, axis=1) <= 1e-5
        involved = np.abs(coefficients) > 1e-5
        densest = np.min(np.where(involved, basis_counts, 1000), axis=1)
        wanted = inside & ((involved.sum(axis=1) == 1) | (counts <= densest))
        for backend in (Backend.NUMPY, Backend.STRICT):
            there = [backend.array(one) for one in (q, counts, basis, basis_counts)]
            found = covered(there[0], there[1], there[2], there[3], angle)
            np.testing.assert_array_equal(backend.host(found), wanted)

    def test_candidates_are_compared_where_they_are(self, backend: Backend) -> None:
        found = Candidates(
            q=np.eye(3),
            zero_mask=np.ones((3, 9), dtype=bool),
            angle=np.full(3, 1e-6),
            pattern_fit=np.ones(3),
            coordinates=np.zeros((3, 3)),
            rests_on_one_row=np.zeros(3, dtype=bool),
        )
        pool = Pool.empty(3, 9).merge(found)
        q = np.asarray([[1.0, 1, 0], [0, 1, 0], [1, 1, 1]])
        count = np.asarray([9, 20, 20])
        redundant = pool.redundant(backend.array(q), backend.array(count), backend.device)
        np.testing.assert_array_equal(redundant, [True, True, False])
