"""Why a chain gives nothing: another activation than the one that was said?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from ..chain.examine import examine
from ..chain.layers import Chain
from ..chain.sets import open_sets
from ..factors.activation import ACTIVATIONS, NO_ACTIVATION, Activation
from ..search import ChainSearch
from ..search.levenberg import Levenberg
from ..search.reflect import Reflect

TRIES = 8
"""Blocks of starts for each activation.

Heuristic: with the right one nearly every start ends on an input, with a wrong one none does.
"""
SLOPES = (0.01, 0.1, 0.2)
"""Negative slopes of leaky ReLUs that are tried.

Definition: the defaults of PyTorch and JAX, of Keras' layer, and the usual one of generative networks.
"""


def likelier_activation(chain: Chain, depth: int) -> Activation | None:
    """Return an activation of the first layer with which inputs are found, where the one that was said gave none.

    A wrong activation leaves a membership residual of some per cent of the activations, the right one that of the noise. It
    is tried in all layers of which the same was said.
    """
    said = chain.layers[0].sigma
    rng = np.random.default_rng(0)
    for other in _others(said):
        layers = tuple(
            replace(one, layer=replace(one.layer, activation=other)) if one.sigma == said else one
            for one in chain.layers
        )
        if _finds(replace(chain, layers=layers), depth, rng):
            return other
    return None


def _others(said: Activation) -> Iterator[Activation]:
    for name in ACTIVATIONS:
        if name in (*NO_ACTIVATION, "prelu"):
            continue
        variants = (
            [Activation(name, {"negative_slope": slope}) for slope in SLOPES]
            if name == "leaky_relu"
            else [Activation(name)]
        )
        yield from (one for one in variants if one != said)


def _finds(chain: Chain, depth: int, rng: np.random.Generator) -> bool:
    """Whether a few blocks of starts end on a point that meets all equations."""
    left = open_sets(chain, depth)
    straight = chain.layers[0].sigma.piecewise_linear
    search: ChainSearch = Reflect.suited(chain) if straight else Levenberg.suited(chain)
    memory = search.start(left, rng)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for _ in range(TRIES):
            ends = search.propose(left, memory, rng)
            memory = ends.memory
            if ends.coordinates.shape[0] and examine(chain, ends.coordinates[:1, :], depth).accepted[0]:
                return True
    return False
