"""What the layer says of a direction: which patterns it can produce, and from which input."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spear_np.backend.host import to_host
from spear_np.factors.factorize import Factors, factorize
from spear_np.factors.signs import SignModel, fit_known, fit_signs, sign_model, smoother
from tests.backends import Backend, assert_array, assert_lives_on
from tests.cases import pick_digits
from tests.layers import digit_layer, factors_of, layer_data_of, true_directions
from tests.networks import Floats, LayerData
from tests.test_sampling import angles

B, WIDTH = 16, 160


def modelled(data: LayerData, backend: Backend, **changes: Any) -> tuple[Factors, SignModel]:
    """Return the factors of a layer and its sign model, which must be there."""
    factors = factors_of(data, backend, **changes)
    model = sign_model(factors)
    assert model is not None
    return factors, model


def coordinates_of(factors: Factors, inputs: Floats) -> Floats:
    """(b, b): the coordinates in V of the true inputs."""
    weight_grad = to_host(factors.gradients.weight_grad).astype(np.float64)
    coordinates: Floats = inputs.astype(np.float64) @ (weight_grad.T @ to_host(factors.space.to_basis))
    return coordinates


def preactivations(factors: Factors, data: LayerData) -> Floats:
    """(b, ℓ): what the live units see of each input."""
    live = to_host(factors.space.live)
    z: Floats = data.inputs.astype(np.float64) @ data.weight[live].T + data.bias[live]
    return z


def seen_by(factors: Factors, q: Floats) -> Floats:
    """(k, b): unit vectors y = q / S; an input c leaves no trace in direction q where c · y = 0."""
    y = q / to_host(factors.space.S)
    rows: Floats = y / np.linalg.norm(y, axis=1, keepdims=True)
    return rows


def complement_of(y: Floats) -> Floats:
    """(b, b-f): orthonormal basis of what is orthogonal to the rows of `y` (f, b)."""
    complement: Floats = np.linalg.qr(y.T, mode="complete")[0][:, len(y) :]
    return complement


def dense(backend: Backend, smoothing: tuple[Any, Any]) -> Floats:
    """(ℓ, ℓ): the smoother as one matrix."""
    for array in smoothing:
        assert_lives_on(array, backend)
    spread, shrink = (to_host(array) for array in smoothing)
    matrix: Floats = (spread * shrink) @ spread.T
    return matrix


class TestSignModel:
    @pytest.mark.parametrize(
        ("missing", "there"),
        [
            ([], True),
            (["weight", "bias"], False),
            (["weight"], False),
            (["bias_grad"], True),
            (["bias_grad", "bias"], True),
            (["bias"], True),
        ],
    )
    def test_it_is_there_where_signs_can_be_known(self, missing: list[str], there: bool) -> None:
        # Without bias_grad the scale of an input is unknown, but a pattern tells how much of z is bias.
        changes = dict.fromkeys(missing)
        factors = factors_of(digit_layer(5, width=100, seed=400), Backend.NUMPY, **changes)
        assert (sign_model(factors) is not None) == there

    def test_a_layer_that_tells_inputs_not_apart_has_none(self) -> None:
        data = digit_layer(5, width=100, seed=401)
        blind = data.weight.copy()
        blind[:] = blind[0]
        assert sign_model(factors_of(data, Backend.NUMPY, weight=blind)) is None
        assert sign_model(factors_of(data, Backend.NUMPY, weight=np.zeros_like(data.weight))) is None

    def test_fewer_units_than_unknowns_have_none(self) -> None:
        rng = np.random.default_rng(402)
        data = layer_data_of(rng.standard_normal((4, 9)), rng, width=7)
        factors = factorize(Backend.NUMPY.gradients(data), Backend.NUMPY.device, 4)
        assert isinstance(factors, Factors)
        live = factors.space.live.shape[0]
        for size, there in ((live, False), (live - 1, True)):
            sized = factorize(Backend.NUMPY.gradients(data), Backend.NUMPY.device, size)
            assert isinstance(sized, Factors)
            assert (sign_model(sized) is not None) == there

    @pytest.mark.parametrize("changes", [{}, {"bias": None}], ids=["bias", "no bias"])
    def test_preactivations_give_their_coordinates_back(
        self, backend: Backend, changes: dict[str, Any]
    ) -> None:
        _, model = modelled(digit_layer(B, width=WIDTH, seed=403), backend, **changes)
        r = B + (0 if changes else 1)
        assert_array(model.plain.basis.T @ model.plain.basis, np.eye(r), backend, atol=1e-12)
        c = np.random.default_rng(403).standard_normal((6, B))
        z = backend.array(c) @ model.weight_in_basis.T + 0.7 * model.bias[None, :]
        assert_array((z @ model.plain.basis) @ model.plain.to_coordinates.T, c, backend, atol=1e-9)

    def test_true_inputs_have_the_preactivations_of_the_network(self, backend: Backend) -> None:
        data = digit_layer(B, width=WIDTH, seed=404)
        factors, model = modelled(data, backend)
        z = coordinates_of(factors, data.inputs) @ backend.host(model.weight_in_basis).T + backend.host(
            model.bias
        )
        np.testing.assert_allclose(z, preactivations(factors, data), atol=1e-5)

    def test_the_prior_is_the_gradient_seen_in_the_basis(self, backend: Backend) -> None:
        data = digit_layer(B, width=WIDTH, seed=405)
        factors, model = modelled(data, backend)
        rotation, moments = backend.host(model.rotation), backend.host(model.second_moment)
        np.testing.assert_allclose(rotation.T @ rotation, np.eye(B), atol=1e-12)
        rows = backend.host(factors.space.coordinates)
        energy = rows.T @ rows / np.sum(rows**2) * data.weight_grad.shape[1]
        np.testing.assert_allclose((rotation * moments) @ rotation.T, energy, atol=1e-9 * np.max(energy))


class TestSmoother:
    def prior(self, model: SignModel) -> Floats:
        rotation = to_host(model.rotation)
        covariance: Floats = (rotation * to_host(model.second_moment)) @ rotation.T
        return covariance

    def ridge(self, model: SignModel, covariance: Floats) -> Floats:
        """Σ (Σ + 1)⁻¹ for Σ = M C Mᵀ + bias biasᵀ of trace ℓ."""
        layer, bias = to_host(model.weight_in_basis), to_host(model.bias)
        sigma = layer @ covariance @ layer.T + np.outer(bias, bias)
        sigma *= len(bias) / np.trace(sigma)
        solution: Floats = np.linalg.solve(sigma + np.eye(len(bias)), sigma)
        return solution

    @pytest.mark.parametrize("changes", [{}, {"bias": None}], ids=["bias", "no bias"])
    def test_it_is_ridge_regression_under_the_prior(self, backend: Backend, changes: dict[str, Any]) -> None:
        factors, model = modelled(digit_layer(B, width=WIDTH, seed=410), backend, **changes)
        matrix = dense(backend, smoother(factors.space, model, None))
        np.testing.assert_allclose(matrix, self.ridge(model, self.prior(model)), atol=1e-9)

    @pytest.mark.parametrize("known", [1, 8, B - 1])
    def test_known_directions_condition_the_prior(self, backend: Backend, known: int) -> None:
        data = digit_layer(B, width=WIDTH, seed=411)
        factors, model = modelled(data, backend)
        y = seen_by(factors, true_directions(factors, data.inputs)[:known])
        matrix = dense(backend, smoother(factors.space, model, backend.array(complement_of(y))))
        prior = self.prior(model)
        seen = prior @ y.T
        conditioned = prior - seen @ np.linalg.solve(y @ seen, seen.T)
        np.testing.assert_allclose(matrix, self.ridge(model, conditioned), atol=1e-7)

    @given(st.integers(2, 20), st.integers(0, 30), st.booleans(), st.data())
    @settings(max_examples=25)
    def test_it_shrinks_and_never_flips(self, b: int, seed: int, prior: bool, data: st.DataObject) -> None:
        factors, model = modelled(digit_layer(b, width=100, seed=seed), Backend.NUMPY)
        known = data.draw(st.integers(0, b - 1))
        y = np.random.default_rng(seed).standard_normal((known, b))
        complement = complement_of(y) if known else None
        matrix = dense(Backend.NUMPY, smoother(factors.space, model, complement, prior=prior))
        np.testing.assert_array_equal(matrix.shape, (factors.space.live.shape[0],) * 2)
        np.testing.assert_allclose(matrix, matrix.T, atol=1e-12)
        values = np.linalg.eigvalsh(matrix)
        assert values[0] > -1e-9
        assert values[-1] < 1 + 1e-9
        # As many dimensions as inputs that no known direction sees have, and one for the bias.
        assert np.count_nonzero(values > 1e-7) <= b - known + 1

    @pytest.mark.parametrize("prior", [True, False])
    def test_what_it_predicts_no_known_direction_sees(self, backend: Backend, prior: bool) -> None:
        data = digit_layer(B, width=WIDTH, seed=412)
        factors, model = modelled(data, backend)
        y = seen_by(factors, true_directions(factors, data.inputs)[:7])
        patterns = np.random.default_rng(412).choice([-1.0, 1.0], (20, len(backend.host(factors.space.live))))
        for complement, blind in ((backend.array(complement_of(y)), True), (None, False)):
            z = patterns @ dense(backend, smoother(factors.space, model, complement, prior=prior))
            c = z @ backend.host(model.plain.basis) @ backend.host(model.plain.to_coordinates).T
            # Nothing but an input and some bias is behind the prediction.
            assert (
                np.linalg.norm(z - z @ backend.host(model.plain.basis) @ backend.host(model.plain.basis).T)
                < 1e-9
            )
            visible = np.abs(c @ y.T).max() / np.abs(c).max()
            assert (visible < 1e-8) if blind else (visible > 0.05)

    @pytest.mark.parametrize("known", [0, 5])
    def test_without_the_prior_it_is_a_projector(self, backend: Backend, known: int) -> None:
        data = digit_layer(B, width=WIDTH, seed=413)
        factors, model = modelled(data, backend)
        y = seen_by(factors, true_directions(factors, data.inputs)[:known])
        complement = complement_of(y) if known else np.eye(B)
        matrix = dense(
            backend, smoother(factors.space, model, backend.array(complement) if known else None, prior=False)
        )
        np.testing.assert_allclose(matrix @ matrix, matrix, atol=1e-10)
        assert np.trace(matrix) == pytest.approx(B - known + 1)
        kept = np.column_stack([backend.host(model.weight_in_basis) @ complement, backend.host(model.bias)])
        np.testing.assert_allclose(matrix @ kept, kept, atol=1e-9 * np.max(np.abs(kept)))

    def test_the_prior_sees_more_of_a_spoiled_pattern(self) -> None:
        right = {}
        for prior in (True, False):
            hits = []
            for seed in range(420, 424):
                data = digit_layer(B, width=WIDTH, seed=seed)
                factors, model = modelled(data, Backend.NUMPY)
                on = preactivations(factors, data) > 0
                spoiled = on ^ (np.random.default_rng(seed).random(on.shape) < 0.25)
                z = (2.0 * spoiled - 1) @ dense(
                    Backend.NUMPY, smoother(factors.space, model, None, prior=prior)
                )
                hits.append(np.mean((z > 0) == on))
            right[prior] = np.mean(hits)
        assert 0.75 < right[False] < right[True] - 0.02


class TestFitSigns:
    """A wide layer: with ten units a coordinate hardly any pattern fits that is not an input's."""

    DATA: tuple[int, int, int] = (10, 400, 430)

    def patterns(self, factors: Factors, q: Floats) -> Any:
        """(k, ℓ) bool on the device: where the directions `q` (k, b) have a gradient."""
        return ~factors.space.zeros(factors.space.device.float64(q))

    def layer(self) -> LayerData:
        b, width, seed = self.DATA
        return digit_layer(b, width=width, seed=seed)

    def test_patterns_of_inputs_are_possible(self, backend: Backend) -> None:
        data = self.layer()
        factors, model = modelled(data, backend)
        agreement, _ = fit_signs(
            factors.space, model, self.patterns(factors, true_directions(factors, data.inputs))
        )
        assert agreement.shape == (len(data.inputs),)
        assert np.all(agreement > 0.97)
        assert np.all(agreement <= 1)

    def test_the_inputs_are_found_up_to_a_small_angle(self, backend: Backend) -> None:
        data = self.layer()
        factors, model = modelled(data, backend)
        _, fitted = fit_signs(
            factors.space, model, self.patterns(factors, true_directions(factors, data.inputs))
        )
        truth = coordinates_of(factors, data.inputs)
        assert np.all(angles(fitted, truth).diagonal() < 0.2)
        assert np.median(angles(fitted, truth).diagonal()) < 0.1
        # The right way round: the pattern knows the sign.
        assert np.all(np.sum(fitted * truth, axis=1) > 0)

    def test_mixtures_of_two_inputs_are_hardly_ever_possible(self, backend: Backend) -> None:
        data = self.layer()
        factors, model = modelled(data, backend)
        truth = true_directions(factors, data.inputs)
        truth /= np.linalg.norm(truth, axis=1, keepdims=True)
        pairs = np.asarray([truth[i] + truth[k] for i in range(len(truth)) for k in range(i)])
        agreement, _ = fit_signs(factors.space, model, self.patterns(factors, pairs))
        assert np.median(agreement) < 0.9
        assert np.mean(agreement >= 0.97) < 0.1

    def test_random_patterns_are_impossible(self, backend: Backend) -> None:
        factors, model = modelled(self.layer(), backend)
        live = factors.space.U.shape[0]
        random = np.random.default_rng(431).random((40, live)) < 0.5
        agreement, _ = fit_signs(factors.space, model, backend.array(random))
        assert np.all((agreement > 0.5) & (agreement < 0.75))

    def test_the_opposite_pattern_has_the_opposite_fit(self) -> None:
        data = self.layer()
        factors, model = modelled(data, Backend.NUMPY)
        active = self.patterns(factors, true_directions(factors, data.inputs))
        agreement, fitted = fit_signs(factors.space, model, active)
        mirrored, opposite = fit_signs(factors.space, model, ~active)
        np.testing.assert_allclose(agreement, mirrored, atol=0.01)
        assert np.all(angles(fitted, -opposite).diagonal() < 1e-3)
        assert np.all(np.sum(fitted * opposite, axis=1) < 0)

    @given(st.permutations(range(12)), st.integers(1, 12))
    @settings(max_examples=10)
    def test_patterns_do_not_disturb_each_other(self, order: list[int], count: int) -> None:
        data = digit_layer(12, width=100, seed=432)
        factors, model = modelled(data, Backend.NUMPY)
        active = self.patterns(factors, true_directions(factors, data.inputs))
        agreement, fitted = fit_signs(factors.space, model, active)
        some = order[:count]
        alone, fitted_alone = fit_signs(factors.space, model, active[some])
        np.testing.assert_allclose(alone, agreement[some], atol=0.011)
        assert np.all(angles(fitted_alone, fitted[some]).diagonal() < 1e-3)

    def test_no_patterns_have_no_fits(self, backend: Backend) -> None:
        factors, model = modelled(self.layer(), backend)
        nothing = backend.array(np.empty((0, factors.space.U.shape[0]), dtype=bool))
        agreement, fitted = fit_signs(factors.space, model, nothing)
        assert agreement.shape == (0,)
        assert fitted.shape == (0, factors.space.batch_size)


