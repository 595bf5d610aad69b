"""The page on the architecture: everything that it names is there, and no room is missing."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "architecture.md").read_text()
PATHS = sorted(set(re.findall(r"`((?:spear_np|io|tests|docs|benchmarks)/[\w./]+|pyproject\.toml)`", PAGE)))
ROOMS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]


@pytest.mark.parametrize("path", PATHS)
def test_every_path_exists(path: str) -> None:
    assert (ROOT / path).exists()
    assert path.endswith("/") == (ROOT / path).is_dir()


@pytest.mark.parametrize("package", ["spear_np", "io/spear_io"])
def test_every_room_has_a_line(package: str) -> None:
    rooms = [path.name for path in (ROOT / package).iterdir() if (path / "__init__.py").exists()]
    assert rooms
    table = PAGE[PAGE.index("## The rooms") : PAGE.index("## The way")]
    for room in rooms:
        # A room for other problems than one layer is spoken of where new things go.
        assert f"`{package}/{room}/`" in table, room


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("_row_noise", "spear_np/factors/factorize.py"),
        ("BLOCK_BYTES", "spear_np/factors/gradients.py"),
        ("BLOCK_NUMBERS", "spear_np/backend/work.py"),
        ("search_for", "spear_np/layer/problem.py"),
        ("METHODS", "spear_np/loop/options.py"),
        ("accepted", "spear_np/answer/certificate.py"),
        ("Problem", "spear_np/loop/problem.py"),
        ("Source", "io/spear_io/convert/source.py"),
    ],
)
def test_what_it_says_is_in_a_file_is_in_it(name: str, path: str) -> None:
    assert f"{name}`" in PAGE
    assert f"`{path}`" in PAGE
    assert re.search(rf"^(?:class|    def|def|) ?{name}\b", (ROOT / path).read_text(), re.MULTILINE)


def test_the_picture_has_the_layers_of_the_contracts() -> None:
    picture = PAGE[PAGE.index("```mermaid") : PAGE.index("```\n\nArrows")]
    layers = [layer for contract in ROOMS if contract["type"] == "layers" for layer in contract["layers"]]
    rooms = {room.strip(" ()") for layer in layers for room in layer.split("|")}
    assert {room for room in rooms if room not in picture} <= {
        "theory",
        "errors",
        "arrays",
        "problems",
        "survey",
        "check",
    }


def test_readme_and_contributing_lead_to_it() -> None:
    for page in ("README.md", "CONTRIBUTING.md"):
        assert "docs/architecture.md" in (ROOT / page).read_text()
