"""Recovered inputs as files that everybody opens: pictures, tables, arrays; in the units of the data, without the truth."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import spear_np

from ..files.display import Display
from ..files.folders import NewFolder, new_folder
from ..files.inversion import RecoveredLayer, open_inversion
from ..files.limits import working
from ..files.storage import Floats, check_finite
from ..problems import FileError, Place, printable
from .looks import EACH_ITS_OWN, Basis, Kind, Look, Tones, look, own_range, read_rows, tones_of
from .report.pictures import fitted, png, sheet

FORMAT = "spear-export"
NO_DISPLAY = Display()
FORMATS = ("png", "csv", "parquet", "npz")
USUAL = {Kind.PICTURE: ("png", "npz"), Kind.TABLE: ("csv",), Kind.CURVE: ("npz",)}
"""What is written where no format is asked for."""
ACROSS = 10
"""Pictures in a row of a contact sheet."""
SHEET = 500
"""Pictures on one contact sheet."""
SHEET_SIDE = 128
"""Largest side of a picture there."""
MOST_COLUMNS = 10_000
"""Features that have a column each in Parquet; more of them are one column of lists."""
FORMULA = re.compile(r"^[=+\-@\t\r]")
"""Beginnings of cells that a spreadsheet takes for a formula: names may come from anybody."""


@dataclass(frozen=True)
class Exported:
    """What was written of one layer."""

    record: str
    layer: str
    status: str
    claim: str
    inputs: int
    units: str
    """"data" if normalisation was undone, else "layer"."""
    pixel_range: tuple[float, float] | None
    """What black and white stand for in its pictures; None if each was stretched to its own range, or without pictures."""
    drawn: str | None
    """The same in words, with why it is that range; None without pictures."""
    files: tuple[str, ...]


@dataclass(frozen=True)
class Wish:
    """What a user asks for."""

    formats: tuple[str, ...] = ()
    """Some of `FORMATS`; none for what is usual for the data."""
    display: Display = NO_DISPLAY
    """Shape, normalisation and names to be used instead of those of the file."""
    as_seen: bool = False
    """Whether to leave the inputs as the layer sees them."""
    span: tuple[float, float] | None = None
    """What is black and what is white."""


def export(inversion: Path, folder: Path, wish: Wish) -> tuple[Exported, ...]:
    """Write the recovered inputs of every layer into a new folder, each layer into one of its own below it.

    Raises
    ------
    FileError
        If the file cannot be read, holds numbers that are none, has no inputs at all, or cannot be exported as asked; or if
        the folder cannot be written, or holds anything that this command did not write.
    """
    done = []
    with open_inversion(inversion) as opened, new_folder(folder, kind=FORMAT) as new:
        if not any(layer.found for layer in opened.layers):
            msg = (
                f"holds no recovered inputs: {printable(opened.layers[0].reason, 300) or 'nothing was found'}"
            )
            raise FileError(msg, opened.place, "there is nothing to export")
        for number, layer in enumerate(opened.layers, 1):
            if layer.found:
                check_finite(layer.inputs, "run 'spear-np invert' again")
                with working():
                    done.append(_export_layer(layer, new, f"{number:03}-{_slug(layer)}", wish))
        new.close(
            {
                "format": FORMAT,
                "version": spear_np.__version__,
                "source": inversion.name,
                "layers": [vars(one) for one in done],
            }
        )
    return tuple(done)


def _slug(layer: RecoveredLayer) -> str:
    """A name for a folder that every system takes: of what a stranger called a layer only letters and digits stay."""
    return re.sub(r"[^A-Za-z0-9_.]+", "-", f"{layer.record}-{layer.layer}").strip("-.")[:60] or "layer"


def _export_layer(layer: RecoveredLayer, new: NewFolder, name: str, wish: Wish) -> Exported:
    given = {key: value for key, value in vars(wish.display).items() if value is not None}
    how = look(replace(layer.display, **given), layer.seen, layer.inputs)
    if wish.as_seen:
        how = replace(how, normalisation=None)
    formats = wish.formats or USUAL[how.kind]
    if "png" in formats and how.kind is not Kind.PICTURE:
        shape = layer.display.input_shape
        msg = f"its inputs are no pictures, as far as the file says: {layer.inputs.shape[1]} features, shape {shape}"
        raise FileError(msg, layer.place, "say --input-shape 1,28,28 or the like, or export as csv or npz")
    values = read_rows(layer.inputs, range(layer.found), how)
    files: list[str] = []

    def write(file: str, data: bytes) -> None:
        files.append(f"{name}/{file}")
        new.write(files[-1], data)

    tones = None
    if "png" in formats:
        tones = tones_of(layer, how) if wish.span is None else Tones(*wish.span, Basis.ASKED)
        _write_pictures(values, how, tones, write)
    rest = {"csv": ("inputs.csv", _csv), "parquet": ("inputs.parquet", _parquet), "npz": ("inputs.npz", _npz)}
    for kind, (file, made) in rest.items():
        if kind in formats:
            write(file, made(values, _columns(layer, how), layer, how))
    return Exported(
        record=layer.record,
        layer=layer.layer,
        status=str(layer.status),
        claim=layer.claim,
        inputs=layer.found,
        units="layer" if how.normalisation is None else "data",
        pixel_range=None if tones is None else (tones.low, tones.high),
        drawn=None if "png" not in formats else EACH_ITS_OWN if tones is None else str(tones),
        files=tuple(files),
    )


def _write_pictures(
    values: Floats, how: Look, tones: Tones | None, write: Callable[[str, bytes], None]
) -> None:
    """One file for each input, and contact sheets of all."""
    sheets = -(-len(values) // SHEET)
    for number in range(sheets):
        small = []
        for row in range(number * SHEET, min((number + 1) * SHEET, len(values))):
            one = values[row : row + 1]
            pixels = how.pictures(one, *(own_range(one) if tones is None else (tones.low, tones.high)))
            write(f"input-{row:04}.png", png(pixels[0]))
            small.append(fitted(pixels, SHEET_SIDE)[0])
        name = "contact-sheet.png" if sheets == 1 else f"contact-sheet-{number + 1:03}.png"
        write(name, png(sheet(np.stack(small), min(ACROSS, len(small)))))


def _columns(layer: RecoveredLayer, how: Look) -> dict[str, Any]:
    """What is known of each input beside its numbers: (k,) each."""
    columns: dict[str, Any] = {"input": np.arange(layer.found)}
    if layer.labels is not None:
        columns["label"] = layer.labels[:].astype(np.int64)
    if layer.error_bound is not None:
        unit = 1.0 if how.normalisation is None else float(np.max(how.normalisation.std))
        columns["error_bound"] = layer.error_bound[:].astype(np.float64) * unit
    return columns


def _feature_names(how: Look, features: int) -> list[str]:
    names = (
        how.names if len(how.names) == features else tuple(f"feature {number}" for number in range(features))
    )
    names = tuple(f"feature {name}" if name.isdigit() else name for name in names)
    seen: dict[str, int] = {}
    unique = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        unique.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return unique


def _csv(values: Floats, columns: dict[str, Any], layer: RecoveredLayer, how: Look) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [*columns, *_feature_names(how, values.shape[1])]
    writer.writerow([f"'{name}" if FORMULA.match(name) else name for name in names])
    for row, numbers in enumerate(values.tolist()):
        writer.writerow([*(column[row] for column in columns.values()), *numbers])
    return text.getvalue().encode()


def _parquet(values: Floats, columns: dict[str, Any], layer: RecoveredLayer, how: Look) -> bytes:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        msg = "Parquet needs pyarrow, which is not installed"
        raise FileError(
            msg, Place(layer.place.file), "pip install 'spear-np[tables]', or export as csv or npz"
        ) from error
    table = dict(columns)
    if values.shape[1] > MOST_COLUMNS:
        table["inputs"] = pa.array(list(values))
    else:
        table |= dict(zip(_feature_names(how, values.shape[1]), values.T, strict=True))
    buffer = io.BytesIO()
    parquet.write_table(pa.table(table), buffer)
    return buffer.getvalue()


def _npz(values: Floats, columns: dict[str, Any], layer: RecoveredLayer, how: Look) -> bytes:
    buffer = io.BytesIO()
    shaped = (
        values.reshape(len(values), *(layer.display.input_shape or ())) if _fits(layer, values) else values
    )
    np.savez_compressed(
        buffer, inputs=shaped, **{key: value for key, value in columns.items() if key != "input"}
    )
    return buffer.getvalue()


def _fits(layer: RecoveredLayer, values: Floats) -> bool:
    shape: Sequence[int] = layer.display.input_shape or ()
    return bool(shape) and int(np.prod(shape, dtype=object)) == values.shape[1]
