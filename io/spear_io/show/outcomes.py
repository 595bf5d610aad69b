"""What an inversion holds, layer by layer: as a table for people, and as plain data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.text import Text

import spear_np

from ..files.display import Display
from ..files.inversion import InversionFile, RecoveredLayer, UnreadRecord
from ..problems import printable
from .advice import Advice, advice, findings
from .certificate import certificate_lines
from .progress import count, duration
from .tables import console_for, figure, new_table, status_text
from .titles import titles

LONGEST_TABLE = 60
"""Layers that are all shown, one a line; of more, those that are not whole come first."""

MOST_CERTIFICATES = 4
"""Layers whose certificates are printed whole; of more, what they have in common."""
MOST_IN_COMMON = 20
"""Sentences of many certificates that are printed."""
ALL_OF_THEM = "the file and in --json"

LONGEST_LIST = 20
"""Lines of remarks below the table."""


@dataclass(frozen=True)
class Outcome:
    """One layer of an inversion, without its arrays."""

    record: str
    layer: str
    client: str | int | None
    round: str | int | None
    source: str | None
    """File name of the dump."""
    status: spear_np.Status
    claim: str
    reason: str
    batch_size: int
    found: int
    labelled: int
    """How many of the inputs have a label."""
    repeated: int
    """How many of them are in other records too."""
    worst_bound: float | None
    """Largest bound on the error of one, in units of the input."""
    agreement: float | None
    """λ."""
    proposals: int
    seconds: float
    device: str
    decay: float
    """Weight decay that was taken out."""
    chain: tuple[str, ...]
    notes: tuple[str, ...]
    certificate: spear_np.Certificate | None = None
    """As `causes`, not read of thousands."""
    causes: tuple[Advice, ...] = ()
    """What may have kept inputs from being recovered, and what to try."""
    candidates: int = 0
    """What the search ended with, before it was tested."""

    @property
    def display(self) -> Display:
        """Whose it is."""
        return Display(client=self.client, round=self.round)


def read_outcomes(inversion: InversionFile, *, full: bool = True) -> list[Outcome]:
    """Return what the file says of each layer; with `full`, of not too many everything that is printed."""
    full = full and len(inversion.layers) <= LONGEST_TABLE
    return [_outcome(layer, full=full) for layer in inversion.layers]


def _outcome(layer: RecoveredLayer, *, full: bool) -> Outcome:
    repeats, brief = layer.repeats, layer.brief
    return Outcome(
        record=layer.record,
        layer=layer.layer,
        client=layer.display.client,
        round=layer.display.round,
        source=layer.source,
        status=layer.status,
        claim=layer.claim,
        reason=layer.reason,
        batch_size=layer.batch_size,
        found=layer.found,
        labelled=0 if layer.labels is None else int((layer.labels[:] >= 0).sum()),
        repeated=0 if repeats is None else int((repeats[:] >= 0).sum()),
        worst_bound=_worst_bound(layer),
        agreement=brief.agreement,
        proposals=brief.proposals,
        seconds=brief.seconds,
        device=brief.device,
        decay=brief.weight_decay,
        chain=layer.chain,
        notes=brief.notes,
        certificate=layer.details.whole_certificate if full else None,
        causes=tuple(advice(findings(layer, None))) if full else (),
        candidates=layer.details.history[-1].found if full and layer.details.history else 0,
    )


def _worst_bound(layer: RecoveredLayer) -> float | None:
    return None if layer.error_bound is None or not layer.found else float(layer.error_bound[:].max())


def layer_document(layer: RecoveredLayer) -> dict[str, Any]:
    """Plain data for JSON: everything but the arrays."""
    details = layer.details
    return {
        "record": layer.record,
        "layer": layer.layer,
        "source": layer.source,
        "client": layer.display.client,
        "round": layer.display.round,
        "shape": [layer.units, layer.inputs.shape[1]],
        "status": str(layer.status),
        "claim": layer.claim,
        "reason": layer.reason,
        "batch_size": layer.batch_size,
        "found": layer.found,
        "scale_known": layer.scale_known,
        "data_range": details.data_range,
        "method": details.method,
        "seed": details.seed,
        "seconds": details.seconds,
        "device": details.device,
        "proposals": details.proposals,
        "labels": None if layer.labels is None else layer.labels[:].tolist(),
        "repeats": None if layer.repeats is None else layer.repeats[:].tolist(),
        "chain": list(layer.chain),
        "decay": asdict(details.decay),
        "certificate": details.whole_certificate.as_dict(),
        "notes": list(details.notes),
    }


def unread_document(one: UnreadRecord) -> dict[str, Any]:
    """Plain data of a record that could not be used."""
    return {"record": one.record, "source": one.source, "problem": one.problem}


def inversion_document(inversion: InversionFile) -> dict[str, Any]:
    """Plain data for `spear-np inspect --json`."""
    return {
        "command": "inspect",
        "version": spear_np.__version__,
        "file": str(inversion.path),
        "source": inversion.source,
        "layers": [layer_document(layer) for layer in inversion.layers],
        "unread": [unread_document(one) for one in inversion.unread],
    }


def print_outcomes(
    outcomes: Sequence[Outcome],
    unread: Sequence[UnreadRecord] = (),
    output: str | None = None,
    seconds: float | None = None,
) -> None:
    """Print the table that ends `spear-np invert`, which took `seconds` in all, and that `inspect` shows of an inversion."""
    shown = _most_telling(outcomes)
    console = console_for([outcome.claim for outcome in shown])
    if len(outcomes) > LONGEST_TABLE:
        console.print(_counts_table(outcomes, unread))
    console.print(_layers_table(shown))
    if len(shown) < len(outcomes):
        console.print(
            f"{len(outcomes) - len(shown)} more layers are not shown: --summary FILE.csv writes all",
            soft_wrap=True,
        )
    if len(outcomes) <= MOST_CERTIFICATES:
        _print_certificates(console, outcomes)
    names = dict(zip(map(id, outcomes), titles(outcomes), strict=True)) if len(outcomes) > 1 else {}
    remarks = [remark for outcome in shown for remark in _remarks(outcome, names.get(id(outcome)))]
    remarks += [f"{printable(one.record)} could not be used: {one.problem}" for one in unread]
    for remark in _first(remarks):
        console.print(remark, soft_wrap=True)
    repeated = [outcome for outcome in outcomes if outcome.repeated]
    if repeated:
        console.print(_repeats_line(repeated), soft_wrap=True)
    if len(outcomes) > MOST_CERTIFICATES:
        _print_in_common(console, outcomes)
    if output is not None:
        took = "" if seconds is None else f" in {_seconds(seconds)}"
        console.print(f"written to {printable(output, 1000)}{took}", soft_wrap=True)


def _print_certificates(console: Console, outcomes: Sequence[Outcome]) -> None:
    for outcome, name in zip(outcomes, titles(outcomes), strict=True):
        if outcome.certificate is not None and outcome.certificate.checks:
            if len(outcomes) > 1:
                console.print(Text(name, style="bold"), soft_wrap=True)
            for line in certificate_lines(outcome.status, outcome.certificate):
                console.print(line, soft_wrap=True)


def _print_in_common(console: Console, outcomes: Sequence[Outcome]) -> None:
    """Print what many certificates rest on and leave open, each sentence once, with how many say it."""
    certificates = [outcome.certificate for outcome in outcomes if outcome.certificate is not None]
    lines = Counter(
        line
        for one in certificates
        for line in dict.fromkeys(
            [
                *(f"not passed: {check.name}" for check in one.checks if check.passed is False),
                *(f"if {premise.name}: {premise.meaning}" for premise in one.rests_on),
                *one.caveats,
            ]
        )
    )
    for line, count_of in lines.most_common(MOST_IN_COMMON):
        console.print(f"{count_of} of {len(outcomes)}: {line}", soft_wrap=True)
    if len(lines) > MOST_IN_COMMON:
        console.print(f"and {len(lines) - MOST_IN_COMMON} more sentences, in {ALL_OF_THEM}", soft_wrap=True)


def _seconds(seconds: float) -> str:
    return duration(seconds) if seconds >= 10 else f"{seconds:.2g} s"


def _most_telling(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """All, or of very many those that are not whole, and then the slowest; in the order of the file."""
    if len(outcomes) <= LONGEST_TABLE:
        return list(outcomes)
    whole = (spear_np.Status.EXACT, spear_np.Status.APPROXIMATE)
    order = sorted(
        range(len(outcomes)),
        key=lambda index: (outcomes[index].status in whole, -outcomes[index].seconds, index),
    )
    return [outcomes[index] for index in sorted(order[:LONGEST_TABLE])]


def _layers_table(outcomes: Sequence[Outcome]) -> Any:
    """One line a layer; columns that only some files have are left out where nothing is in them."""
    many = len(outcomes) > 1
    more: dict[str, list[str]] = {}
    if many and any(outcome.client is not None for outcome in outcomes):
        more["?client"] = [_label(outcome.client) for outcome in outcomes]
    if many and any(outcome.round is not None for outcome in outcomes):
        more["?round"] = [_label(outcome.round) for outcome in outcomes]
    after: dict[str, list[str]] = {}
    if any(outcome.labelled for outcome in outcomes):
        after[">?labels"] = [str(outcome.labelled) for outcome in outcomes]
    if many:
        after[">?worst bound (input units)"] = [figure(outcome.worst_bound, ".1e") for outcome in outcomes]
    if any(outcome.repeated for outcome in outcomes):
        after[">seen elsewhere"] = [str(outcome.repeated or "–") for outcome in outcomes]
    if any(outcome.decay for outcome in outcomes):
        after[">?weight decay"] = [figure(outcome.decay or None, ".6g") for outcome in outcomes]
    rows = new_table(
        "record", *more, "layer", "status", ">recovered", ">?λ", ">?proposals", ">time", "?device", *after
    )
    for index, outcome in enumerate(outcomes):
        rows.add_row(
            printable(outcome.record),
            *(column[index] for column in more.values()),
            printable(outcome.layer),
            status_text(outcome.claim),
            f"{outcome.found}/{outcome.batch_size}",
            figure(outcome.agreement, ".6g"),
            count(outcome.proposals),
            _seconds(outcome.seconds),
            outcome.device,
            *(column[index] for column in after.values()),
        )
    return rows


def _counts_table(outcomes: Sequence[Outcome], unread: Sequence[UnreadRecord]) -> Any:
    """How many layers have which status, and what was found in them."""
    rows = new_table("status", ">layers", ">recovered", ">worst bound (input units)", ">slowest")
    of_status: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        of_status.setdefault(str(outcome.status), []).append(outcome)
    for status in (str(status) for status in spear_np.Status):
        members = of_status.get(status, [])
        if members:
            bounds = [one.worst_bound for one in members if one.worst_bound is not None]
            rows.add_row(
                status_text(status),
                str(len(members)),
                f"{sum(one.found for one in members)}/{sum(one.batch_size for one in members)}",
                figure(max(bounds, default=None), ".1e"),
                f"{max(one.seconds for one in members):.2g} s",
            )
    if unread:
        rows.add_row("could not be used", str(len(unread)), "–", "–", "–")
    return rows


def _remarks(outcome: Outcome, title: str | None) -> Iterable[str]:
    """What is to be said of a layer, after its `title` if there are several."""
    where = "" if title is None else f"{title}: "
    if outcome.candidates > outcome.found:
        passed = f"{outcome.found} of them" if outcome.found else "none of them"
        yield f"{where}the search ended with {outcome.candidates} candidates, and {passed} passed the tests"
    if outcome.reason and (outcome.status != spear_np.Status.EXACT or title is None):
        yield f"{where}{outcome.reason}"
    for one in outcome.causes:
        yield f"{where}perhaps {one.cause}; {one.attempt}"
    if outcome.chain:
        yield f"{where}from the layers {' → '.join(printable(name) for name in outcome.chain)}"
    for note in outcome.notes:
        yield f"{where}{note}"


def _first(remarks: Sequence[str]) -> list[str]:
    """The first of very many; those that are alike but for the layer are told once."""
    if len(remarks) <= LONGEST_LIST:
        return list(remarks)
    groups: dict[str, list[str]] = {}
    for remark in remarks:
        where, _, what = remark.partition(": ")
        groups.setdefault(what, []).append(where)
    lines = [
        f"{places[0]}{f' and {len(places) - 1} more' if len(places) > 1 else ''}: {what}"
        for what, places in groups.items()
    ]
    rest = len(lines) - LONGEST_LIST
    return [*lines[:LONGEST_LIST], *([f"and {rest} remarks more"] if rest > 0 else [])]


def _repeats_line(repeated: Sequence[Outcome]) -> str:
    """Who leaks again and again."""
    clients = Counter(
        _label(outcome.client) if outcome.client is not None else printable(outcome.record)
        for outcome in repeated
    )
    worst = ", ".join(f"{name} ({times} record(s))" for name, times in clients.most_common(5))
    return (
        f"inputs that are in several records were found in {len(repeated)} of them, most of all in: {worst}"
    )


def _label(value: str | int | None) -> str:
    return "–" if value is None else printable(str(value))
