"""Files from strangers are read apart: what crashes, loops or devours memory there is one line here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import spear_io
from spear_io import ChildError, FileError, in_child, open_dump
from spear_io.__main__ import run
from spear_io.files import child, limits
from spear_io.files.child import death
from spear_io.files.limits import Doing, Note, reading_file
from tests.io_files import layer_data, write_good_dump

# JAX, where another test has loaded it, warns of any fork.
pytestmark = pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": f"{ROOT}:{ROOT / 'io'}",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}

STAND_IN = """
import ctypes, os, signal, sys, time
import numpy as np
from spear_io.cli.main import main
from spear_io.files import limits, storage

limits.SECONDS = 1.0

def slice_of(self, key):
    with limits.reading_block(self.place.file, 1000):
        {reading}
    return np.zeros(1)

def survey(*arguments, **options):
    {computing}

if {reading!r}:
    storage.StoredArray.__getitem__ = slice_of
else:
    import spear_np
    spear_np.survey = survey
sys.exit(main())
"""
"""The command, with something else in the place of HDF5 or of the solver."""

CRASH = "ctypes.string_at(0)"
LOOP = "exec('while True: pass')"


def spear(
    *arguments: Any, reading: str = "", computing: str = "pass", **options: Any
) -> subprocess.Popen[str]:
    code = STAND_IN.format(reading=reading or "pass", computing=computing).replace(
        "if 'pass'", f"if {reading!r}"
    )
    words = [sys.executable, "-c", code, *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True, env=ENVIRONMENT, **options)


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    write_good_dump(tmp_path / "dump.h5")
    return tmp_path / "dump.h5"


@pytest.mark.parametrize(
    ("reading", "meaning"),
    [
        (CRASH, "a segmentation fault"),
        ("os.abort()", "an abort"),
        ("os.kill(os.getpid(), 9)", "as it does when memory runs out"),
        (LOOP, "it took too long"),
        ("np.ones(2**28)", "it takes more memory"),
    ],
)
def test_what_reading_does_is_one_line_about_the_file(dump: Path, reading: str, meaning: str) -> None:
    process = spear("inspect", dump, reading=reading)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (2, "")
    assert err.startswith(f"spear-np: error: {dump}: ")
    assert meaning in err
    assert err.count("\n") == 1


def test_what_computing_does_is_another_matter(dump: Path) -> None:
    process = spear("inspect", dump, computing=CRASH)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (1, "")
    assert "the process that computed was ended (signal 11" in err
    assert err.count("\n") == 1


def ignore_the_end_of_others() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)


def hold_back_the_end_of_others() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})


@pytest.mark.parametrize("before", [ignore_the_end_of_others, hold_back_the_end_of_others])
def test_the_end_is_heard_whatever_the_caller_ignores(tmp_path: Path, before: Callable[[], None]) -> None:
    process = subprocess.run(
        [sys.executable, "-m", "spear_io", "inspect", "nothing.h5"],
        capture_output=True,
        text=True,
        check=False,
        env=ENVIRONMENT,
        cwd=tmp_path,
        preexec_fn=before,
        timeout=60,
    )
    assert process.returncode == 2
    assert process.stderr.startswith("spear-np: error: nothing.h5: there is no such file")


@pytest.mark.parametrize("where", ["cli.supervise.limit_this_process", "cli.main.keep_for_messages"])
def test_ctrl_c_just_after_the_fork_is_one_line(dump: Path, where: str) -> None:
    module, _, name = where.rpartition(".")
    code = f"""
import os, signal, sys
import spear_io.{module} as module
from spear_io.cli.main import main

then = module.{name}

def interrupted(*arguments):
    os.kill(os.getpid(), signal.SIGINT)
    then(*arguments)

module.{name} = interrupted
sys.exit(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", code, "inspect", dump],
        capture_output=True,
        text=True,
        check=False,
        env=ENVIRONMENT,
        preexec_fn=hear,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "spear-np: error: interrupted; nothing was written\n"


def test_ctrl_c_while_the_command_is_loaded_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Interrupted:
        def find_spec(self, name: str, *more: Any) -> None:
            if name == "spear_io.cli.main":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "spear_io.cli.main", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Interrupted(), *sys.meta_path])
    assert run() == 1
    assert capsys.readouterr().err == "spear-np: error: interrupted; nothing was written\n"


