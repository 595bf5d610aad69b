from __future__ import annotations

import importlib.util
import math
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import ThreadpoolController

from spear_np import DeviceError, InputError
from spear_np.backend.algebra import (
    CUPY_BATCHED,
    between,
    eigenvectors,
    erf,
    gather,
    inverse_or_pseudoinverse,
    inverse_or_zero,
    least_squares,
    replace_rows,
    rows_of,
    scatter_columns,
    smallest,
    solve_by_inverse,
    solve_or_nan,
    triangular_factor,
)
from spear_np.backend.devices import CPU, device_for
from spear_np.backend.host import to_host
from spear_np.backend.work import SMALL_MATRIX, blocks, mapped, suitable_threads
from tests.backends import Backend, assert_array, assert_lives_on


class TestTheAssertionItself:
    """An assertion that cannot fail proves nothing."""

    VALUES = np.asarray([[1.0, 2.0], [3.0, 4.0]])

    def test_it_accepts_what_is_right(self, backend: Backend) -> None:
        assert_array(backend.array(self.VALUES), self.VALUES, backend)
        assert_array(backend.array(self.VALUES), self.VALUES + 1e-9, backend, atol=1e-8)

    @pytest.mark.parametrize(
        ("expected", "message"),
        [
            (VALUES.astype(np.float32), "dtype float64, not float32"),
            (VALUES[:1], r"shape \(2, 2\), not \(1, 2\)"),
            (VALUES + 1e-9, "Mismatched elements"),
            (VALUES * np.nan, "nan location mismatch|x and y nan"),
        ],
    )
    def test_it_refuses_another_dtype_shape_or_value(
        self, backend: Backend, expected: Any, message: str
    ) -> None:
        with pytest.raises(AssertionError, match=message):
            assert_array(backend.array(self.VALUES), expected, backend)

    def test_it_refuses_another_library(self) -> None:
        with pytest.raises(
            AssertionError, match=r"array of array_api_compat\.numpy, not of array_api_strict"
        ):
            assert_array(self.VALUES, self.VALUES, Backend.STRICT)
        with pytest.raises(
            AssertionError, match=r"array of array_api_strict, not of array_api_compat\.numpy"
        ):
            assert_array(Backend.STRICT.array(self.VALUES), self.VALUES, Backend.NUMPY)

    def test_it_refuses_another_device(self) -> None:
        on_default_device = Backend.STRICT.xp.asarray(self.VALUES)
        with pytest.raises(AssertionError, match=r"not on .*device1"):
            assert_array(on_default_device, self.VALUES, Backend.STRICT)

    def test_it_refuses_what_is_no_array(self, backend: Backend) -> None:
        with pytest.raises(AssertionError, match="list is no array"):
            assert_array([[1.0, 2.0], [3.0, 4.0]], self.VALUES, backend)


def test_the_backends_are_as_strict_as_they_say() -> None:
    with pytest.raises(ValueError, match="read-only"):
        Backend.READ_ONLY.array(np.zeros(2))[0] = 1
    strict = Backend.STRICT.array(np.zeros(2))
    with pytest.raises((RuntimeError, TypeError, ValueError), match="device"):
        np.asarray(strict)
    with pytest.raises((RuntimeError, TypeError, ValueError), match="device"):
        strict + Backend.STRICT.xp.zeros(2)


class TestDevice:
    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
    def test_numbers_arrive_as_the_precision_asked_for(self, backend: Backend, dtype: Any) -> None:
        values = np.linspace(-1, 1, 6, dtype=dtype).reshape(2, 3)
        assert_array(backend.device.float64(values), values.astype(np.float64), backend)
        assert_array(backend.device.float32(values), values.astype(np.float32), backend)

    def test_arrays_already_there_keep_their_values(self, backend: Backend) -> None:
        values = np.linspace(-1, 1, 6, dtype=np.float32)
        assert_array(backend.device.float64(backend.array(values)), values.astype(np.float64), backend)

    def test_indices_truth_values_and_fresh_arrays(self, backend: Backend) -> None:
        device = backend.device
        assert_array(device.integers([3, 1]), np.asarray([3, 1], dtype=np.int64), backend)
        assert_array(device.integers([]), np.empty(0, dtype=np.int64), backend)
        assert_array(device.booleans([True, False]), np.asarray([True, False]), backend)
        assert_array(device.zeros((2, 3)), np.zeros((2, 3)), backend)
        assert_array(device.eye(3), np.eye(3), backend)

    def test_random_numbers_are_the_same_everywhere(self, backend: Backend) -> None:
        drawn = backend.device.normal(np.random.default_rng(7), (3, 2))
        assert_array(drawn, np.random.default_rng(7).standard_normal((3, 2)), backend)

    def test_arrays_of_another_library_are_moved(self, backend: Backend) -> None:
        values = np.linspace(-1, 1, 6, dtype=np.float32)
        assert_array(CPU.float64(backend.array(values)), values.astype(np.float64), Backend.NUMPY)

    def test_a_device_can_be_activated(self, backend: Backend) -> None:
        with backend.device.activate():
            assert_lives_on(backend.device.zeros(1), backend)


