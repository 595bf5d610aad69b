"""What the exit status says of the layers that a command is about."""

from __future__ import annotations

from collections.abc import Iterable

from spear_np import Status

INCOMPLETE = 3
"""A layer is partial or failed, or a row that is marked exact is wrong."""


def exit_status(statuses: Iterable[Status]) -> int:
    """Return 0 if every layer was recovered whole."""
    whole = (Status.EXACT, Status.APPROXIMATE)
    return 0 if all(status in whole for status in statuses) else INCOMPLETE
