"""The command `spear-np export`."""

from __future__ import annotations

import math
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from .convert import numbers
from .options import InputMean, InputShape, InputStd, InversionPath, Json
from .streams import complete_already


class Format(StrEnum):
    """What inputs are written as: typer takes lists of nothing else that is limited."""

    png = "png"
    csv = "csv"
    parquet = "parquet"
    npz = "npz"


def export(
    inversion: InversionPath,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="Folder to write.", show_default=False)
    ],
    formats: Annotated[
        list[Format] | None,
        typer.Option("--format", help="Repeatable. Default: what suits the data."),
    ] = None,
    input_shape: InputShape = None,
    input_mean: InputMean = None,
    input_std: InputStd = None,
    as_seen: Annotated[
        bool, typer.Option("--as-seen", help="As the layer sees them: do not undo normalisation.")
    ] = False,
    pixel_range: Annotated[
        tuple[float, float] | None,
        typer.Option("--pixel-range", metavar="BLACK WHITE", help="Of pictures; default: by the numbers."),
    ] = None,
    json: Json = False,
) -> None:
    """Write the recovered inputs as PNG, CSV, Parquet or NPZ, normalisation undone."""
    import spear_np

    from ..files.display import Display
    from ..show.export import Wish
    from ..show.export import export as export_inputs
    from ..show.tables import print_exports, print_json

    if pixel_range is not None and not (
        all(map(math.isfinite, pixel_range)) and pixel_range[0] < pixel_range[1]
    ):
        msg = f"{pixel_range[0]:g} {pixel_range[1]:g} is no range: two numbers, the smaller one first"
        raise typer.BadParameter(msg, param_hint="--pixel-range")
    display = Display(
        input_shape=numbers(input_shape, int, "--input-shape"),
        input_mean=numbers(input_mean, float, "--input-mean"),
        input_std=numbers(input_std, float, "--input-std"),
    )
    wish = Wish(tuple(dict.fromkeys(map(str, formats or ()))), display, as_seen, pixel_range)
    done = export_inputs(inversion, output, wish)
    complete_already(output)
    if json:
        print_json(
            {
                "command": "export",
                "version": spear_np.__version__,
                "inversion": str(inversion),
                "output": str(output),
                "layers": [vars(one) for one in done],
            }
        )
    else:
        print_exports(done, str(output))
