"""Writing gradient dumps: the one door through which every exporter goes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, fields
from dataclasses import replace as replaced
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np
import numpy.typing as npt

import spear_np
from spear_np import Sliceable
from spear_np.adopt import from_bfloat16

from ..problems import FileError, Place, WriteError, listing, printable
from .atomic import NewFile, new_hdf5
from .attributes import write_attributes
from .chains import Link, check_follows, write_activation
from .dump import DATASETS, FORMAT, FORMAT_VERSION, RecordInfo
from .frameworks import handed_over
from .storage import FINITE, check_finite_block, row_blocks, same_numbers, stored_as

FLOATS = ("float16", "float32", "float64")

NO_INFO = RecordInfo()

Follows = bool | Mapping[str, str | None] | None
"""Which layers take, exactly, the activated output of which; see `linked`."""


@dataclass(frozen=True)
class LayerArrays:
    """What is written of one layer; every array may be anything with `shape`, `dtype` and slicing.

    Tensors of PyTorch, arrays of JAX and CuPy, and lists of numbers are taken as well. Shapes: m output units, n input
    features, b inputs. bfloat16 numbers come as `Bfloat16` (or as a tensor, or an array of the NumPy extension type of
    that name).
    """

    weight_grad: Sliceable | None
    """(m, n) ∂L/∂W; None for what is no fully connected layer, of which only the kind is written."""
    bias_grad: Sliceable | None = None
    """(m,) ∂L/∂b; without it inputs are found up to their scale."""
    weight: Sliceable | None = None
    """(m, n); without it activation signs cannot be checked."""
    bias: Sliceable | None = None
    """(m,)."""
    inputs: Sliceable | None = None
    """(b, n) true inputs, for evaluation only."""
    activation: str | spear_np.Activation = "relu"
    """What is applied to the output, element by element; a name stands for the activation with default parameters."""
    follows: str | None = None
    """The layer whose activated output is, exactly, the input of this one."""
    between: str | None = None
    """What stands before this layer and keeps it from following another, e.g. "layer_norm"; several joined by +."""
    kind: str = "linear"
    activation_assumed: bool = False
    """Whether nothing names the activation: it is taken for granted."""


class DumpWriter:
    """A gradient dump being written; it takes its name when the `with` block ends well.

    Parameters
    ----------
    path : path
        Where; a file of that name is replaced only by a complete one.
    producer : str
        Program and version, e.g. "torch 2.13.0".
    compression : str, optional
        h5py's name of a built-in filter ("gzip", "lzf"). Gradients hardly shrink.
    sources : iterable of Path
        Files that are being read and must not be replaced.
    replace : bool
        Whether a file that is no dump may be replaced.

    Examples
    --------
    ::

        with DumpWriter("dump.h5", producer="numpy") as dump:
            dump.add_record("client-0", {"fc1": LayerArrays(weight_grad, bias_grad, weight, bias)})
            dump.add_record("client-1", {"fc1": LayerArrays(other_grad, other_bias_grad)}, model_of="client-0")
    """

    def __init__(
        self,
        path: str | Path,
        *,
        producer: str = "numpy",
        compression: str | None = None,
        sources: Iterable[Path] = (),
        replace: bool = True,
    ) -> None:
        self.place = Place(Path(path))
        self._producer = producer
        self._compression = compression
        self._new = new_hdf5(
            Path(path), kind=FORMAT, version=FORMAT_VERSION, sources=sources, replace=replace
        )

    def __enter__(self) -> Self:
        """Start the file under a temporary name."""
        with ExitStack() as stack:
            self._file: NewFile = stack.enter_context(self._new)
            with self._file.writing(self.place):
                self._file.root.attrs["producer"] = printable(self._producer)
                self._records = self._file.root.create_group("records", track_order=True)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the file its name, or leave nothing behind."""
        self._stack.__exit__(kind, error, trace)

    def add_record(
        self,
        name: str,
        layers: Mapping[str, LayerArrays],
        *,
        info: RecordInfo = NO_INFO,
        labels: Sliceable | npt.ArrayLike | None = None,
        model_of: str | None = None,
        follows: Follows = None,
    ) -> None:
        """Write one shared update.

        Parameters
        ----------
        name : str
            Name of the record.
        layers : mapping
            Layers by name, in forward order.
        info : RecordInfo
            What else is known.
        labels : (b,) array, optional
            True labels.
        model_of : str, optional
            An earlier record that shares the model: its `weight` and `bias` are linked instead of stored again.
        follows : bool or mapping, optional
            Which layers take, exactly, the activated output of which, where they do not say so themselves; see
            `linked`.

        Raises
        ------
        FileError
            If arrays do not fit together or hold NaN or infinity, or the file cannot be written.
        """
        place = self.place.at(record=name)
        _check_name(name, place, self._records)
        try:
            self._add_record(name, layers, place, info, labels, model_of, follows)
        except WriteError:
            raise
        except FileError:  # what is left of it would be read as a record
            with self._file.writing(place):
                if name in self._records:
                    del self._records[name]
            raise

    def _add_record(
        self,
        name: str,
        layers: Mapping[str, LayerArrays],
        place: Place,
        info: RecordInfo,
        labels: Sliceable | npt.ArrayLike | None,
        model_of: str | None,
        follows: Follows,
    ) -> None:
        _check_followers(follows, layers, place)
        layers = {key: _on_host(layer, place.at(layer=key)) for key, layer in linked(layers, follows).items()}
        with self._file.writing(place):
            record = self._records.create_group(name)
            _write_info(record, info)
            groups = record.create_group("layers", track_order=True)
        check_follows(
            {key: Link(_shape(layer), layer.follows, place.at(layer=key)) for key, layer in layers.items()}
        )
        for order, (layer_name, layer) in enumerate(layers.items()):
            layer_place = place.at(layer=layer_name)
            _check_name(layer_name, layer_place, groups)
            _check_shapes(layer, layer_place)
            with self._file.writing(layer_place):
                group = groups.create_group(layer_name)
                write_attributes(
                    group,
                    {
                        "kind": layer.kind,
                        "order": order,
                        "follows": layer.follows,
                        "between": layer.between,
                        "activation_assumed": 1 if layer.activation_assumed else None,
                    },
                )
                write_activation(group, layer.activation)
            for dataset in DATASETS:
                array = getattr(layer, dataset)
                if array is not None:
                    self._write(group, dataset, array, layer_place)
            if model_of is not None and layer.kind == "linear":
                self._link_model(group, model_of, layer_place)
            if layer.inputs is not None:
                truth = record.require_group(f"truth/{layer_name}")
                self._write(truth, "inputs", layer.inputs, layer_place)
        if labels is not None:
            with self._file.writing(place):
                data = np.asarray(handed_over(labels, place)[...])
                record.require_group("truth").create_dataset("labels", data=data)

    def stores_model(self, record: str, layers: Mapping[str, LayerArrays]) -> bool:
        """Whether an earlier record holds the weights and biases of all these layers, to the last bit."""
        stored = self._records[record]["layers"]
        linear = {name: layer for name, layer in layers.items() if layer.kind == "linear"}
        return bool(linear) and all(
            f"{name}/weight" in stored
            and same_numbers(stored[name]["weight"], layer.weight)
            and same_numbers(stored[name].get("bias"), layer.bias)
            for name, layer in linear.items()
        )

    def _link_model(self, group: h5py.Group, model_of: str, place: Place) -> None:
        """Hard-link `weight` and `bias` of the same layer of an earlier record."""
        model = self._records.get(f"{model_of}/layers/{place.layer}")
        if model is None or "weight" not in model:
            msg = f"record '{model_of}' holds no weight of this layer to share"
            raise FileError(msg, place, "write the record with the model first")
        for dataset in ("weight", "bias"):
            if dataset in model and dataset not in group:
                group[dataset] = model[dataset]

    def _write(self, group: h5py.Group, name: str, array: Sliceable, place: Place) -> None:
        """Copy one array into the file by blocks of rows."""
        place = place.at(dataset=name)
        array, dtype, bfloat16 = stored_as(array)
        if dtype.name not in FLOATS and not bfloat16:
            msg = f"has dtype {dtype.name}, but must be one of {', '.join(FLOATS)} or bfloat16"
            raise FileError(msg, place, "convert it first")
        shape = tuple(int(size) for size in array.shape)
        with self._file.writing(place):
            dataset = group.create_dataset(name, shape, dtype, compression=self._compression)
            if bfloat16:
                dataset.attrs["dtype"] = "bfloat16"
        for rows in row_blocks(shape):
            block = np.asarray(array[rows]).view(dtype)
            numbers = from_bfloat16(block) if bfloat16 else block
            check_finite_block(numbers, (rows.start, *[0] * (len(shape) - 1)), place, FINITE)
            with self._file.writing(place):
                dataset[rows] = block


