"""The summary table of an inversion as a file: CSV, JSON or Parquet."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..files.inversion import UnreadRecord
from ..problems import FileError, Place, WriteError, cause, listing
from .outcomes import Outcome

COLUMNS = {
    "record": str,
    "layer": str,
    "client": str,
    "round": str,
    "source": str,
    "status": str,
    "claim": str,
    "batch_size": int,
    "found": int,
    "labelled": int,
    "seen_elsewhere": int,
    "worst_bound": float,
    "seconds": float,
    "reason": str,
}
"""What there is of each layer, and of which type; all but the first may be missing."""

UNREAD = "unread"
"""The status of a record that could not be used."""


def check_summary(path: Path) -> None:
    """Refuse a file that cannot be written, before anything else is done.

    Raises
    ------
    FileError
        If its name does not tell what it shall be, the library for that is missing, or there is no such folder.
    """
    place = Place(path)
    if path.suffix.lower() not in _WRITERS:
        msg = "does not say by its name what it shall be"
        raise FileError(msg, place, f"end it in one of {listing(_WRITERS)}")
    if path.suffix.lower() == ".parquet":
        _pyarrow(place)
    if path.is_dir() or not path.absolute().parent.is_dir():
        msg = "is a directory" if path.is_dir() else f"the folder '{path.parent}' does not exist"
        raise WriteError(msg, place, "choose another name to write to")


def write_summary(outcomes: Sequence[Outcome], unread: Sequence[UnreadRecord], path: Path) -> None:
    """Write one row for each layer, and each record that could not be used; appears whole or not at all.

    Raises
    ------
    FileError
        As `check_summary`, or if the disk is full.
    """
    check_summary(path)
    rows = [*map(_row, outcomes), *map(_unread_row, unread)]
    temporary = path.with_name(f".{path.name}.partial")
    try:
        _WRITERS[path.suffix.lower()](rows, temporary)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        msg = f"cannot be written ({cause(error)})"
        raise WriteError(
            msg, Place(path), "the inversion itself is complete: spear-np inspect shows it"
        ) from error


def _row(outcome: Outcome) -> dict[str, Any]:
    return {
        "record": outcome.record,
        "layer": outcome.layer,
        "client": None if outcome.client is None else str(outcome.client),
        "round": None if outcome.round is None else str(outcome.round),
        "source": outcome.source,
        "status": str(outcome.status),
        "claim": outcome.claim,
        "batch_size": outcome.batch_size,
        "found": outcome.found,
        "labelled": outcome.labelled,
        "seen_elsewhere": outcome.repeated,
        "worst_bound": outcome.worst_bound,
        "seconds": outcome.seconds,
        "reason": outcome.reason,
    }


def _unread_row(one: UnreadRecord) -> dict[str, Any]:
    known = {"record": one.record, "source": one.source, "status": UNREAD, "reason": one.problem}
    return {name: known.get(name) for name in COLUMNS}


def _write_csv(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        writer.writerows({name: _harmless(value) for name, value in row.items()} for row in rows)


def _harmless(value: Any) -> Any:
    """A text that no spreadsheet takes for a formula: names come from strangers."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def _write_json(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    finite = [
        {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in row.items()
        }
        for row in rows
    ]
    path.write_text(json.dumps(finite, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _write_parquet(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    arrow = _pyarrow(Place(path))
    import pyarrow.parquet

    types = {str: arrow.string(), int: arrow.int64(), float: arrow.float64()}
    schema = arrow.schema([(name, types[kind]) for name, kind in COLUMNS.items()])
    pyarrow.parquet.write_table(arrow.Table.from_pylist(list(rows), schema=schema), path)


def _pyarrow(place: Place) -> Any:
    try:
        import pyarrow
    except ImportError as error:
        msg = "Parquet needs PyArrow"
        raise FileError(msg, place, "pip install 'spear-np[tables]', or write .csv or .json") from error
    return pyarrow


_WRITERS: dict[str, Callable[[Sequence[Mapping[str, Any]], Path], None]] = {
    ".csv": _write_csv,
    ".json": _write_json,
    ".parquet": _write_parquet,
}
