"""Stacks of positive definite systems: factors, solutions, forms, and orthonormal columns."""

from __future__ import annotations

import numpy as np
import pytest

from spear_np.positive import (
    INVERTED_WHOLE,
    by_gram_schmidt,
    cholesky_or_nan,
    inverse_of_triangular,
    orthonormalised,
    positive,
    positive_definite,
)
from tests.backends import Backend, assert_lives_on
from tests.networks import Floats

SIZES = (1, 2, INVERTED_WHOLE, INVERTED_WHOLE + 1, 2 * INVERTED_WHOLE + 3, 150)


def matrices(size: int, count: int = 3, seed: int = 0) -> Floats:
    rng = np.random.default_rng([seed, size])
    rows = rng.standard_normal((count, size + 5, size))
    return np.matrix_transpose(rows) @ rows


@pytest.mark.parametrize("size", SIZES)
def test_it_solves_as_the_library_does(backend: Backend, size: int) -> None:
    H = matrices(size)
    right = np.random.default_rng(1).standard_normal((3, size, 4))
    system = positive(backend.xp, backend.array(H))
    solution = system.solve(backend.array(right))
    assert_lives_on(solution, backend)
    np.testing.assert_allclose(backend.host(solution), np.linalg.solve(H, right), rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(backend.host(system.inverse()), np.linalg.inv(H), rtol=1e-7, atol=1e-9)
    trace = np.trace(np.linalg.inv(H), axis1=1, axis2=2)
    np.testing.assert_allclose(backend.host(system.trace_of_inverse()), trace, rtol=1e-9)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shared", [False, True])
def test_forms_are_those_of_the_inverse(backend: Backend, size: int, *, shared: bool) -> None:
    H = matrices(size)
    vectors = np.random.default_rng(2).standard_normal((1 if shared else 3, 7, size))
    forms = positive(backend.xp, backend.array(H)).forms(backend.array(vectors))
    expected = np.sum((vectors @ np.linalg.inv(H)) * vectors, axis=2)
    np.testing.assert_allclose(backend.host(forms), expected, rtol=1e-8)


@pytest.mark.parametrize("size", SIZES)
def test_the_inverse_of_a_triangular_matrix_is_triangular(backend: Backend, size: int) -> None:
    lower = np.linalg.cholesky(matrices(size))
    inverse = backend.host(inverse_of_triangular(backend.xp, backend.array(lower)))
    identity = np.broadcast_to(np.eye(size), lower.shape)
    np.testing.assert_allclose(inverse @ lower, identity, atol=1e-9)
    np.testing.assert_allclose(np.triu(inverse, 1), 0, atol=1e-12)


def test_one_that_is_not_positive_definite_does_not_spoil_the_others(backend: Backend) -> None:
    H = matrices(4, count=4)
    H[1] = -H[1]
    H[3, 0, 0] = np.nan
    on_device = backend.array(H)
    assert list(backend.host(positive_definite(backend.xp, on_device))) == [True, False, True, False]
    factors = backend.host(cholesky_or_nan(backend.xp, on_device))
    assert np.all(np.isnan(factors[1]))
    np.testing.assert_allclose(factors[[0, 2]], np.linalg.cholesky(H[[0, 2]]), rtol=1e-12)
    solution = backend.host(positive(backend.xp, on_device).solve(backend.array(np.ones((4, 4, 1)))))
    assert list(np.all(np.isfinite(solution[:, :, 0]), axis=1)) == [True, False, True, False]


@pytest.mark.parametrize("make", [orthonormalised, by_gram_schmidt])
@pytest.mark.parametrize("tilt", [1.0, 1e-6, 1e-13])
def test_nearly_dependent_columns_become_orthonormal(backend: Backend, make: object, tilt: float) -> None:
    rng = np.random.default_rng(3)
    columns = rng.standard_normal((5, 40, 1)) + tilt * rng.standard_normal((5, 40, 3))
    assert callable(make)
    made = backend.host(make(backend.xp, backend.array(columns)))
    identity = np.broadcast_to(np.eye(3), (5, 3, 3))
    np.testing.assert_allclose(np.matrix_transpose(made) @ made, identity, atol=1e-13)
    # The first of them spans what the first column does, the first two what the first two do.
    rest = columns - made @ (np.matrix_transpose(made) @ columns)
    assert np.max(np.abs(rest)) < 1e-13


def test_a_column_of_zeros_becomes_another_one(backend: Backend) -> None:
    columns = np.random.default_rng(4).standard_normal((2, 9, 3))
    columns[:, :, 1] = 0
    made = backend.host(by_gram_schmidt(backend.xp, backend.array(columns)))
    np.testing.assert_allclose(np.matrix_transpose(made) @ made, np.eye(3)[None].repeat(2, 0), atol=1e-13)
