from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from spear_io import FileError, InversionWriter, RecordInfo, open_dump, open_inversion, write_dump
from spear_io.show.evaluate import LayerEvaluation, evaluate, evaluation_notes
from tests.io_files import B, M, N, fake_inversion, layer_arrays, layer_data


def evaluated(
    folder: Path,
    truth: Any,
    recovered: Any,
    *,
    info: RecordInfo | None = None,
    bias_grad: bool = True,
    **options: Any,
) -> tuple[LayerEvaluation, ...]:
    """Write a dump with `truth` and an inversion with `recovered`, and compare them."""
    truth = np.asarray(truth, dtype=np.float32)
    data = layer_data()
    n = truth.shape[1]
    grid = np.resize(data.weight_grad, (M, n))
    layer = layer_arrays(data, weight_grad=grid, weight=None, bias=None, inputs=truth)
    if not bias_grad:
        layer = layer_arrays(data, weight_grad=grid, bias_grad=None, weight=None, bias=None, inputs=truth)
    write_dump(folder / "dump.h5", {"fc1": layer}, info=info or RecordInfo())
    with open_dump(folder / "dump.h5") as dump:
        with InversionWriter(folder / "out.h5", source=folder / "dump.h5") as out:
            gradients = dump.records[0].layers[0].gradients
            out.add("record-0", "fc1", fake_inversion(gradients, recovered, **options))
        with open_inversion(folder / "out.h5") as inversion:
            return evaluate(inversion, dump)


def random_truth(b: int = B, n: int = N) -> Any:
    return np.random.default_rng(5).uniform(-1, 3, (b, n)).astype(np.float32)


def test_rows_are_matched_and_measured(tmp_path: Path) -> None:
    truth = random_truth()
    order = [2, 0, 3, 1]
    recovered = truth[order].astype(np.float64)
    recovered[1, 7] += 0.5
    (result,) = evaluated(tmp_path, truth, recovered)
    data_range = float(truth.max()) - float(truth.min())
    assert result.data_range == pytest.approx(data_range)
    assert result.units == "layer inputs"
    assert [row.truth for row in result.rows] == order
    assert [row.exact for row in result.rows] == [True, False, True, True]
    assert (result.exact, result.matched, result.truth_inputs, result.distinct_truth) == (3, B, B, B)
    assert (result.exact_share, result.matched_share) == (0.75, 1.0)
    assert result.rows[1].max_error == pytest.approx(0.5 / data_range)
    assert result.max_error == pytest.approx(0.5 / data_range)
    assert result.rows[1].psnr == pytest.approx(10 * np.log10(data_range**2 / (0.25 / N)))
    assert result.rows[0].psnr == np.inf


def test_matching_looks_at_blocks_of_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spear_io.files.storage.BLOCK_BYTES", 8 * 2 * B * 10)
    truth = random_truth()
    (result,) = evaluated(tmp_path, truth, truth[::-1])
    assert [row.truth for row in result.rows] == [3, 2, 1, 0]
    assert result.exact == B


def test_small_differences_on_a_large_offset_still_match(tmp_path: Path) -> None:
    truth = 1e4 + 1e-2 * random_truth()
    (result,) = evaluated(tmp_path, truth, truth[[1, 0, 3, 2]])
    assert [row.truth for row in result.rows] == [1, 0, 3, 2]


def test_exact_ends_at_a_ten_thousandth_of_the_range(tmp_path: Path) -> None:
    truth = np.zeros((2, N), np.float32)
    truth[0, 0] = 2
    truth[1, 1] = 1
    recovered = truth.astype(np.float64)
    recovered[0, 5] = 1.9e-4
    recovered[1, 5] = 2.1e-4
    (result,) = evaluated(tmp_path, truth, recovered)
    assert [row.exact for row in result.rows] == [True, False]


def test_pixels_are_the_units_where_normalisation_is_known(tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).uniform(0, 1, (B, 3, 4, 4))
    mean, std = np.array([0.1, 0.2, 0.3]), np.array([0.5, 0.25, 2.0])
    truth = ((pixels - mean[:, None, None]) / std[:, None, None]).reshape(B, -1)
    recovered = truth.astype(np.float32).astype(np.float64)
    recovered[0, 40] += 0.01  # third channel
    info = RecordInfo(input_shape=(3, 4, 4), input_mean=tuple(mean), input_std=tuple(std))
    (result,) = evaluated(tmp_path, truth, recovered, info=info)
    assert (result.units, result.data_range) == ("pixels", 1.0)
    assert result.rows[0].max_error == pytest.approx(0.02)
    assert result.rows[0].psnr == pytest.approx(10 * np.log10(48 / 0.02**2))


