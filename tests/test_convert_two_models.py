"""Two models instead of a gradient: their difference, in the precision that their weights leave."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import scipy.io

from spear_io import open_dump
from tests.backends import values_of
from tests.convert_files import RATE, Arrays, converted, inverted, torch_step, worst_psnr
from tests.io_files import Command, command, write_earlier


@pytest.fixture
def spear(capsys: pytest.CaptureFixture[str]) -> Command:
    return command(capsys)


def npz(path: Path, arrays: Arrays) -> None:
    with path.open("wb") as stream:
        np.savez(stream, **arrays)


def npz_by_position(path: Path, arrays: Arrays) -> None:
    """As Flower's server saves the parameters of a round."""
    with path.open("wb") as stream:
        np.savez(stream, *arrays.values())


def npy_folder(path: Path, arrays: Arrays) -> None:
    path.mkdir()
    for name, array in arrays.items():
        np.save(path / name, array)


def safetensors_file(path: Path, arrays: Arrays) -> None:
    safetensors.numpy.save_file(dict(arrays), path)


def matlab(path: Path, arrays: Arrays) -> None:
    named = {name.replace(".", "_"): array.reshape(len(array), -1) for name, array in arrays.items()}
    scipy.io.savemat(path, named, appendmat=False)


def torch_state_dict(path: Path, arrays: Arrays) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    torch.save({name: torch.tensor(array) for name, array in arrays.items()}, path)


FORMATS: tuple[Callable[[Path, Arrays], None], ...] = (
    npz,
    npz_by_position,
    npy_folder,
    safetensors_file,
    matlab,
    torch_state_dict,
)


@pytest.mark.parametrize("write", FORMATS, ids=lambda write: write.__name__)
def test_one_step_of_sgd_gives_the_batch_back(
    spear: Command, tmp_path: Path, write: Callable[[Path, Arrays], None]
) -> None:
    step = torch_step()
    write(tmp_path / "before", step.model)
    write(tmp_path / "after", step.after)
    models = ("--before", tmp_path / "before", "--after", tmp_path / "after")
    document = converted(spear, tmp_path, *models, "--learning-rate", RATE, "--local-steps", 1)
    assert any("one step of plain SGD" in note for note in document["notes"])
    assert [layer["activation"] for layer in document["layers"]] == ["relu", "none"]
    with open_dump(tmp_path / "dump.h5") as dump:
        info = dump.records[0].info
        assert (info.update, info.learning_rate, info.local_steps) == ("weight_delta", RATE, 1)
        gradients = dump.records[0].layers[0].gradients
        np.testing.assert_array_equal(values_of(gradients.weight), step.model["fc1.weight"])
        np.testing.assert_allclose(gradients.weight_grad[:], step.gradients["fc1.weight"], atol=1e-7)
    status, recovered = inverted(spear, tmp_path)
    assert status in ("exact", "approximate")
    assert worst_psnr(recovered, step.images) > 60


def test_the_learning_rate_need_not_be_known(spear: Command, tmp_path: Path) -> None:
    step = torch_step()
    npz(tmp_path / "before", step.model)
    npz(tmp_path / "after", step.after)
    converted(spear, tmp_path, "--before", tmp_path / "before", "--after", tmp_path / "after")
    _, recovered = inverted(spear, tmp_path)
    assert worst_psnr(recovered, step.images) > 60
    run = spear("inspect", tmp_path / "dump.h5", "--json")
    (record,) = json.loads(run.out)["records"]
    assert record["info"]["learning_rate"] is None
    assert any("without learning_rate" in note for note in record["notes"])


