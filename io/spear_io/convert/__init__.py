"""From what people have on disk to a gradient dump: any file of arrays, its layers found and written.

The file is opened by what is in it, its named arrays are paired into layers, the layers turned so that rows are
output units and put into forward order, and written. Two models may stand in for a gradient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ..adapters.wiring import Wiring
from ..files.dump import DATASETS, DECAY_NOT_USED, RecordInfo
from ..files.dump_writer import NO_INFO, DumpWriter, LayerArrays
from ..files.limits import working
from ..problems import FileError, WriteError, listing, printable
from .checks import change_of, check_gradients, check_input_shape, check_one_update
from .decay import decay_notes
from .difference import leave_out_unchanged
from .forward_order import forward_order
from .forward_pass import LastLayer, Said, last_layer, wired
from .layers import FoundLayer, Part, natural
from .names import MOMENT, NORMALISATIONS
from .orientation import Settled, settle
from .origin import Origin, successive
from .pairing import Pairing, pair
from .source import Orientation, Source

__all__ = ["Conversion", "Converted", "ConvertedLayer", "Origin", "Said", "convert", "successive"]

NOTHING_SAID = Said()


@dataclass(frozen=True)
class ConvertedLayer:
    """What was written of one layer."""

    layer: str
    kind: str
    shape: tuple[int, ...]
    """(m, n), or the shape of a kernel that is listed but not stored."""
    precision: str
    datasets: tuple[str, ...]
    activation: str
    """What is applied to its output, with the parameters that differ from their defaults."""
    follows: str | None
    """The layer whose activated output is its input."""
    between: str | None
    """What stands before it and keeps it from following another."""
    orientation: Orientation | None
    """How the source stores it; None for what is not stored."""
    known_by: str
    """How that is known."""


@dataclass(frozen=True)
class Conversion:
    """What was written, and what was assumed for it."""

    format: str
    record: str
    layers: tuple[ConvertedLayer, ...]
    skipped: dict[str, str] = field(default_factory=dict)
    """Arrays that were not used, and why."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Converted:
    """What became of several origins."""

    conversions: tuple[Conversion, ...]
    left_out: tuple[FileError, ...] = ()
    """Why origins are not in the dump."""


def convert(
    origins: Mapping[str, Origin],
    output: Path,
    *,
    info: RecordInfo = NO_INFO,
    layers: Sequence[str] = (),
    orientation: Orientation | None = None,
    said: Said = NOTHING_SAID,
    replace_any: bool = False,
) -> Converted:
    """Write a gradient dump with a record for each of `origins`; models that they share are stored once.

    Parameters
    ----------
    origins : mapping
        Where the gradients are, by the names of the records.
    output : Path
        The dump; appears whole or not at all.
    info : RecordInfo
        What else is known of each update; the `round` may be in its origin.
    layers : sequence of str
        Only these; all if empty.
    orientation : {"mn", "nm"}, optional
        How matrices are stored, where the source does not tell.
    said : Said
        Activations, and which layer follows which, as the user knows them.
    replace_any : bool
        Whether `output` may replace a file that is no dump.

    Raises
    ------
    FileError
        If the dump cannot be written, or no origin can be used: a file that is damaged, holds no gradients, or leaves
        open what is what. One of several is left out.
    """
    conversions: list[Conversion] = []
    left_out: list[FileError] = []
    files = [path for origin in origins.values() for path in origin.files]
    with _Records(output, files, replace_any=replace_any) as dump:
        for record, origin in origins.items():
            try:
                conversions.append(_convert(record, origin, dump, info, layers, orientation, said))
            except WriteError:
                raise
            except FileError as error:
                left_out.append(error)
        if not conversions:
            raise left_out[0]
    first = next(iter(conversions))
    if origins[first.record].before is not None:  # the others are of the same training
        notes = (*first.notes, *decay_notes(output, first.record))
        conversions[0] = replace(first, notes=notes)
    return Converted(tuple(conversions), tuple(left_out))


