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
        """Yield the widest table that fits; where not even its longest words do, a block for each row."""
        shown = list(range(len(self.headings)))
        dropped: list[int] = []
        while True:
            table = self._table(shown)
            needed = Measurement.get(console, options.update(max_width=10_000), table)
            left = [place for place in shown if self.headings[place].optional]
            if needed.maximum <= options.max_width or not left:
                break
            dropped.insert(0, left[-1])
            shown.remove(left[-1])
        if needed.minimum <= options.max_width:
            yield table
            if dropped:
                names = ", ".join(self.headings[place].title for place in dropped)
                yield Text(f"left out for want of room: {names}", style="dim")
        else:
            yield from self._blocks()

    def _table(self, shown: Iterable[int]) -> Table:
        places = list(shown)
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for place in places:
            heading = self.headings[place]
            table.add_column(heading.title, justify="right" if heading.numeric else "left", overflow="fold")
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
