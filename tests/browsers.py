"""A real browser for pages: Chromium of the system or Playwright's own, or the reason why there is none."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

WIDTHS = (400, 900, 1400)
SCHEMES = ("light", "dark")


@contextmanager
def browser() -> Iterator[Any]:
    """Yield a running Chromium; skip the test, with the reason, where none starts."""
    api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with api.sync_playwright() as playwright:
        try:
            running = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        except api.Error as error:
            pytest.skip(f"no Chromium starts here: {str(error).splitlines()[0]}")
        try:
            yield running
        finally:
            running.close()


@contextmanager
def opened(
    running: Any, page: Path, *, width: int = 900, scheme: str = "light"
) -> Iterator[tuple[Any, list[str]]]:
    """Yield the page as people see it, and a list of everything that the console and the network say."""
    context = running.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, java_script_enabled=True
    )
    said: list[str] = []
    tab = context.new_page()
    tab.on("console", lambda message: said.append(f"console: {message.type}: {message.text}"))
    tab.on("pageerror", lambda error: said.append(f"error: {error}"))

    def dialog(box: Any) -> None:
        said.append(f"dialog: {box.message}")
        box.dismiss()

    def request(sent: Any) -> None:
        if not sent.url.startswith(("file:", "data:")):
            said.append(f"request: {sent.url}")

    tab.on("dialog", dialog)
    tab.on("request", request)
    tab.goto(page.resolve().as_uri())
    try:
        yield tab, said
    finally:
        context.close()
