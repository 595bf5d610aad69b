"""Singular vectors from eigenvectors, as a card finds them: no less sure than those of the library, and the same answers."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spear_np import LayerGradients, invert_chain, invert_layer
from spear_np.arrays import SVD
from spear_np.backend.algebra import CUPY_BATCHED_SVD, decomposes_slowly, eigenvectors
from spear_np.backend.host import to_host
from spear_np.directions.uniqueness import indispensable_rows, sharpened, uniqueness
from spear_np.factors import singular
from spear_np.factors.singular import (
    IN_SIGHT,
    SVD_ERROR,
    pseudoinverse,
    right_singular,
    singular_values,
    spectral_norm,
    svd_by_gram,
    thin_svd,
)
from tests.backends import Backend
from tests.chains import assert_whole, digit_network
from tests.layers import digit_layer, factors_of, true_directions
from tests.networks import Floats

SPECTRA: dict[str, Callable[[np.random.Generator, int], Floats]] = {
    "spread": lambda rng, b: np.exp(rng.standard_normal(b)),
    "graded": lambda rng, b: np.logspace(0, -rng.uniform(2, 16), b),
    "equal": lambda _, b: np.ones(b),
    "nearly equal": lambda rng, b: 1 + 10.0 ** -rng.uniform(3, 16) * rng.standard_normal(b),
    "clusters, far apart": lambda rng, b: np.repeat(np.logspace(0, -rng.uniform(3, 14), b), 4)[:b],
    "noise behind a signal": lambda rng, b: (
        np.where(np.arange(b) < b // 2, 10 ** rng.uniform(3, 12), 1.0) * rng.uniform(1, 2, b)
    ),
    "nearly singular": lambda rng, b: np.where(np.arange(b) < b - 1, 1.0, 10.0 ** -rng.uniform(12, 17)),
    "singular": lambda _, b: np.where(np.arange(b) < max(1, b // 2), 1.0, 0.0),
    "zero": lambda _, b: np.zeros(b),
    "tiny": lambda _, b: 1e-200 * np.logspace(0, -6, b),
    "huge": lambda _, b: 1e200 * np.logspace(0, -6, b),
}


def basis(rng: np.random.Generator, rows: int, columns: int) -> Floats:
    return np.asarray(np.linalg.qr(rng.standard_normal((rows, columns)))[0])


def matrix(spectrum: str, r: int, b: int, seed: int) -> Floats:
    rng = np.random.default_rng(seed)
    values = np.sort(np.abs(SPECTRA[spectrum](rng, b)))[::-1]
    return np.asarray(basis(rng, r, b) * values @ basis(rng, b, b).T)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A device that is slow at singular vectors whatever their number; returns how far each of those it made was off."""
    errors: list[float] = []

    def seen(xp: Any, matrices: Any) -> tuple[SVD, Any]:
        found, error = svd_by_gram(xp, matrices)
        errors.extend(np.atleast_1d(to_host(error)).tolist())
        return found, error

    monkeypatch.setattr(singular, "decomposes_slowly", lambda *_: True)
    monkeypatch.setattr(singular, "svd_by_gram", seen)
    return errors