class TestDeviceFor:
    def test_without_a_name_the_arrays_decide(self, backend: Backend) -> None:
        device = device_for(None, backend.array(np.zeros(2)))
        assert_lives_on(device.zeros(1), backend)
        assert device.name == ("gpu:0" if backend is Backend.CUPY else "cpu")

    def test_host_data_stays_on_the_host(self) -> None:
        assert device_for(None, np.zeros(2), [1.0]) is CPU
        assert device_for(None) is CPU

    def test_the_cpu_can_be_asked_for(self, backend: Backend) -> None:
        assert device_for("cpu", backend.array(np.zeros(2))) is CPU

    @pytest.mark.parametrize("name", ["", "cuda", "gpu:", "gpu:x", "gpu:-1", "GPU", "cpu:0"])
    def test_other_names_are_refused(self, name: str) -> None:
        with pytest.raises(InputError, match=r"unknown device .*: expected cpu, gpu or gpu:N"):
            device_for(name)

    @pytest.mark.skipif(importlib.util.find_spec("cupy") is not None, reason="CuPy is installed")
    def test_without_cupy_the_message_says_how_to_get_it(self) -> None:
        with pytest.raises(DeviceError, match=r"pip install 'spear-np\[cuda13\]'"):
            device_for("gpu")

    @pytest.mark.gpu
    def test_a_gpu_that_is_not_there_is_named(self) -> None:
        if Backend.CUPY.missing is not None:
            pytest.skip(Backend.CUPY.missing)
        with pytest.raises(DeviceError, match=r"gpu:99 was asked for, but CUDA shows \d+ device"):
            device_for("gpu:99")


def test_the_way_to_the_host_keeps_everything(backend: Backend) -> None:
    for values in (np.asarray([[1.5, np.nan, -np.inf]]), np.asarray([3, 4]), np.asarray([True, False])):
        host = to_host(backend.array(values))
        assert type(host) is np.ndarray
        assert host.dtype == values.dtype
        np.testing.assert_array_equal(host, values)


class TestLinearAlgebra:
    @pytest.mark.parametrize("shape", [(9, 4), (4, 4), (3, 4)])
    def test_a_triangular_factor_has_the_same_gram_matrix(
        self, backend: Backend, shape: tuple[int, int]
    ) -> None:
        matrix = np.random.default_rng(3).standard_normal(shape)
        factor = backend.host(triangular_factor(backend.xp, backend.array(matrix)))
        assert factor.shape == (min(shape), 4)
        np.testing.assert_array_equal(factor, np.triu(factor))
        np.testing.assert_allclose(factor.T @ factor, matrix.T @ matrix, atol=1e-13)

    def test_systems_are_solved_where_they_can_be(self, backend: Backend) -> None:
        rng = np.random.default_rng(4)
        matrices, right = rng.standard_normal((4, 3, 3)), rng.standard_normal((4, 3, 2))
        wanted = np.linalg.solve(matrices, right)
        solved = solve_or_nan(backend.xp, backend.array(matrices), backend.array(right))
        assert_array(solved, wanted, backend, rtol=1e-9)
        singular = matrices.copy()
        singular[1, 2] = 0  # exactly singular, in whatever order it is eliminated
        solved = backend.host(solve_or_nan(backend.xp, backend.array(singular), backend.array(right)))
        assert not np.isfinite(solved[1]).any()
        np.testing.assert_allclose(solved[[0, 2, 3]], wanted[[0, 2, 3]], rtol=1e-9)

    def test_inverses_solve_as_well_as_eliminations_do(self, backend: Backend) -> None:
        rng = np.random.default_rng(5)
        matrices = rng.standard_normal((5, 40, 40)) * np.logspace(0, -6, 40)
        x = rng.standard_normal((5, 40, 3))
        right = matrices @ x
        solved = backend.host(solve_by_inverse(backend.xp, backend.array(matrices), backend.array(right)))
        errors = [
            np.linalg.norm(matrices @ one - right) for one in (solved, np.linalg.solve(matrices, right))
        ]
        assert errors[0] < 3 * errors[1]

    @pytest.mark.parametrize("shape", [(9, 4), (4, 4), (5, 1)])
    def test_least_squares_are_those_of_the_library(self, backend: Backend, shape: tuple[int, int]) -> None:
        rng = np.random.default_rng(6)
        columns, right = rng.standard_normal(shape), rng.standard_normal((shape[0], 3))
        wanted = np.linalg.lstsq(columns, right, rcond=None)[0]
        found = least_squares(backend.xp, backend.array(columns), backend.array(right))
        assert_array(found, wanted, backend, rtol=1e-10, atol=1e-12)

    @pytest.mark.parametrize("count", [1, 3])
    def test_eigenvectors_of_a_stack_are_those_of_each(self, backend: Backend, count: int) -> None:
        root = np.random.default_rng(7).standard_normal((count, 6, 6))
        gram = root @ np.swapaxes(root, 1, 2)
        values, vectors = map(backend.host, eigenvectors(backend.xp, backend.array(gram)))
        np.testing.assert_allclose(values, np.linalg.eigvalsh(gram), rtol=1e-10)
        np.testing.assert_allclose(gram @ vectors, vectors * values[:, None, :], atol=1e-10)

    @pytest.mark.gpu
    @pytest.mark.parametrize("size", [CUPY_BATCHED, CUPY_BATCHED + 1, CUPY_BATCHED + 44])
    def test_large_systems_are_solved_on_a_card(self, size: int) -> None:
        backend = Backend.CUPY
        if backend.missing:
            pytest.skip(backend.missing)
        rng = np.random.default_rng(size)
        matrices, right = rng.standard_normal((3, size, size)), rng.standard_normal((3, size, 2))
        matrices[1, :, 5] = matrices[1, :, 6]
        solved = backend.host(solve_or_nan(backend.xp, backend.array(matrices), backend.array(right)))
        wanted = np.linalg.solve(matrices[[0, 2]], right[[0, 2]])
        np.testing.assert_allclose(solved[[0, 2]], wanted, rtol=1e-6, atol=1e-8)


