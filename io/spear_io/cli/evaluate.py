"""The command `spear-np evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .notes import say
from .options import DumpPath, Json


def evaluate(
    inversion: Annotated[
        Path, typer.Argument(metavar="OUT.h5", help="File written by invert.", show_default=False)
    ],
    dump: DumpPath,
    json: Json = False,
) -> None:
    """Compare what was recovered with the true inputs in the dump."""
    import spear_np

    from ..files.dump import open_dump
    from ..files.recovered import open_inversion
    from ..show import evaluate as comparison
    from ..show.tables import print_evaluation, print_json
    from .exit_status import INCOMPLETE, exit_status

    with open_inversion(inversion) as recovered, open_dump(dump) as opened:
        results = comparison.evaluate(recovered, opened)
    notes = comparison.evaluation_notes(results)
    say(notes)
    if json:
        print_json(
            {
                "command": "evaluate",
                "version": spear_np.__version__,
                "inversion": str(inversion),
                "dump": str(dump),
                "layers": [result.as_dict() for result in results],
                "notes": notes,
            }
        )
    else:
        print_evaluation(results)
    status = exit_status(spear_np.Status(result.status) for result in results)
    raise typer.Exit(INCOMPLETE if any(result.broken_promise for result in results) else status)
