"""A device that is not the host, without a card: arrays of array-api-strict, which mix with no others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from spear_np.backend.devices import Device
from tests.backends import Backend


class Card(Device):
    """Counts how often it was made current."""

    entered: list[str] = []  # noqa: RUF012  (a frozen dataclass holds no other state)

    def activate(self) -> AbstractContextManager[Any]:
        @contextmanager
        def entered() -> Iterator[None]:
            self.entered.append(self.name)
            yield

        return entered()


def strict_card(name: str = "gpu:0") -> Card:
    Card.entered.clear()
    return Card(Backend.STRICT.xp, Backend.STRICT.handle, name)
