"""Reading an inversion back, with the same distrust as a dump; `spear_io.files.inversion` says how it is laid out."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np

import spear_np

from ..problems import FileError, Place, listing, printable
from . import safety
from .display import Display, read_display
from .inversion import FIGURES, FORMAT, FORMAT_VERSION, UNKNOWN
from .storage import StoredArray

ADVICE = "run 'spear-np invert' again"


@dataclass(frozen=True)
class RecoveredLayer:
    """One layer of an inversion file; the arrays are read when sliced, and what few ask for when it is asked for."""

    record: str
    layer: str
    place: Place
    group: h5py.Group
    status: spear_np.Status
    claim: str
    """The status with the names of what it rests on, "exact if plain gradient"; the status alone in files that do not say."""
    reason: str
    batch_size: int
    scale_known: bool
    inputs: StoredArray
    """(k, n)."""
    error_bound: StoredArray | None
    """(k,), if it was written."""
    labels: StoredArray | None
    """(k,) whole numbers: class of each input, -1 where it is not known; if they were written."""
    chain: tuple[str, ...]
    """Names of the layers that were used together, in forward order; empty for a layer inverted alone."""
    display: Display
    """How the inputs of the network are drawn and whom they came from, as far as the dump told."""
    between: str | None
    """What stands before the layer, as the dump named it: then its inputs are not those of the network."""
    source: str | None = None
    """File name of the dump that its record came from."""
    source_record: str | None = None
    """What the record is called there."""

    @property
    def found(self) -> int:
        """k, the number of recovered inputs."""
        return self.inputs.shape[0]

    @cached_property
    def units(self) -> int | None:
        """m, the number of output units."""
        gradient = safety.numbers(self.group, "output_grad", self.place, ndim=2)
        return None if gradient is None else gradient.shape[0]

    @cached_property
    def repeats(self) -> StoredArray | None:
        """(k,) whole numbers: which group of equal inputs each belongs to, -1 for none; if some do."""
        return _figures(self.group, "repeats", self.inputs, self.place, kind="integer")

    @property
    def method(self) -> str:
        """How it was searched."""
        return safety.text(self.group, "method", self.place) or ""

    @property
    def device(self) -> str:
        """Where."""
        return safety.text(self.group, "device", self.place) or ""

    @property
    def seed(self) -> int:
        """Of the random numbers."""
        return safety.integer(self.group, "seed", self.place) or 0

    @property
    def seconds(self) -> float:
        """Time inside the solver."""
        return safety.number(self.group, "seconds", self.place) or 0.0

    @property
    def proposals(self) -> int:
        """Candidates examined."""
        return safety.integer(self.group, "proposals", self.place) or 0

    @property
    def notes(self) -> tuple[str, ...]:
        """What the dump gave reason to say."""
        return tuple(str(note) for note in self._list("notes"))

    @property
    def data_range(self) -> tuple[float, float] | None:
        """Range of the inputs that was given."""
        found = safety.vector(self.group, "data_range", self.place)
        return None if found is None or len(found) != 2 else (found[0], found[1])

    @property
    def decay(self) -> spear_np.WeightDecay:
        """What the update held of the parameters besides the gradient."""
        names = ("weight_decay", "bias_decay", "weight_decay_deviation")
        return spear_np.WeightDecay(*(safety.number(self.group, name, self.place) or 0.0 for name in names))

    @cached_property
    def worst_bound(self) -> float | None:
        """Largest bound on the error of any of its inputs; None without one."""
        if self.error_bound is None or not self.found:
            return None
        return float(np.max(self.error_bound[:]))

    @cached_property
    def agreement(self) -> float | None:
        """λ of the batch, if it could be looked at."""
        checks = safety.subgroup(self.group, "certificate", self.place)
        check = None if checks is None else safety.subgroup(checks, "sign_agreement", self.place)
        return None if check is None else safety.number(check, "value", self.place)

    @cached_property
    def certificate(self) -> spear_np.Certificate:
        """Every check, and what it says of each input."""
        figures = {name: self._values(self.group, name, "any") for name in FIGURES}
        return spear_np.Certificate(
            checks=tuple(self._checks()),
            zero_count=tuple(int(value) for value in figures["zero_count"]),
            redundancy=tuple(int(value) for value in figures["redundancy"]),
            sign_agreement=figures["sign_agreement"],
            false_probability=figures["false_probability"],
            error_bound=figures["error_bound"],
            caveats=tuple(str(caveat) for caveat in self._list("caveats")),
            evidence=tuple(self._evidence()),
            rests_on=tuple(
                spear_np.Premise(str(premise.get("name", "")), str(premise.get("meaning", "")))
                for premise in self._list("rests_on")
                if isinstance(premise, dict)
            ),
        )

    def _checks(self) -> Iterator[spear_np.Check]:
        group = safety.subgroup(self.group, "certificate", self.place)
        found = []
        for name in () if group is None else safety.member_names(group, self.place):
            assert group is not None
            one = safety.subgroup(group, name, self.place)
            relation = None if one is None else safety.text(one, "relation", self.place)
            if one is None or relation not in ("<=", ">="):
                continue
            value = safety.number(one, "value", self.place)
            threshold = safety.number(one, "threshold", self.place)
            check = spear_np.Check(
                name,
                value,
                "<=" if relation == "<=" else ">=",
                math.nan if threshold is None else threshold,
                safety.text(one, "meaning", self.place) or "",
            )
            found.append((safety.number(one, "order", self.place) or 0, check))
        return iter([check for _, check in sorted(found, key=lambda pair: pair[0])])

    def _evidence(self) -> Iterator[spear_np.Evidence]:
        group = safety.subgroup(self.group, "evidence", self.place)
        if group is None:
            return iter(())
        facts = [self._values(group, fact.name, "integer") for fact in fields(spear_np.Evidence)]
        if any(len(fact) != self.found for fact in facts):
            return iter(())
        meanings: dict[int, Any] = {UNKNOWN: None, 0: False, 1: True}
        return (
            spear_np.Evidence(*[meanings.get(int(fact), False) for fact in row])
            for row in zip(*facts, strict=True)
        )

    def _values(self, group: h5py.Group, name: str, kind: safety.Kind) -> tuple[Any, ...]:
        array = _figures(group, name, self.inputs, self.place, kind=kind)
        return () if array is None else tuple(np.asarray(array[:]).tolist())

    def _list(self, name: str) -> list[Any]:
        """An attribute that is a JSON list."""
        text = safety.text(self.group, name, self.place)
        try:
            values = [] if text is None else json.loads(text)
        except (ValueError, RecursionError):
            values = None
        if not isinstance(values, list):
            msg = f"the attribute '{name}' is no JSON list"
            raise FileError(msg, self.place, ADVICE)
        return values


@dataclass(frozen=True)
class UnreadRecord:
    """A record of which something could not be read."""

    record: str
    problem: str
    """One line."""
    source: str | None
    source_record: str | None
    place: Place


@dataclass(frozen=True)
class InversionFile:
    """An open inversion."""

    path: Path
    place: Place
    source: str | None
    """File name of the dump it came from; None if it came from several."""
    layers: tuple[RecoveredLayer, ...]
    unread: tuple[UnreadRecord, ...] = ()
    run: str | None = None
    """Equal in files of the same sources and options."""


@contextmanager
def open_inversion(path: str | Path) -> Iterator[InversionFile]:
    """Open an inversion for reading, with the same distrust as a dump.

    Raises
    ------
    FileError
        Here or when numbers are read: whatever is wrong with the file, in one line that says where.
    """
    path = Path(path)
    with safety.open_untrusted(path, kind=FORMAT, version=FORMAT_VERSION) as file:
        yield read_inversion(file, path)


def read_inversion(file: h5py.File, path: Path) -> InversionFile:
    """Return what an open file, known to be an inversion, holds; errors as for `open_inversion`."""
    place = Place(path)
    records = safety.required_subgroup(file, "records", place)
    visits = safety.Visits(place)
    source = safety.text(file, "source", place)
    layers: list[RecoveredLayer] = []
    unread: list[UnreadRecord] = []
    for name in safety.member_names(records, place):
        where = place.at(record=name)
        record = safety.subgroup(records, name, where)
        if record is None:
            continue
        origin = safety.text(record, "source", where) or source, safety.text(record, "source_record", where)
        problem = safety.text(record, "problem", where)
        if problem is not None:
            unread.append(UnreadRecord(name, problem, *origin, where))
        layers += [_read_layer(group, at, visits, *origin) for group, at in _layer_groups(record, where)]
    if not layers and not unread:
        msg = "holds no layers"
        raise FileError(msg, place, ADVICE)
    run = safety.text(file, "run", place)
    return InversionFile(path, place, source, tuple(layers), tuple(unread), run)


def _layer_groups(record: h5py.Group, place: Place) -> Iterator[tuple[h5py.Group, Place]]:
    layers = safety.required_subgroup(record, "layers", place)
    for layer in safety.member_names(layers, place):
        where = place.at(layer=layer)
        group = safety.subgroup(layers, layer, where)
        if group is not None:
            yield group, where


def _read_layer(
    group: h5py.Group, place: Place, visits: safety.Visits, source: str | None, source_record: str | None
) -> RecoveredLayer:
    """Read everything but the arrays, and what few ask for."""
    visits.count(group)
    status = safety.text(group, "status", place) or ""
    if status not in tuple(spear_np.Status):
        msg = (
            f"the attribute 'status' is '{printable(status)}', but must be one of {listing(spear_np.Status)}"
        )
        raise FileError(msg, place, ADVICE)
    inputs = safety.numbers(group, "inputs", place, ndim=2)
    if inputs is None:
        msg = "the dataset 'inputs' is missing"
        raise FileError(msg, place, ADVICE)
    visits.count(inputs.dataset)
    return RecoveredLayer(
        record=place.record or "",
        layer=place.layer or "",
        place=place,
        group=group,
        status=spear_np.Status(status),
        claim=safety.text(group, "claim", place) or status,
        reason=safety.text(group, "reason", place) or "",
        batch_size=safety.integer(group, "batch_size", place) or 0,
        scale_known=safety.boolean(group, "scale_known", place) is not False,
        inputs=inputs,
        error_bound=_figures(group, "error_bound", inputs, place),
        labels=_figures(group, "labels", inputs, place, kind="integer"),
        chain=safety.texts(group, "chain", place) or (),
        display=read_display(group, place),
        between=safety.text(group, "between", place),
        source=source,
        source_record=source_record,
    )


def _figures(
    group: h5py.Group, name: str, inputs: StoredArray, place: Place, *, kind: safety.Kind = "float"
) -> StoredArray | None:
    """Return a dataset with one number for each input; None if there is none."""
    array = safety.numbers(group, name, place, ndim=1, kind=kind)
    if array is not None and array.shape != inputs.shape[:1]:
        msg = f"has shape {array.shape}, but there are {inputs.shape[0]} inputs"
        raise FileError(msg, array.place, ADVICE)
    return array
