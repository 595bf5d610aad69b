"""Tensors of PyTorch, arrays of JAX and the like: the solver and the writer of dumps take them as they are handed over."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_array

import spear_np
from spear_io import FileError, LayerArrays, open_dump, write_dump
from tests.backends import values_of
from tests.convert_files import torch_step

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

PARTS = ("weight_grad", "bias_grad", "weight", "bias")


def first_layer() -> dict[str, Any]:
    return {part: torch_step().named[f"fc1.{part}"] for part in PARTS}


def parameters(array: Any) -> Any:
    return torch.nn.Parameter(torch.tensor(array))


def jax_arrays(array: Any) -> Any:
    return pytest.importorskip("jax.numpy", reason="JAX is not installed").asarray(array)


def negated_twice(array: Any) -> Any:
    """A view that PyTorch negates when it is read."""
    return torch.complex(torch.zeros(array.shape), -torch.tensor(array)).conj().imag


def data_frame(array: Any) -> Any:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    return pandas.DataFrame(array) if array.ndim == 2 else pandas.Series(array)


def read_only(array: Any) -> Any:
    array = array.copy()
    array.flags.writeable = False
    return array


def backwards(array: Any) -> Any:
    """The same numbers, each row of which lies backwards in memory."""
    return np.ascontiguousarray(array[..., ::-1])[..., ::-1]


def big_endian(array: Any) -> Any:
    return array.astype(array.dtype.newbyteorder(">"))


KINDS: tuple[Callable[[Any], Any], ...] = (
    torch.tensor,
    parameters,
    negated_twice,
    jax_arrays,
    np.ma.masked_array,
    np.ndarray.tolist,
    data_frame,
    read_only,
    backwards,
    big_endian,
)


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
    np.testing.assert_allclose(found.inputs, wanted.inputs, rtol=0, atol=1e-12)  # products of other orders
    assert found.gradients.precision_name == wanted.gradients.precision_name


@pytest.mark.filterwarnings("ignore:the matrix subclass")
def test_a_matrix_of_numpy_is_an_array() -> None:
    arrays = first_layer()
    given: dict[str, Any] = {name: np.asmatrix(a) if a.ndim == 2 else a for name, a in arrays.items()}
    assert np.array_equal(spear_np.invert(**given).inputs, spear_np.invert(**arrays).inputs)


def test_a_tensor_of_bfloat16_says_what_it_was_rounded_to() -> None:
    gradient = torch.tensor(first_layer()["weight_grad"]).bfloat16()
    layer = spear_np.LayerGradients(gradient)
    assert layer.precision_name == "bfloat16"
    assert np.array_equal(values_of(layer.weight_grad), gradient.float().numpy())
    assert spear_np.LayerGradients(gradient, precision="float32").precision_name == "float32"


@pytest.mark.parametrize(
    ("array", "fragment"),
    [
        (torch.eye(4).to_sparse(), "`weight_grad` is a sparse or quantised tensor"),
        (torch.eye(4, device="meta"), "`weight_grad` is a tensor without numbers"),
        (np.ma.masked_array(np.eye(4), np.eye(4) > 0), "`weight_grad` has masked entries"),
        (csr_array(np.eye(4)), "`weight_grad` is a sparse array: hand over a dense one"),
        (np.eye(4) * 1j, "`weight_grad` has dtype complex128: hand over real numbers"),
        ([[1.0], [1.0, 2.0]], "`weight_grad` is a list of which no array can be made"),
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
        (torch.eye(4, device="meta"), "is a tensor without numbers"),
        (np.ma.masked_array(np.eye(4), np.eye(4) > 0), "has masked entries"),
        (csr_array(np.eye(4)), "is a sparse array"),
        (torch.eye(4) * 1j, "has dtype complex64"),
        (None, "dataset 'weight_grad': is missing"),
    ],
)
def test_what_a_dump_cannot_hold_is_named(tmp_path: Path, array: Any, fragment: str) -> None:
    with pytest.raises(FileError) as caught:
        write_dump(tmp_path / "d.h5", {"fc1": LayerArrays(array)})
    assert fragment in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("claims", "fragment"),
    [
        (csr_array(np.eye(64)), "`inputs` is a sparse array"),
        (np.eye(64) * 1j, "`inputs` has dtype complex128"),
        ("inputs.npy", "`inputs` is a str that holds no numbers"),
        ({"a": 1.0}, "`inputs` is a dict that holds no numbers"),
        (None, "`inputs` has shape ()"),
    ],
)
def test_what_cannot_be_inputs_is_named(claims: Any, fragment: str) -> None:
    with pytest.raises(spear_np.InputError, match=re.escape(fragment)):
        spear_np.check(spear_np.LayerGradients(**first_layer()), claims)


@pytest.mark.parametrize("make", [parameters, jax_arrays, np.ndarray.tolist, data_frame], ids=kind_of)
def test_slopes_may_be_arrays_of_a_framework(make: Callable[[Any], Any]) -> None:
    slopes = np.linspace(0, 0.5, 5, dtype=np.float32)
    said = spear_np.Activation("prelu", {"slope": make(slopes)})
    assert said == spear_np.Activation("prelu", {"slope": slopes})


@pytest.mark.parametrize(
    ("slope", "fragment"),
    [
        (torch.ones(3).to_sparse(), "`slope` is a sparse or quantised tensor"),
        (np.ones(3) * 1j, "`slope` has dtype complex128"),
        ({"slope": np.ones(3)}, "'slope' of 'prelu' is a dict, but must be a finite number"),
    ],
)
def test_what_cannot_be_slopes_is_named(slope: Any, fragment: str) -> None:
    with pytest.raises(spear_np.InputError, match=fragment):
        spear_np.Activation("prelu", {"slope": slope})


def test_labels_may_be_of_bfloat16(tmp_path: Path) -> None:
    write_dump(tmp_path / "d.h5", {"fc1": LayerArrays(**first_layer())}, labels=torch.arange(4).bfloat16())
    with open_dump(tmp_path / "d.h5") as dump:
        labels = dump.records[0].labels
        assert labels is not None
        assert labels[:].tolist() == [0, 1, 2, 3]
