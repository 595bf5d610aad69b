"""What an inversion says of one layer beside its inputs: certificate, search, figures of each input.

Written by `write_details`, read back by `read_details` with the distrust that any file meets: a page for people is made of it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, cast

import h5py
import numpy as np

import spear_np

from ..problems import FileError, Place
from . import safety, stated
from .attributes import write_array, write_attributes
from .storage import Floats, StoredArray

FIGURES = {
    "zero_count": np.int64,
    "redundancy": np.int64,
    "sign_agreement": np.float64,
    "false_probability": np.float64,
    "error_bound": np.float64,
}
"""Per-input figures of the certificate, one number for each row of `inputs`."""
UNKNOWN = -1
"""What stands for a fact of an input that could not be looked at; true is 1, false 0."""
MOST_ROUNDS = 1000
"""Rounds of a search that are kept: of more, every second, third, … and the last."""
ROUND_FIGURES = 4
"""Columns of the history: search, proposals, found, seconds."""
MOST_CHECKS = 100
"""Checks of a certificate that are read: there are some twenty."""
RELATIONS = ("<=", ">=")
AGAIN = "run 'spear-np invert' again"


@dataclass(frozen=True)
class Details:
    """What is known of how one layer was inverted; empty or None is what the file does not say."""

    certificate: spear_np.Certificate
    """Its checks, caveats and premises; the figures of the inputs are in `figures`."""
    figures: dict[str, Floats]
    """(k,) each: see `FIGURES`."""
    evidence: dict[str, Floats]
    """(k,) each: 1, 0 or `UNKNOWN` for every fact of `spear_np.Evidence`."""
    notes: tuple[str, ...]
    """What the dump gave reason to say."""
    singular_values: Floats
    """Of weight_grad with every row over its noise, largest first."""
    history: tuple[spear_np.Round, ...]
    relative_noise: float | None
    activation: str | None
    method: str | None
    seed: int | None
    seconds: float | None
    device: str | None
    proposals: int | None
    weight_decay: float | None
    data_range: tuple[float, float] | None
    """Of the inputs, if one was given."""
    decay: spear_np.WeightDecay
    """What the update held of the parameters besides the gradient."""

    @property
    def whole_certificate(self) -> spear_np.Certificate:
        """The certificate with the figures of the inputs and what speaks for each."""
        figures: dict[str, Any] = {
            name: tuple(values.astype(FIGURES[name]).tolist()) for name, values in self.figures.items()
        }
        facts = [self.evidence.get(fact.name) for fact in fields(spear_np.Evidence)]
        known = [values for values in facts if values is not None]
        meanings: dict[int, Any] = {UNKNOWN: None, 0: False, 1: True}
        rows = zip(*known, strict=True) if len(known) == len(facts) else ()
        evidence = tuple(spear_np.Evidence(*[meanings.get(int(fact), False) for fact in row]) for row in rows)
        return replace(self.certificate, **figures, evidence=evidence)


@dataclass(frozen=True)
class Brief:
    """What the line of a table says of how one layer was inverted."""

    seconds: float
    proposals: int
    device: str
    weight_decay: float
    agreement: float | None
    """λ, if it could be looked at."""
    notes: tuple[str, ...]


def write_details(group: h5py.Group, result: spear_np.Inversion, notes: Sequence[str]) -> None:
    """Write what `result` says beside its inputs into the group of its layer."""
    certificate = result.certificate
    write_attributes(
        group,
        {
            "method": result.method,
            "seed": result.seed,
            "seconds": result.seconds,
            "device": result.device,
            "proposals": result.proposals,
            "activation": str(result.gradients.sigma),
            "checks": json.dumps([_told(check) for check in certificate.checks]),
            "caveats": json.dumps(certificate.caveats),
            "rests_on": json.dumps([asdict(premise) for premise in certificate.rests_on]),
            "notes": json.dumps(tuple(notes)),
            "relative_noise": result.relative_noise if np.isfinite(result.relative_noise) else None,
        },
    )
    if (decay := result.gradients.decay).present:
        said = {"weight_decay": decay.weight, "bias_decay": decay.bias}
        write_attributes(group, said | {"weight_decay_deviation": decay.deviation})
    if result.singular_values:
        write_array(group, "singular_values", result.singular_values, np.float64)
    _write_history(group, result.history)
    _write_certificate(group, certificate)


def _write_history(group: h5py.Group, history: Sequence[spear_np.Round]) -> None:
    if not history:
        return
    step = -(-len(history) // MOST_ROUNDS)
    kept = [*history[: len(history) - 1 : step], history[-1]]
    searches = list(dict.fromkeys(one.search for one in kept))
    # Proposals are those of a round: of the rounds left out as well.
    total = np.cumsum([one.proposals for one in history])
    proposals = np.diff([*total[: len(history) - 1 : step], total[-1]], prepend=0)
    rounds = [
        (searches.index(one.search), count, one.found, one.seconds)
        for one, count in zip(kept, proposals.tolist(), strict=True)
    ]
    stored = write_array(group, "history", rounds, np.float64)
    write_attributes(h5py.Dataset(stored), {"searches": searches})


def _write_certificate(group: h5py.Group, certificate: spear_np.Certificate) -> None:
    for name, dtype in FIGURES.items():
        values = getattr(certificate, name)
        if values:
            write_array(group, name, values, dtype)
    if certificate.evidence:
        names = [fact.name for fact in fields(spear_np.Evidence)]
        rows = [[getattr(row, name) for name in names] for row in certificate.evidence]
        numbers = [[UNKNOWN if value is None else int(value) for value in row] for row in rows]
        evidence = write_array(group, "evidence", numbers, np.int8)
        write_attributes(h5py.Dataset(evidence), {"facts": names})


def _told(check: spear_np.Check) -> dict[str, Any]:
    """A check as JSON; the figure is left out where it is missing, and one that is not finite is a text."""
    figures = {"threshold": check.threshold} | ({} if check.value is None else {"value": check.value})
    said: dict[str, Any] = {"name": check.name, "relation": check.relation, "meaning": check.meaning}
    said |= {
        name: float(figure) if np.isfinite(figure) else str(float(figure)) for name, figure in figures.items()
    }
    return said if check.value is None else said | {"passed": bool(check.passed)}


def read_details(group: h5py.Group, place: Place, found: int) -> Details:
    """Read what the group of a layer with `found` inputs says beside them.

    Raises
    ------
    FileError
        If something of it is of the wrong kind or size.
    """
    figures = {
        name: array[:].astype(np.float64)
        for name in FIGURES
        if (array := figure_of(group, name, found, place, kind="any")) is not None
    }
    certificate = spear_np.Certificate(
        checks=_read_checks(group, place),
        caveats=_sentences(group, "caveats", place),
        rests_on=_premises(group, place),
    )
    values = safety.numbers(group, "singular_values", place, ndim=1)
    return Details(
        certificate=certificate,
        figures=figures,
        evidence=_read_evidence(group, place, found),
        notes=_sentences(group, "notes", place),
        singular_values=np.zeros(0) if values is None else values[:].astype(np.float64),
        history=_read_history(group, place),
        relative_noise=stated.number(group, "relative_noise", place),
        activation=stated.text(group, "activation", place),
        method=stated.text(group, "method", place),
        seed=stated.integer(group, "seed", place),
        seconds=stated.number(group, "seconds", place),
        device=stated.text(group, "device", place),
        proposals=stated.integer(group, "proposals", place),
        weight_decay=stated.number(group, "weight_decay", place),
        data_range=_data_range(group, place),
        decay=spear_np.WeightDecay(
            *(
                stated.number(group, name, place) or 0.0
                for name in ("weight_decay", "bias_decay", "weight_decay_deviation")
            )
        ),
    )


def _data_range(group: h5py.Group, place: Place) -> tuple[float, float] | None:
    found = stated.vector(group, "data_range", place)
    return None if found is None or len(found) != 2 else (found[0], found[1])


def read_brief(group: h5py.Group, place: Place) -> Brief:
    """Read the part of `read_details` that a table of thousands of layers needs; errors as there."""
    agreement = [check.value for check in _read_checks(group, place) if check.name == "sign_agreement"]
    return Brief(
        seconds=stated.number(group, "seconds", place) or 0.0,
        proposals=stated.integer(group, "proposals", place) or 0,
        device=stated.text(group, "device", place) or "",
        weight_decay=stated.number(group, "weight_decay", place) or 0.0,
        agreement=agreement[0] if agreement else None,
        notes=_sentences(group, "notes", place),
    )


def figure_of(
    group: h5py.Group, name: str, found: int, place: Place, *, kind: safety.Kind = "float"
) -> StoredArray | None:
    """Return a dataset with one number for each of `found` inputs; None if there is none."""
    array = safety.numbers(group, name, place, ndim=1, kind=kind)
    if array is not None and array.shape != (found,):
        msg = f"has shape {array.shape}, but there are {found} inputs"
        raise FileError(msg, array.place, AGAIN)
    return array


def _read_evidence(group: h5py.Group, place: Place, found: int) -> dict[str, Floats]:
    array = safety.numbers(group, "evidence", place, ndim=2, kind="any")
    if array is None:
        return {}
    names = stated.texts(group["evidence"], "facts", array.place) or ()
    if array.shape != (found, len(names)):
        msg = f"has shape {array.shape}, but there are {found} inputs and the names of {len(names)} facts"
        raise FileError(msg, array.place, AGAIN)
    known = [fact.name for fact in fields(spear_np.Evidence)]
    values = array[:].astype(np.float64)
    return {name: values[:, column] for column, name in enumerate(names) if name in known}


def _read_checks(group: h5py.Group, place: Place) -> tuple[spear_np.Check, ...]:
    told = _json(group, "checks", place)
    if not isinstance(told, list) or not all(isinstance(item, dict) for item in told):
        what = "checks"
        raise _not_a_list(what, "checks of the certificate", place)
    if len(told) > MOST_CHECKS:
        msg = f"the certificate holds {len(told)} checks, and no more than {MOST_CHECKS} are read"
        raise FileError(msg, place, AGAIN)
    found = []
    for check in told:
        name, relation, meaning = (check.get(key) for key in ("name", "relation", "meaning"))
        threshold = _figure(check.get("threshold"))
        if not isinstance(name, str) or relation not in RELATIONS or threshold is None:
            msg = (
                "a check of the certificate has no name, no threshold, or none that it could be held against"
            )
            raise FileError(msg, place, AGAIN)
        found.append(
            spear_np.Check(
                name=name,
                value=_figure(check.get("value")),
                relation=cast(Any, relation),
                threshold=threshold,
                meaning=meaning if isinstance(meaning, str) else "",
            )
        )
    return tuple(found)


def _figure(told: Any) -> float | None:
    """A number of a check as `_told` wrote it; None for anything else."""
    if isinstance(told, bool) or not isinstance(told, int | float | str):
        return None
    try:
        return float(told)
    except (ValueError, OverflowError):
        return None


def _read_history(group: h5py.Group, place: Place) -> tuple[spear_np.Round, ...]:
    rounds = safety.numbers(group, "history", place, ndim=2)
    if rounds is None:
        return ()
    names = stated.texts(group["history"], "searches", rounds.place) or ()
    if rounds.shape[1] != ROUND_FIGURES or rounds.shape[0] > 2 * MOST_ROUNDS:
        msg = f"has shape {rounds.shape}, but the history of a search has {ROUND_FIGURES} figures a round and is shorter"
        raise FileError(msg, rounds.place, AGAIN)
    figures = np.nan_to_num(rounds[:].astype(np.float64)).tolist()
    return tuple(
        spear_np.Round(
            names[int(which)] if 0 <= which < len(names) else "", int(count), int(found), None, when
        )
        for which, count, found, when in figures
    )


def _sentences(group: h5py.Group, name: str, place: Place) -> tuple[str, ...]:
    value = _json(group, name, place)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise _not_a_list(name, "sentences", place)
    return tuple(value)


def _premises(group: h5py.Group, place: Place) -> tuple[spear_np.Premise, ...]:
    value = _json(group, "rests_on", place)
    fitting = isinstance(value, list) and all(
        isinstance(item, dict) and all(isinstance(item.get(key), str) for key in ("name", "meaning"))
        for item in value
    )
    if not fitting:
        what = "rests_on"
        raise _not_a_list(what, "premises", place)
    return tuple(spear_np.Premise(item["name"], item["meaning"]) for item in value)


def _json(group: h5py.Group, name: str, place: Place) -> Any:
    """Return an attribute that is JSON; an empty list if there is none."""
    try:
        return json.loads(stated.text(group, name, place) or "[]")
    except (ValueError, RecursionError) as error:
        raise _not_a_list(name, "JSON", place) from error


def _not_a_list(name: str, wanted: str, place: Place) -> FileError:
    return FileError(f"the attribute '{name}' is no list of {wanted}", place, AGAIN)
