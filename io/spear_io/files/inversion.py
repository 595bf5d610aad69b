"""The inversion: what was recovered, written whole or not at all, and read back lazily.

The layout is `format = "spear-inversion"`, `format_version = 1`::

    /                                  source, created, version
    /records/<record>/layers/<layer>/  status, claim, reason, batch_size, found, method, seed, seconds, device, proposals,
                                       scale_known, data_range (if one was given), caveats and notes (JSON lists
                                       of sentences), rests_on (JSON list of names and sentences), chain (if several layers were used),
                                       weight_decay, bias_decay and weight_decay_deviation (if the update held any); where the
                                       dump says so:
                                       input_shape, input_mean, input_std, client, round, between
        inputs (k, n), output_grad (m, k)
        zero_count, redundancy, sign_agreement, false_probability, error_bound (k,), labels (k,) if they are known
        evidence/<fact> (k,)
        certificate/<check>            attributes: value (absent if the check could not be made), relation,
                                       threshold, passed (likewise), meaning, order (position when printed)
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Self

import h5py
import numpy as np

import spear_np
from spear_np.backend import to_host

from ..problems import FileError, Place, listing, printable
from . import safety
from .atomic import NewFile, new_hdf5
from .display import Display, read_display, write_display
from .storage import StoredArray

FORMAT = "spear-inversion"
FORMAT_VERSION = 1

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


class InversionWriter:
    """An inversion being written; it takes its name when the `with` block ends well.

    Parameters
    ----------
    path : path
        Where. Whatever keeps it from being written shows when the block is entered, before any search.
    source : path
        The dump that is inverted; it is never replaced.
    replace : bool
        Whether a file that is no inversion may be replaced.

    Examples
    --------
    ::

        with InversionWriter("inverted.h5", source="dump.h5") as out:
            out.add("client-0", "fc1", spear_np.invert_layer(gradients))
    """

    def __init__(self, path: str | Path, *, source: str | Path, replace: bool = True) -> None:
        self.place = Place(Path(path))
        self._source = Path(source)
        self._new = new_hdf5(
            Path(path), kind=FORMAT, version=FORMAT_VERSION, sources=[self._source], replace=replace
        )

    def __enter__(self) -> Self:
        """Start the file under a temporary name."""
        with ExitStack() as stack:
            self._file: NewFile = stack.enter_context(self._new)
            root = self._file.root
            with self._file.writing(self.place):
                root.attrs["source"] = os.fsencode(self._source.name).decode("utf-8", "replace")
                root.attrs["version"] = spear_np.__version__
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
        between: str | None = None,
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
        between : str, optional
            What stands before the layer, as the dump names it.

        Raises
        ------
        FileError
            If the file cannot be written.
        """
        place = self.place.at(record=record, layer=layer)
        k, n = result.found, result.gradients.shape[1]
        with self._file.writing(place):
            if record not in self._records:
                self._records.create_group(record).create_group("layers", track_order=True)
            group = self._records[record]["layers"].create_group(layer)
            group.attrs.update(
                {
                    "status": str(result.status),
                    "claim": result.claim,
                    "reason": result.reason,
                    "batch_size": result.batch_size,
                    "found": k,
                    "method": result.method,
                    "seed": result.seed,
                    "seconds": result.seconds,
                    "device": result.device,
                    "proposals": result.proposals,
                    "scale_known": result.scale_known,
                    "caveats": json.dumps(result.certificate.caveats),
                    "rests_on": json.dumps([asdict(premise) for premise in result.certificate.rests_on]),
                    "notes": json.dumps(tuple(notes)),
                }
            )
            if result.data_range is not None:
                group.attrs["data_range"] = result.data_range
            if result.chain:
                group.attrs["chain"] = list(result.chain)
            if (decay := result.gradients.decay).present:
                group.attrs["weight_decay"] = decay.weight
                group.attrs["bias_decay"] = decay.bias
                group.attrs["weight_decay_deviation"] = decay.deviation
            if between is not None:
                group.attrs["between"] = between
            if display is not None:
                write_display(group, display)
            group.create_dataset("output_grad", data=to_host(result.output_grad))
            _write_certificate(group, result.certificate)
            if k and result.labels is not None:
                group.create_dataset("labels", data=to_host(result.labels).astype(np.int64))
            inputs = group.create_dataset("inputs", (k, n), np.float64)
        if k == 0:
            return
        for columns, block in result.input_blocks():
            values = to_host(block)
            with self._file.writing(place.at(dataset="inputs")):
                inputs[:, columns] = values


