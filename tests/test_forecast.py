"""What is said of the default search beforehand agrees with what was measured."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from spear_io import open_dump
from spear_io.show.forecast import Outlook, outlook
from spear_io.show.overview import record_overview

ROOT = Path(__file__).parent.parent
ROWS = re.findall(
    r"^\| (\d+) \| (\d+) \| (\d+)/(\d+) \| ([\d.]+) \|",
    (ROOT / "docs" / "reach.md").read_text(),
    re.MULTILINE,
)


def test_the_figures_are_there() -> None:
    assert len(ROWS) >= 19


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]} x {row[1]}")
def test_it_says_what_was_measured(row: tuple[str, ...]) -> None:
    units, batch, whole, batches = map(int, row[:4])
    said = outlook(units, batch)
    if whole / batches < 0.5:
        assert said is Outlook.UNLIKELY
    if said is Outlook.SECONDS:
        assert whole == batches
        assert float(row[4]) < 20
    if said is Outlook.MINUTE:
        assert whole / batches >= 0.8


@pytest.mark.parametrize(
    ("file", "said"), [("fashion_mnist_b16", Outlook.SECONDS), ("fashion_mnist_gelu_b24", Outlook.SECONDS)]
)
def test_of_the_shipped_dumps(file: str, said: Outlook) -> None:
    with open_dump(ROOT / "examples" / f"{file}.h5") as dump:
        assert record_overview(dump.records[0]).layers[0].outlook is said


def test_a_chain_reaches_further() -> None:
    assert outlook(200, 90) is Outlook.UNLIKELY
    assert outlook(200, 90, chain_reach=100) is Outlook.MINUTE
    assert outlook(0, 10) is Outlook.UNLIKELY
