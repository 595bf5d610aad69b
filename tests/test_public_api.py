"""What is public, what is imported, and which way the arrows point."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import spear_np

ROOT = Path(__file__).parent.parent
SOLVER = sorted((ROOT / "spear_np").rglob("*.py"))
README = (ROOT / "README.md").read_text()


def imported_by(path: Path) -> set[str]:
    """Top-level packages that a file imports anywhere, `.` for the package itself."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add("." if node.level else (node.module or "").split(".")[0])
    return names


def loaded_after(code: str) -> set[str]:
    """Packages in memory of a fresh interpreter after `code`."""
    script = f"import sys; sys.path[:0] = [{str(ROOT)!r}]\n{code}\nprint(*sys.modules, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in done.stdout.split()}


HEAVY = {
    "h5py",
    "torch",
    "cupy",
    "cupyx",
    "jax",
    "tensorflow",
    "spear_io",
    "rich",
    "typer",
    "sklearn",
    "pandas",
}
SMALL_INVERSION = """
import numpy, spear_np
rng = numpy.random.default_rng(1)
W, X = rng.standard_normal((60, 20)), rng.standard_normal((2, 20))
D = rng.standard_normal((60, 2)) * (W @ X.T > 0)
result = spear_np.invert(D @ X, D.sum(axis=1), weight=W)
assert result.found == 2, result.reason
spear_np.survey(result.gradients)
"""


def test_every_public_name_is_there_and_says_what_it_is() -> None:
    assert spear_np.__all__ == sorted(spear_np.__all__, key=lambda name: (not name.isupper(), name))
    for name in spear_np.__all__:
        thing = getattr(spear_np, name)
        if name != "METHODS":
            assert (thing.__doc__ or "").strip(), name


def test_every_class_of_an_answer_is_public() -> None:
    result = spear_np.Inversion
    for name in ("Status", "Certificate", "LayerGradients", "Round"):
        assert name in spear_np.__all__
        assert any(name in str(kind) for kind in result.__annotations__.values())


def test_what_the_readme_uses_is_public() -> None:
    used = set(re.findall(r"spear_np\.(\w+)", README))
    assert "invert" in used
    assert used <= set(spear_np.__all__)


def test_the_version_is_that_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert spear_np.__version__ in (project["version"], "0+unknown")


def test_the_methods_are_those_that_invert_knows() -> None:
    assert spear_np.METHODS[0] == "auto"
    assert spear_np.invert.__doc__ is not None
    for method in spear_np.METHODS:
        assert f'"{method}"' in spear_np.invert.__doc__


@pytest.mark.parametrize("code", ["import spear_np", SMALL_INVERSION], ids=["import", "inversion"])
def test_the_solver_loads_no_framework_and_no_file_library(code: str) -> None:
    loaded = loaded_after(code)
    assert "numpy" in loaded
    assert not loaded & HEAVY


@pytest.mark.parametrize("path", SOLVER, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_solver_imports_only_what_it_may(path: Path) -> None:
    allowed = {".", "numpy", "scipy", "array_api_compat"}
    if path.parent.name == "backend":
        allowed |= {"cupy", "cupyx", "threadpoolctl"}
    if path.name == "notebook.py":
        allowed |= {"pandas"}
    assert imported_by(path) - set(sys.stdlib_module_names) <= allowed


def test_only_one_room_knows_cupy() -> None:
    knowing = {path.parent.name for path in SOLVER if re.search(r"\bcupy\b", path.read_text())}
    assert knowing == {"backend"}


def test_the_solver_never_prints() -> None:
    for path in SOLVER:
        calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
        assert not [c for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"], path


def test_files_import_the_solver_and_not_the_other_way() -> None:
    files = sorted((ROOT / "io" / "spear_io").rglob("*.py"))
    assert any("spear_np" in imported_by(path) for path in files)
    assert not any("spear_io" in imported_by(path) for path in SOLVER)


def test_the_folder_of_the_files_package_stays_a_folder() -> None:
    # `io/__init__.py` would fight the standard library; anything else in there becomes importable.
    assert not (ROOT / "io" / "__init__.py").exists()
    assert {path.name for path in (ROOT / "io").iterdir()} <= {"spear_io", "README.md", "__pycache__"}
