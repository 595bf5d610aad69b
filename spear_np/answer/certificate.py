"""The certificate as data: every check with its figure, its threshold and what it means."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal


@dataclass(frozen=True)
class Check:
    """One figure held against its threshold."""

    name: str
    """Stable identifier, e.g. "sign_agreement": a key in files and JSON."""
    value: float | None
    """The measured figure; None if the data for it is missing."""
    relation: Literal["<=", ">="]
    threshold: float
    meaning: str
    """One line for people."""

    @property
    def passed(self) -> bool | None:
        """Whether the figure holds; None if the check could not be made."""
        if self.value is None:
            return None
        if math.isnan(self.value):
            return False
        return self.value <= self.threshold if self.relation == "<=" else self.value >= self.threshold


@dataclass(frozen=True)
class Certificate:
    """Every check of a whole batch, the figures of each recovered input, and what they cannot show.

    The tuples have one entry per recovered input (k).
    """

    checks: tuple[Check, ...] = ()
    zero_count: tuple[int, ...] = ()
    """Rows of ∂L/∂Z where the input's unit is off, by gradient and layer alike."""
    redundancy: tuple[int, ...] = ()
    """How many of those rows could be missing without losing the direction (a lower bound)."""
    sign_agreement: tuple[float, ...] = ()
    """Share of output units where gradient and activation sign agree; NaN without `weight`."""
    false_probability: tuple[float, ...] = ()
    """Bound on the probability that a direction of no input has as many zeros to spare by chance."""
    error_bound: tuple[float, ...] = ()
    """Bound on the largest error of the input, in units of the input; infinite where nothing is known."""
    caveats: tuple[str, ...] = ()
    """What no check can exclude, e.g. identical inputs counted once."""

    @property
    def holds(self) -> bool:
        """Whether every check could be made and passed."""
        return bool(self.checks) and all(check.passed for check in self.checks)

    def __getitem__(self, name: str) -> Check:
        """Look a check up by its name."""
        for check in self.checks:
            if check.name == name:
                return check
        raise KeyError(name)

    def only(self, rows: list[int]) -> Certificate:
        """Return the certificate with the figures of the inputs `rows`; the checks stay those of the batch."""
        return replace(
            self,
            zero_count=tuple(self.zero_count[i] for i in rows),
            redundancy=tuple(self.redundancy[i] for i in rows),
            sign_agreement=tuple(self.sign_agreement[i] for i in rows),
            false_probability=tuple(self.false_probability[i] for i in rows),
            error_bound=tuple(self.error_bound[i] for i in rows),
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON and files: figures, thresholds, verdicts."""
        return {
            "checks": [{**asdict(check), "passed": check.passed} for check in self.checks],
            "zero_count": list(self.zero_count),
            "redundancy": list(self.redundancy),
            "sign_agreement": list(self.sign_agreement),
            "false_probability": list(self.false_probability),
            "error_bound": list(self.error_bound),
            "caveats": list(self.caveats),
        }

    def __str__(self) -> str:
        """Aligned table of the checks, then the caveats."""
        marks = {True: "ok", False: "NO", None: "--"}
        lines = []
        for check in self.checks:
            value = "missing" if check.value is None else f"{check.value:.3g}"
            lines.append(
                f"{marks[check.passed]:>2}  {check.name:<22} {value:>9} {check.relation} "
                f"{check.threshold:<9.3g} {check.meaning}"
            )
        lines += [f" *  {caveat}" for caveat in self.caveats]
        return "\n".join(lines)
