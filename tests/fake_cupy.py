"""A CuPy that imports, and whose card goes wrong where a test says so."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any, Self

import pytest

from spear_np import backend


class CUDARuntimeError(RuntimeError):
    """As CuPy raises it: the name of the error first."""


class OutOfMemoryError(MemoryError):
    """As CuPy raises it."""


class Card:
    """`cupy.cuda.Device`."""

    attributes = {"MultiProcessorCount": 132}  # noqa: RUF012  (as CuPy has it)

    def __init__(self, number: int) -> None:
        self.id = number

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None


def install(monkeypatch: pytest.MonkeyPatch, *, cards: int = 1, **failing: Exception) -> ModuleType:
    """Put it where `import cupy` finds it; each keyword names a call and what it raises: count, compiler, memory, product."""

    def answer(name: str, value: Any) -> Any:
        def call(*_: object, **__: object) -> Any:
            if name in failing:
                raise failing[name]
            return value

        return call

    cupy = ModuleType("cupy")
    runtime = SimpleNamespace(
        CUDARuntimeError=CUDARuntimeError,
        getDeviceCount=answer("count", cards),
        deviceSynchronize=answer("wait", None),
    )
    contents: dict[str, Any] = {
        "cuda": SimpleNamespace(
            runtime=runtime,
            nvrtc=SimpleNamespace(getVersion=answer("compiler", (13, 0))),
            memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
            Device=Card,
        ),
        "ndarray": type("ndarray", (), {}),
        "float32": "float32",
        "zeros": answer("memory", None),
        "matmul": answer("product", None),
    }
    for name, value in contents.items():
        setattr(cupy, name, value)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setitem(sys.modules, "array_api_compat.cupy", ModuleType("array_api_compat.cupy"))
    return cupy


@contextmanager
def forgotten() -> Iterator[None]:
    """Cards that were checked are checked anew."""
    backend._check_card.cache_clear()
    yield
    backend._check_card.cache_clear()
