"""The command `spear-np inspect`."""

from __future__ import annotations

from .card import card_ready
from .options import DeviceName, DumpPath, Json


def inspect(dump: DumpPath, device: DeviceName = "cpu", json: Json = False) -> None:
    """Show what is in a dump and what inverting it would cost."""
    from ..files.dump import open_dump
    from ..show.overview import dump_document, record_overview
    from ..show.tables import print_json, print_overview

    with card_ready(device), open_dump(dump) as opened:
        opened.check_claims()
        records = [record_overview(record, device=device) for record in opened.records]
        if json:
            print_json(dump_document(opened, records))
        else:
            print_overview(opened, records)
