"""What an answer takes for granted, and the marks that alterations leave which keep zeros, rank and residuals.

All of a certificate follows from ``weight_grad = D Xᵀ`` and ``bias_grad = D 1``. An update ``D Xᵀ R``, as gradient centralisation, a
factored or orthogonalised optimiser, a preconditioner or a defence makes it, has the same zeros, rank and residuals, and leads to
the inputs ``Rᵀ x``. Activation signs contradict it where ``W (Rᵀ x - x)`` turns units on or off, and where it does not, nothing in one
layer can. So every answer says that it rests on this, in the line that says `exact`; and some R leave marks of their own:

- rows of weight_grad without their mean: every input is then known up to a constant;
- columns of one norm, or equal singular values: no gradient has them, a normalised update does.

Inputs whose entries have few significant bits are those that the layer saw; if it rounded them, nothing tells what they were.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from ..answer.certificate import Certificate, Check, Premise
from ..arrays import Array, HostArray
from ..backend.host import to_host
from ..backend.work import narrowing
from ..factors.gradients import LayerGradients
from ..factors.layer import Layer
from ..factors.row_space import RowSpace
from ..factors.singular import singular_values
from ..factors.zero import ZERO_SIGMAS
from .hidden import GROUP, room_for_hidden

EQUAL = 1e-3
"""Relative spread of norms or singular values below which they are one and the same.

Heuristic: far above what rounding to float32 leaves of equal ones, and below what 64 columns, or the inputs of a batch, would
show by chance once in some thousand.
"""
LEAST_COLUMNS = 8
"""Columns with a gradient from which their norms say something.

Heuristic: eight numbers that agree to a thousandth by chance are not met.
"""
MOST_BITS = 12
"""Significant bits of the entries of an input up to which they look rounded.

Definition: one more than float16 and TF32 keep.
"""
BEYOND_NOISE = 8.0
"""Multiple of the bound of an entry from which half a step of its last bit tells whether it lies on the grid.

Derived: an entry off the grid then looks as if it were on it with a probability of one in eight at most.
"""
LEAST_ON_GRID = 20
"""Entries that must lie on a grid for it to be one.

Derived: by chance once in 8^20.
"""
LEAST_OUTPUTS = 3
"""Units at the end of a chain from which the gradients of two inputs are in proportion by chance alone.

Derived: one number is always a multiple of another, and those of two classes under cross-entropy have the ratio -1.
"""
EXPECTED_FLIPS = 3.0
"""Activation signs that an error is expected to turn from which it would have been noticed.

Derived: none of them turns with a probability of e^-3, one in twenty.
"""
FINEST_ERROR = 1e-12
"""Relative error of an input below which none is told.

Derived: signs would need as many units to show it.
"""
HALVINGS = 40
"""Steps of a bisection on the logarithmic scale from `FINEST_ERROR` to one.

