"""What is in a dump, layer by layer, and what inverting it would cost: the data behind `spear-np inspect`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import spear_np

from ..files.dump import Dump, Layer, Record, RecordInfo
from ..problems import FileError


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
    problem: str | None
    """Why the layer cannot be inverted."""
    survey: spear_np.Survey | None
    """Rank, noise and forecast; None where there is nothing to survey."""


@dataclass(frozen=True)
class RecordOverview:
    """One record."""

    record: str
    info: RecordInfo
    labels: bool
    """Whether true labels are stored."""
    notes: tuple[str, ...]
    layers: tuple[LayerOverview, ...]


def record_overview(record: Record, *, device: str | None = None) -> RecordOverview:
    """Look at every layer of `record`; reads each gradient that can be inverted.

    Raises
    ------
    FileError
        If the file is malformed. A layer that is well-formed but cannot be inverted is no error: its
        `problem` says why.
    """
    return RecordOverview(
        record=record.name,
        info=record.info,
        labels=record.labels is not None,
        notes=record.notes,
        layers=tuple(_layer_overview(layer, device) for layer in record.layers),
    )


def _layer_overview(layer: Layer, device: str | None) -> LayerOverview:
    problem, survey = layer.unsuitable, None
    arrays = layer.arrays if layer.kind == "linear" else {}
    if problem is None:
        gradients = layer.gradients
        try:
            layer.check_finite()
        except FileError as error:  # found while looking, where an inversion would have to stop
            problem = f"{error.dataset} {error.problem}"
        else:
            survey = spear_np.survey(gradients, device=device)
            problem = survey.problem
    gradient = arrays.get("weight_grad")
    truth = layer.truth if layer.unsuitable is None else None
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
        problem=problem,
        survey=survey,
    )


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
