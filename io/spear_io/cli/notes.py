"""What a command says beside its results: on standard error."""

from __future__ import annotations

import sys
from collections.abc import Iterable


def say(notes: Iterable[str]) -> None:
    """Print each note on a line of its own."""
    for note in notes:
        print(f"spear-np: note: {note}", file=sys.stderr)
