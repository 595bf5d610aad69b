"""True inputs from outside a dump: an array, a table or a folder of pictures, one input a row."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import numpy as np

from ..files.limits import reading_file
from ..files.opening import check_readable
from ..files.storage import Floats, LoadedRows
from ..problems import FileError, Place, cause, listing, printable, size_text
from .numpy_files import MAGIC, plain_npy, plain_npz
from .source import reading

PICTURES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm"})
"""Names of pictures in a folder; other files there are left alone."""
MOST_PICTURES = 100_000
"""In one folder."""
LARGEST_PICTURE = 2**24
"""Pixels of one picture: no layer has more features."""
INPUT_NAMES = ("inputs", "x", "images", "data", "truth", "features", "x_train", "x_test")
"""Names of the array that is meant where an archive holds several."""
LABEL_NAMES = ("labels", "y", "targets", "y_train", "y_test")
WHOLE_RANGE = 255.0
"""Largest value of a byte: pixels that are stored as whole numbers are taken as shares of it."""
ADVICE = "give a .npy, .npz or .csv file of one true input a row, or a folder of pictures"


def read_truth(path: Path, *, shape: tuple[int, ...] | None = None) -> LoadedRows:
    """Return true inputs (b, n), float64, of a file or a folder of pictures; n features in the order of a flattened input.

    Parameters
    ----------
    path : Path
        A `.npy` or `.npz` array of b inputs of any shape, a `.csv` with or without a line of names, or a folder of
        pictures, which are taken in the order of their names. Numbers of one byte become shares of 255, as pixels are.
    shape : tuple of int, optional
        Shape of one input as the network takes it; it decides the size, the colours and the order of axes of pictures.

    Raises
    ------
    FileError
        If it holds anything else, or inputs that do not all have the same size.
    """
    place = Place(path)
    if path.is_dir():
        return LoadedRows(_pictures(path, shape), place)
    check_readable(path, advice=ADVICE)
    with reading_file(path):
        with path.open("rb") as stream:
            start = stream.read(len(MAGIC))
        if start == MAGIC:
            array = plain_npy(path)
        elif is_zipfile(path):
            array = _chosen(plain_npz(path), place)
        elif path.suffix.lower() in (".csv", ".tsv", ".txt"):
            array = _table(path)
        else:
            msg = "is no file of true inputs that is known here"
            raise FileError(msg, place, ADVICE)
    return LoadedRows(_rows(array, place), place)


def _rows(array: Any, place: Place) -> Floats:
    """Flatten every input; bytes become shares of 255."""
    if array.dtype.kind not in "fiub":
        msg = f"holds {array.dtype.name}, not real numbers"
        raise FileError(msg, place, "store the true inputs as numbers")
    if array.ndim < 2 or 0 in array.shape:
        msg = f"has shape {array.shape}, but must have one true input a row"
        raise FileError(msg, place, "store (inputs, features), or (inputs, channels, height, width)")
    flat: Floats = array.reshape(len(array), -1).astype(np.float64)
    return flat / WHOLE_RANGE if array.dtype == np.uint8 else flat


def _chosen(arrays: dict[str, Any], place: Place) -> Any:
    """The array of an archive that holds the inputs."""
    candidates = {
        name: array
        for name, array in arrays.items()
        if array.ndim >= 2 and name.lower() not in LABEL_NAMES and array.dtype.kind in "fiub"
    }
    named = [name for name in candidates if name.lower() in INPUT_NAMES]
    if len(candidates) != 1 and len(named) != 1:
        msg = f"holds {'several arrays' if candidates else 'no array'} that may be the true inputs: {listing(arrays)}"
        raise FileError(msg, place, "call one of them 'inputs'")
    return candidates[named[0] if len(named) == 1 else next(iter(candidates))]


def _table(path: Path) -> Floats:
    """Numbers separated by commas, semicolons or tabs; a first line that holds none is names."""
    place = Place(path)
    with reading(place):
        text = path.read_text(encoding="utf-8-sig")
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    lines = list(csv.reader(io.StringIO(text), delimiter=delimiter if delimiter in first else ","))
    numbered = [(number, line) for number, line in enumerate(lines, 1) if any(cell.strip() for cell in line)]
    if numbered and not any(_number(cell) is not None for cell in numbered[0][1]):
        numbered = numbered[1:]
    if not numbered:
        msg = "holds no line of numbers"
        raise FileError(msg, place, ADVICE)
    width = len(numbered[0][1])
    rows = np.empty((len(numbered), width))
    for row, (number, line) in enumerate(numbered):
        if len(line) != width:
            msg = f"line {number} has {len(line)} cells, but the first has {width}"
            raise FileError(msg, place, "give every line the same cells")
        for column, cell in enumerate(line):
            value = _number(cell)
            if value is None:
                msg = f"line {number}, cell {column + 1} is '{printable(cell, 40)}', not a number"
                raise FileError(msg, place, "encode categories as the network sees them")
            rows[row, column] = value
    return rows


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _pictures(folder: Path, shape: tuple[int, ...] | None) -> Floats:
    """(b, n): every picture of a folder as shares of the largest value."""
    place = Place(folder)
    with _listed(place):
        files = sorted(file for file in folder.iterdir() if file.suffix.lower() in PICTURES)
    if not files or len(files) > MOST_PICTURES:
        msg = f"a folder with {len(files)} pictures"
        raise FileError(msg, place, f"give one with a picture for each true input, {MOST_PICTURES} at most")
    rows: list[Floats] = []
    for file in files:
        values = _picture(file, shape)
        if rows and len(values) != len(rows[0]):
            msg = f"makes {len(values)} numbers, but '{printable(files[0].name)}' makes {len(rows[0])}"
            raise FileError(msg, Place(file), "give pictures of one size")
        rows.append(values)
    return np.stack(rows)


def _picture(file: Path, shape: tuple[int, ...] | None) -> Floats:
    """(n,): one picture in the order of axes that the network takes: channels first, where `shape` does not say otherwise."""
    from PIL import Image

    place = Place(file)
    check_readable(file, advice=ADVICE)
    with reading_file(file, LARGEST_PICTURE), reading(place), Image.open(file) as picture:
        width, height = picture.size
        if width * height > LARGEST_PICTURE:
            msg = f"has {width} x {height} pixels ({size_text(3 * width * height)})"
            raise FileError(msg, place, "give the picture at the size that the network takes")
        channels, last = _channels(shape)
        grey = channels == 1 if channels else picture.mode in ("1", "L", "I", "I;16", "F")
        pixels = np.asarray(picture.convert("L" if grey else "RGB"), dtype=np.float64) / WHOLE_RANGE
    if not grey and not last:
        pixels = pixels.transpose(2, 0, 1)
    flat = pixels.reshape(-1)
    if shape is not None and math.prod(shape) != len(flat):
        msg = f"has {width} x {height} pixels, but an input of the network has shape {shape}"
        raise FileError(msg, place, "give the picture at the size that the network takes")
    return flat


def _channels(shape: tuple[int, ...] | None) -> tuple[int | None, bool]:
    """How many channels an input of `shape` has, None if that is not known, and whether they come last."""
    if shape is None:
        return None, False
    if len(shape) == 2:
        return 1, False
    if len(shape) == 3:
        return (shape[0], False) if shape[0] in (1, 3) else (shape[2], True)
    return None, False


@contextmanager
def _listed(place: Place) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        msg = f"cannot be read ({cause(error)})"
        raise FileError(msg, place, ADVICE) from error
