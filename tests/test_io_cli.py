"""The command with a stand-in for the solver: options, messages, exit status, output."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import spear_np
from spear_io import Display, DumpWriter, LayerArrays, RecordInfo, open_inversion
from spear_io.files.sight import Seen, Sight
from spear_io.show.progress import count, duration, figures
from tests.io_files import (
    B,
    Command,
    M,
    N,
    command,
    fake_inversion,
    layer_arrays,
    layer_data,
    leftovers,
    write_earlier,
    write_good_dump,
)

Solver = Callable[..., spear_np.Inversion]


@pytest.fixture
def spear(capsys: pytest.CaptureFixture[str]) -> Command:
    return command(capsys)


class FakeSolver:
    """Answers with the truth of `layer_data()` and remembers what it was asked."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.statuses: list[str] = []

    def __call__(self, gradients: spear_np.LayerGradients, **options: Any) -> spear_np.Inversion:
        self.calls.append({"gradients": gradients, **options})
        status = self.statuses.pop(0) if self.statuses else "exact"
        rows = {"partial": 2, "failed": 0}.get(status, B)
        return fake_inversion(gradients, layer_data().inputs[:rows], status=status, batch_size=B)


@pytest.fixture
def solver(monkeypatch: pytest.MonkeyPatch) -> FakeSolver:
    fake = FakeSolver()
    monkeypatch.setattr(spear_np, "invert_layer", fake)
    return fake


SURVEY = spear_np.Survey(
    shape=(M, N),
    precision="float32",
    batch_size=B,
    plausible_batch_sizes=(B - 1, B),
    full_rank=False,
    relative_noise=3e-8,
    singular_values=(2.0, 1.0, 0.5, 0.25),
    gap=1e5,
    expected_submatrices=123_000.0,
    seconds_per_million=2.0,
    forecast_seconds=0.25,
    problem=None,
)


