"""Damaged files of every kind through the command: an answer, in little time and memory, and nothing else.

    python -m tests.fuzz --count 20000 --seed 0          # mutants, spread over all kinds
    python -m tests.fuzz --seconds 60 --seed 7           # as many as a minute allows
    python -m tests.fuzz --count 20 --trace              # under strace: nothing is read or written elsewhere

A mutant is a small good file with one byte changed, or several bytes changed, cut out or put in. The command reads it in
a folder of its own. It must end by itself with exit status 0, 2 or 3; within 30 seconds and 1.5 GB; with a result, or
with one line that names the file; and leave nothing but the source as it was and, perhaps, a complete output. Every
mutant that does not is kept and printed. Needs Linux.
"""

from __future__ import annotations

import argparse
import importlib
import math
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import h5py
import msgpack
import numpy as np

import spear_np
from spear_io import DumpWriter, InversionWriter, LayerArrays, RecordInfo, open_dump, open_inversion
from spear_io.cli.main import main as spear
from tests import test_convert_formats as formats
from tests.chains import network_of
from tests.convert_files import Step
from tests.io_files import fake_inversion, layer_arrays, layer_data
from tests.networks import digit_batch

GOOD_STATUSES = (0, 2, 3)
SLOWEST, LARGEST = 30.0, 1.5e9
"""Seconds, and bytes of resident memory."""

ENDED = 90.0
"""Seconds after which a mutant is ended from outside."""

TIME_LIMIT = "2"
"""Seconds of search: what is tried here is reading."""

LOADED = (
    *("spear_io.convert", "spear_io.many.run", "spear_io.show.tables", "spear_io.cli.layer_options"),
    *("scipy.io.matlab", "scipy.optimize", "safetensors", "spear_io.files.child"),
)
"""What the command loads when it needs it: here once for all mutants."""

DATA = layer_data(b=2, m=24)

Write = Callable[[Path], Any]


@dataclass(frozen=True)
class Kind:
    """A kind of file, and the commands that read it."""

    name: str
    write: Callable[[Path], Sequence[Sequence[Any]]]
    """Writes `source` into a folder, and returns commands; `out.h5` is what they may write."""

    @cached_property
    def good(self) -> tuple[dict[str, bytes], Sequence[Sequence[Any]]]:
        """The files before any damage, by name, and the commands."""
        with tempfile.TemporaryDirectory() as folder:
            commands = self.write(Path(folder))
            return {path.name: path.read_bytes() for path in Path(folder).iterdir()}, commands


# --- dumps ------------------------------------------------------------------------------------------------------------


def dump_kind(name: str, write: Write) -> Kind:
    """Return a kind of dump: most of its mutants are inspected, some inverted."""

    def commands(folder: Path) -> Sequence[Sequence[Any]]:
        write(folder / "source")
        invert = ["invert", "source", "-o", "out.h5", "--time-limit", TIME_LIMIT]
        return ["inspect", "source"], ["inspect", "source", "--json"], invert

    return Kind(name, commands)


def written(
    *, compression: str | None = None, info: RecordInfo | None = None, **changes: Any
) -> Callable[[Path], None]:
    """Return what writes a dump of one layer as the writer does it."""

    def write(path: Path) -> None:
        with DumpWriter(path, compression=compression) as dump:
            dump.add_record("client-0", {"fc1": layer_arrays(DATA, **changes)}, info=info or RecordInfo())

    return write


def all_attributes(path: Path) -> None:
    info = RecordInfo(
        input_shape=(8, 8),
        input_mean=(0.5,),
        input_std=(0.25,),
        batch_size=2,
        loss="cross_entropy",
        loss_reduction="mean",
        client="client",
        round=3,
    )
    written(info=info, between="layer_norm")(path)


def shared_model(path: Path) -> None:
    layer = layer_arrays(DATA)
    with DumpWriter(path) as dump:
        dump.add_record("first", {"fc1": layer}, labels=np.arange(2))
        update = LayerArrays(DATA.weight_grad, DATA.bias_grad)
        dump.add_record("second", {"fc1": update}, model_of="first")
        dump.add_record("third", {"conv": LayerArrays(None, kind="conv2d"), "fc1": layer_arrays(DATA)})


