"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

DumpPath = Annotated[Path, typer.Argument(metavar="DUMP.h5", help="Gradient dump.", show_default=False)]
InversionPath = Annotated[
    Path, typer.Argument(metavar="OUT.h5", help="File written by invert.", show_default=False)
]
Units = Annotated[
    Literal["auto", "layer", "data"],
    typer.Option(
        "--truth-units",
        help="Of true inputs that no dump holds: as the layer sees them, or as data before normalisation.",
    ),
]
DeviceName = Annotated[str, typer.Option("--device", metavar="cpu|gpu|gpu:N", help="Where to compute.")]
Force = Annotated[
    bool, typer.Option("--force", help="Replace an existing file that this command did not write.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]
InputShape = Annotated[
    str | None, typer.Option("--input-shape", metavar="1,28,28", help="Shape of one input.")
]
InputMean = Annotated[
    str | None, typer.Option("--input-mean", metavar="0.5,…", help="What normalising subtracted …")
]
InputStd = Annotated[str | None, typer.Option("--input-std", metavar="0.5,…", help="… and divided by.")]


def of_data(units: str) -> bool | None:
    """Whether true inputs are in the units of the data; None if that is to be found out."""
    return {"auto": None, "layer": False, "data": True}[units]