def test_channels_last_and_single_figures_are_understood(tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).uniform(0, 255, (B, 4, 4, 3))
    std = np.array([1.0, 2.0, 4.0])
    truth = (pixels / std).reshape(B, -1)
    info = RecordInfo(input_shape=(4, 4, 3), input_mean=(0.0,), input_std=tuple(std))
    (result,) = evaluated(tmp_path, truth, truth, info=info)
    assert result.units == "pixels"
    assert result.data_range == pytest.approx(np.ptp(pixels), rel=1e-5)


@pytest.mark.parametrize(
    "info",
    [
        RecordInfo(input_mean=(0.0,)),
        RecordInfo(input_shape=(3, 5), input_mean=(0.0,), input_std=(1.0,)),
        RecordInfo(input_shape=(8, 8), input_mean=(0.0, 1.0), input_std=(1.0, 1.0)),
    ],
    ids=["no std", "another shape", "not one a channel"],
)
def test_without_clear_normalisation_inputs_stay_as_they_are(tmp_path: Path, info: RecordInfo) -> None:
    truth = random_truth()
    (result,) = evaluated(tmp_path, truth, truth, info=info)
    assert result.units == "layer inputs"


def test_senseless_normalisation_is_refused(tmp_path: Path) -> None:
    info = RecordInfo(input_mean=(0.0,), input_std=(0.0,))
    with pytest.raises(FileError, match="input_std"):
        evaluated(tmp_path, random_truth(), random_truth(), info=info)


def test_scale_is_fitted_only_where_the_file_says_it_is_unknown(tmp_path: Path) -> None:
    truth = random_truth()
    recovered = truth * np.array([[2.0], [-0.5], [10.0], [1.0]])
    (fitted,) = evaluated(tmp_path, truth, recovered, bias_grad=False, status="approximate")
    assert fitted.exact == B
    assert [row.scale for row in fitted.rows] == pytest.approx([0.5, -2.0, 0.1, 1.0])
    (plain,) = evaluated(tmp_path, truth, recovered)
    assert plain.exact == 1
    assert {row.scale for row in plain.rows} == {1.0}


def test_partial_results_match_what_they_can(tmp_path: Path) -> None:
    truth = random_truth()
    (result,) = evaluated(tmp_path, truth, truth[[3, 1]], status="partial", batch_size=B)
    assert [row.truth for row in result.rows] == [3, 1]
    assert (result.matched_share, result.exact_share) == (0.5, 0.5)


def test_failed_results_have_no_rows(tmp_path: Path) -> None:
    (result,) = evaluated(tmp_path, random_truth(), None, status="failed", batch_size=B)
    assert result.rows == ()
    assert (result.matched, result.mean_psnr, result.max_error) == (0, None, None)


def test_identical_truth_counts_once(tmp_path: Path) -> None:
    truth = random_truth()[[0, 1, 0, 2]]
    (result,) = evaluated(tmp_path, truth, truth[[3, 0, 1]])
    assert (result.truth_inputs, result.distinct_truth, result.exact) == (4, 3, 3)
    assert [row.truth for row in result.rows] == [3, 0, 1]
    (note,) = evaluation_notes((result,))
    assert "only 3 of the 4 true inputs are different" in note


def test_surplus_rows_stay_alone(tmp_path: Path) -> None:
    truth = random_truth()
    recovered = np.vstack([truth, np.full(N, 50.0)])[[4, 0, 1, 2, 3]]
    (result,) = evaluated(tmp_path, truth, recovered)
    assert [row.truth for row in result.rows] == [None, 0, 1, 2, 3]
    assert result.rows[0].psnr is None
    assert result.broken_promise


def test_a_broken_promise_is_shouted(tmp_path: Path) -> None:
    truth = random_truth()
    recovered = truth.astype(np.float64)
    recovered[0] += 0.1
    (wrong,) = evaluated(tmp_path, truth, recovered, error_bound=1e-6)
    assert wrong.broken_promise
    (note,) = evaluation_notes((wrong,))
    assert "marked exact, but 1 input" in note
    (bounded,) = evaluated(tmp_path, truth, recovered, error_bound=0.2)
    assert not bounded.broken_promise
    (modest,) = evaluated(tmp_path, truth, recovered, status="approximate")
    assert not modest.broken_promise


def test_constant_truth_has_a_range(tmp_path: Path) -> None:
    truth = np.zeros((1, N))
    (result,) = evaluated(tmp_path, truth, truth)
    assert result.data_range == 1.0
    assert result.exact == 1


def test_layers_without_truth_are_named(tmp_path: Path) -> None:
    data = layer_data()
    layers = {"fc1": layer_arrays(data), "fc2": layer_arrays(data, inputs=None)}
    write_dump(tmp_path / "dump.h5", layers)
    with open_dump(tmp_path / "dump.h5") as dump:
        with InversionWriter(tmp_path / "out.h5", source=tmp_path / "dump.h5") as out:
            for layer in dump.records[0].layers:
                out.add("record-0", layer.name, fake_inversion(layer.gradients, data.inputs))
        with open_inversion(tmp_path / "out.h5") as inversion:
            first, second = evaluate(inversion, dump)
    assert first.exact == B
    assert second.problem == "the dump holds no true inputs of this layer"
    assert second.exact_share is None
    assert any("'fc2'" in note for note in evaluation_notes((first, second)))


