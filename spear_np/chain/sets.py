"""What is left to be found: the affine sets of all layers, without the inputs that are known."""

from __future__ import annotations

from dataclasses import dataclass

from ..arrays import Array
from .affine import AffineSet, affine_set
from .layers import Chain

RADII = (-0.9, 0.3)
"""Logarithms of the smallest and the largest length of a start, in units of the expected length of an input.

Heuristic: lengths of inputs differ by a factor of two, and the expected one is known to as much.
"""


@dataclass(frozen=True)
class Open:
    """Where the inputs that are still missing can be; the sets shrink by one dimension with each that is found.

    Block 0 holds pre-activations z_0 of the first layer; block l holds inputs and pre-activations (a_l, z_l) of layer l
    one above the other; the last block K holds inputs a_K alone.
    """

    chain: Chain
    depth: int
    """K: how many layers behind the first take part."""
    scales: tuple[float, ...]
    """What z_l and a_{l+1} are multiplied by, so that all blocks count alike."""
    roots: tuple[Array, ...]
    """(b, m_l) for each layer: coordinates drawn as ``root w``, w standard normal, have the second moment of its inputs."""
    sets: tuple[AffineSet, ...]

    @property
    def missing(self) -> int:
        """How many inputs."""
        return self.sets[0].dimensions + 1

    def without(self, duals: tuple[Array, ...]) -> Open:
        """Return what is left when the input with these `duals`, one (b,) a layer, is known."""
        sets = tuple(one.without(dual) for one, dual in zip(self.sets, duals, strict=False))
        return Open(self.chain, self.depth, self.scales, self.roots, sets)


def open_sets(chain: Chain, depth: int) -> Open:
    """Return the sets with nothing known, for `depth` layers behind the first.

    Notes
    -----
    D has independent columns of about equal size where nothing else is known, so that ``V Gᵀ G V / ‖g‖²`` is the second
    moment of the coordinates: E[DᵀD] is a multiple of one, and ‖g‖² = ‖D 1‖² is b times it.
    """
    xp = chain.xp
    roots, scales = [], []
    for layer in chain.layers[: depth + 1]:
        roots.append(xp.matrix_transpose(layer.space.coordinates) / xp.linalg.vector_norm(layer.bias_grad))
    for layer, root in zip(chain.layers[:depth], roots, strict=False):
        energy = xp.sum((layer.to_units @ root) ** 2) / layer.to_units.shape[0]
        scales.append(float(energy) ** -0.5)
    sets = []
    for number, layer in enumerate(chain.layers[: depth + 1]):
        parts = []
        if number:
            parts.append(scales[number - 1] * layer.basis)
        if number < depth:
            parts.append(scales[number] * layer.to_units)
        sets.append(affine_set(xp.concat(parts, axis=0), layer.ones, chain.device))
    return Open(chain, depth, tuple(scales), tuple(roots), tuple(sets))