def write_dump(
    path: str | Path,
    layers: Mapping[str, LayerArrays],
    *,
    record: str = "record-0",
    info: RecordInfo = NO_INFO,
    labels: Sliceable | npt.ArrayLike | None = None,
    producer: str = "numpy",
    compression: str | None = None,
    follows: Follows = None,
) -> None:
    """Write a dump of a single record; see `DumpWriter`.

    Examples
    --------
    ::

        write_dump("dump.h5", {"fc1": LayerArrays(weight_grad, bias_grad, weight, bias)})
    """
    with DumpWriter(path, producer=producer, compression=compression) as dump:
        dump.add_record(record, layers, info=info, labels=labels, follows=follows)


def linked(layers: Mapping[str, LayerArrays], follows: Follows) -> dict[str, LayerArrays]:
    """Return `layers` with `follows` filled in where they say neither that nor `between`.

    Parameters
    ----------
    layers : mapping
        Layers by name, in forward order.
    follows : bool or mapping, optional
        True: every fully connected layer takes the activated output of the one before it, with nothing in between.
        A mapping names for each layer the one that it follows, or None.
    """
    if not follows:
        return dict(layers)
    done = {}
    before: str | None = None
    for name, layer in layers.items():
        linear = layer.kind == "linear"
        after = (before if linear else None) if follows is True else follows.get(name)
        done[name] = replaced(layer, follows=after) if layer.follows is layer.between is None else layer
        before = name if linear else None
    return done


