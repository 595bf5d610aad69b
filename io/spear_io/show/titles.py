"""What the layers of an inversion are called where people read them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Protocol

from ..files.display import Display
from ..problems import printable

NAMED_BY_US = re.compile(r"record-(\d+)")
"""What records are called whose makers did not name them."""


class Named(Protocol):
    """One layer of a file."""

    @property
    def record(self) -> str:
        """Its record."""
        ...

    @property
    def layer(self) -> str:
        """Its name."""
        ...

    @property
    def display(self) -> Display:
        """Whose it is."""
        ...


def titles(layers: Sequence[Named]) -> list[str]:
    """Return a title for each layer: "Client 3, round 7, layer fc1".

    Client and round stand for the record where the file knows them; else its own name does, or its number if nobody gave it one: "Record
    0", and nothing if it is the only one. Where two layers would be called the same, the record is added.
    """
    alone = len({layer.record for layer in layers}) == 1
    found = [_title(layer, alone=alone) for layer in layers]
    count = Counter(found)
    return [
        title if count[title] == 1 else f"{title} (record {printable(layer.record)})"
        for title, layer in zip(found, layers, strict=True)
    ]


def _title(layer: Named, *, alone: bool) -> str:
    display, number = layer.display, NAMED_BY_US.fullmatch(layer.record)
    whose = [
        f"{what} {printable(str(value))}"
        for what, value in (("client", display.client), ("round", display.round))
        if value is not None
    ]
    of_layer = f"layer {printable(layer.layer)}"
    if not whose and number is None:
        return f"{printable(layer.record)}, {of_layer}"
    if not whose and number is not None and not alone:
        whose = [f"record {number[1]}"]
    title = ", ".join([*whose, of_layer])
    return title[:1].upper() + title[1:]
