"""`auto`: which search is asked when."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from spear_np.directions.pool import SMALL_BATCH, Pool
from spear_np.factors.factorize import Factors
from spear_np.factors.signs import sign_model
from spear_np.search import Search
from spear_np.search.blocks import Settings
from spear_np.search.completion import MOST_GUESSED, Completion
from spear_np.search.descent import Descent
from spear_np.search.sampling import Sampling
from spear_np.search.schedule import SAMPLING_SUFFICES, Schedule
from tests.backends import Backend, assert_lives_on
from tests.layers import digit_layer, factors_of, true_directions
from tests.networks import LayerData
from tests.pools import frozen, pool_of

QUICK = Settings(steps=2, starts=8)
"""Which search is asked shows after two steps as well."""
SIZES = {"pair": (2, 100), "tiny": (4, 100), "medium": (16, 160), "large": (30, 160), "narrow": (14, 30)}
"""Inputs and units; the narrow layer has fewer than two live units for each input."""


@cache
def layer(name: str) -> LayerData:
    b, width = SIZES[name]
    return digit_layer(b, width=width, seed=490)


def schedule_for(factors: Factors) -> Schedule:
    model = sign_model(factors)
    return Schedule(
        Descent.prepare(factors.space, model, QUICK), Sampling(64), Completion.prepare(factors, model)
    )


def asked(name: str, missing: int, stale: int, backend: Backend = Backend.NUMPY, **changes: Any) -> str:
    """Name of the search that is asked when so many directions are missing after so many rounds without news."""
    data = layer(name)
    factors = factors_of(data, backend, **changes)
    pool = Pool.empty(factors.space.batch_size, factors.space.U.shape[0])
    if missing < factors.space.batch_size:
        pool = pool_of(factors, true_directions(factors, data.inputs)[missing:])
    pool = frozen(replace(pool, stale=stale))
    proposals = schedule_for(factors).propose(factors.space, pool, np.random.default_rng(490))
    assert_lives_on(proposals.candidates, backend)
    return proposals.search


def test_batches_are_of_the_sizes_meant() -> None:
    sizes = {name: factors_of(layer(name), Backend.NUMPY).space for name in SIZES}
    assert sizes["tiny"].batch_size <= SAMPLING_SUFFICES < sizes["medium"].batch_size <= SMALL_BATCH
    assert sizes["large"].batch_size > SMALL_BATCH
    narrow = sizes["narrow"]
    assert SAMPLING_SUFFICES < narrow.batch_size < MOST_GUESSED + 3
    assert narrow.U.shape[0] < 2 * narrow.batch_size
    assert all(sizes[name].U.shape[0] >= 2 * sizes[name].batch_size for name in ("medium", "large"))


@pytest.mark.parametrize(
    ("name", "wanted"), [("tiny", "sampling"), ("medium", "descent"), ("large", "descent")]
)
def test_small_batches_are_sampled_first_and_others_descended(
    backend: Backend, name: str, wanted: str
) -> None:
    assert asked(name, missing=SIZES[name][0], stale=0, backend=backend) == wanted


def test_narrow_layers_are_sampled_first() -> None:
    # Hardly more rows than unknowns: the ℓ1 norm has no sharp minima there.
    assert asked("narrow", 14, stale=0) == "sampling"


@pytest.mark.parametrize("name", ["tiny", "medium", "large"])
@pytest.mark.parametrize("missing", [1, 3])
def test_the_last_directions_are_completed_when_a_round_brought_no_news(
    backend: Backend, name: str, missing: int
) -> None:
    assert asked(name, missing, stale=0, backend=backend) != "completion"
    assert asked(name, missing, stale=1, backend=backend) == "completion"


def test_every_search_gets_its_turn_again() -> None:
    seen = [asked("medium", 3, stale) for stale in range(6)]
    assert seen == ["descent", "completion", "sampling"] * 2
    assert {asked("tiny", 2, stale) for stale in range(8)} == {"sampling", "completion", "descent"}
    assert {asked("narrow", 2, stale) for stale in range(8)} == {"sampling", "completion", "descent"}


@pytest.mark.parametrize(
    ("missing", "completed"), [(0, False), (MOST_GUESSED, True), (MOST_GUESSED + 1, False)]
)
def test_completion_is_asked_only_while_few_directions_are_missing(missing: int, completed: bool) -> None:
    for stale in (1, 4):
        assert (asked("medium", missing, stale) == "completion") == completed


@pytest.mark.parametrize("changes", [{"weight": None, "bias": None}, {"bias_grad": None}])
def test_completion_is_not_asked_where_it_cannot_work(changes: dict[str, Any]) -> None:
    for name in SIZES:
        assert "completion" not in {asked(name, 1, stale, **changes) for stale in range(4)}


def test_large_batches_are_never_sampled() -> None:
    assert {asked("large", 30, stale) for stale in range(8)} == {"descent"}


def test_two_inputs_are_not_worth_a_descent() -> None:
    assert "descent" not in {asked("pair", 1, stale) for stale in range(8)}


@pytest.mark.parametrize("stale", range(3))
def test_its_proposals_are_those_of_the_search_it_asks(stale: int) -> None:
    factors = factors_of(layer("medium"), Backend.NUMPY)
    pool = replace(pool_of(factors, true_directions(factors, layer("medium").inputs)[3:]), stale=stale)
    schedule = schedule_for(factors)
    assert schedule.completion is not None
    searches: list[Search] = [schedule.descent, schedule.completion, schedule.sampling]
    alone = searches[stale].propose(factors.space, pool, np.random.default_rng(492))
    proposals = schedule.propose(factors.space, pool, np.random.default_rng(492))
    np.testing.assert_array_equal(proposals.candidates, alone.candidates)
    assert (proposals.search, proposals.examined) == (alone.search, alone.examined)


def test_the_published_forecast_holds_for_batches_that_are_sampled() -> None:
    for name, sampled in (("tiny", True), ("medium", False), ("large", False)):
        factors = factors_of(layer(name), Backend.NUMPY)
        wanted = Sampling().forecast(factors.space) if sampled else None
        assert schedule_for(factors).forecast(factors.space) == wanted
