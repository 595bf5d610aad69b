"""Candidates of chains on a card: a stack sees of each what it would see alone, and nothing more is let through."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest

from spear_np.backend.devices import CPU, Device
from spear_np.backend.host import to_host
from spear_np.chain import polish as polishing
from spear_np.chain import refine as refining
from spear_np.chain.equations import WELL_HELD, forward, linearised, system
from spear_np.chain.examine import examine
from spear_np.chain.layers import Chain
from spear_np.chain.polish import LINEARISATIONS, polish
from spear_np.chain.refine import refine
from spear_np.network import judge as judging
from spear_np.network.judge import Judged, few_slopes, judge, judged_all
from spear_np.network.problem import ChainProblem
from spear_np.network.read import Linked, read_chain
from tests.backends import Backend
from tests.cards import strict_card
from tests.chains import NetworkData, chain_on, digit_network, true_coordinates
from tests.networks import Floats

CASES: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "relu": ("relu", np.float32, {"touching": 2}),
    "relu, float64": ("relu", np.float64, {}),
    "leaky_relu": ("leaky_relu", np.float32, {"touching": 2}),
    "few units on": ("relu", np.float32, {"share_on": 0.2}),
    "gelu": ("gelu", np.float32, {}),
    "sigmoid": ("sigmoid", np.float32, {"gain": 1.0}),
}
B = 8


@cache
def case(name: str) -> tuple[NetworkData, Chain, Chain]:
    """A network, and its chain on the host and on a card."""
    activation, dtype, options = CASES[name]
    data = digit_network(B, activation=activation, dtype=dtype, **({"gain": 2.0} | options))
    there = read_chain(data.on(Backend.STRICT), strict_card())
    assert isinstance(there, Linked)
    return data, chain_on(data), there.chain


def candidates(chain: Chain, data: NetworkData) -> Floats:
    """(k, b): inputs, what is near and far, mixtures, runaways, one that stays behind, the kinks of units from either side, duplicates."""
    C = true_coordinates(chain, data)
    mixed = np.random.default_rng(0).dirichlet(np.ones(B), B) @ C
    first = chain.layers[0]
    toward = np.linalg.pinv(first.to_units[:2]) @ np.ones(2)
    beside = C[:1] + np.outer([1e-4, -1e-4, 1e-6, -1e-6], toward)
    return np.concatenate(
        [
            C,
            0.999 * C + 0.001 * mixed,
            0.7 * C[:4] + 0.3 * mixed[:4],
            (C[:4] + C[1:5]) / 2,
            np.zeros((1, B)),
            np.full((1, B), np.nan),
            np.full((1, B), np.inf),
            np.full((1, B), 1e200),
            beside / (beside @ first.ones)[:, None],
            C[:2],
        ]
    )


def assert_same(one: Judged, other: Judged) -> None:
    """Fail unless two judgements are one but for rounding."""
    assert (one.accepted, one.fits_ahead) == (other.accepted, other.fits_ahead)
    here, there = one.seen, other.seen
    assert (here.refined, here.by_duals) == (there.refined, there.by_duals)
    if not one.accepted:
        return
    for name in ("c", "q", "output_grad"):
        np.testing.assert_allclose(to_host(getattr(there, name)), getattr(here, name), rtol=1e-9, atol=1e-11)
    for mine, its in zip(here.duals, there.duals, strict=True):
        np.testing.assert_allclose(to_host(its), mine, rtol=1e-9, atol=1e-9)
    for name in ("deviation", "dual_deviation"):
        np.testing.assert_allclose(to_host(getattr(there, name)), getattr(here, name), rtol=1e-6)
    for name in ("forward_residual", "backward_residual", "along"):  # of float64 gradients they are rounding
        np.testing.assert_allclose(getattr(there, name), getattr(here, name), rtol=1e-3, atol=0.5)


def alone(chain: Chain, c: Floats) -> list[Judged]:
    """What is seen of each of `c` (k, b) without any other."""
    return [judge(chain, chain.device.float64(c[row : row + 1]), 1)[0] for row in range(len(c))]


@pytest.fixture
def stacks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many candidates were looked at together, each time."""
    counted: list[int] = []

    def counting(chain: Chain, c: Any, *rest: Any) -> Any:
        counted.append(int(c.shape[0]))
        return examine(chain, c, *rest)

    monkeypatch.setattr(judging, "examine", counting)
    return counted


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
class TestStacks:
    @pytest.mark.parametrize("name", CASES)
    def test_each_is_judged_as_alone(self, name: str, stacks: list[int]) -> None:
        data, here, there = case(name)
        c = candidates(here, data)
        together = judged_all(there, there.device.float64(c), 1)
        taken = [one is not None for one in together]
        assert stacks == [sum(taken)]
        few = few_slopes(here, c) if here.straight else np.zeros(len(c), dtype=bool)
        assert taken == (~few).tolist()
        for one, other in zip(alone(here, c[taken]), (one for one in together if one), strict=True):
            assert_same(one, other)
        assert any(one.accepted for one in together if one)
        assert not all(one.accepted for one in together if one)

    @pytest.mark.parametrize("name", ["relu", "gelu"])
    def test_normal_equations_of_float32_lead_to_the_same(
        self, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(polishing, "LARGE_GRAM", 4)
        data, here, there = case(name)
        c = candidates(here, data)
        few = few_slopes(here, c) & here.straight
        assert np.any(few) == here.straight
        # With those that few units hold: the whole stack then takes the careful way.
        for some in (c[~few][:12], np.concatenate([c[~few][:12], c[few]])):
            seen = judge(there, there.device.float64(some), 1)
            for one, other in zip(alone(here, some), seen, strict=True):
                assert (one.accepted, one.fits_ahead) == (other.accepted, other.fits_ahead)
                if one.accepted:
                    np.testing.assert_allclose(to_host(other.c), one.c, rtol=1e-7, atol=1e-8)

    def test_what_is_at_rest_stays_where_it_is(self, monkeypatch: pytest.MonkeyPatch) -> None:
        data, here, there = case("gelu")
        C = true_coordinates(here, data)
        settled = to_host(polish(there, there.device.float64(C), 1).c)
        c = np.concatenate([settled[:2], np.full((1, B), np.nan), 0.7 * C[2:3] + 0.3 * C[3:4]])
        sizes = []

        def counting(chain: Chain, c: Any, *rest: Any, **options: Any) -> Any:
            sizes.append(int(c.shape[0]))
            return forward(chain, c, *rest, **options)

        monkeypatch.setattr(polishing, "forward", counting)
        end = polish(there, there.device.float64(c), 1)
        assert np.isfinite(end.residual).tolist() == [True, True, False, True]
        first = polish(there, there.device.float64(settled[:2]), 1)
        np.testing.assert_allclose(to_host(end.c)[:2], to_host(first.c), rtol=1e-12, atol=1e-12)
        # One step each; the one that runs away goes on to the end, by itself.
        assert sizes[0] == 4
        assert 1 in sizes
        assert sizes.count(4) < LINEARISATIONS

    def test_what_does_not_come_to_rest_is_open_whatever_the_others_are(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data, here, there = case("gelu")
        C = true_coordinates(here, data)
        seen = examine(here, C, 1)
        settled = refine(here, seen.c, seen.q, 1)
        c = np.concatenate([to_host(settled.c)[:1], 0.7 * C[1:2] + 0.3 * C[2:3]])
        q = to_host(settled.q)[:2]
        monkeypatch.setattr(polishing, "LINEARISATIONS", 1)
        end = polish(there, there.device.float64(c), 1)
        assert np.isfinite(end.residual).tolist() == [True, False]
        assert np.isfinite(end.along).tolist() == [True, False]
        assert np.any(to_host(end.covariance) != 0, axis=(1, 2)).tolist() == [True, False]
        sizes = []

        def counting(chain: Chain, c: Any, *rest: Any) -> Any:
            sizes.append(int(c.shape[0]))
            return system(chain, c, *rest)

        monkeypatch.setattr(refining, "system", counting)
        monkeypatch.setattr(refining, "LINEARISATIONS", 2)
        refined = refine(there, there.device.float64(c), there.device.float64(q), 1)
        assert sizes[:3] == [2, 1, 2], "the last is for the judgement"
        assert refined.converged.tolist() == [True, False]
        assert np.isfinite(refined.deviation).tolist() == [True, False]
        assert np.isfinite(refined.along).tolist() == [True, False]

    def test_one_that_few_units_hold_has_the_normal_equations_of_all_formed_with_care(self) -> None:
        data, here, there = case("few units on")
        C = true_coordinates(here, data)
        on = np.count_nonzero(C @ here.layers[0].to_units.T > 0, axis=1)
        order = np.argsort(-on)
        assert on[order[-1]] < WELL_HELD * B <= on[order[1]]
        for rows, careful in ((order[:2], False), (order[[0, -1]], True), (order[-1:], True)):
            passed = forward(there, there.device.float64(C[rows]), 0)
            assert linearised(there, passed, 1, rough=True).projected is careful

    def test_no_candidate_and_one(self, stacks: list[int]) -> None:
        data, here, there = case("gelu")
        c = true_coordinates(here, data)
        for chain in (here, there):
            assert judged_all(chain, chain.device.float64(c[:0]), 1) == []
        (one,) = judged_all(there, there.device.float64(c[:1]), 1)
        assert one is not None
        assert_same(alone(here, c[:1])[0], one)
        assert stacks[0] == 1

    @pytest.mark.parametrize(("device", "expected"), [("host", [1] * B), ("card", [B])])
    def test_the_device_decides(self, device: str, expected: list[int], stacks: list[int]) -> None:
        data, here, there = case("gelu")
        chain: Chain = here if device == "host" else there
        judged_all(chain, chain.device.float64(true_coordinates(here, data)), 1)
        assert stacks == expected

    def test_a_stack_is_as_large_as_memory_allows(self, monkeypatch: pytest.MonkeyPatch) -> None:
        data, here, there = case("gelu")
        c = true_coordinates(here, data)
        sizes, entries = [], []

        def refusing(chain: Chain, c: Any, *rest: Any) -> Any:
            sizes.append(int(c.shape[0]))
            if sizes[-1] > 2:
                raise MemoryError
            return examine(chain, c, *rest)

        def parts(device: Device, count: int, numbers: int) -> list[slice]:
            entries.append(numbers)
            return [slice(0, 5), slice(5, count)]

        monkeypatch.setattr(judging, "examine", refusing)
        monkeypatch.setattr(judging, "blocks", parts)
        found = judged_all(there, there.device.float64(c), 1)
        assert sizes == [5, 2, 3, 1, 2, 3, 1, 2]
        assert entries == [(60 + 60 + 10) * (B + 10)]
        for one, other in zip(alone(here, c), found, strict=True):
            assert other is not None
            assert_same(one, other)


def test_a_whole_batch_is_found_there(stacks: list[int]) -> None:
    data, _, there = case("gelu")
    problem, rng = ChainProblem(there), np.random.default_rng(0)
    state = problem.start()
    while not state.settled:
        assert problem.exhausted(state) is None
        state = problem.advance(state, rng)
    answer = problem.answer(state, None)
    assert answer.status == "exact"
    assert np.max(data.errors(answer)[0]) < 1e-5
    assert stacks


def test_rows_of_a_stack_are_apart_from_it() -> None:
    data, here, _ = case("gelu")
    found: Sequence[Judged] = judge(here, true_coordinates(here, data)[:3], 1)
    assert here.device is CPU
    for row, one in enumerate(found):
        seen = one.seen
        assert seen.c.shape == (1, B)
        assert np.all(seen.c[0] == one.stack.c[row])
        assert not np.shares_memory(seen.c, one.stack.c)
        assert seen.accepted.tolist() == [one.accepted]
