"""Numbers as narrower types would hold them."""

from __future__ import annotations

import numpy as np

from tests.networks import Floats


def round_to_bfloat16(values: Floats) -> Floats:
    """Return float32 numbers rounded to the nearest bfloat16, ties to even."""
    bits = np.asarray(values, dtype=np.float32).view(np.uint32)
    up = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    rounded: Floats = ((bits + up) & np.uint32(0xFFFF0000)).view(np.float32)
    return rounded
