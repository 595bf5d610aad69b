"""The inversion: what was recovered, written whole or not at all; `spear_io.files.recovered` reads it.

The layout is `format = "spear-inversion"`, `format_version = 1`::

    /                                  source, created, version, run (which sources and options it came from)
    /records/<record>/                 in files of many: source, source_record (where it came from), problem (what kept
                                       it, or some layer of it, from being read)
    /records/<record>/layers/<layer>/  status, claim, reason, batch_size, found, method, seed, seconds, device, proposals,
                                       scale_known, data_range (if one was given), caveats and notes (JSON lists
                                       of sentences), rests_on (JSON list of names and sentences), chain (if several layers were used),
                                       weight_decay, bias_decay and weight_decay_deviation (if the update held any); where the
                                       dump says so:
                                       input_shape, input_mean, input_std, client, round, between
        inputs (k, n), output_grad (m, k)
        zero_count, redundancy, sign_agreement, false_probability, error_bound (k,), labels (k,) if they are known,
        repeats (k,) if some of the inputs are in other records as well
        evidence/<fact> (k,)
        certificate/<check>            attributes: value (absent if the check could not be made), relation,
                                       threshold, passed (likewise), meaning, order (position when printed)
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np

import spear_np
from spear_np.backend import to_host

from ..problems import Place
from .atomic import NewFile, new_hdf5
from .display import Display, write_display

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
                if self._source is not None:
                    root.attrs["source"] = stored_name(self._source)
                if self._run is not None:
                    root.attrs["run"] = self._run
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
            group = self._layers(record).create_group(layer)
            _write_attributes(
                group,
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
                },
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

    def take(self, other: h5py.File, record: str) -> None:
        """Copy what another inversion, written by this program, holds of one record, byte for byte.

        Raises
        ------
        FileError
            If this file cannot be written.
        """
        with self._file.writing(self.place.at(record=record)):
            layers = other["records"][record]["layers"]
            for layer in layers:
                layers.copy(layer, self._layers(record))

    def describe(self, record: str, **said: str) -> None:
        """Store texts as attributes of a record: `source` and `source_record`, where it came from, or its `problem`."""
        with self._file.writing(self.place.at(record=record)):
            self._layers(record)
            _write_attributes(self._records[record], said)

    def mark(self, record: str, layer: str, repeats: Any) -> None:
        """Store the numbers (k,) of the groups of equal inputs that those of a layer belong to."""
        with self._file.writing(self.place.at(record=record, layer=layer)):
            group = self._layers(record)[layer]
            group.create_dataset("repeats", data=np.asarray(repeats, dtype=np.int64))

    def _layers(self, record: str) -> h5py.Group:
        """The group of the layers of a record, made if it is not there."""
        if record not in self._records:
            self._records.create_group(record).create_group("layers", track_order=True)
        return self._records[record]["layers"]


def stored_name(path: Path) -> str:
    """The name of a file as a text that can be stored."""
    return os.fsencode(path.name).decode("utf-8", "replace")


_SCALAR = h5py.h5s.create(h5py.h5s.SCALAR)
_SCALARS = {
    kind: (np.dtype(dtype), h5py.h5t.py_create(np.dtype(dtype), logical=True))
    for kind, dtype in ((str, h5py.string_dtype()), (int, np.int64), (float, np.float64), (bool, np.bool_))
}
"""How h5py stores one value of a type: the dtype in memory, and the type in the file."""


def _write_attributes(holder: h5py.Group, values: Mapping[str, Any]) -> None:
    """Write new attributes; single numbers and texts, of which a layer has a hundred, without the detours of h5py."""
    for name, value in values.items():
        kind = _SCALARS.get(type(value))
        if kind is None:
            holder.attrs[name] = value
            continue
        dtype, stored = kind
        attribute = h5py.h5a.create(holder.id, name.encode(), stored, _SCALAR)
        attribute.write(np.asarray(value, dtype=dtype))


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
        said: dict[str, Any] = {
            "order": order,
            "relation": check.relation,
            "threshold": check.threshold,
            "meaning": check.meaning,
        }
        if check.value is not None:
            said |= {"value": check.value, "passed": bool(check.passed)}
        _write_attributes(checks.create_group(check.name), said)
