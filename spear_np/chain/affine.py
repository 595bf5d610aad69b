"""Affine sets of what an input can be in one layer, shrinking by one dimension with every input that is found."""

from __future__ import annotations

from dataclasses import dataclass

import array_api_compat

from ..arrays import Array, Namespace
from ..backend.algebra import orthogonal_complement
from ..backend.devices import Device
from ..factors.singular import pseudoinverse


@dataclass(frozen=True)
class AffineSet:
    """All ``B c`` with s · c = 1 and p · c = 0 for the duals p of found inputs: ``offset + directions y``.

    Shapes: r rows, b coordinates, d free dimensions. float64; `single` has float32 copies.
    """

    offset: Array
    """(r,): the point nearest to zero."""
    directions: Array
    """(r, d): orthonormal columns."""
    to_coordinates: Array
    """(b, r): c of a point of the set."""
    single: tuple[Array, Array]
    """`offset` and `directions` in float32."""

    @property
    def dimensions(self) -> int:
        """d."""
        return int(self.directions.shape[1])

    def without(self, dual: Array) -> AffineSet:
        """Return the part of the set with ``dual · c = 0``, for a `dual` (b,) that does not vanish on all of it.

        A Householder reflection turns the one direction that the condition fixes onto the first axis, which is dropped:
        4 r d operations instead of a decomposition.
        """
        xp: Namespace = array_api_compat.array_namespace(dual)
        condition = dual @ self.to_coordinates
        slope = condition @ self.directions
        squares = xp.sum(slope**2)
        offset = self.offset - self.directions @ (slope * ((condition @ self.offset) / squares))
        first = slope[:1] + xp.where(slope[:1] < 0, -xp.sqrt(squares), xp.sqrt(squares))
        mirror = xp.concat([first, slope[1:]])
        mirror = mirror / xp.linalg.vector_norm(mirror)
        turned = self.directions - 2 * (self.directions @ mirror)[:, None] * mirror[None, :]
        return _affine(offset, turned[:, 1:], self.to_coordinates)


def affine_set(rows: Array, ones: Array, device: Device) -> AffineSet:
    """Return the affine set of ``rows c`` with ``ones · c = 1``, for independent columns of `rows` (r, b)."""
    xp = device.xp
    centre = ones / (ones @ ones)
    Q, R = xp.linalg.qr(rows @ orthogonal_complement(xp, ones[:, None]))
    offset = rows @ centre
    del R
    return _affine(offset - Q @ (offset @ Q), Q, pseudoinverse(xp, rows))


def _affine(offset: Array, directions: Array, to_coordinates: Array) -> AffineSet:
    xp: Namespace = array_api_compat.array_namespace(offset)
    single = xp.astype(offset, xp.float32), xp.astype(directions, xp.float32)
    return AffineSet(offset, directions, to_coordinates, single)