class TestPicking:
    @given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 2**32 - 1))
    def test_the_smallest_are_the_smallest(self, size: int, count: int, seed: int) -> None:
        count = min(count, size)
        values = np.random.default_rng(seed).integers(0, 8, (3, size)).astype(np.float64)  # with ties
        for backend in (Backend.NUMPY, Backend.STRICT):
            picked = backend.host(smallest(backend.xp, backend.array(values), count))
            assert picked.shape == (3, count)
            for row, indices in zip(values, picked, strict=True):
                assert len(set(indices)) == count
                np.testing.assert_array_equal(np.sort(row[indices]), np.sort(row)[:count])

    def test_rows_are_gathered(self, backend: Backend) -> None:
        matrix = np.random.default_rng(5).standard_normal((6, 4))
        indices = np.asarray([[5, 0, 0], [2, 3, 1]])
        gathered = gather(backend.xp, backend.array(matrix), backend.array(indices))
        assert_array(gathered, matrix[indices], backend)

    @given(st.data())
    def test_columns_are_scattered(self, data: st.DataObject) -> None:
        size = data.draw(st.integers(1, 12))
        indices = sorted(data.draw(st.sets(st.integers(0, size - 1), min_size=1)))
        values = np.random.default_rng(size).standard_normal((3, len(indices)))
        wanted = np.zeros((3, size))
        wanted[:, indices] = values
        for backend in (Backend.NUMPY, Backend.STRICT):
            spread = scatter_columns(backend.array(values), backend.device.integers(indices), size)
            assert_array(spread, wanted, backend)


class TestInverse:
    def test_an_inverse_that_overflows_gives_way_to_the_pseudoinverse(self, backend: Backend) -> None:
        matrix = backend.array(np.diag([2.0, 1e-320]))
        with np.errstate(all="ignore"):
            inverse = backend.host(inverse_or_pseudoinverse(backend.xp, matrix))
        np.testing.assert_allclose(inverse, np.diag([0.5, 0.0]))

    def test_what_is_no_number_has_none(self, backend: Backend) -> None:
        matrix = backend.array(np.asarray([[np.nan, 0.0], [0.0, 1.0]]))
        assert np.all(np.isnan(backend.host(inverse_or_pseudoinverse(backend.xp, matrix))))

    def test_normal_equations_that_leave_a_direction_open_have_none(self, backend: Backend) -> None:
        rng = np.random.default_rng(0)
        full = rng.standard_normal((30, 6))
        singular = full @ np.diag([1, 1, 1, 1, 1, 0.0]) @ rng.standard_normal((6, 6))
        repeated = np.concatenate([full[:, :5], full[:, :1]], axis=1)
        grams = np.stack([part.T @ part for part in (full, singular, repeated, 1e-150 * full)])
        inverses = backend.host(inverse_or_zero(backend.xp, backend.array(grams)))
        assert inverses[0] @ grams[0] == pytest.approx(np.eye(6), abs=1e-10)
        assert np.all(inverses[1:3] == 0)
        assert inverses[3] @ grams[3] == pytest.approx(np.eye(6), abs=1e-10)

    def test_normal_equations_of_no_numbers_have_none(self, backend: Backend) -> None:
        gram = backend.array(np.full((1, 2, 2), np.nan))
        with np.errstate(all="ignore"):
            assert np.all(backend.host(inverse_or_zero(backend.xp, gram)) == 0)


