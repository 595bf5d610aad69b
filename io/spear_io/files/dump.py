"""The gradient dump: what clients share, read lazily from files that may come from anybody.

The layout is `format = "spear-gradients"`, `format_version = 1`::

    /records/<record>/layers/<layer>/weight_grad (m, n), bias_grad (m,), weight (m, n), bias (m,)
    /records/<record>/truth/<layer>/inputs (b, n)
    /records/<record>/truth/labels (b,)

Unknown groups, datasets and attributes are ignored. `spear_io.files.dump_writer` writes it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import h5py

import spear_np
from spear_np.factors.memory import working_memory

from ..problems import FileError, Place, listing, printable, size_text
from . import opening, safety, stated
from .chains import Link, check_follows, read_activation
from .display import Display, read_display
from .shared import Shared
from .sight import Seen, seen_by
from .storage import FINITE, StoredArray, check_finite

FORMAT = "spear-gradients"
FORMAT_VERSION = 1

DATASETS = {"weight_grad": 2, "bias_grad": 1, "weight": 2, "bias": 1}
"""What a linear layer may hold, and in how many dimensions."""

SHARED = ("weight", "bias")
"""Those that records may have in common."""

AFFORDABLE = 2**30
"""Bytes of memory that the decomposition of any layer may take …"""

MEMORY_PER_BYTE = 100
"""… and for each byte that is stored of it: 24 m/n + 32 for what is not packed and not taller than wide."""

UPDATES = ("gradient", "weight_delta")

DECAY_NOT_USED = (
    "weight_decay is stated, but not the learning_rate of the weight delta, without which it cannot be set against it: the "
    "update itself tells how much it holds"
)
"""What to say of a record whose `weight_decay` counts for nothing."""


@dataclass(frozen=True)
class RecordInfo(Display):
    """What a dump may say about one shared update; everything is optional."""

    batch_size: int | None = None
    update: str = "gradient"
    """"gradient", or "weight_delta": weights after the step minus weights before."""
    learning_rate: float | None = None
    weight_decay: float | None = None
    """λ of SGD, or of an L2 term λ/2 ‖W‖² in the loss, if it is known: each gradient holds λ W besides."""
    local_steps: int | None = None
    loss: str | None = None
    """"cross_entropy", "mse", …"""
    loss_reduction: str | None = None


class Layer:
    """One layer of a record: what is stored of it, opened only when asked for."""

    def __init__(self, name: str, record: Record, group: h5py.Group, place: Place) -> None:
        record.visits.count(group)
        self.name = name
        self.place = place
        self._record = record
        self._group = group
        self._found: dict[str, StoredArray | None] = {}
        self.kind = self._required_text("kind", 'kind = "linear" for a fully connected layer')
        said = self._required_text("activation", 'activation = "relu", or what follows the layer')
        self.activation = read_activation(group, said, place)
        self.activation_assumed = bool(stated.integer(group, "activation_assumed", place))
        """Whether whoever wrote the file took the activation for granted."""
        self.follows = stated.text(group, "follows", place)
        self.between = stated.text(group, "between", place)
        self.order = stated.number(group, "order", place)
        self.first = False
        """Whether no layer comes before it in the record."""

    def _required_text(self, name: str, advice: str) -> str:
        value = stated.text(self._group, name, self.place)
        if value is None:
            msg = f"the attribute '{name}' is missing"
            raise FileError(msg, self.place, f"set {advice}")
        return value

    @property
    def seen(self) -> Seen:
        """What the layer sees: the inputs of the network, or what others made of them."""
        return seen_by(first=self.first, follows=self.follows, between=self.between)

    @property
    def unsuitable(self) -> str | None:
        """Why this kind of layer cannot be inverted by itself, whatever its numbers are; None if it can."""
        if self.kind != "linear":
            return f"a '{printable(self.kind)}' layer: only fully connected ('linear') layers can be inverted"
        if self.activation.name == "none":
            return (
                "followed by no activation, as an output layer is: only a ReLU leaves the zeros in the gradient that "
                "the inversion of a single layer rests on"
            )
        if self.activation.ceiling is None:
            return (
                f"followed by '{printable(str(self.activation))}': only a ReLU leaves the zeros in the gradient that "
                "the inversion of a single layer rests on"
            )
        return None

    @cached_property
    def arrays(self) -> dict[str, StoredArray]:
        """The datasets of the layer that are there, each found harmless; a weight delta already as a gradient."""
        found = {name: self._array(name) for name in DATASETS}
        return {name: array for name, array in found.items() if array is not None}

    def _array(self, name: str) -> StoredArray | None:
        """One of the datasets, looked at once."""
        if name not in self._found:
            self._found[name] = self._shared(name) or self._read(name)
        return self._found[name]

    def _shared(self, name: str) -> StoredArray | None:
        """A weight or bias that was read for another record already."""
        shared = self._record.shared
        if shared is None or name not in SHARED:
            return None
        return shared.find(safety.address(self._group, name, self.place))

    def _read(self, name: str) -> StoredArray | None:
        """A dataset, found harmless; None if there is none."""
        array = safety.numbers(self._group, name, self.place, ndim=DATASETS[name])
        if array is None:
            return None
        self._record.visits.count(array.dataset)
        return array.divided_by(self._record.divisor) if name.endswith("_grad") else array

    @cached_property
    def gradients(self) -> spear_np.LayerGradients:
        """What the solver takes.

        Raises
        ------
        FileError
            If the datasets do not fit together.
        """
        arrays = self.arrays
        if "weight_grad" not in arrays:
            msg = "the dataset 'weight_grad' is missing"
            there = listing(safety.member_names(self._group, self.place), "nothing")
            raise FileError(msg, self.place, f"export the layer again; there is: {there}")
        try:
            return spear_np.LayerGradients(
                **arrays,
                activation=self.activation,
                precision=arrays["weight_grad"].precision,
                decay=self._record.decay if "weight" in arrays else spear_np.WeightDecay(),
            )
        except spear_np.InputError as error:
            raise FileError(str(error), self.place, "export the layer again") from error

    @property
    def loaded(self) -> spear_np.LayerGradients | None:
        """The same without the file, after `check_finite` or `load`; None if it is too large to be in memory."""
        arrays: dict[str, Any] = {name: array.loaded for name, array in self.arrays.items()}
        missing = any(array is None for array in arrays.values())
        return None if missing else replace(self.gradients, **arrays)

    @property
    def shape(self) -> tuple[int, ...] | None:
        """(m, n) of a fully connected layer; None where nothing tells it."""
        array = self._array("weight_grad") if self.kind == "linear" else None
        return None if array is None else array.shape

    def check_affordable(self) -> None:
        """Refuse a layer that takes far more memory to decompose than the file gives reason to spend.

        A few thousand bytes can claim a matrix whose factors take gigabytes.
        """
        m, n = self.gradients.shape
        needed = working_memory((m, n), with_weight="weight" in self.arrays)
        stored = sum(array.stored for array in self.arrays.values())
        if needed > max(AFFORDABLE, MEMORY_PER_BYTE * stored):
            msg = (
                f"claims a layer of shape {(m, n)}, whose decomposition takes {size_text(needed)}, but only "
                f"{size_text(stored)} of it are in the file"
            )
            raise FileError(msg, self.place, "if it is yours and means it, store it without packing")

    def check_finite(self) -> None:
        """Read every dataset of the layer once, by blocks, and refuse NaN and infinity; small ones stay in memory."""
        self.load()
        for name, array in self.arrays.items():
            if not array.finite:
                check_finite(array, FINITE)
                array.finite = True
            if self._record.shared is not None and name in SHARED:
                self._record.shared.keep(array)

    def forget(self) -> None:
        """Let go of the datasets; they are there again when they are asked for."""
        self._found.clear()
        for name in ("arrays", "gradients", "truth"):
            vars(self).pop(name, None)

    def load(self) -> None:
        """Keep the small datasets of the layer in memory."""
        for array in self.arrays.values():
            array.load()

    @cached_property
    def truth(self) -> StoredArray | None:
        """True inputs (b, n) of the layer, for evaluation only; None if the dump does not hold them."""
        truth = safety.subgroup(self._record.group, "truth", self._record.place)
        group = None if truth is None else safety.subgroup(truth, self.name, self.place)
        if group is None:
            return None
        inputs = safety.numbers(group, "inputs", self.place, ndim=2)
        shape = self.shape
        # Whoever has no size is refused by name, with its gradients.
        features = (shape if shape is not None and 0 not in shape else self.gradients.shape)[1]
        if inputs is not None and (inputs.shape[1] != features or 0 in inputs.shape):
            msg = f"has shape {inputs.shape}, but the layer has {features} input features"
            raise FileError(msg, inputs.place, f"store one true input of {features} numbers a row")
        return inputs


class Record:
    """One shared update: its layers and what is known about it."""

    def __init__(
        self, name: str, group: h5py.Group, place: Place, visits: safety.Visits, shared: Shared | None
    ) -> None:
        visits.count(group)
        self.name = name
        self.visits = visits
        self.shared = shared
        self.group = group
        self.place = place

    @cached_property
    def info(self) -> RecordInfo:
        """The optional attributes."""
        group, place = self.group, self.place
        update = stated.text(group, "update", place) or "gradient"
        info = RecordInfo(
            **vars(read_display(group, place)),
            batch_size=stated.integer(group, "batch_size", place),
            update=update,
            learning_rate=stated.number(group, "learning_rate", place),
            weight_decay=stated.number(group, "weight_decay", place),
            local_steps=stated.integer(group, "local_steps", place),
            loss=stated.text(group, "loss", place),
            loss_reduction=stated.text(group, "loss_reduction", place),
        )
        if update not in UPDATES:
            msg = f"the attribute 'update' is '{printable(update)}', but must be one of {listing(UPDATES)}"
            raise FileError(msg, place, "say what the layers hold")
        rate = info.learning_rate
        possible = rate is None or (math.isfinite(rate) and rate > 0 and math.isfinite(1 / rate))
        if update == "weight_delta" and not possible:
            msg = f"the attribute 'learning_rate' is {rate:g}, but a weight_delta is divided by it"
            raise FileError(msg, place, "store the positive rate of the step, or leave the attribute out")
        if info.weight_decay is not None and not math.isfinite(info.weight_decay):
            msg = f"the attribute 'weight_decay' is {info.weight_decay:g}"
            raise FileError(msg, place, "store a finite number, or leave the attribute out")
        return info

    @property
    def divisor(self) -> float:
        """What the stored gradients are divided by: 1, or minus the learning rate for a weight delta.

        Without a learning rate only the sign is turned: the scale of ∂L/∂Z does not change the inputs.
        """
        if self.info.update == "gradient":
            return 1.0
        return -(1.0 if self.info.learning_rate is None else self.info.learning_rate)

    @property
    def decay(self) -> spear_np.WeightDecay:
        """What the update holds of the parameters by the weight decay that the record states.

        None where it is a delta of unknown learning rate, whose scale is open.
        """
        stated = self.info.weight_decay
        if stated is None or self._decay_not_used:
            return spear_np.WeightDecay()
        if self.info.update == "weight_delta" and self.info.learning_rate is not None:
            stated = _decay_of_steps(stated, self.info.learning_rate, self.info.local_steps or 1)
        return spear_np.WeightDecay(stated, stated)

    @property
    def _decay_not_used(self) -> bool:
        info = self.info
        return info.update == "weight_delta" and info.learning_rate is None and info.weight_decay is not None

    @property
    def notes(self) -> tuple[str, ...]:
        """What somebody who uses this record's results should know."""
        notes = []
        if self.info.update == "weight_delta":
            if self.info.learning_rate is None:
                notes.append(
                    "a weight delta without learning_rate: the inputs are not affected, but output_grad is in units "
                    "of the learning rate"
                )
            if self._decay_not_used:
                notes.append(DECAY_NOT_USED)
            if (self.info.local_steps or 1) > 1:
                notes.append(
                    f"a weight delta of {self.info.local_steps} local steps: only a single step is a gradient, so "
                    "expect noise"
                )
        return tuple(notes)

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """The layers in forward order.

        Raises
        ------
        FileError
            If there are none, one lacks what every layer must say, their order is not known, or a `follows` cannot be.
        """
        group = safety.required_subgroup(self.group, "layers", self.place)
        layers = []
        for name in _names(group, self.place):
            place = self.place.at(layer=name)
            member = safety.subgroup(group, name, place)
            if member is not None:
                layers.append(Layer(name, self, member, place))
        if not layers:
            msg = "the group 'layers' is empty"
            raise FileError(msg, self.place, "export at least one layer")
        unordered = [layer.name for layer in layers if layer.order is None or math.isnan(layer.order)]
        if unordered and len(layers) > 1:
            msg = f"the attribute 'order' is missing for {listing(unordered)}"
            raise FileError(
                msg, self.place, "number the layers as they come in the forward pass: order = 0, 1, …"
            )
        layers.sort(key=lambda layer: layer.order or 0)
        layers[0].first = True
        linked = any(layer.follows is not None for layer in layers)
        check_follows(
            {
                layer.name: Link(layer.shape if linked else None, layer.follows, layer.place)
                for layer in layers
            }
        )
        return tuple(layers)

    @property
    def chains(self) -> tuple[tuple[Layer, ...], ...]:
        """Layers that feed each other with nothing in between: every path of two or more, as long as it goes."""
        layers = {layer.name: layer for layer in self.layers}
        fed = {layer.follows for layer in self.layers}
        chains = []
        for last in self.layers:
            if last.name in fed:
                continue
            path = [last]
            while (before := path[0].follows) is not None:
                path.insert(0, layers[before])
            if len(path) > 1:
                chains.append(tuple(path))
        return tuple(chains)

    def chain_from(self, layer: Layer) -> tuple[Layer, ...]:
        """The longest path of layers that feed each other from `layer` on, itself included; of equal ones the first."""
        tails = [
            chain[position:]
            for chain in self.chains
            for position, member in enumerate(chain)
            if member.name == layer.name
        ]
        return max(tails, key=len, default=(layer,))

    def has_chain(self, layer: Layer) -> bool:
        """Whether another layer follows `layer` and both hold what a chain needs."""
        behind = self.chain_from(layer)[1:2]
        return bool(behind) and not any(_missing_for_a_chain(member) for member in (layer, *behind))

    def problem_of(self, layer: Layer) -> str | None:
        """Why `layer` cannot be inverted, alone or with the layers that follow it; None if nothing speaks against it."""
        alone = layer.unsuitable
        if alone is None or layer.kind != "linear" or not layer.activation.known:
            return alone
        behind = self.chain_from(layer)[1:2]
        if not behind or layer.activation.name == "none":
            return alone
        for member in (layer, *behind):
            missing = _missing_for_a_chain(member)
            if missing:
                return f"{alone}, and for a chain the {' and '.join(missing)} of '{printable(member.name)}' is missing"
        return None

    @cached_property
    def labels(self) -> StoredArray | None:
        """True labels (b,), for reports only."""
        truth = safety.subgroup(self.group, "truth", self.place)
        return None if truth is None else safety.numbers(truth, "labels", self.place, ndim=1, kind="any")


