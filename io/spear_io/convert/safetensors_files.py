"""safetensors: checked by its library, read through a memory map."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..problems import Place
from .source import NamedArray, Source, check_count, reading, unsuitable

DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}


@contextmanager
def open_safetensors(path: Path) -> Iterator[Source]:
    """Open a safetensors file.

    The library's NumPy reader has no bfloat16: the library checks the file, then its bytes are mapped.
    """
    from safetensors import safe_open

    place = Place(path)
    arrays, skipped = [], {}
    with reading(place), safe_open(path, framework="np") as checked:
        producer = (checked.metadata() or {}).get("format", "")
        check_count(len(checked.keys()), place)
    with reading(place), path.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        entries = json.loads(stream.read(size), object_pairs_hook=_unique)
        for name, entry in entries.items():
            if name == "__metadata__":
                continue
            precision = DTYPES.get(entry["dtype"], entry["dtype"])
            if reason := unsuitable(precision):
                skipped[name] = reason
                continue
            shape = tuple(entry["shape"])
            load = partial(
                np.memmap,
                path,
                dtype="<u2" if precision == "bfloat16" else np.dtype(precision).newbyteorder("<"),
                mode="r",
                offset=8 + size + entry["data_offsets"][0],
                shape=shape,
            )
            arrays.append(NamedArray(name, shape, precision, place.at(dataset=name), load))
    # The writer sorts by the size of a number and by name: nothing is said of the forward pass.
    yield Source(
        "safetensors",
        path,
        tuple(arrays),
        skipped,
        producer=f"safetensors ({producer})" if producer else "safetensors",
    )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a header that says two things of one name."""
    entries = dict(pairs)
    if len(entries) != len(pairs):
        msg = "a name comes more than once in the header"
        raise ValueError(msg)
    return entries
