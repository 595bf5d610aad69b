"""The command `spear-np invert`: its options; `inverting` does the work."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Annotated

import typer

from .card import card_ready
from .notes import say
from .options import DeviceName, DumpPath, Force, Json
from .streams import complete_already

LARGEST_SEED = 2**63 - 1


def invert(
    dump: DumpPath,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="OUT.h5", help="File to write.", show_default=False)
    ],
    device: DeviceName = "cpu",
    record: Annotated[
        list[str] | None, typer.Option("--record", metavar="NAME", help="Only this record; repeatable.")
    ] = None,
    layer: Annotated[
        list[str] | None,
        typer.Option(
            "--layer", metavar="NAME", help="This layer; repeatable. Default: the first that can be inverted."
        ),
    ] = None,
    method: Annotated[
        str, typer.Option("--method", metavar="auto|chain|descent|sampling", help="How to search.")
    ] = "auto",
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, help="Instead of reading it off the gradient.")
    ] = None,
    data_range: Annotated[
        tuple[float, float] | None,
        typer.Option(
            "--data-range",
            metavar="LOW HIGH",
            help="Of the inputs as the layer sees them; gives them a scale where bias_grad is missing.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, max=LARGEST_SEED, help="Of the random numbers.")] = 0,
    time_limit: Annotated[
        float, typer.Option("--time-limit", metavar="SECONDS", min=0, help="For each layer.")
    ] = 600.0,
    force: Force = False,
    json: Json = False,
) -> None:
    """Recover the inputs and write them to a file."""
    started = time.perf_counter()
    import spear_np

    from ..show.tables import print_json, print_outcomes
    from .exit_status import exit_status
    from .inverting import Search, invert_dump

    if method not in spear_np.METHODS:
        msg = f"{method!r} is not one of {', '.join(spear_np.METHODS)}"
        raise typer.BadParameter(msg, param_hint="--method")
    if math.isnan(time_limit):
        msg = "not a number"
        raise typer.BadParameter(msg, param_hint="--time-limit")
    try:
        spear_np.Options(data_range=data_range)
    except spear_np.InputError as error:
        raise typer.BadParameter(str(error), param_hint="--data-range") from error
    search = Search(method, batch_size, data_range, seed, device, time_limit)
    with card_ready(device):
        outcomes, notes = invert_dump(
            dump, output, search, records=record or (), layers=layer or (), replace_any=force
        )
    say(notes)
    complete_already(output)
    if json:
        print_json(
            {
                "command": "invert",
                "version": spear_np.__version__,
                "source": str(dump),
                "output": str(output),
                "layers": [outcome.as_dict() for outcome in outcomes],
                "notes": list(notes),
            }
        )
    else:
        print_outcomes(outcomes, str(output), time.perf_counter() - started)
    raise typer.Exit(exit_status(outcome.result.status for outcome in outcomes))
