"""The site of the documentation: every link of a page leads to where its file is there."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
pytest.importorskip("mkdocs", reason="MkDocs is not installed")


@pytest.fixture(scope="module")
def hook() -> ModuleType:
    place = ROOT / "docs" / "site" / "whole_repository.py"
    spec = importlib.util.spec_from_file_location("whole_repository", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("README.md", "index.md"),
        ("docs/trust.md", "trust.md"),
        ("benchmarks/results/trust.md", "repository/benchmarks/results/trust.md"),
        ("LICENSE", "repository/LICENSE"),
    ],
)
def test_every_file_has_one_place(hook: ModuleType, path: str, place: str) -> None:
    assert hook.place_of(path) == place
    assert hook.path_of(place) == path


@pytest.mark.parametrize(
    ("page", "link", "path"),
    [
        ("README.md", "docs/method.md", "docs/method.md"),
        ("docs/trust.md", "method.md", "docs/method.md"),
        ("docs/trust.md", "../benchmarks/families.py", "benchmarks/families.py"),
    ],
)
def test_links_are_read_from_where_they_stand(hook: ModuleType, page: str, link: str, path: str) -> None:
    assert hook.target_of(page, link) == path


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, hook: ModuleType) -> Path:
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    config = load_config(
        str(ROOT / "mkdocs.yml"), site_dir=str(folder), plugins=["search"], theme="mkdocs", strict=False
    )
    build(config)
    return folder


def test_the_front_page_is_the_readme(site: Path) -> None:
    assert "In federated learning clients keep their data" in (site / "index.html").read_text(
        encoding="utf-8"
    )


def test_links_of_pages_lead_to_files_of_the_site(site: Path) -> None:
    pages = [page for page in site.rglob("*.html") if page.name not in {"404.html", "search.html"}]
    assert len(pages) > 10
    for page in pages:
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r'(?:href|src)="(?!\w+:|#|/|//)([^"#?]+)', text):
            if target != ".":
                assert (page.parent / target).exists(), f"{page.relative_to(site)}: {target}"
