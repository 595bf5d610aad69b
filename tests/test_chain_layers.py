"""What each layer of a chain says of its inputs, and the affine sets that are left of it."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spear_np import LayerGradients
from spear_np.backend.devices import CPU
from spear_np.backend.host import to_host
from spear_np.chain.affine import AffineSet, affine_set
from spear_np.chain.layers import Chain, bias_misfit, bias_noise_of, cancelled
from spear_np.chain.sets import open_sets
from spear_np.factors.factorize import Factors, factorize
from tests.backends import Backend, assert_lives_on
from tests.chains import NetworkData, chain_on, digit_network, true_coordinates
from tests.networks import Floats

NETWORKS = st.builds(
    lambda b, activation, seed: digit_network(b, activation=activation, seed=seed, gain=2.0),
    st.integers(1, 12),
    st.sampled_from(["relu", "gelu", "tanh", "leaky_relu"]),
    st.integers(0, 10**6),
)
few = settings(max_examples=15)


@cache
def case(activation: str, dtype: Any = np.float64) -> tuple[NetworkData, Chain]:
    data = digit_network(6, activation=activation, gain=2.0, dtype=dtype)
    return data, chain_on(data)


class TestLayers:
    @few
    @given(NETWORKS)
    def test_every_input_meets_the_linear_condition_and_its_dual(self, data: NetworkData) -> None:
        chain = chain_on(data)
        for number in range(chain.depth + 1):
            layer = chain.layers[number]
            C = true_coordinates(chain, data, number)
            P = layer.dual(data.output_grads[number])
            assert C @ layer.ones == pytest.approx(1, abs=1e-8)
            assert pytest.approx(np.eye(len(C)), abs=1e-8) == P @ C.T

    @few
    @given(NETWORKS)
    def test_pre_activations_are_linear_in_coordinates(self, data: NetworkData) -> None:
        chain = chain_on(data)
        for number in range(chain.depth + 1):
            z = true_coordinates(chain, data, number) @ chain.layers[number].to_units.T
            assert z == pytest.approx(data.pre_activations[number], abs=1e-9)

    def test_bases_are_orthonormal_to_the_last_digit_in_badly_conditioned_layers(self) -> None:
        chain = chain_on(digit_network(8, activation="tanh", gain=0.5, widths=(16, 16, 60)))
        assert max(float(layer.space.S[0] / layer.space.S[-1]) for layer in chain.layers[1:]) > 1e3
        for layer in chain.layers[1:]:
            gram = layer.basis.T @ layer.basis
            assert np.max(np.abs(gram - np.eye(gram.shape[0]))) < 20 * np.finfo(np.float64).eps

    def test_the_basis_is_that_of_the_coordinates(self) -> None:
        data, chain = case("gelu")
        for number, layer in enumerate(chain.layers):
            rebuilt = true_coordinates(chain, data, number) @ layer.basis.T
            assert rebuilt == pytest.approx(data.inputs[number], abs=1e-6)

    def test_columns_of_the_loss_gradient_lie_in_those_of_the_layer(self) -> None:
        data, chain = case("relu")
        for number, layer in enumerate(chain.layers[: chain.depth + 1]):
            grads = data.output_grads[number].T
            weights = np.linalg.lstsq(layer.columns, grads, rcond=None)[0]
            assert layer.columns @ weights == pytest.approx(grads, abs=1e-12)

    def test_depth_counts_the_layers_that_show_every_input(self) -> None:
        assert chain_on(digit_network(6, activation="gelu", gain=2.0, widths=(10, 10, 60))).depth == 3
        assert chain_on(digit_network(12, activation="gelu", gain=2.0, widths=(24, 24, 60))).depth == 2
        assert chain_on(digit_network(6, gain=2.0, widths=(60, 60, 60)), count=2).depth == 1

    def test_what_noise_adds_to_inputs_is_of_the_size_of_their_spread(self) -> None:
        data, chain = case("gelu", np.float32)
        for number in range(1, chain.depth + 1):
            layer = chain.layers[number]
            truth = data.inputs[number].astype(np.float64)
            error = truth - (truth @ layer.basis) @ layer.basis.T
            ratio = np.sqrt(np.mean(error**2, axis=1)) / layer.spread(truth @ layer.basis)
            assert np.all(ratio < 1)
            assert np.median(ratio) > 0.01

    def test_every_library_gives_the_same(self, backend: Backend) -> None:
        data, expected = case("gelu")
        chain = chain_on(data, backend)
        assert chain.depth == expected.depth
        for layer, wanted in zip(chain.layers, expected.layers, strict=True):
            for name in ("ones", "to_units", "basis", "columns", "bias_noise"):
                array = getattr(layer, name)
                assert_lives_on(array, backend)
                assert to_host(array) == pytest.approx(to_host(getattr(wanted, name)), rel=1e-6, abs=1e-6)


class TestNoiseOfBiasGrad:
    """One-hot rows: features that few inputs have are sums of few products, bias_grad of all."""

    @staticmethod
    def factors(*, dependent: bool) -> Factors:
        rng = np.random.default_rng(0)
        b, m = 24, 100
        X = np.zeros((b, 3 * b), np.float32)
        X[np.arange(b), rng.permutation(b)] = 1
        X[np.arange(b), b + rng.integers(2 * b, size=b)] = 1
        D = rng.standard_normal((b, m)).astype(np.float32)
        D = D - D.mean(axis=0, keepdims=True)  # columns of ∂L/∂Z that all but cancel
        D[0] += 1e-4
        if dependent:
            X[0] = (X[1] + X[2]) / 4
        bias_grad = np.zeros(m, np.float32)
        for row in D:
            bias_grad = bias_grad + row
        layer = LayerGradients(D.T @ X, bias_grad, weight=rng.standard_normal((m, 3 * b)).astype(np.float32))
        factors = factorize(layer, CPU)
        assert isinstance(factors, Factors)
        return factors

    def test_what_cancels_in_it_is_noise(self) -> None:
        factors = self.factors(dependent=False)
        assert factors.bias_grad is not None
        misfit = bias_misfit(factors.space, factors.bias_grad)
        assert 3 < misfit < 3 * cancelled(factors.space)
        noise = bias_noise_of(factors.space, factors.bias_grad) / factors.space.noise
        assert np.min(noise) >= misfit * (1 - 1e-9)

    def test_dependent_inputs_are_none(self) -> None:
        factors = self.factors(dependent=True)
        assert factors.bias_grad is not None
        assert bias_misfit(factors.space, factors.bias_grad) > 100 * cancelled(factors.space)


def drawn_set(r: int, b: int, seed: int) -> tuple[Floats, Floats, AffineSet]:
    rng = np.random.default_rng(seed)
    rows, ones = rng.standard_normal((r, b)), rng.standard_normal(b)
    return rows, ones, affine_set(rows, ones, CPU)


def distance(one: AffineSet, offset: Floats, projector: Floats) -> float:
    """How far a set is from the one with this nearest point to zero and this projector on its directions."""
    own = one.directions @ one.directions.T
    return float(max(np.max(np.abs(one.offset - offset)), np.max(np.abs(own - projector))))


def computed_anew(rows: Floats, conditions: Floats, values: Floats) -> tuple[Floats, Floats]:
    """Nearest point to zero and projector of ``rows c`` with ``conditions c = values``."""
    particular = np.linalg.lstsq(conditions, values, rcond=None)[0]
    free = np.linalg.svd(conditions)[2][len(conditions) :].T
    U = np.linalg.svd(rows @ free, full_matrices=False)[0]
    projector = U @ U.T
    point = rows @ particular
    return point - projector @ point, projector


class TestAffineSets:
    @given(st.integers(2, 12), st.integers(0, 20), st.integers(0, 10**6), st.data())
    def test_each_input_taken_out_leaves_what_would_be_computed_anew(
        self, b: int, more: int, seed: int, draw: st.DataObject
    ) -> None:
        rows, ones, one = drawn_set(b + more, b, seed)
        count = draw.draw(st.integers(0, b - 1))
        duals = np.random.default_rng([seed, 1]).standard_normal((count, b))
        for dual in duals:
            one = one.without(dual)
        conditions = np.concatenate([ones[None, :], duals])
        values = np.eye(len(conditions))[0]
        assert one.dimensions == b - 1 - count
        scale = np.linalg.cond(conditions) * np.linalg.cond(rows)
        assert distance(one, *computed_anew(rows, conditions, values)) < 1e-10 * scale

    @given(st.integers(2, 12), st.integers(0, 20), st.integers(0, 10**6))
    def test_projections_are_orthogonal_and_stay_in_the_set(self, b: int, more: int, seed: int) -> None:
        _, ones, one = drawn_set(b + more, b, seed)
        v = np.random.default_rng([seed, 2]).standard_normal((3, b + more))
        onto = one.offset + (v @ one.directions) @ one.directions.T
        again = one.offset + (onto @ one.directions) @ one.directions.T
        assert again == pytest.approx(onto, abs=1e-10)
        assert (v - onto) @ one.directions == pytest.approx(0, abs=1e-10)
        assert one.offset @ one.directions == pytest.approx(0, abs=1e-10)
        coordinates = onto @ one.to_coordinates.T
        assert coordinates @ ones == pytest.approx(1, abs=1e-6 * np.linalg.cond(one.to_coordinates))

    def test_single_precision_copies_are_those_of_the_set(self, backend: Backend) -> None:
        rows, ones, expected = drawn_set(9, 5, 0)
        one = affine_set(backend.array(rows), backend.array(ones), backend.device)
        dual = np.arange(1.0, 6.0)
        one, expected = one.without(backend.array(dual)), expected.without(dual)
        projector = expected.directions @ expected.directions.T
        for offset, directions in ((one.offset, one.directions), one.single):
            assert_lives_on(offset, backend)
            held = to_host(directions).astype(np.float64)
            assert to_host(offset) == pytest.approx(expected.offset, abs=1e-6)
            assert held @ held.T == pytest.approx(projector, abs=1e-6)
        assert {to_host(part).dtype for part in one.single} == {np.dtype(np.float32)}


class TestOpenSets:
    @pytest.mark.parametrize("depth", [1, 2])
    def test_every_input_lies_in_every_set_until_it_is_taken_out(self, depth: int) -> None:
        data, chain = case("gelu")
        left = open_sets(chain, depth)
        assert left.missing == 6
        points = []
        for number in range(depth + 1):
            parts = [left.scales[number - 1] * data.inputs[number]] if number else []
            parts += [left.scales[number] * data.pre_activations[number]] if number < depth else []
            points.append(np.concatenate(parts, axis=1))
        duals = [layer.dual(data.output_grads[n]) for n, layer in enumerate(chain.layers[: depth + 1])]
        for found in range(3):
            for one, rows in zip(left.sets, points, strict=True):
                onto = one.offset + (rows @ one.directions) @ one.directions.T
                off = np.max(np.abs(onto - rows), axis=1)
                assert np.all(off[found:] < 1e-7)
                assert np.all(off[:found] > 1e-3)
            left = left.without(tuple(dual[found] for dual in duals))
            assert left.missing == 5 - found

    def test_starts_are_of_the_size_of_inputs(self) -> None:
        data, chain = case("relu")
        left = open_sets(chain, 2)
        for number, root in enumerate(left.roots):
            expected = np.sqrt(np.mean(true_coordinates(chain, data, number) ** 2))
            assert 0.3 < np.sqrt(np.mean(root**2) * root.shape[1]) / expected < 3
