"""Many records: whoever works on them, whatever ends the run, the file is the same and nothing that was done is lost."""

from __future__ import annotations

import errno
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import spear_io
import spear_np
from spear_io import FileError, Workers, invert_dumps, open_inversion
from spear_io.files.atomic import new_hdf5
from spear_io.many import journal as journals
from spear_io.many.assemble import Output
from spear_io.many.executors import ExecutorError
from spear_io.many.run import Nobody
from spear_io.many.selection import Task
from spear_io.many.task import Done
from tests.federations import beside, spear_process, timeless, write_federation
from tests.io_files import Command, command

RECORDS = 6

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and locks of POSIX")


@pytest.fixture(scope="module")
def dump(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("federation") / "dump.h5"
    write_federation(path, RECORDS)
    return path


@pytest.fixture(scope="module")
def undisturbed(dump: Path) -> bytes:
    out = dump.with_name("undisturbed.h5")
    done = invert_dumps(dump, out)
    assert done.statuses == {"exact": RECORDS}
    return timeless(out)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.h5"


@pytest.fixture
def spear(capsys: pytest.CaptureFixture[str]) -> Command:
    return command(capsys)


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    with Workers(2) as pool:
        yield pool


def journal_of(out: Path) -> Path:
    return out.with_name(out.name + ".journal")


class EndsAfter(Nobody):
    """Raises, or asks for an end, once some layers are done."""

    def __init__(self, count: int, error: BaseException | None = None) -> None:
        self.left, self.error = count, error
        self.done: list[int] = []

    def end(self, task: Task, done: Done) -> None:
        self.done.append(task.number)
        self.left -= 1
        if self.left == 0 and self.error is not None:
            raise self.error

    def stop(self) -> bool:
        return self.left <= 0


def test_whoever_works_the_file_is_the_same(
    dump: Path, undisturbed: bytes, out: Path, workers: Workers
) -> None:
    invert_dumps(dump, out, executor=workers)
    assert timeless(out) == undisturbed
    with ThreadPoolExecutor(1) as pool:
        invert_dumps(dump, out, executor=pool)
    assert timeless(out) == undisturbed
    assert beside(out, []) == []


@pytest.mark.parametrize("error", [ZeroDivisionError("a defect"), KeyboardInterrupt()], ids=repr)
def test_what_was_finished_is_taken_up_again(
    dump: Path, undisturbed: bytes, out: Path, error: BaseException
) -> None:
    with pytest.raises(type(error)):
        invert_dumps(dump, out, audience=EndsAfter(2, error))
    assert not out.exists()
    kept = sorted(journal_of(out).glob("*.h5"))
    assert 2 <= len(kept) < RECORDS
    for path in kept:  # each is an inversion by itself
        with open_inversion(path) as inversion:
            assert inversion.layers[0].status == "exact"
    watching = EndsAfter(-1)
    done = invert_dumps(dump, out, resume=True, audience=watching)
    assert watching.done == list(range(len(kept), RECORDS))
    assert done.statuses == {"exact": RECORDS}
    assert timeless(out) == undisturbed
    assert beside(out, []) == []


def test_an_end_that_is_asked_for_writes_what_was_found_and_keeps_it(
    dump: Path, undisturbed: bytes, out: Path
) -> None:
    watching = EndsAfter(3)
    done = invert_dumps(dump, out, audience=watching, stop=watching.stop)
    assert done.statuses["exact"] + done.statuses["failed"] == RECORDS
    assert done.statuses["exact"] >= 3
    assert (done.unfinished, done.journal) == (done.statuses["failed"], journal_of(out))
    with open_inversion(out) as inversion:
        reasons = [layer.reason for layer in inversion.layers if layer.status == "failed"]
        assert reasons == ["stopped before it began"] * done.unfinished
        assert [layer.display.client for layer in inversion.layers] == [
            f"client-{number}" for number in range(RECORDS)
        ]
    done = invert_dumps(dump, out, resume=True)
    assert (done.unfinished, done.journal) == (0, None)
    assert timeless(out) == undisturbed
    assert beside(out, []) == []


def test_a_run_that_is_complete_is_not_done_again(dump: Path, out: Path) -> None:
    invert_dumps(dump, out)
    before = out.read_bytes()
    watching = EndsAfter(-1)
    done = invert_dumps(dump, out, resume=True, audience=watching)
    assert done.statuses == {"exact": RECORDS}
    assert any("complete already" in note for note in done.notes)
    assert watching.done == []
    assert out.read_bytes() == before
    assert beside(out, []) == []
    invert_dumps(dump, out, resume=True, seed=1, audience=watching)
    assert len(watching.done) == RECORDS


def test_the_total_time_ends_it_and_leaves_the_rest(dump: Path, out: Path) -> None:
    done = invert_dumps(dump, out, total_time=0)
    assert done.statuses == {"failed": RECORDS}
    assert done.unfinished == RECORDS
    assert done.journal is None  # nothing to go on from
    assert beside(out, []) == []


def test_cheap_layers_come_first(tmp_path: Path) -> None:
    for name, m, b in (("a", 60, 8), ("b", 40, 3), ("c", 50, 4)):
        write_federation(tmp_path / f"{name}.h5", 1, m=m, b=b)
        with h5py.File(tmp_path / f"{name}.h5", "r+") as file:
            file["records/record-0"].attrs["batch_size"] = b
    watching = EndsAfter(-1)
    invert_dumps([tmp_path / f"{name}.h5" for name in "abc"], tmp_path / "out.h5", audience=watching)
    assert watching.done == [1, 2, 0]
    with open_inversion(tmp_path / "out.h5") as inversion:
        assert [layer.record for layer in inversion.layers] == ["a:record-0", "b:record-0", "c:record-0"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 5}, "--seed was 0, and is 5"),
        ({"time_limit": 5.0}, "--time-limit was 600.0, and is 5.0"),
        ({"records": ["record-1"]}, "the chosen layers differ"),
        ({"split": True}, "--split was False, and is True"),
    ],
)
def test_other_options_do_not_resume(dump: Path, out: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ZeroDivisionError):
        invert_dumps(dump, out, audience=EndsAfter(2, ZeroDivisionError()))
    with pytest.raises(FileError, match="belongs to another run") as caught:
        invert_dumps(dump, out, resume=True, **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(list(journal_of(out).glob("*.h5"))) >= 2  # nothing is lost


def test_another_dump_does_not_resume(dump: Path, tmp_path: Path, out: Path) -> None:
    other = tmp_path / "dump.h5"
    other.write_bytes(dump.read_bytes())
    with pytest.raises(ZeroDivisionError):
        invert_dumps(other, out, audience=EndsAfter(2, ZeroDivisionError()))
    os.utime(other, ns=(1, 1))
    with pytest.raises(FileError, match="another run: the dumps differ"):
        invert_dumps(other, out, resume=True)


def test_finished_layers_are_not_thrown_away_unasked(dump: Path, undisturbed: bytes, out: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        invert_dumps(dump, out, audience=EndsAfter(2, ZeroDivisionError()))
    with pytest.raises(FileError, match=r"left \d finished layer\(s\); say --resume"):
        invert_dumps(dump, out)
    watching = EndsAfter(-1)
    invert_dumps(dump, out, replace=True, audience=watching)
    assert len(watching.done) == RECORDS
    assert timeless(out) == undisturbed


def test_a_second_run_on_one_output_is_refused(
    dump: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journals, "PATIENCE", 0.1)
    refused: list[str] = []

    class Meanwhile(Nobody):
        def end(self, task: Task, done: Done) -> None:
            if not refused:
                with pytest.raises(FileError, match="another run is writing this output") as caught:
                    invert_dumps(dump, out, resume=True)
                refused.append(str(caught.value))

    invert_dumps(dump, out, audience=Meanwhile())
    assert len(refused) == 1
    assert beside(out, []) == []


def test_a_full_disk_ends_the_run_and_keeps_what_was_finished(
    dump: Path, undisturbed: bytes, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Counter[str]()
    replace = Path.replace

    def full(self: Path, target: Path) -> Path:
        calls["replace"] += target.suffix == ".h5"
        if calls["replace"] > 3 and target.suffix == ".h5":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(FileError, match=r"No space left on device.*; 3 of 6 layers are finished and kept"):
        invert_dumps(dump, out)
    monkeypatch.undo()
    assert not out.exists()
    invert_dumps(dump, out, resume=True)
    assert timeless(out) == undisturbed
    assert beside(out, []) == []


def test_a_folder_that_cannot_be_written_shows_before_any_search(
    dump: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*arguments: Any, **options: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "mkdir", refused)
    watching = EndsAfter(-1)
    with pytest.raises(FileError, match="Permission denied"):
        invert_dumps(dump, out, audience=watching)
    assert watching.done == []


def end_yourself(number: int) -> None:
    os.kill(os.getpid(), number)


def a_number() -> int:
    return 7


def test_a_worker_that_dies_costs_only_its_call(workers: Workers) -> None:
    with pytest.raises(spear_io.ChildError, match="the process that computed was ended"):
        workers.submit(end_yourself, signal.SIGKILL).result(timeout=60)
    assert workers.submit(a_number).result(timeout=60) == 7


class Dying(Workers):
    """Ends the process of one task, the first time or every time."""

    def __init__(self, number: int, *, often: bool) -> None:
        super().__init__(1)
        self.number, self.often = number, often

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        if args[0].number == self.number:
            self.number = self.number if self.often else -1
            return super().submit(end_yourself, signal.SIGKILL)
        return super().submit(fn, *args, **kwargs)


def test_a_record_whose_worker_was_killed_is_tried_again(dump: Path, undisturbed: bytes, out: Path) -> None:
    with Dying(2, often=False) as pool:
        done = invert_dumps(dump, out, executor=pool)
    assert done.unread == ()
    assert timeless(out) == undisturbed


def test_a_record_that_kills_its_workers_is_reported_and_left_for_later(
    dump: Path, undisturbed: bytes, out: Path
) -> None:
    with Dying(2, often=True) as pool:
        done = invert_dumps(dump, out, executor=pool)
    (unread,) = done.unread
    assert unread.record == "record-2"
    assert "signal 9" in str(unread.error)
    assert done.statuses == {"exact": RECORDS - 1}
    assert done.journal == journal_of(out)
    invert_dumps(dump, out, resume=True)
    assert timeless(out) == undisturbed


BROKEN = BrokenProcessPool("a child process terminated abruptly")


class Broken(ThreadPoolExecutor):
    """Breaks after a few calls."""

    def __init__(self, calls: int, *, when: str) -> None:
        super().__init__(1)
        self.calls, self.when = calls, when

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.calls -= 1
        if self.calls >= 0:
            return super().submit(fn, *args, **kwargs)
        if self.when == "at once":
            raise BROKEN
        future: Future[Any] = Future()
        if self.when == "later":
            future.set_exception(BROKEN)
        else:
            future.cancel()
            future.set_running_or_notify_cancel()
        return future


@pytest.mark.parametrize("when", ["at once", "later", "cancelled"])
def test_an_executor_that_dies_is_one_line(dump: Path, undisturbed: bytes, out: Path, when: str) -> None:
    with Broken(3, when=when) as pool, pytest.raises(ExecutorError) as caught:
        invert_dumps(dump, out, executor=pool)
    message = str(caught.value)
    assert "\n" not in message
    assert "those who work do not answer any more" in message
    invert_dumps(dump, out, resume=True)
    assert timeless(out) == undisturbed


def test_a_dump_that_vanishes_costs_its_records(tmp_path: Path, out: Path) -> None:
    for name in ("a", "b"):
        write_federation(tmp_path / f"{name}.h5", 2, first=ord(name))

    class Removes(Nobody):
        def end(self, task: Task, done: Done) -> None:
            (tmp_path / "b.h5").unlink(missing_ok=True)

    done = invert_dumps([tmp_path / "a.h5", tmp_path / "b.h5"], out, audience=Removes())
    assert done.statuses == {"exact": 2}
    assert [one.name for one in done.unread] == ["b:record-98", "b:record-99"]
    with open_inversion(out) as inversion:
        assert [one.source for one in inversion.unread] == ["b.h5", "b.h5"]
        assert all("no such file" in one.problem for one in inversion.unread)


def test_stale_files_of_dead_runs_are_removed_and_those_of_living_ones_stay(dump: Path, out: Path) -> None:
    stale = out.with_name(".spear-np-0123456789ab.partial")
    stale.write_bytes(b"half of a file")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("spear_io.files.atomic._nameless", lambda folder: None)
        with new_hdf5(out.with_name("other.h5"), kind="spear-inversion", version=1):
            (living,) = set(out.parent.glob(".spear-np-*")) - {stale}
            invert_dumps(dump, out)
            assert not stale.exists()
            assert living.exists()


def test_unfinished_entries_of_a_dead_run_count_for_nothing(
    dump: Path, undisturbed: bytes, out: Path
) -> None:
    with pytest.raises(ZeroDivisionError):
        invert_dumps(dump, out, audience=EndsAfter(2, ZeroDivisionError()))
    folder = journal_of(out)
    (folder / "00000003.written").write_bytes(b"half")
    (folder / "00000004.cut").write_bytes(b"half")
    (folder / "stop").touch()
    invert_dumps(dump, out, resume=True)
    assert timeless(out) == undisturbed


def test_one_file_for_each_record(dump: Path, tmp_path: Path) -> None:
    folder = tmp_path / "split"
    done = invert_dumps(dump, folder, split=True)
    assert [path.name for path in done.files] == [f"record-{number}.h5" for number in range(RECORDS)]
    for number, path in enumerate(done.files):
        with open_inversion(path) as inversion:
            (layer,) = inversion.layers
            assert (layer.record, layer.status) == (f"record-{number}", "exact")
    assert beside(folder, []) == []


def test_names_of_records_become_names_of_files() -> None:
    names = ("a/../b", "..", ".hidden", "A", "a", "x" * 300, "naïve")
    output = Output(Path("out"), split=True, sources=(), names=names, replace=False)
    files = [path.name for path in output.files]
    assert len({name.casefold() for name in files}) == len(names)
    assert all(len(name) < 200 and "/" not in name and not name.startswith(".") for name in files)
    assert [held for (held,) in output.files.values()] == list(names)


SLOW = """
import sys, time
import spear_io.many.task as task
from spear_io.cli.main import main

def slow(*arguments, **options):
    time.sleep(0.2)
    return invert(*arguments, **options)

invert, task._inverted = task._inverted, slow
sys.exit(main())
"""


def wait_for_entries(out: Path, count: int) -> None:
    deadline = time.monotonic() + 90
    while len(list(journal_of(out).glob("*.h5"))) < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_a_kill_leaves_is_taken_up_again(dump: Path, undisturbed: bytes, out: Path) -> None:
    process = spear_process("invert", dump, "-o", out, "-q", code=SLOW)
    wait_for_entries(out, 2)
    process.kill()
    process.communicate(timeout=60)
    assert not out.exists()
    process = spear_process("invert", dump, "-o", out, "-q", "--resume", "--jobs", 2)
    shown, error = process.communicate(timeout=120)
    assert (process.returncode, shown, error) == (0, "", "")
    assert timeless(out) == undisturbed
    assert beside(out, []) == []


@pytest.fixture
def heeded_signals() -> Iterator[None]:
    """What `nohup` has a test run ignore, the processes that it starts would ignore as well."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("heeded_signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
@pytest.mark.parametrize("jobs", [(), ("--jobs", "2")], ids=["here", "jobs"])
def test_what_schedulers_send_ends_it_in_order(
    dump: Path, undisturbed: bytes, out: Path, number: signal.Signals, jobs: tuple[str, ...]
) -> None:
    process = spear_process("invert", dump, "-o", out, *jobs, code=SLOW if not jobs else SLOW_WORKERS)
    wait_for_entries(out, 2)
    process.send_signal(number)
    process.send_signal(number)  # as often as they like
    _, error = process.communicate(timeout=90)
    assert process.returncode == 3
    assert "are kept for --resume" in error
    with open_inversion(out) as inversion:
        statuses = Counter(str(layer.status) for layer in inversion.layers)
    assert statuses["exact"] >= 2
    assert statuses["failed"] >= 1
    assert len(list(journal_of(out).glob("*.h5"))) == statuses["exact"]
    invert_dumps(dump, out, resume=True)
    assert timeless(out) == undisturbed


SLOW_WORKERS = """
import sys, time
from spear_io.cli.main import main
from spear_io.many import workers

workers.PROGRAM = "import time, spear_io.many.task as task; old = task._inverted; " \\
    "task._inverted = lambda *a, **o: (time.sleep(0.4), old(*a, **o))[1]; " + workers.PROGRAM
workers.PROGRAM = "import sys; sys.path[:] = {path!r}; " + workers.PROGRAM
sys.exit(main())
"""


def test_a_file_that_crashes_its_reader_costs_only_its_record(dump: Path, out: Path) -> None:
    crash = (
        "import ctypes, spear_io.many.task as task; old = task._inverted; "
        "task._inverted = lambda record, *a, **o: "
        "ctypes.string_at(0) if record.name == 'record-3' else old(record, *a, **o); "
    )
    code = f"""
import sys
from spear_io.cli.main import main
from spear_io.many import workers

workers.PROGRAM = "import sys; sys.path[:] = {{path!r}}; " + {crash!r} + workers.PROGRAM
sys.exit(main())
"""
    process = spear_process("invert", dump, "-o", out, "--jobs", 1, code=code)
    shown, error = process.communicate(timeout=90)
    assert process.returncode == 3
    assert "the process that computed was ended (signal 11" in error
    assert "record-3 could not be used" in shown
    with open_inversion(out) as inversion:
        assert len(inversion.layers) == RECORDS - 1


def test_the_command_tells_of_many(spear: Command, dump: Path, tmp_path: Path) -> None:
    out, log = tmp_path / "out.h5", tmp_path / "log.txt"
    run = spear("invert", dump, "-o", out, "-v", "--log", log, "--client", "client-[0-2]")
    assert run.status == 0
    assert "3 layers\n" in run.err
    assert run.err.count(": exact, ") == 3
    assert "1 of 3 layers: record-0, fc1: exact" in log.read_text()
    for column in ("client", "round", "worst bound"):
        assert column in run.out
    inspected = spear("inspect", out)
    assert inspected.status == 0
    table = [line for line in run.out.splitlines() if "record-" in line]
    assert [line for line in inspected.out.splitlines() if "record-" in line] == table
    document = json.loads(spear("inspect", out, "--json").out)
    assert [layer["client"] for layer in document["layers"]] == ["client-0", "client-1", "client-2"]
    assert spear("invert", dump, "-o", out, "-q") == type(run)(0, "", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--jobs", 2, "--dask", "x:1"], "cannot be combined"),
        (["--total-time", "nan"], "--total-time"),
        (["--jobs", 0], "--jobs"),
        (["--client", "nobody"], "there is no client 'nobody'"),
        (["--record", "x*"], "there is no record 'x*'"),
        (["--record", "x*", "--record", "record-1"], "there is no record 'x*'"),
        (["--summary", "table.xlsx"], "end it in one of '.csv', '.json', '.parquet'"),
        (["--summary", "no/such/table.csv"], "does not exist"),
        (["--log", "no/such/log"], "cannot be written (No such file"),
    ],
)
def test_bad_usage_is_one_line(
    spear: Command, dump: Path, tmp_path: Path, arguments: list[Any], message: str
) -> None:
    run = spear("invert", dump, "-o", tmp_path / "out.h5", *arguments)
    assert run.status == 2
    assert message in run.error
    assert list(tmp_path.iterdir()) == []


def test_the_seconds_and_statuses_of_a_done_task_are_small(dump: Path, tmp_path: Path) -> None:
    import pickle

    seen: list[tuple[Task, Done]] = []

    class Collects(Nobody):
        def end(self, task: Task, done: Done) -> None:
            seen.append((task, done))

    invert_dumps(dump, tmp_path / "out.h5", audience=Collects())
    assert all(len(pickle.dumps(pair)) < 4000 for pair in seen)
    assert all(done.seconds > 0 for _, done in seen)


def test_the_result_of_a_run_says_what_it_rests_on(dump: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.h5"
    invert_dumps(dump, out)
    with open_inversion(out) as inversion, spear_io.open_dump(dump) as opened:
        for layer, record in zip(inversion.layers, opened.records, strict=True):
            again = spear_np.invert_layer(record.layers[0].gradients, device="cpu")
            assert layer.details.whole_certificate.as_dict() == again.certificate.as_dict()
            np.testing.assert_array_equal(layer.inputs[:], again.inputs)
