"""Answers in a notebook and as a table; the command by either name of a package."""

from __future__ import annotations

import base64
import html
import io
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

import spear_np
from spear_io import Display, FileError, open_inversion
from spear_io.files.sight import Seen, Sight
from spear_np.answer.notebook import MOST_SHOWN, png, square_shape
from tests.io_files import layer_data
from tests.pages import HOSTILE, SCRIPT, answer, pictures, write_inversion

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


@pytest.mark.parametrize("channels", [1, 3, 4])
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


def written(path: Path, rows: Any, **options: Any) -> Path:
    """An inversion file of one layer with the inputs `rows`."""
    return write_inversion(path, [("client-0", "fc1", answer(rows, **options.pop("said", {})))], **options)


class TestFiles:
    """Layers of an inversion file show themselves as the answers of the solver do."""

    def test_a_layer_shows_pictures_and_certificate(self, tmp_path: Path) -> None:
        rows = pictures(4)
        path = written(tmp_path / "a.h5", rows, display=Display(input_shape=(1, 8, 8)))
        with open_inversion(path) as inversion:
            (layer,) = inversion.layers
            page = layer._repr_html_()
            assert "4 of 4 inputs from layer 'fc1' 12 x 64 of record 'client-0'" in html.unescape(page)
            assert "checks hold" in page
            assert "Drawn as 8 × 8 pictures, as the file says." in page
            assert page.count("<strong>") >= 1
        low, high = rows.min(), rows.max()
        wanted = np.rint((rows[1] - low) / (high - low) * 255)
        np.testing.assert_array_equal(pictures_in(page)[1].reshape(-1), wanted)

    def test_channels_may_come_last(self, tmp_path: Path) -> None:
        rows = np.random.default_rng(0).random((2, 8 * 9 * 3))
        with open_inversion(
            written(tmp_path / "a.h5", rows, display=Display(input_shape=(8, 9, 3)))
        ) as inversion:
            shown = pictures_in(inversion.layers[0]._repr_html_())
        np.testing.assert_allclose(shown[1], rows[1].reshape(8, 9, 3) * 255, atol=2)

    @pytest.mark.parametrize(
        "about",
        [
            {"seen": Seen(Sight.FEATURES, None, "conv2d")},
            {"display": Display(input_shape=(64,))},
            {"display": Display(feature_names=tuple(f"age {number}" for number in range(64)))},
            {"display": Display(input_shape=(1, 8, 9))},
        ],
    )
    def test_what_are_no_pictures_is_shown_as_numbers(self, tmp_path: Path, about: dict[str, Any]) -> None:
        with open_inversion(written(tmp_path / "a.h5", pictures(2), **about)) as inversion:
            page = inversion.layers[0]._repr_html_()
        assert "<img" not in page
        assert "One input a row, 64 features." in page

    @pytest.mark.parametrize("text", HOSTILE)
    def test_texts_of_strangers_are_harmless(self, tmp_path: Path, text: str) -> None:
        path = written(tmp_path / "a.h5", pictures(1))
        with h5py.File(path, "r+") as file:
            file["records/client-0/layers/fc1"].attrs.update({"claim": text, "reason": text})
        with open_inversion(path) as inversion:
            page, printed = inversion.layers[0]._repr_html_(), repr(inversion.layers[0])
        tags = {*re.findall(r"<(\w+)", page)}
        assert tags <= {
            "div",
            "p",
            "strong",
            "details",
            "summary",
            "ul",
            "li",
            "table",
            "tr",
            "th",
            "td",
            "img",
        }
        assert "javascript:" not in "".join(re.findall(r"<[^>]*>", page))
        assert "\u202e" not in page + printed

    def test_numbers_of_strangers_are_drawn(self, tmp_path: Path) -> None:
        path = written(tmp_path / "a.h5", pictures(2))
        with h5py.File(path, "r+") as file:
            file["records/client-0/layers/fc1/inputs"][0, :3] = [np.nan, np.inf, 1e308]
        with open_inversion(path) as inversion:
            assert len(pictures_in(inversion.layers[0]._repr_html_())) == 2

    def test_it_prints_in_two_lines(self, tmp_path: Path) -> None:
        with open_inversion(written(tmp_path / "a.h5", pictures(3))) as inversion:
            assert repr(inversion) == f"<InversionFile {tmp_path / 'a.h5'}: 1 exact>"
            (layer,) = inversion.layers
        first, second = repr(layer).splitlines()  # of a file that is closed
        assert first.startswith("<RecoveredLayer exact")
        assert first.endswith("3 of 3 inputs from layer 'fc1' 12 x 64 of record 'client-0'")
        assert second == f"  {layer.reason}>"

    def test_a_layer_is_a_table(self, tmp_path: Path) -> None:
        pytest.importorskip("pandas", reason="pandas is not installed")
        rows = pictures(4)
        named = Display(feature_names=tuple(f"age {number}" for number in range(64)))
        path = written(tmp_path / "a.h5", rows, display=named, said={"labels": [3, 1, 2, 0]})
        with open_inversion(path) as inversion:
            table = inversion.layers[0].to_dataframe()
        same = answer(rows, labels=[3, 1, 2, 0]).to_dataframe()
        assert table["label"].tolist() == [3, 1, 2, 0]
        assert list(table.columns[:-64]) == list(same.columns[:-64])
        np.testing.assert_array_equal(table.to_numpy(), same.to_numpy())
        assert table.columns[-1] == "age 63"

    def test_a_closed_file_is_said_to_be_closed(self, tmp_path: Path) -> None:
        with open_inversion(written(tmp_path / "a.h5", pictures(3))) as inversion:
            (layer,) = inversion.layers
        with pytest.raises(FileError, match="the file was closed; read it inside the block"):
            layer.to_dataframe()
        assert "the file was closed" in layer._repr_html_()