def _check_followers(follows: Follows, layers: Mapping[str, LayerArrays], place: Place) -> None:
    """Refuse a mapping that says of a layer that is not there what it follows."""
    for name in follows if isinstance(follows, Mapping) else ():
        if name not in layers:
            msg = f"`follows` names '{printable(name)}', but there is no such layer"
            raise FileError(msg, place, f"there is: {listing(layers)}")


def _on_host(layer: LayerArrays, place: Place) -> LayerArrays:
    """Return a layer whose arrays are all such as NumPy knows."""
    arrays: dict[str, Any] = {
        name: handed_over(getattr(layer, name), place.at(dataset=name)) for name in (*DATASETS, "inputs")
    }
    return replaced(layer, **arrays)


def _check_name(name: str, place: Place, siblings: h5py.Group) -> None:
    """Refuse a name that HDF5 would take for a path, or that is taken."""
    if not name or "/" in name or name in (".", "..") or "\0" in name:
        msg = f"'{name}' cannot be the name of a record or layer"
        raise FileError(msg, place, "use a name without '/'")
    try:
        name.encode()
    except UnicodeEncodeError as error:
        msg = f"'{printable(name)}' cannot be the name of a record or layer"
        raise FileError(msg, place, "use characters that UTF-8 can write") from error
    if name in siblings:
        msg = "this name was written before"
        raise FileError(msg, place, "give every record and layer its own name")


def _shape(layer: LayerArrays) -> tuple[int, ...] | None:
    """(m, n) of a fully connected layer."""
    return (
        tuple(layer.weight_grad.shape) if layer.weight_grad is not None and layer.kind == "linear" else None
    )


def _check_shapes(layer: LayerArrays, place: Place) -> None:
    """Refuse a linear layer whose arrays do not fit together: it could not be read again."""
    if layer.kind != "linear":
        return
    if layer.weight_grad is None:
        msg = "is missing"
        raise FileError(
            msg, place.at(dataset="weight_grad"), "every fully connected layer needs its gradient"
        )
    shape = tuple(layer.weight_grad.shape)
    if len(shape) != 2 or 0 in shape:
        msg = f"has shape {shape}, but must be (output units, input features)"
        raise FileError(msg, place.at(dataset="weight_grad"), "store the two-dimensional gradient")
    m, n = shape
    wanted = {"bias_grad": (m,), "weight": (m, n), "bias": (m,)}
    for name, expected in wanted.items():
        array = getattr(layer, name)
        if array is not None and tuple(array.shape) != expected:
            msg = f"has shape {tuple(array.shape)}, but weight_grad has {shape}: expected {expected}"
            raise FileError(msg, place.at(dataset=name), "export both from the same layer")
    if layer.inputs is not None and (len(layer.inputs.shape) != 2 or layer.inputs.shape[1] != n):
        msg = f"has shape {tuple(layer.inputs.shape)}, but the layer has {n} input features"
        raise FileError(msg, place.at(dataset="inputs"), f"store one true input of {n} numbers a row")


def _write_info(record: h5py.Group, info: RecordInfo) -> None:
    """Store what is known as attributes."""
    write_attributes(record, {field.name: getattr(info, field.name) for field in fields(info)})
