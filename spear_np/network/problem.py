"""A chain as the loop sees it: a round proposes inputs, examines them in the full problem, and removes those found."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..answer.result import Inversion, on_device
from ..arrays import Array
from ..backend.devices import Device
from ..backend.host import to_host
from ..backend.work import suitable_threads
from ..chain.examine import Examined, known_of
from ..chain.layers import Chain
from ..chain.sets import Open, open_sets
from ..search import ChainSearch
from ..search.levenberg import Levenberg
from ..search.reflect import Reflect
from ..search.together import Seat
from .assemble import answer_of
from .diagnose import likelier_activation
from .judge import Judged, judge, judged_all
from .verify import spare_equations

SAME_INPUT = 0.5
"""Product with the dual of a found input from which a candidate is that input.

Derived: it is one for that input and zero for every other.
"""
ROOM = {"straight": (0.36, 0.44), "smooth": (0.45, 0.6)}
"""Shares of m up to which one layer behind the first, and two, find inputs quickly, for activations of straight pieces and smooth
ones.

Measured: at m = 200 and straight pieces the steps for each input found with one layer rise from 300 at .36 m to ten times that
at .44 m; smooth activations reach further (benchmarks/chain.py).
"""
SPARED = 0.25
"""Equations to spare for each input below which a further layer takes part.

Heuristic: with a single one, mixtures of the inputs of a layer with nine units that are alive met them all.
"""
ONE_SIDED = 12
"""Candidates that fit the layers ahead but not what is passed back, without one that fits both, from which none will.