Derived: the ratio of its ends then differs from one by 3e-11.
"""


@dataclass(frozen=True, eq=False)
class Marks:
    """What one pass over weight_grad and the inputs finds."""

    mean: float
    """Root mean square, over the live rows, of the sum of a row, in standard deviations of the sum of its noise."""
    column_spread: float
    """Largest norm of a column less the smallest, over the largest, of those with a gradient; infinite if they are too few."""
    empty: int
    """Features without any gradient whose weights, if they are known, are not all zero."""
    bits: int | None
    """Significant bits that hold all entries of the inputs, if these are few."""


def with_premises(
    certificate: Certificate,
    space: RowSpace,
    gradients: LayerGradients,
    layer: Layer | None,
    recovery: Array,
    preactivation: Array | None,
    premises: tuple[Premise, ...] = (),
) -> Certificate:
    """Return the `certificate` of one layer with what it rests on, and with the checks of the marks of alterations.

    Where one of these fails, nothing bounds any error.

    Parameters
    ----------
    recovery : (k, m)
        Inputs are recovery · weight_grad.
    preactivation : (m, k), optional
        W X + b; None without W.
    premises : tuple of Premise
        What it rests on besides.
    """
    marks = marks_of(space, gradients, recovery, np.asarray(certificate.error_bound))
    z = None if preactivation is None else to_host(space.live_of(preactivation))
    seen = None
    if z is not None and layer is not None:
        size = to_host(space.xp.linalg.vector_norm(_inputs_in_basis(space, recovery), axis=1))
        norm = to_host(space.live_of(layer.weight_norm)) / math.sqrt(space.shape[1])
        seen = sign_resolution(z / (norm[:, None] * size[None, :]))
    hidden, caveats = _hidden(recovery.shape[0], z, layer)
    return _marked(
        replace(certificate, caveats=(*certificate.caveats, *caveats)),
        space,
        marks,
        (_plain(recovery.shape[0], seen), NONE_ALIKE, *premises, *hidden, *_of_marks(marks)),
    )


def with_links(
    certificate: Certificate,
    space: RowSpace,
    gradients: LayerGradients,
    recovery: Array,
    premises: tuple[Premise, ...],
) -> Certificate:
    """Return the `certificate` of a chain of layers with what it rests on, `linked_premises` among it.

    The other parameters are those of the first layer, as above. Where its weights see every direction of an input, the layers
    behind refuse what an alteration of weight_grad leads to, and its marks need no check. A layer that takes the mean from its weights
    takes it from its inputs: nothing behind it sees a difference.
    """
    marks = marks_of(space, gradients, recovery, np.asarray(certificate.error_bound))
    centred = (WITHOUT_MEAN,) if marks.mean < ZERO_SIGMAS else ()
    premises_of_all = (*premises, *centred, *_of_marks(marks))
    if BLIND in premises or FIRST_PLAIN in premises:
        return _marked(certificate, space, marks, premises_of_all)
    return replace(certificate, rests_on=premises_of_all)


def linked_premises(gradients: LayerGradients, on: HostArray, top: int) -> tuple[Premise, ...]:
    """What a chain that ends with `top` units leaves to be taken for granted where the inputs of `gradients` fit it.

    `on` (k, m) bool says which units of the first layer they turn on. Where `top` is three and more, inputs that look like fewer than
    they are show as several with one pattern.
    """
    units, features = gradients.shape
    blind = (BLIND,) if features > units else ()
    alike = top < LEAST_OUTPUTS or len(np.unique(on, axis=0)) < len(on)
    return (LINKED, *((NONE_ALIKE,) if alike else ()), *blind)


def without_alone(premises: tuple[Premise, ...]) -> tuple[Premise, ...]:
    """Those `premises` of one layer that are needed still where the layers behind bear its inputs out."""
    return tuple(premise for premise in premises if premise.name not in ALONE)


def marks_of(space: RowSpace, gradients: LayerGradients, recovery: Array, bound: HostArray) -> Marks:
    """Read weight_grad once more, for the inputs ``recovery · weight_grad`` with errors of at most `bound` (k,)."""
    return narrowing(space.device, space.shape[0], lambda: _read_marks(space, gradients, recovery, bound))


def _read_marks(space: RowSpace, gradients: LayerGradients, recovery: Array, bound: HostArray) -> Marks:
    """`marks_of`, with blocks of one size."""
    xp, device = space.xp, space.device
    sums = device.zeros(space.shape[0])
    low, high, empty, used = math.inf, 0.0, 0, 0
    grid = _Grid.untouched(bound)
    names = ("weight_grad",) if gradients.weight is None else ("weight_grad", "weight")
    for _, read in gradients.blocks(*names, device=device):
        block = read[0]
        sums = sums + xp.sum(block, axis=1)
        norms = to_host(xp.linalg.vector_norm(block, axis=0))
        weighted = (
            np.ones(len(norms), dtype=bool) if len(read) == 1 else to_host(xp.any(read[1] != 0, axis=0))
        )
        empty += int(np.sum((norms == 0) & weighted))
        used += int(np.sum(norms > 0))
        low = min(low, float(np.min(norms[norms > 0], initial=math.inf)))
        high = max(high, float(np.max(norms, initial=0.0)))
        grid = grid.after(to_host(recovery @ block)) if grid.open else grid
    total = to_host(space.live_of(sums / space.noise)) / math.sqrt(space.shape[1])
    mean = math.sqrt(float(np.mean(total**2))) if len(total) else math.inf
    return Marks(mean, (high - low) / high if used >= LEAST_COLUMNS else math.inf, empty, grid.bits)


def sign_resolution(z: HostArray) -> float:
    """Relative error of the inputs that their signs would show, by pre-activations `z` (ℓ, k) over ``‖w‖ ‖x‖ / √n``.

    The size of an independent error of every entry, as a share of the root mean square of the input, at which `EXPECTED_FLIPS` units
    are expected to change sides.
    """
    from scipy.special import ndtr  # slow to import

    depth = np.abs(z)
    low, high = FINEST_ERROR, 1.0
    if float(np.sum(ndtr(-depth / high))) < EXPECTED_FLIPS:
        return 1.0
    for _ in range(HALVINGS):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if float(np.sum(ndtr(-depth / middle))) < EXPECTED_FLIPS else (low, middle)
    return high


@dataclass(frozen=True, eq=False)
class _Grid:
    """How few significant bits hold all entries seen so far, by their number of bits."""

    bound: HostArray
    """(k,): errors of the entries, at most."""
    fits: tuple[int, ...]
    """Numbers of bits that hold all entries so far."""
    told: dict[int, int]
    """Entries of which that could be told, for each."""

    @classmethod
    def untouched(cls, bound: HostArray) -> _Grid:
        """Before the first entry; nothing is told of inputs that nothing bounds."""
        every = tuple(range(1, MOST_BITS + 1)) if np.all(np.isfinite(bound)) else ()
        return cls(bound, every, dict.fromkeys(every, 0))

    @property
    def open(self) -> bool:
        """Whether some number of bits may still do."""
        return bool(self.fits)

    @property
    def bits(self) -> int | None:
        """The least that holds all entries, if enough of them tell."""
        return next((bits for bits in self.fits if self.told[bits] >= LEAST_ON_GRID), None)

    def after(self, values: HostArray) -> _Grid:
        """The grid after further entries `values` (k, width)."""
        _, exponent = np.frexp(values)
        error = np.broadcast_to(self.bound[:, None], values.shape)
        fits, told = [], dict(self.told)
        for bits in reversed(self.fits):
            step = np.ldexp(1.0, exponent - bits)
            telling = (step / 2 > BEYOND_NOISE * error) & (values != 0)
            off = np.abs(values - np.rint(values / step) * step)
            if np.any(off[telling] > error[telling]):
                break  # fewer bits hold no more
            told[bits] += int(np.sum(telling))
            fits.append(bits)
        return _Grid(self.bound, tuple(reversed(fits)), told)


def _inputs_in_basis(space: RowSpace, recovery: Array) -> Array:
    """(k, b): coordinates in V of the inputs ``recovery · weight_grad``."""
    return recovery @ space.coordinates


def _marked(
    certificate: Certificate, space: RowSpace, marks: Marks, premises: tuple[Premise, ...]
) -> Certificate:
    checks = _checks(space, marks)
    bound = certificate.error_bound
    if not all(check.passed for check in checks):
        bound = (math.inf,) * len(bound)
    return replace(
        certificate,
        checks=(*certificate.checks, *checks) if certificate.checks else (),
        error_bound=bound,
        rests_on=premises,
    )


def _checks(space: RowSpace, marks: Marks) -> tuple[Check, ...]:
    values = to_host(singular_values(space.xp, space.coordinates))
    spread = float((values[0] - values[-1]) / values[0]) if len(values) > 1 else math.inf
    return (
        Check(
            "feature_mean",
            marks.mean,
            ">=",
            ZERO_SIGMAS,
            "sums of the rows of weight_grad over their noise: without any, the gradient was centralised, or every input is",
        ),
        Check(
            "column_norms",
            # A single input may have entries of one size.
            marks.column_spread if len(values) > 1 else math.inf,
            ">=",
            EQUAL,
            "relative spread of the norms of the columns of weight_grad: none if the update was normalised",
        ),
        Check(
            "singular_values",
            spread,
            ">=",
            EQUAL,
            "relative spread of the singular values: none if the update was orthogonalised",
        ),
    )


PLAIN, PLAIN_SINGLE = "plain gradient", "plain gradient of one input"
NONE_HIDDEN = "none hidden between"
NONE_ALIKE = Premise(
    "none alike",
    "no inputs turn on the same units with gradients that depend on each other, as of two inputs behind one output or two classes, of "
    "ten behind ten classes: they would count as fewer, weighted means of them",
)
LAYER_AS_GIVEN = Premise(
    "layer as given",
    "W, bias and activation are those that the gradient was taken at: bounds by signs fall short where weights are older or newer, or "
    "units are turned on otherwise than by a ReLU",
)
ALONE = (PLAIN, PLAIN_SINGLE, NONE_HIDDEN, NONE_ALIKE.name)
"""Names of what only one layer alone has to take for granted."""
LINKED = Premise(
    "layers linked",
    "the layers follow each other with nothing in between, and their gradients are of one step and of what the first of them saw",
)
WITHOUT_MEAN = Premise(
    "inputs without mean",
    "all inputs have a mean of zero, as behind a layer normalisation; if the layer takes the mean from its weights, or an optimiser took "
    "it from the gradient and the weights have none, each input is off by a constant",
)
FIRST_PLAIN = Premise(
    PLAIN,
    "weight_grad and bias_grad of the first layer are the plain gradient of what it saw: the layers behind tell who the inputs are, but "
    "do not hold all of them as tightly as the bounds say, which the first layer alone does",
)
BLIND = Premise(
    "plain where W is blind",
    "the first layer has more features than units: what its weights do not see of an input is taken from weight_grad alone, as the "
    "plain gradient of what the layer saw",
)


def _plain(k: int, resolution: float | None) -> Premise:
    signs = (
        "no activation signs test it"
        if resolution is None
        else f"signs would show an error of {resolution:.1%} of an input, and hardly a smaller one"
        if resolution < 1
        else "its activation signs are too few to test it"
    )
    return Premise(
        PLAIN if k > 1 else PLAIN_SINGLE,
        "weight_grad and bias_grad are the plain gradient, of one step and scaled alike, of what the layer saw; an update that an "
        f"optimiser, a compressor or a defence changed feature by feature leads to other inputs: {signs}"
        + ("" if k > 1 else ", and no other input does"),
    )


def _hidden(k: int, z: HostArray | None, layer: Layer | None) -> tuple[tuple[Premise, ...], tuple[str, ...]]:
    """What `k` inputs take for granted of one that leaves no trace of its own, or the caveat that there is no room for it."""
    if k < 2:
        return (), ()
    condition = "a combination of others, as between two of them, that turns on only units which all of these turn on, leaves no trace of its own"
    if z is None or layer is None or layer.has_ceiling:
        meaning = (
            f"no further input hides so: {condition}, and nothing tells here whether there is room for one"
        )
        return (Premise(NONE_HIDDEN, meaning),), ()
    pair = room_for_hidden(z)
    if pair is not None:
        meaning = f"no further input hides so: {condition}, and among rows {pair[0]}, {pair[1]} and others like them nothing excludes one"
        return (Premise(NONE_HIDDEN, meaning),), ()
    among = "these inputs" if k <= GROUP else f"any of these inputs and the {GROUP - 1} most like it"
    return (), (f"an input that is {condition}: there is no room for one among {among}",)


def _of_marks(marks: Marks) -> tuple[Premise, ...]:
    premises = []
    if marks.bits is not None:
        premises.append(
            Premise(
                f"seen with {marks.bits} bits",
                f"all entries have {marks.bits} significant bits or fewer (float8 keeps 3 or 4, bfloat16 8, float16 and TF32 11): they "
                "are what the layer saw, and if it rounded its inputs, not what they were before",
            )
        )
    if marks.empty:
        premises.append(
            Premise(
                f"{marks.empty} features zero",
                f"{marks.empty} features have no gradient at all, and are zero in every row: true if they are in every input, not if "
                "columns were left out of the update",
            )
        )
    return tuple(premises)
