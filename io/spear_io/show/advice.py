"""What may have kept inputs from being recovered, the likeliest first, and what to try: from what the data shows."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..files.dump import RecordInfo
from ..files.inversion import RecoveredLayer
from ..files.storage import Floats

WHOLE = ("exact", "approximate")
FEW = 0.25
"""Share of the units up to which a batch is small for a single layer: see docs/reach.md."""
HALF = 0.5
"""Share of the units from which a ReLU leaves too few zeros to tell inputs by."""
LOUD = 1e-3
"""Noise of an entry, as a share of its row, that no rounding of float32 leaves."""
STEEP = 10.0
"""Drop of the singular values from which a rank is clear."""
OUT_OF_TIME = ("time limit", "stopped")
"""What reasons begin with or hold where a search was cut short."""
FIRST_ROUNDS = 2
"""Rounds of a search in which the first direction of a single layer comes.

Measured: in all of 305 layers that ended with inputs, see `BARREN_ROUNDS` in spear_np/layer/problem.py.
"""
NO_ZEROS = ("none of", "something else than a ReLU")
SIGNS = "signs of a gradient"
OTHER_LAYER = "activation signs contradict the layer"
ACTIVATION = r"\w+(?:\([\w=., +-]*\))?"
"""An activation as results name it, and nothing that a shell takes for more: files of strangers say it, and it becomes part of a command."""
LOOKS_LIKE = re.compile(
    rf"it looks as if '(?P<likely>{ACTIVATION})' followed the first layer, not '(?P<said>{ACTIVATION})'",
    re.ASCII,
)
"""What the solver says of a chain of which another activation explains the gradients."""


@dataclass(frozen=True)
class Advice:
    """One possible cause."""

    cause: str
    attempt: str
    """What to try about it."""


@dataclass(frozen=True)
class Findings:
    """What is known of an inversion that fell short."""

    status: str
    reason: str
    batch_size: int
    found: int
    shape: tuple[int, int]
    """(m, n)."""
    singular_values: Floats
    relative_noise: float | None
    weight_decay: float | None
    activation: str | None
    candidates: tuple[int, ...]
    """Directions or inputs that were known after each round of the search, before any was tested."""
    chain: bool
    info: RecordInfo | None
    """What the dump says of the update, where it is at hand."""


def findings(layer: RecoveredLayer, info: RecordInfo | None) -> Findings:
    """Return what an inversion file says of one layer."""
    details = layer.details
    return Findings(
        status=str(layer.status),
        reason=layer.reason,
        batch_size=layer.batch_size,
        found=layer.found,
        shape=(layer.units or 0, layer.inputs.shape[1]),
        singular_values=details.singular_values,
        relative_noise=details.relative_noise,
        weight_decay=details.weight_decay,
        activation=details.activation,
        candidates=tuple(one.found for one in details.history),
        chain=bool(layer.chain),
        info=info,
    )


def advice(seen: Findings) -> tuple[Advice, ...]:
    """Return the likely causes in order, at most four; none for a whole batch."""
    if seen.status in WHOLE:
        return ()
    of_activation = tuple(_of_activation(seen))
    named = LOOKS_LIKE.search(seen.reason) is not None
    # Where an activation is named that explains the gradients, nothing else is likely, and time does not help.
    causes = (*_certain(seen), *of_activation, *(() if named else (*_of_time(seen), *_likely(seen))))
    return tuple(dict.fromkeys(causes))[:4]


def _certain(seen: Findings) -> Iterator[Advice]:
    """What the file itself says."""
    if SIGNS in seen.reason:
        yield Advice(
            "the update holds the signs of a gradient: an optimiser such as Adam, or signSGD, made it",
            "get the gradient before the optimiser, or the update of plain SGD",
        )
    steps = None if seen.info is None else seen.info.local_steps
    if steps is not None and steps > 1:
        yield Advice(
            f"the update sums up {steps} local steps, and only one step is a gradient",
            "get the update of a single step, or one with a smaller learning rate",
        )


def _of_activation(seen: Findings) -> Iterator[Advice]:
    """What speaks for another activation than the one that is stated: no time finds inputs with a wrong one."""
    named = LOOKS_LIKE.search(seen.reason)
    if named is not None:
        yield Advice(
            f"'{named['likely']}' follows the layer, and not '{named['said']}' as the dump states: with it inputs are found at once",
            f"state it: convert --activation {_as_option(named['likely'])}",
        )
    elif all(words in seen.reason for words in NO_ZEROS):
        yield Advice(
            "another activation than a ReLU follows the layer, or a normalisation stands in between",
            "say which: convert --activation, and record the layer that follows as well, which decides inputs whatever the activation",
        )
    elif OTHER_LAYER in seen.reason:
        yield Advice(
            "the layer is followed by another activation than is stated, or its weights are not those of the gradient",
            "say which activation: convert --activation (it takes a ReLU for granted), and with --follows that layers feed each other",
        )

    elif _barren(seen):
        said = seen.activation or "a ReLU"
        yield Advice(
            f"another activation than '{said}' follows the layer: a batch that is small for a layer shows its first inputs at once, "
            "and this one did not",
            "say which: convert --activation, and record the layer that follows as well, which decides inputs whatever the activation",
        )


def _as_option(activation: str) -> str:
    """An activation as results name it, "leaky_relu(negative_slope=0.2)", in the form that commands take."""
    name, _, parameters = activation.rstrip(")").partition("(")
    return f"{name}:{parameters.replace(' ', '')}" if parameters else name


def _barren(seen: Findings) -> bool:
    """Whether a single layer gave nothing although its batch is small and its first candidates, if there were any, came late."""
    small = 0 < seen.batch_size <= FEW * seen.shape[0]
    begun = len(seen.candidates) > FIRST_ROUNDS
    return not seen.chain and not seen.found and small and begun and not any(seen.candidates[:FIRST_ROUNDS])


def _of_time(seen: Findings) -> Iterator[Advice]:
    if any(words in seen.reason for words in OUT_OF_TIME):
        yield Advice("the search was cut short", "give it more time: --time-limit")


def _likely(seen: Findings) -> Iterator[Advice]:
    """What the spectrum and the sizes make likely."""
    m, n = seen.shape
    smaller = min(m, n) or max(m, n)
    if not seen.batch_size:
        values = seen.singular_values
        if len(values) and not np.any(values > 0):
            yield Advice("the gradient is zero everywhere", "choose another layer or another step")
            return
        yield Advice(
            f"the batch has {smaller} inputs or more, as many as the layer can tell apart",
            "choose a wider layer with --layer, or ask for a smaller batch",
        )
        yield Advice(
            "noise, as of differential privacy, covers the inputs",
            "spear-np audit says how much noise hides a batch",
        )
        yield Advice(
            "it is no gradient: momentum, Adam or several local steps mix many batches",
            "get the update of one step of plain SGD",
        )
        return
    share = seen.batch_size / max(m, 1)
    if seen.relative_noise is not None and seen.relative_noise > LOUD:
        yield Advice(
            f"noise of {seen.relative_noise:.1g} of each row blurs what tells the inputs apart",
            "say --batch-size if it is known: the rank is then not read off the noise",
        )
    if not seen.chain and share > FEW:
        size = "far more" if share > HALF else "more"
        yield Advice(
            f"a batch of {seen.batch_size} is {size} than a layer of {m} units tells apart quickly",
            "record the layer that follows as well: together they reach further; or give more time",
        )
    if not math.isclose(_drop(seen), math.inf) and _drop(seen) < STEEP:
        yield Advice(
            "no clear step in the singular values: several local steps, momentum or rounding may have raised the rank",
            "say --batch-size if it is known, or get the update of a single step",
        )
    if seen.weight_decay is not None:
        yield Advice(
            "weight decay was estimated from the update, and taken out",
            "if its size is known, say it: convert --weight-decay",
        )
    yield Advice(
        "some inputs are faint, alike, or turn on nearly every unit",
        "give more time, another --seed, or record the layer that follows as well",
    )


def _drop(seen: Findings) -> float:
    """Last singular value that counts over the first that does not; infinite where there is none."""
    values, rank = seen.singular_values, seen.batch_size
    if not 0 < rank < len(values) or not values[rank] > 0:
        return math.inf
    return float(values[rank - 1] / values[rank])