def _write_certificate(group: h5py.Group, certificate: spear_np.Certificate) -> None:
    for name, dtype in FIGURES.items():
        values = getattr(certificate, name)
        if values:
            group.create_dataset(name, data=np.asarray(values, dtype=dtype))
    if certificate.evidence:
        evidence = group.create_group("evidence", track_order=True)
        for fact in fields(spear_np.Evidence):
            values = [getattr(row, fact.name) for row in certificate.evidence]
            numbers = [UNKNOWN if value is None else int(value) for value in values]
            evidence.create_dataset(fact.name, data=np.asarray(numbers, dtype=np.int8))
    checks = group.create_group("certificate", track_order=True)
    for order, check in enumerate(certificate.checks):
        attributes = checks.create_group(check.name).attrs
        attributes.update(
            {
                "order": order,
                "relation": check.relation,
                "threshold": check.threshold,
                "meaning": check.meaning,
            }
        )
        if check.value is not None:
            attributes.update({"value": check.value, "passed": bool(check.passed)})


@dataclass(frozen=True)
class RecoveredLayer:
    """One layer of an inversion file; the arrays are read when sliced."""

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
    between: str | None
    """What stands before the layer, as the dump named it: then its inputs are not those of the network."""

    @property
    def found(self) -> int:
        """k, the number of recovered inputs."""
        return self.inputs.shape[0]


@dataclass(frozen=True)
class InversionFile:
    """An open inversion."""

    path: Path
    place: Place
    source: str | None
    """File name of the dump it came from."""
    layers: tuple[RecoveredLayer, ...]


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
        layers = [
            _read_layer(group, where, visits)
            for record in safety.member_names(records, place)
            for group, where in _layer_groups(records, record, place.at(record=record))
        ]
        if not layers:
            msg = "holds no layers"
            raise FileError(msg, place, "run 'spear-np invert' again")
        yield InversionFile(path, place, safety.text(file, "source", place), tuple(layers))


def _layer_groups(records: h5py.Group, name: str, place: Place) -> Iterator[tuple[h5py.Group, Place]]:
    record = safety.subgroup(records, name, place)
    if record is None:
        return
    layers = safety.required_subgroup(record, "layers", place)
    for layer in safety.member_names(layers, place):
        where = place.at(layer=layer)
        group = safety.subgroup(layers, layer, where)
        if group is not None:
            yield group, where


def _read_layer(group: h5py.Group, place: Place, visits: safety.Visits) -> RecoveredLayer:
    """Read everything but the arrays."""
    visits.count(group)
    status = safety.text(group, "status", place) or ""
    if status not in tuple(spear_np.Status):
        msg = (
            f"the attribute 'status' is '{printable(status)}', but must be one of {listing(spear_np.Status)}"
        )
        raise FileError(msg, place, "run 'spear-np invert' again")
    inputs = safety.numbers(group, "inputs", place, ndim=2)
    if inputs is None:
        msg = "the dataset 'inputs' is missing"
        raise FileError(msg, place, "run 'spear-np invert' again")
    visits.count(inputs.dataset)
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
        error_bound=_figures(group, "error_bound", inputs, place),
        labels=_figures(group, "labels", inputs, place, kind="integer"),
        chain=safety.texts(group, "chain", place) or (),
        display=read_display(group, place),
        between=safety.text(group, "between", place),
    )


def _figures(
    group: h5py.Group, name: str, inputs: StoredArray, place: Place, *, kind: safety.Kind = "float"
) -> StoredArray | None:
    """Return a dataset with one number for each input; None if there is none."""
    array = safety.numbers(group, name, place, ndim=1, kind=kind)
    if array is not None and array.shape != inputs.shape[:1]:
        msg = f"has shape {array.shape}, but there are {inputs.shape[0]} inputs"
        raise FileError(msg, array.place, "run 'spear-np invert' again")
    return array
