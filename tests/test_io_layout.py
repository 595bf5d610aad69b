from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import spear_io

ROOT = Path(__file__).parent.parent


HEAVY = {
    *("torch", "jax", "flax", "keras", "flwr", "cupy", "safetensors", "msgpack", "ml_dtypes"),
    *("typer", "rich", "scipy", "sklearn", "matplotlib"),  # slow, and seldom needed
}


def imported_with(module: str) -> set[str]:
    code = f"import sys, {module}; print(*sys.modules)"
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'io'}", "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_the_folder_io_is_no_package() -> None:
    assert not (ROOT / "io" / "__init__.py").exists()
    assert {path.name for path in (ROOT / "io").iterdir()} <= {"spear_io", "README.md", "__pycache__"}


def test_importing_both_stays_light() -> None:
    loaded = imported_with("spear_np, spear_io")
    assert {"spear_np", "spear_io", "h5py"} <= loaded
    assert not loaded & HEAVY


def test_importing_the_command_loads_no_framework_and_no_format_library() -> None:
    assert not imported_with("spear_io.cli.main") & (HEAVY - {"typer", "rich", "scipy"})


def test_the_solver_knows_nothing_of_files() -> None:
    assert not imported_with("spear_np") & {"h5py", "spear_io", "typer", "rich", "torch", "cupy"}
    for source in (ROOT / "spear_np").rglob("*.py"):
        assert not re.search(
            r"^\s*(import|from)\s+(h5py|spear_io|typer|rich|torch)\b", source.read_text(), re.MULTILINE
        )


def test_public_names_exist_and_are_sorted() -> None:
    assert sorted(spear_io.__all__) == spear_io.__all__
    assert all(hasattr(spear_io, name) for name in spear_io.__all__)