class _Records:
    """A dump that begins with its first record, which tells the producer, and stores a model that records share once."""

    def __init__(self, output: Path, sources: Sequence[Path], *, replace_any: bool) -> None:
        self._output, self._sources, self._replace_any = output, sources, replace_any
        self._stack = ExitStack()
        self._writer: DumpWriter | None = None
        self._model_record: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def add(self, record: str, layers: dict[str, LayerArrays], info: RecordInfo, producer: str) -> None:
        if self._writer is None:
            writer = DumpWriter(
                self._output, producer=producer, sources=self._sources, replace=self._replace_any
            )
            self._writer = self._stack.enter_context(writer)
        shared = self._model_record
        if shared is not None and self._writer.stores_model(shared, layers):
            layers = {name: replace(layer, weight=None, bias=None) for name, layer in layers.items()}
        else:
            shared = None
        self._writer.add_record(record, layers, info=info, model_of=shared)
        if shared is None:
            self._model_record = record


def _convert(
    record: str,
    origin: Origin,
    dump: _Records,
    info: RecordInfo,
    layers: Sequence[str],
    orientation: Orientation | None,
    said: Said,
) -> Conversion:
    with ExitStack() as stack:
        opened = origin.open(stack)
        source = opened.source
        pairing = pair(opened.given, source.place, opened.unread, two_files=opened.two_files)
        if origin.before is not None:
            leave_out_unchanged(pairing.layers, source.place)
        check_gradients(pairing, source, origin)
        linear = sorted((one for one in pairing.layers if one.kind == "linear"), key=natural)
        settled = settle(linear, source, orientation, lambda one: _wanted(one, layers))
        ordered, order_note = forward_order(
            pairing.layers, {title: one.shape for title, one in settled.items()}, source.in_forward_order
        )
        chosen = _choose(ordered, layers, pairing, source)
        check_one_update(chosen, source.place)
        last = last_layer(ordered, pairing.unread, settled)
        wiring = wired(last, chosen, settled, source, said, only_chosen=bool(layers))
        written = {one.title: _arrays(one, settled.get(one.title), wiring[one.title]) for one in chosen}
        _add_inputs(written, pairing)
        check_input_shape(info, chosen[0].title, written[chosen[0].title], source.place)
        if origin.before is not None or change_of(chosen, source.place):
            info = replace(info, update="weight_delta")
        if origin.round is not None:
            info = replace(info, round=origin.round)
        with working():
            dump.add(record, written, info, f"{source.producer}, converted from {source.format}")
        assumed = any(one.assumed for one in wiring.values())
        notes = _notes(origin, pairing, source, order_note, assumed=assumed, last=last)
        if info.update == "weight_delta" and info.weight_decay is not None and info.learning_rate is None:
            notes.append(DECAY_NOT_USED)
        return Conversion(
            format=source.format,
            record=record,
            layers=tuple(_report(one, written[one.title], settled.get(one.title)) for one in chosen),
            skipped=dict(source.skipped) | pairing.skipped,
            notes=tuple(notes),
        )


def _choose(
    ordered: Sequence[FoundLayer], wanted: Sequence[str], pairing: Pairing, source: Source
) -> list[FoundLayer]:
    """Return the layers to write: those that are wanted, or all; fully connected ones need a gradient."""
    titles = [one.title for one in ordered]
    for name in wanted:
        if name not in titles:
            msg = f"there is no layer '{printable(name)}'"
            raise FileError(msg, source.place, f"there is: {listing(titles)}")
    chosen = []
    for one in ordered:
        if _wanted(one, wanted):
            chosen.append(one)
        else:
            reason = "was not chosen" if wanted and one.title not in wanted else one.without_gradient
            pairing.skipped.update({array.name: reason for array in one.parts.values()})
    if not any(one.kind == "linear" for one in chosen):
        msg = f"no fully connected layer with a gradient is left of {listing(wanted)}"
        raise FileError(msg, source.place, "choose another layer with --layer")
    return chosen


def _wanted(one: FoundLayer, wanted: Sequence[str]) -> bool:
    """Whether a layer is written: fully connected ones need a gradient."""
    return (not wanted or one.title in wanted) and (one.kind != "linear" or "weight_grad" in one.parts)


def _arrays(one: FoundLayer, settled: Settled | None, wiring: Wiring) -> LayerArrays:
    """Return what is written of a layer; of one that cannot be inverted, that it is there."""
    if settled is None:
        return LayerArrays(
            None, activation=wiring.activation, activation_assumed=wiring.assumed, kind=one.kind
        )

    def part(name: Part) -> Any:
        array = one.parts.get(name)
        if array is None:
            return None
        turned = array.T if settled.orientation == "nm" and len(array.shape) == 2 else array
        return turned.for_dump

    return LayerArrays(
        part("weight_grad"),
        part("bias_grad"),
        part("weight"),
        part("bias"),
        activation=wiring.activation,
        activation_assumed=wiring.assumed,
        follows=wiring.follows,
        between=wiring.between,
    )


