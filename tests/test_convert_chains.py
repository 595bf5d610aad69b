"""What `spear-np convert` is told of activations, of which layer feeds which, and of the loss."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spear_io import open_dump
from tests.io_files import Command, command
from tests.links import said

WIDTHS = (8, 6, 6, 6, 3)


@pytest.fixture
def spear(capsys: pytest.CaptureFixture[str]) -> Command:
    return command(capsys)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Gradients fc1 to fc4, whose widths fit."""
    rng = np.random.default_rng(1)
    arrays: dict[str, Any] = {}
    for number, (n, m) in enumerate(pairwise(WIDTHS), 1):
        arrays[f"fc{number}.weight_grad"], arrays[f"fc{number}.bias_grad"] = rng.random((m, n)), rng.random(m)
    np.savez(tmp_path / "g.npz", **arrays)
    return tmp_path / "g.npz"


def told(spear: Command, source: Path, *options: Any) -> dict[str, tuple[str, str | None]]:
    dump = source.with_name("dump.h5")
    run = spear("convert", *options, source, dump, "--orientation", "mn")
    assert run.status == 0, run.error
    return {name: found[:2] for name, found in said(dump).items()}


def test_names_and_shapes_alone_say_of_no_layer_that_it_follows(spear: Command, source: Path) -> None:
    assert [found for _, found in told(spear, source).values()] == [None] * 4


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (["--follows"], [None, "fc1", "fc2", "fc3"]),
        (["--follows", "fc2=fc1"], [None, "fc1", None, None]),
        (["--follows", "fc2=fc1", "--follows", "fc4=fc2"], [None, "fc1", None, "fc2"]),
        (["--follows", "--follows", "fc3=none"], [None, "fc1", None, "fc3"]),
        (["--follows=fc2=fc1"], [None, "fc1", None, None]),
        (["--layer", "fc1", "--layer", "fc2", "--follows"], [None, "fc1"]),
    ],
    ids=str,
)
def test_follows_is_said_of_all_layers_or_of_some(
    spear: Command, source: Path, options: list[str], wanted: list[str | None]
) -> None:
    """The option stands before SOURCE, which it must not swallow."""
    assert [found for _, found in told(spear, source, *options).values()] == wanted


def test_follows_may_stand_last(spear: Command, source: Path) -> None:
    dump = source.with_name("dump.h5")
    assert spear("convert", source, dump, "--orientation", "mn", "--follows").status == 0
    assert said(dump)["fc4"][1] == "fc3"


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ([], ["relu", "relu", "relu", "none"]),
        (["--activation", "gelu"], ["gelu", "gelu", "gelu", "none"]),
        (["--activation", "fc2=gelu"], ["relu", "gelu", "relu", "none"]),
        (["--activation", "tanh", "--activation", "fc4=softmax"], ["tanh", "tanh", "tanh", "softmax"]),
        (
            ["--activation", "leaky_relu:negative_slope=0.2", "--activation", "fc1=hardtanh:low=-2,high=0.5"],
            ["hardtanh(low=-2, high=0.5)", *["leaky_relu(negative_slope=0.2)"] * 2, "none"],
        ),
        (["--activation", "fc3=linear"], ["relu", "relu", "none", "none"]),
    ],
    ids=str,
)
def test_activations_are_said_of_all_layers_or_of_some(
    spear: Command, source: Path, options: list[str], wanted: list[str]
) -> None:
    assert [activation for activation, _ in told(spear, source, *options).values()] == wanted


def test_an_assumption_is_noted_only_where_one_was_made(spear: Command, source: Path) -> None:
    every = [word for number in range(1, 5) for word in ("--activation", f"fc{number}=gelu")]
    for options, noted in (([], True), (every[:4], True), (every, False), (["--activation", "gelu"], False)):
        run = spear("convert", source, source.with_name("dump.h5"), "--orientation", "mn", *options)
        assert ("a ReLU is assumed" in run.out) == noted


def test_the_table_shows_what_follows(spear: Command, source: Path) -> None:
    dump = source.with_name("dump.h5")
    plain = spear("convert", source, dump, "--orientation", "mn")
    assert "follows" not in next(line for line in plain.out.splitlines() if "followed by" in line)
    shown = spear("convert", source, dump, "--orientation", "mn", "--follows", "fc2=fc1")
    (line,) = [line for line in shown.out.splitlines() if line.split()[:1] == ["fc2"]]
    assert "fc1" in line.split()


def test_a_loss_is_noted(spear: Command, source: Path) -> None:
    told(spear, source, "--loss", "mse")
    with open_dump(source.with_name("dump.h5")) as dump:
        assert dump.records[0].info.loss == "mse"


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--follows", "fc9=fc1"], "--follows names 'fc9', but there is no such layer"),
        (
            ["--follows", "fc2=fc9"],
            "layer 'fc2': the attribute 'follows' is 'fc9', but there is no such layer",
        ),
        (["--follows", "fc2=fc2"], "layer 'fc2': the attribute 'follows' is 'fc2', the layer itself"),
        (["--follows", "fc2=fc3"], "layer 'fc2': the attribute 'follows' is 'fc3', which comes later"),
        (
            ["--follows", "fc1=fc2", "--follows", "fc2=fc1"],
            "layer 'fc1': the attribute 'follows' is 'fc2', which comes",
        ),
        (["--activation", "fc9=gelu"], "--activation names 'fc9', but there is no such layer"),
        (["--activation", ""], "--activation: is empty"),
        (["--activation", "fc1="], "'fc1=' is not [LAYER=]NAME[:PARAMETER=X"),
        (["--activation", "fc1=a:b:c"], "'fc1=a:b:c' is not [LAYER=]NAME[:PARAMETER=X"),
        (["--activation", "elu:alpha=x"], "'alpha=x' is not PARAMETER=NUMBER"),
        (["--activation", "elu:alpha=-1"], "the parameter 'alpha' of 'elu' is -1, but must be above zero"),
        (
            ["--activation", "elu:alpha=nan"],
            "the parameter 'alpha' of 'elu' is nan, but must be a finite number",
        ),
        (["--activation", "relu:alpha=1"], "the activation 'relu' has no parameter 'alpha'"),
        (["--activation", "fc1=hardtanh:low=2"], "low must be below high"),
        (["--loss", " "], "--loss: is empty"),
    ],
    ids=str,
)
def test_what_cannot_be_is_one_line_and_leaves_an_older_dump(
    spear: Command, source: Path, options: list[str], problem: str
) -> None:
    told(spear, source)
    dump = source.with_name("dump.h5")
    before = dump.read_bytes()
    run = spear("convert", source, dump, "--orientation", "mn", *options)
    assert run.status == 2
    assert problem in run.error
    assert len(run.error.strip().splitlines()) == 1
    assert dump.read_bytes() == before


def test_widths_that_do_not_fit_are_one_line(spear: Command, tmp_path: Path) -> None:
    arrays: dict[str, Any] = {"fc1.weight_grad": np.ones((5, 4)), "fc2.weight_grad": np.ones((3, 6))}
    np.savez(tmp_path / "g.npz", **arrays)
    run = spear("convert", tmp_path / "g.npz", tmp_path / "d.h5", "--orientation", "mn", "--follows")
    assert run.status == 2
    assert (
        "layer 'fc2': the attribute 'follows' is 'fc1', which has 5 output units, but this layer has 6"
        in run.error
    )
    assert not (tmp_path / "d.h5").exists()
