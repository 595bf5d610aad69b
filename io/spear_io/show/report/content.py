"""What a page shows, as plain data for its template."""

from __future__ import annotations

from dataclasses import dataclass

from .glossary import glossary
from .pictures import Inline


@dataclass(frozen=True)
class Fact:
    """A name and what it is."""

    name: str
    value: str


@dataclass(frozen=True)
class Card:
    """One recovered input, beside the true one if there is one."""

    row: int
    picture: Inline | None = None
    original: Inline | None = None
    lines: tuple[str, ...] = ()
    """Points of the curve, then of the true one."""
    label: str | None = None
    true_label: str | None = None
    bound: str | None = None
    psnr: str | None = None
    error: str | None = None
    good: bool | None = None
    """Whether it is as near to the truth as it says; None without a truth."""


@dataclass(frozen=True)
class Sheet:
    """Many recovered inputs in one picture."""

    first: int
    last: int
    """Positions, from 1."""
    picture: Inline
    original: Inline | None
    rows: str
    """Which they are, for those who cannot see it."""


@dataclass(frozen=True)
class Record:
    """One row of a table of recovered records."""

    name: str
    cells: tuple[str, ...]
    true: bool
    """Whether it is the original."""


@dataclass(frozen=True)
class Plot:
    """A plot with what it says."""

    title: str
    svg: str
    words: str


@dataclass(frozen=True)
class TellsBy:
    """By what the inputs of a layer are told apart."""

    zeros: bool
    """By the units that each leaves off."""
    equations: bool
    """By what the layers behind say of each."""


@dataclass(frozen=True)
class CheckRow:
    """One check of the certificate."""

    name: str
    """By which experts and other files know it."""
    title: str
    """What holds if it is passed."""
    value: str
    demand: str
    passed: bool | None
    meaning: str


@dataclass(frozen=True)
class Premise:
    """What the answer takes for granted."""

    short: str
    long: str


@dataclass(frozen=True)
class Section:
    """One layer."""

    anchor: str
    title: str
    status: str
    claim: str
    verdict: str
    explanation: str
    shared: tuple[Fact, ...]
    seen: str | None
    kind: str
    units: str
    tells_by: TellsBy
    truth: bool
    untold: str | None = None
    """Why no originals stand beside the inputs although something was given."""
    cards: tuple[Card, ...] = ()
    sheets: tuple[Sheet, ...] = ()
    missed: tuple[Inline, ...] = ()
    missed_count: int = 0
    columns: tuple[str, ...] = ()
    records: tuple[Record, ...] = ()
    bounds: tuple[str, ...] = ()
    """Of every column, the largest bound on the error of any record."""
    omitted: str | None = None
    """What was left out for want of room."""
    drawn: str | None = None
    """What is black and what is white in its pictures."""
    premises: tuple[Premise, ...] = ()
    checks: tuple[CheckRow, ...] = ()
    caveats: tuple[str, ...] = ()
    figure_names: tuple[str, ...] = ()
    figures: tuple[tuple[str, ...], ...] = ()
    missing: str | None = None
    labels: str | None = None
    """Why inputs have no label."""
    contradiction: str | None = None
    """What is to be said of the truth beside the inputs before anything else."""
    reason: str = ""
    notes: tuple[str, ...] = ()
    plots: tuple[Plot, ...] = ()
    advice: tuple[Fact, ...] = ()
    """Likely causes of what is missing, and what to try."""


@dataclass(frozen=True)
class Line:
    """One layer in the table at the top."""

    anchor: str | None
    record: str
    layer: str
    client: str
    round: str
    status: str
    claim: str
    found: str
    bound: str
    psnr: str


@dataclass(frozen=True)
class Report:
    """A whole page."""

    title: str
    headline: str
    source: str
    facts: tuple[Fact, ...]
    nothing_compared: str | None
    """What to say if no originals stand beside any input."""
    lines: tuple[Line, ...]
    more_lines: int
    clients: bool
    rounds: bool
    truth: bool
    sections: tuple[Section, ...]

    @property
    def glossary(self) -> tuple[tuple[str, str], ...]:
        """The words that it explains: those that are on it."""
        return glossary(
            {section.kind for section in self.sections if section.cards or section.records},
            zeros=any(section.tells_by.zeros for section in self.sections),
            equations=any(section.tells_by.equations for section in self.sections),
            truth=self.truth,
        )