def test_bad_numbers_are_refused(tmp_path: Path) -> None:
    bad = random_truth()
    bad[1, 2] = np.nan
    with pytest.raises(FileError, match=r"out\.h5.*holds NaN"):
        evaluated(tmp_path, random_truth(), bad)
    evaluated(tmp_path, random_truth(), random_truth())
    with h5py.File(tmp_path / "dump.h5", "r+") as file:
        file["records/record-0/truth/fc1/inputs"][1, 2] = np.nan
    with pytest.raises(FileError, match=r"dump\.h5.*'inputs': holds NaN at row 1, column 2"):
        compared(tmp_path / "out.h5", tmp_path / "dump.h5")


def compared(out: Path, dump_path: Path) -> tuple[LayerEvaluation, ...]:
    with open_inversion(out) as inversion, open_dump(dump_path) as dump:
        return evaluate(inversion, dump)


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    evaluated(tmp_path, random_truth(), random_truth())
    out, other = tmp_path / "out.h5", tmp_path / "other.h5"
    write_dump(other, {"fc1": layer_arrays(layer_data())}, record="somebody else")
    with pytest.raises(FileError, match="no record 'record-0'; there is: 'somebody else'"):
        compared(out, other)
    write_dump(other, {"fc9": layer_arrays(layer_data())})
    with pytest.raises(FileError, match="no layer 'fc1'; there is: 'fc9'"):
        compared(out, other)
    write_dump(other, {"fc1": layer_arrays(layer_data(), inputs=None)})
    with pytest.raises(FileError, match="nothing to compare"):
        compared(out, other)
    with h5py.File(out, "r+") as file:
        layer = file["records/record-0/layers/fc1"]
        del layer["inputs"]
        layer["inputs"] = np.zeros((B, N + 1))
    write_dump(other, {"fc1": layer_arrays(layer_data())})
    with pytest.raises(FileError, match="65 features"):
        compared(out, other)


IMAGE = RecordInfo(input_shape=(1, 8, 8), input_mean=(0.5,), input_std=(0.25,))


def test_images_are_compared_by_structure(tmp_path: Path) -> None:
    metrics = pytest.importorskip("skimage.metrics")
    pixels = np.random.default_rng(2).uniform(0, 1, (3, 64))
    truth = (pixels - 0.5) / 0.25
    recovered = truth.astype(np.float32).astype(np.float64)
    recovered[1] += np.random.default_rng(3).normal(0, 1.0, 64)
    (result,) = evaluated(tmp_path, truth, recovered, info=IMAGE)
    seen = recovered[1] * 0.25 + 0.5
    wanted = metrics.structural_similarity(seen.reshape(8, 8), pixels[1].reshape(8, 8), data_range=1.0)
    ssim = [row.ssim for row in result.rows]
    assert ssim == pytest.approx([1, wanted, 1], abs=1e-6)
    assert wanted < 0.95
    assert result.mean_ssim == pytest.approx(np.mean([1, wanted, 1]), abs=1e-6)
    assert result.mean_discrete is None


@pytest.mark.parametrize(
    "info", [RecordInfo(), RecordInfo(input_shape=(64,)), RecordInfo(input_shape=(1, 4, 16))]
)
def test_what_is_no_image_has_no_structure(tmp_path: Path, info: RecordInfo) -> None:
    truth = np.random.default_rng(4).uniform(0, 1, (3, 64))
    (result,) = evaluated(tmp_path, truth, truth, info=info)
    assert result.mean_ssim is None


def test_categories_of_a_table_are_counted(tmp_path: Path) -> None:
    truth = np.asarray([[1, 0, 0, 0.3, 7], [0, 1, 0, 1.7, 3], [0, 1, 0, 0.2, 5]], dtype=np.float64)
    recovered = truth.copy()
    recovered[0] += [0.4, -0.4, 9, 0.2, 0.1]  # the third is the same throughout and does not count
    recovered[1] += [0.6, 0, 0, 0, 0]
    (result,) = evaluated(tmp_path, truth, recovered)
    assert [row.discrete for row in result.rows] == pytest.approx([1, 2 / 3, 1])
    assert result.mean_discrete == pytest.approx(8 / 9)
    assert result.mean_ssim is None


@pytest.mark.parametrize("largest", [1e160, 1e308])
@pytest.mark.filterwarnings("error")
def test_numbers_that_overflow_are_compared(tmp_path: Path, largest: float) -> None:
    truth = layer_data().inputs.astype(np.float64)
    far = truth.copy()
    far[1, 3] = largest
    (result,) = evaluated(tmp_path, truth, far)
    assert [row.exact for row in result.rows] == [True, False, True, True]
