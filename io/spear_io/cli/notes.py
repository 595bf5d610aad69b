"""What a command says beside its results: on standard error."""

from __future__ import annotations

from collections.abc import Iterable

from .streams import tell


def say(notes: Iterable[str]) -> None:
    """Print each note on a line of its own."""
    for note in notes:
        tell(f"spear-np: note: {note}", surely=False)
