"""What is in a dump, layer by layer, and what inverting it would cost: the data behind `spear-np inspect`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import spear_np

from ..files.dump import Dump, Layer, Record, RecordInfo
from ..files.limits import working
from ..files.storage import StoredArray
from ..problems import FileError, listing, printable
from .forecast import Outlook, outlook

FEW_RECORDS = 12
"""Records that are all looked at."""


@dataclass(frozen=True)
class LayerOverview:
    """One layer: what is stored, and what the gradient itself shows."""

    layer: str
    kind: str
    activation: str
    """With the parameters that differ from their defaults."""
    activation_assumed: bool
    """Whether whoever wrote the file took it for granted."""
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

    @property
    def rests_on(self) -> str:
        """What it rests on that the layer can be inverted, and the outlook."""
        named = (
            f"it is assumed, and nothing names it, that '{printable(self.activation)}' follows"
            if self.activation_assumed
            else f"the file says that '{printable(self.activation)}' follows"
        )
        if not self.alone:
            return f"{named}, and which layer comes next with nothing in between"
        if self.survey is not None and self.survey.zeros_seen:
            return f"{named}; a short search found a first direction with the zeros of a ReLU"
        single = self.survey is not None and self.survey.batch_size == 1
        untried = "a single input shows none" if single else "the layer is too large for a short search"
        return f"{named}; the zeros of a ReLU were not looked for, as {untried}"


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


@dataclass(frozen=True)
class Group:
    """Records that are alike but for whose they are, and how large their batches are said to be."""

    first: RecordOverview
    """The one whose gradients were looked at."""
    records: tuple[RecordOverview, ...]
    """All of them; of many, without a look at their gradients."""


def overviews(dump: Dump, records: Sequence[str] = (), *, device: str | None = None) -> tuple[Group, ...]:
    """Look at the records of a dump, or at those of some names and patterns; at very many, at one of each kind.

    Raises
    ------
    FileError
        As `record_overview`, or if nothing has such a name.
    """
    chosen = [record for record in dump.records if not records or _any_fits(record.name, records)]
    for name in records:
        if not any(_any_fits(record.name, [name]) for record in chosen):
            msg = f"there is no record '{printable(name)}'"
            raise FileError(msg, dump.place, f"there is: {listing(record.name for record in dump.records)}")
    if len(chosen) <= FEW_RECORDS:
        looked_at = [record_overview(record, device=device) for record in chosen]
        return tuple(Group(record, (record,)) for record in looked_at)
    kinds: dict[RecordOverview, list[tuple[Record, RecordOverview]]] = {}
    for record in chosen:
        seen = record_overview(record, look=False)
        info = replace(seen.info, client=None, round=None, batch_size=None)
        kinds.setdefault(replace(seen, record="", info=info), []).append((record, seen))
    return tuple(
        Group(record_overview(members[0][0], device=device), tuple(seen for _, seen in members))
        for members in kinds.values()
    )


def _any_fits(name: str, patterns: Sequence[str]) -> bool:
    return any(name == pattern or fnmatchcase(name, pattern) for pattern in patterns)


def record_overview(record: Record, *, device: str | None = None, look: bool = True) -> RecordOverview:
    """Look at every layer of `record`; with `look`, reads the gradient of each that is fully connected.

    Raises
    ------
    FileError
        If the file is malformed. A layer that is well-formed but cannot be inverted is no error: its
        `problem` says why.
    """
    layers: list[LayerOverview] = []
    decay = spear_np.WeightDecay()
    for layer in record.layers:
        layers.append(_layer_overview(record, layer, decay, device, look=look))
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
    record: Record, layer: Layer, decay: spear_np.WeightDecay, device: str | None, *, look: bool
) -> LayerOverview:
    """`decay` is that of the layers before this one."""
    arrays: dict[str, StoredArray] = {}
    problems = [record.problem_of(layer)]
    alone = layer.unsuitable is None
    survey = truth = None
    if layer.kind == "linear":
        arrays, truth = layer.arrays, layer.truth
    if layer.kind == "linear" and look:
        gradients = layer.gradients
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
        activation_assumed=layer.activation_assumed,
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


def dump_document(dump: Dump, groups: Sequence[Group]) -> dict[str, Any]:
    """Plain data for JSON; of records in a group of several, only the first was looked at."""
    return {
        "command": "inspect",
        "version": spear_np.__version__,
        "file": str(dump.path),
        "producer": dump.producer,
        "created": dump.created,
        "records": [asdict(record) for group in groups for record in (group.first, *group.records[1:])],
        "groups": [[record.record for record in group.records] for group in groups],
    }
