"""The command `spear-np`: options in, exit status out; the work is done elsewhere.

Exit status: 0 every selected layer is exact or approximate; 3 at least one is partial or failed; 2 bad usage or
an input that cannot be read; 1 anything else. Results go to standard output, everything else to standard error.
"""

from __future__ import annotations

import math
import os
import sys
import traceback
import warnings
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

import spear_np
from spear_np.backend import device_for
from spear_np.inputs.scale import checked_range

from ..files.dump import Layer, Record, open_dump
from ..files.inversion import InversionWriter, open_inversion
from ..problems import FileError, cause, printable
from ..show.evaluate import evaluate as evaluate_inversion
from ..show.evaluate import evaluation_notes
from ..show.overview import dump_document, record_overview
from ..show.progress import progress_bar
from ..show.tables import Outcome, print_evaluation, print_json, print_outcomes, print_overview
from .convert import convert
from .interrupt import stop_on_interrupt
from .layer_options import ConvertCommand
from .options import Json
from .selection import select_layers

GOOD = (spear_np.Status.EXACT, spear_np.Status.APPROXIMATE)
TRACEBACK = "SPEAR_NP_TRACEBACK"
"""Environment variable that asks for the traceback of an unexpected error."""
USAGE_ERROR: Any = typer.BadParameter.__mro__[1]
"""UsageError, which typer takes from another package in every other version."""
INTERRUPTED = 130
"""What typer makes of a `KeyboardInterrupt`."""
LARGEST_SEED = 2**63 - 1

