"""The loop itself: rounds of one problem until it is settled or the budget is spent, for each reading of the rank."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..answer.result import Inversion, Progress, Round, Status
from .budget import Budget
from .options import Options
from .problem import Problem, Reading, S

BEST_LAST = (Status.FAILED, Status.PARTIAL, Status.APPROXIMATE, Status.EXACT)
"""What an answer is worth, beside one at another reading of the singular values."""


@dataclass(frozen=True)
class Run:
    """One call of `invert`: its options, its budget and how it reports."""

    options: Options
    budget: Budget
    callback: Callable[[Progress], None]

    def report(self, stage: str, **figures: Any) -> None:
        """Tell the caller how far it is."""
        self.callback(Progress(stage, self.budget.seconds, self.budget.time_limit, **figures))

    def signed(self, answer: Inversion, proposals: int = 0, history: tuple[Round, ...] = ()) -> Inversion:
        """Return the `answer` with what the loop knows of it."""
        return replace(
            answer,
            method=self.options.method_name,
            seed=self.options.seed,
            seconds=self.budget.seconds,
            proposals=proposals,
            history=history,
        )


def invert_readings(read: Callable[[int], Reading], run: Run) -> Inversion:
    """Return the best answer of the readings ``read(0)``, ``read(1)``, … of the singular values, most plausible first.

    A reading that leaves others has half of the time that is left; the first that gives a whole batch ends the search.
    """
    best, left = _invert_reading(read, 0, run)
    for number in range(1, left + 1):
        if best.status in (Status.EXACT, Status.APPROXIMATE) or run.budget.exhausted(0):
            break
        best = max(best, _invert_reading(read, number, run)[0], key=worth)
    return best


def worth(answer: Inversion) -> tuple[int, int]:
    """What an answer is worth beside another: its status, then how many inputs it holds."""
    return BEST_LAST.index(answer.status), answer.found


def _invert_reading(read: Callable[[int], Reading], number: int, run: Run) -> tuple[Inversion, int]:
    """Invert at one reading; returns the answer and how many readings are left."""
    run.report("factorize")
    reading = read(number)
    if isinstance(reading.posed, Inversion):
        return run.signed(reading.posed), reading.left
    if reading.left:
        deadline = (run.budget.seconds + run.budget.time_limit) / 2
        run = replace(run, budget=replace(run.budget, deadline=deadline))
    with reading.posed.threads():
        return invert_problem(reading.posed, run), reading.left


def invert_problem(problem: Problem[S], run: Run) -> Inversion:
    """Repeat rounds until the batch is certified, nothing better can be expected or the budget is spent."""
    rng = np.random.default_rng(run.options.seed)
    state, history = problem.start(), tuple[Round, ...]()
    ended = None
    while not state.settled and ended is None:
        before, state = state, problem.advance(state, rng)
        examined = state.proposals - before.proposals
        run.report(
            "search",
            batch_size=problem.batch_size,
            found=state.found,
            proposals=state.proposals,
            expected=problem.forecast(),
        )
        entry = Round(state.search, examined, state.found, state.agreement, run.budget.seconds)
        history = (*history, entry)
        if not state.settled:
            ended = run.budget.exhausted(state.proposals) or problem.exhausted(state)
    run.report("verify", batch_size=problem.batch_size, found=state.found, proposals=state.proposals)
    return run.signed(problem.answer(state, ended), state.proposals, history)
