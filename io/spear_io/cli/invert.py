"""The command `spear-np invert`: its options; `spear_io.many` does the work."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .card import card_ready
from .notes import say
from .options import DeviceName, Force, Json
from .streams import complete_already

if TYPE_CHECKING:
    from ..files.inversion import UnreadRecord
    from ..show.outcomes import Outcome

LARGEST_SEED = 2**63 - 1

Patterns = list[str] | None


def invert(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="DUMP.h5…", help="Gradient dumps, folders of them, or patterns.", show_default=False
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="OUT.h5", help="File to write.", show_default=False)
    ],
    device: DeviceName = "cpu",
    record: Annotated[
        Patterns,
        typer.Option("--record", metavar="NAME", help="Only this record, or such (*, ?); repeatable."),
    ] = None,
    layer: Annotated[
        Patterns,
        typer.Option(
            "--layer",
            metavar="NAME",
            help="This layer, or such; repeatable. Default: the first that can be inverted.",
        ),
    ] = None,
    client: Annotated[
        Patterns, typer.Option("--client", metavar="NAME", help="Only of this client, or such; repeatable.")
    ] = None,
    round_: Annotated[
        Patterns, typer.Option("--round", metavar="NAME", help="Only of this round, or such; repeatable.")
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
    total_time: Annotated[
        float,
        typer.Option("--total-time", metavar="SECONDS", min=0, help="For all of them; cheap ones first."),
    ] = math.inf,
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs",
            "-j",
            metavar="N",
            min=1,
            help="Processes to work in. Default: one after the other, here.",
        ),
    ] = None,
    dask: Annotated[
        str | None,
        typer.Option(
            "--dask", metavar="ADDRESS", help="Scheduler of a Dask cluster to work on, or its scheduler file."
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the same command was ended.")] = False,
    split: Annotated[
        bool, typer.Option("--split", help="OUT is a folder, with a file for each record.")
    ] = False,
    summary: Annotated[
        Path | None,
        typer.Option("--summary", metavar="FILE", help="Write the table as .csv, .json or .parquet too."),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say when a layer is done.")] = False,
    log: Annotated[
        Path | None, typer.Option("--log", metavar="FILE", help="Append what happens, with times.")
    ] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Recover the inputs and write them to a file."""
    started = time.perf_counter()
    import spear_np

    from ..files.inversion import open_inversion
    from ..many.executors import hired
    from ..many.run import Request, invert_request
    from ..many.selection import Wanted
    from ..many.task import Search
    from ..show.outcomes import layer_document, print_outcomes, read_outcomes, unread_document
    from ..show.progress import watching
    from ..show.summary import check_summary, write_summary
    from ..show.tables import print_json
    from .exit_status import INCOMPLETE, exit_status
    from .interrupt import stop_on_interrupt

    if method not in spear_np.METHODS:
        msg = f"{method!r} is not one of {', '.join(spear_np.METHODS)}"
        raise typer.BadParameter(msg, param_hint="--method")
    for option, seconds in (("--time-limit", time_limit), ("--total-time", total_time)):
        if math.isnan(seconds):
            msg = "not a number"
            raise typer.BadParameter(msg, param_hint=option)
    if jobs is not None and dask is not None:
        msg = "cannot be combined with --dask, whose workers are processes already"
        raise typer.BadParameter(msg, param_hint="--jobs")
    try:
        spear_np.Options(data_range=data_range)
    except spear_np.InputError as error:
        raise typer.BadParameter(str(error), param_hint="--data-range") from error
    if summary is not None:
        check_summary(summary)

    request = Request(
        sources=sources,
        output=output,
        search=Search(method, batch_size, data_range, seed, device, time_limit),
        wanted=Wanted(record or (), layer or (), client or (), round_ or ()),
        total_time=total_time,
        split=split,
        resume=resume,
        replace=force,
    )
    with (
        card_ready(device if jobs is None and dask is None else "cpu"),
        hired(jobs, dask) as crew,
        watching(quiet=quiet, verbose=verbose, log=log) as audience,
    ):
        done = invert_request(request, crew, audience, stop_on_interrupt())
    notes = list(done.notes)
    notes += [f"left out: {one.error}" for one in done.unread]
    if done.journal is not None:
        notes.append(
            f"{done.unfinished} layer(s) are not finished; those that are, are kept for --resume in {done.journal}"
        )
    if not quiet:
        say(notes)
    complete_already(output)
    outcomes: list[Outcome] = []
    unread: list[UnreadRecord] = []
    documents: list[dict[str, Any]] = []
    for path in done.files:
        with open_inversion(path) as inversion:
            outcomes += read_outcomes(inversion, full=len(done.files) == 1)
            unread += inversion.unread
            documents += [layer_document(layer) for layer in inversion.layers] if json else []
    if summary is not None:
        write_summary(outcomes, unread, summary)
    if json:
        print_json(
            {
                "command": "invert",
                "version": spear_np.__version__,
                "source": str(done.sources[0]) if len(done.sources) == 1 else None,
                "sources": [str(source) for source in done.sources],
                "output": str(output),
                "layers": documents,
                "unread": [unread_document(one) for one in unread],
                "unfinished": done.unfinished,
                "repeated_inputs": done.repeated,
                "notes": notes,
            }
        )
    elif not quiet:
        print_outcomes(outcomes, unread, str(output), time.perf_counter() - started)
    raise typer.Exit(INCOMPLETE if unread else exit_status(outcome.status for outcome in outcomes))
