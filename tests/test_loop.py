"""The loop on problems that are no layer: what it asks of them, when it ends, and what it adds to their answers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from spear_np import Inversion, LayerGradients, Options, Progress, Status
from spear_np.answer.certificate import Certificate
from spear_np.backend.devices import CPU
from spear_np.loop.budget import Budget
from spear_np.loop.problem import Reading
from spear_np.loop.run import Run, invert_problem, invert_readings

GRADIENTS = LayerGradients(np.ones((3, 2)))


@dataclass(frozen=True)
class Guessing:
    """What is known of the numbers that `Guess` seeks."""

    known: frozenset[int] = frozenset()
    wanted: int = 0
    proposals: int = 0
    search: str = ""
    agreement: float | None = None

    @property
    def found(self) -> int:
        return len(self.known)

    @property
    def settled(self) -> bool:
        return self.found == self.wanted


@dataclass
class Guess:
    """Throw dice until every face was seen: a problem with rounds, but without arrays."""

    batch_size: int
    useless_from: int = 1_000_000
    status: Status = Status.EXACT
    threaded: list[str] = field(default_factory=list)

    def threads(self) -> AbstractContextManager[Any]:
        self.threaded.append("entered")
        return nullcontext()

    def start(self) -> Guessing:
        return Guessing(wanted=self.batch_size)

    def advance(self, state: Guessing, rng: np.random.Generator) -> Guessing:
        thrown = rng.integers(self.batch_size, size=2).tolist()
        return replace(state, known=state.known | set(thrown), proposals=state.proposals + 2, search="dice")

    def forecast(self) -> float | None:
        return 7.0

    def exhausted(self, state: Guessing) -> str | None:
        return "the dice are worn" if state.proposals >= self.useless_from else None

    def answer(self, state: Guessing, ended: str | None) -> Inversion:
        return answer_with(self.status if ended is None else Status.FAILED, ended or "seen", state.found)


def answer_with(status: Status, reason: str, found: int) -> Inversion:
    return Inversion(
        status=status,
        reason=reason,
        batch_size=3,
        found=found,
        output_grad=np.zeros((3, found)),
        certificate=Certificate(),
        device="cpu",
        scale_known=True,
        gradients=GRADIENTS,
        recovery=np.zeros((found, 3)),
        where=CPU,
    )


def run_of(
    *,
    callback: Callable[[Progress], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
    **options: Any,
) -> Run:
    chosen = Options(**options)
    return Run(chosen, Budget(chosen.time_limit, chosen.max_proposals, stop), callback)


def test_rounds_go_on_until_the_problem_is_settled() -> None:
    events: list[Progress] = []
    problem = Guess(6)
    result = invert_problem(problem, run_of(callback=events.append, seed=5))
    assert (result.status, result.reason, result.found) == (Status.EXACT, "seen", 6)
    assert (result.seed, result.method, result.proposals) == (5, "auto", 2 * len(result.history))
    assert {(entry.search, entry.proposals) for entry in result.history} == {("dice", 2)}
    found = [entry.found for entry in result.history]
    assert found == sorted(found)
    assert found[-2] < found[-1] == 6
    assert [event.stage for event in events] == ["search"] * len(found) + ["verify"]
    assert {event.expected for event in events[:-1]} == {7.0}


def test_the_same_seed_throws_the_same_dice() -> None:
    histories = [
        [entry.found for entry in invert_problem(Guess(20), run_of(seed=seed)).history] for seed in (1, 1, 2)
    ]
    assert histories[0] == histories[1] != histories[2]


@pytest.mark.parametrize(
    ("options", "problem", "reason"),
    [
        ({"max_proposals": 4}, Guess(40), "the limit of 4 proposals is spent"),
        ({"time_limit": 0}, Guess(40), "the time limit of 0 s is spent"),
        ({"stop": lambda: True}, Guess(40), "stopped on request"),
        ({}, Guess(40, useless_from=6), "the dice are worn"),
    ],
)
def test_it_ends_early_with_the_reason(options: dict[str, Any], problem: Guess, reason: str) -> None:
    result = invert_problem(problem, run_of(**options))
    assert (result.status, result.reason) == (Status.FAILED, reason)
    assert 0 < result.found < 40
    assert len(result.history) == (3 if "worn" in reason else 2 if "limit of 4" in reason else 1)


def test_a_round_that_settles_the_problem_counts_even_if_the_budget_is_spent() -> None:
    assert invert_problem(Guess(1), run_of(time_limit=0)).status is Status.EXACT


class TestReadings:
    @staticmethod
    def read(*posed: Guess | Inversion) -> Callable[[int], Reading]:
        return lambda number: Reading(posed[number], len(posed) - 1 - number)

    def test_the_first_whole_batch_ends_them(self) -> None:
        problems = [Guess(40, useless_from=2), Guess(5), Guess(3)]
        result = invert_readings(self.read(*problems), run_of())
        assert (result.status, result.found) == (Status.EXACT, 5)
        assert [len(problem.threaded) for problem in problems] == [1, 1, 0]

    def test_the_best_is_kept_if_none_is_whole(self) -> None:
        many, few = Guess(40, useless_from=30), Guess(40, useless_from=2)
        result = invert_readings(self.read(many, few), run_of())
        assert result.found == invert_problem(Guess(40, useless_from=30), run_of()).found

    def test_one_that_poses_no_problem_is_passed_over(self) -> None:
        events: list[Progress] = []
        refused = answer_with(Status.FAILED, "full rank", 0)
        result = invert_readings(self.read(refused, Guess(4)), run_of(callback=events.append))
        assert (result.status, result.found) == (Status.EXACT, 4)
        assert [event.stage for event in events[:3]] == ["factorize", "factorize", "search"]
        alone = invert_readings(self.read(refused), run_of(seed=9))
        assert (alone.reason, alone.seed, alone.history) == ("full rank", 9, ())

    def test_none_is_begun_when_the_budget_is_spent(self) -> None:
        late = Guess(4)
        result = invert_readings(self.read(Guess(40), late), run_of(time_limit=0))
        assert result.reason == "the time limit of 0 s is spent"
        assert not late.threaded
