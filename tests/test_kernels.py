"""Each kernel against its array-code twin: the CUDA source built by a host compiler here, and on a card where there is one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import spear_np
from spear_np import LayerGradients
from spear_np.backend.devices import CPU, Device
from spear_np.backend.host import to_host
from spear_np.chain.sets import open_sets
from spear_np.directions.pool import Pool
from spear_np.factors.behind import Behind, with_layer_behind
from spear_np.factors.factorize import Factors, factorize
from spear_np.factors.signs import sign_model
from spear_np.kernels import columns, descent, reflect
from spear_np.kernels.sampling import (
    KEPT_VECTORS,
    LARGEST_KERNEL,
    Draw,
    Rows,
    Sample,
    draw_subsets,
    draw_tables,
    null_vectors_of,
    sample,
)
from spear_np.kernels.source import kernel_names, source
from spear_np.search.blocks import Settings
from spear_np.search.columns import Columns
from spear_np.search.descent import Descent
from spear_np.search.reflect import ROUND_STEPS, Reflect
from spear_np.search.reflections import walk_on
from tests.backends import Backend
from tests.cards import Card
from tests.chains import assert_whole, chain_on, digit_network
from tests.kernels_on_host import MISSING, HostKernels, build, declared
from tests.layers import digit_layer, factors_of, true_directions
from tests.networks import Floats

SIZES = (1, 2, 31, 32, 33, 64, 257)
LANES = (1, 4)


@dataclass(frozen=True)
class Runner:
    """Where kernels run."""

    device: Device
    launched: Callable[[], list[str]]
    """Names of the kernels that ran so far; on a card nobody counts."""

    def array(self, values: Any) -> Any:
        """Copy to the device, dtype kept; C-contiguous."""
        host = np.ascontiguousarray(values)
        return self.device.xp.asarray(host.copy(), device=self.device.handle)


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    if MISSING is not None:
        pytest.skip(MISSING)
    folder = tmp_path_factory.mktemp("kernels")
    return {lanes: build(folder, lanes) for lanes in LANES}


@pytest.fixture(
    params=[*LANES, pytest.param("card", marks=pytest.mark.gpu)], ids=lambda lanes: f"lanes={lanes}"
)
def runner(request: pytest.FixtureRequest) -> Runner:
    if request.param == "card":
        if Backend.CUPY.missing is not None:
            pytest.skip(Backend.CUPY.missing)
        return Runner(Backend.CUPY.device, list)
    kernels = HostKernels(request.getfixturevalue("libraries")[request.param], request.param)
    return Runner(kernels.device, lambda: kernels.launches)


def ran(runner: Runner, name: str) -> bool:
    return runner.device.name != "cpu" or name in runner.launched()


def test_kernels_are_found_and_their_names_are_their_own() -> None:
    names = kernel_names()
    assert len(names) == len(set(names)) == 8
    assert source().count("__global__") == len(names)
    for name in names:
        assert declared(name)


def side_by_side(parts: list[Floats]) -> Floats:
    """(s, k, …): arrays of one k, filled up with zeros."""
    stack = np.zeros((len(parts), len(parts[0]), max(part.shape[1] for part in parts)), dtype=np.float32)
    for place, part in enumerate(parts):
        stack[place, :, : part.shape[1]] = part
    return stack


def each(*numbers: float) -> Floats:
    """(s, 1, 1): what problems have for themselves."""
    return np.asarray(numbers, dtype=np.float32)[:, None, None]


class TestDescent:
    """One problem, and three of which two are filled up: the numbers of each stay its own."""

    def problems(self, size: int, k: int, s: int, seed: int = 0) -> list[Floats]:
        rng = np.random.default_rng(size + 1000 * seed)
        return [rng.standard_normal((k, max(1, size - 3 * place))).astype(np.float32) for place in range(s)]

    @pytest.mark.parametrize("l", SIZES)
    @pytest.mark.parametrize(("s", "k"), [(1, 1), (1, 5), (3, 2)])
    @pytest.mark.parametrize("concave", [False, True])
    @pytest.mark.parametrize("weighted", [False, True])
    def test_pull(self, runner: Runner, s: int, k: int, l: int, *, concave: bool, weighted: bool) -> None:
        parts = self.problems(l, k, s)
        parts[0][0, 1:2] = 0
        weights = [np.abs(one) for one in self.problems(l, k, s, seed=1)] if weighted else None
        widths = each(*(0.3 / part.shape[1] for part in parts)) if concave else None
        found = to_host(
            descent.pull(
                runner.device,
                runner.array(side_by_side(parts)),
                None if weights is None else runner.array(side_by_side(weights)),
                None if widths is None else runner.array(widths),
            )
        )
        for place, part in enumerate(parts):
            alone = descent.pull(
                CPU,
                part[None].copy(),
                None if weights is None else weights[place][None],
                None if widths is None else widths[place : place + 1],
            )
            np.testing.assert_allclose(found[place, :, : part.shape[1]], alone[0], rtol=4e-5)
            np.testing.assert_array_equal(found[place, :, part.shape[1] :], 0)
        assert ran(runner, "descent_pull")

    @pytest.mark.parametrize("l", SIZES)
    @pytest.mark.parametrize("s", [1, 3])
    def test_soft_pattern(self, runner: Runner, s: int, l: int) -> None:
        parts, thresholds = self.problems(l, 3, s), each(0.4, 0.8, 0.5)[:s]
        counts = each(*(part.shape[1] for part in parts))
        there = [runner.array(one) for one in (side_by_side(parts), counts, thresholds)]
        found = to_host(descent.soft_pattern(runner.device, *there))
        for place, part in enumerate(parts):
            one = slice(place, place + 1)
            alone = descent.soft_pattern(CPU, part[None], counts[one], thresholds[one])[0]
            np.testing.assert_allclose(found[place, :, : part.shape[1]], alone, atol=2e-5)
            assert l < 31 or np.min(alone) < 0 < np.max(alone) == 1
        assert ran(runner, "descent_pattern")

    @pytest.mark.parametrize("l", SIZES)
    @pytest.mark.parametrize("sharpness", [(0.0,), (4.0,), (1000.0,), (4.0, 0.0, 1000.0)])
    def test_sign_weights(self, runner: Runner, l: int, sharpness: tuple[float, ...]) -> None:
        parts, sharp = self.problems(l, 3, len(sharpness)), each(*sharpness)
        counts = each(*(part.shape[1] for part in parts))
        there = [runner.array(one) for one in (side_by_side(parts), counts, sharp)]
        found = to_host(descent.sign_weights(runner.device, *there))
        assert np.all(np.isfinite(found))
        for place, part in enumerate(parts):
            one = slice(place, place + 1)
            alone = descent.sign_weights(CPU, part[None].copy(), counts[one], sharp[one])[0]
            np.testing.assert_allclose(found[place, :, : part.shape[1]], alone, rtol=1e-3, atol=1e-6)
        assert ran(runner, "descent_weights")

    @pytest.mark.parametrize("b", SIZES)
    @pytest.mark.parametrize(("s", "k"), [(1, 1), (1, 5), (3, 2)])
    def test_move(self, runner: Runner, s: int, k: int, b: int) -> None:
        points = [one / np.linalg.norm(one, axis=1, keepdims=True) for one in self.problems(b, k, s)]
        slopes, lengths = self.problems(b, k, s, seed=1), each(0.1, 0.3, 0.001)[:s]
        there = [runner.array(one) for one in (side_by_side(points), side_by_side(slopes), lengths)]
        found = to_host(descent.move(runner.device, *there))
        np.testing.assert_allclose(np.linalg.norm(found, axis=2), 1, rtol=1e-5)
        for place, (point, slope) in enumerate(zip(points, slopes, strict=True)):
            size = point.shape[1]
            alone = descent.move(CPU, point[None].copy(), slope[None].copy(), lengths[place : place + 1])[0]
            np.testing.assert_allclose(found[place, :, :size], alone, atol=1e-5 if size > 1 else 2)
            np.testing.assert_array_equal(found[place, :, size:], 0)
        assert ran(runner, "descent_move")

    def test_no_starts_are_no_launch(self, runner: Runner) -> None:
        nothing, one = runner.array(np.empty((1, 0, 7), dtype=np.float32)), runner.array(each(1.0))
        assert descent.pull(runner.device, nothing, None, one).shape == (1, 0, 7)
        assert descent.soft_pattern(runner.device, nothing, one, one).shape == (1, 0, 7)
        assert descent.sign_weights(runner.device, nothing, one, one).shape == (1, 0, 7)
        assert descent.move(runner.device, nothing, nothing, one).shape == (1, 0, 7)
        assert not runner.launched()


PIECES = {
    "relu": reflect.Pieces((-np.inf, 0.0), (0.0, np.inf), (0.0, 0.0), (0.0, 1.0)),
    "relu6": reflect.Pieces((-np.inf, 0.0, 2.0), (0.0, 2.0, np.inf), (0.0, 0.0, 2.0), (0.0, 1.0, 0.0)),
    "leaky": reflect.Pieces((-np.inf, 0.0), (0.0, np.inf), (0.0, 0.0), (0.2, 1.0)),
}


def chains_of(shape: tuple[int, ...]) -> int:
    return shape[0] if len(shape) == 3 else 1


POINTS = ((1, 1), (3, 33), (7, 257), (1, 3, 33), (4, 1, 1), (3, 5, 129))
"""Shapes: points and units of one chain, chains before them of several."""


class TestReflections:
    @pytest.mark.parametrize("name", PIECES)
    @pytest.mark.parametrize("shape", POINTS)
    def test_graph(self, runner: Runner, name: str, shape: tuple[int, ...]) -> None:
        rng = np.random.default_rng(shape)
        z, a = (3 * rng.standard_normal(shape).astype(np.float32) for _ in range(2))
        graphs = [
            reflect.Graph.on(device, PIECES[name], chains_of(shape), shape[-1])
            for device in (CPU, runner.device)
        ]
        wanted = reflect.reflected(CPU, graphs[0], z, a)
        found = reflect.reflected(runner.device, graphs[1], runner.array(z), runner.array(a))
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_allclose(to_host(one), other, atol=1e-5)
        assert ran(runner, "reflect_graph")

    def test_a_slope_for_each_unit_and_a_scale_for_each_chain(self, runner: Runner) -> None:
        rng = np.random.default_rng(3)
        z, a = (3 * rng.standard_normal((3, 4, 70)).astype(np.float32) for _ in range(2))
        slopes, scales = rng.uniform(0.05, 0.9, 70), np.asarray([0.5, 1.0, 3.0])
        pieces = replace(PIECES["relu6"], slope=(slopes, 1.0, 0.0))
        pieces = replace(
            pieces,
            low=(-np.inf, 0.0, 2 * scales),
            high=(0.0, 2 * scales, np.inf),
            intercept=(0.0, 0.0, 2 * scales),
        )
        graphs = [reflect.Graph.on(device, pieces, 3, 70) for device in (CPU, runner.device)]
        wanted = reflect.reflected(CPU, graphs[0], z, a)
        found = reflect.reflected(runner.device, graphs[1], runner.array(z), runner.array(a))
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_allclose(to_host(one), other, atol=1e-5)
        for place, scale in enumerate(scales):
            own = replace(
                pieces,
                low=(-np.inf, 0.0, 2 * scale),
                high=(0.0, 2 * scale, np.inf),
                intercept=(0.0, 0.0, 2 * scale),
            )
            alone = reflect.reflected(CPU, reflect.Graph.on(CPU, own, 1, 70), z[place], a[place])
            for one, other in zip(wanted, alone, strict=True):
                np.testing.assert_array_equal(one[place], other)

    @pytest.mark.parametrize("shifted", [False, True])
    @pytest.mark.parametrize("shape", POINTS)
    def test_relaxed_move(self, runner: Runner, shape: tuple[int, ...], *, shifted: bool) -> None:
        rng = np.random.default_rng(shape)
        v, onto, near = (rng.standard_normal(shape).astype(np.float32) for _ in range(3))
        of_each = (shape[0], 1, shape[2]) if len(shape) == 3 else shape[-1:]
        offset = rng.standard_normal(of_each).astype(np.float32) if shifted else None
        wanted = reflect.relaxed(CPU, v.copy(), onto.copy(), offset, near, 0.7)
        found = reflect.relaxed(
            runner.device,
            runner.array(v),
            runner.array(onto),
            None if offset is None else runner.array(offset),
            runner.array(near),
            0.7,
        )
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_allclose(to_host(one), other, atol=1e-5)
        assert ran(runner, "reflect_move")

    @pytest.mark.parametrize(("k", "m"), [(1, 1), (3, 33), (7, 257)])
    def test_sides(self, runner: Runner, k: int, m: int) -> None:
        rng = np.random.default_rng(m)
        z, d, e = (rng.standard_normal((k, m)).astype(np.float32) for _ in range(3))
        wanted = columns.nearest_side(CPU, z, d, e, 0.75)
        found = columns.nearest_side(runner.device, runner.array(z), runner.array(d), runner.array(e), 0.75)
        for one, other in zip((*found.near, *found.turned), (*wanted.near, *wanted.turned), strict=True):
            np.testing.assert_allclose(to_host(one), other, atol=1e-5)
        assert ran(runner, "reflect_sides")

    def test_no_points_are_no_launch(self, runner: Runner) -> None:
        nothing = runner.array(np.empty((0, 7), dtype=np.float32))
        graph = reflect.Graph.on(runner.device, PIECES["relu"], 1, 7)
        assert reflect.reflected(runner.device, graph, nothing, nothing)[0].shape == (0, 7)
        assert reflect.relaxed(runner.device, nothing, nothing, None, nothing, 0.7)[0].shape == (0, 7)
        assert columns.nearest_side(runner.device, nothing, nothing, nothing, 0.75).near[0].shape == (0, 7)
        assert not runner.launched()


def planted(l: int, r: int, seed: int) -> tuple[Rows, Floats]:
    """Rows of which three in four are orthogonal to a direction (r,), and the others far from it; also the direction."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((l, r))
    hidden = rng.standard_normal(r)
    hidden /= np.linalg.norm(hidden)
    rows -= np.outer(rows @ hidden, hidden)
    rows[3::4] += 2 * hidden
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-300)
    noise = np.triu(rng.standard_normal((r, r)))
    unit, noise = rows.astype(np.float32), noise.astype(np.float32)
    glanced = rng.choice(l, min(32, l), replace=False)
    return Rows(unit, glanced, noise, amplification=2e-3, narrowest=1e-3, widest=0.02), hidden


