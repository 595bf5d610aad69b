"""How long the command takes until it shows its help: processor time of whole processes.

    python -m benchmarks.startup --save startup

User and system time of the process, the interpreter and NumPy included; the median of ten runs after one that writes
the bytecode. Wall-clock time would measure the disk and whatever else runs. POSIX only: the time is that of `wait4`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys

from benchmarks import environment

COMMAND = ("-m", "spear_io")
CASES = {
    "python -c pass": ("-c", "pass"),
    "import numpy": ("-c", "import numpy"),
    "import spear_np": ("-c", "import spear_np"),
    "spear-np --help": (*COMMAND, "--help"),
    "spear-np --version": (*COMMAND, "--version"),
    "spear-np inspect --help": (*COMMAND, "inspect", "--help"),
}
"""What the interpreter is started with; the first two are the yardstick."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=10, help="of each case")
    parser.add_argument("--save", metavar="NAME", help="write results/NAME.json and results/NAME.md")
    options = parser.parse_args()

    setting = environment.describe()
    seconds = {}
    for name, arguments in CASES.items():
        processor_time(*arguments)  # writes the bytecode
        seconds[name] = [processor_time(*arguments) for _ in range(options.runs)]
    rows = [
        (f"`{name}`", f"{statistics.median(runs):.3f}", f"{min(runs):.3f}", f"{max(runs):.3f}")
        for name, runs in seconds.items()
    ]
    header = ("process", "processor time, s", "least", "most")
    table = (
        f"User and system time of the whole process, median of {options.runs} runs\n\n"
        f"{environment.markdown(header, rows)}\n{environment.sentence(setting)}\n"
    )
    print(table)
    if options.save:
        data = {"environment": setting, "runs": options.runs, "seconds": seconds}
        environment.save(environment.RESULTS / options.save, data, table)


def processor_time(*arguments: str) -> float:
    """Run this interpreter with `arguments` and return the user and system time it took, in seconds.

    Raises
    ------
    RuntimeError
        If it ends with another exit status than 0.
    """
    quiet = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    process = os.posix_spawn(sys.executable, [sys.executable, *arguments], os.environ, file_actions=quiet)
    _, status, usage = os.wait4(process, 0)
    if status:
        msg = f"python {' '.join(arguments)} ended with status {os.waitstatus_to_exitcode(status)}"
        raise RuntimeError(msg)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
