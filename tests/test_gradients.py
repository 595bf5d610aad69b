"""What a layer's gradients must look like, and what is said when they do not."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spear_np import Activation, InputError, LayerGradients, survey
from spear_np.factors import gradients
from spear_np.factors.gradients import fits_precision, spacing_of
from tests.backends import Backend, assert_array
from tests.layers import digit_layer
from tests.networks import Floats

M, N = 6, 10


def matrix(m: int = M, n: int = N, dtype: Any = np.float32) -> Floats:
    return np.arange(m * n, dtype=dtype).reshape(m, n)


class OnDisk:
    """A matrix that is no array: it has a shape and a dtype and can be sliced; remembers what was read."""

    def __init__(self, values: Floats) -> None:
        self.values = values
        self.shape, self.dtype = values.shape, values.dtype
        self.largest = 0

    def __getitem__(self, key: Any, /) -> Floats:
        block = np.asarray(self.values[key])
        self.largest = max(self.largest, block.size)
        return block


class Measured:
    """Looks like an array, but cannot be sliced."""

    shape, dtype = (M, N), np.dtype(np.float32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight_grad": Measured()}, "`weight_grad` is a Measured: it needs `shape`, `dtype` and slicing"),
        ({"weight_grad": [[1.0], [1.0, 2.0]]}, "`weight_grad` is a list of which no array can be made"),
        ({"weight_grad": {"fc1": [1.0]}}, "`weight_grad` is a dict: it needs"),
        ({"weight_grad": None}, "`weight_grad` is a NoneType: it needs"),
        ({"weight_grad": np.zeros(4, np.float32)}, "`weight_grad` has shape (4,): expected two dimensions"),
        ({"weight_grad": np.zeros((2, 3, 4))}, "`weight_grad` has shape (2, 3, 4): expected two dimensions"),
        ({"weight_grad": matrix(0, N)}, "`weight_grad` is empty: its shape is (0, 10)"),
        ({"weight_grad": matrix(M, 0)}, "`weight_grad` is empty: its shape is (6, 0)"),
        ({"weight_grad": matrix(dtype=np.int64)}, "`weight_grad` has dtype int64: expected float16"),
        (
            {"weight_grad": matrix(dtype=np.complex128)},
            "`weight_grad` has dtype complex128: hand over real numbers",
        ),
        ({"weight_grad": matrix(dtype=np.longdouble)}, f"has dtype {np.dtype(np.longdouble).name}: expected"),
        ({"weight_grad": np.full((M, N), "a")}, "`weight_grad` has dtype str32: expected float16"),
        ({"weight_grad": np.full((M, N), None)}, "`weight_grad` has dtype object: expected float16"),
        ({"weight": matrix(M, N + 1)}, "`weight` has shape (6, 11), but `weight_grad` has (6, 10)"),
        ({"weight": matrix(N, M)}, "`weight` has shape (10, 6), but `weight_grad` has (6, 10)"),
        ({"weight": matrix(dtype=np.int32)}, "`weight` has dtype int32: expected float16"),
        ({"bias_grad": 0.0}, "`bias_grad` is a float: expected an array of 6 numbers"),
        ({"bias_grad": np.zeros(M + 1)}, "`bias_grad` has shape (7,), but `weight_grad` has 6 rows"),
        ({"bias_grad": np.zeros((M, 1))}, "`bias_grad` has shape (6, 1), but `weight_grad` has 6 rows"),
        ({"bias_grad": np.zeros(M, np.int8)}, "`bias_grad` has dtype int8: expected float16"),
        ({"bias": np.zeros(1)}, "`bias` has shape (1,), but `weight_grad` has 6 rows: expected (6,)"),
        ({"bias": np.zeros(M, bool)}, "`bias` has dtype bool: expected float16"),
        (
            {"activation": Activation("prelu", {"slope": np.ones(M + 1)})},
            "have shape (7,), but the layer has 6 output",
        ),
        ({"precision": "float8"}, "`precision` is 'float8', but must be one of float64, float32, float16"),
    ],
)
def test_what_does_not_fit_is_named_with_what_was_expected(changes: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {
        "weight_grad": matrix(),
        "bias_grad": matrix()[:, 0],
        "weight": matrix(),
        "bias": matrix()[:, 0],
    }
    LayerGradients(**good)
    with pytest.raises(InputError, match=re.escape(message)):
        LayerGradients(**(good | changes))


def test_a_relu_may_be_spelled_in_capitals() -> None:
    assert LayerGradients(matrix(), activation="ReLU").activation == Activation("relu")


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_precision_is_that_of_the_numbers_unless_said_otherwise(backend: Backend, dtype: Any) -> None:
    assert LayerGradients(backend.array(matrix(dtype=np.float32))).precision_name == "float32"
    layer = LayerGradients(matrix(dtype=dtype))
    assert layer.precision_name == np.dtype(dtype).name
    assert layer.unit_roundoff == np.finfo(dtype).eps / 2
    assert LayerGradients(matrix(), precision="bfloat16").unit_roundoff == 2.0**-8


@pytest.mark.parametrize("columns", [1, 3, 7, N, 1000])
def test_blocks_cover_every_column_once(
    backend: Backend, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gradients, "BLOCK_BYTES", columns * 8 * M)
    values, weight = matrix(), -matrix()
    layer = LayerGradients(backend.array(values), weight=backend.array(weight))
    place = 0
    for span, (block, other) in layer.blocks("weight_grad", "weight", device=backend.device):
        assert (span.start, span.stop) == (place, min(place + columns, N))
        assert_array(block, values[:, span].astype(np.float64), backend)
        assert_array(other, weight[:, span].astype(np.float64), backend)
        place = span.stop
    assert place == N


def test_a_column_that_is_larger_than_a_block_is_still_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradients, "BLOCK_BYTES", 1)
    layer = LayerGradients(matrix())
    assert [span.stop for span, _ in layer.blocks("weight_grad", device=Backend.NUMPY.device)] == [
        *range(1, N + 1)
    ]


def test_anything_that_can_be_sliced_will_do(backend: Backend) -> None:
    vector = OnDisk(np.arange(M, dtype=np.float32))
    layer = LayerGradients(OnDisk(matrix()), bias_grad=vector, weight=OnDisk(matrix()), bias=vector)
    assert layer.shape == (M, N)
    assert_array(layer.vector("bias", device=backend.device), np.arange(M, dtype=np.float64), backend)
    ((_, (block,)),) = layer.blocks("weight_grad", device=backend.device)
    assert_array(block, matrix(dtype=np.float64), backend)


def test_a_missing_bias_is_zero(backend: Backend) -> None:
    layer = LayerGradients(backend.array(matrix()))
    assert_array(layer.vector("bias", device=backend.device), np.zeros(M), backend)


class TestDigits:
    """What numbers were rounded to shows in their digits, whatever type carries them."""

    @given(
        st.lists(st.floats(min_value=-(2.0**100), max_value=2.0**100, width=32), min_size=1, max_size=8),
        st.sampled_from(["float32", "float16"]),
    )
    def test_narrow_numbers_fit_and_others_do_not(self, numbers: list[float], precision: str) -> None:
        values = np.asarray(numbers)
        with np.errstate(over="ignore"):
            narrow = values.astype(precision).astype(np.float64)
        if precision == "float32":
            narrow = narrow[np.abs(narrow) > 1e-30]  # below, float32 has fewer digits
        else:
            narrow = narrow[np.isfinite(narrow) & (np.abs(narrow) > 1e-4)]
        if len(narrow):
            assert fits_precision(np, narrow, precision)
            digit = 2.0 ** (np.floor(np.log2(np.abs(narrow))) - (24 if precision == "float32" else 11))
            assert not fits_precision(np, narrow + np.sign(narrow) * digit, precision)

    @given(
        st.lists(st.floats(width=16, allow_nan=False, allow_infinity=False), min_size=1, max_size=8),
        st.integers(-40, 40),
    )
    def test_their_spacing_is_the_largest_power_of_two_that_divides_all(
        self, numbers: list[float], power: int
    ) -> None:
        values = np.asarray(numbers) * 2.0**power
        spacing = spacing_of(np, values, np.inf)
        if not np.any(values):
            assert spacing == np.inf
            return
        assert np.log2(spacing).is_integer()
        assert spacing >= 2.0 ** (power - 24)  # the smallest float16
        assert np.all(values % spacing == 0)
        assert np.any(values % (2 * spacing) != 0) or spacing == 2.0 ** np.floor(
            np.log2(np.min(np.abs(values[values != 0])))
        )

    @given(st.lists(st.floats(min_value=-1.0, max_value=1.0, allow_subnormal=True), min_size=1, max_size=4))
    def test_any_numbers_have_a_spacing(self, numbers: list[float]) -> None:
        assert spacing_of(np, np.asarray(numbers), 2.0**-1000) <= 2.0**-1000

    def test_numbers_beyond_all_splitting_fit_nothing(self) -> None:
        assert not fits_precision(np, np.asarray([1e300]), "float32")

    @pytest.mark.parametrize("carrier", [np.float32, np.float64])
    @pytest.mark.parametrize("precision", ["float16", "float32"])
    def test_the_carrier_changes_nothing(self, precision: str, carrier: type) -> None:
        data = digit_layer(5, width=80, seed=30)
        parts = {name: getattr(data, name).astype(precision) for name in ("weight_grad", "bias_grad")}
        plain = survey(LayerGradients(**parts))
        carried = survey(LayerGradients(**{name: part.astype(carrier) for name, part in parts.items()}))
        assert plain.batch_size == carried.batch_size == 5
        assert plain.precision == carried.precision == precision
        np.testing.assert_allclose(plain.singular_values, carried.singular_values)
