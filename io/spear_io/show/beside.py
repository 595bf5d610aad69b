"""What an inversion is held against: the dump it came from, or true inputs from elsewhere, or nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..convert.truth import read_truth
from ..files.dump import Dump, Layer, Record, named, open_dump
from ..files.inversion import InversionFile, RecoveredLayer
from ..files.opening import is_hdf5
from ..files.storage import Floats, Rows
from ..problems import FileError
from .evaluate import LayerEvaluation, Truth, compared, evaluate_layer, nothing_compared


@dataclass(frozen=True)
class Comparison:
    """One recovered layer beside its truth."""

    evaluation: LayerEvaluation
    truth: Rows
    """(b, n), as the layer sees them."""
    labels: Floats | None
    """(b,), if they are known."""


@dataclass(frozen=True)
class Beside:
    """What stands beside an inversion."""

    dump: Dump | None = None
    truth: Truth | None = None

    def layer(self, recovered: RecoveredLayer) -> tuple[Record, Layer] | None:
        """Return the record and the layer of the dump that were inverted; None without a dump.

        Raises
        ------
        FileError
            If the dump does not hold them.
        """
        if self.dump is None:
            return None
        record = named(self.dump.records, recovered.record, self.dump.place, "record")
        return record, named(record.layers, recovered.layer, record.place, "layer")

    def compare(self, recovered: RecoveredLayer) -> Comparison | None:
        """Match what was recovered to the truth, without how alike the two look; None where there is none for this layer.

        Raises
        ------
        FileError
            If the truth does not fit.
        """
        if self.truth is not None:
            if self.truth.rows.shape[1] != recovered.inputs.shape[1]:
                return None
            rows = self.truth.of(recovered)
            nothing = nothing_compared(recovered)
            done = compared(nothing, recovered, rows, recovered.seen, recovered.display, ssim=False)
            return Comparison(done, rows, None)
        found = self.layer(recovered)
        truth = None if found is None else found[1].truth
        if found is None or truth is None:
            return None
        record, layer = found
        labels = record.labels
        if labels is not None and labels.shape != truth.shape[:1]:
            labels = None
        return Comparison(
            evaluate_layer(recovered, record, layer, ssim=False), truth, None if labels is None else labels[:]
        )


@contextmanager
def beside(path: Path | None, inversion: InversionFile, *, of_data: bool | None = None) -> Iterator[Beside]:
    """Open what a user gave beside an inversion: a dump, true inputs, or nothing.

    Parameters
    ----------
    path : Path, optional
        A gradient dump, or a file or folder that `read_truth` takes.
    inversion : InversionFile
        Says the shape of an input, by which pictures are read.
    of_data : bool, optional
        Whether true inputs that no dump holds are in the units of the data; by default whichever fits better.

    Raises
    ------
    FileError
        If it is neither, or true inputs fit no layer.
    """
    if path is None:
        yield Beside()
        return
    if not path.is_dir() and path.is_file() and is_hdf5(path):
        with open_dump(path) as dump:
            yield Beside(dump=dump)
        return
    yield Beside(truth=truth_for(path, inversion, of_data=of_data))


def truth_for(path: Path, inversion: InversionFile, *, of_data: bool | None = None) -> Truth:
    """Read true inputs that belong to some layer of an inversion; arguments and errors are those of `beside`."""
    shapes = {layer.display.input_shape for layer in inversion.layers}
    rows = read_truth(path, shape=shapes.pop() if len(shapes) == 1 else None)
    features = {layer.inputs.shape[1] for layer in inversion.layers}
    if rows.shape[1] not in features:
        sizes = " or ".join(str(size) for size in sorted(features))
        msg = f"holds rows of {rows.shape[1]} numbers, but the layers of this inversion have {sizes} features"
        raise FileError(msg, rows.place, "give one true input a row, flattened as the layer sees it")
    return Truth(rows, of_data)
