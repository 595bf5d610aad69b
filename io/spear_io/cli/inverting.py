"""One dump inverted, layer after layer, into one file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import spear_np
from spear_np.backend import device_for

from ..files.dump import Layer, Record, open_dump
from ..files.inversion import InversionWriter
from ..files.limits import working
from ..problems import FileError, printable
from ..show.progress import progress_bar
from ..show.tables import Outcome
from .interrupt import stop_on_interrupt
from .selection import select_layers


@dataclass(frozen=True)
class Search:
    """What is asked of the solver, for every layer alike: arguments of `spear_np.invert_layer`."""

    method: str
    batch_size: int | None
    data_range: tuple[float, float] | None
    seed: int
    device: str
    time_limit: float
    """Seconds, for each layer."""


def invert_dump(
    dump: Path,
    output: Path,
    search: Search,
    *,
    records: Sequence[str] = (),
    layers: Sequence[str] = (),
    replace_any: bool = False,
) -> tuple[list[Outcome], tuple[str, ...]]:
    """Invert the chosen layers of `dump`, write them to `output`, and return the results and notes about the rest.

    Parameters
    ----------
    dump, output : Path
        What is read, and what is written.
    search : Search
        How.
    records, layers : sequence of str
        Names; see `select_layers` for what an empty one means.
    replace_any : bool
        Whether `output` may replace a file that is no inversion.

    Raises
    ------
    FileError
        If the dump cannot be used or the output not be written; then nothing was written.
    """
    outcomes: list[Outcome] = []
    with open_dump(dump) as opened:
        selection = select_layers(opened, records, layers)
        with InversionWriter(output, source=dump, replace=replace_any) as out:
            selection.check_finite()
            with working(), stop_on_interrupt() as stopped, progress_bar() as start_bar:
                for number, (record, layer) in enumerate(selection.layers, 1):
                    title = f"{printable(record.name)}, {printable(layer.name)}"
                    if len(selection.layers) > 1:
                        title += f" ({number} of {len(selection.layers)})"
                    if stopped():
                        result = _not_begun(layer, search)
                    else:
                        result = _inverted(record, layer, search, start_bar(title), stopped)
                    notes = _notes(record, layer, result)
                    out.add(record.name, layer.name, result, notes, display=record.info, seen=layer.seen)
                    outcomes.append(Outcome(record.name, layer.name, result, notes))
    return outcomes, selection.notes


def _inverted(
    record: Record,
    layer: Layer,
    search: Search,
    callback: Callable[[spear_np.Progress], None] | None,
    stop: Callable[[], bool],
) -> spear_np.Inversion:
    """Invert one layer, with the layers that follow it where the dump says which these are and the method uses them."""
    options = {**vars(search), "callback": callback, "stop": stop}
    chain = record.chain_from(layer)
    if len(chain) == 1 and search.method == "chain":
        msg = "no layer follows it, as far as the dump says"
        raise FileError(msg, layer.place, "leave --method out, or convert with --follows if one does")
    try:
        if len(chain) == 1 or search.method not in ("auto", "chain"):
            return spear_np.invert_layer(layer.gradients, **options)
        return spear_np.invert_chain(
            [member.gradients for member in chain],
            names=[member.name for member in chain],
            loss=record.info.loss,
            **options,
        )
    except spear_np.InputError as error:
        raise FileError(str(error), layer.place) from error


def _notes(record: Record, layer: Layer, result: spear_np.Inversion) -> tuple[str, ...]:
    """Return what the dump gives reason to say about a result."""
    stated = record.info.batch_size
    seen = layer.seen.sentence(layer.name)
    said = record.notes if seen is None else (*record.notes, seen)
    if stated is None or result.batch_size in (0, stated):
        return said
    note = (
        f"the dump states a batch of {stated}, the gradient shows {result.batch_size}: identical inputs, and inputs "
        "that turn on no unit of this layer, do not show"
    )
    return (*said, note)


def _not_begun(layer: Layer, search: Search) -> spear_np.Inversion:
    """Return the result of a layer that Ctrl-C came before."""
    m, _ = layer.gradients.shape
    where = device_for(search.device)
    return spear_np.Inversion(
        status=spear_np.Status.FAILED,
        reason="stopped before it began",
        batch_size=0,
        found=0,
        output_grad=np.zeros((m, 0)),
        certificate=spear_np.Certificate(),
        method=search.method,
        seed=search.seed,
        seconds=0.0,
        device=where.name,
        proposals=0,
        history=(),
        gradients=layer.gradients,
        recovery=np.zeros((0, m)),
        scale_known=layer.gradients.bias_grad is not None,
        where=where,
        data_range=search.data_range,
    )
