"""Recovered inputs as pictures, tables and arrays: the numbers, the units, and folders that are there already."""

from __future__ import annotations

import csv
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from spear_io import Display
from spear_io.convert.truth import read_truth
from tests.io_files import Command, command
from tests.pages import HOSTILE, answer, pictures, write_inversion


@pytest.fixture
def spear(capsys: pytest.CaptureFixture[str]) -> Command:
    return command(capsys)


DATA = np.rint(pictures(12, (3, 8, 9)) * 255) / 255
MEAN, STD = (0.5, 0.4, 0.3), (0.5, 0.25, 0.2)
DISPLAY = Display((3, 8, 9), MEAN, STD)


def pixels_of(path: Path) -> Any:
    with Image.open(path) as image:
        return np.asarray(image)


def arrays_of(path: Path) -> dict[str, Any]:
    with np.load(path) as archive:
        return dict(archive)


@pytest.fixture
def inversion(tmp_path: Path) -> Path:
    """Twelve pictures of three channels, normalised, with labels."""
    mean, std = np.repeat(MEAN, 72), np.repeat(STD, 72)
    rows = (DATA - mean) / std
    return write_inversion(
        tmp_path / "out.h5", [("client 1", "fc", answer(rows, labels=range(12)))], display=DISPLAY
    )


def test_pictures_come_back_as_they_were(spear: Command, inversion: Path, tmp_path: Path) -> None:
    folder = tmp_path / "export"
    done = spear("export", inversion, "-o", folder)
    assert (done.status, done.err) == (0, "")
    below = folder / "001-client-1-fc"
    for row in range(12):
        pixels = pixels_of(below / f"input-{row:04}.png").transpose(2, 0, 1).reshape(-1)
        np.testing.assert_array_equal(pixels, np.rint(255 * DATA[row]))
    assert pixels_of(below / "contact-sheet.png").shape == (2 * 10 + 2, 10 * 11 + 2, 3)
    arrays = arrays_of(below / "inputs.npz")
    assert arrays["inputs"].shape == (12, 3, 8, 9)
    np.testing.assert_allclose(arrays["inputs"].reshape(12, -1), DATA, atol=1e-12)
    assert arrays["label"].tolist() == list(range(12))
    np.testing.assert_allclose(arrays["error_bound"], 0.5e-6)
    manifest = json.loads((folder / "export.json").read_text())
    assert manifest["layers"][0]["units"] == "data"
    assert (
        sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
        == manifest["files"]
    )
    assert (folder.stat().st_mode & 0o777, (below / "inputs.npz").stat().st_mode & 0o777) == (0o700, 0o600)


def test_what_was_exported_is_a_truth_to_evaluate_against(
    spear: Command, inversion: Path, tmp_path: Path
) -> None:
    assert spear("export", inversion, "-o", tmp_path / "export").status == 0
    (tmp_path / "export/001-client-1-fc/contact-sheet.png").unlink()
    rows = read_truth(tmp_path / "export/001-client-1-fc", shape=(3, 8, 9))
    np.testing.assert_allclose(rows[:, :], DATA, atol=1e-12)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_tables_hold_every_digit(spear: Command, tmp_path: Path, kind: str) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    import pyarrow.parquet as pq

    names = ("age", "income", "=cmd()", "age")
    rows = np.random.default_rng(0).normal(size=(3, 4))
    path = write_inversion(
        tmp_path / "out.h5", [("a", "fc", answer(rows))], display=Display(feature_names=names)
    )
    assert spear("export", path, "-o", tmp_path / "export", "--format", kind).status == 0
    file = tmp_path / f"export/001-a-fc/inputs.{kind}"
    if kind == "csv":
        lines = list(csv.reader(file.read_text().splitlines()))
        assert lines[0] == ["input", "error_bound", "age", "income", "'=cmd()", "age (2)"]
        np.testing.assert_array_equal(np.asarray(lines[1:], dtype=float)[:, 2:], rows)
    else:
        table = pq.read_table(file)
        assert table.column_names == ["input", "error_bound", "age", "income", "=cmd()", "age (2)"]
        np.testing.assert_array_equal(np.column_stack([table[name] for name in table.column_names[2:]]), rows)


