"""The seam between the loop and what it inverts: one layer today, a chain of layers in its place tomorrow."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

from ..answer.result import Inversion


class State(Protocol):
    """What a search knows after a round; data, never changed."""

    @property
    def settled(self) -> bool:
        """Whether nothing better can be expected: the search ends."""
        ...

    @property
    def found(self) -> int:
        """How many inputs of the batch, or directions of inputs, are known."""
        ...

    @property
    def proposals(self) -> int:
        """Candidates examined in all rounds so far."""
        ...

    @property
    def search(self) -> str:
        """Name of the search that proposed in the last round; empty before the first."""
        ...

    @property
    def agreement(self) -> float | None:
        """λ of the best complete batch so far; None while inputs are missing or without W."""
        ...


S = TypeVar("S", bound=State)


class Problem(Protocol[S]):
    """What the loop inverts.

    Rounds are pure functions of the state and the random numbers: the same seed gives the same answer. Time, history and
    reports are the loop's; a problem knows nothing of them.
    """

    @property
    def batch_size(self) -> int:
        """How many inputs are sought."""
        ...

    def threads(self) -> AbstractContextManager[Any]:
        """Return what keeps the linear algebra to as many threads as its matrices can use, while it is entered."""
        ...

    def start(self) -> S:
        """Return what is known before the first round."""
        ...

    def advance(self, state: S, rng: np.random.Generator) -> S:
        """Do one round: propose, polish, add to what is known, choose, certify."""
        ...

    def forecast(self) -> float | None:
        """Return how many candidates will probably be examined until all inputs are found, if that can be told."""
        ...

    def exhausted(self, state: S) -> str | None:
        """Return why further rounds are useless, or None."""
        ...

    def answer(self, state: S, ended: str | None) -> Inversion:
        """Return what can be handed out.

        `ended` says why the search ended before it was settled. What the loop knows (seed, method, seconds, proposals,
        history) is filled in by it.
        """
        ...


@dataclass(frozen=True)
class Reading:
    """One reading of the singular values: the problem that it poses, or the answer if it poses none."""

    posed: Problem[Any] | Inversion
    left: int
    """How many less plausible readings there are to try if this one leads to no whole batch."""
