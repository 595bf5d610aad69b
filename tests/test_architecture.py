"""Which way imports point: the contracts of pyproject.toml, and that they fail when an arrow is turned round."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LINT = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(cache_dir=None))"


def lint(root: Path) -> subprocess.CompletedProcess[str]:
    """Hold the packages below `root` against the contracts there."""
    environment = {**os.environ, "PYTHONPATH": f"{root}:{root / 'io'}", "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, "-c", LINT], cwd=root, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The sources of both packages, to be changed."""
    for folder in ("spear_np", "io/spear_io"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_imports_run_one_way() -> None:
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("spear_np/factors/rank.py", "from ..search import sampling"),
        ("spear_np/directions/pool.py", "from ..inputs import scale"),
        ("spear_np/answer/result.py", "from ..checks import certify"),
        ("spear_np/loop/run.py", "from ..directions import pool"),
        ("spear_np/checks/certify.py", "from ..layer import choose"),
        ("spear_np/backend/work.py", "import spear_io"),
        ("io/spear_io/files/dump.py", "from ..show import tables"),
        ("io/spear_io/convert/names.py", "from ..cli import main"),
    ],
)
def test_an_arrow_turned_round_is_found(copy: Path, module: str, line: str) -> None:
    path = copy / module
    path.write_text(f"{path.read_text()}\n\n{line}\n")
    done = lint(copy)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "BROKEN" in done.stdout


def test_a_room_that_no_contract_names_is_found(copy: Path) -> None:
    room = copy / "spear_np" / "attic"
    room.mkdir()
    (room / "__init__.py").touch()
    done = lint(copy)
    assert done.returncode == 1
    assert "attic" in done.stdout
