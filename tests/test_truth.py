"""True inputs from outside a dump: arrays, tables, folders of pictures; in either units; and what is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from spear_io import Display, FileError
from spear_io.convert.truth import read_truth
from spear_io.files.sight import Seen, Sight
from tests.io_files import Command, command
from tests.pages import answer, pictures, write_inversion


@pytest.fixture
def spear(capsys: pytest.CaptureFixture[str]) -> Command:
    return command(capsys)


DATA = np.rint(pictures(6) * 255) / 255
DISPLAY = Display((1, 8, 8), (0.5,), (0.25,))


@pytest.fixture
def inversion(tmp_path: Path) -> Path:
    return write_inversion(
        tmp_path / "out.h5", [("a", "fc", answer((DATA[::-1] - 0.5) / 0.25))], display=DISPLAY
    )


def as_npy(folder: Path, values: Any) -> Path:
    np.save(folder / "truth.npy", values)
    return folder / "truth.npy"


def as_npz(folder: Path, values: Any) -> Path:
    np.savez(folder / "truth.npz", inputs=values, labels=np.arange(len(values)))
    return folder / "truth.npz"


def as_csv(folder: Path, values: Any) -> Path:
    flat = values.reshape(len(values), -1)
    names = ";".join(f"pixel {number}" for number in range(flat.shape[1]))
    np.savetxt(folder / "truth.csv", flat, delimiter=";", header=names, comments="", fmt="%.17g")
    return folder / "truth.csv"


def as_pictures(folder: Path, values: Any) -> Path:
    (folder / "truth").mkdir()
    for number, one in enumerate(values):
        Image.fromarray(np.rint(255 * one.reshape(8, 8)).astype(np.uint8)).save(
            folder / "truth" / f"{number:03}.png"
        )
    (folder / "truth" / "notes.txt").write_text("no picture")
    return folder / "truth"


@pytest.mark.parametrize("write", [as_npy, as_npz, as_csv, as_pictures])
@pytest.mark.parametrize("shape", [(6, 64), (6, 1, 8, 8)], ids=str)
def test_every_format_is_matched(
    spear: Command, inversion: Path, tmp_path: Path, write: Any, shape: tuple[int, ...]
) -> None:
    truth = write(tmp_path, DATA.reshape(shape))
    done = spear("evaluate", inversion, "--truth", truth, "--json")
    assert (done.status, done.err) == (0, "")
    (layer,) = json.loads(done.out)["layers"]
    assert (layer["exact"], layer["matched"], layer["units"]) == (6, 6, "pixels")
    assert [row["truth"] for row in layer["rows"]] == [5, 4, 3, 2, 1, 0]


@pytest.mark.parametrize("units", ["auto", "layer"])
def test_inputs_as_the_layer_sees_them(spear: Command, inversion: Path, tmp_path: Path, units: str) -> None:
    truth = as_npy(tmp_path, (DATA - 0.5) / 0.25)
    done = spear("evaluate", inversion, "--truth", truth, "--truth-units", units, "--json")
    assert json.loads(done.out)["layers"][0]["exact"] == 6


def test_units_that_are_said_are_believed(spear: Command, inversion: Path, tmp_path: Path) -> None:
    done = spear("evaluate", inversion, "--truth", as_npy(tmp_path, DATA), "--truth-units", "layer", "--json")
    assert (done.status, json.loads(done.out)["layers"][0]["exact"]) == (3, 0)


def test_bytes_are_pixels(tmp_path: Path) -> None:
    rows = read_truth(as_npy(tmp_path, np.rint(255 * DATA).astype(np.uint8)))
    np.testing.assert_allclose(rows[:, :], DATA, atol=1e-15)


@pytest.mark.parametrize("shape", [(3, 4, 5), (4, 5, 3), None], ids=str)
def test_colours_lie_as_the_network_takes_them(tmp_path: Path, shape: tuple[int, ...] | None) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    wanted = pixels if shape == (4, 5, 3) else pixels.transpose(2, 0, 1)
    rows = read_truth(tmp_path, shape=shape)
    np.testing.assert_allclose(rows[:, :][0], wanted.reshape(-1) / 255)


def test_features_are_no_images(spear: Command, tmp_path: Path) -> None:
    path = write_inversion(
        tmp_path / "out.h5",
        [("a", "fc4", answer(DATA))],
        display=Display((1, 8, 8)),
        seen=Seen(Sight.FEATURES, None, "conv2d"),
    )
    done = spear("evaluate", path, "--truth", as_npy(tmp_path, DATA), "--json")
    (layer,) = json.loads(done.out)["layers"]
    assert (layer["mean_ssim"], layer["exact"]) == (None, 6)
    assert "layer 'fc4' sees the output of conv2d: these are features, not images" in done.err


def broken_zip(folder: Path) -> Path:
    (folder / "truth.npz").write_bytes(as_npz(folder, DATA).read_bytes()[:300])
    return folder / "truth.npz"


def text(content: str) -> Any:
    def write(folder: Path) -> Path:
        (folder / "truth.csv").write_text(content)
        return folder / "truth.csv"

    return write


def several(folder: Path) -> Path:
    np.savez(folder / "truth.npz", first=DATA, second=DATA)
    return folder / "truth.npz"


def no_folder_of_pictures(folder: Path) -> Path:
    (folder / "truth").mkdir()
    return folder / "truth"


def no_picture(folder: Path) -> Path:
    (no_folder_of_pictures(folder) / "a.png").write_bytes(b"no picture")
    return folder / "truth"


def unequal(folder: Path) -> Path:
    as_pictures(folder, DATA)
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(folder / "truth" / "9.png")
    return folder / "truth"


def objects(folder: Path) -> Path:
    np.save(folder / "truth.npy", np.asarray([{}, {}]), allow_pickle=True)
    return folder / "truth.npy"


BAD: dict[str, Any] = {
    "no such file": lambda folder: folder / "nowhere.npy",
    "broken archive": broken_zip,
    "several arrays": several,
    "other features": lambda folder: as_npy(folder, DATA[:, :9]),
    "one dimension": lambda folder: as_npy(folder, DATA[0]),
    "NaN": lambda folder: as_npy(folder, np.where(DATA > 0.9, np.nan, DATA)),
    "Python objects": objects,
    "texts": lambda folder: as_npy(folder, np.full((2, 64), "a")),
    "an empty table": text(""),
    "a table of texts": text("a,b\nc,d\n"),
    "a ragged table": text("1,2\n3\n"),
    "a table of bytes": text("\x00\x01"),
    "no pictures": no_folder_of_pictures,
    "no picture": no_picture,
    "pictures of several sizes": unequal,
}


@pytest.mark.parametrize("make", BAD.values(), ids=BAD)
def test_what_is_no_truth_is_one_line(spear: Command, inversion: Path, tmp_path: Path, make: Any) -> None:
    path = make(tmp_path)
    done = spear("evaluate", inversion, "--truth", path)
    assert done.status == 2
    assert path.name in done.error


def test_a_dump_and_a_truth_are_too_much(spear: Command, inversion: Path, tmp_path: Path) -> None:
    assert "not both" in spear("evaluate", inversion).error
    assert "not both" in spear("evaluate", inversion, inversion, "--truth", inversion).error


def test_shapes_of_pictures_are_held_against_the_network(tmp_path: Path) -> None:
    as_pictures(tmp_path, DATA)
    with pytest.raises(FileError, match="has 8 x 8 pixels, but an input of the network has shape"):
        read_truth(tmp_path / "truth", shape=(1, 9, 9))
