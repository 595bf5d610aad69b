"""The inversion: what was recovered, read back lazily; `inversion_writer` writes it.

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
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np

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

from ..problems import FileError, Place, listing, printable
from . import opening, safety, stated
from .details import (
    AGAIN,
    Brief,
    Details,
    figure_of,
    read_brief,
    read_details,
)
from .display import Display, image_axes, read_display
from .sight import Seen, Sight
from .storage import Floats, StoredArray

if TYPE_CHECKING:
    from spear_np.answer.notebook import DataFrame

FORMAT = "spear-inversion"
FORMAT_VERSION = 1

LONGEST_REASON = 1000
"""Characters of a reason that are shown."""


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
    with opening.open_untrusted(path, kind=FORMAT, version=FORMAT_VERSION) as file:
        records = safety.required_subgroup(file, "records", place)
        visits = safety.Visits(place)
        source = stated.text(file, "source", place)
        layers: list[RecoveredLayer] = []
        unread: list[UnreadRecord] = []
        for name in safety.member_names(records, place):
            where = place.at(record=name)
            record = safety.subgroup(records, name, where)
            if record is None:
                continue
            origin = (
                stated.text(record, "source", where) or source,
                stated.text(record, "source_record", where),
            )
            problem = stated.text(record, "problem", where)
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
            version=stated.text(file, "version", place),
            created=stated.text(file, "created", place),
            layers=tuple(layers),
            unread=tuple(unread),
            run=stated.text(file, "run", place),
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
    status = stated.text(group, "status", place) or ""
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
        claim=stated.text(group, "claim", place) or status,
        reason=stated.text(group, "reason", place) or "",
        batch_size=stated.integer(group, "batch_size", place) or 0,
        scale_known=stated.boolean(group, "scale_known", place) is not False,
        inputs=inputs,
        error_bound=figure_of(group, "error_bound", inputs.shape[0], place),
        labels=figure_of(group, "labels", inputs.shape[0], place, kind="integer"),
        chain=stated.texts(group, "chain", place) or (),
        display=display,
        seen=_read_seen(group, place, display, inputs.shape[1]),
        units=None if columns is None else columns.shape[0],
        source=source,
        source_record=source_record,
        _group=group,
    )


def _read_seen(group: h5py.Group, place: Place, display: Display, features: int) -> Seen:
    """What a layer of `features` features saw; a file that does not say leaves it to what stands before, and to the shape."""
    said = stated.text(group, "sees", place)
    follows, between = stated.text(group, "follows", place), stated.text(group, "between", place)
    if said in tuple(Sight):
        return Seen(Sight(said), follows, between)
    shape = display.input_shape
    fits = shape is None or math.prod(shape) == features
    return Seen(Sight.INPUTS if fits and between is None else Sight.FEATURES, follows, between)