class TestReplacedRows:
    @given(st.data())
    def test_rows_are_put_in_their_places(self, data: st.DataObject) -> None:
        size = data.draw(st.integers(1, 12))
        places = sorted(data.draw(st.sets(st.integers(0, size - 1), min_size=1)))
        values = np.random.default_rng(size).standard_normal((size, 3))
        new = 10 + values[: len(places)]
        wanted = values.copy()
        wanted[places] = new
        for backend in (Backend.READ_ONLY, Backend.STRICT):
            rows = backend.device.integers(places)
            on_device = backend.array(values)
            assert_array(replace_rows(on_device, rows, backend.array(new)), wanted, backend)
            assert_array(rows_of(on_device, rows), values[places], backend)
            deep = replace_rows(on_device[:, :, None], rows, backend.array(new)[:, :, None])
            assert_array(deep, wanted[:, :, None], backend)


class TestErrorFunction:
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_it_is_that_of_the_standard_library(self, backend: Backend, dtype: Any) -> None:
        values = np.linspace(-7, 7, 60).reshape(3, 20).astype(dtype)
        wanted = np.vectorize(math.erf)(values.astype(np.float64)).astype(dtype)
        assert_array(erf(backend.xp, backend.array(values)), wanted, backend, rtol=1e-6)


class TestBlocksOnAllCores:
    """`mapped`, with blocks that know how much memory they take."""

    PARTS = (slice(0, 5), slice(5, 6), slice(6, 13))

    def test_it_keeps_the_order(self) -> None:
        assert mapped(CPU, lambda part: (part.start, part.stop), self.PARTS) == [(0, 5), (5, 6), (6, 13)]
        assert mapped(CPU, lambda part: part, []) == []

    def test_a_block_that_is_too_large_is_halved(self) -> None:
        given_back = []

        def most_three(part: slice) -> range:
            if part.stop - part.start > 3:
                given_back.append(part)
                raise MemoryError
            return range(part.start, part.stop)

        found = mapped(CPU, most_three, self.PARTS)
        assert [index for part in found for index in part] == list(range(13))
        assert max(len(part) for part in found) == 3
        assert slice(6, 13) in given_back

    def test_a_single_item_that_is_too_large_is_an_error(self) -> None:
        def never(part: slice) -> None:
            raise MemoryError

        with pytest.raises(MemoryError):
            mapped(CPU, never, self.PARTS)

    def test_other_errors_are_not_tried_again(self) -> None:
        tried = []

        def broken(part: slice) -> None:
            tried.append(part)
            msg = "broken"
            raise InputError(msg)

        with pytest.raises(InputError):
            mapped(CPU, broken, self.PARTS[:1])
        assert tried == [self.PARTS[0]]

    @pytest.mark.parametrize("entries", [SMALL_MATRIX, SMALL_MATRIX + 1])
    def test_each_thread_has_a_blas_of_one(self, entries: int) -> None:
        pools = ThreadpoolController().select(user_api="blas")
        together = threading.Barrier(2, timeout=20)

        def met(_: slice) -> tuple[int, int]:
            together.wait()  # breaks unless two parts are worked on at once
            return threading.get_ident(), max(pool["num_threads"] for pool in pools.info())

        with pools.limit(limits=2):
            with suitable_threads(CPU, entries):
                found = mapped(CPU, met, [slice(0, 1), slice(1, 2)])
            assert {pool["num_threads"] for pool in pools.info()} == {2}
        assert len({thread for thread, _ in found}) == 2
        assert {threads for _, threads in found} == {1}

    def test_a_caller_who_allows_one_thread_gets_one(self) -> None:
        with ThreadpoolController().limit(limits=1, user_api="blas"), suitable_threads(CPU, 1):
            found = mapped(CPU, lambda _: threading.get_ident(), self.PARTS)
        assert set(found) == {threading.get_ident()}

    def test_blocks_cover_all_items_once(self) -> None:
        parts = blocks(CPU, 1000, 3_000)
        assert [index for part in parts for index in range(part.start, part.stop)] == list(range(1000))
        assert len(parts) > 1
        assert blocks(CPU, 0, 3_000) == []
        assert len(blocks(CPU, 3, 10**12)) == 3


def test_between_is_clip(backend: Backend) -> None:
    values = np.asarray([[-3.0, 0.5, np.nan], [1.0, 9.0, np.inf]])
    assert_array(between(backend.xp, backend.array(values), -1.0, 2.0), np.clip(values, -1.0, 2.0), backend)
