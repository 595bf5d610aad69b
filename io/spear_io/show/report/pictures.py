"""Pictures inside a page: PNG files in the text of the page, as small as the number of them demands."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...files.storage import Floats

PIXEL_BYTES = 9_000_000
"""Bytes of pixels, before packing, of all pictures of a page: noise does not pack, and base64 adds a third."""
LARGEST_SIDE = 256
"""Pixels of one picture on a page: more is for `spear-np export`."""
SMALLEST_SIDE = 8
"""Pixels below which a picture shows nothing."""
GAP = 2
"""Pixels between the pictures of a sheet."""
PACKING = 6
"""How hard PNG files are packed: of 100 sheets of Fashion-MNIST, the hardest, 9, takes 1.6 times as long for 0.6 % less."""
GREY = 128
"""What is there."""

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True)
class Inline:
    """A picture in the text of a page."""

    uri: str
    width: int
    height: int


def largest_side(count: int, channels: int) -> int:
    """Return the side that each of `count` pictures may have; 0 if they are too many to be drawn."""
    side = math.isqrt(PIXEL_BYTES // max(1, count * channels))
    return min(LARGEST_SIDE, side) if side >= SMALLEST_SIDE else 0


def inline(pixels: Pixels) -> Inline:
    """Return pixels (height, width, channels) as a picture."""
    height, width = pixels.shape[:2]
    encoded = base64.b64encode(png(pixels)).decode("ascii")
    return Inline(f"data:image/png;base64,{encoded}", width, height)


def png(pixels: Pixels) -> bytes:
    """Return the PNG file of pixels (height, width, 1, 3 or 4)."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(
        buffer, "PNG", compress_level=PACKING
    )
    return buffer.getvalue()


def fitted(pixels: Pixels, side: int) -> Pixels:
    """Return pictures (k, height, width, channels) no larger than `side` in either direction."""
    from PIL import Image

    _, height, width, channels = pixels.shape
    factor = side / max(height, width)
    if factor >= 1 or not len(pixels):
        return pixels
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    small = [
        np.asarray(Image.fromarray(one[:, :, 0] if channels == 1 else one).resize(size, Image.Resampling.BOX))
        for one in pixels
    ]
    return np.stack(small).reshape(len(pixels), size[1], size[0], channels)


def sheet(pixels: Pixels, across: int) -> Pixels:
    """Return pictures (k, height, width, channels) side by side, `across` in a row, on a grey that neither black nor white runs into."""
    count, height, width, channels = pixels.shape
    down = -(-count // across)
    whole = np.full((down * (height + GAP) + GAP, across * (width + GAP) + GAP, channels), GREY, np.uint8)
    for number, one in enumerate(pixels):
        top, left = GAP + (number // across) * (height + GAP), GAP + (number % across) * (width + GAP)
        whole[top : top + height, left : left + width] = one
    return whole


def curve(values: Sequence[Floats], width: int = 240, height: int = 80, most: int = 240) -> list[str]:
    """Return the points of a polyline for each of several curves (n,) that share one scale; long ones are thinned.

    Of a curve with more than `most` points the extremes of each stretch are kept, so that no peak is lost.
    """
    finite = np.concatenate([one[np.isfinite(one)] for one in values])
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    high = high if high > low else low + 1.0
    lines = []
    for one in values:
        places, kept = _thinned(np.nan_to_num(one, nan=low, posinf=high, neginf=low), most)
        x = places / max(1, len(one) - 1) * width
        y = height - (kept - low) / (high - low) * height
        lines.append(" ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True)))
    return lines


def _thinned(values: Floats, most: int) -> tuple[Floats, Floats]:
    if len(values) <= most:
        return np.arange(len(values)), values
    stretches = np.array_split(np.arange(len(values)), most // 2)
    places = np.unique(
        [place for s in stretches for place in (s[np.argmin(values[s])], s[np.argmax(values[s])])]
    )
    return places, values[places]
