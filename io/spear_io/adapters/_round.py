"""What every adapter hands over: one client's update, and the dump of a round that many of them share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from spear_io.files.dump import RecordInfo
from spear_io.files.dump_writer import NO_INFO, DumpWriter, LayerArrays
from spear_np import Sliceable
from spear_np.arrays import HostArray


class RecordingError(RuntimeError):
    """What was handed over is not one shared update; the message says why and what to do."""


@dataclass
class Update:
    """What one client shares, layer by layer, ready to be written."""

    layers: dict[str, LayerArrays] = field(default_factory=dict)
    """The layers that a dump can hold, by their names in the model, in forward order."""
    skipped: dict[str, str] = field(default_factory=dict)
    """The others, and why there is nothing of them to write."""
    info: RecordInfo = NO_INFO
    """What is known of the update before it is written."""
    producer: str = "numpy"
    """Program and version, e.g. "torch 2.13.0"."""
    to_numpy: Callable[[Any], HostArray] = np.asarray
    """Brings labels and figures of the framework to the host."""

    def write(
        self,
        path: str | Path,
        *,
        record: str = "record-0",
        labels: Sliceable | npt.ArrayLike | None = None,
        compression: str | None = None,
        **info: Any,
    ) -> None:
        """Write a dump with this one record.

        Parameters
        ----------
        path : path
            Where; appears whole or not at all.
        record : str
            Name of the record.
        labels : (b,) array or tensor, optional
            True labels, for reports.
        compression : str, optional
            h5py's name of a built-in filter, e.g. "gzip".
        **info
            Fields of `spear_io.RecordInfo`, e.g. ``input_shape=(1, 28, 28), input_mean=0.286, input_std=0.353``.

        Raises
        ------
        RecordingError
            If there is no layer to write.
        FileError
            If the file cannot be written.
        """
        with RoundWriter(path, producer=self.producer, compression=compression) as dump:
            dump.add(record, self, labels=labels, **info)


class RoundWriter:
    """Writes the updates of several clients into one dump; a model that they share is stored once.

    ::

        with RoundWriter("round-7.h5") as dump:
            for client in clients:
                dump.add(client.name, from_gradients(model, client.gradients))

    Parameters
    ----------
    path : path
        Where; the file takes its name when the block ends well.
    producer : str
        Program and version, e.g. "numpy".
    compression : str, optional
        h5py's name of a built-in filter, e.g. "gzip".
    """

    def __init__(self, path: str | Path, *, producer: str = "numpy", compression: str | None = None) -> None:
        self._writer = DumpWriter(path, producer=producer, compression=compression)
        self._model_record: str | None = None

    def __enter__(self) -> Self:
        """Start the file under a temporary name."""
        self._writer.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the file its name, or leave nothing behind."""
        self._writer.__exit__(kind, error, trace)

    def add(
        self, record: str, update: Update, *, labels: Sliceable | npt.ArrayLike | None = None, **info: Any
    ) -> None:
        """Write one record; the arguments are those of `Update.write`."""
        layers: Mapping[str, LayerArrays] = update.layers
        if not layers:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in update.skipped.items())
            msg = f"no layer was recorded ({reasons or 'the model has no fully connected layer'})"
            raise RecordingError(msg)
        shared = self._model_record
        if shared is not None and self._writer.stores_model(shared, layers):
            layers = {name: replace(layer, weight=None, bias=None) for name, layer in layers.items()}
        else:
            shared, self._model_record = None, record
        # One figure stands for all channels.
        figures = {
            name: tuple(np.atleast_1d(update.to_numpy(info[name])).tolist())
            for name in ("input_shape", "input_mean", "input_std")
            if info.get(name) is not None
        }
        self._writer.add_record(
            record,
            layers,
            info=replace(update.info, **{**info, **figures}),
            labels=None if labels is None else update.to_numpy(labels),
            model_of=shared,
        )
