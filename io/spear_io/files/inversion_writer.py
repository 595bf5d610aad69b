"""The inversion being written: whole or not at all; the layout is that of `inversion`."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import h5py
import numpy as np
import numpy.typing as npt

import spear_np
from spear_np.backend.host import to_host

from ..problems import Place
from .atomic import NewFile, new_hdf5
from .attributes import new_array, stored_name, write_array, write_attributes, write_columns
from .details import write_details
from .display import Display, write_display
from .inversion import FORMAT, FORMAT_VERSION
from .sight import Seen


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
            write_array(group, "output_grad", to_host(result.output_grad))
            write_details(group, result, tuple(notes))
            if k and result.labels is not None:
                write_array(group, "labels", to_host(result.labels), np.int64)
            inputs = new_array(group, "inputs", (k, n), np.float64)
        if k == 0:
            return
        for columns, block in result.input_blocks():
            values = to_host(block)
            with self._file.writing(place.at(dataset="inputs")):
                write_columns(inputs, columns, values)

    def take(self, found: h5py.Group, record: str, layer: str) -> None:
        """Copy the group of a layer that another inversion, written by this program, holds, byte for byte.

        Raises
        ------
        FileError
            If this file cannot be written.
        """
        with self._file.writing(self.place.at(record=record, layer=layer)):
            found.copy(found, self._layers(record), name=layer)

    def describe(self, record: str, **said: str) -> None:
        """Store texts as attributes of a record: `source` and `source_record`, where it came from, or its `problem`."""
        with self._file.writing(self.place.at(record=record)):
            self._layers(record)
            write_attributes(self._records[record], said)

    def mark(self, record: str, layer: str, repeats: npt.ArrayLike) -> None:
        """Store the numbers (k,) of the groups of equal inputs that those of a layer belong to."""
        with self._file.writing(self.place.at(record=record, layer=layer)):
            group = self._layers(record)[layer]
            write_array(group, "repeats", repeats, np.int64)

    def _layers(self, record: str) -> h5py.Group:
        """The group of the layers of a record, made if it is not there."""
        if record not in self._records:
            return self._records.create_group(record).create_group("layers", track_order=True)
        return self._records[record]["layers"]


def _write_seen(group: h5py.Group, seen: Seen) -> None:
    write_attributes(group, {"sees": str(seen.sight), "follows": seen.follows, "between": seen.between})
