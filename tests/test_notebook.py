"""Answers in a notebook and as a table; the command by either name of a package."""

from __future__ import annotations

import base64
import io
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import spear_np
from spear_np.answer.notebook import MOST_SHOWN, png, square_shape
from tests.io_files import layer_data
from tests.pages import SCRIPT, answer, pictures

ROOT = Path(__file__).parent.parent


def pictures_in(page: str) -> list[Any]:
    found = []
    for encoded in re.findall(r"base64,([^\"]+)\"", page):
        with Image.open(io.BytesIO(base64.b64decode(encoded))) as image:
            found.append(np.asarray(image))
    return found


def test_a_notebook_shows_pictures_and_certificate() -> None:
    data = layer_data()
    result = spear_np.invert(data.weight_grad, data.bias_grad, weight=data.weight, bias=data.bias)
    assert result.status == "exact"
    page = result._repr_html_()
    assert "exact if plain gradient" in page
    assert "checks hold" in page
    shown = pictures_in(page)
    assert len(shown) == result.found
    assert shown[0].shape == (8, 8)
    inputs = np.asarray(result.inputs)
    low, high = inputs.min(), inputs.max()
    np.testing.assert_array_equal(shown[1].reshape(-1), np.rint((inputs[1] - low) / (high - low) * 255))


def test_a_notebook_shows_no_more_than_it_can_bear() -> None:
    page = answer(pictures(100))._repr_html_()
    assert len(pictures_in(page)) == MOST_SHOWN
    assert "The first 32 of 100." in page


def test_a_table_is_shown_as_numbers() -> None:
    page = answer(np.arange(30.0).reshape(2, 15))._repr_html_()
    assert "<img" not in page
    assert "One input a row, 15 features." in page


def test_nothing_found_is_said() -> None:
    page = answer(np.zeros((0, 64)), status="failed")._repr_html_()
    assert "something is missing" in page
    assert "<img" not in page


def test_texts_are_escaped() -> None:
    hostile = replace(answer(pictures(1)), reason=SCRIPT)
    assert SCRIPT not in hostile._repr_html_()


@pytest.mark.parametrize(
    ("features", "shape"),
    [(784, (1, 28, 28)), (3072, (3, 32, 32)), (64, (1, 8, 8)), (49, None), (100_000, None), (65, None)],
)
def test_only_squares_are_taken_for_pictures(features: int, shape: tuple[int, ...] | None) -> None:
    assert square_shape(features) == shape


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_are_valid_png(channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, channels)).astype(np.uint8)
    with Image.open(io.BytesIO(png(pixels))) as image:
        image.load()
        np.testing.assert_array_equal(np.asarray(image).reshape(pixels.shape), pixels)


def test_an_answer_is_a_table() -> None:
    pytest.importorskip("pandas", reason="pandas is not installed")
    rows = pictures(4)
    table = answer(rows, labels=[3, 1, 2, 0]).to_dataframe()
    assert table["label"].tolist() == [3, 1, 2, 0]
    assert table["error_bound"].tolist() == [1e-6] * 4
    np.testing.assert_array_equal(table[[f"x{number}" for number in range(64)]], rows)
    assert len(answer(np.zeros((0, 9)), status="failed").to_dataframe()) == 0


@pytest.mark.parametrize("make", ["torch.tensor", "torch.nn.Parameter", "jax.numpy.asarray"])
def test_claims_may_be_arrays_of_a_framework(make: str) -> None:
    module = pytest.importorskip(make.split(".")[0], reason="the framework is not installed")
    if module.__name__ == "jax":
        pytest.importorskip("jax.numpy")
    data = layer_data()
    result = spear_np.invert(data.weight_grad, data.bias_grad, weight=data.weight, bias=data.bias)
    inputs: Any = np.asarray(data.inputs, dtype=np.float32)
    if make == "torch.nn.Parameter":
        inputs = module.tensor(inputs)
    for name in make.split(".")[1:]:
        module = getattr(module, name)
    assert spear_np.check(result.gradients, module(inputs)).found == len(data.inputs)


@pytest.mark.parametrize("package", ["spear_np", "spear_io"])
def test_both_packages_are_the_command(package: str) -> None:
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'io'}", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-m", package, "inspect", "nowhere.h5"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "spear-np: error: nowhere.h5: there is no such file; check the name\n"