def test_signals_that_a_system_lacks_are_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows has neither."""
    for name in ("SIGKILL", "SIGBUS", "SIGXCPU"):
        monkeypatch.delattr(signal, name)
    assert child.__file__
    spec = spec_from_file_location("spear_io.files.child_elsewhere", child.__file__)
    assert spec
    assert spec.loader
    elsewhere = module_from_spec(spec)
    spec.loader.exec_module(elsewhere)
    assert set(elsewhere.ENDINGS) == {signal.SIGSEGV, signal.SIGABRT}


def test_busy_threads_do_not_use_up_the_time_of_a_block(monkeypatch: pytest.MonkeyPatch, dump: Path) -> None:
    """The processor time of a process is that of all its threads."""
    seconds: list[float] = []

    class Watched(limits._Limits):
        def allow(self, memory: float | None, most: float | None) -> None:
            self.memory, self.seconds = memory, most
            seconds.append(most or 0.0)

    monkeypatch.setattr(limits, "_limits", Watched(Note(), {}))
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    now = limits.processor_time()
    with limits.reading_file(dump, 0):
        assert seconds.pop() == pytest.approx(now + limits.SECONDS, abs=1)
        with limits.working(), limits.reading_block(dump, 0):
            assert seconds.pop() == pytest.approx(now + 64 * limits.SECONDS, abs=1)
        assert seconds.pop() == pytest.approx(now + limits.SECONDS + 64 * limits.SPINNING, abs=1)


def hear() -> None:
    """Let a process hear Ctrl-C also if these tests run in the background."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_reading_that_hangs_can_be_ended(dump: Path, number: signal.Signals) -> None:
    """As in C, where Python hears no Ctrl-C."""
    deaf = "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])"
    process = spear(
        "inspect", dump, reading=f"{deaf}; print('on', flush=True); time.sleep(60)", preexec_fn=hear
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "on\n"
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == (1 if number == signal.SIGINT else -number)
    assert err == ("spear-np: error: interrupted; nothing was written\n" if number == signal.SIGINT else "")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent died")
def test_nothing_is_left_when_the_command_is_killed(dump: Path) -> None:
    process = spear(
        "inspect", dump, computing="print(os.getpid(), flush=True, file=sys.stderr); time.sleep(60)"
    )
    assert process.stderr is not None
    worker = int(process.stderr.readline())
    assert worker != process.pid
    process.kill()
    process.communicate(timeout=60)  # both ends of its pipes are closed
    deadline = time.monotonic() + 10
    while Path(f"/proc/{worker}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def shrink(path: Path) -> None:
    """As somebody else may, while the file is mapped."""
    with reading_file(path):
        mapped = np.memmap(path, np.uint8, "r")
        os.truncate(path, 0)
        mapped.sum()


def record_names(path: Path) -> list[str]:
    with open_dump(path) as opened:
        return [record.name for record in opened.records]


def devour(path: Path) -> int:
    with open_dump(path):
        return len(np.ones(2**28))


def leave(path: Path) -> None:
    os._exit(7)


def test_the_library_reads_apart(dump: Path) -> None:
    assert spear_io.in_child(record_names, dump) == ["client-0"]
    with pytest.raises(FileError, match="more memory"):
        in_child(devour, dump)
    with pytest.raises(ChildError, match="exit status 7"):
        in_child(leave, dump)
    with pytest.raises(FileError, match="became shorter while it was read") as caught:
        in_child(shrink, dump)
    assert caught.value.file == dump


def test_a_note_names_any_file() -> None:
    note = Note()
    for name in ("a", "/" + "x" * 5000, os.fsdecode(b"\xff\n")):
        note.write(Doing.READ, Path(name))
        assert str(death(-signal.SIGSEGV, note)).isprintable()
        assert str(note.file) == name[:4092]


@pytest.mark.parametrize(
    ("redirection", "status", "message"),
    [
        (">&-", 2, "standard output (it is closed)"),
        (">/dev/full", 2, "standard output (No space left on device)"),
        ("2>&-", 0, ""),
        ("<&- >&- 2>&-", 2, ""),
    ],
)
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_streams_that_take_nothing(dump: Path, redirection: str, status: int, message: str) -> None:
    command = f'"{sys.executable}" -m spear_io inspect "$1" --json {redirection}'
    done = subprocess.run(
        ["/bin/sh", "-c", command, "sh", str(dump)],
        capture_output=True,
        text=True,
        check=False,
        env=ENVIRONMENT,
    )
    assert done.returncode == status
    assert message in done.stderr
    assert done.stderr.count("\n") == bool(message)


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full"])
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_an_error_is_said_elsewhere(tmp_path: Path, redirection: str) -> None:
    command = f'"{sys.executable}" -m spear_io inspect nothing.h5 {redirection}'
    done = subprocess.run(
        ["/bin/sh", "-c", command], capture_output=True, text=True, check=False, env=ENVIRONMENT, cwd=tmp_path
    )
    assert done.returncode == 2
    assert "nothing.h5: there is no such file" in done.stdout + done.stderr


def test_results_that_cannot_be_printed_are_kept(tmp_path: Path) -> None:
    data = layer_data()
    arrays: dict[str, Any] = {"fc.weight_grad": data.weight_grad, "fc.bias_grad": data.bias_grad}
    np.savez(tmp_path / "a.npz", **arrays)
    done = subprocess.run(
        [sys.executable, "-m", "spear_io", "convert", "a.npz", "dump.h5", "--json"],
        stdout=os.open(os.devnull, os.O_RDONLY),
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        env=ENVIRONMENT,
        cwd=tmp_path,
    )
    assert done.returncode == 2
    assert done.stderr.endswith("(it is closed); dump.h5 is complete\n")
    assert record_names(tmp_path / "dump.h5") == ["record-0"]
