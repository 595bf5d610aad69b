"""Labels of the inputs of a chain that ends at an output layer."""

from __future__ import annotations

from ..answer.labels import labels_from
from ..arrays import Array, HostArray
from ..backend.host import to_host
from ..chain.equations import top_of
from ..chain.layers import Chain
from ..factors.activation import NO_ACTIVATION


def labels_of(chain: Chain, q: Array, loss: str | None) -> HostArray | None:
    """(k,) int64: labels of inputs with the numbers `q` (k, t) at the top of the chain; -1 where they tell none.

    None if the chain does not end at an output layer.
    """
    if top_of(chain)[1] or chain.layers[-1].sigma.name != NO_ACTIVATION[0]:
        return None
    return labels_from(to_host(q), loss)