def chained(path: Path) -> None:
    slope = spear_np.Activation("prelu", {"slope": np.linspace(0.1, 0.3, 20)})
    network = network_of(*digit_batch(2, seed=4), widths=(24, 20), activation=["relu", slope], outputs=10)
    layers = {
        f"fc{number}": LayerArrays(one.weight_grad, one.bias_grad, one.weight, one.bias, activation=one.sigma)
        for number, one in enumerate(network.layers)
    }
    with DumpWriter(path) as dump:
        dump.add_record("r", layers, follows=True, info=RecordInfo(loss="cross_entropy"))


def by_hand(**options: Any) -> Callable[[Path], None]:
    """Return what writes a dump with h5py alone: `libver` of the file, or how the gradient is stored."""

    def write(path: Path) -> None:
        with h5py.File(path, "w", libver=options.get("libver")) as file:
            file.attrs.update({"format": "spear-gradients", "format_version": 1, "producer": "h5py"})
            layer = file.create_group("records/a/layers/fc")
            layer.attrs.update({"kind": "linear", "activation": "relu"})
            stored = {key: value for key, value in options.items() if key != "libver"}
            layer.create_dataset("weight_grad", data=DATA.weight_grad, **stored)
            layer["bias_grad"], layer["weight"], layer["bias"] = DATA.bias_grad, DATA.weight, DATA.bias

    return write


def inversion(folder: Path) -> Sequence[Sequence[Any]]:
    written()(folder / "dump.h5")
    with open_dump(folder / "dump.h5") as dump, InversionWriter(folder / "source", source="dump.h5") as out:
        (record,) = dump.records
        result = fake_inversion(record.layers[0].gradients, DATA.inputs, labels=[1, 2])
        out.add("client-0", "fc1", result, ["a note"], display=record.info)
    return [["evaluate", "source", "dump.h5"]]


PACKED = {"chunks": (8, 16), "compression": "gzip", "shuffle": True, "fletcher32": True}
DELTA = RecordInfo(update="weight_delta", learning_rate=0.05, local_steps=2)
DUMPS = (
    dump_kind("dump", written()),
    dump_kind("dump, attributes", all_attributes),
    dump_kind("dump, gzip", written(compression="gzip")),
    dump_kind("dump, lzf", written(compression="lzf")),
    dump_kind("dump, gzip, shuffle and checksums", by_hand(**PACKED)),
    dump_kind("dump, oldest HDF5", by_hand()),  # without checksums of what describes the data
    dump_kind("dump, newest HDF5", by_hand(libver="latest")),
    dump_kind("dump, float16 delta", written(info=DELTA, weight_grad=DATA.weight_grad.astype(np.float16))),
    dump_kind("dump, shared model", shared_model),
    dump_kind("dump, chain", chained),
    Kind("inversion", inversion),
)


# --- what is converted ------------------------------------------------------------------------------------------------

SMALL = {
    "fc1.weight": np.arange(15, dtype=np.float32).reshape(5, 3),
    "fc1.bias": np.arange(5, dtype=np.float32),
    "fc2.weight": np.ones((2, 5), np.float32),
    "fc2.bias": np.ones(2, np.float32),
}
STEP = Step(SMALL, SMALL, SMALL, np.zeros((1, 3)))


def npy_file(folder: Path, step: Step) -> list[Any]:
    np.save(folder / "dW.npy", step.gradients["fc1.weight"])
    return [folder / "dW.npy", "--orientation", "mn"]


def flax_msgpack(folder: Path, step: Step) -> list[Any]:
    """As Flax packs its arrays, whether it is there or not."""
    arrays = {
        name: msgpack.ExtType(1, msgpack.packb((array.shape, array.dtype.name, array.tobytes())))
        for name, array in step.gradients.items()
    }
    (folder / "a").write_bytes(msgpack.packb({"grads": {"fc": arrays}}))
    return [folder / "a", "--orientation", "mn"]


def keras_weights(folder: Path, step: Step) -> list[Any]:
    """As Keras 3 lays out its layers, whether it is there or not."""
    with h5py.File(folder / "a", "w") as file:
        file.create_group("vars").attrs["name"] = "sequential"
        for number, array in enumerate((step.gradients["fc1.weight"].T, step.gradients["fc1.bias"])):
            file[f"layers/dense/vars/{number}"] = array
        file["layers/dense/vars"].attrs["name"] = "first"
    return [folder / "a", "--gradients"]


