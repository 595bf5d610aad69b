"""Tables that fit the terminal: columns that matter less are left out, the rest wraps at words, or rows become blocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

NUMBER, OPTIONAL = ">", "?"
"""What a heading begins with if its column holds numbers, or may be left out; in this order."""


LONGEST_WORD = 16
"""Characters up to which a word stays whole; longer ones, as `leaky_relu(negative_slope=0.2)`, may be broken."""
EDGES, GAP = 2, 3
"""Columns that a table takes beside its cells."""


@dataclass(frozen=True)
class Heading:
    """One column."""

    title: str
    numeric: bool
    optional: bool

    @classmethod
    def of(cls, written: str) -> Heading:
        """Read ">?proposals": numbers that may be left out."""
        numeric = written.startswith(NUMBER)
        rest = written.removeprefix(NUMBER)
        return cls(rest.removeprefix(OPTIONAL), numeric, rest.startswith(OPTIONAL))


@dataclass
class Grid:
    """A table that is laid out when it is printed, for the width that there is.

    Parameters
    ----------
    headings : sequence of Heading
        The optional ones are left out from the right, one by one, until the table fits.
    """

    headings: Sequence[Heading]
    rows: list[tuple[RenderableType, ...]] = field(default_factory=list)

    def add_row(self, *cells: RenderableType) -> None:
        """Add a row with a cell for each heading."""
        assert len(cells) == len(self.headings), cells
        self.rows.append(cells)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """Yield the widest table that fits with its texts wrapped at words; where not even its longest words do, a block for each row."""
        shown = list(range(len(self.headings)))
        dropped: list[int] = []
        while self._needed(console, shown) > options.max_width:
            left = [place for place in shown if self.headings[place].optional]
            if not left:
                break
            dropped.insert(0, left[-1])
            shown.remove(left[-1])
        if self._needed(console, shown) > options.max_width:
            yield from self._blocks()
            return
        yield self._table(shown)
        if dropped:
            names = ", ".join(self.headings[place].title for place in dropped)
            yield Text(f"left out for want of room: {names}", style="dim")

    def _needed(self, console: Console, shown: Iterable[int]) -> int:
        """Columns of the terminal that a table of these takes at least: numbers whole, texts broken at words."""
        total = EDGES
        for place in shown:
            heading = self.headings[place]
            cells = [heading.title, *(row[place] for row in self.rows)]
            sizes = [Measurement.get(console, console.options, cell) for cell in cells]
            widest = max(size.maximum if heading.numeric else size.minimum for size in sizes)
            total += GAP + (widest if heading.numeric else min(widest, LONGEST_WORD))
        return total

    def _table(self, shown: Iterable[int]) -> Table:
        places = list(shown)
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for place in places:
            heading = self.headings[place]
            table.add_column(
                heading.title,
                justify="right" if heading.numeric else "left",
                overflow="fold",
                no_wrap=heading.numeric,  # "12.3 M" stays in one line; texts wrap at words
            )
        for row in self.rows:
            table.add_row(*(row[place] for place in places))
        return table

    def _blocks(self) -> Iterator[RenderableType]:
        for row in self.rows:
            for number, (heading, cell) in enumerate(zip(self.headings, row, strict=True)):
                line = Text.assemble(
                    (f"{heading.title}: ", "dim"), cell if isinstance(cell, Text) else str(cell)
                )
                yield Padding(line, (0, 0, 0, 2 if number else 0))
            yield ""
