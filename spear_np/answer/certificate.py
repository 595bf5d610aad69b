"""The certificate as data: every check with its figure, its threshold and what it means."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
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
class Evidence:
    """What speaks for one recovered input, and what against it; None where that could not be looked at."""

    unique: bool
    """No other direction is without gradient on all its zero rows."""
    spare_rows: bool
    """None of these rows is indispensable: nothing but chance could make its direction a mixture of inputs."""
    beyond_chance: bool
    """Chance is unlikely to have done so, see `Certificate.false_probability`."""
    within_bound: bool | None
    """Its error bound is small enough for it to count as recovered."""
    signs_decided: bool | None
    """Enough of its activation signs are beyond doubt; None without them."""
    signs_agree: bool | None
    """They agree with the gradient, as far as noise and what else zeroes gradients allow; None without them."""

    @property
    def accepted(self) -> bool:
        """Whether the input is vouched for."""
        demanded = (self.unique, self.within_bound, self.signs_decided, self.signs_agree)
        return all(fact is not False for fact in demanded)


@dataclass(frozen=True)
class Premise:
    """What an answer rests on and no check of it can test."""

    name: str
    """A few words, which stand beside the status in the line of a table: "plain gradient"."""
    meaning: str
    """One sentence."""


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
    evidence: tuple[Evidence, ...] = ()
    """What speaks for each input."""
    rests_on: tuple[Premise, ...] = ()
    """What is taken for granted: if one of these is not so, rows and bounds may be wrong whatever the checks say."""

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
            evidence=tuple(self.evidence[i] for i in rows if self.evidence),
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
            "evidence": [{**asdict(row), "accepted": row.accepted} for row in self.evidence],
            "caveats": list(self.caveats),
            "rests_on": [asdict(premise) for premise in self.rests_on],
        }

    def __str__(self) -> str:
        """Aligned table of the checks, how many inputs pass each of their own, what they rest on, then the caveats."""
        marks = {True: "ok", False: "NO", None: "--"}
        lines = []
        for check in self.checks:
            value = "missing" if check.value is None else f"{check.value:.3g}"
            lines.append(
                f"{marks[check.passed]:>2}  {check.name:<22} {value:>9} {check.relation} "
                f"{check.threshold:<9.3g} {check.meaning}"
            )
        lines += [self._summary(fact.name) for fact in fields(Evidence) if self.evidence]
        lines += [f"if  {premise.name}: {premise.meaning}" for premise in self.rests_on]
        lines += [f" *  {caveat}" for caveat in self.caveats]
        return "\n".join(lines)

    def _summary(self, fact: str) -> str:
        """One line on how many inputs have one piece of evidence."""
        values = [getattr(row, fact) for row in self.evidence]
        if all(value is None for value in values):
            return f"--  inputs: {fact.replace('_', ' ')} could not be looked at"
        count = sum(value is True for value in values)
        mark = "ok" if count == len(values) else "NO"
        return f"{mark}  inputs: {fact.replace('_', ' ')}, {count} of {len(values)}"