@pytest.fixture
def survey(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spear_np, "survey", lambda gradients, **_: SURVEY)


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    write_good_dump(tmp_path / "dump.h5", batch_size=B)
    return tmp_path / "dump.h5"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.h5"


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Three records: a layer after a convolution, two good layers, nothing that can be inverted."""
    data = layer_data()
    good, conv = layer_arrays(data), layer_arrays(data, kind="conv2d")
    path = tmp_path / "many.h5"
    with DumpWriter(path) as writer:
        writer.add_record("first", {"conv": conv, "gelu": layer_arrays(data, activation="gelu"), "fc": good})
        writer.add_record("second", {"fc": good, "head": good})
        writer.add_record("third", {"conv": conv})
    return path


def test_invert_writes_the_file_and_prints_a_table(
    spear: Command, solver: FakeSolver, dump: Path, out: Path
) -> None:
    run = spear("invert", dump, "-o", out)
    assert run.status == 0
    assert run.err == ""
    for fragment in (
        "client-0",
        "fc1",
        "exact",
        "4/4",
        "sign_agreement",
        "identical inputs count once",
        str(out),
    ):
        assert fragment in run.out
    with open_inversion(out) as inversion:
        (layer,) = inversion.layers
        np.testing.assert_array_equal(layer.inputs[:], layer_data().inputs)
    assert leftovers(out.parent) == []


def test_no_line_of_a_table_says_exact_without_what_it_rests_on(
    spear: Command, monkeypatch: pytest.MonkeyPatch, dump: Path, out: Path
) -> None:
    long = "a premise with a name that is rather long, far longer than a column of a table usually is"

    def solve(gradients: spear_np.LayerGradients, **options: Any) -> spear_np.Inversion:
        answer = fake_inversion(gradients, layer_data().inputs)
        premises = (*answer.certificate.rests_on, spear_np.Premise(long, "it is so"))
        return replace(answer, certificate=replace(answer.certificate, rests_on=premises))

    monkeypatch.setattr(spear_np, "invert_layer", solve)
    inverted = spear("invert", dump, "-o", out)
    compared = spear("evaluate", out, dump)
    for run in (inverted, compared):
        (line,) = [line for line in run.out.splitlines() if " exact if " in line]
        assert f"exact if plain, {long}" in line
    (layer,) = json.loads(spear("invert", dump, "-o", out, "--json").out)["layers"]
    assert layer["claim"] == f"exact if plain, {long}"
    assert layer["certificate"]["rests_on"][1] == {"name": long, "meaning": "it is so"}


def test_options_reach_the_solver(spear: Command, solver: FakeSolver, dump: Path, out: Path) -> None:
    spear("invert", dump, "-o", out)
    (call,) = solver.calls
    assert call.pop("gradients").shape == (M, N)
    assert call.pop("stop")() is False
    assert callable(call.pop("callback"))
    assert call == {
        "batch_size": None,
        "data_range": None,
        "method": "auto",
        "seed": 0,
        "device": "cpu",
        "time_limit": 600.0,
    }
    arguments = [
        "--method",
        "sampling",
        "--batch-size",
        7,
        "--seed",
        5,
        "--time-limit",
        1.5,
        "--device",
        "cpu",
        "--data-range",
        -0.81,
        2.02,
    ]
    spear("invert", dump, "-o", out, *arguments)
    call = solver.calls[1]
    assert (call["batch_size"], call["method"], call["seed"], call["time_limit"]) == (7, "sampling", 5, 1.5)
    assert call["data_range"] == (-0.81, 2.02)


def test_json_is_one_strict_document(spear: Command, solver: FakeSolver, dump: Path, out: Path) -> None:
    run = spear("invert", dump, "-o", out, "--json")
    assert run.err == ""
    document = json.loads(run.out, parse_constant=pytest.fail)
    assert document["command"] == "invert"
    assert (document["source"], document["output"]) == (str(dump), str(out))
    (layer,) = document["layers"]
    assert (layer["record"], layer["layer"], layer["shape"]) == ("client-0", "fc1", [M, N])
    assert (layer["status"], layer["found"], layer["batch_size"]) == ("exact", B, B)
    made, missing = layer["certificate"]["checks"]
    assert (made["name"], made["value"], made["threshold"], made["passed"]) == (
        "sign_agreement",
        1.0,
        1.0,
        True,
    )
    assert (missing["value"], missing["passed"]) == (None, None)


def test_json_names_labels_and_the_layers_that_were_used(
    spear: Command, solver: FakeSolver, monkeypatch: pytest.MonkeyPatch, dump: Path, out: Path
) -> None:
    def chained(gradients: spear_np.LayerGradients, **options: Any) -> spear_np.Inversion:
        return fake_inversion(gradients, layer_data().inputs, labels=[3, -1, 0, 9], chain=("fc1", "fc2"))

    (plain,) = json.loads(spear("invert", dump, "-o", out, "--json").out)["layers"]
    assert (plain["labels"], plain["chain"]) == (None, [])
    monkeypatch.setattr(spear_np, "invert_layer", chained)
    (layer,) = json.loads(spear("invert", dump, "-o", out, "--json").out)["layers"]
    assert (layer["labels"], layer["chain"]) == ([3, -1, 0, 9], ["fc1", "fc2"])
    assert "from the layers fc1 → fc2" in spear("invert", dump, "-o", out).out


def test_what_the_record_says_of_its_inputs_is_copied(
    spear: Command, solver: FakeSolver, tmp_path: Path, out: Path
) -> None:
    info = RecordInfo(input_shape=(8, 8), input_mean=(0.5,), input_std=(0.25,), client=4, round="last")
    arrays = layer_arrays(layer_data(), between="batch_norm")
    with DumpWriter(tmp_path / "dump.h5") as writer:
        writer.add_record("r", {"fc1": arrays}, info=info)
    assert spear("invert", tmp_path / "dump.h5", "-o", out).status == 0
    with open_inversion(out) as inversion:
        (layer,) = inversion.layers
        assert layer.display == Display((8, 8), (0.5,), (0.25,), 4, "last")
        assert layer.seen == Seen(Sight.ALTERED, None, "batch_norm")


@pytest.mark.parametrize("client", [b"caf\xe9", b"a\0b", b"\xff" * 3])
def test_text_that_is_no_text_does_not_cost_the_result(
    spear: Command, solver: FakeSolver, dump: Path, out: Path, client: bytes
) -> None:
    varying = h5py.string_dtype()
    with h5py.File(dump, "r+") as file:
        record = file["records/client-0"]
        record.attrs["client"] = np.bytes_(client)
        record["layers/fc1"].attrs.create(
            "between", np.asarray(client.replace(b"\0", b""), dtype=object), dtype=varying
        )
    assert spear("invert", dump, "-o", out).status == 0
    with open_inversion(out) as inversion:
        (layer,) = inversion.layers
        assert layer.display.client == client.decode("utf-8", "replace").replace("\0", "\ufffd")
        assert layer.seen.between == client.replace(b"\0", b"").decode("utf-8", "replace")


def test_json_has_no_nan(spear: Command, monkeypatch: pytest.MonkeyPatch, dump: Path, out: Path) -> None:
    def unbounded(gradients: spear_np.LayerGradients, **options: Any) -> spear_np.Inversion:
        answer = fake_inversion(gradients, layer_data().inputs, status="partial", error_bound=np.inf)
        certificate = replace(answer.certificate, sign_agreement=(float("nan"),) * B)
        return replace(answer, certificate=certificate)

    monkeypatch.setattr(spear_np, "invert_layer", unbounded)
    run = spear("invert", dump, "-o", out, "--json")
    (layer,) = json.loads(run.out, parse_constant=pytest.fail)["layers"]
    assert layer["certificate"]["error_bound"] == [None] * B
    assert layer["certificate"]["sign_agreement"] == [None] * B


@pytest.mark.parametrize(
    ("status", "code"), [("exact", 0), ("approximate", 0), ("partial", 3), ("failed", 3)]
)
def test_exit_status_follows_the_result(
    spear: Command, solver: FakeSolver, dump: Path, out: Path, status: str, code: int
) -> None:
    solver.statuses = [status]
    run = spear("invert", dump, "-o", out)
    assert run.status == code
    assert status in run.out
    with open_inversion(out) as inversion:
        assert inversion.layers[0].status == status


def test_one_layer_that_fails_decides_the_exit_status(
    spear: Command, solver: FakeSolver, many: Path, out: Path
) -> None:
    solver.statuses = ["failed", "exact"]
    assert spear("invert", many, "-o", out).status == 3


def test_the_first_layer_that_can_be_inverted_is_taken_from_every_record(
    spear: Command, solver: FakeSolver, many: Path, out: Path
) -> None:
    run = spear("invert", many, "-o", out)
    assert run.status == 0
    assert run.err.startswith("spear-np: note: record 'third' holds no layer that can be inverted: 'conv' is")
    with open_inversion(out) as inversion:
        assert [(layer.record, layer.layer) for layer in inversion.layers] == [
            ("first", "fc"),
            ("second", "fc"),
        ]


def test_records_and_layers_are_chosen_by_name(
    spear: Command, solver: FakeSolver, many: Path, out: Path
) -> None:
    arguments = ["--record", "second", "--layer", "head", "--layer", "fc", "--record", "second"]
    assert spear("invert", many, "-o", out, *arguments).status == 0
    with open_inversion(out) as inversion:
        assert [(layer.record, layer.layer) for layer in inversion.layers] == [
            ("second", "head"),
            ("second", "fc"),
        ]


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["--record", "fourth"], ["no record 'fourth'", "'first', 'second', 'third'"]),
        (["--record", "second", "--layer", "conv"], ["record 'second'", "no layer 'conv'", "'fc', 'head'"]),
        (["--layer", "head"], ["record 'first'", "no layer 'head'", "'conv', 'gelu', 'fc'"]),
        (["--record", "third"], ["no layer can be inverted", "'conv' is a 'conv2d' layer"]),
        (["--record", "first", "--layer", "gelu"], ["layer 'gelu'", "followed by 'gelu'", "ReLU"]),
    ],
)
def test_names_that_are_not_there(
    spear: Command, solver: FakeSolver, many: Path, out: Path, arguments: list[str], fragments: list[str]
) -> None:
    run = spear("invert", many, "-o", out, *arguments)
    assert run.status == 2
    for fragment in fragments:
        assert fragment in run.error
    assert not out.exists()
    assert solver.calls == []


def test_a_record_that_breaks_is_reported_and_the_rest_goes_on(
    spear: Command, solver: FakeSolver, many: Path, out: Path
) -> None:
    with h5py.File(many, "r+") as file:
        file["records/first/layers/fc/bias_grad"][3] = np.nan
    problem = "record 'first', layer 'fc', dataset 'bias_grad': holds NaN at entry 3"
    old = write_earlier(out, "spear-inversion")
    run = spear("invert", many, "-o", out, "--record", "first")
    assert run.status == 2
    assert problem in run.error
    assert solver.calls == []
    assert out.read_bytes() == old
    run = spear("invert", many, "-o", out)
    assert run.status == 3
    assert problem in run.err
    assert problem in run.out
    assert len(solver.calls) == 1
    with open_inversion(out) as inversion:
        assert [layer.record for layer in inversion.layers] == ["second"]
        (unread,) = inversion.unread
        assert unread.record == "first"
        assert problem in unread.problem
    assert [path.name for path in sorted(out.parent.iterdir())] == ["many.h5", "out.h5"]
    assert (
        spear("invert", many, "-o", out, "--record", "second").status == 0
    )  # what is not asked for does not matter


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        ([], "Missing command"),
        (["explode"], "explode"),
        (["invert"], "DUMP.h5"),
        (["invert", "{dump}"], "--output"),
        (["invert", "{dump}", "-o", "{out}", "--method", "magic"], "'magic' is not one of auto"),
        (["invert", "{dump}", "-o", "{out}", "--batch-size", "0"], "--batch-size"),
        (["invert", "{dump}", "-o", "{out}", "--seed", "-1"], "--seed"),
        (["invert", "{dump}", "-o", "{out}", "--time-limit", "nan"], "--time-limit"),
        (["invert", "{dump}", "-o", "{out}", "--time-limit", "-1"], "--time-limit"),
        (["invert", "{dump}", "-o", "{out}", "--device", "tpu"], "unknown device 'tpu'"),
        (["invert", "{dump}", "-o", "{out}", "--colour"], "--colour"),
        (["invert", "{dump}", "-o", "{out}", "--data-range", "1", "0"], "--data-range"),
        (["invert", "{dump}", "-o", "{out}", "--data-range", "0", "nan"], "two finite numbers"),
        (["invert", "{dump}", "-o", "{out}", "--data-range", "0", "white"], "--data-range"),
        (["invert", "{dump}", "-o", "{out}", "--data-range", "0"], "--data-range"),
        (["inspect", "{dump}", "--device", "tpu"], "unknown device 'tpu'"),
        (["evaluate", "{dump}"], "DUMP.h5"),
    ],
)
def test_bad_usage_is_one_line_and_status_two(
    spear: Command, solver: FakeSolver, dump: Path, out: Path, arguments: list[str], fragment: str
) -> None:
    run = spear(*(argument.format(dump=dump, out=out) for argument in arguments))
    assert run.status == 2
    assert run.out == ""
    assert fragment in run.error
    assert not out.exists()
    assert solver.calls == []


def test_the_dump_is_never_the_output(spear: Command, solver: FakeSolver, dump: Path) -> None:
    before = dump.read_bytes()
    run = spear("invert", dump, "-o", dump)
    assert run.status == 2
    assert "being read" in run.error
    assert dump.read_bytes() == before
    assert solver.calls == []


@pytest.mark.parametrize(("name", "fragment"), [("", "is a directory"), ("no/such/out.h5", "does not exist")])
def test_an_output_that_cannot_be_written_shows_before_the_search(
    spear: Command, solver: FakeSolver, dump: Path, name: str, fragment: str
) -> None:
    run = spear("invert", dump, "-o", dump.parent / name)
    assert run.status == 2
    assert fragment in run.error
    assert solver.calls == []


@pytest.mark.parametrize(
    ("error", "status", "fragment"),
    [
        (spear_np.InputError("`batch_size` is 99"), 2, "`batch_size` is 99"),
        (spear_np.DeviceError("CuPy is not installed"), 2, "CuPy is not installed"),
        (ZeroDivisionError("a\nb"), 1, "unexpected ZeroDivisionError: a b (set SPEAR_NP_TRACEBACK=1"),
        (OSError(5, "weather"), 1, "unexpected OSError: weather"),
        (RuntimeError("can't think"), 1, "unexpected RuntimeError: can't think"),
        (MemoryError(), 1, "not enough memory"),
        (KeyboardInterrupt(), 1, "interrupted; nothing was written"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_errors_of_the_solver_are_one_line_and_nothing_is_written(
    spear: Command,
    monkeypatch: pytest.MonkeyPatch,
    dump: Path,
    out: Path,
    error: BaseException,
    status: int,
    fragment: str,
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(spear_np, "invert_layer", fail)
    old = write_earlier(out, "spear-inversion")
    run = spear("invert", dump, "-o", out, "--json")
    assert run.status == status
    assert run.out == ""
    assert fragment in run.error
    assert out.read_bytes() == old
    assert leftovers(out.parent) == []


def test_the_traceback_is_there_for_who_asks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, dump: Path, out: Path
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(spear_np, "invert_layer", fail)
    monkeypatch.setenv("SPEAR_NP_TRACEBACK", "1")
    from spear_io.cli.main import main

    assert main(["invert", str(dump), "-o", str(out)]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_warnings_become_one_line(
    spear: Command, monkeypatch: pytest.MonkeyPatch, dump: Path, out: Path
) -> None:
    def warn(gradients: spear_np.LayerGradients, **options: Any) -> spear_np.Inversion:
        warnings.warn("batch_size 9 contradicts the rank 4", stacklevel=1)
        return fake_inversion(gradients, layer_data().inputs)

    monkeypatch.setattr(spear_np, "invert_layer", warn)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        run = spear("invert", dump, "-o", out)
    assert run.err == "spear-np: warning: batch_size 9 contradicts the rank 4\n"


def test_a_stated_batch_size_that_differs_is_noted(
    spear: Command, solver: FakeSolver, tmp_path: Path, out: Path
) -> None:
    write_good_dump(tmp_path / "dump.h5", batch_size=B + 2)
    run = spear("invert", tmp_path / "dump.h5", "-o", out)
    assert f"the dump states a batch of {B + 2}, the gradient shows {B}" in run.out
    with h5py.File(out) as file:
        notes = json.loads(file["records/client-0/layers/fc1"].attrs["notes"])
    assert len(notes) == 1


@pytest.mark.usefixtures("survey")
def test_inspect_shows_every_layer(spear: Command, many: Path) -> None:
    run = spear("inspect", many)
    assert (run.status, run.err) == (0, "")
    for fragment in (
        "first",
        "60 × 64",
        "float32",
        "weight_grad",
        "< 1 s",
        "'conv2d' layer",
        "'gelu'",
    ):
        assert fragment in run.out


@pytest.fixture
def chained(tmp_path: Path) -> Path:
    """Two layers that feed each other, one behind a normalisation, one that nothing feeds."""
    rng = np.random.default_rng(5)
    slope = spear_np.Activation("leaky_relu", {"negative_slope": 0.2})

    def layer(m: int, n: int, activation: str | spear_np.Activation, **more: Any) -> LayerArrays:
        on = rng.random((m, 3)) < (0.5 if activation == "relu" else 1)
        gradient = (rng.standard_normal((m, 3)) * on) @ rng.standard_normal((3, n))
        vector = rng.standard_normal(m)
        return LayerArrays(gradient, vector, rng.standard_normal((m, n)), activation=activation, **more)

    layers = {
        "embed": layer(30, 20, "relu"),
        "fc1": layer(40, 30, slope, follows="embed"),
        "fc2": layer(20, 40, "gelu", between="layer_norm+dropout"),
        "head": layer(10, 20, "none", follows="fc2"),
        "side": layer(30, 20, "tanh"),
    }
    path = tmp_path / "chained.h5"
    with DumpWriter(path) as writer:
        writer.add_record("r", layers, info=RecordInfo(loss="cross_entropy", loss_reduction="mean"))
    return path


def test_inspect_shows_chains(spear: Command, chained: Path) -> None:
    run = spear("inspect", chained)
    assert (run.status, run.err) == (0, "")
    for fragment in (
        "chain: embed (relu) → fc1 (leaky_relu(negative_slope=0.2)): decides up to 15 inputs of 'embed'\n",
        "chain: fc2 (gelu) → head (none): decides up to 10 inputs of 'fc2'\n",
        "(layer_norm, dropout)",
        "loss cross_entropy (mean)",
    ):
        assert fragment in run.out
    for verdict in (
        r"embed .* yes",
        r"fc1 .* no",
        r"fc2 .* in a chain",
        r"head .* no",
        r"side .* no",
    ):
        assert re.search(rf"^ {verdict} *$", run.out, re.MULTILINE), verdict


def test_inspect_fits_a_terminal_of_80_columns(
    spear: Command, chained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spear_io.show.tables.PIPE_WIDTH", 80)
    run = spear("inspect", chained)
    table = [line for line in run.out.splitlines() if line.startswith(" ")]
    assert max(map(len, table)) <= 80
    for word in ("float64", "weight_grad", "published search", "in a chain", "leaky_relu("):
        assert any(word in line for line in table), word


def test_inspect_surveys_every_linear_layer(spear: Command, chained: Path) -> None:
    document = json.loads(spear("inspect", chained, "--json").out, parse_constant=pytest.fail)
    (record,) = document["records"]
    assert record["chains"] == [["embed", "fc1"], ["fc2", "head"]]
    layers = {layer["layer"]: layer for layer in record["layers"]}
    assert [layer["follows"] for layer in layers.values()] == [None, "embed", None, "fc2", None]
    assert layers["fc2"]["between"] == "layer_norm+dropout"
    assert layers["fc1"]["activation"] == "leaky_relu(negative_slope=0.2)"
    assert [layer["survey"]["batch_size"] for layer in layers.values()] == [3] * 5
    assert all(layer["survey"]["relative_noise"] < 1e-10 for layer in layers.values())
    assert [layer["survey"]["forecast_seconds"] is None for layer in layers.values()] == [False, *[True] * 4]
    assert layers["embed"]["problem"] is None
    assert layers["fc2"]["problem"] is None
    assert [layer["alone"] for layer in layers.values()] == [True, *[False] * 4]
    for name in ("fc1", "head", "side"):
        assert "the inversion of a single layer rests on" in layers[name]["problem"]


@pytest.mark.usefixtures("survey")
def test_inspect_as_json(spear: Command, dump: Path) -> None:
    run = spear("inspect", dump, "--json")
    document = json.loads(run.out, parse_constant=pytest.fail)
    assert document["producer"] == "numpy"
    (record,) = document["records"]
    assert record["record"] == "client-0"
    assert record["info"]["batch_size"] == B
    (layer,) = record["layers"]
    assert layer["datasets"] == ["weight_grad", "bias_grad", "weight", "bias"]
    assert layer["truth_inputs"] == B
    assert layer["survey"]["expected_submatrices"] == 123_000.0
    assert layer["problem"] is None


def test_inspect_says_why_not(spear: Command, monkeypatch: pytest.MonkeyPatch, dump: Path) -> None:
    nothing = replace(
        SURVEY,
        batch_size=None,
        full_rank=True,
        expected_submatrices=np.inf,
        forecast_seconds=None,
        problem="the gradient has full rank",
    )
    monkeypatch.setattr(spear_np, "survey", lambda gradients, **_: nothing)
    run = spear("inspect", dump)
    assert run.status == 0
    assert "full rank" in run.out
    assert "fc1: the gradient has full rank" in run.out
    assert (
        json.loads(spear("inspect", dump, "--json").out)["records"][0]["layers"][0]["survey"][
            "expected_submatrices"
        ]
        is None
    )


def test_evaluate_after_invert(spear: Command, solver: FakeSolver, dump: Path, out: Path) -> None:
    spear("invert", dump, "-o", out)
    run = spear("evaluate", out, dump)
    assert (run.status, run.err) == (0, "")
    assert "4/4" in run.out
    document = json.loads(spear("evaluate", out, dump, "--json").out, parse_constant=pytest.fail)
    (layer,) = document["layers"]
    assert (layer["exact"], layer["distinct_truth"], layer["matched_share"]) == (B, B, 1.0)
    assert layer["rows"][0]["psnr"] is None  # infinite


def test_evaluate_catches_a_broken_promise(
    spear: Command, monkeypatch: pytest.MonkeyPatch, dump: Path, out: Path
) -> None:
    wrong = layer_data().inputs + 0.25
    monkeypatch.setattr(spear_np, "invert_layer", lambda gradients, **_: fake_inversion(gradients, wrong))
    assert spear("invert", dump, "-o", out).status == 0
    run = spear("evaluate", out, dump)
    assert run.status == 3
    assert "marked exact, but 4 input(s) are wrong" in run.err


def test_evaluate_refuses_files_in_the_wrong_order(
    spear: Command, solver: FakeSolver, dump: Path, out: Path
) -> None:
    spear("invert", dump, "-o", out)
    run = spear("evaluate", dump, out)
    assert run.status == 2
    assert "holds format 'spear-gradients', but 'spear-inversion' is wanted" in run.error


def test_evaluate_without_truth_says_so(
    spear: Command, solver: FakeSolver, tmp_path: Path, out: Path
) -> None:
    with DumpWriter(tmp_path / "dump.h5") as writer:
        writer.add_record("r", {"fc1": layer_arrays(layer_data(), inputs=None)}, info=RecordInfo())
    spear("invert", tmp_path / "dump.h5", "-o", out)
    run = spear("evaluate", out, tmp_path / "dump.h5")
    assert run.status == 2
    assert "no true inputs" in run.error


def test_help_and_version(spear: Command) -> None:
    assert spear("--version").out == f"spear-np {spear_np.__version__}\n"
    run = spear("--help")
    assert run.status == 0
    assert all(name in run.out for name in ("inspect", "invert", "evaluate"))
    options = ("--device", "--layer", "--time-limit", f"--method {'|'.join(spear_np.METHODS)}")
    assert all(option in " ".join(spear("invert", "--help").out.split()) for option in options)


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (412, "412"), (9999, "9999"), (12_345, "12.3 k"), (1.2e6, "1.2 M"), (3e17, "3.0e+17")],
)
def test_counts_read_well(number: float, text: str) -> None:
    assert count(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0:00"),
        (8, "0:08"),
        (750, "12:30"),
        (11_100, "3:05:00"),
        (864_000, "10 days"),
        (np.inf, "unlimited"),
    ],
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_progress_figures() -> None:
    progress = spear_np.Progress("search", 10.0, 600.0, batch_size=16, found=3, proposals=2_000_000)
    assert figures(progress) == "3 candidates for 16 inputs, 2 M proposals, 200 k/s, at most 9:50 left"
    assert figures(replace(progress, expected=1e6)).endswith("about 0:05 left")
    assert figures(replace(progress, expected=1e9)).endswith("at most 9:50 left")
    assert figures(spear_np.Progress("factorize", 2.0, 600.0)) == "0:02"
