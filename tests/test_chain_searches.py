"""Searches of chains: what each finds on a standard problem, under every library; the graphs of activations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spear_np import Activation
from spear_np.backend.devices import CPU, Device
from spear_np.backend.host import to_host
from spear_np.chain.examine import examine
from spear_np.chain.sets import Open, open_sets
from spear_np.kernels.reflect import Graph, nearest_on_graph
from spear_np.search import ChainSearch, Ends
from spear_np.search.levenberg import CANDIDATE, Levenberg
from spear_np.search.reflect import PATIENCE, Reflect
from spear_np.search.reflections import pieces_of
from tests.backends import Backend, assert_lives_on
from tests.chains import NetworkData, chain_on, digit_network, true_coordinates

SLOPES = np.linspace(0.05, 0.4, 7)
STRAIGHT = {
    "relu": Activation("relu"),
    "relu6": Activation("relu6"),
    "leaky_relu": Activation("leaky_relu", {"negative_slope": 0.2}),
    "prelu": Activation("prelu", {"slope": SLOPES}),
    "hardtanh": Activation("hardtanh", {"low": -0.5, "high": 1.5}),
}


@dataclass(frozen=True)
class Row:
    """What a search finds of a standard problem: 8 digits, layers of 60 units."""

    make: Callable[[], ChainSearch]
    activation: str
    depth: int
    blocks: int
    """Proposals it is given."""
    least: int
    """Different inputs that their ends lead to at least, with none of them taken out."""
    steps: int
    """Most steps that these cost."""


TABLE = {
    "reflect": Row(Reflect, "relu", 1, 8, 3, 8 * 25 * 16),
    "reflect, two layers": Row(Reflect, "relu", 2, 8, 3, 8 * 25 * 16),
    "reflect, three pieces": Row(Reflect, "hardtanh", 1, 20, 3, 20 * 25 * 16),
    "levenberg, smooth": Row(Levenberg, "gelu", 1, 12, 3, 12 * 40),
    "levenberg, two layers": Row(Levenberg, "gelu", 2, 12, 3, 12 * 40),
    "levenberg, kinks": Row(Levenberg, "relu", 1, 24, 2, 24 * 40),
    "levenberg, a block": Row(lambda: Levenberg(8), "tanh", 1, 2, 3, 2 * 8 * 40),
}


@cache
def data_of(activation: str) -> NetworkData:
    return digit_network(
        8, activation=activation, dtype=np.float32, gain=3.0 if activation == "hardtanh" else 2.0
    )


def ends_of(row: Row, left: Open, seed: int = 0) -> list[Ends]:
    search, rng = row.make(), np.random.default_rng(seed)
    memory, ends = search.start(left, rng), []
    with np.errstate(all="ignore"):
        for _ in range(row.blocks):
            ends.append(search.propose(left, memory, rng))
            memory = ends[-1].memory
    return ends


@pytest.mark.parametrize("name", TABLE)
class TestTable:
    def test_it_finds_what_the_table_says(self, name: str, backend: Backend) -> None:
        row = TABLE[name]
        data = data_of(row.activation)
        chain = chain_on(data, backend)
        C = true_coordinates(chain, data)
        found = set()
        ends = ends_of(row, open_sets(chain, row.depth))
        for end in ends:
            assert_lives_on(end.coordinates, backend)
            for number in range(end.coordinates.shape[0]):
                seen = examine(chain, end.coordinates[number : number + 1, :], row.depth)
                if seen.accepted[0]:
                    distance = np.linalg.norm(C - to_host(seen.c), axis=1) / np.linalg.norm(C, axis=1)
                    assert np.min(distance) < 1e-3
                    found.add(int(np.argmin(distance)))
        assert len(found) >= row.least
        assert 0 < sum(end.examined for end in ends) <= row.steps

    def test_ends_lie_in_what_is_left(self, name: str) -> None:
        row = TABLE[name]
        data = data_of(row.activation)
        chain = chain_on(data)
        duals = [layer.dual(data.output_grads[n]) for n, layer in enumerate(chain.layers[: row.depth + 1])]
        left = open_sets(chain, row.depth)
        for number in range(3):
            left = left.without(tuple(dual[number] for dual in duals))
        coordinates = np.concatenate([end.coordinates for end in ends_of(row, left)])
        assert len(coordinates)
        assert coordinates @ chain.layers[0].ones == pytest.approx(1, abs=1e-4)
        assert coordinates @ duals[0][:3].T == pytest.approx(0, abs=1e-4)

    def test_the_same_seed_proposes_the_same(self, name: str) -> None:
        row = TABLE[name]
        left = open_sets(chain_on(data_of(row.activation)), row.depth)
        for one, other in zip(ends_of(row, left, 7), ends_of(row, left, 7), strict=True):
            assert np.array_equal(one.coordinates, other.coordinates)
            assert one.examined == other.examined


class TestReflect:
    def test_starts_out_of_patience_are_drawn_anew(self) -> None:
        left = open_sets(chain_on(data_of("relu")), 1)
        search, rng = Reflect(4), np.random.default_rng(0)
        points = search.start(left, rng)
        old = replace(points, age=np.asarray([0, PATIENCE, 0, PATIENCE]))
        memory = search.propose(left, old, rng).memory
        assert memory.age[1] == memory.age[3] == 0
        fresh = memory.walk.fresh.rows >= 4
        assert np.array_equal(fresh, memory.age == 0)
        assert np.count_nonzero(fresh) == len(memory.walk.fresh.points[0])

    def test_points_under_way_go_on_in_a_smaller_problem(self) -> None:
        data = data_of("relu")
        chain = chain_on(data)
        left = open_sets(chain, 1)
        search, rng = Reflect(4), np.random.default_rng(0)
        memory = search.start(left, rng)
        duals = [layer.dual(data.output_grads[n]) for n, layer in enumerate(chain.layers[:2])]
        smaller = left.without((duals[0][0], duals[1][0]))
        after = search.propose(smaller, memory, rng).memory
        assert np.all((after.age == 25) | (after.age == 0))
        assert after.left is smaller
        assert after.walk.ground.directions[0].shape[1] == left.missing - 2


def test_no_end_of_levenberg_is_far_from_its_equations() -> None:
    chain = chain_on(data_of("gelu"))
    left = open_sets(chain, 1)
    with np.errstate(all="ignore"):
        search, rng = Levenberg(16), np.random.default_rng(1)
        ends = search.propose(left, search.start(left, rng), rng)
    z = ends.coordinates @ chain.layers[0].to_units.T
    a, _ = Activation("gelu").value_and_slope(z)
    rest = a - (a @ chain.layers[1].basis) @ chain.layers[1].basis.T
    assert np.all(np.linalg.norm(rest, axis=1) <= 2 * CANDIDATE * np.linalg.norm(a, axis=1))


def graph_of(activation: Activation, scale: float, device: Device) -> Graph:
    return Graph.on(replace(device, launch=None), pieces_of(activation, [scale]), 1, len(SLOPES))


class TestGraphs:
    @pytest.mark.parametrize("name", STRAIGHT)
    def test_pieces_follow_the_activation(self, name: str) -> None:
        activation, scale = STRAIGHT[name], 1.7
        pieces = pieces_of(activation, [scale])
        z = np.linspace(-8, 8, 401)[:, None] + np.zeros((1, 7))
        value, _ = activation.value_and_slope(z)
        seen = np.zeros(z.shape, dtype=bool)
        for low, high, intercept, slope in zip(
            pieces.low, pieces.high, pieces.intercept, pieces.slope, strict=True
        ):
            inside = (z * scale >= low) & (z * scale <= high)
            line = intercept + slope * z * scale
            assert line[inside] == pytest.approx(scale * value[inside], abs=1e-5)
            seen |= inside
        assert np.all(seen)

    @given(
        st.sampled_from(sorted(STRAIGHT)),
        st.floats(0.3, 3.0),
        st.floats(-9, 9),
        st.floats(-9, 9),
    )
    def test_no_point_of_the_graph_is_nearer(self, name: str, scale: float, z: float, a: float) -> None:
        activation = STRAIGHT[name]
        at = np.full((1, 7), z), np.full((1, 7), a)
        along, across = nearest_on_graph(CPU.xp, graph_of(activation, scale, CPU), *at)
        value, _ = activation.value_and_slope(along / scale)
        assert across == pytest.approx(scale * value, abs=1e-5)  # it lies on the graph
        grid = np.linspace(-30, 30, 3001)[:, None] + np.zeros((1, 7))
        squares = (grid - z) ** 2 + (scale * activation.value_and_slope(grid / scale)[0] - a) ** 2
        own = (along - z) ** 2 + (across - a) ** 2
        assert np.all(own[0] <= np.min(squares, axis=0) + 1e-5)

    def test_under_every_library(self, backend: Backend) -> None:
        rng = np.random.default_rng(0)
        z, a = (4 * rng.standard_normal((5, 7)).astype(np.float32) for _ in range(2))
        for activation in STRAIGHT.values():
            wanted = nearest_on_graph(CPU.xp, graph_of(activation, 1.3, CPU), z, a)
            graph = graph_of(activation, 1.3, backend.device)
            found = nearest_on_graph(backend.xp, graph, backend.array(z), backend.array(a))
            for one, other in zip(found, wanted, strict=True):
                host: Any = backend.host(one)
                assert host.dtype == np.float32
                assert host == pytest.approx(np.asarray(other), abs=1e-6)
