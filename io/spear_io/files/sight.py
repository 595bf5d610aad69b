"""What a layer sees: the inputs of the network, those inputs altered, or features that other layers made of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from ..problems import printable

ALTERING = re.compile(r"norm|dropout|dropped|noise|unknown|standardi[sz]e|normali[sz]", re.IGNORECASE)
"""Names of what changes inputs, but leaves every feature in its place; "unknown" gets the benefit of the doubt."""


RESHAPING = frozenset({"flatten", "reshape", "view", "permute", "squeeze", "unsqueeze"})
"""What leaves every number as it is."""


class Sight(StrEnum):
    """How near to the inputs of the network what a layer sees is."""

    INPUTS = "inputs"
    """They are the inputs."""
    ALTERED = "altered"
    """The inputs, normalised or with some features dropped: shapes hold, units do not."""
    FEATURES = "features"
    """What other layers made of them."""


@dataclass(frozen=True)
class Seen:
    """What one layer sees, and what stands before it."""

    sight: Sight = Sight.INPUTS
    follows: str | None = None
    """The layer whose activated output it takes, if it is one."""
    between: str | None = None
    """What else stands before it, as a dump names it: "layer_norm", "conv2d+max_pool2d"."""

    def sentence(self, layer: str) -> str | None:
        """Say what `layer` sees if that is not simply the inputs: "layer '4' sees the output of conv2d: …"."""
        what = " and ".join(printable(step) for step in (self.between or "").split("+") if step)
        name = f"layer '{printable(layer)}'"
        if self.sight is Sight.INPUTS:
            return None
        if self.sight is Sight.ALTERED:
            return (
                f"{name} sees the network's inputs after {what or 'something unknown'}: what is recovered is what came out of "
                "that, and cannot be put back into the units of the data"
            )
        if self.follows is not None:
            source = f"the activated output of layer '{printable(self.follows)}'"
            source += f" after {what}" if what else ""
        else:
            source = f"the output of {what}" if what else "the output of earlier layers"
        return f"{name} sees {source}: these are features, not images or records"


def seen_by(*, first: bool, follows: str | None, between: str | None) -> Seen:
    """Return what a layer sees of which a dump says whether it is the `first`, what it `follows` and what stands `between`."""
    steps = [step for step in (between or "").split("+") if step and step.lower() not in RESHAPING]
    if follows is not None or not first or not all(ALTERING.search(step) for step in steps):
        return Seen(Sight.FEATURES, follows, between)
    return Seen(Sight.ALTERED if steps else Sight.INPUTS, None, between)
