"""Tensors of PyTorch, arrays of JAX and the like: the solver and the writer of dumps take them as they are handed over."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import spear_np
from spear_io import FileError, LayerArrays, open_dump, write_dump
from tests.convert_files import torch_step

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

PARTS = ("weight_grad", "bias_grad", "weight", "bias")


def first_layer() -> dict[str, Any]:
    return {part: torch_step().named[f"fc1.{part}"] for part in PARTS}


def parameters(array: Any) -> Any:
    return torch.nn.Parameter(torch.tensor(array))


def jax_arrays(array: Any) -> Any:
    return pytest.importorskip("jax.numpy", reason="JAX is not installed").asarray(array)


KINDS: tuple[Callable[[Any], Any], ...] = (torch.tensor, parameters, jax_arrays, np.ma.masked_array)


def kind_of(make: Callable[[Any], Any]) -> str:
    return make.__name__


@pytest.mark.parametrize("make", KINDS, ids=kind_of)
def test_the_answer_is_that_of_numpy_arrays(make: Callable[[Any], Any]) -> None:
    arrays = first_layer()
    wanted = spear_np.invert(**arrays)
    assert wanted.status == "exact"
    given = {name: make(array) for name, array in arrays.items()}
    found = spear_np.invert(**given)
    assert found.status == "exact"
    assert type(found.inputs) is np.ndarray
    assert np.array_equal(found.inputs, wanted.inputs)


@pytest.mark.filterwarnings("ignore:the matrix subclass")
def test_a_matrix_of_numpy_is_an_array() -> None:
    arrays = first_layer()
    given: dict[str, Any] = {name: np.asmatrix(a) if a.ndim == 2 else a for name, a in arrays.items()}
    assert np.array_equal(spear_np.invert(**given).inputs, spear_np.invert(**arrays).inputs)


def test_a_tensor_of_bfloat16_says_what_it_was_rounded_to() -> None:
    gradient = torch.tensor(first_layer()["weight_grad"]).bfloat16()
    layer = spear_np.LayerGradients(gradient)
    assert layer.precision_name == "bfloat16"
    assert np.array_equal(layer.weight_grad, gradient.float().numpy())
    assert spear_np.LayerGradients(gradient, precision="float32").precision_name == "float32"


@pytest.mark.parametrize(
    ("array", "fragment"),
    [
        (torch.eye(4).to_sparse(), "`weight_grad` is a sparse or quantised tensor"),
        (np.ma.masked_array(np.eye(4), np.eye(4) > 0), "`weight_grad` has masked entries"),
        (torch.ones((4, 4), dtype=torch.int32), "`weight_grad` has dtype int32"),
        (torch.ones((4, 4)).to(torch.float8_e5m2), "`weight_grad` has dtype float8_e5m2"),
    ],
)
def test_what_the_solver_cannot_compute_with_is_named(array: Any, fragment: str) -> None:
    with pytest.raises(spear_np.InputError, match=fragment):
        spear_np.LayerGradients(array)


def test_a_traced_array_is_named() -> None:
    jax = pytest.importorskip("jax", reason="JAX is not installed")

    def inverted(gradient: Any) -> Any:
        return spear_np.invert(gradient).inputs

    with pytest.raises(spear_np.InputError, match="`weight_grad` is a traced JAX array"):
        jax.jit(inverted)(np.eye(4))


@pytest.mark.parametrize("make", [torch.tensor, parameters, jax_arrays, np.ndarray.tolist], ids=kind_of)
def test_a_dump_holds_the_same_numbers(tmp_path: Path, make: Callable[[Any], Any]) -> None:
    arrays = first_layer()
    layer = LayerArrays(**{name: make(array) for name, array in arrays.items()})
    write_dump(tmp_path / "d.h5", {"fc1": layer}, labels=torch.arange(4))
    with open_dump(tmp_path / "d.h5") as dump:
        (record,) = dump.records
        assert record.labels is not None
        assert record.labels[:].tolist() == [0, 1, 2, 3]
        for name, array in arrays.items():
            stored = record.layers[0].arrays[name]
            assert stored.precision == ("float64" if make is np.ndarray.tolist else "float32")
            np.testing.assert_array_equal(stored[:], array)


def test_a_dump_keeps_bfloat16_bit_by_bit(tmp_path: Path) -> None:
    gradient = torch.tensor(first_layer()["weight_grad"]).bfloat16()
    write_dump(tmp_path / "d.h5", {"fc1": LayerArrays(gradient.requires_grad_())})
    with open_dump(tmp_path / "d.h5") as dump:
        stored = dump.records[0].layers[0].arrays["weight_grad"]
        assert stored.precision == "bfloat16"
        np.testing.assert_array_equal(stored[:], gradient.detach().float().numpy())


@pytest.mark.parametrize(
    ("array", "fragment"),
    [
        (torch.eye(4).to_sparse(), "is a sparse or quantised tensor"),
        (torch.ones((4, 4)).to(torch.float8_e5m2), "has dtype float8_e5m2"),
        (torch.ones((4, 4), dtype=torch.int32), "has dtype int32"),
        ({"fc1": np.eye(4)}, "layer 'fc1', dataset 'weight_grad': has"),
    ],
)
def test_what_a_dump_cannot_hold_is_named(tmp_path: Path, array: Any, fragment: str) -> None:
    with pytest.raises(FileError) as caught:
        write_dump(tmp_path / "d.h5", {"fc1": LayerArrays(array)})
    assert fragment in str(caught.value)
    assert list(tmp_path.iterdir()) == []