class Dump:
    """An open gradient dump; what its records have in common may be kept in `shared`."""

    def __init__(self, file: h5py.File, path: Path, shared: Shared | None = None) -> None:
        self.path = path
        self.place = Place(path)
        self._file = file
        self._group = safety.required_subgroup(file, "records", self.place)
        self._visits = safety.Visits(self.place)
        self._shared = shared
        self._last: Record | None = None

    @property
    def producer(self) -> str | None:
        """What wrote it."""
        return stated.text(self._file, "producer", self.place)

    @property
    def created(self) -> str | None:
        """When, as ISO 8601."""
        return stated.text(self._file, "created", self.place)

    @cached_property
    def records(self) -> tuple[Record, ...]:
        """The records, in the order of the file."""
        records = []
        for name in _names(self._group, self.place):
            place = self.place.at(record=name)
            member = safety.subgroup(self._group, name, place)
            if member is not None:
                records.append(Record(name, member, place, self._visits, self._shared))
        if not records:
            msg = "the group 'records' is empty"
            raise FileError(msg, self.place, "export at least one record")
        return tuple(records)

    def record(self, name: str) -> Record:
        """The record of that name, without a look at any other; it is made once as long as no other is asked for.

        Raises
        ------
        FileError
            If there is none.
        """
        if self._last is None or self._last.name != name:
            self.forget()
            place = self.place.at(record=name)
            member = safety.subgroup(self._group, name, place)
            if member is None:
                msg = f"there is no record '{printable(name)}'"
                raise FileError(msg, self.place, "the dump was changed: start again")
            self._last = Record(name, member, place, safety.Visits(self.place), self._shared)
        return self._last

    def forget(self) -> None:
        """Let go of what was read: layers know their record, so its handles on the file would wait for the collector.

        While they wait every closing of a file, anywhere, takes longer: HDF5 goes through all of them.
        """
        for record in (*vars(self).get("records", ()), self._last):
            if record is not None:
                vars(record).pop("layers", None)
        self._last = None

    def rest(self) -> None:
        """Let go of all numbers, but not of what is known of the last record: to look at hundreds of layers again takes its time."""
        for layer in () if self._last is None else vars(self._last).get("layers", ()):
            layer.forget()

    def check_claims(self) -> None:
        """Look at every fully connected layer, before a number of any is read, and refuse a file that multiplies them."""
        for record in self.records:
            for layer in record.layers:
                if layer.kind == "linear":
                    _ = layer.arrays


