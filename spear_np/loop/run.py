"""One call of `invert`: its options, its budget, what its search knows, and how it reports."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..answer.certificate import Certificate
from ..answer.result import Inversion, Progress, Round, Status
from ..backend import Device
from ..checks.certify import Verdict
from ..directions.disaggregate import Disaggregation
from ..directions.pool import Pool
from ..factors.factorize import Factors
from ..factors.gradients import LayerGradients
from ..factors.signs import SignModel
from ..inputs.scale import DataRange
from ..search import Search

HostArray = np.ndarray[Any, Any]
SearchFactory = Callable[[Factors, SignModel | None], Search]

STALE_ROUNDS = 10
"""Without activation signs nothing tells when the basis is right: it must have withstood this many rounds."""


@dataclass(frozen=True)
class Budget:
    """When to stop a search that has not succeeded."""

    time_limit: float
    """Seconds since the start."""
    max_proposals: int | None
    stop: Callable[[], bool]
    deadline: float = math.inf
    """Seconds since the start that one of several attempts may take."""
    started: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.perf_counter() - self.started

    def exhausted(self, proposals: int) -> str | None:
        """Return why the search must end now, or None."""
        if self.stop():
            return "stopped on request"
        if self.seconds > min(self.time_limit, self.deadline):
            return f"the time limit of {self.time_limit:g} s is spent"
        if self.max_proposals is not None and proposals >= self.max_proposals:
            return f"the limit of {self.max_proposals} proposals is spent"
        return None


@dataclass(frozen=True)
class Run:
    """One call of `invert`: its options and how it reports."""

    gradients: LayerGradients
    device: Device
    method: str | SearchFactory
    seed: int
    budget: Budget
    callback: Callable[[Progress], None]
    data_range: DataRange | None = None

    def report(self, stage: str, **figures: Any) -> None:
        """Tell the caller how far it is."""
        self.callback(Progress(stage, self.budget.seconds, self.budget.time_limit, **figures))

    def inversion(self, status: Status, reason: str, batch_size: int, **figures: Any) -> Inversion:
        """Return the answer; what is not among `figures` is that of nothing found."""
        m = self.gradients.shape[0]
        empty: dict[str, Any] = {
            "found": 0,
            "output_grad": self.device.zeros((m, 0)),
            "recovery": self.device.zeros((0, m)),
            "certificate": Certificate(),
            "proposals": 0,
            "history": (),
        }
        return Inversion(
            status=status,
            reason=reason,
            batch_size=batch_size,
            method=self.method if isinstance(self.method, str) else "custom",
            seed=self.seed,
            seconds=self.budget.seconds,
            device=self.device.name,
            scale_known=self.gradients.bias_grad is not None,
            gradients=self.gradients,
            where=self.device,
            data_range=self.data_range,
            **(empty | figures),
        )


@dataclass(frozen=True)
class State:
    """What the search knows after a round."""

    pool: Pool
    fullest: Pool
    """The pool that knew most directions to rely on: what a partial answer is made of."""
    choice: Disaggregation | None = None
    """Best complete choice of directions so far."""
    verdict: Verdict | None = None
    """Its certificate."""
    latest: Disaggregation | None = None
    """The complete choice of the last round; None while directions are missing."""
    evaluated: HostArray | None = None
    """Basis (b, b) behind it."""
    failures: int = 0
    """Complete choices that did not hold."""
    since_better: int = 0
    """Rounds since the best complete choice was found."""
    proposals: int = 0
    history: tuple[Round, ...] = ()

    @property
    def settled(self) -> bool:
        """Whether nothing better can be expected: exact, limited by noise alone, or unopposed for long."""
        if self.verdict is None:
            return False
        if self.verdict.complete:
            return self.verdict.checked_signs or self.pool.stale >= STALE_ROUNDS
        return False
