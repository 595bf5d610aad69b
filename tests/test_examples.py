"""The shipped dump, the scripts that made it and what they promise."""

from __future__ import annotations

import runpy
from pathlib import Path

import h5py
import numpy as np
import pytest

import spear_np
from spear_io import open_dump
from spear_io.cli.main import main

EXAMPLES = Path(__file__).parent.parent / "examples"
DUMP = EXAMPLES / "fashion_mnist_b16.h5"


def run(script: str, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", [script, *arguments])
    runpy.run_path(str(EXAMPLES / script), run_name="__main__")


def test_the_shipped_dump_is_inverted_exactly() -> None:
    with open_dump(DUMP) as dump:
        layer = dump.records[0].layers[0]
        result = spear_np.invert_layer(layer.gradients, time_limit=60)
        assert layer.truth is not None
        truth = layer.truth[...].astype(np.float64)
        inputs = np.asarray(result.inputs)  # read from the file like everything of a layer
    assert result.status == "exact", result.reason
    distances = np.abs(inputs[:, None, :] - truth[None, :, :]).max(axis=2)
    assert sorted(distances.argmin(axis=1)) == list(range(16))
    assert distances.min(axis=1).max() < 1e-5 * np.ptp(truth)


def test_the_shipped_dump_can_be_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'spear-np[torch]'")
    run("make_fashion_mnist_dump.py", "-o", str(tmp_path / "again.h5"), monkeypatch=monkeypatch)
    layer = "records/client-0/layers/0"
    with h5py.File(DUMP) as shipped, h5py.File(tmp_path / "again.h5") as made:
        assert np.array_equal(
            shipped["records/client-0/truth/0/inputs"][:], made["records/client-0/truth/0/inputs"][:]
        )
        # Another machine or version may round and draw differently; the layout must be the same.
        assert {name: data.shape for name, data in shipped[layer].items()} == {
            name: data.shape for name, data in made[layer].items()
        }


def test_a_training_loop_is_dumped_and_inverted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'spear-np[torch]'")
    monkeypatch.chdir(tmp_path)
    run("dump_from_training_loop.py", monkeypatch=monkeypatch)
    assert main(["invert", "client_update.h5", "-o", "inverted.h5", "--time-limit", "60"]) == 0
    assert main(["evaluate", "inverted.h5", "client_update.h5"]) == 0


def test_pictures_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install 'spear-np[pictures]'")
    inverted, picture = tmp_path / "inverted.h5", tmp_path / "recovered.png"
    assert main(["invert", str(DUMP), "-o", str(inverted), "--time-limit", "60"]) == 0
    run("pictures.py", str(inverted), str(DUMP), "-o", str(picture), monkeypatch=monkeypatch)
    assert picture.read_bytes().startswith(b"\x89PNG")


GELU_DUMP = EXAMPLES / "fashion_mnist_gelu_b24.h5"


def test_the_shipped_gelu_network_is_inverted_with_its_labels() -> None:
    with open_dump(GELU_DUMP) as dump:
        record = dump.records[0]
        chain = record.chain_from(record.layers[0])
        assert [layer.name for layer in chain] == ["0", "2", "4"]
        result = spear_np.invert_chain(
            [layer.gradients for layer in chain], loss=record.info.loss, time_limit=60
        )
        assert chain[0].truth is not None
        assert record.labels is not None
        truth, labels = chain[0].truth[...].astype(np.float64), record.labels[...]
        inputs = np.asarray(result.inputs)
    assert result.status == "exact", result.reason
    distances = np.abs(inputs[:, None, :] - truth[None, :, :]).max(axis=2)
    nearest = distances.argmin(axis=1)
    assert sorted(nearest) == list(range(24))
    assert distances.min(axis=1).max() < 1e-4 * np.ptp(truth)
    assert result.labels is not None
    assert np.array_equal(result.labels, labels[nearest])


def test_the_gelu_dump_can_be_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'spear-np[torch]'")
    run("make_gelu_dump.py", "-o", str(tmp_path / "again.h5"), monkeypatch=monkeypatch)
    with h5py.File(GELU_DUMP) as shipped, h5py.File(tmp_path / "again.h5") as made:
        for layer in ("0", "2", "4"):
            one, other = (file[f"records/client-0/layers/{layer}"] for file in (shipped, made))
            assert dict(one.attrs) == dict(other.attrs)
            assert {name: data.shape for name, data in one.items()} == {
                name: data.shape for name, data in other.items()
            }


def test_the_tokens_of_a_transformer_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'spear-np[torch]'")
    monkeypatch.chdir(tmp_path)
    run("transformer_feed_forward.py", monkeypatch=monkeypatch)
    out = capsys.readouterr().out
    assert "'1.linear2' follows '1.linear1', with gelu in between" in out
    assert "30 of 30 hidden states" in out
