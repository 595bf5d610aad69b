"""Files and the command line around `spear_np`: gradient dumps in, inversions out.

The names below are imported when they are first asked for, so that the command can print its help without them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .files.child import ChildError, in_child
    from .files.display import Display
    from .files.dump import Dump, RecordInfo, open_dump
    from .files.dump_writer import DumpWriter, LayerArrays, write_dump
    from .files.inversion import open_inversion
    from .files.inversion_writer import InversionWriter
    from .files.storage import Bfloat16
    from .many.executors import ExecutorError
    from .many.run import Inverted, invert_dumps
    from .many.workers import Workers
    from .problems import FileError

__all__ = [
    "Bfloat16",
    "ChildError",
    "Display",
    "Dump",
    "DumpWriter",
    "ExecutorError",
    "FileError",
    "InversionWriter",
    "Inverted",
    "LayerArrays",
    "RecordInfo",
    "Workers",
    "in_child",
    "invert_dumps",
    "open_dump",
    "open_inversion",
    "write_dump",
]

_HOMES = {
    ".files.child": ("ChildError", "in_child"),
    ".files.display": ("Display",),
    ".files.dump": ("Dump", "RecordInfo", "open_dump"),
    ".files.dump_writer": ("DumpWriter", "LayerArrays", "write_dump"),
    ".files.inversion": ("open_inversion",),
    ".files.inversion_writer": ("InversionWriter",),
    ".files.storage": ("Bfloat16",),
    ".many.executors": ("ExecutorError",),
    ".many.run": ("Inverted", "invert_dumps"),
    ".many.workers": ("Workers",),
    ".problems": ("FileError",),
}
"""Which module holds which of them."""


if not TYPE_CHECKING:  # a type checker would take any name for one of them

    def __getattr__(name: str) -> Any:
        """Import one of them."""
        for home, names in _HOMES.items():
            if name in names:
                return getattr(import_module(home, __name__), name)
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
