"""The command `spear-np`: options in, exit status out; the work is done elsewhere.

Exit status: 0 every selected layer is exact or approximate; 3 at least one is partial or failed; 2 bad usage or
an input that cannot be read; 1 anything else. Results go to standard output, everything else to standard error.

Each command is a module that states its options. What it needs to run, arrays, files and tables, it imports when it
runs, so that help and version come at once.
"""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..problems import FileError, cause, printable
from .audit import audit
from .convert import convert
from .convert_command import ConvertCommand
from .evaluate import evaluate
from .export import export
from .inspect import inspect
from .invert import invert
from .report import report
from .streams import OutputError, drop, keep_for_messages, stand_in_for_closed, tell, told_apart
from .supervise import can_supervise, supervise

if TYPE_CHECKING:
    from ..files.limits import Note

TRACEBACK = "SPEAR_NP_TRACEBACK"
"""Environment variable that asks for the traceback of an unexpected error."""
USAGE_ERROR: Any = typer.BadParameter.__mro__[1]
"""UsageError, which typer takes from another package in every other version."""
INTERRUPTED = 130
"""What typer makes of a `KeyboardInterrupt`."""

app = typer.Typer(
    name="spear-np",
    help="Recover the inputs of a batch from the gradients of fully connected layers: one before a ReLU, or several in a row.",
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    """Print the version of the installed distribution, which tells it without the code being loaded."""
    if not wanted:
        return
    from importlib.metadata import PackageNotFoundError, version

    try:
        found = version("spear-np")
    except PackageNotFoundError:  # a source tree that was never installed
        from spear_np import __version__ as found
    typer.echo(f"spear-np {found}")
    raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Recover the inputs of a batch from the gradients of fully connected layers: one before a ReLU, or several in a row."""


for command in (inspect, invert, evaluate, report, export, audit):
    app.command()(command)
app.command(cls=ConvertCommand)(convert)


def _show_warning(message: Warning | str, *details: Any, **more: Any) -> None:
    """Show a warning as a person would write it, without the line of code that gave it."""
    tell(f"spear-np: warning: {' '.join(str(message).split())}", surely=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status; every error becomes one line.

    Parameters
    ----------
    arguments : sequence of str, optional
        Instead of those of the process, for programs and tests. Only the command itself works in a process of its
        own, whose death is an error like any other; with `arguments` everything happens in this one.
    """
    if arguments is not None or not can_supervise():
        return _run(arguments)
    stand_in_for_closed()
    return supervise(_run_apart, report=_report_death, interrupted=_interrupted)


def _run_apart() -> int:
    if not os.environ.get(TRACEBACK):
        keep_for_messages()
    return _run(None)


def _run(arguments: Sequence[str] | None) -> int:
    try:
        with warnings.catch_warnings(), told_apart():
            warnings.showwarning = _show_warning
            status = app(arguments, prog_name="spear-np", standalone_mode=False)
    except USAGE_ERROR as error:
        context = getattr(error, "ctx", None)
        command = "spear-np" if context is None else context.command_path
        return _fail(f"{error.format_message().rstrip('.')} (see {command} --help)", 2)
    except FileError as error:
        return _fail(str(error), 2)
    except OutputError as error:
        drop(sys.stdout)
        return _fail(str(error), 2)
    except BrokenPipeError:
        drop(sys.stdout)  # whoever read the output has gone
        return 1
    except MemoryError:
        return _fail("not enough memory", 1)
    except (KeyboardInterrupt, typer.Abort) as error:
        return _interrupted(str(error))
    except Exception as error:  # noqa: BLE001  (the last resort: one line instead of a traceback)
        return _explain(error)
    return _interrupted() if status == INTERRUPTED else int(status or 0)


def _interrupted(said: str = "") -> int:
    return _fail(said or "interrupted; nothing was written", 1)


def _report_death(exit_code: int, note: Note) -> int:
    """Say that the process of the work was ended; return the exit status."""
    from ..files.child import death

    error = death(exit_code, note)
    return _fail(str(error), 2 if isinstance(error, FileError) else 1)


def _explain(error: Exception) -> int:
    """Print what the solver refused, or that the program has a defect; return the exit status."""
    from spear_np import DeviceError, InputError

    from ..files.child import ChildError
    from ..many.executors import ExecutorError

    if isinstance(error, DeviceError | InputError):
        return _fail(str(error), 2)
    if isinstance(error, ChildError | ExecutorError):
        return _fail(str(error), 1)
    if os.environ.get(TRACEBACK):
        traceback.print_exception(error)
    kind = type(error).__name__
    return _fail(f"unexpected {kind}: {cause(error)} (set {TRACEBACK}=1 to see where)", 1)


def _fail(message: str, status: int) -> int:
    try:
        sys.stdout.flush()
    except OSError:
        drop(sys.stdout)
    tell(f"spear-np: error: {printable(message, 3000)}")
    return status
