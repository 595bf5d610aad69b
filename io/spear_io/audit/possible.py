"""Which defences can be tried on an update, with what the dump and its inversion tell; and why the others cannot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

import spear_np
from spear_np.backend.host import to_host

from ..files.dump import Dump, Layer, Record, RecordInfo
from ..files.storage import Floats
from ..problems import FileError
from .defences import (
    LEARNING_RATE,
    MULTIPLIERS,
    STEPS,
    Defence,
    clip_examples,
    dp_sgd,
    local_steps,
    summed,
    text,
    usual_defences,
)
from .network import Integers
from .replay import AGREES, Batch, PerExample, Replay, replayed
from .result import NAMES, Asked
from .update import Shared, read_update

MOST_SUMMED = 32
"""Updates that are summed, at most."""
LARGEST_LABEL = 2.0**53
"""Up to which float64 holds every whole number: no class beyond it is one."""


@dataclass(frozen=True, eq=False)
class Possible:
    """The defences that are tried, and why others are not."""

    defences: tuple[Defence, ...]
    not_tried: Mapping[str, str]
    clip_norm: float | None
    """C of DP-SGD; None where neither the user nor the gradients of the inputs tell one."""
    in_mean: float
    """How many times larger the gradient of one input is than its share of the update: b for a mean, 1 for a sum."""


@dataclass(frozen=True, eq=False)
class Known:
    """What is known of the batch behind an update."""

    info: RecordInfo
    truth: Floats | None
    """(b, n): the true inputs, if the dump holds them."""
    labels: Floats | None
    """Their labels, likewise."""
    baseline: spear_np.Inversion
    """The inversion of the update without a defence."""

    @property
    def batch_size(self) -> int:
        """b, as the record states it, else as the truth has it or the gradient shows: identical inputs show once."""
        shown = max(1, self.baseline.batch_size, 0 if self.truth is None else len(self.truth))
        return self.info.batch_size or shown

    @property
    def complete(self) -> bool:
        """Whether the inversion handed out all inputs."""
        return self.baseline.status in (spear_np.Status.EXACT, spear_np.Status.APPROXIMATE)

    @property
    def batches(self) -> list[Batch]:
        """The true batch, then the one that was recovered, as far as there is either."""
        found = []
        if self.truth is not None:
            labels = self.labels
            known = labels is not None and labels.shape == self.truth.shape[:1]
            found.append(Batch(self.truth.astype(np.float64), _whole(labels) if known else None))
        if self.complete and self.baseline.scale_known:
            told = self.baseline.labels
            found.append(
                Batch(to_host(self.baseline.inputs), None if told is None else _whole(to_host(told)))
            )
        return found


def possible_defences(update: Shared, known: Known, others: Sequence[Shared], asked: Asked) -> Possible:
    """Return what can be tried of the defences that are `asked` for; `others` are updates that can be added to this one."""
    found = {one.name: one for one in usual_defences(update)}
    left = {
        "no_bias": "the gradient of the bias is not shared already",
        "fewer_layers": "only one layer is used",
        "records": "the dump holds no other update of the same model that can be read",
    }
    replay = (
        replayed(update, known.batches, known.baseline.gradients.decay) if len(update.layers) > 1 else None
    )
    mean = _is_mean(known, replay)
    in_mean = float(known.batch_size) if mean else 1.0
    examples = _examples(known, replay)
    norm = asked.clip_norm
    if isinstance(examples, PerExample):
        norm = norm or in_mean * float(np.median(examples.norms)) or None
        if norm is None:
            examples = "half of the inputs have no gradient, and tell no clipping norm: --clip-norm does"
    if isinstance(examples, PerExample) and norm is not None:
        found |= {one.name: one for one in _of_each_input(examples, norm, in_mean)}
    else:
        left |= dict.fromkeys(("clip_examples", "dp_sgd"), str(examples))
    steps = _local_steps(known, replay, asked, mean=mean)
    if isinstance(steps, Defence):
        found[steps.name] = steps
    else:
        left["local_steps"] = steps
    if others:
        found["records"] = _sums(others)
    wanted = asked.defences or NAMES
    return Possible(
        tuple(found[name] for name in NAMES if name in wanted and name in found),
        {name: why for name, why in left.items() if name in wanted and name not in found},
        norm,
        in_mean,
    )


def _is_mean(known: Known, replay: Replay | str | None) -> bool:
    """Whether the update holds a mean over the batch.

    A record that does not say is taken to, as losses usually do, unless the labels give just the sum.
    """
    stated = known.info.loss_reduction
    if stated is None and isinstance(replay, Replay) and replay.labels is not None:
        return len(replay.labels) == 1 or not math.isclose(replay.scale, 1, rel_tol=AGREES)
    return stated != "sum"


def _examples(known: Known, replay: Replay | str | None) -> PerExample | str:
    """The gradients of the single inputs, or why they cannot be told."""
    if isinstance(replay, Replay):
        return replay.examples
    if isinstance(replay, str):
        return f"needs the gradient of each input: {replay}"
    if known.baseline.status is spear_np.Status.EXACT and known.baseline.scale_known:
        return PerExample.of(known.baseline)
    return "needs the gradient of each input, which of a single layer only an exact inversion tells"


def _of_each_input(examples: PerExample, norm: float, in_mean: float) -> list[Defence]:
    """Defences that clip the gradient of each input to `norm`, before a mean over the batch is taken."""
    return [
        Defence(
            "clip_examples",
            "Clipping the gradient of each input",
            f"times the clipping norm of {text(norm)}",
            "less",
            (1.0, 0.1, 0.01),
            clip_examples(examples, norm / in_mean),
            "Each input keeps its direction in the sum: clipping without noise hides nobody.",
        ),
        Defence(
            "dp_sgd",
            f"DP-SGD: each input clipped to a norm of {text(norm)}, then noise",
            "times the clipping norm (the noise multiplier)",
            "more",
            MULTIPLIERS,
            dp_sgd(examples, norm / in_mean),
            "The guarantee is that of ε, over all steps of the training together, and only if every step has this noise. A noise "
            "multiplier that stops this method can still have an ε that promises nothing.",
        ),
    ]


def _local_steps(known: Known, replay: Replay | str | None, asked: Asked, *, mean: bool) -> Defence | str:
    """Local steps on the same batch, or why they cannot be played."""
    if replay is None:
        return "needs all layers up to the output, linked in the file: with a single layer the gradient of a second step is not known"
    if isinstance(replay, str):
        return f"the steps of the client cannot be played again: {replay}"
    if replay.labels is None:
        return (
            "needs layers that are linked up to the output, cross-entropy as the loss, and a label for every input: without them the gradient "
            "of a second step is not known"
        )
    stated = asked.learning_rate or known.info.learning_rate
    rate = stated or LEARNING_RATE
    given = "" if stated else ", which is assumed: --learning-rate tells another"
    strengths = tuple(count for count in STEPS if replay.stays_finite(int(count), rate, mean=mean))
    if not strengths:
        return f"a step at a learning rate of {text(rate)} leaves weights that are no finite numbers: --learning-rate tells another"
    return Defence(
        "local_steps",
        f"Local steps on the same batch, at a learning rate of {text(rate)}",
        "local step(s)",
        "more",
        strengths,
        local_steps(replay, rate, mean=mean),
        f"The learning rate is {text(rate)}{given}. Steps over the same inputs add up to a matrix of the same rank. What hides them is how "
        "far the weights move from the first step to the last, and at a small rate the rounding of the weights that are shared. An attacker "
        "who knows the rate can play the steps again.",
        graded=False,
        at_weakest="a single step is the update itself: what hides the inputs is the rounding of the weights that are shared, not the steps",
    )


def _sums(others: Sequence[Shared]) -> Defence:
    counts = [float(2**power) for power in range(MOST_SUMMED.bit_length()) if 2**power <= len(others) + 1]
    return Defence(
        "records",
        "Sums of several updates",
        "updates in the sum",
        "more",
        tuple(counts),
        summed(others),
        "A sum is a larger batch. What protects is that it has more inputs than the layer has room to tell apart.",
        keeps_batch=False,
        graded=False,
    )


def updates_to_sum(dump: Dump, record: Record, layer: Layer, update: Shared) -> list[Shared]:
    """Return other updates of the dump whose sum with this one can be taken; those that cannot be read are left out."""
    found: list[Shared] = []
    for other in dump.records:
        if other is record or len(found) >= MOST_SUMMED - 1:
            continue
        twin = next((one for one in other.layers if one.name == layer.name and one.kind == "linear"), None)
        if twin is None or other.problem_of(twin) is not None:
            continue
        try:
            read = read_update(other, twin)
        except FileError:  # numbers that are none, say: what is asked for is the audit of another record
            continue
        same_shapes = [one.shape for one in read.layers] == [one.shape for one in update.layers]
        if same_shapes and _same_model(read, update):
            found.append(read)
    return found


def _same_model(one: Shared, other: Shared) -> bool:
    return all(
        (a.weight is None and b.weight is None)
        or (a.weight is not None and b.weight is not None and np.array_equal(a.weight[...], b.weight[...]))
        for a, b in zip(one.layers, other.layers, strict=True)
    )


def _whole(labels: Floats | None) -> Integers | None:
    """Labels as whole numbers; None where they are none."""
    numbers = np.asarray(labels)
    if (
        labels is None
        or numbers.dtype.kind not in "iuf"
        or not np.all(np.isfinite(numbers))
        or np.any(numbers != np.rint(numbers))
        or np.any(np.abs(numbers.astype(np.float64)) > LARGEST_LABEL)
    ):
        return None
    return numbers.astype(np.int64)
