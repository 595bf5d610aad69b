"""What `spear-np audit` prints."""

from __future__ import annotations

from ..problems import printable
from ..show.tables import console_for, new_table
from .document import Audit, lines_of


def print_audit(found: Audit, output: str) -> None:
    """Print what `spear-np audit` found: a line a defence."""
    console = console_for()
    table = new_table("defence", "break-even")
    for title, verdict in lines_of(found):
        table.add_row(title, verdict)
    console.print(table)
    for name, why in found.not_tried.items():
        console.print(f"{name.replace('_', ' ')}: not tried: {printable(why, 500)}", soft_wrap=True)
    console.print(found.sentence, soft_wrap=True)
    console.print(f"written to {printable(output, 1000)}", soft_wrap=True)
