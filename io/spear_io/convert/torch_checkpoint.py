"""PyTorch checkpoints: recognised here, read by PyTorch itself in `spear_io.adapters.torch_files`."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from ..files.limits import working
from ..files.storage import Bfloat16
from ..problems import FileError, Place
from .archives import open_archive
from .source import NamedArray, Source, check_claims, check_count, reading


@contextmanager
def open_torch(path: Path) -> Iterator[Source]:
    """Open a checkpoint of tensors; its arrays are in memory until it is closed."""
    place = Place(path)
    try:
        with working():  # it is large, and no stranger's
            from ..adapters.torch_files import TooManyError, read_tensors
    except ImportError as error:
        msg = (
            "a PyTorch checkpoint, which is a pickle that only PyTorch can read without running what is in it"
        )
        raise FileError(
            msg, place, "install PyTorch (pip install 'spear-np[torch]'), or save it as safetensors"
        ) from error
    if zipfile.is_zipfile(path):
        with open_archive(path):
            pass  # its limits hold
    try:
        found = read_tensors(path)
    except TooManyError as error:
        raise FileError(str(error), place, "save the tensors of the model and of its step alone") from error
    except Exception as error:  # PyTorch's own errors run over many lines
        msg = "a PyTorch checkpoint that cannot be read as tensors alone (weights_only=True)"
        raise FileError(msg, place, "save the state_dict, or a dict of tensors, and nothing else") from error
    check_count(len(found), place)
    check_claims(sum(value.nbytes for value in found.values() if not isinstance(value, str)), place)
    arrays = [_named(name, value, place) for name, value in found.items() if not isinstance(value, str)]
    skipped = {name: value for name, value in found.items() if isinstance(value, str)}
    yield Source(
        "PyTorch checkpoint",
        path,
        tuple(arrays),
        skipped,
        in_forward_order=True,
        orientation="mn",
        producer="torch",
    )


def _named(name: str, value: Any, place: Place) -> NamedArray:
    with reading(place):
        bfloat16 = isinstance(value, Bfloat16)
        precision = "bfloat16" if bfloat16 else value.dtype.name
        numbers = value.bits if bfloat16 else value
    return NamedArray(name, tuple(value.shape), precision, place.at(dataset=name), partial(_same, numbers))


def _same(value: Any) -> Any:
    return value