def _add_inputs(written: dict[str, LayerArrays], pairing: Pairing) -> None:
    """Store true inputs with the first layer, if they are its inputs."""
    if pairing.inputs is None:
        return
    title, first = next((t, arrays) for t, arrays in written.items() if arrays.kind == "linear")
    features = None if first.weight_grad is None else first.weight_grad.shape[1]
    if len(pairing.inputs.shape) == 2 and pairing.inputs.shape[1] == features:
        written[title] = replace(first, inputs=pairing.inputs.for_dump)
    else:
        pairing.skipped[pairing.inputs.name] = f"is of shape {pairing.inputs.shape}: no inputs of '{title}'"


def _report(one: FoundLayer, arrays: LayerArrays, settled: Settled | None) -> ConvertedLayer:
    return ConvertedLayer(
        layer=one.title,
        kind=one.kind,
        shape=settled.shape if settled else one.matrix.shape,
        precision=one.matrix.precision,
        datasets=_datasets(one, arrays) if settled else (),
        activation=str(arrays.activation),
        follows=arrays.follows,
        between=arrays.between,
        orientation=settled.orientation if settled else None,
        known_by=settled.known_by if settled else "",
    )


def _datasets(one: FoundLayer, arrays: LayerArrays) -> tuple[str, ...]:
    parts = [part for part in DATASETS if part in one.parts]
    return (*parts, "inputs") if arrays.inputs is not None else tuple(parts)


def _notes(
    origin: Origin,
    pairing: Pairing,
    source: Source,
    order: str | None,
    *,
    assumed: bool,
    last: LastLayer,
) -> list[str]:
    """Return what was assumed."""
    notes = [*([order] if order else []), *source.notes, *pairing.notes]
    if any(one.changes for one in pairing.layers):
        notes.append(
            "what is named as a change of the weights is taken for the model after minus the model before (weight_delta): "
            "a multiple of the gradient only if it was one step of plain SGD"
        )
    moments = [name for name, reason in (dict(source.skipped) | pairing.skipped).items() if reason == MOMENT]
    if moments and origin.gradients:
        notes.append(
            f"there are moments of an optimizer ({listing(moments[:3])}), as in a checkpoint: are its arrays gradients?"
        )
    if origin.before is not None:
        notes.append(
            "the update is the model after minus the model before (weight_delta): a multiple of the gradient only if "
            "it was one step of plain SGD, weight decay apart"
        )
        if moments:
            notes.append(
                f"there are moments of an optimizer ({listing(moments[:3])}): a step of Adam and its like is no multiple "
                "of the gradient; the first step of momentum is"
            )
    alone = [one.title for one in pairing.layers if "weight_grad" in one.parts and "weight" not in one.parts]
    if origin.model is not None and alone:
        notes.append(
            f"the model has no weight under the names of {listing(alone[:3])}: signs cannot be checked there, and nothing is "
            "certified exact"
        )
    if last.unread:
        notes.append(
            f"the weights of {listing(last.unread)} cannot be used, but the layers are there, and count when the last one "
            "is told from the others" + (f": {last.doubt}" if last.doubt else "")
        )
    factors = [one.title for one in pairing.layers if one.low_rank_factor and "weight_grad" in one.parts]
    if factors:
        notes.append(
            f"there are factors of low-rank updates, as of LoRA ({listing(factors[:3])}): the rest of their layer follows them "
            "instead of an activation, so that they cannot be inverted as layers are"
        )
    if assumed:
        notes.append(
            "the file does not say what follows a layer: a ReLU is assumed after every layer but the last one of "
            "several (--activation NAME says otherwise)"
        )
    if not source.network:
        norms = sorted({name for name, reason in pairing.skipped.items() if reason in NORMALISATIONS})
        if norms:
            notes.append(
                f"there are normalisations ({listing(norms[:3])}): a layer with one between it and its ReLU cannot be "
                "inverted"
            )
    return notes
