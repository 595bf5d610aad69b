"""What the zero rows of a direction determine, and which directions rest on a single row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spear_np.backend.host import to_host
from spear_np.directions.uniqueness import SPARE, sharpened, single_row_support, uniqueness
from spear_np.factors.factorize import Factors
from tests.backends import Backend
from tests.layers import digit_layer, factors_of, layer_data_of, layer_with_patterns, true_directions
from tests.networks import Floats, LayerData

B, WIDTH = 5, 100


class TestUniqueness:
    def test_redundancy_counts_rows_that_may_be_lost(self, backend: Backend) -> None:
        data = digit_layer(B, width=WIDTH, seed=182)
        factors = factors_of(data, backend)
        q = backend.array(true_directions(factors, data.inputs))
        off = factors.space.expand(factors.space.zeros(q))
        found = uniqueness(factors.space, q, q, off)
        assert found.unique.all()
        U, zeros = backend.host(factors.space.U), backend.host(factors.space.zeros(q))
        rng = np.random.default_rng(182)
        for index in range(B):
            rows = np.flatnonzero(zeros[index])
            assert 1 <= found.redundancy[index] <= len(rows) - (B - 1)
            for _ in range(50):
                left = rng.choice(rows, len(rows) - int(found.redundancy[index]), replace=False)
                assert np.linalg.svd(U[left], compute_uv=False)[B - 2] > 1e-4

    @pytest.mark.parametrize("seed", range(186, 190))
    def test_the_whole_projector_shows_more_rows_to_spare(self, backend: Backend, seed: int) -> None:
        data = digit_layer(B, width=32, seed=seed)
        factors = factors_of(data, backend)
        q = backend.array(true_directions(factors, data.inputs))
        off = factors.space.expand(factors.space.zeros(q))
        quick = uniqueness(factors.space, q, q, off)
        sharp = sharpened(factors.space, q, off, quick, np.flatnonzero(quick.redundancy))
        assert np.all(sharp.redundancy >= quick.redundancy)
        assert not np.any(sharp.redundancy[quick.redundancy == 0])
        U, zeros = backend.host(factors.space.U), backend.host(factors.space.zeros(q))
        # Whatever rows are taken, as many as it says: the rank survives.
        for rows, spare in zip(zeros, sharp.redundancy, strict=True):
            if not spare:
                continue
            for lost in combinations(np.flatnonzero(rows), int(spare)):
                left = U[np.setdiff1d(np.flatnonzero(rows), lost)]
                assert np.linalg.svd(left, compute_uv=False)[B - 2] > 1e-6

    def test_it_is_sharper_by_a_row_and_more(self) -> None:
        rng = np.random.default_rng(190)
        data = layer_data_of(rng.standard_normal((30, 100)), rng, width=200)
        factors = factors_of(data, Backend.NUMPY)
        q = true_directions(factors, data.inputs)
        off = factors.space.expand(factors.space.zeros(q))
        quick = uniqueness(factors.space, q, q, off)
        assert (
            np.mean(sharpened(factors.space, q, off, quick, np.arange(30)).redundancy)
            > np.mean(quick.redundancy) + 0.5
        )

    def test_removing_zero_rows_ends_uniqueness(self, backend: Backend) -> None:
        data = digit_layer(B, width=WIDTH, seed=183)
        factors = factors_of(data, backend)
        q = true_directions(factors, data.inputs)
        zeros = backend.host(factors.space.zeros(backend.array(q)))
        for kept, unique in ((B - 2, False), (B - 1, True), (B + 3, True)):
            mask = np.zeros_like(zeros)
            for row, silent in zip(mask, zeros, strict=True):
                row[np.flatnonzero(silent)[:kept]] = True
            spread = np.zeros((WIDTH, B), dtype=bool)
            spread[backend.host(factors.space.live)] = mask.T
            found = uniqueness(factors.space, backend.array(q), backend.array(q), backend.array(spread))
            if not unique:
                assert not found.unique.any()
            if kept == B - 1:
                assert not found.redundancy.any()

    def test_without_any_zero_row_nothing_is_unique(self, backend: Backend) -> None:
        data = digit_layer(B, width=WIDTH, seed=184)
        factors = factors_of(data, backend)
        q = backend.array(true_directions(factors, data.inputs))
        nothing = backend.array(np.zeros((WIDTH, B), dtype=bool))
        found = uniqueness(factors.space, q, q, nothing)
        assert not found.unique.any()
        assert not found.redundancy.any()


def mixtures(factors: Factors, truth: Floats, count: int, seed: int) -> Floats:
    """(k, b): sums of two true directions whose coefficients are chosen to annul one further row."""
    rng = np.random.default_rng(seed)
    products = to_host(factors.space.U) @ truth.T
    large = np.abs(products) > 1e-2 * np.max(np.abs(products), axis=0)
    made: list[Floats] = []
    while len(made) < count:
        i, k = rng.choice(len(truth), 2, replace=False)
        row = rng.choice(np.flatnonzero(large[:, i] & large[:, k]))
        made.append(truth[i] - products[row, i] / products[row, k] * truth[k])
    return np.asarray(made)


def zeros_of(factors: Factors, q: Floats) -> Floats:
    """(k, l) bool on the host."""
    mask: Floats = to_host(factors.space.zeros(factors.space.device.float64(q)))
    return mask


def lone(factors: Factors, q: Floats, mask: Floats | None = None) -> Floats:
    found: Floats = single_row_support(
        factors.space, factors.space.device.float64(q), zeros_of(factors, q) if mask is None else mask
    )
    assert found.shape == (len(q),)
    assert found.dtype == np.bool_
    return found


def with_faint_columns(data: LayerData, factors: Sequence[float]) -> LayerData:
    """Return the layer with the gradients of its first inputs scaled."""
    scale = np.ones(len(data.inputs))
    scale[: len(factors)] = factors
    output_grad = (data.output_grad * scale).astype(np.float32)
    # As a framework computes it: every row rounded in proportion to its own size.
    return replace(
        data,
        output_grad=output_grad,
        weight_grad=(output_grad.astype(np.float64) @ data.inputs).astype(np.float32),
        bias_grad=output_grad.sum(axis=1),
    )


class TestFaintColumns:
    """Rows on which only faint gradients are left weigh a million times more than all others."""

    @pytest.mark.parametrize("seed", [191, 192, 195, 196])
    def test_no_direction_is_taken_to_rest_on_such_a_row(self, backend: Backend, seed: int) -> None:
        data = with_faint_columns(digit_layer(12, width=160, seed=seed), [3e-6, 1e-5, 1e-4])
        factors = factors_of(data, backend)
        truth = true_directions(factors, data.inputs)
        zeros = zeros_of(factors, truth)
        # Every column is at its zeros with many rows to spare: the singular values in noise units say so.
        rows = to_host(factors.space.U) * to_host(factors.space.S)
        for mask in zeros:
            left = [np.delete(rows[mask], i, axis=0) for i in range(int(mask.sum()))]
            assert min(np.linalg.svd(part, compute_uv=False)[-2] for part in left) > 6 * np.sqrt(mask.sum())
        assert not lone(factors, truth).any()

    def test_a_mixture_still_rests_on_the_row_it_annuls(self, backend: Backend) -> None:
        data = with_faint_columns(digit_layer(12, width=160, seed=194), [3e-6, 1e-5, 1e-4])
        factors = factors_of(data, backend)
        q = mixtures(factors, true_directions(factors, data.inputs)[3:], 30, seed=194)
        assert np.all(lone(factors, q))


class TestLoneRows:
    @pytest.mark.parametrize(("b", "width", "seed"), [(5, 100, 500), (16, 160, 2), (24, 160, 4)])
    def test_directions_of_inputs_rest_on_many_rows(
        self, backend: Backend, b: int, width: int, seed: int
    ) -> None:
        data = digit_layer(b, width=width, seed=seed)
        factors = factors_of(data, backend)
        assert not lone(factors, true_directions(factors, data.inputs)).any()

    @pytest.mark.parametrize(("b", "seed"), [(4, 501), (16, 2), (24, 5)])
    def test_a_mixture_rests_on_the_row_it_was_made_to_annul(
        self, backend: Backend, b: int, seed: int
    ) -> None:
        data = digit_layer(b, width=160, seed=seed)
        factors = factors_of(data, backend)
        q = mixtures(factors, true_directions(factors, data.inputs), 30, seed=501)
        # Not for want of zeros.
        assert np.mean(zeros_of(factors, q).sum(axis=1) >= b - 1 + SPARE) > 0.8
        assert np.all(lone(factors, q))

    def test_whatever_has_hardly_more_zeros_than_any_direction_can_have_is_doubted(
        self, backend: Backend
    ) -> None:
        b = 8
        data = digit_layer(b, width=WIDTH, seed=502)
        factors = factors_of(data, backend)
        q = true_directions(factors, data.inputs)
        zeros = zeros_of(factors, q)
        rng = np.random.default_rng(502)
        for count in range(b - 1 + SPARE):
            mask = np.zeros_like(zeros)
            for row, silent in zip(mask, zeros, strict=True):
                row[rng.choice(np.flatnonzero(silent), count, replace=False)] = True
            assert np.all(lone(factors, q, mask))
        assert not np.any(lone(factors, q))

    @pytest.mark.parametrize(("off", "doubted"), [(4, True), (5, True), (12, False)])
    def test_an_input_that_leaves_few_units_off_is_doubted(
        self, backend: Backend, off: int, doubted: bool
    ) -> None:
        rng = np.random.default_rng(503)
        active = rng.random((60, 5)) < 0.5
        active[:, 0] = np.arange(60) >= off
        active[:off, 1] |= ~active[:off].any(axis=1)
        data = layer_with_patterns(active, rng)
        factors = factors_of(data, backend)
        q = true_directions(factors, data.inputs)
        assert zeros_of(factors, q)[0].sum() == off
        assert list(lone(factors, q)) == [doubted] + [False] * 4

    @pytest.mark.parametrize("seed", range(504, 508))
    def test_it_means_that_without_one_row_the_zeros_determine_less(self, seed: int) -> None:
        b = 10
        data = digit_layer(b, width=60, seed=seed)
        factors = factors_of(data, Backend.NUMPY)
        truth = true_directions(factors, data.inputs)
        q = np.concatenate([truth, mixtures(factors, truth, 20, seed)])
        zeros = zeros_of(factors, q)
        looked_at = zeros.sum(axis=1) >= b - 1 + SPARE
        rests = []
        for mask in zeros[looked_at]:
            rows = to_host(factors.space.U)[mask]
            ranks = [np.linalg.matrix_rank(np.delete(rows, i, axis=0), rtol=1e-6) for i in range(len(rows))]
            rests.append(min(ranks) < b - 1)
        assert {True, False} == set(rests)
        np.testing.assert_array_equal(lone(factors, q)[looked_at], rests)

    @given(st.lists(st.integers(0, 35), max_size=12))
    @settings(max_examples=20)
    def test_directions_are_judged_one_by_one(self, chosen: list[int]) -> None:
        data = digit_layer(16, width=160, seed=2)
        factors = factors_of(data, Backend.NUMPY)
        truth = true_directions(factors, data.inputs)
        q = np.concatenate([truth, mixtures(factors, truth, 20, seed=508)])
        every = lone(factors, q)
        assert 0 < np.count_nonzero(every) < len(every)
        np.testing.assert_array_equal(lone(factors, q[chosen]), every[chosen])

    def test_the_only_input_of_a_batch_needs_no_zeros(self, backend: Backend) -> None:
        factors = factors_of(digit_layer(1, width=WIDTH, seed=509), backend)
        assert not lone(factors, np.ones((1, 1))).any()
