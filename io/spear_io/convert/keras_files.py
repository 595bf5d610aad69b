"""Keras: `.weights.h5`, `.keras` and the older `.h5`; a kernel is stored (n, m)."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

import h5py

from ..adapters.keras_operations import slope_of
from ..files import safety
from ..problems import Place, printable
from .archives import open_archive, read_member
from .keras_config import ModelConfig, model_config
from .names import MOMENT
from .plain_hdf5 import datasets, open_root
from .source import NamedArray, Source, reading

CONFIG, WEIGHTS = "config.json", "model.weights.h5"
"""Members of a `.keras` archive."""

ROLES = {"0": "kernel", "1": "bias"}
"""What the variables of a dense layer are, by their numbers."""

RESCALING = frozenset({"Rescaling", "Normalization"})
"""Classes of layers that give every input another scale."""

RESCALED = "the model gives its inputs another scale first ({}): what is recovered are the inputs after that"

NOT_DENSE = re.compile(r"embedding|normalization|lstm|gru|rnn|attention", re.IGNORECASE)
"""Classes of layers whose matrices only look like those of a dense layer."""

OPTIMIZER_GROUPS = ("optimizer", "optimizer_weights")
SETTING = "is a setting of the optimizer"


@contextmanager
def open_keras_archive(path: Path) -> Iterator[Source]:
    """Open a `.keras` archive: the weights, and what its configuration says of the layers."""
    place = Place(path)
    with open_archive(path) as archive:
        config = read_member(archive, CONFIG, place.at(dataset=CONFIG))
        image = read_member(archive, WEIGHTS, place.at(dataset=WEIGHTS))
        with open_root(path, image=image) as file:
            arrays, skipped = _numbered(file, place)
            with reading(place.at(dataset=CONFIG)):
                model = model_config(json.load(config), partial(_slope, arrays))
            yield _source("Keras .keras", path, arrays, skipped, model)


@contextmanager
def open_keras_weights(path: Path) -> Iterator[Source]:
    """Open a `.weights.h5` file of Keras 3; it does not tell in which order the layers come."""
    with open_root(path) as file:
        yield _source("Keras .weights.h5", path, *_numbered(file, Place(path)), ModelConfig())


@contextmanager
def open_keras_legacy(path: Path) -> Iterator[Source]:
    """Open an `.h5` file of a whole model or its weights, as Keras 2 wrote them and Keras 3 still can."""
    place = Place(path)
    with open_root(path) as file:
        arrays, skipped = datasets(file, place, opaque_bfloat16=True)
        text = safety.text(file, "model_config", place)
        # …/<layer>/kernel, before it scopes that mostly repeat the layer's name; Keras 2 numbers: kernel:0
        renamed = {array.name: "/".join(re.sub(r":\d+$", "", array.name).split("/")[-2:]) for array in arrays}
        arrays, skipped = _split(arrays, skipped, renamed)
        with reading(place):
            model = model_config(json.loads(text), partial(_slope, arrays)) if text else ModelConfig()
        yield _source("Keras .h5", path, arrays, skipped, model)


def is_legacy(file: h5py.File, place: Place) -> bool:
    """Whether an HDF5 file is of Keras 2, or of Keras 3 in its manner."""
    with reading(place):
        return "model_weights" in safety.member_names(file, place) or "layer_names" in file.attrs


def is_keras_3(file: h5py.File, place: Place) -> bool:
    """Whether an HDF5 file has the variables of a Keras model itself at its top, mostly none."""
    names = safety.member_names(file, place)
    if "_layer_checkpoint_dependencies" in names:
        return True
    if "vars" not in names:
        return False
    variables = safety.subgroup(file, "vars", place)
    return "layers" in names or (variables is not None and safety.text(variables, "name", place) is not None)


def _numbered(file: h5py.File, place: Place) -> tuple[list[NamedArray], dict[str, str]]:
    """Return the arrays of a Keras 3 file, where a layer's are …/<class>/vars/0, 1, …, under its own name."""
    arrays, skipped = datasets(file, place, opaque_bfloat16=True)
    variables: defaultdict[str, dict[str, NamedArray]] = defaultdict(dict)
    for array in arrays:
        group, _, number = array.name.rpartition("/")
        variables[group][number] = array
    renamed = {}
    for group, members in variables.items():
        kind = group.removesuffix("/vars").rpartition("/")[2]
        shapes = [len(array.shape) for array in members.values()]
        dense = (
            not NOT_DENSE.search(kind)
            and set(members) <= set(ROLES)
            and shapes[0] > 1
            and shapes[1:] in ([], [1])
        )
        with reading(place):
            name = safety.text(file[group], "name", place) if group else None
        for number, array in members.items():
            renamed[array.name] = f"{name or group}/{ROLES[number] if dense else f'variable {number}'}"
    return _split(arrays, skipped, renamed)


def _split(
    arrays: list[NamedArray], skipped: dict[str, str], renamed: Mapping[str, str]
) -> tuple[list[NamedArray], dict[str, str]]:
    """Rename arrays where the new name is the only one of its kind, and leave out those of the optimizer."""
    count = Counter(renamed[array.name] for array in arrays if not _of_optimizer(array.name))
    kept = []
    for array in arrays:
        if _of_optimizer(array.name):
            skipped[array.name] = MOMENT if array.shape else SETTING
        else:
            name = renamed[array.name]
            kept.append(replace(array, name=name) if count[name] == 1 else array)
    return kept, skipped


def _of_optimizer(name: str) -> bool:
    return name.split("/")[0] in OPTIMIZER_GROUPS


def _source(
    format_name: str,
    path: Path,
    arrays: list[NamedArray],
    skipped: dict[str, str],
    model: ModelConfig,
) -> Source:
    """Return the arrays of dense layers and convolutions, in the order of `model` if it tells one."""
    kept = []
    for array in arrays:
        kind = model.kinds.get(_layer(array), "")
        if NOT_DENSE.search(kind):
            skipped[array.name] = f"belongs to a layer of class {printable(kind)}"
        else:
            kept.append(array)
    rescaling = [
        f"'{printable(name)}'"
        for name, kind in takewhile(lambda item: item[1] != "Dense", model.kinds.items())
        if kind in RESCALING
    ]
    position = {name: number for number, name in enumerate(model.kinds)}
    ordered = bool(position) and all(_layer(array) in position for array in kept)
    if ordered:
        kept.sort(key=lambda array: position[_layer(array)])
    return Source(
        format_name,
        path,
        tuple(kept),
        skipped,
        in_forward_order=ordered,
        orientation="nm",
        network=model.network,
        producer="keras",
        notes=(RESCALED.format(", ".join(rescaling)),) if rescaling else (),
    )


def _layer(array: NamedArray) -> str:
    return array.name.rpartition("/")[0]


def _slope(arrays: Sequence[NamedArray], layer: str) -> Any:
    """Return the slopes of the PReLU of that name; None if the file does not hold them."""
    names = (f"{layer}/alpha", f"{layer}/variable 0")
    return next((slope_of(array[:]) for array in arrays if array.name in names), None)
