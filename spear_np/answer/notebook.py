"""An answer as notebooks take it: status, premises, checks and inputs as HTML, and a table of pandas."""

from __future__ import annotations

import base64
import html
import math
import struct
import zlib
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from ..arrays import HostArray
from ..backend import to_host

if TYPE_CHECKING:
    import pandas as pd

    from .result import Inversion

    DataFrame: TypeAlias = pd.DataFrame

MOST_SHOWN = 32
"""Inputs that a notebook shows.

Definition: of what is shown; `Inversion.inputs` holds all of them.
"""
SMALLEST_PICTURE = 8
"""Side in pixels from which inputs are drawn as square pictures.

Heuristic: fewer pixels show nothing, and tables have as many columns.
"""
LARGEST_PICTURE = 256
"""Side in pixels up to which they are.

Heuristic: more would make a notebook of many megabytes.
"""
MOST_COLUMNS = 8
"""Entries of an input that a notebook shows as numbers.

Definition: of what is shown.
"""
FIGURES = ("zero_count", "redundancy", "sign_agreement", "false_probability", "error_bound")
"""Of the certificate: one number for each input."""
BIT_DEPTH = 8
"""Bits of one colour of a pixel.

Definition: of a PNG file of bytes.
"""
WHITE = 255
"""Value of a white pixel.

Definition: the largest byte.
"""


def inversion_html(result: Inversion) -> str:
    """Return an answer as HTML; every text in it is escaped."""
    m, n = result.gradients.shape
    of = str(result.batch_size) if result.batch_size else "an unknown number of"
    parts = [
        f"<p><strong>{_text(result.claim)}</strong>: {result.found} of {of} inputs from a layer {m} × {n}</p>",
        f"<p>{_text(result.reason)}</p>",
        _premises_html(result),
        _checks_html(result),
        _inputs_html(result),
    ]
    return "<div>" + "".join(parts) + "</div>"


def inversion_table(result: Inversion) -> DataFrame:
    """Return an answer as a `pandas.DataFrame`: see `Inversion.to_dataframe`."""
    import pandas as pd  # the only module that needs it, and only when it is asked

    figures = {
        name: getattr(result.certificate, name)
        for name in FIGURES
        if len(getattr(result.certificate, name)) == result.found
    }
    if result.labels is not None:
        figures["label"] = to_host(result.labels)
    features = [f"x{number}" for number in range(result.gradients.shape[1])]
    inputs = pd.DataFrame(to_host(result.inputs), columns=features)
    return pd.concat([pd.DataFrame(figures, index=inputs.index), inputs], axis=1)


def square_shape(features: int) -> tuple[int, int, int] | None:
    """Return (channels, side, side) of inputs that may be square pictures, by the number of their features; None if not."""
    for channels in (1, 3):
        side = math.isqrt(features // channels)
        if SMALLEST_PICTURE <= side <= LARGEST_PICTURE and channels * side * side == features:
            return channels, side, side
    return None


def png(pixels: HostArray) -> bytes:
    """Return the PNG file of pixels (height, width, channels) of uint8, with one channel or three."""
    height, width, channels = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in np.ascontiguousarray(pixels))  # 0: not filtered
    head = struct.pack(">IIBBBBB", width, height, BIT_DEPTH, 0 if channels == 1 else 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def _text(text: str) -> str:
    return html.escape(text, quote=True)


def _mark(passed: bool | None) -> str:
    return "not made" if passed is None else "ok" if passed else "no"


def _premises_html(result: Inversion) -> str:
    lines = "".join(
        f"<li><strong>{_text(premise.name)}</strong>: {_text(premise.meaning)}</li>"
        for premise in result.certificate.rests_on
    )
    return f"<details><summary>What it rests on</summary><ul>{lines}</ul></details>" if lines else ""


def _checks_html(result: Inversion) -> str:
    rows = "".join(
        f"<tr><th>{_text(check.name)}</th><td>{'' if check.value is None else f'{check.value:.3g}'}</td>"
        f"<td>{_text(check.relation)} {check.threshold:.3g}</td><td>{_mark(check.passed)}</td><td>{_text(check.meaning)}</td></tr>"
        for check in result.certificate.checks
    )
    passed = sum(check.passed is True for check in result.certificate.checks)
    title = f"Certificate: {passed} of {len(result.certificate.checks)} checks hold"
    return f"<details><summary>{title}</summary><table>{rows}</table></details>" if rows else ""


def _inputs_html(result: Inversion) -> str:
    if not result.found:
        return ""
    shown = min(result.found, MOST_SHOWN)
    n = result.gradients.shape[1]
    shape = square_shape(n)
    width = n if shape else min(n, MOST_COLUMNS)
    rows = np.zeros((shown, width))
    for columns, block in result.input_blocks():
        if columns.start >= width:
            break
        stop = min(columns.stop, width)
        rows[:, columns.start : stop] = to_host(block[:shown, : stop - columns.start])
    left = f" The first {shown} of {result.found}." if shown < result.found else ""
    if shape is None:
        return _numbers_html(rows, n, left)
    low, high = float(np.min(rows)), float(np.max(rows))
    pixels = np.rint((rows - low) / ((high - low) or 1.0) * WHITE).astype(np.uint8)
    images = "".join(
        f'<img alt="input {number}" width="64" style="image-rendering: pixelated; margin: 2px" '
        f'src="data:image/png;base64,{base64.b64encode(png(one.reshape(shape).transpose(1, 2, 0))).decode()}">'
        for number, one in enumerate(pixels)
    )
    size = f"{shape[1]} × {shape[2]} pictures" + (" of three colours" if shape[0] == 3 else "")
    return f"<p>{images}</p><p>Drawn as {size}, which their {n} features allow; arrays do not say their shape.{left}</p>"


def _numbers_html(rows: HostArray, features: int, left: str) -> str:
    more = "<td>…</td>" if features > rows.shape[1] else ""
    lines = "".join(
        f"<tr><th>{number}</th>{''.join(f'<td>{value:.4g}</td>' for value in row)}{more}</tr>"
        for number, row in enumerate(rows)
    )
    return f"<table>{lines}</table><p>One input a row, {features} features.{left}</p>"
