"""The installed command on real batches, as a user meets it: files in, files out, signals, terminals."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import spear_np
from spear_io import Bfloat16, DumpWriter, LayerArrays, RecordInfo, open_dump, open_inversion, write_dump
from tests.io_files import (
    B,
    Command,
    M,
    command,
    layer_arrays,
    layer_data,
    leftovers,
    write_earlier,
    write_good_dump,
)
from tests.networks import LayerData, digit_batch, relu_network_gradients

ROOT = Path(__file__).parent.parent
RUN = "import sys; from spear_io.cli.main import main; sys.exit(main())"

HOPELESS = {"b": 50, "m": 60}
"""A batch that no search finds: no input leaves as many as b - 1 units off."""


@pytest.fixture
def spear(capsys: pytest.CaptureFixture[str]) -> Command:
    return command(capsys)


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'io'}", "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def spear_process(*arguments: Any, code: str = RUN, **options: Any) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment(), **options)


def largest_error(out: Path, data: LayerData) -> float:
    """Largest error over all recovered inputs, each compared with the true one next to it."""
    with open_inversion(out) as inversion:
        (layer,) = inversion.layers
        recovered = layer.inputs[:]
    distances = np.abs(recovered[:, None, :] - data.inputs[None]).max(axis=2)
    assert sorted(distances.argmin(axis=1)) == list(range(len(recovered)))
    return float(distances.min(axis=1).max())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_real_batch_comes_back_exactly(spear: Command, tmp_path: Path, dtype: Any) -> None:
    dump, out = tmp_path / "dump.h5", tmp_path / "out.h5"
    data = write_good_dump(dump, layer_data(dtype=dtype))
    run = spear("invert", dump, "-o", out, "--json")
    assert run.status == 0
    (layer,) = json.loads(run.out)["layers"]
    assert (layer["status"], layer["found"]) == ("exact", B)
    assert largest_error(out, data) < 1e-5
    run = spear("evaluate", out, dump, "--json")
    assert run.status == 0
    (compared,) = json.loads(run.out)["layers"]
    assert (compared["exact"], compared["broken_promise"]) == (B, False)
    assert all(row["within_bound"] for row in compared["rows"])


def test_inspect_forecasts_a_real_batch(spear: Command, tmp_path: Path) -> None:
    write_good_dump(tmp_path / "dump.h5")
    run = spear("inspect", tmp_path / "dump.h5", "--json")
    assert run.status == 0
    (layer,) = json.loads(run.out)["records"][0]["layers"]
    assert layer["problem"] is None
    assert layer["survey"]["batch_size"] == B
    assert layer["survey"]["expected_submatrices"] > 1


def test_inspect_says_why_a_layer_cannot_be_inverted(spear: Command, tmp_path: Path) -> None:
    data, full = layer_data(), layer_data(b=70)
    zero = {"weight_grad": np.zeros_like(data.weight_grad), "bias_grad": np.zeros_like(data.bias_grad)}
    reasons = {
        "conv": (LayerArrays(None, kind="conv2d"), "a 'conv2d' layer: only fully connected"),
        "normalised": (
            layer_arrays(data, activation="batch_normalization"),
            "followed by 'batch_normalization'",
        ),
        "smooth": (layer_arrays(data, activation="gelu"), "followed by 'gelu': only a ReLU"),
        "crowded": (layer_arrays(full), "rank"),
        "silent": (layer_arrays(data, **zero), "zero everywhere"),
        "good": (layer_arrays(data), None),
        "head": (layer_arrays(data, activation="none"), "followed by no activation"),
    }
    write_dump(tmp_path / "dump.h5", {name: arrays for name, (arrays, _) in reasons.items()})
    run = spear("inspect", tmp_path / "dump.h5", "--json")
    (record,) = json.loads(run.out)["records"]
    for layer in record["layers"]:
        reason = reasons[layer["layer"]][1]
        assert layer["problem"] is None if reason is None else reason in layer["problem"]
    run = spear("inspect", tmp_path / "dump.h5")
    assert all(reason in run.out for _, reason in reasons.values() if reason)


def test_weight_delta_and_packing_do_not_change_the_answer(spear: Command, tmp_path: Path) -> None:
    dump, out = tmp_path / "dump.h5", tmp_path / "out.h5"
    data = layer_data(dtype=np.float64)
    stored = layer_arrays(data, weight_grad=-0.05 * data.weight_grad, bias_grad=-0.05 * data.bias_grad)
    with DumpWriter(dump, compression="gzip") as writer:
        writer.add_record("r", {"fc1": stored}, info=RecordInfo(update="weight_delta", learning_rate=0.05))
    assert spear("invert", dump, "-o", out).status == 0
    assert largest_error(out, data) < 1e-5


def test_bfloat16_gradients_are_never_called_exact_wrongly(spear: Command, tmp_path: Path) -> None:
    dump, out = tmp_path / "dump.h5", tmp_path / "out.h5"
    data = layer_data(b=2)
    bits = (data.weight_grad.view(np.uint32) >> 16).astype(np.uint16)
    write_dump(dump, {"fc1": layer_arrays(data, weight_grad=Bfloat16(bits))}, record="client-0")
    run = spear("invert", dump, "-o", out, "--time-limit", 5)
    assert run.status in (0, 3)
    run = spear("evaluate", out, dump)
    assert "marked exact" not in run.err


@pytest.mark.parametrize(
    ("absent", "words"),
    [({"bias_grad"}, ("scale",)), ({"weight", "bias"}, ("sign",))],
    ids=["no bias_grad", "no weight"],
)
def test_missing_data_lowers_the_status_and_is_stated(
    spear: Command, tmp_path: Path, absent: set[str], words: tuple[str, ...]
) -> None:
    dump, out = tmp_path / "dump.h5", tmp_path / "out.h5"
    data = layer_data()
    write_dump(dump, {"fc1": layer_arrays(data, **dict.fromkeys(absent))}, record="client-0")
    run = spear("invert", dump, "-o", out, "--json")
    assert run.status == 0
    (layer,) = json.loads(run.out)["layers"]
    assert layer["status"] == "approximate"
    assert layer["scale_known"] == ("bias_grad" not in absent)
    statements = " ".join([layer["reason"], *layer["certificate"]["caveats"]])
    assert all(word in statements for word in words)
    run = spear("evaluate", out, dump, "--json")
    assert json.loads(run.out)["layers"][0]["exact"] == B


def test_one_input_needs_no_search(spear: Command, tmp_path: Path) -> None:
    dump, out = tmp_path / "dump.h5", tmp_path / "out.h5"
    data = write_good_dump(dump, layer_data(b=1))
    assert spear("invert", dump, "-o", out).status == 0
    assert largest_error(out, data) < 1e-5


def narrow_data() -> LayerData:
    """More inputs (40) than features (32): the middle columns of the digits, where every pixel is used."""
    inputs, labels = digit_batch(40, seed=3)
    middle = inputs.reshape(-1, 8, 8)[:, :, 2:6].reshape(-1, 32)
    return relu_network_gradients(middle, labels, width=M, seed=3)


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (
            replace(
                layer_data(), weight_grad=np.zeros((M, 64), np.float32), bias_grad=np.zeros(M, np.float32)
            ),
            "zero",
        ),
        (narrow_data(), "rank"),
        (layer_data(b=40, m=30), "rank"),
    ],
    ids=["all zero", "b > n", "b > m"],
)
def test_gradients_that_hold_no_answer_fail_with_a_reason(
    spear: Command, tmp_path: Path, data: LayerData, word: str
) -> None:
    dump, out = tmp_path / "dump.h5", tmp_path / "out.h5"
    write_good_dump(dump, data)
    run = spear("invert", dump, "-o", out, "--json", "--time-limit", 5)
    assert run.status == 3
    (layer,) = json.loads(run.out)["layers"]
    assert (layer["status"], layer["found"]) == ("failed", 0)
    assert word in layer["reason"]
    with open_inversion(out) as inversion:
        assert inversion.layers[0].status == "failed"
    run = spear("inspect", dump)
    assert run.status == 0
    assert word in run.out
    run = spear("evaluate", out, dump)
    assert run.status == 3


def test_a_time_limit_ends_the_search_with_a_valid_file(spear: Command, tmp_path: Path) -> None:
    dump, out = tmp_path / "dump.h5", tmp_path / "out.h5"
    write_good_dump(dump, layer_data(**HOPELESS))
    start = time.monotonic()
    run = spear("invert", dump, "-o", out, "--time-limit", 0.5)
    assert time.monotonic() - start < 30
    assert run.status == 3
    with open_inversion(out) as inversion:
        assert inversion.layers[0].status in ("partial", "failed")


def test_same_seed_same_answer(spear: Command, tmp_path: Path) -> None:
    dump = tmp_path / "dump.h5"
    write_good_dump(dump)
    answers = []
    for name in ("one.h5", "two.h5"):
        assert spear("invert", dump, "-o", tmp_path / name, "--seed", 7).status == 0
        with h5py.File(tmp_path / name) as file:
            answers.append(file["records/client-0/layers/fc1/inputs"][:])
    np.testing.assert_array_equal(answers[0], answers[1])


def test_the_process_itself(tmp_path: Path) -> None:
    write_good_dump(tmp_path / "dump.h5")
    process = spear_process("invert", tmp_path / "dump.h5", "-o", tmp_path / "out.h5", stderr=subprocess.PIPE)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert err == ""  # quiet in a pipe
    assert "exact" in out
    process = spear_process(
        "invert", tmp_path / "dump.txt", "-o", tmp_path / "out.h5", stderr=subprocess.PIPE
    )
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (2, "")
    assert err.startswith("spear-np: error: ")
    assert err.count("\n") == 1


def test_a_reader_that_goes_away_is_no_traceback(tmp_path: Path) -> None:
    data = layer_data(m=2)
    layers = {f"layer{number}": layer_arrays(data, activation="gelu") for number in range(400)}
    write_dump(tmp_path / "dump.h5", layers)
    process = spear_process("inspect", tmp_path / "dump.h5", stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert "Traceback" not in process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=120) == 1


@contextmanager
def terminal() -> Iterator[tuple[int, int]]:
    """Yield both ends of a pseudo-terminal."""
    ours, theirs = pty.openpty()
    try:
        yield ours, theirs
    finally:
        os.close(ours)


def read_until(ours: int, wanted: str, timeout: float = 90) -> str:
    """Read what a process shows on its terminal until `wanted` appears."""
    seen = ""
    deadline = time.monotonic() + timeout
    while wanted not in seen:
        left = deadline - time.monotonic()
        ready, _, _ = select.select([ours], [], [], max(0, left))
        assert ready, f"{wanted!r} did not appear in {seen!r}"
        try:
            seen += os.read(ours, 4096).decode(errors="replace")
        except OSError:  # the other end was closed
            break
    return seen


PATIENT = """
import sys, time
import spear_np
from spear_io.cli.main import main

