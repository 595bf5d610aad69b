"""The command `spear-np inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .card import card_ready
from .options import DeviceName, Json


def inspect(
    path: Annotated[
        Path, typer.Argument(metavar="FILE.h5", help="Gradient dump, or an inversion.", show_default=False)
    ],
    record: Annotated[
        list[str] | None,
        typer.Option(
            "--record", metavar="NAME", help="Only this record of a dump, or such (*, ?); repeatable."
        ),
    ] = None,
    device: DeviceName = "cpu",
    json: Json = False,
) -> None:
    """Show what is in a dump and what inverting it would cost, or what an inversion recovered."""
    from ..files.dump import open_dump
    from ..files.inversion import FORMAT, open_inversion
    from ..files.opening import format_of
    from ..show.outcomes import inversion_document, print_outcomes, read_outcomes
    from ..show.overview import dump_document, overviews
    from ..show.tables import print_json, print_overview

    if format_of(path) == FORMAT:
        with open_inversion(path) as inversion:
            if json:
                print_json(inversion_document(inversion))
            else:
                print_outcomes(read_outcomes(inversion), inversion.unread)
        return
    with card_ready(device), open_dump(path) as opened:
        opened.check_claims()
        groups = overviews(opened, record or (), device=device)
        if json:
            print_json(dump_document(opened, groups))
        else:
            print_overview(opened, groups)
