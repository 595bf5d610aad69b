"""The inversion: what was recovered, written whole or not at all, and read back lazily.

The layout is `format = "spear-inversion"`, `format_version = 1`::

    /                                  source, created, version, run (which sources and options it came from)
    /records/<record>/                 in files of many: source, source_record (where it came from), problem (what kept
                                       it, or some layer of it, from being read)
    /records/<record>/layers/<layer>/  status, claim, reason, batch_size, found, method, seed, seconds, device, proposals,
                                       scale_known, data_range (if one was given), activation, relative_noise, checks (JSON list),
                                       caveats and notes (JSON lists of sentences), rests_on (JSON list of names and sentences), chain
                                       (if several layers were used), weight_decay, bias_decay and weight_decay_deviation (if
                                       the update held any); where the dump says so: input_shape, input_mean, input_std,
                                       feature_names, client, round, sees, follows, between
        inputs (k, n), output_grad (m, k)
        zero_count, redundancy, sign_agreement, false_probability, error_bound (k,), labels (k,) if they are known,
        repeats (k,) if some of the inputs are in other records as well
        evidence (k, f)                facts (their names)
        singular_values                of weight_grad over its noise
        history (t, 4)                 search (in the attribute searches), proposals, found, seconds of each round
"""

from __future__ import annotations

import html
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import h5py
import numpy as np
import numpy.typing as npt

import spear_np
from spear_np.answer.notebook import (
    LARGEST_PICTURE,
    Answer,
    Picture,
    answer_html,
    answer_table,
    figures_of,
    square_picture,
)
from spear_np.backend import to_host

from ..problems import FileError, Place, listing, printable
from . import safety
from .atomic import NewFile, new_hdf5
from .attributes import write_attributes
from .details import (
    AGAIN,
    Brief,
    Details,
    figure_of,
    read_brief,
    read_details,
    write_details,
)
from .display import Display, image_axes, read_display, write_display
from .sight import Seen, Sight
from .storage import Floats, StoredArray

if TYPE_CHECKING:
    from spear_np.answer.notebook import DataFrame

FORMAT = "spear-inversion"
FORMAT_VERSION = 1

LONGEST_REASON = 1000
"""Characters of a reason that are shown."""