@pytest.mark.parametrize("precision", ["float16", "bfloat16", "float32", "float64"])
def test_differences_keep_what_the_models_hold(spear: Command, tmp_path: Path, precision: str) -> None:
    """bfloat16 minus bfloat16 is stored as float32: NumPy could not round it, and nothing is lost."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    generator = torch.Generator().manual_seed(1)
    before = torch.randn((7, 5), generator=generator, dtype=torch.float64).to(getattr(torch, precision))
    after = (before.double() + 0.01 * torch.randn((7, 5), generator=generator)).to(before.dtype)
    torch.save({"fc.weight": before, "fc.bias": before[:, 0]}, tmp_path / "before")
    torch.save({"fc.weight": after, "fc.bias": after[:, 0]}, tmp_path / "after")
    converted(spear, tmp_path, "--before", tmp_path / "before", "--after", tmp_path / "after")
    with open_dump(tmp_path / "dump.h5") as dump:
        arrays = dump.records[0].layers[0].arrays
        assert arrays["weight"].precision == precision
        stored = "float32" if precision == "bfloat16" else precision
        assert arrays["weight_grad"].precision == stored
        wanted = (after.to(getattr(torch, stored)) - before.to(getattr(torch, stored))).numpy()
        np.testing.assert_array_equal(-arrays["weight_grad"][:], wanted)


def wrong(folder: Path, **changes: Any) -> tuple[Any, ...]:
    """Write two states of a model, the second one with other arrays."""
    step = torch_step()
    npz(folder / "before", step.model)
    npz(folder / "after", {name: a for name, a in {**step.after, **changes}.items() if a is not None})
    return "--before", folder / "before", "--after", folder / "after"


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [
        ({"fc1.weight": None}, "has no array 'fc1.weight', which the model before has"),
        ({"fc1.weight": np.zeros((64, 80), np.float32)}, "'fc1.weight' has shape (64, 80), but (80, 64)"),
        ({"fc1.bias": np.zeros(81)}, "'fc1.bias' has shape (81,), but (80,) in the model before"),
    ],
)
def test_states_of_different_models(
    spear: Command, tmp_path: Path, changes: dict[str, Any], fragment: str
) -> None:
    earlier = write_earlier(tmp_path / "dump.h5")
    run = spear("convert", *wrong(tmp_path, **changes), tmp_path / "dump.h5")
    assert run.status == 2
    assert fragment in run.error
    assert "give two states of the same model" in run.error
    assert (tmp_path / "dump.h5").read_bytes() == earlier


def test_two_kinds_of_files(spear: Command, tmp_path: Path) -> None:
    step = torch_step()
    npz(tmp_path / "before", step.model)
    safetensors_file(tmp_path / "after", step.after)
    run = spear("convert", "--before", tmp_path / "before", "--after", tmp_path / "after", tmp_path / "d.h5")
    assert run.status == 2
    assert "is safetensors, but the model before is NumPy .npz" in run.error


def test_one_file_twice(spear: Command, tmp_path: Path) -> None:
    npz(tmp_path / "a", torch_step().model)
    (tmp_path / "b").symlink_to(tmp_path / "a")
    run = spear("convert", "--before", tmp_path / "a", "--after", tmp_path / "b", tmp_path / "d.h5")
    assert run.status == 2
    assert "is the model before as well as after" in run.error


def test_two_equal_models(spear: Command, tmp_path: Path) -> None:
    npz(tmp_path / "a", torch_step().model)
    npz(tmp_path / "b", torch_step().model)
    run = spear("convert", "--before", tmp_path / "a", "--after", tmp_path / "b", tmp_path / "d.h5")
    assert run.status == 2
    assert "the two models are equal" in run.error


def test_a_layer_that_did_not_change_is_left_out(spear: Command, tmp_path: Path) -> None:
    """By position, too, where the other layer must keep its place."""
    step = torch_step()
    frozen = {name: step.model[name] for name in ("fc1.weight", "fc1.bias")}
    for write, first, second in ((npz, "fc1.weight", "fc2"), (npz_by_position, "arr_0", "layer_1")):
        write(tmp_path / "before", step.model)
        write(tmp_path / "after", {**step.after, **frozen})
        document = converted(spear, tmp_path, "--before", tmp_path / "before", "--after", tmp_path / "after")
        assert [(layer["layer"], layer["activation"]) for layer in document["layers"]] == [(second, "none")]
        assert document["skipped"][first] == "is of a layer that did not change"


def test_what_only_the_model_after_has(spear: Command, tmp_path: Path) -> None:
    moments = {"optimizer/exp_avg/fc1.weight": np.ones((80, 64)), "optimizer/step": np.array(1.0)}
    document = converted(spear, tmp_path, *wrong(tmp_path, extra=np.ones(3, np.float32), **moments))
    assert document["skipped"]["extra"] == "is only in the model after"
    assert document["skipped"]["optimizer/step"] == "is only in the model after"
    assert any("('optimizer/exp_avg/fc1.weight'): a step of Adam" in note for note in document["notes"])


@pytest.mark.parametrize("prefixed", ["before", "after"])
def test_a_prefix_of_data_parallel(spear: Command, tmp_path: Path, prefixed: str) -> None:
    step = torch_step()
    for name, arrays in (("before", step.model), ("after", step.after)):
        prefix = "module." if name == prefixed else ""
        npz(tmp_path / name, {prefix + key: array for key, array in arrays.items()})
    document = converted(spear, tmp_path, "--before", tmp_path / "before", "--after", tmp_path / "after")
    assert [layer["layer"] for layer in document["layers"]] == ["fc1", "fc2"]
    assert document["skipped"] == {}


def test_a_difference_that_overflows(spear: Command, tmp_path: Path) -> None:
    for name, value in (("before", -3e38), ("after", 3e38)):
        npz(tmp_path / name, {"fc.weight": np.full((5, 7), value, np.float32)})
    earlier = write_earlier(tmp_path / "dump.h5")
    models = ("--before", tmp_path / "before", "--after", tmp_path / "after")
    run = spear("convert", *models, tmp_path / "dump.h5")
    assert run.status == 2
    assert "dataset 'weight_grad': holds infinity at row 0, column 0" in run.error
    assert (tmp_path / "dump.h5").read_bytes() == earlier


@pytest.mark.parametrize(
    "prefix", ["_orig_mod.", "module._orig_mod.", "_fsdp_wrapped_module.", "backbone.", "model."]
)
def test_names_that_wrappers_changed_between_two_models(spear: Command, tmp_path: Path, prefix: str) -> None:
    step = torch_step()
    npz(tmp_path / "plain", step.model)
    npz(tmp_path / "wrapped", {prefix + name: array for name, array in step.after.items()})
    for before, after, sign in (("plain", "wrapped", 1), ("wrapped", "plain", -1)):
        converted(spear, tmp_path, "--before", tmp_path / before, "--after", tmp_path / after)
        with open_dump(tmp_path / "dump.h5") as dump:
            stored = dump.records[0].layers[0].arrays["weight_grad"][:]
        wanted = step.after["fc1.weight"] - step.model["fc1.weight"]
        assert np.array_equal(-stored, sign * wanted)


def test_a_model_after_that_holds_two_is_refused(spear: Command, tmp_path: Path) -> None:
    step = torch_step()
    npz(tmp_path / "before", step.model)
    npz(
        tmp_path / "after", {f"{who}.{name}": a for who in ("model", "ema") for name, a in step.after.items()}
    )
    run = spear("convert", "--before", tmp_path / "before", "--after", tmp_path / "after", tmp_path / "d.h5")
    assert (run.status, "fit in several ways: without 'ema.', 'model.'" in run.error) == (2, True)


@pytest.mark.parametrize(
    ("first", "then"), [("float32", "float16"), ("float16", "float32"), ("float32", "float64")]
)
def test_two_precisions_differ_in_the_wider_one(
    spear: Command, tmp_path: Path, first: str, then: str
) -> None:
    step = torch_step()
    npz(tmp_path / "before", {name: array.astype(first) for name, array in step.model.items()})
    npz(tmp_path / "after", {name: array.astype(then) for name, array in step.after.items()})
    document = converted(spear, tmp_path, "--before", tmp_path / "before", "--after", tmp_path / "after")
    assert any(f"the model before is {first} and the model after {then}" in n for n in document["notes"])
    wide = np.promote_types(first, then)
    with open_dump(tmp_path / "dump.h5") as dump:
        arrays = dump.records[0].layers[0].arrays
        assert arrays["weight"].precision == first
        assert arrays["weight_grad"].precision == wide.name
        before, after = (
            a["fc1.weight"].astype(t).astype(wide) for a, t in ((step.model, first), (step.after, then))
        )
        np.testing.assert_array_equal(-arrays["weight_grad"][:], after - before)


def test_a_state_of_which_lists_hold_none_in_places(spear: Command, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    step = torch_step()
    for name, arrays in (("before", step.model), ("after", step.after)):
        torch.save([None, *(torch.tensor(array) for array in arrays.values())], tmp_path / name)
    document = converted(spear, tmp_path, "--before", tmp_path / "before", "--after", tmp_path / "after")
    assert [layer["datasets"] for layer in document["layers"]] == [
        ["weight_grad", "bias_grad", "weight", "bias"]
    ] * 2
