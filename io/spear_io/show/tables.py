"""What the commands print on standard output: tables for people, JSON for programs."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.text import Text

import spear_np

from ..files.dump import Dump, RecordInfo
from ..problems import listing, printable
from .evaluate import LayerEvaluation
from .grid import Grid, Heading
from .overview import Group, LayerOverview, RecordOverview
from .progress import duration

if TYPE_CHECKING:
    from ..convert import Conversion
    from .export import Exported

STATUS_STYLE = {"exact": "green", "approximate": "yellow", "partial": "red", "failed": "red"}

PIPE_WIDTH = 160
"""Columns where there is no terminal to ask."""


def print_json(document: dict[str, Any]) -> None:
    """Print one strict JSON document: a NaN or infinity, which JSON does not have, becomes null."""
    json.dump(_strict(document), sys.stdout, indent=2, allow_nan=False)
    sys.stdout.write("\n")


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def console_for(claims: Sequence[str] = ()) -> Console:
    """Return what tables are printed on, wide enough for the longest of the `claims`."""
    # Without a terminal rich assumes 80 columns and folds. What a status rests on stays in its line.
    width = None if sys.stdout.isatty() else PIPE_WIDTH + max(map(len, claims), default=0)
    return Console(width=width, highlight=False, markup=False, emoji=False)


def new_table(*headings: str) -> Grid:
    """Return an empty table; a heading begins with ">" over numbers, then with "?" if it may be left out."""
    return Grid([Heading.of(heading) for heading in headings])


def status_text(claim: str) -> Text:
    """A status with what it rests on, which no line may leave out: "exact if plain gradient"."""
    return Text(printable(claim, 1000), style=STATUS_STYLE.get(claim.partition(" ")[0], ""))


def figure(value: float | None, form: str = ".3g", missing: str = "–") -> str:
    """A number, or what stands for none."""
    return missing if value is None or math.isnan(value) else format(value, form)


def print_overview(dump: Dump, groups: Sequence[Group]) -> None:
    """Print what `spear-np inspect` found."""
    console = console_for()
    count = sum(len(group.records) for group in groups)
    by = f", written by {printable(dump.producer)}" if dump.producer else ""
    console.print(f"{printable(str(dump.path), 1000)}: {count} record(s){by}", soft_wrap=True)
    for group in groups:
        record = group.first
        console.print()
        console.print(_record_line(record), soft_wrap=True)
        if len(group.records) > 1:
            console.print(_alike_line(group), soft_wrap=True)
        console.print(_stored_table(record))
        console.print(_survey_table(record))
        for line in _rests_on(record):
            console.print(line, soft_wrap=True)
        for chain in record.chains:
            console.print(f"chain: {_chain_text(record, chain)}{_reach(record, chain)}", soft_wrap=True)
        for layer in record.layers:
            if layer.survey is not None and layer.survey.decay.present:
                name, decay = printable(layer.layer), layer.survey.decay
                console.print(
                    f"{name}: the update holds {decay}: weight decay, which is taken out", soft_wrap=True
                )
            if layer.problem:
                console.print(f"{printable(layer.layer)}: {layer.problem}", soft_wrap=True)
        for note in record.notes:
            console.print(f"note: {note}", soft_wrap=True)


def _record_line(record: RecordOverview) -> Text:
    info = record.info
    facts = [
        info.update.replace("_", " "),
        f"batch of {info.batch_size} stated" if info.batch_size is not None else "",
        f"inputs {' × '.join(map(str, info.input_shape))}" if info.input_shape else "",
        _loss(info),
        f"learning rate {info.learning_rate:g}" if info.learning_rate is not None else "",
        f"{info.local_steps} local steps" if info.local_steps is not None else "",
        f"client {printable(str(info.client))}" if info.client is not None else "",
        f"round {printable(str(info.round))}" if info.round is not None else "",
        "true labels" if record.labels else "",
    ]
    return Text.assemble((printable(record.record), "bold"), ": ", ", ".join(fact for fact in facts if fact))


def _alike_line(group: Group) -> str:
    """Which other records are alike, whose they are, and that only the first was looked at."""
    others = group.records[1:]
    facts = [f"and {len(others)} records alike, to {printable(others[-1].record)}"]
    for what in ("client", "round"):
        values = dict.fromkeys(
            value for record in group.records if (value := getattr(record.info, what)) is not None
        )
        if values:
            facts.append(f"{len(values)} {what}(s): {_ends(list(values))}")
    sizes = sorted({record.info.batch_size for record in group.records if record.info.batch_size is not None})
    if len(sizes) > 1:
        facts.append(f"batches of {sizes[0]} to {sizes[-1]} stated")
    return f"{', '.join(facts)}; what follows is of the first (--record NAME for others)"


def _ends(values: Sequence[str | int]) -> str:
    shown = [printable(str(value), 40) for value in values]
    return ", ".join(shown) if len(shown) <= 4 else f"{shown[0]}, {shown[1]}, … {shown[-1]}"


def _loss(info: RecordInfo) -> str:
    """Return "loss cross_entropy (mean)", or what is known of it."""
    name, reduction = (printable(text) if text else "" for text in (info.loss, info.loss_reduction))
    return (
        f"loss {name} ({reduction})"
        if name and reduction
        else f"loss {name or reduction}"
        if name or reduction
        else ""
    )


def _batch_size(survey: spear_np.Survey | None) -> str:
    """Return the rank, with the interval of those that are plausible too."""
    if survey is None or (survey.batch_size is None and not survey.full_rank):
        return "–"
    least, most = survey.plausible_batch_sizes or (survey.batch_size, survey.batch_size)
    rank = "full rank" if survey.full_rank else str(survey.batch_size)
    return rank if least == most else f"{rank} ({least} to {most})"


def _stored_table(record: RecordOverview) -> Grid:
    """What the file says of each layer, in 80 columns for names of usual length."""
    table = new_table("layer", ">m × n", "?type", "?input from", "followed by", "?holds", ">?truth")
    for layer in record.layers:
        table.add_row(
            printable(layer.layer),
            "–" if layer.shape is None else " × ".join(map(str, layer.shape)),
            layer.precision or "–",
            _input_from(layer),
            printable(layer.activation) + (" (assumed)" if layer.activation_assumed else ""),
            " ".join(layer.datasets) or "–",
            "–" if layer.truth_inputs is None else str(layer.truth_inputs),
        )
    return table


def _input_from(layer: LayerOverview) -> str:
    """The layer before, or what stands in between in parentheses."""
    parts = [printable(layer.follows)] if layer.follows is not None else []
    if layer.between is not None:
        parts.append(f"({printable(layer.between.replace('+', ', '))})")
    return " ".join(parts) or "–"


def _survey_table(record: RecordOverview) -> Grid:
    """What the gradient of each layer tells."""
    table = new_table(
        "layer", ">batch", ">?noise", ">?gap", ">?published search", "?default search", "can be inverted"
    )
    for layer in record.layers:
        survey = layer.survey
        forecast = None if survey is None else survey.forecast_seconds
        if layer.problem is None:
            verdict = Text("yes" if layer.alone else "in a chain", style="green")
        else:
            verdict = Text("no", style="red")
        table.add_row(
            printable(layer.layer),
            _batch_size(survey),
            figure(None if survey is None else survey.relative_noise, ".1e"),
            figure(None if survey is None else survey.gap, ".2g"),
            "–" if forecast is None else "never" if math.isinf(forecast) else _about(forecast),
            "–" if layer.outlook is None else str(layer.outlook),
            verdict,
        )
    return table


def _rests_on(record: RecordOverview) -> list[str]:
    """What a yes rests on, a line for the layers that share it."""
    layers: dict[str, list[str]] = {}
    for layer in record.layers:
        if layer.problem is None and layer.survey is not None:
            layers.setdefault(layer.rests_on, []).append(layer.layer)
    return [f"that {listing(names)} can be inverted rests on: {why}" for why, names in layers.items()]


def _chain_text(record: RecordOverview, chain: Sequence[str]) -> str:
    """Return "fc1 (relu) → fc2 (none)"."""
    activations = {layer.layer: layer.activation for layer in record.layers}
    return " → ".join(f"{printable(name)} ({printable(activations[name])})" for name in chain)


def _reach(record: RecordOverview, chain: Sequence[str]) -> str:
    """Return ": decides up to 67 inputs of 'fc1'", by counting equations; nothing where widths are not known."""
    shapes = {layer.layer: layer.shape for layer in record.layers}
    widths = [shape[0] for name in chain if (shape := shapes[name]) is not None]
    if len(widths) < len(chain):
        return ""
    largest = spear_np.theory.largest_chain_batch(widths[:-1], widths[-1])
    return f": decides up to {largest} inputs of '{printable(chain[0])}'"


def _about(seconds: float) -> str:
    return "< 1 s" if seconds < 1 else f"{seconds:.0f} s" if seconds < 60 else duration(seconds)


def print_evaluation(results: Sequence[LayerEvaluation]) -> None:
    """Print what `spear-np evaluate` found: every matched row, then a line a layer."""
    console = console_for([result.claim for result in results])
    for result in results:
        if not result.rows:
            continue
        console.print(
            Text.assemble(
                (f"{printable(result.record)}, {printable(result.layer)}", "bold"),
                f": errors relative to a data range of {result.data_range:.4g} ({result.units})",
            ),
            soft_wrap=True,
        )
        # Columns that not every layer has.
        more: dict[str, tuple[str, str]] = {}
        if result.mean_ssim is not None:
            more[">SSIM"] = ("ssim", ".4f")
        if result.mean_discrete is not None:
            more[">right categories"] = ("discrete", ".1%")
        if any(row.scale != 1 for row in result.rows):
            more[">scale"] = ("scale", ".4g")
        table = new_table(">row", ">truth", ">PSNR (dB)", ">largest error", "exact", *more)
        for row in result.rows:
            mark = Text("yes", style="green") if row.exact else Text("no", style="red")
            table.add_row(
                str(row.row),
                "–" if row.truth is None else str(row.truth),
                figure(row.psnr, ".1f"),
                figure(row.max_error, ".1e"),
                mark,
                *(figure(getattr(row, name), style) for name, style in more.values()),
            )
        console.print(table)
    summary = new_table(
        "record", "layer", "status", ">?recovered", ">matched", ">exact", ">mean PSNR (dB)", ">?largest error"
    )
    for result in results:
        compared = result.problem is None
        summary.add_row(
            printable(result.record),
            printable(result.layer),
            status_text(result.claim),
            str(result.recovered),
            f"{result.matched}/{result.distinct_truth}" if compared else "no truth",
            f"{result.exact}/{result.distinct_truth}" if compared else "–",
            figure(result.mean_psnr, ".1f"),
            figure(result.max_error, ".1e"),
        )
    console.print(summary)


def print_exports(done: Sequence[Exported], output: str) -> None:
    """Print what `spear-np export` wrote."""
    console = console_for([one.claim for one in done])
    table = new_table("record", "layer", "status", ">inputs", "units", "files")
    for one in done:
        kinds = Counter(Path(file).suffix.removeprefix(".") for file in one.files)
        table.add_row(
            printable(one.record),
            printable(one.layer),
            status_text(one.claim),
            str(one.inputs),
            one.units,
            ", ".join(f"{number} {kind}" for kind, number in kinds.items()),
        )
    console.print(table)
    drawn: dict[str, list[str]] = {}
    for one in done:
        if one.drawn is not None:
            drawn.setdefault(one.drawn, []).append(f"{printable(one.record)}, {printable(one.layer)}")
    for how, layers in drawn.items():
        which = f" of {listing(layers)}" if len(drawn) > 1 else ""
        console.print(f"in the pictures{which}, {how}", soft_wrap=True)
    console.print(f"written to {printable(output, 1000)}", soft_wrap=True)


def print_conversions(conversions: Sequence[Conversion], output: str) -> None:
    """Print what `spear-np convert` found, what it left out, and what it assumed; of records that are alike the first."""
    console = console_for()
    alike: dict[Any, list[Conversion]] = {}
    for conversion in conversions:
        key = conversion.format, conversion.layers, tuple(conversion.skipped.items())
        alike.setdefault(key, []).append(conversion)
    said: set[str] = set()
    for group in alike.values():
        _print_conversion(console, group)
        for note in dict.fromkeys(note for conversion in group for note in conversion.notes):
            if note not in said:
                console.print(f"note: {note}", soft_wrap=True)
            said.add(note)
    console.print(f"written to {printable(output, 1000)}", soft_wrap=True)


def _print_conversion(console: Console, group: Sequence[Conversion]) -> None:
    conversion = group[0]
    linked = any(layer.follows or layer.between for layer in conversion.layers)
    more = ["?follows"] if linked else []
    table = new_table("layer", ">m × n", "?type", "followed by", *more, "?holds", "?stored as", "?known by")
    for layer in conversion.layers:
        before = layer.follows or (f"none: {layer.between}" if layer.between else "–")
        stored = layer.orientation is not None
        table.add_row(
            printable(layer.layer),
            " × ".join(map(str, layer.shape)) if stored else "–",
            layer.precision if stored else "–",
            printable(layer.activation),
            *([printable(before)] if linked else []),
            " ".join(layer.datasets) or f"nothing: {layer.kind}",
            {"mn": "(m, n)", "nm": "(n, m)", None: "–"}[layer.orientation],
            layer.known_by or "–",
        )
    alike = f" and {len(group) - 1} alike, to {printable(group[-1].record)}" if len(group) > 1 else ""
    console.print(f"{conversion.format}: record {printable(conversion.record)}{alike}", soft_wrap=True)
    console.print(table)
    reasons: dict[str, list[str]] = {}
    for name, reason in conversion.skipped.items():
        reasons.setdefault(reason, []).append(name)
    for reason, names in reasons.items():
        console.print(f"not used, as each {reason}: {listing(names)}", soft_wrap=True)
