"""Files and the command line around `spear_np`: gradient dumps in, inversions out."""

from __future__ import annotations

from .dump import Dump, RecordInfo, open_dump
from .dump_writer import DumpWriter, LayerArrays, write_dump
from .inversion import InversionWriter, open_inversion
from .problems import FileError
from .storage import Bfloat16

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
