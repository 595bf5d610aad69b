"""How close an inversion came: rows matched to the true inputs, errors and peak signal-to-noise ratios.

Reads the truth that a dump may hold; the solver never does.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

import spear_np

from ..files.attributes import stored_name
from ..files.display import Display, image_axes
from ..files.dump import Dump, Layer, Record, named
from ..files.inversion import InversionFile, RecoveredLayer
from ..files.limits import working
from ..files.sight import Seen, Sight
from ..files.storage import TRUTH_AGAIN, Floats, LoadedRows, Rows, check_finite, column_blocks
from ..problems import FileError, listing, printable
from .matching import errors_of, matched, pair_blocks, psnr, squared_distances
from .normalisation import Normalisation, data_range_of, normalisation_of
from .similarity import discrete_columns, structural_similarity

EXACT = 1e-4
"""An input counts as exact if its largest error is below this share of the data range."""

STORED_ROUNDING = float(np.finfo(np.float32).eps)
"""Share of the data range by which a true input may be off as it is stored, whatever a bound says.

Derived: one rounding to float32, in which most data are kept, and normalised.
"""

LAYER_INPUTS, PIXELS = "layer inputs", "pixels"
"""Units of errors: those of the layer, or those of the data where normalisation can be undone."""


@dataclass(frozen=True)
class RowMatch:
    """One recovered input beside the true input it was matched to; errors are None where none was left."""

    row: int
    """Row of `inputs` in the inversion."""
    truth: int | None
    """Row of the true inputs."""
    psnr: float | None
    """Peak signal-to-noise ratio in dB, with the layer's `data_range` as peak; infinite if nothing differs."""
    max_error: float | None
    """Largest absolute error, as a share of the data range."""
    exact: bool
    """Whether `max_error` is below `EXACT`."""
    scale: float
    """What the recovered row was multiplied by: 1 unless the file says that the scale is unknown."""
    within_bound: bool | None
    """Whether the error stays within the bound that the inversion gave, but for `STORED_ROUNDING`; None without one."""
    ssim: float | None = None
    """Structural similarity, for images and where scikit-image is installed."""
    discrete: float | None = None
    """For rows of a table: share of the features with whole numbers that round to the true one."""


@dataclass(frozen=True)
class Truth:
    """True inputs that no dump holds, and how their units are to be read."""

    rows: Rows
    """(b, n), as they lie in the file."""
    of_data: bool | None = None
    """Whether they are in the units of the data, before any normalisation; None: whichever fits what was recovered better."""

    def of(self, recovered: RecoveredLayer) -> Rows:
        """Return the rows as the layer of `recovered` sees them."""
        pixels = normalisation_of(recovered.display, recovered.seen, self.rows.shape[1], recovered.place)
        if pixels is None or self.of_data is False:
            return self.rows
        normalised = LoadedRows(pixels.done(self.rows[:, :].astype(np.float64)), self.rows.place)
        if self.of_data or not recovered.found:
            return normalised
        with np.errstate(over="ignore", invalid="ignore"):
            near = [
                float(np.sum(squared_distances(recovered.inputs, rows, scale_known=recovered.scale_known)))
                for rows in (normalised, self.rows)
            ]
        return normalised if near[0] <= near[1] else self.rows


