"""Pages in a real browser: nothing said on the console, nothing loaded, nothing wider than the screen, nothing inaccessible."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spear_io import Display, RecordInfo, write_dump
from spear_io.audit.result import Asked
from spear_io.audit.run import audit
from spear_io.audit.sweep import Budget
from spear_io.show.report.page import write_report
from tests.browsers import SCHEMES, WIDTHS, browser, opened
from tests.io_files import layer_arrays, layer_data
from tests.pages import HOSTILE, answer, pictures, write_inversion

OPEN_ALL = "document.querySelectorAll('details').forEach(fold => fold.open = true)"
PAGES = ("pictures", "table", "curves", "audit")
TOO_WIDE = "document.documentElement.scrollWidth > document.documentElement.clientWidth"


@pytest.fixture(scope="module")
def running() -> Iterator[Any]:
    with browser() as found:
        yield found


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page of pictures beside the truth with hostile names, one of a table, one of curves, and one of an audit."""
    folder = tmp_path_factory.mktemp("pages")
    made = {}
    truth = pictures(60)
    np.save(folder / "truth.npy", truth)
    layers = [
        ("a", "fc", answer(truth, labels=range(60))),
        ("b", "fc", answer(truth[:3], status="partial", batch_size=9)),
        ("c", "fc", answer(truth[:0], status="failed", batch_size=0)),
        *((name, "fc", answer(truth[:1])) for name in HOSTILE if "/" not in name),
    ]
    display = Display((1, 8, 8), client=HOSTILE[0], round=HOSTILE[4])
    write_inversion(folder / "pictures.h5", layers, display=display, source=HOSTILE[1])
    table = np.random.default_rng(1).normal(size=(5, 64))
    names = tuple(f"column {number}" for number in range(63))
    named = Display(feature_names=(*names, HOSTILE[0]))
    write_inversion(folder / "table.h5", [("a", "fc", answer(table))], display=named)
    write_inversion(folder / "curves.h5", [("a", "fc", answer(np.cumsum(pictures(4, (400,)), axis=1)))])
    for name, against in (("pictures", folder / "truth.npy"), ("table", None), ("curves", None)):
        made[name] = folder / f"{name}.html"
        write_report(folder / f"{name}.h5", made[name], against=against, title=HOSTILE[0])
    made["audit"] = folder / "audit.html"
    arrays = {HOSTILE[5]: layer_arrays(layer_data(b=3))}
    write_dump(folder / "dump.h5", arrays, record=HOSTILE[1], info=RecordInfo(client=HOSTILE[0]))
    audit(folder / "dump.h5", made["audit"], Asked(refine=False), Budget(time_limit=0.5))
    return made


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_pages_are_quiet_and_fit(
    running: Any, pages: dict[str, Path], name: str, scheme: str, width: int
) -> None:
    with opened(running, pages[name], width=width, scheme=scheme) as (tab, said):
        tab.evaluate(OPEN_ALL)
        assert not tab.evaluate(TOO_WIDE)
        assert tab.locator("img").count() == tab.evaluate(
            "[...document.images].filter(image => image.complete && image.naturalWidth > 0).length"
        )
        assert said == []


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_pages_are_accessible(running: Any, pages: dict[str, Path], name: str, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")
    with opened(running, pages[name], scheme=scheme) as (tab, _):
        tab.evaluate(OPEN_ALL)
        found = axe.Axe().run(tab)
        assert found.violations_count == 0, found.generate_report()


def test_pages_can_be_read_with_the_keyboard_alone(running: Any, pages: dict[str, Path]) -> None:
    with opened(running, pages["pictures"]) as (tab, _):
        tab.keyboard.press("Tab")
        assert tab.evaluate("document.activeElement.className") == "skip"
        for _ in range(40):
            tab.keyboard.press("Tab")
            if tab.evaluate("document.activeElement.tagName") == "SUMMARY":
                break
        tab.keyboard.press("Enter")
        assert tab.evaluate("document.activeElement.parentElement.open")


SMALLEST_TEXT = """Math.min(...[...document.querySelectorAll('svg.plot text')].map(text => {
    const screen = text.getScreenCTM();
    return parseFloat(getComputedStyle(text).fontSize) * Math.hypot(screen.a, screen.b);
}))"""
"""In pixels, of what plots say."""


@pytest.mark.parametrize("width", WIDTHS)
def test_plots_can_be_read(running: Any, pages: dict[str, Path], width: int) -> None:
    with opened(running, pages["pictures"], width=width) as (tab, _):
        tab.evaluate(OPEN_ALL)
        assert 10 <= tab.evaluate(SMALLEST_TEXT) <= 20


def test_a_wide_table_says_that_it_scrolls_and_does_by_key(running: Any, pages: dict[str, Path]) -> None:
    with opened(running, pages["table"], width=400) as (tab, _):
        region = tab.get_by_role("region", name="Recovered records")
        assert tab.get_by_text("65 columns: scroll the table sideways").first.is_visible()
        assert region.evaluate("self => self.scrollWidth > self.clientWidth")
        assert region.evaluate("self => getComputedStyle(self).backgroundImage").count("linear-gradient") == 4
        region.focus()
        tab.keyboard.press("ArrowRight")
        tab.wait_for_timeout(500)  # it glides
        assert region.evaluate("self => self.scrollLeft") > 0
        first = region.get_by_role("rowheader").first
        assert first.bounding_box()["x"] >= region.bounding_box()["x"]  # the name of the row stays


def test_paper_holds_every_column(running: Any, pages: dict[str, Path]) -> None:
    with opened(running, pages["table"], width=718) as (tab, _):  # A4 less its margins
        tab.emulate_media(media="print")
        cells = tab.locator("td[data-name]").evaluate_all(
            "cells => cells.map(cell => [cell.dataset.name, getComputedStyle(cell, '::before').content,"
            " cell.getBoundingClientRect().left, cell.getBoundingClientRect().right])"
        )
        assert {f"column {number}" for number in range(63)} <= {name for name, *_ in cells}
        for name, before, left, right in cells:
            assert before != "none", name
            assert 0 <= left < right <= 718
        assert not tab.evaluate(TOO_WIDE)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_pictures_have_an_edge(running: Any, pages: dict[str, Path], scheme: str) -> None:
    with opened(running, pages["pictures"], scheme=scheme) as (tab, _):
        edge, ground = tab.locator(".card img").first.evaluate(
            "image => [getComputedStyle(image).border, getComputedStyle(image.closest('.card')).backgroundColor]"
        )
        assert edge.startswith("1px solid")
        assert ground not in edge


def test_paper_shows_what_is_folded(running: Any, pages: dict[str, Path]) -> None:
    with opened(running, pages["table"]) as (tab, _):
        cell = tab.get_by_text("The model confirms the inputs").first
        assert not cell.is_visible()
        tab.emulate_media(media="print")
        box = cell.bounding_box()
        assert box is not None
        assert box["height"] > 0
