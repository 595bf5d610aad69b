"""The documents say what is true: commands and snippets run, named files exist, tables match the code."""

from __future__ import annotations

import re
import shlex
import shutil
import tomllib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import typer.main

import spear_np
from spear_io import open_dump
from spear_io.cli.main import app, main
from spear_np.backend.devices import device_for
from tests.documents import code_blocks, run
from tests.io_files import layer_data

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
FORMAT = (ROOT / "docs" / "format.md").read_text()
DUMP = "examples/fashion_mnist_b16.h5"
DOCUMENTS = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "docs/method.md",
    "docs/format.md",
    "docs/frameworks.md",
    "docs/convert.md",
    "io/README.md",
]


FRESH_MACHINE = [block.strip() for block in code_blocks(README, "sh") if block.startswith("python3 -m venv")]
SNIPPETS = code_blocks(README, "python")
COMMANDS = [
    line for block in code_blocks(README, "sh") for line in block.splitlines() if line.startswith("spear-np ")
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder that holds the shipped dump where the README says it is, and files to convert."""
    (tmp_path / "examples").mkdir()
    shutil.copy(ROOT / DUMP, tmp_path / DUMP)
    data = layer_data()
    before = {"fc1.weight": data.weight, "fc1.bias": data.bias}
    gradients = {"fc1.weight": data.weight_grad, "fc1.bias": data.bias_grad}
    arrays = {
        "step": before | {f"{name}_grad": gradient for name, gradient in gradients.items()},
        "before": before,
        "after": {name: before[name] - gradient for name, gradient in gradients.items()},
    }
    for name, named in arrays.items():
        np.savez(tmp_path / name, allow_pickle=False, **named)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def first_layer(path: Path | str) -> spear_np.Inversion:
    with open_dump(path) as dump:
        return spear_np.invert_layer(dump.records[0].layers[0].gradients)


def test_the_two_commands_for_a_fresh_machine() -> None:
    assert len(FRESH_MACHINE) == 2
    ci = (ROOT / ".ci" / "run").read_text()
    for command, name in zip(FRESH_MACHINE, ("try_command", "test_command"), strict=True):
        assert "\n" not in command
        assert README.count(command) == 1
        assert f"\n{name}='{command}'\n" in ci
    assert f".venv/bin/spear-np invert {DUMP} -o inverted.h5" in FRESH_MACHINE[0]
    assert '.venv/bin/pip install -e ".[test]" && .venv/bin/pytest' in FRESH_MACHINE[1]


def test_arrays_in_arrays_out(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    variables = run(SNIPPETS[0])
    said = re.search(r"# (exact .*)$", SNIPPETS[0], re.MULTILINE)
    assert said
    assert said[1] in capsys.readouterr().out
    assert abs(variables["result"].inputs[:, None] - variables["x"]).max(axis=-1).min(axis=0).max() < 1e-9


@pytest.mark.gpu
def test_the_same_on_a_gpu(folder: Path) -> None:
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    try:
        device_for("gpu")
    except spear_np.DeviceError as error:
        pytest.skip(str(error))
    variables = run("\n".join(SNIPPETS[:2]))
    assert variables["result"].status == "exact"
    assert isinstance(variables["result"].inputs, cupy.ndarray)


def test_a_chain_of_layers(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(SNIPPETS[2])
    said = re.search(r"# (exact .*)$", SNIPPETS[2], re.MULTILINE)
    assert said
    assert said[1] in capsys.readouterr().out


def test_blocks_of_columns(folder: Path) -> None:
    variables = run(SNIPPETS[3])
    assert variables["result"].status == "exact"
    assert variables["block"].shape[0] == 16


def test_dump_from_a_training_loop(folder: Path) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    torch.manual_seed(5)
    model = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(784, 80), torch.nn.ReLU(), torch.nn.Linear(80, 10)
    )
    run(
        SNIPPETS[4],
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        criterion=torch.nn.CrossEntropyLoss(),
        images=torch.rand(4, 1, 28, 28),
        labels=torch.tensor([3, 1, 4, 1]),
    )
    assert first_layer("dump.h5").status == "exact"


def test_dump_from_numpy(folder: Path) -> None:
    run("\n".join([SNIPPETS[0], *SNIPPETS[5:]]))
    assert len(SNIPPETS) == 6
    assert first_layer("dump.h5").status == "exact"


def test_the_commands(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(COMMANDS) >= 3
    for line in COMMANDS:
        assert main(shlex.split(line, comments=True)[1:]) == 0, line
    assert "16/16" in capsys.readouterr().out


def test_extras_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for name in DOCUMENTS:
        for listed in re.findall(r"\.\[([\w,]+)\]", (ROOT / name).read_text()):
            assert set(listed.split(",")) <= set(extras), name


@pytest.mark.parametrize("name", DOCUMENTS)
def test_named_files_exist(name: str) -> None:
    document = ROOT / name
    text = document.read_text()
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        assert target.startswith("https://") or (document.parent / target).exists(), target
    named = (
        r"(?<![\w/.])((?:docs|examples|benchmarks|tests|spear_np|io|\.ci)/[\w./-]*\w/?|[A-Z]+\.(?:md|cff))"
    )
    for path in re.findall(named, text):
        assert (ROOT / path).exists() or (document.parent / path).exists(), path
    for module in re.findall(r"python -m ([\w.]+)", text):
        assert module in ("venv", "build") or (ROOT / f"{module.replace('.', '/')}.py").exists(), module
    for source in re.findall(r"`(\w+\.py)`", text):
        assert list((ROOT / "spear_np").rglob(source)), source


def test_the_picture_is_one() -> None:
    assert (ROOT / "docs" / "recovered.png").read_bytes().startswith(b"\x89PNG")


def test_the_method_lists_every_check_with_its_threshold() -> None:
    text = (ROOT / "docs" / "method.md").read_text()
    table = re.findall(r"^\| `(\w+)` \| ([≥≤]) ([\d.]+) \|", text, re.MULTILINE)
    relations = {">=": "≥", "<=": "≤"}
    found = first_layer(ROOT / DUMP).certificate.checks
    checks = [(check.name, relations[check.relation], check.threshold) for check in found]
    assert [(name, relation, float(threshold)) for name, relation, threshold in table] == checks


def test_the_format_names_everything_that_is_written(folder: Path) -> None:
    assert main(["invert", DUMP, "-o", "inverted.h5"]) == 0
    names: set[str] = set()
    for path in (DUMP, "inverted.h5"):
        with h5py.File(path) as file:
            names.update(file.attrs)
            file.visititems(lambda name, item: names.update(name.split("/"), item.attrs))
            given = {"client-0", "0"}
        for name in names - given:
            assert re.search(rf"\b{name}\b", FORMAT), name


def test_the_format_lists_every_option() -> None:
    commands: Any = typer.main.get_command(app)
    for command in commands.commands.values():
        listed = re.search(rf"^spear-np {command.name} .*\n(?: .*\n)*", FORMAT, re.MULTILINE)
        assert listed, command.name
        wanted = {name for option in command.params for name in option.opts if name.startswith("--")}
        written = set(re.findall(r"--[\w-]+", listed[0])) | ({"--output"} if " -o " in listed[0] else set())
        assert written == wanted - {"--help"}, command.name
    for status in spear_np.Status:
        assert f"- `{status}`: " in FORMAT


def test_one_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## [{version}]" in (ROOT / "CHANGELOG.md").read_text()
