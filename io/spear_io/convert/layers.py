"""A layer as it is found: arrays of one name, sorted by what they are."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from .names import LONGEST_NUMBER, Role
from .source import NamedArray, Orientation

Part = Literal["weight_grad", "bias_grad", "weight", "bias"]

PARTS: dict[tuple[Role | None, bool], Part] = {
    ("weight", True): "weight_grad",
    ("bias", True): "bias_grad",
    ("weight", False): "weight",
    ("bias", False): "bias",
}

KINDS = {2: "linear", 3: "conv1d", 4: "conv2d", 5: "conv3d"}
"""What a layer is, by the dimensions of its kernel."""


@dataclass
class FoundLayer:
    """The arrays of one layer, as they lie in the source."""

    title: str
    parts: dict[Part, NamedArray] = field(default_factory=dict)
    words: tuple[str, ...] = ()
    """What its name consists of."""
    conventions: set[Orientation] = field(default_factory=set)
    """How arrays of such names usually lie."""
    changes: set[Part] = field(default_factory=set)
    """Which of its gradients are what training has added to the weight."""
    said: set[Part] = field(default_factory=set)
    """Which of its parts a user has chosen."""
    without_gradient: str = "is of a layer without gradient"
    """Why its arrays are not used if it has no gradient."""

    @property
    def matrix(self) -> NamedArray:
        """The gradient of the weight, or else the weight."""
        return self.parts["weight_grad"] if "weight_grad" in self.parts else self.parts["weight"]

    @property
    def kind(self) -> str:
        """ "linear", "conv2d", …"""
        return KINDS[len(self.matrix.shape)]

    @property
    def low_rank_factor(self) -> bool:
        """Whether it is one of two small matrices whose product is added to a layer that is not trained (LoRA)."""
        return "lora" in (word.lower() for word in self.words)

    @property
    def vector_length(self) -> int | None:
        """Entries of the bias or its gradient: the number of output units."""
        for part in ("bias_grad", "bias"):
            if part in self.parts:
                return self.parts[part].shape[0]
        return None


def natural(layer: FoundLayer) -> list[tuple[int, str]]:
    """Sort key of a layer's name."""
    return natural_text(layer.words)


def natural_text(words: Iterable[str]) -> list[tuple[int, str]]:
    """Sort key of a name: numbers in it by their value, so that layer_10 comes after layer_2."""
    parts = re.findall(r"\d+|\D+", " ".join(words))
    return [
        (int(part), "") if part.isdecimal() and len(part) <= LONGEST_NUMBER else (-1, part) for part in parts
    ]
