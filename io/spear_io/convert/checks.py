"""What can be wrong with the layers that were found, seen together."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from ..files.dump import RecordInfo
from ..files.dump_writer import LayerArrays
from ..problems import FileError, Place, listing, printable
from .layers import FoundLayer
from .names import PER_SAMPLE, understand
from .origin import Origin
from .pairing import Pairing
from .source import Source

UPDATE = re.compile(
    r"(round|client|worker|user|step|epoch|batch|update|record)s?[\W_]?\d+(?=[\W_])", re.IGNORECASE
)
"""Beginnings of names that tell one update from another."""

MAP = "say which array is what: --map LAYER.weight_grad=NAME --map LAYER.bias_grad=NAME"

THREE_WAYS = (
    "say --gradients if these arrays are gradients, name them so (fc1.weight_grad, grads/fc1/weight), or give two "
    "models: --before A --after B"
)


def check_gradients(pairing: Pairing, source: Source, origin: Origin) -> None:
    """Refuse a source without the gradient of any fully connected layer, or a model that belongs to none of them."""
    linear = [one for one in pairing.layers if one.kind == "linear" and "weight_grad" in one.parts]
    if linear:
        if origin.model is not None and not any("weight" in one.parts for one in linear):
            _refuse_model(linear, pairing, origin.model)
        return
    skipped = dict(source.skipped) | pairing.skipped
    samples = [name for name, reason in skipped.items() if reason == PER_SAMPLE]
    if samples:
        msg = f"holds one gradient a sample, not that of the batch: {listing(samples[:3])}"
        raise FileError(msg, source.place, "sum each over its first axis (.sum(0)) and convert the sums")
    advice = MAP if origin.gradients or origin.before is not None else THREE_WAYS
    if len(source.arrays) == 1 and not pairing.layers:
        advice = f"if it is a gradient, say --map weight_grad={printable(source.arrays[0].name)}"
    if any("weight_grad" in one.parts for one in pairing.layers):
        msg = f"holds gradients, but of no fully connected layer: {listing(one.title for one in pairing.layers)}"
        raise FileError(msg, source.place, "only fully connected layers can be inverted")
    refused = {name: reason for name, reason in skipped.items() if understand(name).gradient}
    if pairing.layers and not refused:
        msg = f"{source.format} without gradients: it holds the weights of {listing(o.title for o in pairing.layers)}"
        raise FileError(msg, source.place, THREE_WAYS)
    named = list((refused | skipped).items())
    reasons = [f"'{printable(name)}' {reason}" for name, reason in named[:3]]
    more = f" and {len(named) - 3} more" if len(named) > 3 else ""
    usable = " that can be used" if refused else ""
    msg = f"{source.format} without gradients{usable}: {'; '.join(reasons) or 'it is empty'}{more}"
    raise FileError(msg, source.place, advice)


def _refuse_model(linear: Sequence[FoundLayer], pairing: Pairing, model: Path) -> None:
    others = [one.title for one in pairing.layers if "weight" in one.parts]
    msg = f"none of its layers ({listing(others[:3])}) has the name of one with a gradient ({listing(o.title for o in linear[:3])})"
    advice = "give the model of these gradients, under the same names, or leave it out: then signs cannot be checked"
    raise FileError(msg, Place(model), advice)


def change_of(chosen: Sequence[FoundLayer], place: Place) -> bool:
    """Whether the gradients of the layers are changes of their weights.

    Raises
    ------
    FileError
        If some are and some are not: a record has one kind of update.
    """
    parts = {
        (one.title, part): part in one.changes
        for one in chosen
        for part in one.parts
        if part.endswith("grad")
    }
    if len(set(parts.values())) < 2:
        return any(parts.values())
    changes = listing(f"{title}.{part}" for (title, part), change in parts.items() if change)
    msg = f"holds gradients of some arrays, and changes of others: {changes}"
    raise FileError(
        msg, place, "choose layers of one kind with --layer, or convert them one at a time with --map"
    )


def check_one_update(chosen: Sequence[FoundLayer], place: Place) -> None:
    """Refuse layers of several rounds or clients, whose names differ by nothing else: each is a record of its own."""
    prefixes: defaultdict[str, set[str]] = defaultdict(set)
    for one in chosen:
        if found := UPDATE.match(one.title):
            prefixes[one.title[found.end() :]].add(found[0])
    for several in prefixes.values():
        if len(several) > 1:
            advice = "convert them one at a time: give each a file, or choose with --layer or --map"
            msg = f"holds several updates: {listing(sorted(several))}"
            raise FileError(msg, place, advice)


def check_input_shape(info: RecordInfo, title: str, first: LayerArrays, place: Place) -> None:
    """Refuse a shape that no input of the first layer can have."""
    if info.input_shape is None or first.kind != "linear" or first.weight_grad is None:
        return
    n = first.weight_grad.shape[1]
    numbers = math.prod(info.input_shape)
    if numbers != n:
        msg = f"the input shape {info.input_shape} has {numbers} numbers, but '{printable(title)}' takes {n}"
        raise FileError(msg, place, "correct --input-shape, or leave it out")
