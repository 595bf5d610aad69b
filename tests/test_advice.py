"""Why inputs are missing, and what to try, by what a real failure shows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import spear_np
from spear_io import InversionWriter, RecordInfo, open_inversion
from spear_io.show.advice import advice, findings
from spear_np import Activation
from tests.chains import network_of
from tests.io_files import layer_data
from tests.networks import digit_batch
from tests.pages import answer, pictures


def advised(tmp_path: Path, result: spear_np.Inversion, info: RecordInfo | None = None) -> list[str]:
    """Causes that are named for a result, as they are read back from its file."""
    with InversionWriter(tmp_path / "out.h5", source="dump.h5") as out:
        out.add("a", "fc", result)
    with open_inversion(tmp_path / "out.h5") as inversion:
        return [one.cause for one in advice(findings(inversion.layers[0], info))]


def inverted(change: Any = None, **options: Any) -> spear_np.Inversion:
    data = layer_data(b=options.pop("b", 4))
    arrays = {name: getattr(data, name) for name in ("weight_grad", "bias_grad", "weight", "bias")}
    if change is not None:
        arrays |= {name: change(arrays[name]).astype(np.float32) for name in ("weight_grad", "bias_grad")}
    return spear_np.invert(**arrays, time_limit=options.pop("time_limit", 5), **options)


def test_a_whole_batch_needs_no_advice(tmp_path: Path) -> None:
    result = inverted()
    assert result.status == "exact"
    assert advised(tmp_path, result) == []


def test_a_batch_as_large_as_the_layer(tmp_path: Path) -> None:
    causes = advised(tmp_path, inverted(b=64))
    assert causes[0].startswith("the batch has 60 inputs or more")
    assert len(causes) == 3


def test_signs_of_an_optimiser_come_first(tmp_path: Path) -> None:
    causes = advised(tmp_path, inverted(np.sign))
    assert causes[0].startswith("the update holds the signs of a gradient")


def test_another_activation_comes_first(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, weight = rng.normal(size=(4, 64)), rng.normal(size=(60, 64))
    columns = rng.normal(size=(4, 60)) * (1 - np.tanh(x @ weight.T) ** 2)
    result = spear_np.invert(columns.T @ x, columns.sum(axis=0), weight=weight, time_limit=5)
    assert result.status == "failed"
    assert advised(tmp_path, result)[0].startswith("another activation than a ReLU")


def test_signs_that_contradict_the_layer_speak_of_its_activation(tmp_path: Path) -> None:
    reason = "all 4 inputs seem found, but its activation signs contradict the layer (λ = 0.6): something else than a ReLU follows it"
    result = replace(answer(pictures(2), status="failed"), reason=reason)
    assert advised(tmp_path, result)[0].startswith(
        "the layer is followed by another activation than is stated"
    )


@pytest.mark.parametrize(("true", "said"), [("leaky_relu", "relu"), ("tanh", "leaky_relu")])
def test_an_activation_that_explains_the_gradients_is_the_only_cause(
    tmp_path: Path, true: str, said: str
) -> None:
    data = network_of(*digit_batch(8, seed=3), widths=(40, 40), activation=true)
    layers = [
        replace(layer, activation=Activation(said)) if number < 2 else layer
        for number, layer in enumerate(data.layers)
    ]
    result = spear_np.invert_chain(layers, time_limit=30, max_proposals=4000)
    assert result.status == "failed"
    (cause,) = advised(tmp_path, result)
    assert cause.startswith(f"'{true}' follows the layer, and not '{said}'")


def test_parameters_of_an_activation_are_named_as_commands_take_them(tmp_path: Path) -> None:
    reason = "the time limit of 20 s is spent; it looks as if 'leaky_relu(negative_slope=0.2)' followed the first layer, not 'relu': 0 of 4 inputs"
    failed = replace(answer(pictures(0), status="failed", batch_size=4), reason=reason)
    with InversionWriter(tmp_path / "out.h5", source="dump.h5") as out:
        out.add("a", "fc", failed)
    with open_inversion(tmp_path / "out.h5") as inversion:
        (one,) = advice(findings(inversion.layers[0], None))
    assert one.attempt == "state it: convert --activation leaky_relu:negative_slope=0.2"


@pytest.mark.parametrize(
    "likely", ["relu; rm -rf ~", "$(id)", "`id`", "relu(a=1) && id", "relu --force", "relu|sh"]
)
def test_no_command_is_made_of_what_a_stranger_wrote(tmp_path: Path, likely: str) -> None:
    reason = f"it looks as if '{likely}' followed the first layer, not 'relu': 0 of 4 inputs"
    failed = replace(answer(pictures(0), status="failed", batch_size=4), reason=reason)
    with InversionWriter(tmp_path / "out.h5", source="dump.h5") as out:
        out.add("a", "fc", failed)
    with open_inversion(tmp_path / "out.h5") as inversion:
        given = advice(findings(inversion.layers[0], None))
    assert not any(likely in one.attempt or likely in one.cause for one in given)


@pytest.mark.parametrize(("first", "batch", "named"), [(0, 3, True), (1, 3, False), (0, 9, False)])
def test_first_candidates_that_come_late_speak_of_the_activation_before_the_time(
    tmp_path: Path, first: int, batch: int, named: bool
) -> None:
    reason = f"the time limit of 20 s is spent: 0 of {batch} directions found"
    failed = replace(answer(pictures(0), status="failed", batch_size=batch), reason=reason)
    rounds = [spear_np.Round("descent", 256, first if n < 2 else 2, None, 0.1 * n) for n in range(5)]
    causes = advised(tmp_path, replace(failed, history=tuple(rounds)))
    assert causes[0].startswith("another activation than" if named else "the search was cut short")
    assert "the search was cut short" in causes


def test_local_steps_that_are_stated_come_first(tmp_path: Path) -> None:
    failed = replace(inverted(b=64), reason="no rank")
    assert advised(tmp_path, failed, RecordInfo(local_steps=5))[0].startswith(
        "the update sums up 5 local steps"
    )


def test_no_time_is_said(tmp_path: Path) -> None:
    result = inverted(b=25, time_limit=0)
    assert result.status == "failed"
    causes = advised(tmp_path, result)
    assert "the search was cut short" in causes
    assert any("than a layer of 60 units tells apart" in cause for cause in causes)


@pytest.mark.parametrize("level", [0.02, 0.3])
def test_noise_is_among_the_causes(tmp_path: Path, level: float) -> None:
    rng = np.random.default_rng(1)
    size = np.sqrt(np.mean(layer_data().weight_grad ** 2))
    result = inverted(lambda values: values + level * size * rng.normal(size=values.shape), time_limit=2)
    failed = replace(result, status=spear_np.Status.FAILED)
    assert any("noise of" in cause or cause.startswith("noise") for cause in advised(tmp_path, failed))
