"""Weight decay between two models, from checkpoints to recovered inputs, and other updates that are no gradient."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from spear_io import FileError, RecordInfo, open_dump
from spear_io.problems import Place
from spear_np.factors.decay import without_decay
from tests.convert_files import converted, worst_psnr
from tests.io_files import Command, command, layer_data, write_good_dump
from tests.networks import digit_batch

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

RATE = 0.1


@pytest.fixture
def spear(capsys: pytest.CaptureFixture[str]) -> Command:
    return command(capsys)


def two_models(folder: Path, optimizer: str = "SGD", *, rate: float = RATE, **options: Any) -> Any:
    """Take a step on six digits, write the models before and after it, and return the digits."""
    images, labels = digit_batch(6, seed=71)
    torch.manual_seed(71)
    network = torch.nn.Sequential(torch.nn.Linear(64, 100), torch.nn.ReLU(), torch.nn.Linear(100, 10))
    states = [{name: tensor.numpy().copy() for name, tensor in network.state_dict().items()}]
    torch.nn.functional.cross_entropy(network(torch.tensor(images)), torch.tensor(labels)).backward()
    getattr(torch.optim, optimizer)(network.parameters(), lr=rate, **options).step()
    states.append({name: tensor.numpy() for name, tensor in network.state_dict().items()})
    for name, state in zip(("before", "after"), states, strict=True):
        np.savez(folder / f"{name}.npz", **state)
    return images


def models(folder: Path) -> tuple[Any, ...]:
    return "--before", folder / "before.npz", "--after", folder / "after.npz"


@pytest.mark.parametrize("decay", [5e-4, 1e-2])
def test_weight_decay_is_said_and_taken_out(spear: Command, tmp_path: Path, decay: float) -> None:
    images = two_models(tmp_path, weight_decay=decay)
    document = converted(spear, tmp_path, *models(tmp_path), "--learning-rate", RATE)
    (note,) = [note for note in document["notes"] if note.startswith("the update of '0' holds")]
    assert float(note.split(" holds ")[1].split()[0]) == pytest.approx(decay, rel=1e-4)
    assert "times the weights and biases: weight decay, which 'spear-np invert' takes out" in note
    assert "0: the update holds 0.0" in spear("inspect", tmp_path / "dump.h5").out
    document = json.loads(spear("inspect", tmp_path / "dump.h5", "--json").out)
    first = document["records"][0]["layers"][0]["survey"]
    assert first["batch_size"] == 6
    assert first["decay"]["weight"] == pytest.approx(decay, rel=1e-3)

    out = tmp_path / "out.h5"
    run = spear("invert", tmp_path / "dump.h5", "-o", out)
    assert run.status == 0
    heading, _, row, *_ = (line for line in run.out.splitlines() if line.strip())
    assert heading.split()[-2:] == ["weight", "decay"]
    assert float(row.split()[-1]) == pytest.approx(decay, rel=1e-4)
    assert "weight decay was taken out first" in run.out
    with h5py.File(out) as file:
        layer = file["records/record-0/layers/0"]
        assert worst_psnr(layer["inputs"][:], images) > 60
        assert layer.attrs["weight_decay"] == layer.attrs["bias_decay"] == pytest.approx(decay, rel=1e-3)
        assert 0 < layer.attrs["weight_decay_deviation"] < 1e-3 * decay
    (layer,) = json.loads(spear("invert", tmp_path / "dump.h5", "-o", out, "--json").out)["layers"]
    assert layer["decay"]["weight"] == pytest.approx(decay, rel=1e-3)


def test_nothing_is_said_where_there_is_none(spear: Command, tmp_path: Path) -> None:
    two_models(tmp_path)
    document = converted(spear, tmp_path, *models(tmp_path), "--learning-rate", RATE)
    assert not any(" holds " in note for note in document["notes"])
    run = spear("invert", tmp_path / "dump.h5", "-o", tmp_path / "out.h5")
    assert "decay" not in run.out
    with h5py.File(tmp_path / "out.h5") as file:
        assert "weight_decay" not in file["records/record-0/layers/0"].attrs


def test_without_the_rate_the_multiple_is_that_of_the_step(spear: Command, tmp_path: Path) -> None:
    images = two_models(tmp_path, weight_decay=1e-2)
    document = converted(spear, tmp_path, *models(tmp_path))
    assert any("'0' holds 0.001 (±" in note for note in document["notes"])
    assert spear("invert", tmp_path / "dump.h5", "-o", tmp_path / "out.h5").status == 0
    with h5py.File(tmp_path / "out.h5") as file:
        assert worst_psnr(file["records/record-0/layers/0/inputs"][:], images) > 60


def test_a_decay_that_is_known_is_stored_and_used(spear: Command, tmp_path: Path) -> None:
    two_models(tmp_path, weight_decay=1e-2)
    known = ("--learning-rate", RATE, "--weight-decay", 1e-2)
    document = converted(spear, tmp_path, *models(tmp_path), *known)
    assert any("(said to be 0.01)" in note for note in document["notes"])
    with open_dump(tmp_path / "dump.h5") as dump:
        assert dump.records[0].info.weight_decay == 1e-2
        assert dump.records[0].layers[0].gradients.decay.weight == 1e-2


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        (("--weight-decay", "nan", "--learning-rate", "0.1"), "not a number"),
        (("--weight-decay", "0.01"), "counts only with --learning-rate"),
    ],
)
def test_a_decay_that_means_nothing_is_refused(
    spear: Command, tmp_path: Path, words: tuple[str, ...], fragment: str
) -> None:
    two_models(tmp_path)
    run = spear("convert", *models(tmp_path), tmp_path / "dump.h5", *words)
    assert run.status == 2
    assert fragment in run.error
    assert not (tmp_path / "dump.h5").exists()


def test_a_dump_whose_decay_is_no_number_is_refused(spear: Command, tmp_path: Path) -> None:
    write_good_dump(tmp_path / "dump.h5")
    with h5py.File(tmp_path / "dump.h5", "r+") as file:
        file["records/client-0"].attrs["weight_decay"] = np.inf
    run = spear("inspect", tmp_path / "dump.h5")
    assert run.status == 2
    assert "the attribute 'weight_decay' is inf" in run.error


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("decay", [1e-2, 1.0, 15.0, -1e-2])
def test_several_steps_hold_the_decay_of_all_of_them(tmp_path: Path, steps: int, decay: float) -> None:
    rng = np.random.default_rng(73)
    before, rate = layer_data().weight.astype(np.float64), 0.1
    after, gradient = before.copy(), np.zeros_like(before)
    for _ in range(steps):
        step = 1e-3 * rng.standard_normal(before.shape)
        gradient = (1 - rate * decay) * gradient + step
        after = after - rate * (step + decay * after)
    info: dict[str, Any] = {
        "update": "weight_delta",
        "learning_rate": rate,
        "weight_decay": decay,
        "local_steps": steps,
    }
    write_good_dump(tmp_path / "dump.h5", **info)
    with open_dump(tmp_path / "dump.h5") as dump:
        held = dump.records[0].layers[0].gradients.decay.weight
    assert np.allclose((before - after) / rate - held * before, gradient, rtol=1e-6, atol=1e-9 * abs(held))


def test_steps_that_grow_beyond_all_numbers_are_refused(spear: Command, tmp_path: Path) -> None:
    info: dict[str, Any] = {
        "update": "weight_delta",
        "learning_rate": 1.0,
        "weight_decay": -9.0,
        "local_steps": 10**6,
    }
    write_good_dump(tmp_path / "dump.h5", **info)
    run = spear("inspect", tmp_path / "dump.h5")
    assert run.status == 2
    assert "not a finite number" in run.error


def test_a_decay_that_counts_for_nothing_is_named(spear: Command, tmp_path: Path) -> None:
    data = layer_data()
    change: dict[str, Any] = {"delta/fc1.weight": data.weight_grad, "delta/fc1.bias": data.bias_grad}
    np.savez(tmp_path / "change.npz", **change)
    document = converted(spear, tmp_path, tmp_path / "change.npz", "--weight-decay", 1e-2)
    assert any("weight_decay is stated, but not the learning_rate" in note for note in document["notes"])
    assert "weight_decay is stated, but not the learning_rate" in spear("inspect", tmp_path / "dump.h5").out


@pytest.mark.parametrize("error", [MemoryError(), FileError("is too large", Place(Path("dump.h5")))])
def test_a_dump_that_is_complete_stays_when_looking_at_it_fails(
    spear: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: Any) -> Any:
        raise error

    two_models(tmp_path, weight_decay=1e-2)
    monkeypatch.setattr("spear_io.convert.decay.without_decay", fail)
    document = converted(spear, tmp_path, *models(tmp_path))
    assert not any(" holds " in note for note in document["notes"])


def test_one_layer_that_can_tell_is_enough(
    spear: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[Any] = []

    def look(gradients: Any, *rest: Any) -> Any:
        looks.append(gradients)
        return without_decay(gradients, *rest)

    two_models(tmp_path)
    monkeypatch.setattr("spear_io.convert.decay.without_decay", look)
    converted(spear, tmp_path, *models(tmp_path))
    assert len(looks) == 1


@pytest.mark.parametrize("stated", [{}, {"weight_decay": 3e-3}])
def test_an_l2_term_in_the_loss_is_found_in_a_gradient(
    spear: Command, tmp_path: Path, stated: dict[str, Any]
) -> None:
    data = layer_data()
    held = type(data)(
        **vars(data)
        | {
            "weight_grad": data.weight_grad + np.float32(3e-3) * data.weight,
            "bias_grad": data.bias_grad + np.float32(3e-3) * data.bias,
        }
    )
    write_good_dump(tmp_path / "dump.h5", held, **stated)
    with open_dump(tmp_path / "dump.h5") as dump:
        assert dump.records[0].info == RecordInfo(**stated)
    run = spear("invert", tmp_path / "dump.h5", "-o", tmp_path / "out.h5")
    assert "exact" in run.out
    with h5py.File(tmp_path / "out.h5") as file:
        layer = file["records/client-0/layers/fc1"]
        assert layer.attrs["weight_decay"] == pytest.approx(3e-3, rel=1e-6)
        assert worst_psnr(layer["inputs"][:], data.inputs) > 80


@pytest.mark.parametrize("options", [("Adam", {}), ("AdamW", {"weight_decay": 1e-2}), ("RMSprop", {})])
def test_a_step_of_signs_is_named(spear: Command, tmp_path: Path, options: tuple[str, Any]) -> None:
    two_models(tmp_path, options[0], rate=1e-3, **options[1])
    converted(spear, tmp_path, *models(tmp_path))
    run = spear("invert", tmp_path / "dump.h5", "-o", tmp_path / "out.h5")
    assert run.status == 3
    assert "it holds the signs of a gradient, as after the first step of Adam" in run.out
    assert "it holds the signs of a gradient" in spear("inspect", tmp_path / "dump.h5").out


def test_factors_of_low_rank_updates_are_named(spear: Command, tmp_path: Path) -> None:
    rng = np.random.default_rng(72)
    arrays: dict[str, Any] = {"fc1.base_layer.weight": rng.standard_normal((50, 64)).astype(np.float32)}
    for name, shape in (("fc1.lora_A.default.weight", (8, 64)), ("fc1.lora_B.default.weight", (50, 8))):
        arrays[name] = rng.standard_normal(shape).astype(np.float32)
        arrays[f"{name}.grad"] = rng.standard_normal(shape).astype(np.float32)
    np.savez(tmp_path / "step.npz", **arrays)
    document = converted(spear, tmp_path, tmp_path / "step.npz")
    assert [layer["activation"] for layer in document["layers"]] == ["none", "none"]
    assert any("as of LoRA ('fc1.lora_A.default'" in note for note in document["notes"])
    run = spear("inspect", tmp_path / "dump.h5")
    assert "yes" not in run.out
