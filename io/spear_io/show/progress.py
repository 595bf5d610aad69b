"""The progress bar of a search, on standard error, and only if somebody is looking."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

import spear_np

SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
Callback = Callable[[spear_np.Progress], None]


@contextmanager
def progress_bar() -> Iterator[Callable[[str], Callback | None]]:
    """Yield a function that starts the bar anew under a title and returns the callback that moves it.

    Without a terminal the callback is None and nothing is ever written.
    """
    if not sys.stderr.isatty():
        yield lambda title: None
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        TextColumn("{task.fields[stage]}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[figures]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", stage="", figures="")

        def start(title: str) -> Callback:
            bar.reset(task, description=title, total=None, stage="", figures="")
            return show

        def show(progress: spear_np.Progress) -> None:
            bar.update(
                task,
                stage=progress.stage,
                figures=figures(progress),
                completed=progress.found,
                total=progress.batch_size or None,
            )

        yield start


def figures(progress: spear_np.Progress) -> str:
    """Return "3/16 found, 1.2 M proposals, 310 k/s, about 0:08 left"."""
    if not progress.batch_size:
        return duration(progress.seconds)
    parts = [f"{progress.found}/{progress.batch_size} found"]
    if progress.proposals:
        parts.append(f"{count(progress.proposals)} proposals")
        if progress.seconds > 0:
            parts.append(f"{count(progress.proposals / progress.seconds)}/s")
    left = progress.time_limit - progress.seconds
    if progress.expected is not None and progress.proposals:
        expected = progress.expected * progress.seconds / progress.proposals
        if expected < left:
            return ", ".join([*parts, f"about {duration(expected)} left"])
    return ", ".join([*parts, f"at most {duration(left)} left"])


def count(number: float) -> str:
    """Return a large number as people read it: "412", "1.2 M"."""
    for size, unit in ((1e15, ""), (1e12, " T"), (1e9, " G"), (1e6, " M"), (1e4, " k")):
        if number >= size:
            return f"{number:.1e}" if not unit else f"{number / (size if size != 1e4 else 1e3):.3g}{unit}"
    return f"{number:.0f}"


def power_of_ten(text: str) -> str:
    """Return a number in the notation of programs, "2.8e-06", as people write it: "2.8·10⁻⁶"."""
    digits, e, exponent = text.partition("e")
    if not e:
        return text
    power = f"10{str(int(exponent)).translate(SUPERSCRIPT)}"
    return power if digits == "1" else f"{digits}·{power}"


def duration(seconds: float) -> str:
    """Return "0:08", "12:30", "3:05:00" or days; "unlimited" for infinity."""
    if seconds == float("inf"):
        return "unlimited"
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{count(hours / 24)} days"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
