"""The layer itself, W and the bias, and what it makes of inputs in the row space of weight_grad."""

from __future__ import annotations

import math
from dataclasses import dataclass

import array_api_compat

from ..arrays import Array, Namespace
from .activation import Activation


def depth(z: Array, ceiling: float) -> Array:
    """How far pre-activations `z` of a ReLU are below zero or above its `ceiling`; negative where it is on."""
    xp: Namespace = array_api_compat.array_namespace(z)
    return -z if math.isinf(ceiling) else xp.maximum(-z, z - ceiling)


@dataclass(frozen=True, eq=False)
class Layer:
    """W and the bias in the basis V of a `RowSpace`; arrays float64, on its device. m output units, b coordinates."""

    weight_in_basis: Array
    """(m, b) W V."""
    weight_norm: Array
    """(m,): Euclidean norm of each row of W."""
    bias: Array
    """(m,); zeros if missing."""
    activation: Activation
    """σ, what is applied to the pre-activations."""

    def preactivations(self, coordinates: Array) -> Array:
        """(m, k): W x + bias of the inputs x at `coordinates` (k, b) in V."""
        return self.weight_in_basis @ coordinates.T + self.bias[:, None]

    @property
    def ceiling(self) -> float:
        """Pre-activation above which a ReLU is constant and leaves no gradient; infinite for a plain one."""
        ceiling = self.activation.ceiling
        assert ceiling is not None  # see `LayerGradients.require_zeros`
        return ceiling

    @property
    def has_ceiling(self) -> bool:
        """Whether there is one."""
        return math.isfinite(self.ceiling)

    def depth(self, z: Array) -> Array:
        """How far pre-activations `z` are inside what lets no gradient through; negative where it does."""
        return depth(z, self.ceiling)

    def states(self, z: Array, doubt: Array | float = 0.0) -> tuple[Array, Array]:
        """Where pre-activations `z`, known up to `doubt`, surely pass a gradient on, and where they surely do not."""
        return (z > doubt) & (z < self.ceiling - doubt), (z < -doubt) | (z > self.ceiling + doubt)
