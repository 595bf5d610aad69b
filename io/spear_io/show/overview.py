"""What is in a dump, layer by layer, and what inverting it would cost: the data behind `spear-np inspect`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import spear_np

from ..files.dump import Dump, Layer, Record, RecordInfo
from ..files.limits import working
from ..files.storage import StoredArray
from ..problems import FileError
from .forecast import Outlook, outlook


@dataclass(frozen=True)
class LayerOverview:
    """One layer: what is stored, and what the gradient itself shows."""

    layer: str
    kind: str
    activation: str
    """With the parameters that differ from their defaults."""
    follows: str | None
    """The layer whose activated output is this one's input."""
    between: str | None
    """What stands before the layer and keeps it from following another."""
    shape: tuple[int, ...] | None
    precision: str | None
    """"float32", …: what the gradient was rounded to."""
    datasets: tuple[str, ...]
    """Which of weight_grad, bias_grad, weight and bias are there."""
    truth_inputs: int | None
    """Number of true inputs stored for evaluation."""
    alone: bool
    """Whether its activation allows it to be inverted without the layers behind it."""
    problem: str | None
    """Why the layer cannot be inverted by itself."""
    survey: spear_np.Survey | None
    """Rank and noise, whatever the activation, and a forecast behind a ReLU; None where there is nothing to survey."""
    outlook: Outlook | None = None
    """What to expect of the default search; None where the layer cannot be inverted."""


@dataclass(frozen=True)
class RecordOverview:
    """One record."""

    record: str
    info: RecordInfo
    labels: bool
    """Whether true labels are stored."""
    notes: tuple[str, ...]
    layers: tuple[LayerOverview, ...]
    chains: tuple[tuple[str, ...], ...]
    """Names of layers that feed each other with nothing in between, in forward order."""


def record_overview(record: Record, *, device: str | None = None) -> RecordOverview:
    """Look at every layer of `record`; reads the gradient of each that is fully connected.

    Raises
    ------
    FileError
        If the file is malformed. A layer that is well-formed but cannot be inverted is no error: its
        `problem` says why.
    """
    layers: list[LayerOverview] = []
    decay = spear_np.WeightDecay()
    for layer in record.layers:
        layers.append(_layer_overview(record, layer, decay, device))
        seen = layers[-1].survey
        decay = seen.decay if seen is not None and seen.decay.present else decay
    return RecordOverview(
        record=record.name,
        info=record.info,
        labels=record.labels is not None,
        notes=record.notes,
        layers=tuple(layers),
        chains=tuple(tuple(layer.name for layer in chain) for chain in record.chains),
    )


def _layer_overview(
    record: Record, layer: Layer, decay: spear_np.WeightDecay, device: str | None
) -> LayerOverview:
    """`decay` is that of the layers before this one."""
    arrays: dict[str, StoredArray] = {}
    problems = [record.problem_of(layer)]
    alone = layer.unsuitable is None
    survey = truth = None
    if layer.kind == "linear":
        arrays, truth, gradients = layer.arrays, layer.truth, layer.gradients
        # What is found while looking is no reason to stop, as it is for an inversion.
        try:
            layer.check_affordable()
            layer.check_finite()
            with working():
                survey = spear_np.survey(gradients, device=device, elsewhere=decay)
        except FileError as error:
            problems.append(f"{error.dataset} {error.problem}" if error.dataset else error.problem)
        except spear_np.InputError as error:
            problems.append(str(error))
        else:
            if survey.zeros_seen is False and survey.crowds_zeros and record.has_chain(layer):
                alone = False  # what zeros do not tell, the layer behind it may
            elif survey.batch_size is None or alone:  # else it says the same of the activation
                problems.append(survey.problem)
    gradient = arrays.get("weight_grad")
    problem = "; ".join(problem for problem in problems if problem) or None
    return LayerOverview(
        layer=layer.name,
        kind=layer.kind,
        activation=str(layer.activation),
        follows=layer.follows,
        between=layer.between,
        shape=None if gradient is None else gradient.shape,
        precision=None if gradient is None else gradient.precision,
        datasets=tuple(arrays),
        truth_inputs=None if truth is None else truth.shape[0],
        alone=alone,
        problem=problem,
        survey=survey,
        outlook=None if problem else _outlook(record, layer, survey, alone=alone),
    )


def _outlook(record: Record, layer: Layer, survey: spear_np.Survey | None, *, alone: bool) -> Outlook | None:
    """What to expect of the search of `layer`, alone or with those that follow it."""
    if survey is None or survey.batch_size is None:
        return None
    reach = None
    if record.has_chain(layer):
        units = [shape[0] for member in record.chain_from(layer) if (shape := member.shape) is not None]
        reach = spear_np.theory.largest_chain_batch(units[:-1], units[-1]) if len(units) > 1 else None
    return outlook(survey.shape[0] if alone else 0, survey.batch_size, chain_reach=reach)


def dump_document(dump: Dump, records: list[RecordOverview]) -> dict[str, Any]:
    """Plain data for JSON."""
    return {
        "command": "inspect",
        "version": spear_np.__version__,
        "file": str(dump.path),
        "producer": dump.producer,
        "created": dump.created,
        "records": [asdict(record) for record in records],
    }
