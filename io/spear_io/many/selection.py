"""Which layers of which records are inverted: one `Task` each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from pathlib import Path

from ..files.display import Display
from ..files.dump import Dump, Layer, Record, open_dump
from ..problems import FileError, Place, listing, printable
from .sources import WILD, Sources


@dataclass(frozen=True)
class Wanted:
    """Names and patterns (``*``, ``?``, ``[a-z]``); an empty one wants everything."""

    records: Sequence[str] = ()
    layers: Sequence[str] = ()
    """From every chosen record; if empty, the first in forward order that can be inverted."""
    clients: Sequence[str] = ()
    rounds: Sequence[str] = ()


@dataclass(frozen=True)
class Task:
    """One layer to invert; small, so that it can be sent anywhere."""

    number: int
    """Its place in the file that is written."""
    dump: Path
    """Absolute."""
    record: str
    """As the dump calls it."""
    layer: str
    name: str
    """What the record is called in the file that is written."""
    shape: tuple[int, int]
    """(m, n)."""
    batch_size: int | None
    """As the dump states it."""
    display: Display
    """Whose it is, and how it is drawn."""


@dataclass(frozen=True)
class Unread:
    """A dump, or a record of it, that cannot be used."""

    name: str
    """What the record is called, or would be, in the file that is written."""
    dump: Path
    record: str | None
    """As the dump calls it; None for a whole dump."""
    error: Exception


@dataclass(frozen=True)
class Selection:
    """What is to be done, and what was left out."""

    tasks: tuple[Task, ...]
    unread: tuple[Unread, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass
class _Choosing:
    """A selection on its way."""

    wanted: Wanted
    tasks: list[Task] = field(default_factory=list)
    unread: list[Unread] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    """Why records hold nothing that can be inverted."""
    used: set[str] = field(default_factory=set)
    """Patterns and names that something had."""


def select(sources: Sources, wanted: Wanted) -> Selection:
    """Choose the layers to invert; reads what the dumps say of them, and no numbers.

    Raises
    ------
    FileError
        If a name is absent, a chosen layer cannot be inverted, or nothing is left. A dump or record that cannot be read
        is no error while there are others.
    """
    choosing = _Choosing(wanted)
    several = len(sources.dumps) > 1
    for path, label in zip(sources.dumps, sources.labels, strict=True):
        try:
            with open_dump(path) as dump:
                _choose_records(dump, label if several else None, choosing)
        except _NameError as error:
            raise error.error from None
        except FileError as error:
            if not several:
                raise
            choosing.unread.append(Unread(label, path, None, error))
    if not choosing.unread:
        _check_used(sources, choosing)
    if not choosing.tasks:
        raise _nothing(sources, choosing)
    return Selection(tuple(choosing.tasks), tuple(choosing.unread), tuple(choosing.notes))


class _NameError(Exception):
    """Somebody asked for what cannot be: an error of the request, not of a record."""

    def __init__(self, error: FileError) -> None:
        super().__init__(error)
        self.error = error


def _choose_records(dump: Dump, label: str | None, choosing: _Choosing) -> None:
    wanted = choosing.wanted
    if label is None:
        _check_names(wanted.records, [record.name for record in dump.records], dump.place, "record")
    for record in dump.records:
        if not _fits(record.name, wanted.records, choosing.used):
            continue
        name = record.name if label is None else f"{label}:{record.name}"
        try:
            if not _fits(str(record.info.client), wanted.clients, choosing.used):
                continue
            if not _fits(str(record.info.round), wanted.rounds, choosing.used):
                continue
            layers = _choose_layers(record, choosing)
            choosing.tasks += [
                _task(len(choosing.tasks) + offset, dump.path, record, layer, name)
                for offset, layer in enumerate(layers)
            ]
        except FileError as error:
            if error.record is None:  # it is the file as a whole that is no good
                raise
            choosing.unread.append(Unread(name, dump.path, record.name, error))


def _task(number: int, dump: Path, record: Record, layer: Layer, name: str) -> Task:
    m, n = layer.shape or layer.gradients.shape
    info = record.info
    display = Display(**{field.name: getattr(info, field.name) for field in fields(Display)})
    return Task(number, dump.absolute(), record.name, layer.name, name, (m, n), info.batch_size, display)


def _choose_layers(record: Record, choosing: _Choosing) -> list[Layer]:
    wanted = choosing.wanted.layers
    if wanted:
        _check_names(wanted, [layer.name for layer in record.layers], record.place, "layer")
        found = [layer for layer in record.layers if _fits(layer.name, wanted, choosing.used)]
        order = {name: place for place, name in enumerate(wanted)}
        found.sort(key=lambda layer: order.get(layer.name, len(order)))
    else:
        found = [layer for layer in record.layers if record.problem_of(layer) is None][:1]
    for layer in found:
        problem = record.problem_of(layer)
        if problem is not None:
            msg = f"a layer that cannot be inverted: {problem}"
            raise _NameError(FileError(msg, layer.place, "choose another layer with --layer"))
    if not found:
        why = "; ".join(f"'{printable(layer.name)}' is {record.problem_of(layer)}" for layer in record.layers)
        what = f"no layer like {listing(wanted)}" if wanted else f"no layer that can be inverted: {why}"
        choosing.notes.append(f"record '{printable(record.name)}' holds {what}")
        choosing.reasons.append(f"there is {what}" if wanted else f"no layer can be inverted: {why}")
    return found


def _check_names(wanted: Iterable[str], there: Sequence[str], place: Place, what: str) -> None:
    """Refuse a name, other than a pattern, that nothing has."""
    for name in wanted:
        if name not in there and not any(sign in name for sign in WILD):
            msg = f"there is no {what} '{printable(name)}'"
            raise _NameError(FileError(msg, place, f"there is: {listing(there)}"))


def _fits(name: str, wanted: Sequence[str], used: set[str]) -> bool:
    """Whether `name` is wanted; what wanted it is added to `used`."""
    fitting = [one for one in wanted if one == name or fnmatchcase(name, one)]
    used.update(fitting)
    return bool(fitting) or not wanted


def _check_used(sources: Sources, choosing: _Choosing) -> None:
    """Refuse what nothing has been chosen by: more likely a slip than meant."""
    wanted = choosing.wanted
    asked: dict[str, Sequence[str]] = {
        "record": wanted.records,
        "layer": wanted.layers,
        "client": wanted.clients,
        "round": wanted.rounds,
    }
    for what, names in asked.items():
        for name in names:
            if name not in choosing.used:
                msg = f"there is no {what} '{printable(name)}'"
                raise FileError(msg, Place(sources.dumps[0]), f"correct --{what}, or leave it out")


def _nothing(sources: Sources, choosing: _Choosing) -> Exception:
    """The error to raise if no layer is left."""
    if choosing.unread:
        return choosing.unread[0].error
    place = Place(sources.dumps[0])
    if choosing.reasons:
        more = f" (and {len(choosing.reasons) - 1} records alike)" if len(choosing.reasons) > 1 else ""
        advice = "export a fully connected layer followed by a ReLU, or one and the layer that follows it"
        return FileError(choosing.reasons[0] + more, place, advice)
    msg = "no record is what --record, --client and --round ask for"
    return FileError(msg, place, "see what there is with 'spear-np inspect'")