@contextmanager
def open_dump(path: str | Path) -> Iterator[Dump]:
    """Open a gradient dump for reading.

    Examples
    --------
    ::

        with open_dump("dump.h5") as dump:
            layer = dump.records[0].layers[0]
            result = spear_np.invert_layer(layer.gradients)

    Raises
    ------
    FileError
        Here or later: whatever is wrong with the file, in one line that says where.
    """
    path = Path(path)
    with opening.open_untrusted(path, kind=FORMAT, version=FORMAT_VERSION) as file:
        dump = Dump(file, path)
        try:
            yield dump
        finally:
            dump.forget()


def _decay_of_steps(decay: float, rate: float, steps: int) -> float:
    """How much of W₀ (W₀ − W_D) / η holds after D `steps` of SGD with decay λ and `rate` η: (1 − (1 − ηλ)^D) / η.

    From W_{t+1} = (1 − ηλ) W_t − η ∂L/∂W_t; it is λ for one step and about D λ for a few. Infinite where it overflows.
    """
    if steps <= 1:
        return decay
    shrinking = rate * decay
    try:
        if shrinking < 1:
            return -math.expm1(steps * math.log1p(-shrinking)) / rate
        return (1 - (1 - shrinking) ** steps) / rate
    except OverflowError:
        return math.inf


def _missing_for_a_chain(layer: Layer) -> list[str]:
    return [name for name in ("weight", "bias_grad") if name not in layer.arrays]


Named = TypeVar("Named", Record, Layer)


def named(items: Iterable[Named], name: str, place: Place, what: str) -> Named:
    """Return the record or layer called `name`; the error lists what there is."""
    items = tuple(items)
    for item in items:
        if item.name == name:
            return item
    msg = f"there is no {what} '{printable(name)}'"
    raise FileError(msg, place, f"there is: {listing(item.name for item in items)}")


def _names(group: h5py.Group, place: Place) -> list[str]:
    """Names of records or layers; those of what is recovered will be the same, so they must be storable."""
    names = safety.member_names(group, place)
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError as error:
            msg = f"the name '{printable(name)}' is not valid UTF-8"
            raise FileError(msg, place, "give it another name") from error
    return names
