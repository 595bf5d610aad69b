"""A hook of MkDocs: pages may link to any file of the repository, as they do where the repository is read itself.

The README is the front page. A file outside `docs/` that a page links to becomes part of the site, under `repository/`, and the link is
turned to it; Markdown becomes a page. A link to a file that does not exist stays as it is, and the strict build refuses it.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

FRONT = "README.md"
LINK = re.compile(r"(?P<open>\]\()(?P<target>(?!\w+:|#)[^)\s#]+)(?P<anchor>#[^)\s]*)?(?=\))")


def on_files(files: Files, *, config: Any) -> Files:
    """Add the front page, and every file that pages link to, and those that these link to."""
    root = Path(config.config_file_path).parent
    waiting = [FRONT, *(f"docs/{file.src_uri}" for file in files.documentation_pages())]
    seen: set[str] = set()
    while waiting:
        path = waiting.pop()
        if path in seen or not (root / path).is_file():
            continue
        seen.add(path)
        place = place_of(path)
        if files.get_file_from_path(place) is None:
            files.append(File.generated(config, place, abs_src_path=str(root / path)))
        if path.endswith(".md"):
            text = (root / path).read_text(encoding="utf-8")
            waiting += [target_of(path, link["target"]) for link in LINK.finditer(text)]
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:
    """Turn the links of one page to where their targets are in the site."""
    root = Path(config.config_file_path).parent
    here = path_of(page.file.src_uri)

    def turned(link: re.Match[str]) -> str:
        path = target_of(here, link["target"])
        if not (root / path).is_file():
            return link[0]
        place = posixpath.relpath(place_of(path), posixpath.dirname(page.file.src_uri) or ".")
        return f"{link['open']}{place}{link['anchor'] or ''}"

    return LINK.sub(turned, markdown)


def target_of(path: str, link: str) -> str:
    """Return the path in the repository of a `link` on the page of the repository at `path`."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), link))


def place_of(path: str) -> str:
    """Return where in the site a file of the repository is."""
    if path == FRONT:
        return "index.md"
    return path.removeprefix("docs/") if path.startswith("docs/") else f"repository/{path}"


def path_of(place: str) -> str:
    """Return which file of the repository is at a `place` in the site."""
    if place == "index.md":
        return FRONT
    return place.removeprefix("repository/") if place.startswith("repository/") else f"docs/{place}"