def test_flags_stand_in_for_what_the_file_does_not_say(spear: Command, tmp_path: Path) -> None:
    rows = pictures(2) * 2 - 1
    path = write_inversion(tmp_path / "out.h5", [("a", "fc", answer(rows))])
    assert (
        "its inputs are no pictures" in spear("export", path, "-o", tmp_path / "x", "--format", "png").error
    )
    assert not (tmp_path / "x").exists()
    shape = ("--input-shape", "1,8,8", "--input-mean", "0.5", "--input-std", "0.5")
    assert spear("export", path, "-o", tmp_path / "x", *shape).status == 0
    pixels = pixels_of(tmp_path / "x/001-a-fc/input-0001.png").reshape(-1)
    np.testing.assert_array_equal(pixels, np.rint(255 * (rows[1] * 0.5 + 0.5)))
    done = spear("export", path, "-o", tmp_path / "x", *shape, "--as-seen", "--format", "npz")
    assert done.status == 0
    np.testing.assert_array_equal(arrays_of(tmp_path / "x/001-a-fc/inputs.npz")["inputs"], rows)
    done = spear("export", path, "-o", tmp_path / "x", *shape, "--pixel-range", "0", "2")
    pixels = pixels_of(tmp_path / "x/001-a-fc/input-0001.png").reshape(-1)
    assert done.status == 0
    assert pixels.max() <= 128
    assert "is no range" in spear("export", path, "-o", tmp_path / "x", "--pixel-range", "2", "0").error


@pytest.mark.parametrize(
    ("values", "drawn"),
    [
        ((0, 16), (0, 16)),  # scikit-learn's digits
        ((0, 255), (0, 255)),
        ((0, 0.7), (0, 1)),
        ((-1, 1), (-1, 1)),
        ((0, 4095), (0, 4095)),
        ((-2.1, 2.6), (-2.1, 2.6)),
    ],
)
def test_pictures_of_a_layer_share_the_range_that_its_values_fit(
    spear: Command, tmp_path: Path, values: tuple[float, float], drawn: tuple[float, float]
) -> None:
    low, high = values
    rows = low + (high - low) * pictures(9)
    rows[0, :2] = low, high
    rows[8] = low  # a dark one stays dark
    path = write_inversion(tmp_path / "out.h5", [("a", "fc", answer(rows))], display=Display((1, 8, 8)))
    done = spear("export", path, "-o", tmp_path / "x")
    assert f"{drawn[0]:g} is black and {drawn[1]:g} is white: the " in done.out
    pixels = [pixels_of(tmp_path / f"x/001-a-fc/input-{row:04}.png").reshape(-1) for row in range(9)]
    share = (rows - drawn[0]) / (drawn[1] - drawn[0])
    np.testing.assert_array_equal(np.stack(pixels), np.rint(255 * share))
    (layer,) = json.loads((tmp_path / "x/export.json").read_text())["layers"]
    assert layer["pixel_range"] == list(drawn)


def test_one_wrong_input_does_not_turn_the_others_black(spear: Command, tmp_path: Path) -> None:
    rows = 16 * pictures(9)
    rows[4] *= 1e6
    path = write_inversion(tmp_path / "out.h5", [("a", "fc", answer(rows))], display=Display((1, 8, 8)))
    assert spear("export", path, "-o", tmp_path / "x").status == 0
    assert pixels_of(tmp_path / "x/001-a-fc/input-0000.png").max() > 200


def test_a_range_that_the_file_states_is_kept(spear: Command, tmp_path: Path) -> None:
    path = write_inversion(
        tmp_path / "out.h5",
        [("a", "fc", replace(answer(pictures(3)), data_range=(-1.0, 3.0)))],
        display=Display((1, 8, 8), (0.5,), (0.5,)),
    )
    done = spear("export", path, "-o", tmp_path / "x")
    assert "0 is black and 2 is white: the range of the inputs that the file states" in done.out