class TestADecomposition:
    @pytest.mark.parametrize("spectrum", SPECTRA)
    @given(b=st.integers(1, 40), more=st.integers(0, 30), seed=st.integers(0, 2**32 - 1))
    def test_is_one_to_rounding(self, spectrum: str, b: int, more: int, seed: int) -> None:
        given_ = matrix(spectrum, b + more, b, seed)
        wanted, size = np.linalg.svd(given_, compute_uv=False), max(float(np.abs(given_).max()), 1e-300)
        for backend in (Backend.NUMPY, Backend.STRICT):
            found, error = svd_by_gram(backend.xp, backend.array(given_))
            assert float(backend.host(error)) < SVD_ERROR
            U, S, transposed = map(backend.host, found)
            np.testing.assert_allclose(U.T @ U, np.eye(b), atol=2e-14)
            np.testing.assert_allclose(transposed @ transposed.T, np.eye(b), atol=2e-14)
            np.testing.assert_allclose(U * (S / size) @ transposed, given_ / size, atol=1e-13)
            np.testing.assert_allclose(S / size, wanted / size, atol=1e-13)
            assert np.all(np.diff(S) <= 0)

    def test_of_a_stack_is_that_of_each(self, backend: Backend) -> None:
        stack = np.stack([matrix(spectrum, 50, 33, 5) for spectrum in SPECTRA])
        found, error = svd_by_gram(backend.xp, backend.array(stack))
        assert np.max(backend.host(error)) < SVD_ERROR
        U, S, transposed = map(backend.host, found)
        for row, one in enumerate(stack):
            size = max(float(np.abs(one).max()), 1e-300)
            np.testing.assert_allclose(U[row] * (S[row] / size) @ transposed[row], one / size, atol=1e-13)

    @pytest.mark.parametrize("gap", [1e-2, 1e-6, 1e-10])
    def test_finds_the_spaces_of_values_that_are_apart(self, gap: float) -> None:
        rng = np.random.default_rng(7)
        values = np.r_[np.linspace(2, 1, 20), gap * np.linspace(2, 1, 20)]
        left, right = basis(rng, 90, 40), basis(rng, 40, 40)
        (U, _, transposed), _ = svd_by_gram(Backend.NUMPY.xp, left * values @ right.T)
        for found, wanted in ((U[:, :20], left[:, :20]), (np.asarray(transposed)[:20].T, right[:, :20])):
            np.testing.assert_allclose(found @ found.T, wanted @ wanted.T, atol=1e-13)
        # The left vectors of small values are as sure as any backward stable decomposition leaves them.
        np.testing.assert_allclose(U @ U.T, left @ left.T, atol=1e-14 / gap)

    def test_knows_what_it_cannot_tell(self, slow: list[float]) -> None:
        """Values that are nearly the same, as small as a Gram matrix shows: the library tells them."""
        rng, b = np.random.default_rng(8), 60
        values = np.where(np.arange(b) < b // 2, 1.0, 1.01 * IN_SIGHT) * (1 + 1e-8 * rng.standard_normal(b))
        given_ = basis(rng, 90, b) * values @ basis(rng, b, b).T
        U, S, transposed = map(np.asarray, thin_svd(Backend.NUMPY.xp, given_))
        assert slow[0] > SVD_ERROR
        np.testing.assert_allclose(U.T @ U, np.eye(b), atol=1e-14)
        np.testing.assert_allclose(U * S @ transposed, given_, atol=1e-14)

    def test_says_how_far_it_is_off(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Held to what comes out, not to what should: with blunt eigenvectors it is not sure."""
        given_ = matrix("graded", 40, 20, 3)
        rng = np.random.default_rng(3)

        def blunt(xp: Any, gram: Any) -> tuple[Any, Any]:
            values, vectors = eigenvectors(xp, gram)
            return values, vectors + 1e-3 * rng.standard_normal(vectors.shape)

        monkeypatch.setattr(singular, "eigenvectors", blunt)
        assert float(svd_by_gram(Backend.NUMPY.xp, given_)[1]) > SVD_ERROR


class TestWhatTheLibraryDoes:
    """The same, whether the device is slow at it or not."""

    SHAPES = ((60, 40), (40, 40), (20, 40), (3, 50, 40), (1, 50, 40))

    @pytest.mark.usefixtures("slow")
    @pytest.mark.parametrize("shape", SHAPES)
    def test_thin_decompositions(self, backend: Backend, shape: tuple[int, ...]) -> None:
        given_ = np.random.default_rng(0).standard_normal(shape)
        U, S, transposed = map(backend.host, thin_svd(backend.xp, backend.array(given_)))
        wanted = np.linalg.svd(given_, full_matrices=False)
        assert [one.shape for one in (U, S, transposed)] == [one.shape for one in wanted]
        np.testing.assert_allclose(S, wanted[1], rtol=1e-13)
        np.testing.assert_allclose(U * S[..., None, :] @ transposed, given_, atol=1e-13)

    @pytest.mark.usefixtures("slow")
    @pytest.mark.parametrize("shape", SHAPES)
    def test_right_vectors(self, backend: Backend, shape: tuple[int, ...]) -> None:
        given_ = np.random.default_rng(1).standard_normal(shape)
        values, right = map(backend.host, right_singular(backend.xp, backend.array(given_)))
        assert right.shape == (*shape[:-2], 40, 40)
        np.testing.assert_allclose(values, np.linalg.svd(given_, compute_uv=False), rtol=1e-12)
        seen = np.linalg.norm(given_ @ np.swapaxes(right, -1, -2), axis=-2)
        np.testing.assert_allclose(seen[..., : values.shape[-1]], values, rtol=1e-12)
        np.testing.assert_allclose(seen[..., values.shape[-1] :], 0, atol=1e-12)

    @pytest.mark.usefixtures("slow")
    @pytest.mark.parametrize("spectrum", ["spread", "graded", "singular", "zero"])
    def test_pseudoinverses_values_and_norms(self, backend: Backend, spectrum: str) -> None:
        given_ = matrix(spectrum, 60, 20, 4)
        values = backend.host(singular_values(backend.xp, backend.array(given_)))
        np.testing.assert_allclose(values, np.linalg.svd(given_, compute_uv=False), atol=1e-14)
        norm = backend.host(spectral_norm(backend.xp, backend.array(given_[None])))
        np.testing.assert_allclose(norm, [np.linalg.norm(given_, ord=2)], rtol=1e-13, atol=1e-300)
        given_ = (
            given_ + matrix("spread", 60, 20, 5) if spectrum == "graded" else given_
        )  # else it has no sure inverse
        inverse = backend.host(pseudoinverse(backend.xp, backend.array(given_)))
        np.testing.assert_allclose(inverse, np.linalg.pinv(given_), atol=1e-12)

    def test_what_is_not_sure_goes_to_the_library(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(singular, "decomposes_slowly", lambda *_: True)

        def unsure(xp: Any, matrices: Any) -> tuple[SVD, Any]:
            found, error = svd_by_gram(xp, matrices)
            wrong = SVD(found.U, 2 * found.S, found.Vh)
            return wrong, np.where(np.arange(error.size) % 2 == 0, 0.0, np.nan).reshape(error.shape)

        monkeypatch.setattr(singular, "svd_by_gram", unsure)
        stack = np.stack([matrix("spread", 30, 10, seed) for seed in range(4)])
        true = np.linalg.svd(stack, compute_uv=False)
        S = np.asarray(thin_svd(Backend.NUMPY.xp, stack).S)
        np.testing.assert_allclose(S, true * np.asarray([2, 1, 2, 1])[:, None], rtol=1e-12)
        assert float(thin_svd(Backend.NUMPY.xp, stack[0]).S[0]) == pytest.approx(2 * true[0, 0])

    def test_only_a_card_is_slow_and_only_at_large_matrices(self) -> None:
        large, small = (np.ones((2, size, size)) for size in (CUPY_BATCHED_SVD + 1, CUPY_BATCHED_SVD))
        assert not decomposes_slowly(Backend.NUMPY.xp, large)
        cupy: Any = ModuleType("array_api_compat.cupy")
        assert decomposes_slowly(cupy, large)
        assert not decomposes_slowly(cupy, small)


class TestAnswers:
    """What rests on singular vectors, from eigenvectors."""

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    @pytest.mark.parametrize("noise", [0.0, 1e-3])
    def test_directions_are_as_unique(self, request: pytest.FixtureRequest, dtype: Any, noise: float) -> None:
        """With as many zero rows as it takes, one fewer, more, and rows that are nearly the same."""
        data = digit_layer(8, width=80, seed=11, dtype=dtype)
        rng = np.random.default_rng(2)
        size = float(np.abs(data.weight_grad).max())
        weight_grad = data.weight_grad + noise * size * rng.standard_normal(data.weight_grad.shape)
        factors = factors_of(data, Backend.NUMPY, weight_grad=weight_grad.astype(dtype))
        space = factors.space
        true = true_directions(factors, data.inputs)
        mixed = true[:-1] + rng.uniform(0.1, 1, (7, 1)) * true[1:]
        q = np.concatenate([true, true, true, mixed])
        zeros = np.asarray(space.zeros(q))
        for row, keep in zip(zeros[8:24], [6, 7, 8, 9] * 4, strict=True):
            row[np.flatnonzero(row)[keep:]] = False
        off = space.expand(zeros)
        before = uniqueness(space, q, q, off)
        lone = indispensable_rows(space, q, zeros)
        sharp = sharpened(space, q, off, before, np.flatnonzero(before.redundancy))
        errors = request.getfixturevalue("slow")
        after = uniqueness(space, q, q, off)
        np.testing.assert_array_equal(after.unique, before.unique)
        np.testing.assert_array_equal(after.redundancy, before.redundancy)
        np.testing.assert_allclose(after.mixing, before.mixing, rtol=1e-6)
        np.testing.assert_array_equal(indispensable_rows(space, q, zeros), lone)
        again = sharpened(space, q, off, after, np.flatnonzero(after.redundancy))
        np.testing.assert_array_equal(again.redundancy, sharp.redundancy)
        assert max(errors) < SVD_ERROR
        assert before.unique.any()
        assert not before.unique.all()

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_a_layer_is_inverted(self, slow: list[float], dtype: Any) -> None:
        data = digit_layer(12, width=120, seed=5, dtype=dtype)
        layer = LayerGradients(data.weight_grad, data.bias_grad, data.weight, data.bias)
        answer = invert_layer(layer, seed=1)
        assert answer.status == "exact"
        recovered = to_host(answer.inputs)
        for one in data.inputs:
            assert np.min(np.max(np.abs(recovered - one), axis=1)) < 1e-3
        assert slow
        assert max(slow) < SVD_ERROR

    def test_a_chain_is_inverted(self, slow: list[float]) -> None:
        data = digit_network(12, seed=3)
        assert_whole(invert_chain(data.layers, seed=1, method="chain"), data)
        assert max(slow) < SVD_ERROR


@pytest.mark.gpu
class TestOnARealCard:
    @pytest.mark.parametrize("spectrum", SPECTRA)
    @pytest.mark.parametrize("shape", [(300, 100), (3, 300, 100), (1, 80, 40)])
    def test_it_is_sure(self, spectrum: str, shape: tuple[int, ...]) -> None:
        backend = Backend.CUPY
        if backend.missing is not None:
            pytest.skip(backend.missing)
        given_ = np.broadcast_to(matrix(spectrum, shape[-2], shape[-1], 2), shape)
        found, error = svd_by_gram(backend.xp, backend.array(given_))
        assert np.max(backend.host(error)) < SVD_ERROR
        size = max(float(np.abs(given_).max()), 1e-300)
        wanted = np.linalg.svd(given_, compute_uv=False)
        np.testing.assert_allclose(backend.host(found.S) / size, wanted / size, atol=1e-13)
