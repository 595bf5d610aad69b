"""Files and the command line around `spear_np`: gradient dumps in, inversions out."""

from __future__ import annotations

from .files.dump import Dump, RecordInfo, open_dump
from .files.dump_writer import DumpWriter, LayerArrays, write_dump
from .files.inversion import InversionWriter, open_inversion
from .files.storage import Bfloat16
from .problems import FileError

__all__ = [
    "Bfloat16",
    "Dump",
    "DumpWriter",
    "FileError",
    "InversionWriter",
    "LayerArrays",
    "RecordInfo",
    "open_dump",
    "open_inversion",
    "write_dump",
]
