"""Which layers of a dump are inverted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..files.dump import Dump, Layer, Record, named
from ..problems import FileError, printable


@dataclass(frozen=True)
class Selection:
    """Layers to invert, each known to be of the right kind and shape, and what was left out."""

    layers: tuple[tuple[Record, Layer], ...]
    notes: tuple[str, ...]
    """Records that nothing could be taken from."""

    def check_finite(self) -> None:
        """Read everything selected once and refuse NaN and infinity, before any search begins."""
        for _, layer in self.layers:
            layer.check_finite()


def select_layers(dump: Dump, records: Sequence[str] = (), layers: Sequence[str] = ()) -> Selection:
    """Choose the layers to invert and validate each.

    Parameters
    ----------
    dump : Dump
        An open dump.
    records : sequence of str
        Names; all records if empty.
    layers : sequence of str
        Names, wanted from every chosen record; if empty, the first layer in forward order that can be inverted.

    Raises
    ------
    FileError
        If a name is absent, a chosen layer cannot be inverted or does not fit together, or nothing is left.
    """
    chosen = [
        named(dump.records, name, dump.place, "record") for name in dict.fromkeys(records)
    ] or dump.records
    selected: list[tuple[Record, Layer]] = []
    notes = []
    reasons = []
    for record in chosen:
        if layers:
            found = [named(record.layers, name, record.place, "layer") for name in dict.fromkeys(layers)]
        else:
            found = [layer for layer in record.layers if record.problem_of(layer) is None][:1]
        if not found:
            why = "; ".join(
                f"'{printable(layer.name)}' is {record.problem_of(layer)}" for layer in record.layers
            )
            notes.append(f"record '{printable(record.name)}' holds no layer that can be inverted: {why}")
            reasons.append(why)
        for layer in found:
            problem = record.problem_of(layer)
            if problem is not None:
                msg = f"a layer that cannot be inverted: {problem}"
                raise FileError(msg, layer.place, "choose another layer with --layer")
            layer.check_affordable()  # and all that `gradients` validates
            selected.append((record, layer))
    if not selected:
        msg = f"no layer can be inverted: {reasons[0]}"
        more = f" (and {len(reasons) - 1} records alike)" if len(reasons) > 1 else ""
        raise FileError(
            msg + more,
            dump.place,
            "export a fully connected layer followed by a ReLU, or one and the layer that follows it",
        )
    return Selection(tuple(selected), tuple(notes))