def test_without_a_scale_each_picture_has_its_own_range(spear: Command, tmp_path: Path) -> None:
    rows = pictures(3) * np.array([[1.0], [5.0], [-20.0]])
    path = write_inversion(
        tmp_path / "out.h5",
        [("a", "fc", replace(answer(rows), scale_known=False))],
        display=Display((1, 8, 8)),
    )
    done = spear("export", path, "-o", tmp_path / "x")
    assert "the scale of the inputs is not known" in done.out
    for row in range(3):
        pixels = pixels_of(tmp_path / f"x/001-a-fc/input-{row:04}.png")
        assert (pixels.min(), pixels.max()) == (0, 255)


def test_a_folder_of_somebody_else_stays(spear: Command, inversion: Path, tmp_path: Path) -> None:
    folder = tmp_path / "export"
    folder.mkdir()
    assert spear("export", inversion, "-o", folder, "--format", "npz").status == 0
    assert spear("export", inversion, "-o", folder).status == 0  # its own is replaced
    (folder / "notes.txt").write_text("mine")
    before = sorted(folder.rglob("*"))
    assert "did not write, so it is not replaced" in spear("export", inversion, "-o", folder).error
    assert sorted(folder.rglob("*")) == before
    assert "is not a folder" in spear("export", inversion, "-o", inversion).error
    assert "does not exist" in spear("export", inversion, "-o", tmp_path / "no/where").error
    (folder / "export.json").write_text('{"format": "spear-export", "files": 3}')
    assert "so it is not replaced" in spear("export", inversion, "-o", folder).error


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_closed_folder_is_one_line(spear: Command, inversion: Path, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    assert "cannot be written" in spear("export", inversion, "-o", tmp_path / "closed/export").error


def test_a_full_disk_leaves_nothing(
    spear: Command, inversion: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from spear_io.files import folders

    spear("export", inversion, "-o", tmp_path / "export", "--format", "csv")
    before = (tmp_path / "export/001-client-1-fc/inputs.csv").read_bytes()
    create = folders._create

    def full(path: Path, data: bytes) -> None:
        if path.name == "input-0005.png":
            raise OSError(28, "No space left on device")
        create(path, data)

    monkeypatch.setattr(folders, "_create", full)
    assert "No space left on device" in spear("export", inversion, "-o", tmp_path / "export").error
    monkeypatch.undo()
    assert (tmp_path / "export/001-client-1-fc/inputs.csv").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["export", "out.h5"]


@pytest.mark.parametrize("name", [name for name in (*HOSTILE, "..", "con ", "~") if "/" not in name])
def test_names_lead_nowhere_else(spear: Command, tmp_path: Path, name: str) -> None:
    record = name if name != ".." else "..\\.."
    path = write_inversion(
        tmp_path / "out.h5", [(record, name if name != ".." else "fc", answer(pictures(1)))]
    )
    assert spear("export", path, "-o", tmp_path / "export").status == 0
    (below,) = (file for file in (tmp_path / "export").iterdir() if file.is_dir())
    assert below.name.startswith("001-")
    assert below.name.isascii()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["export", "out.h5"]


def test_nothing_recovered_is_one_line(spear: Command, tmp_path: Path) -> None:
    path = write_inversion(tmp_path / "out.h5", [("a", "fc", answer(np.zeros((0, 9)), status="failed"))])
    assert (
        "holds no recovered inputs: something is missing" in spear("export", path, "-o", tmp_path / "x").error
    )
    assert not (tmp_path / "x").exists()


@pytest.mark.skipif(
    not Path("/proc/self").is_dir(), reason="there is no folder that takes no files from anybody"
)
def test_where_nobody_may_write_is_one_line(spear: Command, tmp_path: Path) -> None:
    path = write_inversion(tmp_path / "out.h5", [("a", "fc", answer(pictures(2)))])
    assert "cannot be written" in spear("export", path, "-o", "/proc/export").error
