"""What can be wrong with the layers that were found, seen together."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Sequence

from ..files.dump import RecordInfo
from ..files.dump_writer import LayerArrays
from ..problems import FileError, Place, listing, printable
from .layers import FoundLayer
from .names import PER_SAMPLE, understand
from .pairing import Pairing
from .source import Source

UPDATE = re.compile(
    r"(round|client|worker|user|step|epoch|batch|update|record)s?[\W_]?\d+(?=[\W_])", re.IGNORECASE
)
"""Beginnings of names that tell one update from another."""

THREE_WAYS = (
    "say --gradients if these arrays are gradients, name them so (fc1.weight_grad, grads/fc1/weight), or give two "
    "models: --before A --after B"
)


def check_gradients(pairing: Pairing, source: Source) -> None:
    """Refuse a source without the gradient of any fully connected layer."""
    if any(one.kind == "linear" and "weight_grad" in one.parts for one in pairing.layers):
        return
    skipped = dict(source.skipped) | pairing.skipped
    samples = [name for name, reason in skipped.items() if reason == PER_SAMPLE]
    if samples:
        msg = f"holds one gradient a sample, not that of the batch: {listing(samples[:3])}"
        raise FileError(msg, source.place, "sum each over its first axis (.sum(0)) and convert the sums")
    advice = THREE_WAYS
    if len(source.arrays) == 1 and not pairing.layers:
        advice = f"if it is a gradient, say --map weight_grad={printable(source.arrays[0].name)}"
    if any("weight_grad" in one.parts for one in pairing.layers):
        msg = f"holds gradients, but of no fully connected layer: {listing(one.title for one in pairing.layers)}"
        raise FileError(msg, source.place, "only fully connected layers can be inverted")
    refused = {name: reason for name, reason in skipped.items() if understand(name).gradient}
    if pairing.layers and not refused:
        msg = f"{source.format} without gradients: it holds the weights of {listing(o.title for o in pairing.layers)}"
        raise FileError(msg, source.place, advice)
    named = list((refused | skipped).items())
    reasons = [f"'{printable(name)}' {reason}" for name, reason in named[:3]]
    more = f" and {len(named) - 3} more" if len(named) > 3 else ""
    usable = " that can be used" if refused else ""
    msg = f"{source.format} without gradients{usable}: {'; '.join(reasons) or 'it is empty'}{more}"
    raise FileError(msg, source.place, advice)


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
    if info.input_shape is None or first.kind != "linear":
        return
    n = first.weight_grad.shape[1]
    numbers = math.prod(info.input_shape)
    if numbers != n:
        msg = f"the input shape {info.input_shape} has {numbers} numbers, but '{printable(title)}' takes {n}"
        raise FileError(msg, place, "correct --input-shape, or leave it out")
