"""The command `spear-np evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .notes import say
from .options import InversionPath, Json, Units, of_data


def evaluate(
    inversion: InversionPath,
    dump: Annotated[
        Path | None,
        typer.Argument(metavar="[DUMP.h5]", help="Gradient dump that holds the truth.", show_default=False),
    ] = None,
    truth: Annotated[
        Path | None,
        typer.Option(
            "--truth",
            metavar="FILE|FOLDER",
            help="True inputs from elsewhere: .npy, .npz, .csv, or a folder of pictures.",
        ),
    ] = None,
    truth_units: Units = "auto",
    json: Json = False,
) -> None:
    """Compare what was recovered with the true inputs in the dump, or with those of --truth."""
    import spear_np

    from ..files.dump import open_dump
    from ..files.inversion import open_inversion
    from ..show import evaluate as comparison
    from ..show.beside import truth_for
    from ..show.tables import print_evaluation, print_json
    from .exit_status import INCOMPLETE, exit_status

    if (dump is None) == (truth is None):
        msg = "give a dump that holds true inputs, or --truth FILE, and not both"
        raise typer.BadParameter(msg, param_hint="DUMP.h5")
    with open_inversion(inversion) as recovered:
        if truth is not None:
            inputs = truth_for(truth, recovered, of_data=of_data(truth_units))
            results = comparison.evaluate_against(recovered, inputs)
        else:
            assert dump is not None
            with open_dump(dump) as opened:
                results = comparison.evaluate(recovered, opened)
    notes = comparison.evaluation_notes(results)
    say(notes)
    if json:
        print_json(
            {
                "command": "evaluate",
                "version": spear_np.__version__,
                "inversion": str(inversion),
                "dump": None if dump is None else str(dump),
                "truth": None if truth is None else str(truth),
                "layers": [result.as_dict() for result in results],
                "notes": notes,
            }
        )
    else:
        print_evaluation(results)
    status = exit_status(spear_np.Status(result.status) for result in results)
    raise typer.Exit(INCOMPLETE if any(result.broken_promise for result in results) else status)
