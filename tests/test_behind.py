"""What the layer behind passes back: with few units it ties the gradients of all units of an input to each other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import spear_np
from spear_np.backend.host import to_host
from spear_np.directions.uniqueness import uniqueness
from spear_np.factors.behind import Behind, passed_by, with_layer_behind
from spear_np.factors.factorize import Factors, factorize
from spear_np.factors.signs import sign_model
from spear_np.search.columns import Columns
from tests.backends import Backend, assert_lives_on
from tests.chains import NetworkData, assert_whole, digit_network
from tests.networks import Floats
from tests.pools import frozen, pool_of

B, WIDTH, CLASSES = 24, 80, 10


def data_of(b: int = B, width: int = WIDTH, **options: Any) -> NetworkData:
    return digit_network(b, widths=(width,), **options)


def factors_of(data: NetworkData, backend: Backend = Backend.NUMPY) -> tuple[Factors, Behind]:
    """Return the factors of the hidden layer, with what the output layer passes back."""
    first, last = data.on(backend)
    behind = Behind(last, last=True)
    factors = factorize(first, backend.device)
    assert isinstance(factors, Factors)
    return replace(factors, space=with_layer_behind(factors.space, behind)), behind


def true_directions(factors: Factors, data: NetworkData) -> Floats:
    """(b, b) unit directions of the true columns of ∂L/∂Z, one a row."""
    space = factors.space
    columns = data.output_grads[0].T[to_host(space.live)] / to_host(space.noise)[to_host(space.live)][:, None]
    q = columns.T @ to_host(space.U)
    unit: Floats = q / np.linalg.norm(q, axis=1, keepdims=True)
    return unit


class TestPassed:
    def test_columns_are_what_the_output_layer_passes_back(self, backend: Backend) -> None:
        data = data_of()
        factors, _ = factors_of(data, backend)
        space = factors.space
        assert_lives_on(space.passed, backend)
        q = true_directions(factors, data)
        scale = np.linalg.norm(
            (
                data.output_grads[0].T[to_host(space.live)]
                / to_host(space.noise)[to_host(space.live)][:, None]
            ).T
            @ to_host(space.U),
            axis=1,
        )
        passed = passed_by(space, backend.array(q * scale[:, None]))
        np.testing.assert_allclose(to_host(passed), data.output_grads[1], rtol=1e-6, atol=1e-12)

    def test_mixtures_of_inputs_fit_no_gradient_of_the_output_layer(self) -> None:
        data = data_of()
        factors, _ = factors_of(data)
        q = true_directions(factors, data)
        mixed = passed_by(factors.space, q[:-1] + q[1:])
        assert mixed is not None
        assert np.all(np.isnan(mixed))

    @pytest.mark.parametrize("why", ["none", "no weight", "another width", "too wide"])
    def test_what_tells_nothing_is_left_out(self, why: str) -> None:
        data = data_of(outputs=30 if why == "too wide" else CLASSES)
        behind: Behind | None = Behind(data.layers[1], last=True)
        if why == "none":
            behind = None
        elif why == "no weight":
            behind = Behind(replace(data.layers[1], weight=None, bias=None), last=True)
        elif why == "another width":
            behind = Behind(data_of(width=WIDTH + 1).layers[1], last=True)
        factors = factorize(data.layers[0], Backend.NUMPY.device)
        assert isinstance(factors, Factors)
        space = with_layer_behind(factors.space, behind)
        assert space.passed is None
        assert passed_by(space, true_directions(factors, data)) is None


class TestUniqueness:
    def test_it_determines_directions_that_zeros_do_not(self) -> None:
        """More than half of the units are on, and fewer are off than the batch has inputs."""
        data = data_of(50, 100, share_on=0.6)
        factors, _ = factors_of(data)
        q = true_directions(factors, data)
        off = factors.space.expand(factors.space.zeros(q))
        none = np.zeros((1, 50))
        zeros = uniqueness(replace(factors.space, passed=None), q, none, off)
        tied = uniqueness(factors.space, q, none, off)
        assert np.sum(zeros.unique) < 50
        assert np.all(tied.unique)
        assert np.all(tied.redundancy >= 1)
        assert np.all(tied.with_layer_behind >= ~zeros.unique)

    def test_mixtures_are_not_held_by_it(self) -> None:
        data = data_of(50, 100, share_on=0.6)
        factors, _ = factors_of(data)
        q = true_directions(factors, data)
        mixed = q[:-1] + q[1:]
        off = factors.space.expand(factors.space.zeros(mixed))
        assert not np.any(uniqueness(factors.space, mixed, np.zeros((1, 50)), off).with_layer_behind)


class TestSearch:
    def columns(self, factors: Factors, behind: Behind) -> Columns:
        columns = Columns.prepare(factors, sign_model(factors), behind)
        assert columns is not None
        return columns

    @pytest.mark.parametrize(("missing", "missed"), [(B, 4), (10, 1), (1, 0)])
    def test_starts_end_on_columns_that_are_not_known(
        self, backend: Backend, missing: int, missed: int
    ) -> None:
        """Nothing that is found is removed from the problem here, so that some come again and again."""
        data = data_of()
        factors, behind = factors_of(data, backend)
        truth = true_directions(factors, data)
        pool = frozen(pool_of(factors, truth[missing:]))
        rng = np.random.default_rng(5)
        left = set(range(missing))
        for _ in range(15):
            proposals = self.columns(factors, behind).propose(factors.space, pool, rng)
            assert_lives_on(proposals.candidates, backend)
            assert proposals.sharp
            cosines = np.abs(to_host(proposals.candidates) @ truth.T)
            np.testing.assert_allclose(np.max(cosines, axis=1), 1, atol=1e-6)
            left -= set(np.argmax(cosines, axis=1).tolist())
        assert len(left) <= missed

    def test_candidates_have_the_zeros_of_their_inputs(self) -> None:
        data = data_of(dtype=np.float32)
        factors, behind = factors_of(data)
        truth = true_directions(factors, data)
        pool = frozen(pool_of(factors, truth[B:]))
        found = (
            self.columns(factors, behind).propose(factors.space, pool, np.random.default_rng(1)).candidates
        )
        nearest = np.argmax(np.abs(found @ truth.T), axis=1)
        live = to_host(factors.space.live)
        off = data.pre_activations[0][nearest][:, live] <= 0
        np.testing.assert_array_equal(factors.space.zeros(found), off)

    def test_weights_of_another_layer_give_nothing(self) -> None:
        data = data_of()
        factors, _ = factors_of(data)
        rng = np.random.default_rng(3)
        other = replace(data.layers[1], weight=rng.permutation(to_host(data.layers[1].weight).T).T)
        behind = Behind(other, last=True)
        factors = replace(factors, space=with_layer_behind(replace(factors.space, passed=None), behind))
        pool = frozen(pool_of(factors, np.empty((0, B))))
        for _ in range(3):
            assert not self.columns(factors, behind).propose(factors.space, pool, rng).candidates.shape[0]

    @pytest.mark.parametrize("lost", ["model", "behind", "bias_grad"])
    def test_it_needs_signs_the_layer_behind_and_scales(self, lost: str) -> None:
        data = data_of()
        factors, behind = factors_of(data)
        if lost == "bias_grad":
            factors = replace(factors, bias_grad=None)
        model = None if lost == "model" else sign_model(factors)
        assert Columns.prepare(factors, model, None if lost == "behind" else behind) is None


class TestInvert:
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_a_network_with_one_hidden_layer_gives_inputs_and_labels(self, dtype: Any) -> None:
        data = data_of(40, 100, dtype=dtype, seed=2)
        answer = spear_np.invert_chain(data.layers, loss="cross_entropy", time_limit=60)
        assert answer.labels is not None
        assert_whole(answer, data)

    def test_batches_are_found_that_leave_too_few_units_off(self) -> None:
        data = data_of(48, 96, share_on=0.6, seed=4)
        off = np.sum(data.pre_activations[0] <= 0, axis=1)
        assert np.min(off) < 47
        answer = spear_np.invert_chain(data.layers, loss="cross_entropy", time_limit=60)
        assert_whole(answer, data)
        assert any("layer behind" in caveat for caveat in answer.certificate.caveats)

    def test_another_loss_has_no_labels(self) -> None:
        data = data_of(30, 90, loss="mse", seed=6)
        answer = spear_np.invert_chain(data.layers, loss="mse", time_limit=60)
        assert answer.status is spear_np.Status.EXACT
        assert answer.labels is not None
        assert to_host(answer.labels).tolist() == [-1] * 30

    def test_wrong_weights_of_the_output_layer_change_no_answer(self) -> None:
        data = data_of(12, 120, seed=8)
        rng = np.random.default_rng(8)
        layers = data.changed(1, weight=rng.permutation(to_host(data.layers[1].weight).T).T)
        answer = spear_np.invert_chain(layers, loss="cross_entropy", time_limit=60)
        assert answer.status is spear_np.Status.EXACT
        errors, _ = data.errors(answer)
        assert np.max(errors) < 1e-4
        assert to_host(answer.labels).tolist() == [-1] * 12