class InversionWriter:
    """An inversion being written; it takes its name when the `with` block ends well.

    Parameters
    ----------
    path : path
        Where. Whatever keeps it from being written shows when the block is entered, before any search.
    source : path, optional
        The dump that is inverted; it is never replaced. None if there are several.
    replace : bool
        Whether a file that is no inversion may be replaced.
    durable : bool
        Whether to wait, at the end, until the disk has the file.
    run : str, optional
        Tells files of the same sources and options from others.

    Examples
    --------
    ::

        with InversionWriter("inverted.h5", source="dump.h5") as out:
            out.add("client-0", "fc1", spear_np.invert_layer(gradients))
    """

    def __init__(
        self,
        path: str | Path,
        *,
        source: str | Path | None,
        replace: bool = True,
        durable: bool = True,
        run: str | None = None,
    ) -> None:
        self.place = Place(Path(path))
        self._source = None if source is None else Path(source)
        self._run = run
        self._new = new_hdf5(
            Path(path),
            kind=FORMAT,
            version=FORMAT_VERSION,
            sources=[] if self._source is None else [self._source],
            replace=replace,
            durable=durable,
        )

    def __enter__(self) -> Self:
        """Start the file under a temporary name."""
        with ExitStack() as stack:
            self._file: NewFile = stack.enter_context(self._new)
            root = self._file.root
            with self._file.writing(self.place):
                source = None if self._source is None else stored_name(self._source)
                write_attributes(root, {"source": source, "run": self._run, "version": spear_np.__version__})
                self._records = root.create_group("records", track_order=True)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the file its name, or leave nothing behind."""
        self._stack.__exit__(kind, error, trace)

    def add(
        self,
        record: str,
        layer: str,
        result: spear_np.Inversion,
        notes: Iterable[str] = (),
        *,
        display: Display | None = None,
        seen: Seen | None = None,
    ) -> None:
        """Write the result of one layer; its inputs go through memory block by block.

        Parameters
        ----------
        record, layer : str
            Names, as in the dump.
        result : spear_np.Inversion
            What the solver handed back.
        notes : iterable of str
            What the dump itself gives reason to say about the result.
        display : Display, optional
            What the record says of drawing its inputs and of whose they are, e.g. `Record.info`.
        seen : Seen, optional
            What the layer sees, and what stands before it, as the dump tells it: `Layer.seen`.

        Raises
        ------
        FileError
            If the file cannot be written.
        """
        place = self.place.at(record=record, layer=layer)
        k, n = result.found, result.gradients.shape[1]
        with self._file.writing(place):
            group = self._layers(record).create_group(layer)
            write_attributes(
                group,
                {
                    "status": str(result.status),
                    "claim": result.claim,
                    "reason": result.reason,
                    "batch_size": result.batch_size,
                    "found": k,
                    "scale_known": result.scale_known,
                    "data_range": result.data_range,
                    "chain": result.chain or None,
                },
            )
            if seen is not None:
                _write_seen(group, seen)
            if display is not None:
                write_display(group, display)
            group.create_dataset("output_grad", data=to_host(result.output_grad))
            write_details(group, result, tuple(notes))
            if k and result.labels is not None:
                group.create_dataset("labels", data=to_host(result.labels).astype(np.int64))
            inputs = group.create_dataset("inputs", (k, n), np.float64)
        if k == 0:
            return
        for columns, block in result.input_blocks():
            values = to_host(block)
            with self._file.writing(place.at(dataset="inputs")):
                inputs[:, columns] = values

    def take(self, other: h5py.File, record: str) -> None:
        """Copy what another inversion, written by this program, holds of one record, byte for byte.

        Raises
        ------
        FileError
            If this file cannot be written.
        """
        with self._file.writing(self.place.at(record=record)):
            layers, own = other["records"][record]["layers"], self._layers(record)
            for layer in layers:
                layers.copy(layer, own)

    def describe(self, record: str, **said: str) -> None:
        """Store texts as attributes of a record: `source` and `source_record`, where it came from, or its `problem`."""
        with self._file.writing(self.place.at(record=record)):
            self._layers(record)
            write_attributes(self._records[record], said)

    def mark(self, record: str, layer: str, repeats: npt.ArrayLike) -> None:
        """Store the numbers (k,) of the groups of equal inputs that those of a layer belong to."""
        with self._file.writing(self.place.at(record=record, layer=layer)):
            group = self._layers(record)[layer]
            group.create_dataset("repeats", data=np.asarray(repeats, dtype=np.int64))

    def _layers(self, record: str) -> h5py.Group:
        """The group of the layers of a record, made if it is not there."""
        if record not in self._records:
            return self._records.create_group(record).create_group("layers", track_order=True)
        return self._records[record]["layers"]


def stored_name(path: Path) -> str:
    """The name of a file as a text that can be stored."""
    return os.fsencode(path.name).decode("utf-8", "replace")


@dataclass(frozen=True, repr=False)
class RecoveredLayer:
    """One layer of an inversion file; the arrays are read when sliced. It prints as a summary of two lines."""

    record: str
    layer: str
    place: Place
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
    seen: Seen
    """What the layer sees: the inputs of the network, or what others made of them."""
    units: int | None
    """m, the number of output units, where the file tells it."""
    source: str | None
    """File name of the dump that its record came from."""
    source_record: str | None
    """What the record is called there, if several dumps were inverted together."""
    _group: h5py.Group = field(repr=False)

    def __repr__(self) -> str:
        """Claim, what was found, of which layer, and the reason; nothing is read for it."""
        return f"<{type(self).__name__} {self._headline}\n  {printable(self.reason, LONGEST_REASON)}>"

    def _repr_html_(self) -> str:
        """What a notebook shows: claim, premises, certificate, and the inputs as pictures where they are some."""
        try:
            return answer_html(self._answer)
        except FileError as error:
            return f"<pre>{html.escape(repr(self))}\n{html.escape(str(error))}</pre>"

    def to_dataframe(self) -> DataFrame:
        """Return a `pandas.DataFrame` with one row for each input: its figures, its label, then its features.

        Columns are those of `spear_np.Inversion.to_dataframe`; features have their names where the file tells them. Numbers are
        as the layer saw them: `spear-np export` undoes a normalisation.

        Raises
        ------
        FileError
            If something cannot be read, or the file was closed.
        ImportError
            Without pandas: ``pip install pandas``.
        """
        self._require_open()
        figures: dict[str, Sequence[float] | Floats] = {
            **figures_of(self.details.whole_certificate, self.found)
        }
        if self.labels is not None:
            figures["label"] = self.labels[:].astype(np.int64)
        names = self.display.feature_names or ()
        named = self.seen.sight is not Sight.FEATURES and len(names) == self.inputs.shape[1]
        return answer_table(self.inputs[:], figures, names if named else ())

    @property
    def _headline(self) -> str:
        return self._shown(spear_np.Certificate()).headline

    @property
    def _answer(self) -> Answer:
        self._require_open()
        return self._shown(self.details.certificate)

    def _shown(self, certificate: spear_np.Certificate) -> Answer:
        """What is shown of the layer."""
        n = self.inputs.shape[1]
        size = f" {self.units} x {n}" if self.units else ""
        return Answer(
            claim=printable(self.claim),
            found=self.found,
            batch_size=self.batch_size,
            layer=f"layer '{printable(self.layer)}'{size} of record '{printable(self.record)}'",
            reason=printable(self.reason, LONGEST_REASON),
            features=n,
            certificate=certificate,
            picture=_picture(self.display, self.seen, n),
            first=lambda rows, columns: self.inputs[:rows, :columns],
        )

    def _require_open(self) -> None:
        if not self._group:
            msg = "the file was closed"
            raise FileError(
                msg, self.place, "read it inside the block: with open_inversion(...) as inversion"
            )

    @property
    def found(self) -> int:
        """k, the number of recovered inputs."""
        return self.inputs.shape[0]

    @cached_property
    def details(self) -> Details:
        """Certificate, figures of the inputs, spectrum and history: read when first asked for.

        Raises
        ------
        FileError
            If something of it is of the wrong kind or size.
        """
        return read_details(self._group, self.place, self.found)

    @cached_property
    def brief(self) -> Brief:
        """What the line of a table says of how it was inverted: of thousands, faster than `details`; errors as there."""
        return read_brief(self._group, self.place)

    @cached_property
    def repeats(self) -> StoredArray | None:
        """(k,) whole numbers: which group of equal inputs each belongs to, -1 for none; if some do."""
        return figure_of(self._group, "repeats", self.found, self.place, kind="integer")


def _picture(display: Display, seen: Seen, features: int) -> Picture | None:
    """How a notebook draws inputs of so many features; None for numbers."""
    if seen.sight is Sight.FEATURES:
        return None
    if display.input_shape is None:
        return None if display.feature_names else square_picture(features)
    image = image_axes(display.input_shape)
    if image is None or math.prod(image[0]) != features:
        return None
    shape, axis = image
    sides = [size for place, size in enumerate(shape) if place != axis]
    height, width, depth = shape
    return (
        Picture((height, width, depth), axis, "as the file says") if max(sides) <= LARGEST_PICTURE else None
    )


@dataclass(frozen=True)
class UnreadRecord:
    """A record of which something could not be read."""

    record: str
    problem: str
    """One line."""
    source: str | None
    """File name of the dump."""


@dataclass(frozen=True, repr=False)
class InversionFile:
    """An open inversion."""

    path: Path
    place: Place
    source: str | None
    """File name of the dump it came from; None if it came from several."""
    version: str | None
    """Of the spear-np that wrote it."""
    created: str | None
    """When, as the file says it."""
    layers: tuple[RecoveredLayer, ...]
    unread: tuple[UnreadRecord, ...] = ()
    run: str | None = None
    """Equal in complete files of the same sources and options."""

    def __repr__(self) -> str:
        """Name of the file, and how many of its layers have which status."""
        counts = Counter(str(layer.status) for layer in self.layers)
        said = ", ".join(f"{count} {status}" for status, count in counts.items()) or "nothing recovered"
        unread = f", {len(self.unread)} not read" if self.unread else ""
        return f"<{type(self).__name__} {printable(str(self.path))}: {said}{unread}>"


@contextmanager
def open_inversion(path: str | Path) -> Iterator[InversionFile]:
    """Open an inversion for reading, with the same distrust as a dump.

    Raises
    ------
    FileError
        Here or when numbers are read: whatever is wrong with the file, in one line that says where.
    """
    path = Path(path)
    place = Place(path)
    with safety.open_untrusted(path, kind=FORMAT, version=FORMAT_VERSION) as file:
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
            origin = (
                safety.text(record, "source", where) or source,
                safety.text(record, "source_record", where),
            )
            problem = safety.text(record, "problem", where)
            if problem is not None:
                unread.append(UnreadRecord(name, problem, origin[0]))
            layers += [_read_layer(group, at, visits, *origin) for group, at in _layer_groups(record, where)]
        if not layers and not unread:
            msg = "holds no layers"
            raise FileError(msg, place, AGAIN)
        yield InversionFile(
            path,
            place,
            source=source,
            version=safety.text(file, "version", place),
            created=safety.text(file, "created", place),
            layers=tuple(layers),
            unread=tuple(unread),
            run=safety.text(file, "run", place),
        )


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
    """Read everything but the arrays."""
    visits.count(group)
    status = safety.text(group, "status", place) or ""
    if status not in tuple(spear_np.Status):
        msg = (
            f"the attribute 'status' is '{printable(status)}', but must be one of {listing(spear_np.Status)}"
        )
        raise FileError(msg, place, AGAIN)
    inputs = safety.numbers(group, "inputs", place, ndim=2)
    if inputs is None:
        msg = "the dataset 'inputs' is missing"
        raise FileError(msg, place, AGAIN)
    visits.count(inputs.dataset)
    display = read_display(group, place)
    columns = safety.numbers(group, "output_grad", place, ndim=2)
    return RecoveredLayer(
        record=place.record or "",
        layer=place.layer or "",
        place=place,
        status=spear_np.Status(status),
        claim=safety.text(group, "claim", place) or status,
        reason=safety.text(group, "reason", place) or "",
        batch_size=safety.integer(group, "batch_size", place) or 0,
        scale_known=safety.boolean(group, "scale_known", place) is not False,
        inputs=inputs,
        error_bound=figure_of(group, "error_bound", inputs.shape[0], place),
        labels=figure_of(group, "labels", inputs.shape[0], place, kind="integer"),
        chain=safety.texts(group, "chain", place) or (),
        display=display,
        seen=_read_seen(group, place, display, inputs.shape[1]),
        units=None if columns is None else columns.shape[0],
        source=source,
        source_record=source_record,
        _group=group,
    )


def _write_seen(group: h5py.Group, seen: Seen) -> None:
    write_attributes(group, {"sees": str(seen.sight), "follows": seen.follows, "between": seen.between})


def _read_seen(group: h5py.Group, place: Place, display: Display, features: int) -> Seen:
    """What a layer of `features` features saw; a file that does not say leaves it to what stands before, and to the shape."""
    said = safety.text(group, "sees", place)
    follows, between = safety.text(group, "follows", place), safety.text(group, "between", place)
    if said in tuple(Sight):
        return Seen(Sight(said), follows, between)
    shape = display.input_shape
    fits = shape is None or math.prod(shape) == features
    return Seen(Sight.INPUTS if fits and between is None else Sight.FEATURES, follows, between)
