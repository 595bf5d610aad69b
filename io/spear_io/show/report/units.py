"""In which units inputs and their bounds are shown."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...files.inversion import RecoveredLayer
from ...files.sight import Sight
from ...files.storage import Floats
from ..looks import Look


@dataclass(frozen=True)
class Units:
    """The units of what is shown of one layer."""

    name: str
    """As a heading names them: "units of the data"."""
    factor: float
    """What a bound on every value of an input is multiplied by to hold in these units."""
    of_features: Floats | None
    """(n,): the same for every feature by itself, where they differ."""

    @property
    def sentence(self) -> str:
        """What they are, at the head of the inputs."""
        return f"All values, bounds and errors are in the {self.name}."


def units_of(layer: RecoveredLayer, look: Look) -> Units:
    """Return the units in which `look` shows the inputs of a layer."""
    normalisation = look.normalisation
    if normalisation is not None:
        std = normalisation.std
        of_features = None if isinstance(std, float) else std
        return Units("units of the data, with the normalisation undone", float(np.max(std)), of_features)
    if layer.seen.sight is Sight.FEATURES:
        return Units("units of the features that the layer sees", 1.0, None)
    return Units("units in which the layer sees its inputs", 1.0, None)