def sampled(runner: Runner, rows: Rows, tables: Any, count: int) -> tuple[Sample, Sample]:
    """What the kernel finds, and what array code does."""
    draw = Draw(rows, tables, 11, 1000, count)
    return sample(runner.device, [on(runner, draw)])[0], sample(CPU, [draw])[0]


def on(runner: Runner, draw: Draw) -> Draw:
    there = replace(draw.rows, unit=runner.array(draw.rows.unit), noise=runner.array(draw.rows.noise))
    return replace(draw, rows=there)


def same_sample(one: Sample, other: Sample, *, but: int = 3) -> None:
    """Both found the same vectors, but for a few that the rounding of float32 decides."""
    assert len(set(one.subsets) ^ set(other.subsets)) <= but
    both = np.intersect1d(one.subsets, other.subsets)
    mine, theirs = (found.vectors[np.argsort(found.subsets)] for found in (one, other))
    mine = mine[np.isin(np.sort(one.subsets), both)]
    theirs = theirs[np.isin(np.sort(other.subsets), both)]
    assert mine.shape == theirs.shape
    assert np.all(np.abs(np.vecdot(mine, theirs)) > 1 - 1e-4)


class TestSampling:
    @pytest.mark.parametrize("r", [2, 3, 16, 32, 33, 64])
    @pytest.mark.parametrize("weighted", [False, True])
    def test_the_kernel_finds_what_array_code_finds(self, runner: Runner, r: int, *, weighted: bool) -> None:
        l = 4 * r + 3
        rows, hidden = planted(l, r, seed=r)
        # Rows orthogonal to the direction come first, so that it is found however many are drawn.
        preferred = np.where(np.abs(rows.unit @ hidden) < 1e-3, 8.0, 0.0)
        further = np.random.default_rng(1).standard_normal((3, l)) if weighted else np.zeros((1, l))
        tables = draw_tables(preferred + further, r - 1)
        kernel, twin = sampled(runner, rows, tables, 60)
        assert ran(runner, "sample")
        of_twin = dict(zip(twin.subsets, range(len(twin.subsets)), strict=True))
        assert len(set(kernel.subsets) ^ set(of_twin)) <= 3  # decided by the rounding of float32
        hits = 0
        for vector, zeros, subset in zip(kernel.vectors, kernel.zeros, kernel.subsets, strict=True):
            if subset not in of_twin:
                continue
            place = of_twin[subset]
            assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
            assert abs(vector @ twin.vectors[place]) > 1 - 1e-4
            assert abs(zeros - twin.zeros[place]) <= 2
            if abs(vector @ hidden) > 1 - 1e-6:
                hits += 1
                assert zeros >= l * 3 // 4
        assert hits > 20
        assert np.all(np.diff(kernel.zeros) <= 0)
        assert set(kernel.subsets) <= set(range(1000, 1060))

    def test_draws_of_other_layers_are_examined_beside_each_other(self, runner: Runner) -> None:
        draws = []
        for place, (l, r, groups, count) in enumerate(
            ((40, 6, 1, 50), (23, 2, 3, 7), (90, 17, 2, 64), (12, 6, 1, 1), (30, 1, 1, 5))
        ):
            rows, hidden = planted(l, r, seed=place)
            preferred = np.where(np.abs(rows.unit @ hidden) < 1e-3, 8.0, 0.0)
            further = np.random.default_rng(place).standard_normal((groups, l))
            bounds = replace(rows, narrowest=1e-3 / (place + 1))
            draws.append(
                Draw(bounds, draw_tables(preferred + further, r - 1), 11 + place, 100 * place, count)
            )
        found = sample(runner.device, [on(runner, draw) for draw in draws])
        for draw, one in zip(draws, found, strict=True):
            alone = sample(CPU, [draw])[0]
            assert len(alone.vectors) > 0
            same_sample(one, alone, but=2)
            assert all(draw.first <= subset < draw.first + draw.count for subset in one.subsets)
        assert runner.device.name != "cpu" or runner.launched() == ["sample"]
        assert sample(runner.device, []) == []

    def test_large_layers_beside_others_go_to_array_code(self, runner: Runner) -> None:
        draws = []
        for r in (LARGEST_KERNEL + 1, 5):
            rows, hidden = planted(4 * r, r, seed=5)
            preferred = np.where(np.abs(rows.unit @ hidden) < 1e-3, 8.0, 0.0)
            draws.append(Draw(rows, draw_tables(preferred[None, :], r - 1), 3, 0, 10))
        found = sample(runner.device, [on(runner, draw) for draw in draws])
        for draw, one in zip(draws, found, strict=True):
            same_sample(one, sample(CPU, [draw])[0])
            assert one.vectors.shape[1] == draw.rows.unit.shape[1]

    def test_few_zeros_beyond_chance_are_enough(self, runner: Runner) -> None:
        # Twenty of two hundred rows: more than chance brings, fewer than are asked for at most.
        rng = np.random.default_rng(8)
        l, r = 200, 6
        rows, hidden = planted(l, r, seed=8)
        unit = rng.standard_normal((l, r)).astype(np.float32)
        unit[:20] = rows.unit[np.abs(rows.unit @ hidden) < 1e-3][:20]
        unit /= np.linalg.norm(unit, axis=1, keepdims=True)
        few = replace(rows, unit=unit, glanced=np.arange(32))
        assert few.spare > 20
        tables = draw_tables(np.where(np.arange(l) < 20, 9.0, 0.0)[None, :], r - 1)
        for found in sampled(runner, few, tables, 40):
            hits = np.abs(found.vectors @ hidden) > 1 - 1e-5
            assert np.count_nonzero(hits) > 20

    def test_one_coordinate_has_one_direction(self, runner: Runner) -> None:
        rows = Rows(np.zeros((9, 1), np.float32), np.arange(9), np.ones((1, 1), np.float32), 1e-6, 1e-4, 0.02)
        for found in sampled(runner, rows, draw_tables(np.zeros((2, 9)), 0), 20):
            assert len(found.vectors) == 20
            np.testing.assert_array_equal(found.vectors, 1)
            np.testing.assert_array_equal(found.zeros, 9)

    def test_rows_that_depend_on_each_other_give_nothing(self, runner: Runner) -> None:
        rows, _ = planted(40, 6, seed=4)
        rows.unit[:] = rows.unit[:1]
        for found in sampled(runner, rows, draw_tables(np.zeros((1, 40)), 5), 30):
            assert len(found.vectors) == 0

    def test_rows_that_are_no_numbers_give_nothing(self, runner: Runner) -> None:
        rows, _ = planted(40, 6, seed=4)
        rows.unit[:] = np.nan
        for found in sampled(runner, rows, draw_tables(np.zeros((1, 40)), 5), 30):
            assert len(found.vectors) == 0

    def test_more_columns_than_the_kernel_takes_go_to_array_code(self, runner: Runner) -> None:
        r = LARGEST_KERNEL + 1
        rows, hidden = planted(4 * r, r, seed=5)
        tables = draw_tables(np.where(np.abs(rows.unit @ hidden) < 1e-3, 8.0, 0.0)[None, :], r - 1)
        kernel, twin = sampled(runner, rows, tables, 10)
        assert "sample" not in runner.launched()
        np.testing.assert_array_equal(kernel.subsets, twin.subsets)
        assert len(twin.subsets) > 3

    @pytest.mark.parametrize("r", [LARGEST_KERNEL, LARGEST_KERNEL + 1])
    def test_null_vectors_are_annulled_and_dependent_rows_give_none(self, backend: Backend, r: int) -> None:
        rng = np.random.default_rng(9)
        unit = rng.standard_normal((3 * r, r)).astype(np.float32)
        unit /= np.linalg.norm(unit, axis=1, keepdims=True)
        picks = np.stack([rng.choice(3 * r, r - 1, replace=False) for _ in range(6)])
        picks[2, 0] = picks[2, 1]
        device = backend.device
        vectors = backend.host(null_vectors_of(device, device.float32(unit), picks))
        length = np.linalg.norm(vectors, axis=1)
        left = np.abs(np.einsum("kij,kj->ki", unit[picks], vectors)).max(axis=1)
        assert np.all(left < 1e-3)
        assert np.all((np.abs(length - 1) < 1e-5) | (length == 0))
        assert np.count_nonzero(length) >= 4

    def test_nothing_is_lost_where_more_is_kept_than_fits(
        self, runner: Runner, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rows = Rows(np.zeros((9, 1), np.float32), np.arange(9), np.ones((1, 1), np.float32), 1e-6, 1e-4, 0.02)
        assert KEPT_VECTORS >= 1000
        monkeypatch.setattr("spear_np.kernels.sampling.KEPT_VECTORS", 16)
        found, _ = sampled(runner, rows, draw_tables(np.zeros((1, 9)), 0), 100)
        np.testing.assert_array_equal(found.subsets, np.arange(1000, 1100))


class TestDraws:
    @pytest.mark.parametrize("weight", [0.0, 1.0, 30.0, 700.0])
    @pytest.mark.parametrize(("l", "n"), [(1, 0), (2, 1), (7, 6), (40, 15), (90, 63)])
    def test_the_kernel_draws_what_the_host_draws(
        self, runner: Runner, l: int, n: int, weight: float, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # The vectors tell which rows were drawn: those that they annul. All of them are kept.
        rng = np.random.default_rng(l)
        unit = rng.standard_normal((l, n + 1)).astype(np.float32)
        unit /= np.linalg.norm(unit, axis=1, keepdims=True)
        tables = draw_tables(weight * rng.standard_normal((2, l)), n)
        monkeypatch.setattr("spear_np.kernels.sampling.SMALL_PIVOT", 1e-6)
        rows = Rows(unit, np.arange(min(32, l)), np.eye(n + 1, dtype=np.float32), 1.0, 2.0, 2.0)
        kernel, twin = sampled(runner, rows, tables, 40)
        both = np.intersect1d(kernel.subsets, twin.subsets)
        assert len(both) >= 30
        for subset in both:
            one = kernel.vectors[kernel.subsets == subset][0]
            other = twin.vectors[twin.subsets == subset][0]
            picks = draw_subsets(tables, l, n, np.asarray([subset]), 11)[0]
            assert len(set(picks)) == n
            assert np.all(np.abs(unit[picks] @ one) < 1e-2)
            assert abs(one @ other) > 1 - 1e-3


class TestWholeSearches:
    """Everything around the kernels, with the kernels in it."""

    @pytest.fixture
    def kernels(self, libraries: dict[int, Path], monkeypatch: pytest.MonkeyPatch) -> HostKernels:
        kernels = HostKernels(libraries[1], 1)
        monkeypatch.setattr(sys.modules["spear_np.invert"], "device_for", lambda *_: kernels.device)
        return kernels

    @pytest.mark.parametrize("method", ["sampling", "descent"])
    def test_a_layer_is_inverted(self, kernels: HostKernels, method: str) -> None:
        data = digit_layer(8, width=100, seed=3)
        result = spear_np.invert(
            data.weight_grad, data.bias_grad, weight=data.weight, bias=data.bias, method=method
        )
        assert result.status == "exact"
        ran = set(kernels.launches)
        wanted = {"descent_pull", "descent_pattern", "descent_weights", "descent_move"}
        assert ran == ({"sample"} if method == "sampling" else wanted)

    @pytest.mark.parametrize("method", ["sampling", "descent"])
    def test_many_layers_are_inverted_together(
        self, kernels: HostKernels, method: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        card = Card(CPU.xp, CPU.handle, "gpu:0", kernels)
        monkeypatch.setattr(sys.modules["spear_np.many"], "device_for", lambda *_: card)
        batches = [
            digit_layer(b, width=width, seed=b) for b, width in ((8, 100), (5, 70), (8, 100), (6, 100))
        ]
        layers = [LayerGradients(one.weight_grad, one.bias_grad, one.weight, one.bias) for one in batches]
        found = spear_np.invert_many(layers, method=method)
        assert [one.status for one in found] == ["exact"] * 4
        for one, batch in zip(found, batches, strict=True):
            for image in batch.inputs:
                assert np.min(np.linalg.norm(one.inputs - image, axis=1)) < 1e-3 * np.linalg.norm(image)
        rounds = sum(len(one.history) for one in found)
        if method == "descent":
            assert Settings.steps <= kernels.launches.count("descent_move") < rounds * Settings.steps
        else:
            assert 1 <= kernels.launches.count("sample") <= rounds

    @pytest.mark.parametrize("activation", ["relu", "relu6"])
    def test_a_chain_is_inverted(self, kernels: HostKernels, activation: str) -> None:
        data = digit_network(8, activation=activation, dtype=np.float32)
        assert_whole(spear_np.invert_chain(data.layers, method="chain"), data)
        assert {"reflect_graph", "reflect_move"} <= set(kernels.launches)

    def test_many_chains_are_inverted_together(
        self, kernels: HostKernels, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        card = Card(CPU.xp, CPU.handle, "gpu:0", kernels)
        monkeypatch.setattr(sys.modules["spear_np.many"], "device_for", lambda *_: card)
        networks = [
            digit_network(b, widths=widths, seed=b, dtype=np.float32)
            for b, widths in ((8, (60, 60)), (5, (40, 70)), (7, (70, 50)))
        ]
        found = spear_np.invert_many([spear_np.LayerChain(data.layers) for data in networks], method="chain")
        for answer, data in zip(found, networks, strict=True):
            assert_whole(answer, data)
        rounds = sum(len(answer.history) for answer in found)
        assert kernels.launches.count("reflect_move") == 2 * kernels.launches.count("reflect_graph")
        assert ROUND_STEPS <= kernels.launches.count("reflect_graph") < rounds * ROUND_STEPS

    def test_a_step_of_several_chains_is_one_launch(self, kernels: HostKernels) -> None:
        walks = []
        for seed, (b, widths) in enumerate(((8, (60, 60)), (5, (40, 70)), (7, (70, 50)))):
            data = digit_network(b, widths=widths, seed=seed, activation="relu6", dtype=np.float32)
            search, left = Reflect(4 + seed), open_sets(chain_on(data), 1)
            walks.append(replace(search.start(left, np.random.default_rng(seed)).walk, steps=3))
        together = walk_on(kernels.device, walks)
        assert sorted(kernels.launches) == ["reflect_graph"] * 3 + ["reflect_move"] * 6
        for walk, one in zip(walks, together, strict=True):
            (wanted,) = walk_on(CPU, [walk])
            for part, plain, before in zip(one.walk.points, wanted.walk.points, walk.points, strict=True):
                np.testing.assert_allclose(part, plain, atol=1e-4)
                assert not np.allclose(part, before, atol=1e-2)  # nothing is written where it came from

    def test_columns_are_found(self, kernels: HostKernels) -> None:
        data = digit_network(24, widths=(80,))
        first, last = data.layers
        behind = Behind(last, last=True)
        factors = factorize(first, kernels.device)
        assert isinstance(factors, Factors)
        factors = replace(factors, space=with_layer_behind(factors.space, behind))
        search = Columns.prepare(factors, sign_model(factors), behind)
        assert search is not None
        pool = Pool.empty(24, factors.space.U.shape[0])
        proposals = search.propose(factors.space, pool, np.random.default_rng(0))
        assert proposals.candidates.shape[0] >= 5
        assert {"reflect_sides", "reflect_move"} <= set(kernels.launches)

    def test_the_descent_finds_as_much_as_in_array_code(self, kernels: HostKernels) -> None:
        data = digit_layer(12, width=200, seed=3)
        factors = factors_of(data, Backend.NUMPY)
        truth = true_directions(factors, data.inputs)
        search = Descent.prepare(factors.space, sign_model(factors))
        pool = Pool.empty(12, factors.space.U.shape[0])
        found = []
        for space in (factors.space, replace(factors.space, device=kernels.device)):
            q = search.propose(space, pool, np.random.default_rng(5)).candidates
            cosines = np.abs(q @ truth.T) / np.linalg.norm(q, axis=1)[:, None]
            found.append(np.sum(np.max(cosines, axis=0) > 0.9999))
        assert kernels.launches
        # Rounding of float32 decides where some starts go.
        assert found[0] >= 6
        assert abs(found[1] - found[0]) <= 2


class TestWeightedDraws:
    """The law of `draw_subsets`; that the kernel draws the same is said above."""

    def test_equal_weights_draw_every_subset_equally_often(self) -> None:
        tables = draw_tables(np.zeros((1, 5)), 2)
        subsets = draw_subsets(tables, 5, 2, np.arange(40_000), seed=61)
        names = np.sort(subsets, axis=1) @ [5, 1]
        _, counts = np.unique(names, return_counts=True)
        assert len(counts) == 10
        # Five standard deviations of a count of 40,000 draws that hits with probability 1/10.
        assert np.all(np.abs(counts - 4000) < 5 * np.sqrt(40_000 * 0.1 * 0.9))

    def test_further_rows_are_drawn_from_the_weights_that_are_left(self) -> None:
        weights = np.asarray([1.0, 2.0, 5.0])
        tables = draw_tables(np.log(weights)[None, :], 2)
        subsets = draw_subsets(tables, 3, 2, np.arange(40_000), seed=63)
        drawn = np.bincount(tables[0], minlength=3) / tables.shape[1]
        # P(without i) = Σ over the orders (j, k) of p_j · p_k / (1 - p_j), by the weights in the table.
        wanted = [
            sum(
                drawn[j] * drawn[k] / (1 - drawn[j])
                for j in range(3)
                for k in range(3)
                if len({i, j, k}) == 3
            )
            for i in range(3)
        ]
        share = np.bincount(3 - np.sum(subsets, axis=1), minlength=3) / 40_000
        np.testing.assert_allclose(share, wanted, atol=5 * np.sqrt(0.25 / 40_000))

    def test_tables_have_slots_in_proportion(self) -> None:
        rng = np.random.default_rng(7)
        log_weights = rng.standard_normal((3, 200))
        tables = draw_tables(log_weights, 15)
        for table, logs in zip(tables, log_weights, strict=True):
            share = np.bincount(table, minlength=200) / len(table)
            np.testing.assert_allclose(share, np.exp(logs) / np.sum(np.exp(logs)), atol=1 / len(table))

    def test_heavy_rows_are_in_nearly_every_subset_and_cost_few_draws(self) -> None:
        # Eight rows outweigh all others by far, and these have weights of their own.
        logs = np.concatenate([np.full(8, 90.0), np.linspace(0, 3, 192)])
        tables = draw_tables(logs[None, :], 15)
        subsets = draw_subsets(tables, 200, 15, np.arange(4000), seed=5)
        assert np.mean([len(set(subset) & set(range(8))) for subset in subsets]) > 7.9
        others = np.bincount(subsets[subsets >= 8], minlength=200)
        assert np.sum(others[104:]) > 2 * np.sum(others[8:104])
        # A draw hits what is not yet taken often enough.
        assert np.sum(tables[0] >= 8) > tables.shape[1] / 20

    @pytest.mark.parametrize(("rows", "size"), [(1, 0), (1, 1), (2, 1), (5, 5), (9, 8), (300, 63)])
    def test_a_subset_has_no_row_twice(self, rows: int, size: int) -> None:
        logs = 200 * np.random.default_rng(rows).standard_normal((2, rows))
        subsets = draw_subsets(draw_tables(logs, size), rows, size, np.arange(50), seed=1)
        assert subsets.shape == (50, size)
        for subset in subsets:
            assert len(set(subset)) == size
            assert all(0 <= row < rows for row in subset)