Heuristic: where the layers are a chain, one in some hundred is such a candidate.
"""


@dataclass(frozen=True, eq=False)
class ChainState:
    """What is known of the inputs of a chain after a round."""

    left: Open
    memory: Any
    """Of the search that is running."""
    turn: int = 0
    """Which of the searches is running."""
    known: tuple[Examined, ...] = ()
    """The inputs found, one each."""
    proposals: int = 0
    """Steps of all starts so far."""
    since_news: int = 0
    """Steps since the last input was found."""
    refused: int = 0
    """Candidates that the equations did not bear out."""
    one_sided: int = 0
    """Those of them that fit the layers ahead, but not what is passed back."""
    search: str = ""
    batch_size: int = 0

    @property
    def found(self) -> int:
        """Inputs found."""
        return len(self.known)

    @property
    def agreement(self) -> float | None:
        """Chains have no λ."""
        return None

    @property
    def settled(self) -> bool:
        """Whether all inputs are found."""
        return self.found == self.batch_size

    @property
    def duals(self) -> Array | None:
        """(f, b): duals of the found inputs in the first layer."""
        if not self.known:
            return None
        return self.left.chain.xp.concat([one.duals[0] for one in self.known], axis=0)


@dataclass(frozen=True, eq=False)
class ChainProblem:
    """A chain with the searches that suit it."""

    chain: Chain
    names: tuple[str, ...] = ()
    """Of the layers, as the caller calls them."""
    loss: str | None = None
    cut: str | None = None
    """Why the chain ends before the last layer that was handed over, if it does."""
    where: Device | None = None
    """Where the answer is wanted and the steps of the searches are taken, if not on the device of the chain."""
    seat: Seat | None = None
    """Takes these steps together with those of other chains."""

    @property
    def batch_size(self) -> int:
        """b."""
        return self.chain.batch_size

    @property
    def depth(self) -> int:
        """K for the examination of candidates: as for a search with nothing known."""
        return self._depth(self.batch_size, 0)

    def threads(self) -> AbstractContextManager[Any]:
        """Return the limit that suits matrices of m rows and b columns."""
        first = self.chain.layers[0].space
        return suitable_threads(self.chain.device, first.shape[0] * first.batch_size)

    def start(self) -> ChainState:
        """Nothing is known."""
        left = open_sets(self.chain, self._depth(self.batch_size, 0))
        return ChainState(left, None, batch_size=self.batch_size)

    def _searches(self) -> tuple[ChainSearch, ...]:
        straight = self.chain.layers[0].sigma.piecewise_linear
        jumps = Levenberg.suited(self.chain, self.where, self.seat)
        return (Reflect.suited(self.chain, self.where, self.seat), jumps) if straight else (jumps,)

    def _depth(self, missing: int, turn: int) -> int:
        """How many layers behind the first take part: more where little room is left, and one more each time all fail."""
        kind = "straight" if self.chain.layers[0].sigma.piecewise_linear else "smooth"
        share = missing / self.chain.layers[0].units
        wanted = 1 + sum(share > room for room in ROOM[kind])
        # Behind dead units a layer has fewer equations than its width says.
        while (
            wanted < self.chain.depth and spare_equations(self.chain, wanted) < SPARED * self.batch_size + 1
        ):
            wanted += 1
        return max(1, min(wanted + turn // len(self._searches()), self.chain.depth))

    def advance(self, state: ChainState, rng: np.random.Generator) -> ChainState:
        """Propose, examine, remove what is found; change the search where nothing new comes."""
        # Starts that run away overflow, and are refused for it.
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            return self._advanced(state, rng)

    def _advanced(self, state: ChainState, rng: np.random.Generator) -> ChainState:
        searches = self._searches()
        search = searches[state.turn % len(searches)]
        state = self._fitted(state)
        if state.left.missing == 1:
            one = state.left.sets[0]
            coordinates, memory, steps = (one.offset @ one.to_coordinates.T)[None, :], None, 1
        else:
            memory = search.start(state.left, rng) if state.memory is None else state.memory
            ends = search.propose(state.left, memory, rng)
            coordinates, memory, steps = ends.coordinates, ends.memory, ends.examined
        before = state.found
        for row, judged in enumerate(judged_all(self.chain, coordinates, self.depth)):
            state = self._with(state, coordinates[row : row + 1, :], judged)
            if state.settled:
                break
        news = state.found > before
        state = replace(
            state,
            memory=memory,
            proposals=state.proposals + steps,
            since_news=0 if news else state.since_news + steps,
            search=search.name,
        )
        again = state.left.missing == 1 and not news  # a last input has no other start
        if again or state.since_news > search.patience:
            state = replace(state, turn=state.turn + 1, memory=None, since_news=0)
        return state

    def _fitted(self, state: ChainState) -> ChainState:
        """The state with as many layers as suit what is missing."""
        depth = self._depth(state.left.missing, state.turn)
        if depth == state.left.depth or state.left.missing == 1:
            return state
        left = open_sets(self.chain, depth)
        for one in state.known:
            left = left.without(tuple(dual[0, :] for dual in one.duals))
        return replace(state, left=left, memory=None)

    def _with(self, state: ChainState, candidate: Array, judged: Judged | None) -> ChainState:
        """The state with the input that `candidate` (1, b) leads to, if it leads to a new one."""
        if judged is None:
            judged = judge(self.chain, candidate, self.depth, known_of(self.chain, state.known))[0]
        if not judged.accepted:
            one_sided = state.one_sided + int(judged.fits_ahead)
            return replace(state, refused=state.refused + 1, one_sided=one_sided)
        duals = state.duals
        if duals is not None:
            products = np.abs(to_host(duals @ judged.c))
            if float(np.max(products)) > SAME_INPUT:
                return state
        seen = judged.seen
        known = (*state.known, seen)
        left = state.left
        if len(known) < self.batch_size:
            left = left.without(tuple(dual[0, :] for dual in seen.duals))
        return replace(state, known=known, left=left)

    def forecast(self) -> float | None:
        """No forecast: most starts end on an input, or none does."""
        return None

    def exhausted(self, state: ChainState) -> str | None:
        """Return a reason to stop early: every search has been dry at every depth, or one side of the equations never holds."""
        if not state.known and state.one_sided >= ONE_SIDED:
            return (
                "what fits the next layer does not fit the gradient that it passes back: its input is used elsewhere too, or the "
                "layers are not of one step"
            )
        turns = len(self._searches()) * self.chain.depth
        if state.turn >= turns + 1:
            return "no start ends on an input" if not state.known else "no start ends on a further input"
        return None

    def answer(self, state: ChainState, ended: str | None) -> Inversion:
        """Return the inputs found, with their certificate."""
        named = self.names[: len(self.chain.layers)]
        if not state.known and ended is not None and state.one_sided == 0:
            other = likelier_activation(self.chain, self.depth)
            if other is not None:
                ended = f"{ended}; it looks as if '{other}' followed the first layer, not '{self.chain.layers[0].sigma}'"
        answer = answer_of(
            self.chain, state.known, self.depth, ended, names=named, loss=self.loss, cut=self.cut
        )
        return answer if self.where is None else on_device(answer, self.where)
