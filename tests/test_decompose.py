"""Singular vectors that are refined once: no worse than those of the library for any spacing of the values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import array_api_compat
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spear_np.backend.host import to_host
from spear_np.factors.decompose import ABSORBED, sharp_row_space, sharp_svd
from tests.backends import Backend
from tests.networks import Floats

EPS = float(np.finfo(np.float64).eps)


def basis(rng: np.random.Generator, rows: int, columns: int) -> Any:
    return np.linalg.qr(rng.normal(size=(rows, columns)))[0]


@pytest.mark.parametrize(
    "values",
    [
        np.linspace(10, 1, 20),
        [3.0],
        [2.0] * 6,
        [1 + 1e-8, 1 + 1e-13, 1 + 1e-15, 1],
        [1 + 1e-9, 1 + 1e-10, 1 + 1e-11, 1],
        1 + 10.0 ** -np.arange(1, 15),
        [1, 1e-4, 1e-8, 1e-12, 1e-16],
        [3.0, 2.0, 1.0, 0.0, 0.0],
    ],
    ids=["spread", "one", "equal", "clustered", "close", "every spacing", "graded", "zero"],
)
def test_factors_are_orthonormal_and_give_the_matrix(backend: Backend, values: Any) -> None:
    rng, wanted = np.random.default_rng(1), np.asarray(values, dtype=np.float64)
    b = len(wanted)
    matrix = (basis(rng, 60, b) * wanted) @ basis(rng, b, b).T
    U, S, Vt = (to_host(one) for one in sharp_svd(backend.xp, backend.array(matrix)))
    most = 20 * EPS
    np.testing.assert_allclose(U.T @ U, np.eye(b), atol=most + ABSORBED)
    np.testing.assert_allclose(Vt @ Vt.T, np.eye(b), atol=most)
    np.testing.assert_allclose((U * S) @ Vt, matrix, atol=most * wanted[0])
    np.testing.assert_allclose(np.sort(S)[::-1], wanted, atol=most * wanted[0])


def test_vectors_that_are_off_are_sharpened() -> None:
    rng = np.random.default_rng(2)
    matrix = (basis(rng, 80, 12) * np.linspace(9, 1, 12)) @ basis(rng, 12, 12).T
    xp = array_api_compat.array_namespace(matrix)
    svd = np.linalg.svd

    class Blunt:
        """A library whose vectors are off by hundreds of roundings."""

        def __getattr__(self, name: str) -> Any:
            return getattr(xp.linalg, name)

        def svd(self, one: Any, **options: Any) -> Any:
            U, S, Vt = svd(one, **options)
            return (
                U + 300 * EPS * rng.normal(size=U.shape),
                S,
                Vt + 300 * EPS * rng.normal(size=Vt.shape),
            )

    class Library:
        linalg = Blunt()

        def __getattr__(self, name: str) -> Any:
            return getattr(xp, name)

    U, S, Vt = sharp_svd(Library(), matrix)  # type: ignore[arg-type]
    assert np.max(np.abs((U * S) @ Vt - matrix)) < 20 * EPS * S[0]
    assert np.max(np.abs(U.T @ U - np.eye(12))) < 20 * EPS


SPECTRA: dict[str, Callable[[np.random.Generator, int], Floats]] = {
    "spread": lambda rng, b: np.sort(np.exp(rng.standard_normal(b)))[::-1],
    "wide": lambda rng, b: np.sort(np.exp(5 * rng.standard_normal(b)))[::-1],
    "equal": lambda rng, b: np.ones(b),
    "clusters": lambda rng, b: np.sort(np.repeat(rng.uniform(0.1, 1, b), 4)[:b])[::-1],
    "nearly equal": lambda rng, b: 1 + 10.0 ** -rng.uniform(3, 16) * rng.standard_normal(b),
    "singular": lambda rng, b: np.where(np.arange(b) < max(1, b // 2), 1.0, 0.0),
}


@pytest.mark.parametrize("spectrum", SPECTRA)
@given(b=st.integers(1, 24), more=st.integers(0, 40), seed=st.integers(0, 2**32 - 1))
def test_it_is_a_decomposition_to_rounding(spectrum: str, b: int, more: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    left = np.linalg.qr(rng.standard_normal((b + more, b)))[0]
    right = np.linalg.qr(rng.standard_normal((b, b)))[0]
    matrix = left * SPECTRA[spectrum](rng, b) @ right
    for backend in (Backend.NUMPY, Backend.STRICT):
        found: Any = sharp_svd(backend.xp, backend.array(matrix))
        U, S, transposed = map(backend.host, found)
        np.testing.assert_allclose(U.T @ U, np.eye(b), atol=1e-14 + ABSORBED)
        np.testing.assert_allclose(transposed @ transposed.T, np.eye(b), atol=1e-14)
        np.testing.assert_allclose(U * S @ transposed, matrix, atol=2e-14 * S.max())
        np.testing.assert_allclose(
            np.sort(S)[::-1], np.linalg.svd(matrix, compute_uv=False), atol=2e-14 * S.max()
        )


@given(b=st.integers(2, 16), seed=st.integers(0, 2**32 - 1))
def test_nearly_equal_values_leave_nothing_over(b: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    matrix = basis(rng, b + 30, b) * SPECTRA["nearly equal"](rng, b) @ basis(rng, b, b)
    U, S, transposed = map(to_host, sharp_svd(Backend.NUMPY.xp, matrix))
    assert np.max(np.abs(U * S @ transposed - matrix)) < 6 * EPS * S.max()


def test_a_row_space_is_made_of_the_rows(backend: Backend) -> None:
    rng = np.random.default_rng(3)
    rows = rng.standard_normal((30, 7)) * np.logspace(0, -5, 7) @ rng.standard_normal((7, 50))
    left, values = np.linalg.svd(rows, full_matrices=False)[:2]
    loose = left[:, :7] + 1e-12 * rng.standard_normal((30, 7))
    found = sharp_row_space(backend.xp, backend.array(rows), backend.array(loose), backend.array(values[:7]))
    weights, basis = map(backend.host, found)
    np.testing.assert_allclose(basis.T @ basis, np.eye(7), atol=1e-13)
    np.testing.assert_allclose(rows.T @ weights, basis, atol=1e-9)
    assert np.linalg.norm(rows - rows @ basis @ basis.T) < 1e-13 * np.linalg.norm(rows)
