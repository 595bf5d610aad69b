"""What the difference of two models says of the weight decay between them."""

from __future__ import annotations

from pathlib import Path

import spear_np

from ..files.dump import Layer, open_dump
from ..problems import printable

LARGEST_LOOK = 2**24
"""Entries of a layer up to which it is looked at here: a wider one takes as long as its inversion, which looks as well."""


def decay_notes(dump: Path, record: str) -> list[str]:
    """Return a note on the weight decay that shows in the first fully connected layer that can tell; none without."""
    with open_dump(dump) as opened:
        for layer in next(one for one in opened.records if one.name == record).layers:
            decay = _decay(layer)
            if decay is not None and decay.present:
                stated = layer.gradients.decay.weight
                known = f" (said to be {stated:g})" if stated else ""
                held = f"the update of '{printable(layer.name)}' holds {decay}{known}"
                return [f"{held}: weight decay, which 'spear-np invert' takes out before anything else"]
    return []


def _decay(layer: Layer) -> spear_np.WeightDecay | None:
    if layer.kind != "linear" or layer.gradients.weight is None:
        return None
    m, n = layer.gradients.shape
    if m * n > LARGEST_LOOK:
        return None
    try:
        return spear_np.weight_decay(layer.gradients)
    except spear_np.InputError:
        return None  # what is wrong with it is said where it is used
