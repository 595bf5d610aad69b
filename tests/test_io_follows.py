"""`follows` as an argument: all layers of a record at once, from NumPy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from spear_io import DumpWriter, FileError, LayerArrays, write_dump
from tests.links import said

WIDTHS = {"a": (6, 9), "b": (6, 6), "c": (6, 6), "d": (4, 6)}

Follows = bool | Mapping[str, str | None] | None


def layers() -> dict[str, LayerArrays]:
    rng = np.random.default_rng(3)
    return {
        name: LayerArrays(rng.standard_normal(shape), rng.standard_normal(shape[0]))
        for name, shape in WIDTHS.items()
    }


def links(path: Path) -> list[str | None]:
    return [follows for _, follows, _ in said(path).values()]


@pytest.mark.parametrize(
    ("follows", "wanted"),
    [
        (None, [None, None, None, None]),
        (False, [None, None, None, None]),
        (True, [None, "a", "b", "c"]),
        ({"b": "a", "d": "b"}, [None, "a", None, "b"]),
        ({"b": "a", "c": None}, [None, "a", None, None]),
    ],
)
def test_layers_are_linked_as_the_argument_says(
    follows: Follows, wanted: list[str | None], tmp_path: Path
) -> None:
    write_dump(tmp_path / "one.h5", layers(), follows=follows)
    assert links(tmp_path / "one.h5") == wanted
    with DumpWriter(tmp_path / "two.h5") as dump:
        dump.add_record("record-0", layers(), follows=follows)
    assert links(tmp_path / "two.h5") == wanted


def test_a_layer_that_says_itself_is_believed(tmp_path: Path) -> None:
    arrays = layers()
    arrays["c"] = replace(arrays["c"], between="dropout")
    arrays["d"] = replace(arrays["d"], follows="b")
    write_dump(tmp_path / "d.h5", arrays, follows=True)
    assert links(tmp_path / "d.h5") == [None, "a", None, "b"]


def test_other_layers_are_no_part_of_a_chain(tmp_path: Path) -> None:
    arrays = layers()
    arrays["b"] = LayerArrays(None, kind="conv2d")
    write_dump(tmp_path / "d.h5", arrays, follows=True)
    assert links(tmp_path / "d.h5") == [None, None, None, "c"]


@pytest.mark.parametrize(
    ("follows", "problem"),
    [
        ({"x": "a"}, r"`follows` names 'x', but there is no such layer; there is: 'a'"),
        ({"b": "x"}, r"layer 'b': the attribute 'follows' is 'x', but there is no such layer"),
        ({"b": "b"}, r"layer 'b': .* 'b', the layer itself"),
        ({"b": "c", "c": "b"}, r"layer 'b': .* 'c', which comes later"),
        ({"b": "a", "a": "b"}, r"layer 'a': .* 'b', which comes later"),
    ],
)
def test_what_cannot_be_is_one_line(follows: Follows, problem: str, tmp_path: Path) -> None:
    with pytest.raises(FileError, match=problem) as caught:
        write_dump(tmp_path / "d.h5", layers(), follows=follows)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_widths_must_fit(tmp_path: Path) -> None:
    arrays = {name: layers()[name] for name in ("b", "d", "c")}
    with pytest.raises(
        FileError, match=r"layer 'c': .* 'd', which has 4 output units, but this layer has 6 input"
    ):
        write_dump(tmp_path / "d.h5", arrays, follows=True)
