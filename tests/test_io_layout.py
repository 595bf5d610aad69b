from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import spear_io
from spear_io import InversionWriter, open_dump
from tests.io_files import fake_inversion, layer_data, write_good_dump

ROOT = Path(__file__).parent.parent
COMMANDS = ("inspect", "invert", "evaluate", "convert")

FRAMEWORKS = {"torch", "jax", "flax", "keras", "flwr", "cupy", "sklearn", "matplotlib"}
FORMATS = {"h5py", "safetensors", "msgpack", "ml_dtypes"}
SLOW = {"typer", "rich", "scipy", *FRAMEWORKS, *FORMATS}
"""What takes long to import, and is seldom needed."""


def loaded_after(code: str) -> set[str]:
    """Top-level names of all modules that a fresh interpreter holds after `code`."""
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'io'}", "PATH": ""}
    report = "\nimport sys; print(*sys.modules, file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", code + report], capture_output=True, text=True, check=True, env=environment
    )
    return {name.partition(".")[0] for name in done.stderr.split()}


def test_the_folder_io_is_no_package() -> None:
    assert not (ROOT / "io" / "__init__.py").exists()
    assert {path.name for path in (ROOT / "io").iterdir()} <= {"spear_io", "README.md", "__pycache__"}


def test_importing_both_stays_light() -> None:
    loaded = loaded_after("import spear_np, spear_io")
    assert {"spear_np", "spear_io", "numpy"} <= loaded
    assert not loaded & SLOW


def test_a_public_name_brings_what_it_needs_and_no_more() -> None:
    loaded = loaded_after("from spear_io import DumpWriter, InversionWriter, open_dump, open_inversion")
    assert loaded & SLOW == {"h5py"}


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)], ids=" ".join
)
def test_help_and_version_need_no_arrays_and_no_files(arguments: list[str]) -> None:
    loaded = loaded_after(f"from spear_io.cli.main import main; assert main({arguments}) == 0")
    assert "typer" in loaded
    assert not loaded & {"spear_np", "numpy", *(SLOW - {"typer", "rich"})}  # typer may ask rich for help


def test_the_command_itself_needs_no_rich() -> None:
    assert loaded_after("import spear_io.cli.main") & SLOW == {"typer"}


@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_loads_a_framework(name: str, tmp_path: Path) -> None:
    dump, out = tmp_path / "dump.h5", tmp_path / "out.h5"
    write_good_dump(dump)
    npz = tmp_path / "gradients.npz"
    data = layer_data()
    arrays: dict[str, Any] = {"fc.weight_grad": data.weight_grad, "fc.bias_grad": data.bias_grad}
    np.savez(npz, **arrays)
    with open_dump(dump) as opened, InversionWriter(out, source=dump) as writer:
        gradients = opened.records[0].layers[0].gradients
        writer.add("client-0", "fc1", fake_inversion(gradients, data.inputs))
    arguments: dict[str, list[Any]] = {
        "inspect": [dump],
        "invert": [dump, "-o", tmp_path / "new.h5"],
        "evaluate": [out, dump],
        "convert": [npz, tmp_path / "converted.h5", "--gradients"],
    }
    command = [name, *map(str, arguments[name])]
    loaded = loaded_after(f"from spear_io.cli.main import main; assert main({command}) == 0")
    assert "h5py" in loaded
    assert not loaded & FRAMEWORKS


def test_the_solver_knows_nothing_of_files() -> None:
    assert not loaded_after("import spear_np") & {"h5py", "spear_io", "typer", "rich", "torch", "cupy"}
    for source in (ROOT / "spear_np").rglob("*.py"):
        assert not re.search(
            r"^\s*(import|from)\s+(h5py|spear_io|typer|rich|torch)\b", source.read_text(), re.MULTILINE
        )


def test_public_names_exist_and_are_sorted() -> None:
    assert sorted(spear_io.__all__) == spear_io.__all__
    assert all(hasattr(spear_io, name) for name in spear_io.__all__)
    assert set(spear_io.__all__) <= set(dir(spear_io))
    assert {name for names in spear_io._HOMES.values() for name in names} == set(spear_io.__all__)
    with pytest.raises(AttributeError, match="no attribute 'open_dumps'"):
        _ = vars(spear_io)["__getattr__"]("open_dumps")