class TestFitKnown:
    def fitted(
        self, backend: Backend, data: LayerData, known: int, **changes: Any
    ) -> tuple[Floats, Floats, Floats, Floats]:
        """Fit the first inputs together: (their fits, each alone, the truth, the y of their directions)."""
        factors, model = modelled(data, backend, **changes)
        q = true_directions(factors, data.inputs)[:known]
        y = seen_by(factors, q)
        active = ~factors.space.zeros(backend.array(q))
        together = fit_known(
            factors.space,
            model,
            backend.array(complement_of(y)),
            backend.array(np.linalg.solve(y @ y.T, y)),
            active,
        )
        _, alone = fit_signs(factors.space, model, active)
        return backend.host(together), alone, coordinates_of(factors, data.inputs)[:known], y

    @staticmethod
    def gain(together: Floats, alone: Floats, truth: Floats) -> float:
        """By how much the median error falls when inputs are fitted together."""
        near, far = (float(np.median(angles(c, truth).diagonal())) for c in (together, alone))
        return far / near

    @pytest.mark.parametrize("known", [1, 8, B - 1, B])
    def test_no_other_known_direction_sees_an_input(self, backend: Backend, known: int) -> None:
        together, _, truth, y = self.fitted(backend, digit_layer(B, width=WIDTH, seed=440), known)
        assert together.shape == (known, B)
        seen = together @ y.T / np.linalg.norm(together, axis=1, keepdims=True)
        np.testing.assert_allclose(seen - np.diag(np.diag(seen)), 0, atol=1e-10)
        # Each is seen by its own, with the sign of the truth.
        assert np.all(np.sign(np.diag(seen)) == np.sign(np.sum(truth * y, axis=1)))
        assert np.all(np.sum(together * truth, axis=1) > 0)

    @pytest.mark.parametrize(("known", "gain"), [(8, 1.1), (12, 1.4), (B - 1, 3.0)])
    def test_the_more_is_known_the_closer_it_comes(self, backend: Backend, known: int, gain: float) -> None:
        together, alone, truth, _ = self.fitted(backend, digit_layer(B, width=WIDTH, seed=441), known)
        assert self.gain(together, alone, truth) > gain

    def test_all_directions_leave_nothing_to_fit(self, backend: Backend) -> None:
        together, _, truth, _ = self.fitted(backend, digit_layer(B, width=WIDTH, seed=442), B)
        assert np.max(angles(together, truth).diagonal()) < 1e-6

    @pytest.mark.parametrize("active", [0.2, 0.8])
    def test_a_large_bias_is_allowed_for(self, backend: Backend, active: float) -> None:
        rng = np.random.default_rng(443)
        data = layer_data_of(pick_digits(B, rng), rng, width=200, active=active)
        together, alone, truth, _ = self.fitted(backend, data, 12)
        assert self.gain(together, alone, truth) > 2

    def test_without_a_bias_the_fit_turns_on_what_the_inputs_turn_on(self, backend: Backend) -> None:
        rng = np.random.default_rng(444)
        data = digit_layer(B, width=WIDTH, seed=444)
        z = data.inputs @ data.weight.T
        output_grad = (rng.standard_normal(z.shape) * (z > 0)).astype(np.float32)
        unbiased = replace(
            data,
            weight_grad=output_grad.T @ data.inputs,
            bias=np.zeros_like(data.bias),
            output_grad=output_grad.T.copy(),
        )
        together, alone, truth, _ = self.fitted(backend, unbiased, 12, bias=None, bias_grad=None)
        assert self.gain(together, alone, truth) > 1.8
        factors, model = modelled(unbiased, backend, bias=None, bias_grad=None)
        on = z[:12, backend.host(factors.space.live)] > 0
        agreement = np.mean((together @ backend.host(model.weight_in_basis).T > 0) == on, axis=1)
        assert np.min(agreement) > 0.965