def keras_archive(folder: Path, step: Step) -> list[Any]:
    """As Keras 3 packs a model, whether it is there or not."""
    import json
    import zipfile

    dense = [{"class_name": "Dense", "config": {"name": "first", "activation": "relu", "units": 5}}]
    config = {"class_name": "Sequential", "config": {"name": "sequential", "layers": dense}}
    (weights, *options) = keras_weights(folder, step)
    with zipfile.ZipFile(folder / "b", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", json.dumps(config))
        archive.write(weights, "model.weights.h5")
    weights.unlink()
    return [folder / "b", *options]


CONVERTED: tuple[formats.Writer, ...] = (
    *(writer for writer in formats.WRITERS if writer is not formats.npy_folder),
    *(npy_file, flax_msgpack, keras_weights, keras_archive),
)
"""One for each format of `convert`, and for what differs within one."""


def convert_kind(writer: formats.Writer) -> Kind:
    def commands(folder: Path) -> Sequence[Sequence[Any]]:
        source, *options = writer(folder, STEP)
        source.rename(folder / "source")
        options = [option.name if isinstance(option, Path) else option for option in options]
        if writer is npy_file:  # whose array has the name of the file
            options += ["--map", "weight_grad=source"]
        return [["convert", "source", "out.h5", *options]]

    return Kind(f"convert {writer.__name__}", commands)


KINDS = (*DUMPS, *(convert_kind(writer) for writer in CONVERTED))


# --- mutants ----------------------------------------------------------------------------------------------------------


def one_byte(content: bytes, rng: np.random.Generator) -> bytes:
    """Return the content with one byte changed; half of the time to one of few values."""
    raw = bytearray(content)
    raw[int(rng.integers(len(raw)))] = int(rng.choice([0, 1, 0x7F, 0x80, 0xFF, *rng.integers(256, size=5)]))
    return bytes(raw)


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """Return the content with bytes changed, cut out, or put in."""
    raw = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        # Headers and directories are where the damage tells: half of it goes to the first and last bytes.
        near = int(rng.integers(min(len(raw), 300)))
        at = [int(rng.integers(len(raw))), near, len(raw) - 1 - near, near][rng.integers(4)]
        kind = rng.integers(6)
        if kind < 3:
            raw[at] = rng.integers(256) if kind else raw[at] ^ (1 << int(rng.integers(8)))
        elif kind == 3:
            raw[at : at + 8] = bytes([0xFF, 0x7F][int(rng.integers(2))] for _ in range(8))
        elif kind == 4:
            del raw[at : at + int(rng.integers(1, 20))]
        else:
            raw[at:at] = raw[: int(rng.integers(1, 20))]
        raw = raw or bytearray(b"\0")
    return bytes(raw)


@dataclass(frozen=True)
class Mutant:
    """A damaged file, made again from its kind, seed and number alone."""

    kind: Kind
    seed: int
    number: int

    def write(self, folder: Path) -> list[str]:
        """Write it, and what it is read beside, into an empty folder; return the command."""
        files, commands = self.kind.good
        rng = np.random.default_rng([self.seed, self.number])
        change = one_byte if rng.random() < 0.7 else mutated
        for name, content in files.items():
            (folder / name).write_bytes(change(content, rng) if name == "source" else content)
        return [str(word) for word in commands[int(rng.integers(len(commands)))]]


def mutants(seed: int) -> Iterator[Mutant]:
    """Yield mutants of one kind after the other without end."""
    for number in count():
        yield Mutant(KINDS[number % len(KINDS)], seed, number)


@dataclass(frozen=True)
class Outcome:
    """What the command made of a mutant."""

    mutant: Mutant
    command: list[str]
    status: int
    """Exit status; minus the number of a signal."""
    seconds: float
    processor: float
    memory: int
    """Bytes resident, at most."""
    out: str
    err: str
    problems: list[str] = field(default_factory=list)


def attempt(mutant: Mutant, folder: Path) -> Outcome:
    """Run the command on a mutant in `folder`, which is empty, and hold the answer against what is promised."""
    place = folder / "place"
    place.mkdir()
    command = mutant.write(place)
    before = {path.name: path.read_bytes() for path in place.iterdir()}
    started = time.monotonic()
    child = os.fork()
    if not child:
        _become(command, place, folder)
    while True:
        ended, status, usage = os.wait4(child, os.WNOHANG)
        if ended:
            break
        if time.monotonic() - started > ENDED:
            os.kill(child, signal.SIGKILL)  # the other process of the command follows it
        time.sleep(0.002)
    seconds = time.monotonic() - started
    outcome = Outcome(
        mutant,
        command,
        os.waitstatus_to_exitcode(status),
        seconds,
        usage.ru_utime + usage.ru_stime,
        usage.ru_maxrss * 1024,
        (folder / "out").read_text(errors="replace"),
        (folder / "err").read_text(errors="replace"),
    )
    outcome.problems.extend(problems(outcome, place, before))
    return outcome


def _become(command: list[str], place: Path, folder: Path) -> None:
    """Be the command, in its folder, with files for its streams; never returns."""
    status = 99
    try:
        os.chdir(place)
        for number, name in ((1, "out"), (2, "err")):
            stream = os.open(folder / name, os.O_CREAT | os.O_WRONLY)
            os.dup2(stream, number)
            os.close(stream)
        sys.stdin = open(os.devnull)  # noqa: PTH123, SIM115
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        sys.argv = ["spear-np", *command]
        status = spear()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


def problems(outcome: Outcome, place: Path, before: dict[str, bytes]) -> Iterator[str]:
    """Yield what is not as promised, where `before` are the files that were in `place`."""
    if outcome.status not in GOOD_STATUSES:
        yield f"exit status {outcome.status}"
    if outcome.seconds > SLOWEST:
        yield f"{outcome.seconds:.0f} s"
    if outcome.memory > LARGEST:
        yield f"{outcome.memory / 1e9:.2f} GB"
    if "Traceback" in outcome.err:
        yield "a traceback"
    output = place / "out.h5"
    if outcome.status == 2:
        if outcome.err.count("\n") != 1 or not re.search("source|out.h5", outcome.err) or outcome.out:
            yield "not one line that names a file"
        if output.exists():
            yield "an output after an error"
    elif not outcome.out:
        yield "no result"
    after = {path.name: path.read_bytes() for path in place.iterdir()}
    after.pop("out.h5", None)
    if after != before:
        yield f"other files: {sorted(set(after) ^ set(before)) or 'changed'}"
    if output.exists():
        opener: Any = open_inversion if outcome.command[0] == "invert" else open_dump
        try:
            with opener(output) as opened:
                _ = opened.layers if outcome.command[0] == "invert" else opened.records[0].layers
        except Exception as error:  # noqa: BLE001  (whatever it is, it is to be told)
            yield f"an output that cannot be read: {error}"


# --- the system calls -------------------------------------------------------------------------------------------------

CALLS = "file,network,ftruncate"
QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
CHANGES = re.compile(
    r"O_WRONLY|O_RDWR|O_CREAT|O_TRUNC|^(unlink|rename|mkdir|rmdir|link|symlink|truncate|chmod|chown|mknod)"
)
NOTHING = re.compile(r"/dev/(null|full|tty)|/dev/shm/sem\..*|/proc/self/.*")


def traced(mutant: Mutant, folder: Path) -> Outcome:
    """As `attempt`, under strace: a problem is every file outside of its folder that the command changes, or reads.

    Read elsewhere may be what programs are made of, and what the system says of itself.
    """
    place = folder / "place"
    place.mkdir()
    command = mutant.write(place)
    before = {path.name: path.read_bytes() for path in place.iterdir()}
    log = folder / "log"
    words = ["strace", "-f", "-qq", "-s", "4096", "-e", f"trace={CALLS}", "-o", str(log)]
    started = time.monotonic()
    done = subprocess.run(
        [*words, sys.executable, "-B", "-m", "spear_io", *command],
        cwd=place,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    outcome = Outcome(
        mutant, command, done.returncode, time.monotonic() - started, 0.0, 0, done.stdout, done.stderr
    )
    outcome.problems.extend(p for p in problems(outcome, place, before) if not p.endswith(" s"))
    programs = (sys.prefix, sys.base_prefix, *sys.path, "/usr", "/lib", "/lib64", "/bin", "/sbin", "/opt")
    system = ("/etc", "/proc", "/sys", "/dev/null", "/dev/urandom")
    roots = [root for root in (*programs, *system) if root]
    for line in log.read_text(errors="replace").splitlines():
        call = line.split(" ", 1)[-1].lstrip()
        if call.startswith(("socket(", "connect(", "bind(")):
            outcome.problems.append(call)
        names = [name.encode().decode("unicode_escape") for name in QUOTED.findall(call.split(" = ")[0])]
        changes = CHANGES.search(call) is not None
        for name in names if not call.startswith("exec") else ():
            path = Path(os.path.normpath(place / name))
            if (
                path.is_relative_to(place)
                or NOTHING.fullmatch(name)
                or call.rstrip().endswith("(No such file or directory)")
            ):
                continue
            known = any(os.path.realpath(path).startswith(os.path.realpath(root)) for root in roots)
            above = any(
                one.is_relative_to(path) for one in (place, *map(Path, filter(None, programs)))
            )  # on the way there
            if changes or not (known or above):
                outcome.problems.append(f"{'changes' if changes else 'reads'} {path}: {call[:200]}")
    return outcome


# --- the command ------------------------------------------------------------------------------------------------------


def run(chosen: Iterable[Mutant], *, keep: Path | None = None, trace: bool = False) -> Iterator[Outcome]:
    """Try mutants one by one; those that break a promise are kept in `keep`."""
    for mutant in chosen:
        with tempfile.TemporaryDirectory(prefix="spear-fuzz-") as name:
            outcome = (traced if trace else attempt)(mutant, Path(name).resolve())
            if outcome.problems and keep is not None:
                kept = keep / f"{mutant.seed}-{mutant.number}"
                shutil.copytree(Path(name) / "place", kept, dirs_exist_ok=True)
        yield outcome


def table(outcomes: Sequence[Outcome]) -> str:
    """Return what came out, a line for each kind."""
    lines = [
        f"{'kind':40} {'mutants':>7} {'0':>6} {'2':>6} {'3':>6} {'other':>6} {'s':>6} {'MB':>6} {'broken':>6}"
    ]
    by_kind: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        by_kind.setdefault(outcome.mutant.kind.name, []).append(outcome)
    for name, group in [*sorted(by_kind.items()), ("all", list(outcomes))]:
        statuses = Counter(outcome.status for outcome in group)
        figures = [len(group), *(statuses[status] for status in GOOD_STATUSES)]
        figures.append(len(group) - sum(figures[1:]))
        slowest = max((outcome.seconds for outcome in group), default=0)
        largest = max((outcome.memory for outcome in group), default=0)
        broken = sum(bool(outcome.problems) for outcome in group)
        lines.append(
            f"{name:40} "
            + f"{figures[0]:7} "
            + " ".join(f"{figure:6}" for figure in figures[1:])
            + f" {slowest:6.1f} {largest / 1e6:6.0f} {broken:6}"
        )
    ended = Counter(
        cause[1]
        for outcome in outcomes
        if (cause := re.search(r"reading it ended the process \(([^)]*)", outcome.err))
    )
    lines.extend(f"ended while reading: {number} by {cause}" for cause, number in ended.most_common())
    return "\n".join(lines)


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=sys.maxsize, help="of mutants")
    parser.add_argument("--first", type=int, default=0, help="number of the first one")
    parser.add_argument("--seconds", type=float, help="to stop after")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--keep", type=Path, default=Path("broken-mutants"), help="folder for those that break a promise"
    )
    parser.add_argument("--trace", action="store_true", help="under strace")
    parser.add_argument("--only", default="", help="kinds whose name this regular expression finds")
    return parser.parse_args(arguments)


