"""When a search that has not succeeded must end."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Budget:
    """Time, proposals, and whether the caller wants to go on."""

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
