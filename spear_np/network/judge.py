"""What is seen of candidates for the inputs of a chain: one by one on a processor, in stacks on a card.

On a processor a round has few, which cores share out. On a card one candidate is hundreds of launches, whatever it computes, and a stack
is as many. What is seen of each is the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from ..arrays import Array, HostArray
from ..backend.algebra import rows_of
from ..backend.host import to_host
from ..backend.work import SHARED_FROM, blocks, mapped, one_by_one
from ..chain.equations import top_of
from ..chain.examine import Examined, examine, reexamine
from ..chain.layers import Chain
from ..chain.polish import CONSISTENT, Known

T = TypeVar("T")

FEW = 1.1
"""Units with a slope, for each coordinate of an input, below which they may not determine it.

Derived: one would do if all were independent; a tenth more for those that are nearly dependent.
"""
VAGUE = 1e-3
"""Standard deviation of an input, as a share of its size, from which the backward side is needed.

Heuristic: the duals are as uncertain as the input, and what they leave open must hold the next one to within `CANDIDATE`.
"""


@dataclass(frozen=True, eq=False)
class Judged:
    """What was seen of one candidate, of a stack of them."""

    stack: Examined
    row: int
    fits_ahead: bool
    """Whether the layers ahead bear it out, whatever is passed back."""

    @property
    def accepted(self) -> bool:
        """Whether it is an input."""
        return bool(self.stack.accepted[self.row])

    @property
    def c(self) -> Array:
        """(b,): where its polish ended."""
        return self.stack.c[self.row, :]

    @property
    def seen(self) -> Examined:
        """All of it, apart from the stack."""
        return self.stack.rows([self.row])


def judged_all(chain: Chain, candidates: Array, depth: int) -> list[Judged | None]:
    """What is seen of each of `candidates` (k, b); None where it may take the inputs that are known to determine it."""

    def judged(part: slice) -> list[Judged | None]:
        some = candidates[part, :]
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # each thread has its own
            few = few_slopes(chain, some) if chain.straight else np.zeros(some.shape[0], dtype=np.bool_)
            found: list[Judged | None] = [None] * len(few)
            rows = np.flatnonzero(~few)
            if len(rows):
                stack = rows_of(some, chain.device.integers(rows))
                for row, one in zip(rows.tolist(), judge(chain, stack, depth), strict=True):
                    found[row] = one
        return found

    return [one for part in _in_stacks(chain, candidates.shape[0], judged) for one in part]


def _in_stacks(chain: Chain, count: int, function: Callable[[slice], T]) -> list[T]:
    """[function(part)] for the parts in which the device of `chain` best looks at so many candidates."""
    device = chain.device
    units, b = chain.layers[0].units, chain.batch_size
    if device.name != "cpu":
        # The derivatives of all equations by all unknowns.
        unknowns = b + int(top_of(chain)[0].shape[1])
        equations = sum(layer.units for layer in chain.layers)
        return mapped(device, function, blocks(device, count, equations * unknowns))
    alone = [slice(row, row + 1) for row in range(count)]
    return (one_by_one if units * b < SHARED_FROM else mapped)(device, function, alone)


def judge(chain: Chain, candidates: Array, depth: int, known: Known | None = None) -> list[Judged]:
    """The inputs that `candidates` (k, b) lead to, with the help of those that are `known`."""
    seen = examine(chain, candidates, depth, known)
    fits_ahead = seen.forward_residual <= CONSISTENT
    vague = seen.deviation > VAGUE * _sizes(chain, seen.c)
    found = [Judged(seen, row, bool(fits)) for row, fits in enumerate(fits_ahead)]
    doubtful = np.flatnonzero((vague | ~seen.accepted) & fits_ahead).tolist()
    if doubtful:
        better = reexamine(chain, seen.rows(doubtful), depth)
        for place, row in enumerate(doubtful):
            # Between kinks ∂L/∂Z does not move with its input: it is right, and what is open of the input, others will close.
            if not (chain.straight and seen.accepted[row] and not better.accepted[place]):
                found[row] = Judged(better, place, True)
    return found


def few_slopes(chain: Chain, candidates: Array) -> HostArray:
    """(k,) bool: whether each turns on so few units that they alone hardly determine it; with what is known, they do."""
    xp, first = chain.xp, chain.layers[0]
    _, slope = first.sigma.value_and_slope(candidates @ first.to_units.T)
    on: HostArray = to_host(xp.sum(xp.astype(slope != 0, xp.int64), axis=1))
    return on < FEW * chain.batch_size


def _sizes(chain: Chain, c: Array) -> HostArray:
    """(k,): root mean square of the entries of each input."""
    features = chain.layers[0].space.shape[1]
    sizes: HostArray = to_host(chain.xp.linalg.vector_norm(c, axis=1)) / math.sqrt(features)
    return sizes