def main() -> int:
    options = parsed()
    if options.count == sys.maxsize and options.seconds is None:
        print("say --count or --seconds")
        return 2
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for module in LOADED:
        importlib.import_module(module)
    started = time.monotonic()
    end, seconds = options.first + options.count, options.seconds or math.inf
    chosen = takewhile(
        lambda one: one.number < end and time.monotonic() - started < seconds, mutants(options.seed)
    )
    wanted = (one for one in chosen if one.number >= options.first and re.search(options.only, one.kind.name))
    outcomes: list[Outcome] = []
    for outcome in run(wanted, keep=options.keep, trace=options.trace):
        mutant = outcome.mutant
        outcomes.append(outcome)
        if outcome.problems:
            print(
                f"seed {mutant.seed}, mutant {mutant.number}, {mutant.kind.name}: spear-np {' '.join(outcome.command)}: "
                f"{'; '.join(outcome.problems)}\n    {outcome.err.strip()[:500]}",
                flush=True,
            )
        if len(outcomes) % 1000 == 0:
            print(f"… {len(outcomes)} mutants, {time.monotonic() - started:.0f} s", flush=True)
    print(
        f"{len(outcomes)} mutants of seed {options.seed}, {time.monotonic() - started:.0f} s\n{table(outcomes)}"
    )
    return int(any(outcome.problems for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
