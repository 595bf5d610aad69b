"""What a caller may choose: every wrong value is refused before anything is computed, and named."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import spear_np
from spear_np import Options
from tests.layers import digit_layer


class NotANumber:
    """Something that is no number."""

    def __repr__(self) -> str:
        return "NotANumber()"


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        *[("seed", wrong, "a whole number, 0 or more") for wrong in (-1, 1.5, "7", None, True)],
        *[("batch_size", wrong, "a whole number, 1 or more") for wrong in (0, -3, 2.5, 2.0, "2", False)],
        *[("max_proposals", wrong, "a whole number, 0 or more") for wrong in (-1, 1e6, math.inf, "all")],
        *[
            ("time_limit", wrong, "a number of seconds, zero or more")
            for wrong in (math.nan, -1, -math.inf, "soon", None, NotANumber())
        ],
        *[
            ("data_range", wrong, "two finite numbers")
            for wrong in (
                (1, 0),
                (1, 1),
                (0, math.inf),
                (math.nan, 1),
                (0,),
                (0, 1, 2),
                1.0,
                "ab",
                ("low", "high"),
            )
        ],
    ],
)
def test_what_is_out_of_range_is_refused(name: str, wrong: Any, message: str) -> None:
    with pytest.raises(spear_np.InputError, match=f"`{name}` is .*expected {message}"):
        Options(**{name: wrong})
    data = digit_layer(2, width=30, seed=408)
    with pytest.raises(spear_np.InputError, match=f"`{name}` is .*expected {message}"):
        spear_np.invert(data.weight_grad, **{name: wrong})


def test_a_method_is_a_name_or_a_search() -> None:
    with pytest.raises(spear_np.InputError, match="unknown method 'magic': expected one of auto"):
        Options(method="magic")
    wrong: Any = 3
    with pytest.raises(spear_np.InputError, match="`method` is a int: expected one of auto"):
        Options(method=wrong)
    assert Options(method=lambda factors, model: None).method_name == "custom"  # type: ignore[arg-type, return-value]


def test_what_is_in_range_is_settled() -> None:
    settings: dict[str, Any] = {
        "batch_size": np.int64(3),
        "data_range": [0, np.float32(1)],
        "seed": np.uint8(7),
        "time_limit": np.float32(2),
        "max_proposals": 0,
    }
    options = Options(**settings)
    assert (options.batch_size, options.seed, options.max_proposals) == (3, 7, 0)
    assert [type(value) for value in (options.batch_size, options.seed, options.time_limit)] == [
        int,
        int,
        float,
    ]
    assert options.data_range == (0.0, 1.0)
    assert Options(time_limit=math.inf).time_limit == math.inf
    assert Options().data_range is None


def test_equal_options_are_equal_and_cannot_be_changed() -> None:
    assert Options(seed=3) == Options(seed=3) != Options(seed=4)
    with pytest.raises(AttributeError, match="seed"):
        Options().seed = 5  # type: ignore[misc]
