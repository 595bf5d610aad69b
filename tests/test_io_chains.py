"""Activations, `follows`, `between` and `loss` in dumps: written, read back, and refused where they cannot be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import spear_np
from spear_io import FileError, LayerArrays, RecordInfo, open_dump, write_dump
from tests.io_files import Command, command

WIDTHS = {"a": (6, 9), "b": (5, 6), "c": (4, 5), "d": (5, 6)}
"""(m, n) of each layer; b and d both fit behind a."""

Change = Callable[[h5py.Group], None]


def layers(**follows: str | None) -> dict[str, LayerArrays]:
    rng = np.random.default_rng(3)
    return {
        name: LayerArrays(
            rng.standard_normal(shape), rng.standard_normal(shape[0]), follows=follows.get(name)
        )
        for name, shape in WIDTHS.items()
    }


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Command:
    return command(capsys)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "dump.h5"


@pytest.mark.parametrize(
    "activation",
    [
        spear_np.Activation("relu6"),
        spear_np.Activation("leaky_relu", {"negative_slope": 0.2}),
        spear_np.Activation("prelu", {"slope": 0.1}),
        spear_np.Activation("prelu", {"slope": np.linspace(0, 1, 6)}),
        spear_np.Activation("elu", {"alpha": 0.5}),
        spear_np.Activation("softplus", {"beta": 3.0}),
        spear_np.Activation("hardtanh", {"low": -2.0, "high": 0.5}),
        spear_np.Activation("gelu_tanh"),
        spear_np.Activation("none"),
        spear_np.Activation("squareplus"),
    ],
    ids=str,
)
def test_an_activation_is_read_back_with_its_parameters(path: Path, activation: spear_np.Activation) -> None:
    arrays = LayerArrays(np.eye(6, 9), activation=activation)
    write_dump(path, {"fc": arrays})
    with open_dump(path) as dump:
        (layer,) = dump.records[0].layers
        assert layer.activation == activation


def test_parameters_that_the_file_lacks_have_their_defaults(path: Path) -> None:
    write_dump(path, {"fc": LayerArrays(np.eye(6, 9))})
    for name, default in [("leaky_relu", 0.01), ("elu", 1.0), ("celu", 1.0), ("softplus", 1.0)]:
        with h5py.File(path, "r+") as file:
            file["records/record-0/layers/fc"].attrs["activation"] = name
        with open_dump(path) as dump:
            assert list(dump.records[0].layers[0].activation.parameters.values()) == [default]


def test_chains_are_paths_of_layers_that_follow_each_other(path: Path) -> None:
    write_dump(path, layers(b="a", c="b", d="a"), info=RecordInfo(loss="cross_entropy"))
    with open_dump(path) as dump:
        (record,) = dump.records
        assert record.info.loss == "cross_entropy"
        assert [layer.follows for layer in record.layers] == [None, "a", "b", "a"]
        assert [[layer.name for layer in chain] for chain in record.chains] == [["a", "b", "c"], ["a", "d"]]


def test_a_dump_without_follows_has_no_chains(path: Path) -> None:
    write_dump(path, layers())
    with open_dump(path) as dump:
        assert dump.records[0].chains == ()


def test_what_stands_between_is_kept(path: Path) -> None:
    arrays = layers()
    arrays["b"] = LayerArrays(arrays["b"].weight_grad, between="layer_norm+dropout")
    write_dump(path, arrays)
    with open_dump(path) as dump:
        assert [layer.between for layer in dump.records[0].layers] == [None, "layer_norm+dropout", None, None]


WRONG = {
    "missing": ({"c": "x"}, "'follows' is 'x', but there is no such layer; there is: 'a', 'b', 'd'"),
    "later": ({"b": "c"}, "'follows' is 'c', which comes later in the forward pass"),
    "itself": ({"c": "c"}, "'follows' is 'c', the layer itself"),
    "circle": ({"b": "c", "c": "b"}, "'follows' is 'c', which comes later in the forward pass"),
    "width": ({"c": "a"}, "'follows' is 'a', which has 6 output units, but this layer has 5 input features"),
}


@pytest.mark.parametrize(("follows", "message"), WRONG.values(), ids=WRONG)
def test_a_follows_that_cannot_be_is_refused_in_one_line(
    path: Path, run: Command, follows: dict[str, str], message: str
) -> None:
    with pytest.raises(FileError, match="follows"):
        write_dump(path, layers(**follows))
    assert not path.exists()
    write_dump(path, layers())
    with h5py.File(path, "r+") as file:
        for name, before in follows.items():
            file[f"records/record-0/layers/{name}"].attrs["follows"] = before
    for arguments in (["inspect", path], ["invert", path, "-o", path.with_name("out.h5")]):
        done = run(*map(str, arguments))
        assert done.status == 2
        where = f"record 'record-0', layer '{next(iter(follows))}'"
        assert message in done.error
        assert where in done.error


@pytest.mark.parametrize(
    ("activation", "attributes", "message"),
    [
        ("leaky_relu", {"negative_slope": np.nan}, "'negative_slope' of 'leaky_relu' is nan"),
        ("elu", {"alpha": -1.0}, "'alpha' of 'elu' is -1, but must be above zero"),
        ("softplus", {"beta": np.inf}, "'beta' of 'softplus' is inf"),
        ("hardtanh", {"low": 2.0}, "low 2, high 1: low must be below high"),
        ("elu", {"alpha": "large"}, "the attribute 'alpha' should be a number, but is 'large'"),
    ],
)
def test_a_parameter_out_of_range_is_refused_in_one_line(
    path: Path, run: Command, activation: str, attributes: dict[str, Any], message: str
) -> None:
    write_dump(path, layers())
    with h5py.File(path, "r+") as file:
        file["records/record-0/layers/b"].attrs.update({"activation": activation, **attributes})
    done = run("inspect", str(path))
    assert done.status == 2
    assert message in done.error
    assert "record 'record-0', layer 'b'" in done.error


@pytest.mark.parametrize("slopes", [np.ones((2, 3)), np.ones(0), np.ones(5), np.asarray([np.nan] * 6)])
def test_slopes_that_do_not_fit_are_refused_in_one_line(path: Path, run: Command, slopes: Any) -> None:
    write_dump(path, {"fc": LayerArrays(np.eye(6, 9), activation="prelu")})
    with h5py.File(path, "r+") as file:
        group = file["records/record-0/layers/fc"]
        del group["slope"]
        group["slope"] = slopes
    done = run("inspect", str(path))
    assert done.status == 2
    assert "layer 'fc'" in done.error
    assert "slope" in done.error
