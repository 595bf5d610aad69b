from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spear_io.problems import FileError, Place, cause, listing, printable


@given(st.text(st.characters(), max_size=300), st.integers(5, 200))
def test_whatever_a_name_holds_it_stays_one_harmless_line(name: str, limit: int) -> None:
    shown = printable(name, limit)
    assert shown.isprintable()
    assert len(shown) <= limit


def test_ordinary_names_are_shown_as_they_are() -> None:
    assert printable("Fläche № 7, λ") == "Fläche № 7, λ"
    assert printable("a\x1b[1m\nb") == r"a\x1b[1m\nb"
    assert printable("\udc80") == r"\udc80"
    assert printable("x" * 10, 5) == "xxxx…"


def test_an_error_says_where_what_and_what_to_do() -> None:
    place = Place(Path("dump.h5")).at(record="r").at(layer="fc1").at(dataset="bias")
    error = FileError("holds strings", place, "store float32")
    assert str(error) == "dump.h5: record 'r', layer 'fc1', dataset 'bias': holds strings; store float32"
    assert (error.file, error.record, error.layer, error.dataset) == (Path("dump.h5"), "r", "fc1", "bias")
    assert str(FileError("not an HDF5 file", Place(Path("a.txt")))) == "a.txt: not an HDF5 file"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (OSError("Can't write (errno = 28, error message = 'No space left', buf = 0x1)"), "No space left"),
        (RuntimeError("two\nlines"), "two lines"),
        (KeyError(), "KeyError"),
    ],
)
def test_the_heart_of_a_low_level_error(error: Exception, text: str) -> None:
    assert cause(error) == text


def test_long_lists_are_cut() -> None:
    assert listing([]) == "none"
    assert listing(["a", "b"]) == "'a', 'b'"
    assert listing(map(str, range(25))).endswith("'19' and 5 more")
