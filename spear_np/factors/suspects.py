"""What weight_grad looks like where it cannot be inverted: no gradient of one batch, and which update instead."""

from __future__ import annotations

import numpy as np

from ..backend.devices import Device
from ..backend.host import to_host
from .decay import shows_decay
from .gradients import LayerGradients
from .rank import MOST_OF_SPECTRUM

SAME_SIZE = 0.02
"""Relative difference up to which two entries count as equally large.

Heuristic: the weights round a step of Adam by less, and of the entries of a gradient few are so near to each other.
"""
SIGNS_SHARE = 0.5
"""Share of the entries that are equally large in an update that holds signs, at least.

Heuristic: entries of a gradient spread over decades; of the first step of Adam only those below its ε are smaller.
"""


def holds_signs(gradients: LayerGradients, device: Device) -> bool:
    """Whether most entries that are not zero are of one size, as after the first step of Adam or of the sign of a gradient.

    Looks at the first block of columns that is not zero.
    """
    for _, (block,) in gradients.blocks("update", device=device):
        sizes = np.abs(to_host(block))
        sizes = sizes[sizes > 0]
        if len(sizes):
            middle = np.median(sizes)
            return len(sizes) > 1 and bool(
                np.mean(np.abs(sizes - middle) <= SAME_SIZE * middle) > SIGNS_SHARE
            )
    return False


def other_causes(gradients: LayerGradients, device: Device) -> str:
    """What else than a large batch or noise may have made a weight_grad of full rank, as far as it shows."""
    if holds_signs(gradients, device):
        return (
            "most entries of weight_grad are equally large: it holds the signs of a gradient, as after the first step of Adam or of "
            "signSGD, and not the gradient"
        )
    others = "an update of several steps on different batches, with momentum, or of Adam and its like has full rank too"
    if gradients.decay.present:
        return others
    if gradients.weight is None:
        return f"weight decay does that too, and can be taken out where `weight` is given; {others}"
    if not shows_decay(gradients):
        return f"weight decay does that too, but a layer as small as this one cannot tell it; {others}"
    most = int(MOST_OF_SPECTRUM * min(gradients.shape))
    return f"no multiple of the weights explains it, as weight decay with up to {most} inputs would; {others}"