def invert_layer(gradients, *, stop, callback, **options):
    # Search until asked to stop, however fast the search becomes.
    while not stop():
        callback(spear_np.Progress("search", 2.0, 600.0, batch_size=50, found=3, proposals=1000))
        time.sleep(0.02)
    return solver(gradients, stop=stop, callback=callback, **options)

solver, spear_np.invert_layer = spear_np.invert_layer, invert_layer
sys.exit(main())
"""


def test_ctrl_c_writes_what_was_found(tmp_path: Path) -> None:
    dump, out = tmp_path / "dump.h5", tmp_path / "out.h5"
    hopeless = layer_arrays(layer_data(**HOPELESS))
    with DumpWriter(dump) as writer:
        writer.add_record("first", {"fc1": hopeless})
        writer.add_record("second", {"fc1": hopeless})
    with terminal() as (ours, theirs):
        process = spear_process("invert", dump, "-o", out, "--json", code=PATIENT, stderr=theirs)
        os.close(theirs)
        shown = read_until(ours, "at most 9:58 left")
        assert "first, fc1 (1 of 2)" in shown
        assert "3 candidates for 50 inputs, 1000 proposals, 500/s" in shown
        process.send_signal(signal.SIGINT)
        read_until(ours, "Ctrl-C again aborts")
        text, _ = process.communicate(timeout=90)
    assert process.returncode == 3
    first, second = json.loads(text)["layers"]
    assert first["status"] in ("partial", "failed")
    assert (second["status"], second["reason"]) == ("failed", "stopped before it began")
    with open_inversion(out) as inversion:
        assert [layer.record for layer in inversion.layers] == ["first", "second"]
    assert leftovers(tmp_path) == []


SLOW_TO_CLOSE = """
import time
from spear_io import InversionWriter
from spear_io.cli import supervise

