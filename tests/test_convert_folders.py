"""Folders and indexes: shards of Hugging Face and Keras, Orbax, and what lies among the arrays without being one."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from tests.convert_files import assert_exact, converted, torch_step
from tests.io_files import Command, command

APPLE_DOUBLE = bytes.fromhex("0005160700020000") + b"Mac OS X        " + bytes(4000)


@pytest.fixture
def spear(capsys: pytest.CaptureFixture[str]) -> Command:
    return command(capsys)


def halves() -> list[dict[str, Any]]:
    named = torch_step().named
    names = list(named)
    return [{name: named[name] for name in names[k::2]} for k in (0, 1)]


def shards(folder: Path, *, index: bool = True) -> Path:
    """Save the step as Hugging Face shards a model."""
    folder.mkdir()
    weight_map: dict[str, str] = {}
    for number, arrays in enumerate(halves(), 1):
        file = f"model-0000{number}-of-00002.safetensors"
        safetensors.numpy.save_file(arrays, folder / file)
        weight_map |= dict.fromkeys(arrays, file)
    if index:
        said = {"metadata": {"total_size": 1}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(said, indent=2))
    (folder / "config.json").write_text("{}")
    return folder


@pytest.mark.parametrize("given", ["folder", "index", "folder without index"])
def test_shards_of_safetensors(spear: Command, tmp_path: Path, given: str) -> None:
    source = shards(tmp_path / "a", index="without" not in given)
    if given == "index":
        source = source / "model.safetensors.index.json"
    document = converted(spear, tmp_path, source)
    assert document["format"] == "safetensors in 2 shards"
    assert_exact(spear, tmp_path, torch_step().images)


def test_shards_of_pytorch(spear: Command, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    weight_map: dict[str, str] = {}
    for number, arrays in enumerate(halves(), 1):
        file = f"pytorch_model-0000{number}-of-00002.bin"
        torch.save({name: torch.tensor(array) for name, array in arrays.items()}, tmp_path / file)
        weight_map |= dict.fromkeys(arrays, file)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    converted(spear, tmp_path, tmp_path / "pytorch_model.bin.index.json")
    assert_exact(spear, tmp_path, torch_step().images)


def broken(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        index = folder / "model.safetensors.index.json"
        said = json.loads(index.read_text())
        changed = change(said["weight_map"])
        index.write_text(json.dumps(said if changed is None else changed))

    return apply


def remove_shard(folder: Path) -> None:
    (folder / "model-00002-of-00002.safetensors").unlink()


def link_shard(folder: Path) -> None:
    shard = folder / "model-00002-of-00002.safetensors"
    shard.rename(folder.parent / "elsewhere")
    shard.symlink_to(folder.parent / "elsewhere")


def second_index(folder: Path) -> None:
    (folder / "ema.safetensors.index.json").write_text("{}")


def npy_beside(folder: Path) -> None:
    np.save(folder / "fc1.weight_grad.npy", np.ones((3, 3)))


def twice(folder: Path) -> None:
    (folder / "model.safetensors.index.json").unlink()
    safetensors.numpy.save_file(halves()[0], folder / "more.safetensors")


@pytest.mark.parametrize(
    ("change", "fragment"),
    [
        (remove_shard, "'model-00002-of-00002.safetensors', which is not there"),
        (link_shard, "'model-00002-of-00002.safetensors', which is a link"),
        (second_index, "several models in shards"),
        (npy_beside, "a folder of several things"),
        (twice, "shards that both hold"),
        (broken(lambda said: said.update(x="../a.safetensors")), "outside of its folder: '../a.safetensors'"),
        (broken(lambda said: said.update(x="/etc/passwd")), "outside of its folder: '/etc/passwd'"),
        (broken(lambda said: said.update(x="config.json")), "no index of shards"),
        (broken(lambda said: {"weight_map": 3}), "it has no weight_map"),
        (broken(lambda said: {"weight_map": {}}), "an index of 0 shards"),
        (broken(lambda said: [1]), "it has no weight_map"),
    ],
)
def test_shards_that_cannot_be_put_together(
    spear: Command, tmp_path: Path, change: Callable[[Path], None], fragment: str
) -> None:
    source = shards(tmp_path / "a")
    change(source)
    run = spear("convert", source, tmp_path / "dump.h5")
    assert run.status == 2
    assert fragment in run.error
    assert len(run.error.strip().splitlines()) == 1
    assert not (tmp_path / "dump.h5").exists()


@pytest.mark.parametrize("kind", ["ocdbt", "folders", "zarr3", "manager"])
def test_orbax(spear: Command, tmp_path: Path, kind: str) -> None:
    ocp = pytest.importorskip("orbax.checkpoint", reason="Orbax is not installed")
    step = torch_step()
    tree: dict[str, Any] = {"step": 3, "name": "mlp"}
    for part, arrays in (("params", step.model), ("grads", step.gradients)):
        tree[part] = {
            layer: {"kernel": arrays[f"{layer}.weight"].T.copy(), "bias": arrays[f"{layer}.bias"]}
            for layer in ("fc1", "fc2")
        }
    path = tmp_path / "a"
    if kind == "manager":
        with ocp.CheckpointManager(path) as manager:
            manager.save(7, args=ocp.args.PyTreeSave(tree))
            manager.wait_until_finished()
    else:
        options = {"use_ocdbt": kind != "folders", "use_zarr3": kind == "zarr3"}
        ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options)).save(path, tree)
    document = converted(spear, tmp_path, path)
    assert [layer["orientation"] for layer in document["layers"]] == ["nm", "nm"]
    assert "step" in document["skipped"]
    assert_exact(spear, tmp_path, step.images)


def test_several_steps_of_orbax(spear: Command, tmp_path: Path) -> None:
    for step in ("3", "12"):
        (tmp_path / "a" / step / "default").mkdir(parents=True)
        (tmp_path / "a" / step / "default" / "_METADATA").write_text("{}")
    run = spear("convert", tmp_path / "a", tmp_path / "dump.h5")
    assert (run.status, "several Orbax checkpoints: '12', '3'" in run.error) == (2, True)
    run = spear("convert", tmp_path / "a" / "3", tmp_path / "dump.h5")
    assert (run.status, len(run.error.strip().splitlines())) == (2, 1)


def npy_folder(folder: Path) -> Path:
    folder.mkdir()
    for name, array in torch_step().named.items():
        np.save(folder / f"{name}.npy", array)
    return folder


def test_files_of_the_system_are_left_out_of_a_folder(spear: Command, tmp_path: Path) -> None:
    source = npy_folder(tmp_path / "a")
    for name in torch_step().named:
        (source / f"._{name}.npy").write_bytes(APPLE_DOUBLE)
    (source / ".ipynb_checkpoints").mkdir()
    np.save(source / ".ipynb_checkpoints" / "fc1.weight_grad.npy", np.ones((2, 2)))
    (source / "history.npy").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    document = converted(spear, tmp_path, source)
    skipped = document["skipped"]
    assert all("operating system" in skipped[f"._{name}.npy"] for name in torch_step().named)
    assert skipped[".ipynb_checkpoints/fc1.weight_grad.npy"] == "is hidden"
    assert "Git LFS pointer" in skipped["history"]
    assert_exact(spear, tmp_path, torch_step().images)


def test_files_of_the_system_are_left_out_of_an_archive(spear: Command, tmp_path: Path) -> None:
    source = npy_folder(tmp_path / "step")
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("step/", b"")
        archive.writestr("step/.DS_Store", bytes(10))
        for file in sorted(source.iterdir()):
            archive.write(file, f"step/{file.name}")
            archive.writestr(f"__MACOSX/step/._{file.name}", APPLE_DOUBLE)
    converted(spear, tmp_path, tmp_path / "a.npz")
    assert_exact(spear, tmp_path, torch_step().images)


def test_a_member_without_a_name_is_no_array(spear: Command, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for file in sorted(npy_folder(tmp_path / "step").iterdir()):
            archive.write(file, file.name)
        archive.writestr("nameless", b"")
    content = (tmp_path / "a.npz").read_bytes()
    renamed = content.replace(b"nameless", b"\0ameless")  # a name that ends where it begins
    (tmp_path / "a.npz").write_bytes(renamed)
    converted(spear, tmp_path, tmp_path / "a.npz")
    assert_exact(spear, tmp_path, torch_step().images)


def test_types_that_numpy_has_not_are_left_out(spear: Command, tmp_path: Path) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
    history: dict[str, Any] = {
        kind: np.ones(3).astype(getattr(ml_dtypes, kind)) for kind in ("float8_e5m2", "float8_e4m3fn")
    }
    np.savez(tmp_path / "a.npz", **torch_step().named, **history)
    document = converted(spear, tmp_path, tmp_path / "a.npz")
    assert set(document["skipped"]) == set(history)
    assert_exact(spear, tmp_path, torch_step().images)
    for kind, array in history.items():
        alone: dict[str, Any] = {"fc1.weight_grad": array}
        np.savez(tmp_path / "b.npz", **alone)
        run = spear("convert", tmp_path / "b.npz", tmp_path / "d.h5")
        assert (run.status, "damaged" in run.error) == (2, False), kind
        assert "'fc1.weight_grad' holds" in run.error


def test_sparse_tensors_are_left_out(spear: Command, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    tensors = {name: torch.tensor(array) for name, array in torch_step().named.items()}
    torch.save(tensors | {"mask.weight": torch.eye(3).to_sparse()}, tmp_path / "a.pt")
    document = converted(spear, tmp_path, tmp_path / "a.pt")
    assert "sparse" in document["skipped"]["mask.weight"]


def text(content: bytes, name: str = "a") -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return write


def folder_of(*names: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        for name in names:
            (folder / "a" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "a" / name).write_bytes(b"\x00\x01")
        return folder / "a"

    return write


@pytest.mark.parametrize(
    ("write", "what", "advice"),
    [
        (
            text(b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 3\n"),
            "Git LFS",
            "git lfs pull",
        ),
        (text(b"\n<!DOCTYPE html><html>"), "a web page", "download"),
        (text(b"\x1f\x8b\x08" + bytes(30)), "packed with gzip", "gunzip"),
        (text(b"\x28\xb5\x2f\xfd" + bytes(30)), "packed with zstd", "unzstd"),
        (text(bytes(257) + b"ustar" + bytes(250)), "a tar archive", "tar -xf"),
        (text(b'{"weights": [[1, 2]]}', "a.json"), "no index of shards", "give a file"),
        (text(b'{"weights": [[1, 2]]}'), "JSON text", "numpy.savez"),
        (text(b"PAR1" + bytes(40)), "Parquet", "numpy.savez"),
        (text(b"GGUF" + bytes(40)), "GGUF", "no gradients"),
        (text(b"\x08\x07" + bytes(40), "net.onnx"), "ONNX", "no gradients"),
        (folder_of(".metadata", "__0_0.distcp"), "distributed checkpoint", "dcp_to_torch"),
        (text(bytes(40), "__0_0.distcp"), "distributed checkpoint", "dcp_to_torch"),
        (folder_of("saved_model.pb", "variables/variables.index"), "TensorFlow", "numpy.savez"),
        (folder_of("checkpoint", "m.ckpt.index", "m.ckpt.data-00000-of-00001"), "TensorFlow", ".weights.h5"),
        (folder_of(".zgroup", "a/.zarray"), "Zarr", "numpy.savez"),
        (folder_of("zarr.json"), "Zarr", "numpy.savez"),
        (folder_of("readme.txt"), "a folder without arrays", "Orbax"),
    ],
)
def test_what_is_not_read_is_named_with_what_to_do(
    spear: Command, tmp_path: Path, write: Callable[[Path], Path], what: str, advice: str
) -> None:
    run = spear("convert", write(tmp_path), tmp_path / "dump.h5")
    assert run.status == 2
    assert what in run.error
    assert advice in run.error
    assert "damaged" not in run.error
    assert len(run.error.strip().splitlines()) == 1
