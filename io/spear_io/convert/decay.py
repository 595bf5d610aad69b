"""What the difference of two models says of the weight decay between them."""

from __future__ import annotations

from pathlib import Path

import spear_np
from spear_np.backend.devices import CPU
from spear_np.factors.decay import Decayed, shows_decay, without_decay

from ..files.dump import Layer, open_dump
from ..files.limits import working
from ..problems import FileError, printable

LARGEST_LOOK = 2**30
"""Products m · n · min(m, n) of all layers that are looked at: seconds. Their inversion looks at larger ones as well."""


def decay_notes(dump: Path, record: str) -> list[str]:
    """Return a note on the weight decay that shows in the first fully connected layer that can tell; none without.

    The dump is there already: whatever keeps this from looking at it is no error here.
    """
    try:
        with open_dump(dump) as opened:
            left = LARGEST_LOOK
            for layer in next(one for one in opened.records if one.name == record).layers:
                if layer.kind != "linear" or not shows_decay(layer.gradients):
                    continue
                m, n = layer.gradients.shape
                if m * n * min(m, n) > left:
                    continue
                left -= m * n * min(m, n)
                seen = _looked_at(layer)
                if seen is not None and seen.told:
                    return _note(layer, seen.gradients.decay)
    except (FileError, MemoryError):
        return []
    return []


def _looked_at(layer: Layer) -> Decayed | None:
    layer.check_affordable()
    try:
        with working():
            return without_decay(layer.gradients, CPU)
    except spear_np.InputError:
        return None  # what is wrong with it is said where it is used


def _note(layer: Layer, decay: spear_np.WeightDecay) -> list[str]:
    if not decay.present:
        return []
    stated = layer.gradients.decay.weight
    known = f" (said to be {stated:g})" if stated else ""
    held = f"the update of '{printable(layer.name)}' holds {decay}{known}"
    return [f"{held}: weight decay, which 'spear-np invert' takes out before anything else"]
