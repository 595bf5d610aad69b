"""Thresholds: each is a named constant that says where its value comes from, and the page of them is up to date."""

from __future__ import annotations

import math
import sys
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.constants import KINDS, literals, page, thresholds
from benchmarks.thresholds import changed, changes, value_of
from spear_np.directions import polish, pool, reduction

PAGE = Path(__file__).parent.parent / "docs" / "thresholds.md"
PLAIN = {0, 1, 2, 3, 4, 0.25, 0.5}
"""Numbers of formulas: counts, halves, squares."""
BY_NAME = {threshold.name: threshold for threshold in thresholds()}
UNITS = {("factors/gradients.py", 8), ("survey.py", 1e6), ("survey.py", 16)}
"""Bytes of a number, a million, and least sizes of a block."""


def test_the_page_is_that_of_the_source() -> None:
    assert PAGE.read_text() == page(), "python -m benchmarks.constants > docs/thresholds.md"


@pytest.mark.parametrize(
    "threshold", thresholds(), ids=lambda threshold: f"{threshold.module}:{threshold.name}"
)
def test_each_says_what_it_decides_and_where_its_value_comes_from(threshold) -> None:  # type: ignore[no-untyped-def]
    assert threshold.kind in KINDS
    assert threshold.source.endswith((".", ")"))
    assert threshold.meaning


def test_no_two_share_a_name() -> None:
    names = Counter(threshold.name for threshold in thresholds())
    assert [name for name, count in names.items() if count > 1] == []


def test_no_function_holds_one() -> None:
    strange = [
        f"{module}:{line}: {number}"
        for module, line, number in literals()
        if number not in PLAIN and (module, number) not in UNITS
    ]
    assert strange == []


class TestTheBenchmark:
    def test_a_changed_constant_is_changed_wherever_it_was_imported(self) -> None:
        threshold = BY_NAME["SMALL_BATCH"]
        with changed(threshold, 5):
            assert pool.SMALL_BATCH == polish.SMALL_BATCH == reduction.SMALL_BATCH == 5  # type: ignore[attr-defined]
        assert value_of(threshold) == 24
        assert sys.modules["spear_np.search.schedule"].SMALL_BATCH == 24

    @pytest.mark.parametrize(
        ("name", "values"),
        [
            ("ROUNDS", [3, 12]),
            ("STARTS_PER_MISSING", [2, 8]),
            ("PENALTY", [0.025, 0.1]),
            ("SURE_FIT", [0.985, 0.94]),
            ("SPREADS", []),
        ],
    )
    def test_halving_and_doubling(self, name: str, values: list[float]) -> None:
        assert [value for _, value in changes(BY_NAME[name])] == pytest.approx(values)

    def test_every_number_can_be_varied(self) -> None:
        for threshold in thresholds():
            for _, value in changes(threshold):
                assert math.isfinite(value)
                assert value != value_of(threshold)
