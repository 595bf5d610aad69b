"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DumpPath = Annotated[Path, typer.Argument(metavar="DUMP.h5", help="Gradient dump.", show_default=False)]
DeviceName = Annotated[str, typer.Option("--device", metavar="cpu|gpu|gpu:N", help="Where to compute.")]
Force = Annotated[
    bool, typer.Option("--force", help="Replace an existing file that this command did not write.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]
