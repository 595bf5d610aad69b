"""The layers of a chain in their bases: what each says of an input, and how far noise lets it be believed.

Layer l has the inputs A_l (n_l, b), A_0 = X, and Z_l = W_l A_l + b_l·1ᵀ, A_{l+1} = σ_l(Z_l). With V_l an orthonormal basis
of the row space of its weight_grad, an input of the layer is ``a = V_l c``, and

- ``s_l · c = 1`` for every input, because bias_grad = D_l·1;
- ``z = M_l c`` with M_l = W_l V_l + b_l s_lᵀ;
- noise of size η in the rows of weight_grad moves V_l c by ``|S_l⁻¹ c|`` in every entry, `ChainLayer.spread`, because rows
  divided by their η are ``U_l S_l`` in the basis V_l plus noise of size one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import array_api_compat

from ..arrays import Array, Namespace
from ..backend.devices import Device
from ..errors import InputError
from ..factors.activation import Activation
from ..factors.factorize import Factors
from ..factors.gradients import UNIT_ROUNDOFF, LayerGradients
from ..factors.layer import Layer
from ..factors.row_space import RowSpace

SAME_UNIT = 1e-12
"""Squared distance of the weights of two units, as a share of their squares, up to which they are the same.

Derived: far above the rounding of float64, and a millionth of their size.
"""


NOT_KEPT: Any = None
"""In the place of what nobody reads: see `ChainLayer.space` and `ChainLayer.weight`."""


@dataclass(frozen=True)
class ChainLayer:
    """One layer of a chain; all arrays float64 on the device. Shapes: m output units, n input features, r its rank."""

    space: RowSpace
    """The `RowSpace` of weight_grad; like everything below that follows from it, None for a layer that is not factorised and
    only passes on what the others say."""
    layer: Layer
    """W and the bias in the basis V."""
    gradients: LayerGradients
    bias_grad: Array
    """(m,)."""
    ones: Array
    """(r,): s, with s · c = 1 for the coordinates c of every input."""
    to_units: Array
    """(m, r): M, the pre-activations of an input with coordinates c."""
    basis: Array
    """(n, r): V, in float32 for the first layer, whose features may be many."""
    weight: Array
    """(m, n): W; None for the first layer."""
    unweighted: int = 0
    """Features of the first layer that have only zeros for weights: no equation holds them."""

    @property
    def rank(self) -> int:
        """r; zero for a layer that is not factorised."""
        return 0 if self.space is None else int(self.space.batch_size)

    @property
    def units(self) -> int:
        """m."""
        return self.gradients.shape[0]

    @property
    def sigma(self) -> Activation:
        """σ."""
        return self.layer.activation

    @cached_property
    def telling(self) -> int:
        """How many of the n features say something of an input: the others have no gradient, as behind dead units."""
        xp: Namespace = array_api_compat.array_namespace(self.basis)
        return int(xp.sum(xp.astype(xp.any(self.basis != 0, axis=1), xp.int64)))

    @cached_property
    def absorbed(self) -> Array:
        """(n + 1,): see `System.absorbed`, of the equations of membership."""
        return _absorbed_by(array_api_compat.array_namespace(self.basis), self.basis)

    @property
    def bias(self) -> Array:
        """(m,)."""
        return self.layer.bias

    @cached_property
    def weight_squares(self) -> Array:
        """(m, n): squares of W, which pass variances on."""
        return self.weight**2

    @property
    def columns(self) -> Array:
        """(m, r): orthonormal columns in units of the noise, times that noise: what columns of ∂L/∂Z are made of."""
        space = self.space
        return self.whole(space.U * space.live_of(space.noise)[:, None])

    def whole(self, live_rows: Array) -> Array:
        """(m, r): `live_rows` (ℓ, r) in their places, zero elsewhere."""
        return self.space.whole(live_rows)

    @cached_property
    def bias_noise(self) -> Array:
        """(m,): standard deviation of the noise of bias_grad."""
        return bias_noise_of(self.space, self.bias_grad)

    @cached_property
    def bias_ratio(self) -> Array:
        """Root mean square over the live rows of the noise of bias_grad over that of weight_grad."""
        ratio = self.space.live_of(self.bias_noise / self.space.noise)
        xp = self.space.xp
        return xp.sqrt(xp.mean(ratio**2))

    def spread(self, coordinates: Array) -> Array:
        """(k,): standard deviation that noise gives every entry of the inputs with `coordinates` (k, r)."""
        return self.space.noise_norm(coordinates)

    def dual(self, output_grad: Array) -> Array:
        """(k, r): p with ``p · c = 1`` for the input whose column of ∂L/∂Z is in `output_grad` (k, m), 0 for all others."""
        space = self.space
        live = space.xp.take(output_grad / space.noise, space.live, axis=1)
        return (live @ space.U) / space.S


@dataclass(frozen=True)
class Chain:
    """Layers that follow each other; the first is the one whose inputs are sought."""

    layers: tuple[ChainLayer, ...]
    device: Device
    roundoff: float
    """Largest relative error of one operation of the forward and backward pass that made the gradients."""

    @property
    def batch_size(self) -> int:
        """b, the rank of the first layer."""
        return self.layers[0].rank

    @property
    def xp(self) -> Namespace:
        """Array namespace."""
        return self.device.xp

    @cached_property
    def first_columns(self) -> Array:
        """(m, b): U of the first layer, zero where a row holds nothing but noise."""
        first = self.layers[0]
        return first.whole(first.space.U)

    @cached_property
    def absorbed_behind(self) -> Array:
        """(m + 1,): see `System.absorbed`, of the equations of the backward side."""
        return _absorbed_by(self.xp, self.first_columns)

    @cached_property
    def repetition(self) -> int:
        """How many units of the first layer have the same weights and bias, at most.

        They have the same rounding too: their equations count once. Units whose pre-activation is the same for all inputs say
        nothing of any, and are left out.
        """
        xp, first = self.xp, self.layers[0]
        ones = first.ones / xp.linalg.vector_norm(first.ones)
        rows = first.to_units - (first.to_units @ ones)[:, None] * ones[None, :]
        gram = rows @ rows.T
        squares = xp.linalg.diagonal(gram)
        apart = squares[:, None] + squares[None, :] - 2 * gram
        varied = squares > SAME_UNIT * xp.max(squares)
        same = (apart <= SAME_UNIT * squares[:, None]) & varied[:, None] & varied[None, :]
        return max(1, int(xp.max(xp.sum(xp.astype(same, xp.int64), axis=1))))

    @property
    def straight(self) -> bool:
        """Whether all activations have straight pieces: then ∂L/∂Z does not move with its input between kinks."""
        return all(layer.sigma.piecewise_linear for layer in self.layers[:-1])

    @cached_property
    def depth(self) -> int:
        """K, the number of layers behind the first that have its rank and so say whether an input is one of theirs."""
        depth = 0
        while depth + 1 < len(self.layers) and self.layers[depth + 1].rank == self.batch_size:
            depth += 1
        return depth


def _absorbed_by(xp: Namespace, basis: Array) -> Array:
    """(m + 1,): the diagonal of the projection on `basis` (m, r), and nothing for the equation that goes with it."""
    return xp.concat([xp.sum(basis**2, axis=1), xp.zeros_like(basis[0, :1])])


def bias_noise_of(space: RowSpace, bias_grad: Array) -> Array:
    """(m,): standard deviation of the noise of `bias_grad` (m,).

    Rounding follows the size of each entry, and whoever adds noise adds it to every array in proportion to its entries: so it is
    that of weight_grad, times the larger of both ratios of sizes; or as much more as the columns of weight_grad leave of bias_grad,
    up to what `cancelled` explains.
    """
    supposed = _supposed_bias_noise(space, bias_grad)
    return supposed * min(max(1.0, bias_misfit(space, bias_grad)), cancelled(space))


def cancelled(space: RowSpace) -> float:
    """How many times more noise rounding may leave in bias_grad than its entries and those of weight_grad tell.

    A feature of which one input has a part holds one product, bias_grad the sum of b, which may cancel: the rounding of b terms
    of one size is √b times that of one.
    """
    return math.sqrt(space.batch_size)


def bias_misfit(space: RowSpace, bias_grad: Array) -> float:
    """Root mean square of what the columns of weight_grad leave of `bias_grad` (m,), in standard deviations of its supposed noise.

    ``G = D Aᵀ`` and ``g = D·1`` have the same columns, so that none is left, if A has as many independent columns as D. It has
    not where an input is zero, or a combination of others: then no s has s · c = 1 for all inputs, and no scale is right.
    """
    xp = space.xp
    g = space.live_of(bias_grad / space.noise)
    left = g - space.U @ (space.U.T @ g)
    left = left * space.live_of(space.noise / _supposed_bias_noise(space, bias_grad))
    freedom = max(int(left.shape[0]) - space.batch_size, 1)
    return math.sqrt(float(xp.sum(left**2)) / freedom)


def _supposed_bias_noise(space: RowSpace, bias_grad: Array) -> Array:
    """(m,): noise of `bias_grad` by the sizes of its entries and of those of weight_grad."""
    xp = space.xp
    own = xp.abs(bias_grad) * space.shape[1] ** 0.5
    ratio = own / xp.where(space.row_norm > 0, space.row_norm, xp.ones_like(own))
    common = xp.linalg.vector_norm(own) / xp.linalg.vector_norm(space.row_norm)
    return space.noise * xp.maximum(xp.maximum(ratio, xp.ones_like(own) * common), xp.ones_like(own))


def chain_layer(factors: Factors, *, first: bool) -> ChainLayer:
    """Put the factors of a layer into the form that chains need; reads weight_grad once more.

    Notes
    -----
    s is the least-squares solution of ``weight_grad V s = bias_grad``, rows weighted by their noise.
    """
    space, layer, gradients = factors.space, factors.layer, factors.gradients
    xp = space.xp
    assert layer is not None  # a chain needs W
    assert factors.bias_grad is not None
    ones = (space.U.T @ space.live_of(factors.bias_grad / space.noise)) / space.S
    basis: list[Array] = []
    weight: list[Array] = []
    unweighted = 0
    for _, blocks in gradients.blocks("weight_grad", "weight", device=space.device):
        part = xp.matrix_transpose(blocks[0]) @ space.to_basis
        basis.append(xp.astype(part, xp.float32) if first else part)
        if first:
            unweighted += int(xp.sum(xp.astype(xp.all(blocks[1] == 0, axis=0), xp.int64)))
        else:
            weight.append(blocks[1])
    V = xp.concat(basis, axis=0)
    return ChainLayer(
        space=space,
        layer=layer,
        gradients=gradients,
        bias_grad=factors.bias_grad,
        ones=ones,
        to_units=layer.weight_in_basis + layer.bias[:, None] * ones[None, :],
        basis=V if first else _orthonormal(xp, V),
        weight=NOT_KEPT if first else xp.concat(weight, axis=1),
        unweighted=unweighted,
    )


def _orthonormal(xp: Namespace, V: Array) -> Array:
    """`V` (n, r), its strongest columns first, with what products left of those before taken out of every column.

    Weak columns are off by the unit roundoff times the condition of weight_grad. Where that is all the noise there is, a
    projection on columns that are not quite orthogonal would show it in inputs that have no part in them.
    """
    Q, R = xp.linalg.qr(V)
    return Q * xp.sign(xp.linalg.diagonal(R))[None, :]


def passing_layer(gradients: LayerGradients, device: Device) -> ChainLayer:
    """Return a layer that only passes on what others say: W, its bias and σ, without factors.

    Raises
    ------
    InputError
        If one of them holds NaN or infinity.
    """
    parts = [block for _, (block,) in gradients.blocks("weight", device=device)]
    weight = device.xp.concat(parts, axis=1)
    norm = device.xp.linalg.vector_norm(weight, axis=1)
    bias = gradients.vector("bias", device=device)
    for name, array in (("weight", weight), ("bias", bias)):
        if not bool(device.xp.all(device.xp.isfinite(array))):
            msg = f"`{name}` holds NaN or infinity"
            raise InputError(msg)
    layer = Layer(device.zeros((gradients.shape[0], 0)), norm, bias, gradients.sigma)
    return ChainLayer(NOT_KEPT, layer, gradients, NOT_KEPT, NOT_KEPT, NOT_KEPT, NOT_KEPT, weight)


def chain_of(given: Sequence[Factors | ChainLayer], device: Device) -> Chain:
    """Return the chain of these layers, in forward order: factors, or layers that only pass on what the others say."""
    layers = tuple(
        chain_layer(one, first=number == 0) if isinstance(one, Factors) else one
        for number, one in enumerate(given)
    )
    weights = (layer.gradients.weight for layer in layers)
    precise = all(weight is not None and str(weight.dtype).endswith("float64") for weight in weights)
    return Chain(layers, device, UNIT_ROUNDOFF["float64" if precise else "float32"])
