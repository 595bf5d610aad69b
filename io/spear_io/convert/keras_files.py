"""Keras: `.weights.h5`, `.keras` and the older `.h5`; a kernel is stored (n, m)."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from itertools import accumulate, pairwise, takewhile
from pathlib import Path
from types import MappingProxyType
from typing import Any

import h5py

from ..adapters.keras_operations import slope_of
from ..files import safety, stated
from ..problems import FileError, Place, printable
from .archives import open_archive, read_member
from .keras_config import ModelConfig, model_config, titled, titles_of
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

NO_TITLES: Mapping[tuple[str, ...], str] = MappingProxyType({})

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
            with reading(place.at(dataset=CONFIG)):
                said = json.load(config)
                titles = titles_of(said)
            arrays, skipped = _numbered([file], [place], titles)
            with reading(place.at(dataset=CONFIG)):
                model = model_config(said, partial(_slope, arrays))
            yield _source("Keras .keras", path, arrays, skipped, model)


@contextmanager
def open_keras_weights(path: Path) -> Iterator[Source]:
    """Open a `.weights.h5` file of Keras 3; it does not tell in which order the layers come."""
    with open_root(path) as file:
        yield _source("Keras .weights.h5", path, *_numbered([file], [Place(path)]), ModelConfig())


@contextmanager
def open_keras_shards(index: Path, shards: Sequence[Path]) -> Iterator[Source]:
    """Open the files of weights that a `.weights.json` of Keras 3 names."""
    with ExitStack() as stack:
        files = [stack.enter_context(open_root(shard)) for shard in shards]
        arrays, skipped = _numbered(files, [Place(shard) for shard in shards])
        yield _source("Keras .weights.json", index, arrays, skipped, ModelConfig())


@contextmanager
def open_keras_legacy(path: Path) -> Iterator[Source]:
    """Open an `.h5` file of a whole model or its weights, as Keras 2 wrote them and Keras 3 still can."""
    place = Place(path)
    with open_root(path) as file:
        arrays, skipped = datasets(file, place, opaque_bfloat16=True)
        text = stated.text(file, "model_config", place)
        with reading(place):
            said = json.loads(text) if text else None
            titles = titles_of(said) if said else NO_TITLES
        paths = {array.name: _legacy_path(array.name) for array in arrays}
        arrays, skipped = _split(arrays, skipped, paths, titles)
        with reading(place):
            model = model_config(said, partial(_slope, arrays)) if said else ModelConfig()
        yield _source("Keras .h5", path, arrays, skipped, model)


def _legacy_path(name: str) -> tuple[str, ...]:
    """Return the models that a variable is in, its layer and its own name.

    It lies below its layer, or the outermost model, and then in scopes that mostly repeat these names; Keras 2 numbers
    outputs: `model_weights/encoder/encoder/hidden/kernel:0` is encoder, hidden, kernel.
    """
    parts = re.sub(r":\d+$", "", name).removeprefix("model_weights/").split("/")
    return tuple(part for before, part in pairwise([None, *parts]) if part is not None and part != before)


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
    return "layers" in names or (variables is not None and stated.text(variables, "name", place) is not None)


def _numbered(
    files: Sequence[h5py.File], places: Sequence[Place], known: Mapping[tuple[str, ...], str] = NO_TITLES
) -> tuple[list[NamedArray], dict[str, str]]:
    """Return the arrays of Keras 3 files, where a layer's are …/<class>/vars/0, 1, …, under its own name."""
    arrays: list[NamedArray] = []
    skipped: dict[str, str] = {}
    names: dict[str, str] = {}
    for file, place in zip(files, places, strict=True):
        found, other = datasets(file, place, opaque_bfloat16=True)
        arrays += found
        skipped |= other
    groups = {_layer(array) for array in arrays}
    for file, place in zip(files, places, strict=True):  # one shard may hold the name, another the numbers
        names |= _names(file, place, groups)
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
        above = [f"{outer}/vars" for outer in accumulate(group.split("/"), "{}/{}".format)]
        path = [names[one] for one in above if one in names and one != group]
        own = names.get(group, group.removesuffix("/vars"))
        for number, array in members.items():
            renamed[array.name] = (*path, own, ROLES[number] if dense else f"variable {number}")
    return _split(arrays, skipped, renamed, known)


def _names(file: h5py.File, place: Place, groups: Iterable[str]) -> dict[str, str]:
    """Return the names of layers and models along the way to `groups`, by the groups of their variables."""
    found = {}
    outer = {
        f"{path}/vars"
        for group in groups
        for path in accumulate(group.removesuffix("/vars").split("/"), "{}/{}".format)
    }
    for path in sorted(outer):
        held: h5py.Group | None = file
        for part in path.split("/"):
            try:
                held = None if held is None else safety.subgroup(held, part, place)
            except FileError:  # a dataset or a link
                held = None
        if held is not None and (name := stated.text(held, "name", place)):
            found[path] = name
    return found


def _split(
    arrays: list[NamedArray],
    skipped: dict[str, str],
    paths: Mapping[str, tuple[str, ...]],
    known: Mapping[tuple[str, ...], str],
) -> tuple[list[NamedArray], dict[str, str]]:
    """Name arrays after their layers, and leave out those of the optimizer.

    Parameters
    ----------
    arrays, skipped
        As they lie in the file.
    paths : mapping
        Of each array: the models that its layer is in, the layer, and what it is of it.
    known : mapping
        What the configuration calls layers, by their paths.
    """
    own = [array for array in arrays if not _of_optimizer(array.name)]
    skipped |= {
        array.name: MOMENT if array.shape else SETTING for array in arrays if _of_optimizer(array.name)
    }
    held = {(_layer(array), paths[array.name][:-1]) for array in own}
    titles = titled([path for _, path in held]) | dict(known)
    names = {}
    for array in own:
        *layer, role = paths[array.name]
        names[array.name] = f"{titles.get(tuple(layer), _layer(array))}/{role}"
    count = Counter(names.values())
    return [
        replace(array, name=names[array.name] if count[names[array.name]] == 1 else _own_name(array, paths))
        for array in own
    ], skipped


def _own_name(array: NamedArray, paths: Mapping[str, tuple[str, ...]]) -> str:
    """Return the place in the file as a name, for layers that are called the same."""
    return f"{_layer(array).removesuffix('/vars')}/{paths[array.name][-1]}"


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
