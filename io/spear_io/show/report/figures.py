"""What is known of every recovered input, as a table and as plots."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

import spear_np

from ...files.inversion import RecoveredLayer
from ...files.storage import Floats
from ..beside import Comparison
from . import plots
from .check_words import EVIDENCE
from .content import Plot, TellsBy
from .units import Units
from .words import decibels, label_text, number_text, seconds_text

MARKS = {1.0: "yes", 0.0: "no"}


def tells_by(layer: RecoveredLayer) -> TellsBy:
    """Return by what the inputs of a layer are told apart.

    By the equations of the layers behind where these were used. By zeros where the activation leaves any: a smooth one underflows to
    zero far out, which tells nothing.
    """
    zeros = layer.details.figures.get("zero_count")
    name = (layer.details.activation or "").partition("(")[0]
    activation = spear_np.Activation(name)
    off = (
        activation.ceiling is not None if activation.known else zeros is not None and bool(np.any(zeros > 0))
    )
    return TellsBy(zeros=off and zeros is not None, equations=bool(layer.chain))


def figures_of(
    layer: RecoveredLayer, units: Units, comparison: Comparison | None, order: Sequence[int]
) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Names of the figures of every input, and one row of them for each input of `order`."""
    details, by = layer.details, tells_by(layer)
    columns: list[tuple[str, list[str]]] = [("Input", [str(row) for row in order])]

    def add(name: str, values: Iterable[str]) -> None:
        columns.append((name, list(values)))

    in_units = f" ({units.name.partition(',')[0]})"
    titles = {
        "error_bound": f"Bound{in_units}",
        "zero_count": "Zeros" if by.zeros else None,
        "redundancy": "Equations to spare" if by.equations else "Zeros to spare" if by.zeros else None,
        "sign_agreement": "Signs that agree",
        "false_probability": "Probability of chance",
    }
    if layer.labels is not None:
        labels = layer.labels[:]
        add("Label", (label_text(labels[row]) or "–" for row in order))
    for name, title in titles.items():
        values = details.figures.get(name)
        if title is not None and values is not None and not np.all(np.isnan(values)):
            unit = units.factor if name == "error_bound" else 1.0
            add(title, (number_text(values[row] * unit) for row in order))
    for fact, words in EVIDENCE.items():
        evidence = details.evidence.get(fact)
        if evidence is not None and np.any(evidence >= 0):
            add(words[:1].upper() + words[1:], (MARKS.get(float(evidence[row]), "–") for row in order))
    if comparison is not None:
        rows = {row.row: row for row in comparison.evaluation.rows}
        span = comparison.evaluation.data_range or 1.0
        add("PSNR", ("–" if (p := rows[row].psnr) is None else decibels(p) for row in order))
        add(
            f"Largest error{in_units}",
            ("–" if (e := rows[row].max_error) is None else number_text(e * span) for row in order),
        )
    return tuple(name for name, _ in columns), tuple(zip(*(values for _, values in columns), strict=True))


def plots_of(
    layer: RecoveredLayer, units: Units, comparison: Comparison | None, anchor: str
) -> tuple[Plot, ...]:
    """Spectrum, search, what tells the inputs apart, and bounds, as far as the file holds them."""
    found = (
        _spectrum(layer, anchor),
        _search(layer, anchor),
        _equations(layer, anchor) if layer.chain else _zeros(layer, anchor),
        _bounds(layer, units, comparison, anchor),
    )
    return tuple(plot for plot in found if plot is not None)


def _spectrum(layer: RecoveredLayer, anchor: str) -> Plot | None:
    details, rank = layer.details, layer.batch_size
    values = details.singular_values[np.isfinite(details.singular_values)]
    if not len(values):
        return None
    words = (
        f"{len(values)} singular values, the first {rank} above the noise: so many inputs show in the gradient. The batch may have had "
        "more, of which some are identical or fainter than the noise."
        if rank
        else f"{len(values)} singular values: none stands clearly above the others, so that the size of the batch cannot be told."
    )
    return Plot("How many inputs show", plots.spectrum(f"{anchor}-spectrum", values, rank), words)


def _search(layer: RecoveredLayer, anchor: str) -> Plot | None:
    history, wanted = layer.details.history, layer.batch_size
    if not history:
        return None
    last = history[-1]
    words = (
        f"{len(history)} {'round' if len(history) == 1 else 'rounds'} in {seconds_text(last.seconds)}; at the end {last.found} candidates for {wanted} inputs. Candidates count "
        "as recovered only once they pass the tests above."
    )
    return Plot("The search", plots.timeline(f"{anchor}-search", history, wanted), words)


def _plotted(layer: RecoveredLayer, name: str) -> Floats | None:
    """A figure of every input, if it is there and not of too many."""
    values = layer.details.figures.get(name)
    return values if values is not None and 0 < len(values) <= plots.MOST_MARKS else None


def _zeros(layer: RecoveredLayer, anchor: str) -> Plot | None:
    zeros = _plotted(layer, "zero_count")
    if zeros is None or not tells_by(layer).zeros:
        return None
    spare = layer.details.figures.get("redundancy")
    words = f"Units that each input leaves off: {int(np.min(zeros))} to {int(np.max(zeros))}."
    if spare is not None:
        words += f" Of the equations that determine it, at least {int(np.min(spare))} could be missing."
    return Plot("What tells each input", plots.residuals(f"{anchor}-zeros", zeros, spare), words)


def _equations(layer: RecoveredLayer, anchor: str) -> Plot | None:
    chance, spare = _plotted(layer, "false_probability"), _plotted(layer, "redundancy")
    if chance is None or not np.any(np.isfinite(chance)):
        return None
    limit = next(
        (check.threshold for check in layer.details.certificate.checks if check.name == "chance"), None
    )
    words = (
        "Probability that something which is no input meets all equations of the layers as each of these does: at most "
        f"{number_text(float(np.nanmax(chance)))}."
    )
    if limit is not None:
        words += f" Up to {number_text(limit)} would be allowed (the line)."
    if spare is not None:
        words += f" Each input meets at least {int(np.min(spare))} equations more than it takes to find it."
    return Plot("What tells each input", plots.chances(f"{anchor}-chance", chance, limit), words)


def _bounds(layer: RecoveredLayer, units: Units, comparison: Comparison | None, anchor: str) -> Plot | None:
    bound = _plotted(layer, "error_bound")
    if bound is None or not np.any(np.isfinite(bound) & (bound > 0)):
        return None
    bound = bound * units.factor
    worst = float(np.max(bound))
    most = f"up to {number_text(worst)}" if np.isfinite(worst) else "some have none"
    words = f"Bounds on the largest error of each input: {most}, in the {units.name}."
    drawn = plots.bounds(f"{anchor}-bounds", bound, _errors(layer, comparison))
    return Plot("How far off it may be", drawn, words)


def _errors(layer: RecoveredLayer, comparison: Comparison | None) -> Floats | None:
    """(k,): largest errors in the units that are shown; NaN without a counterpart."""
    if comparison is None:
        return None
    span = comparison.evaluation.data_range or 1.0
    errors = np.full(layer.found, np.nan)
    for row in comparison.evaluation.rows:
        errors[row.row] = np.nan if row.max_error is None else row.max_error * span
    return errors