@dataclass(frozen=True)
class LayerEvaluation:
    """One layer; the figures are None and `rows` empty where there is no truth to compare with."""

    record: str
    layer: str
    status: str
    claim: str
    """The status with what it rests on."""
    recovered: int
    truth_inputs: int | None
    """Number of true inputs."""
    distinct_truth: int | None
    """Number of different ones: a gradient shows identical inputs once."""
    units: str
    """"pixels" if normalisation could be undone, else "layer inputs"."""
    data_range: float | None
    """Range that errors are relative to, in `units`."""
    rows: tuple[RowMatch, ...] = ()
    problem: str | None = None
    """Why there is nothing to compare."""
    seen: str | None = None
    """What the layer sees, if that is not simply the inputs of the network."""

    @property
    def matched(self) -> int:
        """Recovered inputs that have a true one as counterpart."""
        return sum(row.truth is not None for row in self.rows)

    @property
    def matched_share(self) -> float | None:
        """Matched inputs as a share of the different true ones."""
        return self.matched / self.distinct_truth if self.distinct_truth else None

    @property
    def exact(self) -> int:
        """Recovered inputs that are exact."""
        return sum(row.exact for row in self.rows)

    @property
    def exact_share(self) -> float | None:
        """Exact inputs as a share of the different true ones."""
        return self.exact / self.distinct_truth if self.distinct_truth else None

    @property
    def mean_psnr(self) -> float | None:
        """Mean over the matched rows, dB."""
        return _mean([row.psnr for row in self.rows])

    @property
    def mean_ssim(self) -> float | None:
        """Mean over the matched rows."""
        return _mean([row.ssim for row in self.rows])

    @property
    def mean_discrete(self) -> float | None:
        """Mean over the matched rows."""
        return _mean([row.discrete for row in self.rows])

    @property
    def max_error(self) -> float | None:
        """Largest error of any matched row, as a share of the data range."""
        return max((row.max_error for row in self.rows if row.max_error is not None), default=None)

    @property
    def broken_promise(self) -> bool:
        """Whether the status is "exact" although a row is neither exact nor within its error bound."""
        return self.status == spear_np.Status.EXACT and any(
            not row.exact and not row.within_bound for row in self.rows
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON, summary figures included."""
        return {**asdict(self), **{name: getattr(self, name) for name in SUMMARY}}


SUMMARY = (
    "matched",
    "matched_share",
    "exact",
    "exact_share",
    "mean_psnr",
    "mean_ssim",
    "mean_discrete",
    "max_error",
    "broken_promise",
)


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    with np.errstate(invalid="ignore"):  # of infinities of either sign
        return float(np.mean(known)) if known else None


def evaluate(inversion: InversionFile, dump: Dump) -> tuple[LayerEvaluation, ...]:
    """Compare every recovered layer with the truth in `dump`.

    Raises
    ------
    FileError
        If the files do not belong together, or no layer has truth.
    """
    results = []
    for recovered in _from(dump, inversion):
        record = named(dump.records, recovered.source_record or recovered.record, dump.place, "record")
        layer = named(record.layers, recovered.layer, record.place, "layer")
        results.append(evaluate_layer(recovered, record, layer))
    if all(result.truth_inputs is None for result in results):
        msg = "holds no true inputs for the layers of this inversion: there is nothing to compare with"
        raise FileError(msg, dump.place, "export the dump with truth to evaluate")
    return tuple(results)


def _from(dump: Dump, inversion: InversionFile) -> tuple[RecoveredLayer, ...]:
    """The layers that came from this dump; all, if the inversion came from a single one."""
    if inversion.source is not None:
        return inversion.layers
    name = stored_name(dump.path)
    layers = tuple(layer for layer in inversion.layers if layer.source in (name, None))
    if not layers:
        msg = f"holds nothing that came from '{printable(name)}'"
        there = dict.fromkeys(layer.source for layer in inversion.layers if layer.source is not None)
        raise FileError(msg, inversion.place, f"give one of these dumps: {listing(there)}")
    return layers


def evaluate_layer(
    recovered: RecoveredLayer, record: Record, layer: Layer, *, ssim: bool = True
) -> LayerEvaluation:
    """Match the recovered rows to the true inputs so that the sum of squared distances is smallest; `ssim` as in `compared`."""
    result = nothing_compared(recovered)
    truth = layer.truth
    if truth is None:
        return replace(result, problem="the dump holds no true inputs of this layer")
    return compared(result, recovered, truth, layer.seen, record.info, ssim=ssim)


def evaluate_against(inversion: InversionFile, truth: Truth) -> tuple[LayerEvaluation, ...]:
    """Compare the recovered layers with a `truth` that no dump holds; those with another number of features only say so."""
    results = []
    for recovered in inversion.layers:
        nothing = nothing_compared(recovered)
        features = recovered.inputs.shape[1]
        if features != truth.rows.shape[1]:
            problem = f"the layer has {features} features, but the true inputs have {truth.rows.shape[1]}"
            results.append(replace(nothing, problem=problem))
        else:
            rows = truth.of(recovered)
            results.append(compared(nothing, recovered, rows, recovered.seen, recovered.display))
    return tuple(results)


def nothing_compared(recovered: RecoveredLayer) -> LayerEvaluation:
    """Return what is said of a layer before it is compared."""
    return LayerEvaluation(
        record=recovered.record,
        layer=recovered.layer,
        status=str(recovered.status),
        claim=recovered.claim,
        recovered=recovered.found,
        truth_inputs=None,
        distinct_truth=None,
        units=LAYER_INPUTS,
        data_range=None,
    )


def compared(
    nothing: LayerEvaluation,
    recovered: RecoveredLayer,
    truth: Rows,
    seen: Seen,
    display: Display,
    *,
    ssim: bool = True,
) -> LayerEvaluation:
    """Return `nothing` with the recovered rows matched to the rows of `truth` (b, n), which are as the layer sees them.

    `seen` and `display` say what the layer sees and how it is drawn; without `ssim`, how alike two rows look is not taken, which for
    thousands takes longer than all else.
    """
    if recovered.inputs.shape[1] != truth.shape[1]:
        msg = f"has {recovered.inputs.shape[1]} features, but the true inputs have {truth.shape[1]}"
        raise FileError(msg, recovered.inputs.place, "give the dump that this inversion came from")
    with working(), np.errstate(over="ignore", invalid="ignore"):
        result = _compared(nothing, recovered, truth, seen, display)
        return _with_likeness(result, recovered, truth, seen, display) if ssim else result


def _compared(
    result: LayerEvaluation, recovered: RecoveredLayer, truth: Rows, seen: Seen, display: Display
) -> LayerEvaluation:
    result = replace(result, seen=seen.sentence(result.layer))
    check_finite(truth, TRUTH_AGAIN)
    check_finite(recovered.inputs, "run 'spear-np invert' again")

    pixels = normalisation_of(display, seen, truth.shape[1], truth.place)
    distinct = distinct_rows(truth)
    data_range = data_range_of(truth, pixels)
    result = replace(
        result,
        truth_inputs=truth.shape[0],
        distinct_truth=len(distinct),
        units=LAYER_INPUTS if pixels is None else PIXELS,
        data_range=data_range,
    )
    return replace(result, rows=_match(recovered, truth, distinct, pixels, data_range))


def _with_likeness(
    result: LayerEvaluation, recovered: RecoveredLayer, truth: Rows, seen: Seen, display: Display
) -> LayerEvaluation:
    """Add how alike matched rows look: structural similarity of images, right categories of all else."""
    pixels = normalisation_of(display, seen, truth.shape[1], truth.place)
    rows, data_range = result.rows, result.data_range or 1.0
    image = image_axes(display.input_shape) if seen.sight is Sight.INPUTS else None
    if image is not None and math.prod(image[0]) == truth.shape[1]:
        rows = _with_ssim(rows, recovered.inputs, truth, image, pixels, data_range)
    else:
        rows = _with_discrete(rows, recovered.inputs, truth)
    return replace(result, rows=rows)


def _with_ssim(
    rows: tuple[RowMatch, ...],
    inputs: Rows,
    truth: Rows,
    image: tuple[tuple[int, ...], int],
    pixels: Normalisation | None,
    data_range: float,
) -> tuple[RowMatch, ...]:
    """Add the structural similarity of every matched row, in pixels where normalisation can be undone."""

    def look(values: Floats) -> Floats:
        return values if pixels is None else pixels.undone(values)

    compared = []
    for row in rows:
        if row.truth is not None:
            recovered = look(row.scale * inputs[row.row : row.row + 1, :].astype(np.float64))[0]
            original = look(truth[row.truth : row.truth + 1, :].astype(np.float64))[0]
            row = replace(row, ssim=structural_similarity(recovered, original, *image, data_range))
        compared.append(row)
    return tuple(compared)


def _with_discrete(rows: tuple[RowMatch, ...], inputs: Rows, truth: Rows) -> tuple[RowMatch, ...]:
    """Add the share of right features of every matched row, where the true inputs hold whole numbers."""
    matched = [row for row in rows if row.truth is not None]
    right, count = np.zeros(len(matched)), 0
    for _, x, t in pair_blocks(inputs, truth):
        discrete = discrete_columns(t)
        count += int(np.sum(discrete))
        for place, row in enumerate(matched):
            same = np.rint(row.scale * x[row.row, discrete]) == t[row.truth, discrete]
            right[place] += np.sum(same)
    if not count:
        return rows
    shares = {row.row: float(share) for row, share in zip(matched, right / count, strict=True)}
    return tuple(replace(row, discrete=shares.get(row.row)) for row in rows)


def _match(
    recovered: RecoveredLayer,
    truth: Rows,
    distinct: list[int],
    pixels: Normalisation | None,
    data_range: float,
) -> tuple[RowMatch, ...]:
    k = recovered.found
    pairs = matched(recovered.inputs, truth, distinct, scale_known=recovered.scale_known) if k else []
    errors = errors_of(recovered.inputs, truth, pairs, pixels)
    bounds = np.full(k, np.nan) if recovered.error_bound is None else recovered.error_bound[:]
    matches = {}
    for pair, error in zip(pairs, errors, strict=True):
        share = error.largest / data_range
        matches[pair.row] = RowMatch(
            row=pair.row,
            truth=pair.truth,
            psnr=psnr(error.mean_square, data_range),
            max_error=share,
            exact=share < EXACT,
            scale=pair.scale,
            within_bound=None
            if np.isnan(bounds[pair.row])
            else bool(error.largest_input <= bounds[pair.row] or share <= STORED_ROUNDING),
        )
    alone = {
        row: RowMatch(row, None, None, None, exact=False, scale=1.0, within_bound=None) for row in range(k)
    }
    return tuple({**alone, **matches}.values())


def distinct_rows(truth: Rows) -> list[int]:
    """Return the first of every group of identical rows."""
    hashes = [hashlib.blake2b(digest_size=16) for _ in range(truth.shape[0])]
    for columns in column_blocks(truth.shape):
        block = np.ascontiguousarray(truth[:, columns] + 0)  # -0.0 becomes 0.0
        for state, row in zip(hashes, block, strict=True):
            state.update(row)
    first: dict[bytes, int] = {}
    for row, state in enumerate(hashes):
        first.setdefault(state.digest(), row)
    return list(first.values())


def evaluation_notes(results: tuple[LayerEvaluation, ...]) -> list[str]:
    """Return what a reader of the figures must not miss."""
    notes = []
    for result in results:
        where = f"record '{printable(result.record)}', layer '{printable(result.layer)}'"
        if result.problem:
            notes.append(f"{where}: {result.problem}, so it is not evaluated")
        if result.seen is not None and result.rows:
            notes.append(f"{result.seen}; PSNR is that of these, and SSIM is not taken")
        if result.broken_promise:
            wrong = sum(not row.exact and not row.within_bound for row in result.rows)
            notes.append(f"{where}: marked exact, but {wrong} input(s) are wrong: please report this")
        if result.distinct_truth and result.truth_inputs != result.distinct_truth:
            notes.append(
                f"{where}: only {result.distinct_truth} of the {result.truth_inputs} true inputs are different; "
                "identical ones count once"
            )
    return notes