def close(self, *details):
    time.sleep(1)
    exit(self, *details)

supervise.PATIENCE = 0.2
exit, InversionWriter.__exit__ = InversionWriter.__exit__, close
"""


def test_a_search_that_was_told_once_is_never_killed(tmp_path: Path) -> None:
    dump, out = tmp_path / "dump.h5", tmp_path / "out.h5"
    write_dump(dump, {"fc1": layer_arrays(layer_data(**HOPELESS))})
    code = SLOW_TO_CLOSE + PATIENT.replace("callback(", "print('on', flush=True) or (")
    process = spear_process("invert", dump, "-o", out, code=code, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == "on\n"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=90)
    assert process.returncode == 3
    with open_inversion(out) as inversion:
        assert len(inversion.layers) == 1


STUBBORN = """
import sys, time
import spear_np
from spear_io.cli.main import main

def invert_layer(gradients, *, stop, **options):
    print("searching", file=sys.stderr, flush=True)
    while True:
        time.sleep(0.01)

spear_np.invert_layer = invert_layer
sys.exit(main())
"""


def test_a_second_ctrl_c_aborts_and_writes_nothing(tmp_path: Path) -> None:
    dump, out = tmp_path / "dump.h5", tmp_path / "out.h5"
    write_good_dump(dump)
    old = write_earlier(out, "spear-inversion")
    process = spear_process("invert", dump, "-o", out, code=STUBBORN, stderr=subprocess.PIPE)
    assert process.stderr is not None
    assert process.stderr.readline() == "searching\n"
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() == "\n"
    assert "Ctrl-C again aborts" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    text, error = process.communicate(timeout=60)
    assert process.returncode == 1
    assert (text, error) == ("", "spear-np: error: interrupted; nothing was written\n")
    assert out.read_bytes() == old
    assert leftovers(tmp_path) == []


def test_the_interrupt_handler_is_put_back(spear: Command, tmp_path: Path) -> None:
    write_good_dump(tmp_path / "dump.h5")
    before = signal.getsignal(signal.SIGINT)
    spear("invert", tmp_path / "dump.h5", "-o", tmp_path / "out.h5")
    assert signal.getsignal(signal.SIGINT) is before


def test_the_python_face_reads_a_dump_lazily(tmp_path: Path) -> None:
    data = layer_data()
    write_dump(
        tmp_path / "dump.h5", {"fc1": LayerArrays(data.weight_grad, data.bias_grad, data.weight, data.bias)}
    )
    with open_dump(tmp_path / "dump.h5") as dump:
        result = spear_np.invert_layer(dump.records[0].layers[0].gradients)
        assert result.status == "exact"
        assert result.inputs.shape == data.inputs.shape
