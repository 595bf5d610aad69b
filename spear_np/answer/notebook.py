"""An answer as notebooks take it: status, premises, checks and inputs as HTML, and a table of pandas."""

from __future__ import annotations

import base64
import html
import math
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from ..arrays import HostArray
from .certificate import Certificate

if TYPE_CHECKING:
    import pandas as pd

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
COLOUR_TYPES = {1: 0, 3: 2, 4: 6}
"""What a PNG file calls grey, red, green and blue, and these with opacity, by the number of channels.

Definition: of the format.
"""
WHITE = 255
"""Value of a white pixel.

Definition: the largest byte.
"""


@dataclass(frozen=True)
class Picture:
    """How inputs are drawn as pictures."""

    shape: tuple[int, int, int]
    """Of one input."""
    channel_axis: int
    """0 or 2."""
    why: str
    """Where that is known from: the end of a sentence."""


@dataclass(frozen=True)
class Answer:
    """What is shown of an answer, wherever it lies; texts may come from strangers."""

    claim: str
    """The status with what it rests on."""
    found: int
    """k."""
    batch_size: int
    """0 if unknown."""
    layer: str
    """What was inverted, as "a layer 100 × 50"."""
    reason: str
    features: int
    """n."""
    certificate: Certificate
    picture: Picture | None
    """None for what is shown as numbers."""
    first: Callable[[int, int], HostArray]
    """(rows, columns) → that many of the inputs, and of their entries."""

    @property
    def headline(self) -> str:
        """Claim, how many inputs were found of how many, and of what."""
        of = str(self.batch_size) if self.batch_size else "an unknown number of"
        return f"{self.claim}: {self.found} of {of} inputs from {self.layer}"


def answer_html(answer: Answer) -> str:
    """Return an answer as HTML; every text in it is escaped."""
    headline = _text(answer.headline).replace(
        _text(answer.claim), f"<strong>{_text(answer.claim)}</strong>", 1
    )
    parts = [
        f"<p>{headline}</p>",
        f"<p>{_text(answer.reason)}</p>",
        _premises_html(answer.certificate),
        _checks_html(answer.certificate),
        _inputs_html(answer),
    ]
    return "<div>" + "".join(parts) + "</div>"


def answer_table(
    inputs: HostArray, figures: Mapping[str, Sequence[float] | HostArray], names: Sequence[str] = ()
) -> DataFrame:
    """Return a `pandas.DataFrame` with one row for each input.

    Parameters
    ----------
    inputs : (k, n) array
        One input a row.
    figures : mapping of (k,) arrays
        What stands before the features.
    names : sequence of str, optional
        Of the n features; ``x0`` to ``x(n-1)`` by default.
    """
    import pandas as pd  # the only module that needs it, and only when it is asked

    features = list(names) or [f"x{number}" for number in range(inputs.shape[1])]
    table = pd.DataFrame(inputs, columns=features)
    return pd.concat([pd.DataFrame(dict(figures), index=table.index), table], axis=1)


def figures_of(certificate: Certificate, count: int) -> dict[str, Sequence[float]]:
    """Return what a certificate says of each of `count` inputs: those of `FIGURES` that it has."""
    figures = {name: getattr(certificate, name) for name in FIGURES}
    return {name: values for name, values in figures.items() if len(values) == count}


def square_picture(features: int) -> Picture | None:
    """Return how inputs are drawn that may be square pictures, by the number of their features; None if not."""
    shape = square_shape(features)
    why = f"which their {features} features allow; arrays do not say their shape"
    return None if shape is None else Picture(shape, 0, why)


def square_shape(features: int) -> tuple[int, int, int] | None:
    """Return (channels, side, side) of inputs that may be square pictures, by the number of their features; None if not."""
    for channels in (1, 3):
        side = math.isqrt(features // channels)
        if SMALLEST_PICTURE <= side <= LARGEST_PICTURE and channels * side * side == features:
            return channels, side, side
    return None


def png(pixels: HostArray) -> bytes:
    """Return the PNG file of pixels (height, width, channels) of uint8, with one of `COLOUR_TYPES` channels."""
    height, width, channels = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in np.ascontiguousarray(pixels))  # 0: not filtered
    head = struct.pack(">IIBBBBB", width, height, BIT_DEPTH, COLOUR_TYPES[channels], 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def _text(text: str) -> str:
    return html.escape(text, quote=True)


def _mark(passed: bool | None) -> str:
    return "not made" if passed is None else "ok" if passed else "no"


def _premises_html(certificate: Certificate) -> str:
    lines = "".join(
        f"<li><strong>{_text(premise.name)}</strong>: {_text(premise.meaning)}</li>"
        for premise in certificate.rests_on
    )
    return f"<details><summary>What it rests on</summary><ul>{lines}</ul></details>" if lines else ""


def _checks_html(certificate: Certificate) -> str:
    rows = "".join(
        f"<tr><th>{_text(check.name)}</th><td>{'' if check.value is None else f'{check.value:.3g}'}</td>"
        f"<td>{_text(check.relation)} {check.threshold:.3g}</td><td>{_mark(check.passed)}</td><td>{_text(check.meaning)}</td></tr>"
        for check in certificate.checks
    )
    passed = sum(check.passed is True for check in certificate.checks)
    title = f"Certificate: {passed} of {len(certificate.checks)} checks hold"
    return f"<details><summary>{title}</summary><table>{rows}</table></details>" if rows else ""


def _inputs_html(answer: Answer) -> str:
    if not answer.found:
        return ""
    shown, n, picture = min(answer.found, MOST_SHOWN), answer.features, answer.picture
    rows = answer.first(shown, n if picture else min(n, MOST_COLUMNS))
    left = f" The first {shown} of {answer.found}." if shown < answer.found else ""
    if picture is None:
        return _numbers_html(rows, n, left)
    finite = rows[np.isfinite(rows)]
    low, high = (float(np.min(finite)), float(np.max(finite))) if finite.size else (0.0, 0.0)
    with np.errstate(over="ignore", invalid="ignore"):  # files may hold anything
        scaled = np.nan_to_num((rows - low) / ((high - low) or 1.0))
    pixels = np.rint(np.clip(scaled, 0, 1) * WHITE).astype(np.uint8)
    images = np.moveaxis(pixels.reshape(shown, *picture.shape), 1 + picture.channel_axis, -1)
    drawn = "".join(
        f'<img alt="input {number}" width="64" style="image-rendering: pixelated; margin: 2px" '
        f'src="data:image/png;base64,{base64.b64encode(png(one)).decode()}">'
        for number, one in enumerate(images)
    )
    height, width, channels = images.shape[1:]
    size = f"{height} × {width} pictures" + ("" if channels == 1 else f" of {channels} channels")
    return f"<p>{drawn}</p><p>Drawn as {size}, {_text(picture.why)}.{left}</p>"


def _numbers_html(rows: HostArray, features: int, left: str) -> str:
    more = "<td>…</td>" if features > rows.shape[1] else ""
    lines = "".join(
        f"<tr><th>{number}</th>{''.join(f'<td>{value:.4g}</td>' for value in row)}{more}</tr>"
        for number, row in enumerate(rows)
    )
    return f"<table>{lines}</table><p>One input a row, {features} features.{left}</p>"