app = typer.Typer(
    name="spear-np",
    help="Recover the inputs of a batch from the gradients of a fully connected ReLU layer.",
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

DumpPath = Annotated[Path, typer.Argument(metavar="DUMP.h5", help="Gradient dump.", show_default=False)]
DeviceName = Annotated[str, typer.Option("--device", metavar="cpu|gpu|gpu:N", help="Where to compute.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"spear-np {spear_np.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Recover the inputs of a batch from the gradients of a fully connected ReLU layer."""


@app.command()
def inspect(dump: DumpPath, device: DeviceName = "cpu", json: Json = False) -> None:
    """Show what is in a dump and what inverting it would cost."""
    device_for(device)
    with open_dump(dump) as opened:
        records = [record_overview(record, device=device) for record in opened.records]
        if json:
            print_json(dump_document(opened, records))
        else:
            print_overview(opened, records)


@app.command()
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
        str, typer.Option("--method", metavar="|".join(spear_np.METHODS), help="How to search.")
    ] = spear_np.METHODS[0],
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
    json: Json = False,
) -> None:
    """Recover the inputs and write them to a file."""
    if method not in spear_np.METHODS:
        msg = f"{method!r} is not one of {', '.join(spear_np.METHODS)}"
        raise typer.BadParameter(msg, param_hint="--method")
    if math.isnan(time_limit):
        msg = "not a number"
        raise typer.BadParameter(msg, param_hint="--time-limit")
    try:
        checked_range(data_range)
    except spear_np.InputError as error:
        raise typer.BadParameter(str(error), param_hint="--data-range") from error
    device_for(device)

    outcomes: list[Outcome] = []
    with open_dump(dump) as opened:
        selection = select_layers(opened, record or (), layer or ())
        with InversionWriter(output, source=dump) as out:
            selection.check_finite()
            with stop_on_interrupt() as stopped, progress_bar() as start_bar:
                for number, (chosen_record, chosen_layer) in enumerate(selection.layers, 1):
                    title = f"{printable(chosen_record.name)}, {printable(chosen_layer.name)}"
                    if len(selection.layers) > 1:
                        title += f" ({number} of {len(selection.layers)})"
                    if stopped():
                        result = _not_begun(
                            chosen_layer, method=method, seed=seed, device=device, data_range=data_range
                        )
                    else:
                        result = spear_np.invert_layer(
                            chosen_layer.gradients,
                            batch_size=batch_size,
                            data_range=data_range,
                            method=method,
                            seed=seed,
                            device=device,
                            time_limit=time_limit,
                            callback=start_bar(title),
                            stop=stopped,
                        )
                    notes = _notes(chosen_record, result)
                    out.add(chosen_record.name, chosen_layer.name, result, notes)
                    outcomes.append(Outcome(chosen_record.name, chosen_layer.name, result, notes))

    _say(selection.notes)
    if json:
        print_json(
            {
                "command": "invert",
                "version": spear_np.__version__,
                "source": str(dump),
                "output": str(output),
                "layers": [outcome.as_dict() for outcome in outcomes],
                "notes": list(selection.notes),
            }
        )
    else:
        print_outcomes(outcomes, str(output))
    raise typer.Exit(_exit_status(outcome.result.status for outcome in outcomes))


@app.command()
def evaluate(
    inversion: Annotated[
        Path, typer.Argument(metavar="OUT.h5", help="File written by invert.", show_default=False)
    ],
    dump: DumpPath,
    json: Json = False,
) -> None:
    """Compare what was recovered with the true inputs in the dump."""
    with open_inversion(inversion) as recovered, open_dump(dump) as opened:
        results = evaluate_inversion(recovered, opened)
    notes = evaluation_notes(results)
    _say(notes)
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
    status = _exit_status(spear_np.Status(result.status) for result in results)
    raise typer.Exit(3 if any(result.broken_promise for result in results) else status)


app.command(cls=ConvertCommand)(convert)


def _exit_status(statuses: Iterable[spear_np.Status]) -> int:
    return 0 if all(status in GOOD for status in statuses) else 3


def _notes(record: Record, result: spear_np.Inversion) -> tuple[str, ...]:
    """Return what the dump gives reason to say about a result."""
    stated = record.info.batch_size
    if stated is None or result.batch_size in (0, stated):
        return record.notes
    note = (
        f"the dump states a batch of {stated}, the gradient shows {result.batch_size}: identical inputs, and inputs "
        "that turn on no unit of this layer, do not show"
    )
    return (*record.notes, note)


def _not_begun(
    layer: Layer, *, method: str, seed: int, device: str, data_range: tuple[float, float] | None
) -> spear_np.Inversion:
    """Return the result of a layer that Ctrl-C came before."""
    m, _ = layer.gradients.shape
    where = device_for(device)
    return spear_np.Inversion(
        status=spear_np.Status.FAILED,
        reason="stopped before it began",
        batch_size=0,
        found=0,
        output_grad=np.zeros((m, 0)),
        certificate=spear_np.Certificate(),
        method=method,
        seed=seed,
        seconds=0.0,
        device=where.name,
        proposals=0,
        history=(),
        gradients=layer.gradients,
        recovery=np.zeros((0, m)),
        scale_known=layer.gradients.bias_grad is not None,
        where=where,
        data_range=data_range,
    )


def _say(notes: Iterable[str]) -> None:
    for note in notes:
        print(f"spear-np: note: {note}", file=sys.stderr)


def _show_warning(message: Warning | str, *details: Any, **more: Any) -> None:
    """Show a warning as a person would write it, without the line of code that gave it."""
    print(f"spear-np: warning: {' '.join(str(message).split())}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status; every error becomes one line.

    Parameters
    ----------
    arguments : sequence of str, optional
        Instead of those of the process.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a pipe that takes no λ gets an escape instead of an exception
            stream.reconfigure(errors="backslashreplace")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            status = app(arguments, prog_name="spear-np", standalone_mode=False)
            sys.stdout.flush()
    except USAGE_ERROR as error:
        return _fail(f"{error.format_message().rstrip('.')} (see spear-np --help)", 2)
    except (FileError, spear_np.InputError, spear_np.DeviceError) as error:
        return _fail(str(error), 2)
    except BrokenPipeError:
        # Whoever read the output has gone; Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except MemoryError:
        return _fail("not enough memory", 1)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted; nothing was written", 1)
    except Exception as error:  # noqa: BLE001  (the last resort: one line instead of a traceback)
        if os.environ.get(TRACEBACK):
            traceback.print_exc()
        kind = type(error).__name__
        return _fail(f"unexpected {kind}: {cause(error)} (set {TRACEBACK}=1 to see where)", 1)
    if status == INTERRUPTED:
        return _fail("interrupted; nothing was written", 1)
    return int(status or 0)


def _fail(message: str, status: int) -> int:
    with suppress(OSError):  # the reader may have gone
        sys.stdout.flush()
    print(f"spear-np: error: {printable(message, 3000)}", file=sys.stderr)
    return status
