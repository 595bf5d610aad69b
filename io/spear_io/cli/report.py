"""The command `spear-np report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Force, InversionPath, Units, of_data
from .streams import complete_already


def report(
    inversion: InversionPath,
    against: Annotated[
        Path | None,
        typer.Argument(
            metavar="[DUMP.h5|TRUTH]",
            help="The dump it came from, or the true inputs: .npy, .npz, .csv or a folder of pictures.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="OUT.html", help="Page to write.", show_default=False)
    ] = Path("report.html"),
    title: Annotated[str | None, typer.Option("--title", metavar="TEXT", help="Heading of the page.")] = None,
    truth_units: Units = "auto",
    force: Force = False,
) -> None:
    """Make one page of an inversion: what was shared and recovered, how sure that is, what is missing."""
    from ..show.report.page import write_report

    made = write_report(
        inversion,
        output,
        against=against,
        of_data=of_data(truth_units),
        title=title,
        replace_any=force,
    )
    complete_already(output)
    said = [made.headline, *([made.nothing_compared] if against and made.nothing_compared else [])]
    typer.echo("\n".join([*said, f"written to {output}"]))
