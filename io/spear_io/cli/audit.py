"""The command `spear-np audit`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from .options import DeviceName, DumpPath, Force, Json
from .streams import complete_already


def audit(
    dump: DumpPath,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="OUT.html", help="Page to write.", show_default=False),
    ] = None,
    record: Annotated[
        str | None, typer.Option("--record", metavar="NAME", help="Default: the first that can be inverted.")
    ] = None,
    layer: Annotated[
        str | None, typer.Option("--layer", metavar="NAME", help="Default: the first that can be inverted.")
    ] = None,
    defence: Annotated[
        list[str] | None,
        typer.Option(
            "--defence", metavar="NAME", help="Only this one; repeatable. Default: all that are possible."
        ),
    ] = None,
    clip_norm: Annotated[
        float | None,
        typer.Option(
            "--clip-norm",
            metavar="C",
            help="Of DP-SGD; default: the median of the inputs in the layers used.",
        ),
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            "--learning-rate", metavar="η", help="Of local steps; default: the record's, else 0.01."
        ),
    ] = None,
    dataset_size: Annotated[
        int | None,
        typer.Option(
            "--dataset-size",
            min=1,
            metavar="N",
            help="Records that batches are drawn from, for ε; default: one batch.",
        ),
    ] = None,
    steps: Annotated[
        int, typer.Option("--steps", min=1, metavar="T", help="Of the training that ε is of.")
    ] = 1,
    delta: Annotated[float, typer.Option("--delta", metavar="δ", help="Of (ε, δ).")] = 1e-5,
    time_limit: Annotated[
        float, typer.Option("--time-limit", metavar="SECONDS", min=0, help="For each inversion.")
    ] = 5.0,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**63 - 1, help="Of all random numbers.")] = 0,
    device: DeviceName = "cpu",
    force: Force = False,
    json: Json = False,
) -> None:
    """Sweep defences over one update: how strong each would have had to be, and what it does not protect."""
    import spear_np
    from spear_np.backend.devices import device_for

    from ..audit.document import document_of
    from ..audit.privacy import Training
    from ..audit.result import NAMES, Asked, Audit, chosen_names
    from ..audit.run import audit as run_audit
    from ..audit.sweep import Budget
    from ..audit.tables import print_audit, print_written
    from ..problems import WriteError
    from ..show.progress import progress_bar
    from ..show.tables import print_json
    from .exit_status import INCOMPLETE
    from .interrupt import stop_on_interrupt

    names = chosen_names(defence or ())
    for name in names:
        if name not in NAMES:
            msg = f"'{name}' is not one of {', '.join(NAMES)}"
            raise typer.BadParameter(msg, param_hint="--defence")
    if output is None and not json:
        msg = "say where the page goes, -o OUT.html, or --json"
        raise typer.BadParameter(msg, param_hint="--output")
    if clip_norm is not None and not 0 < clip_norm < math.inf:
        msg = f"{clip_norm:g} is not a positive number"
        raise typer.BadParameter(msg, param_hint="--clip-norm")
    if not 0 < delta < 1:
        msg = f"{delta:g} is not between 0 and 1"
        raise typer.BadParameter(msg, param_hint="--delta")
    if math.isnan(time_limit):
        msg = "not a number"
        raise typer.BadParameter(msg, param_hint="--time-limit")
    if learning_rate is not None and not 0 < learning_rate < math.inf:
        msg = f"{learning_rate:g} is not a positive number"
        raise typer.BadParameter(msg, param_hint="--learning-rate")
    device_for(device)
    training = Training(dataset_size or 0, 0, steps, delta)
    asked = Asked(record, layer, names, clip_norm, learning_rate, training)
    kept: list[Audit] = []
    try:
        with stop_on_interrupt() as stopped, progress_bar() as start_bar:
            budget = Budget(time_limit, seed, device, stopped, start_bar)
            found = run_audit(dump, output, asked, budget, replace_any=force, finished=kept.append)
    except WriteError:
        for one in kept:
            print_audit(one)
        raise
    if output is not None:
        complete_already(output)
    if json:
        print_json(
            {
                "command": "audit",
                "version": spear_np.__version__,
                "output": None if output is None else str(output),
                **document_of(found),
            }
        )
    else:
        print_audit(found)
        print_written(str(output))
    raise typer.Exit(0 if found.complete else INCOMPLETE)
