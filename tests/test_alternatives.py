"""Where single zero rows hold a direction, every other batch that the zeros allow is written down: refuted, or not exact."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spear_np import Activation, Status
from spear_np.checks import alternatives
from spear_np.checks.alternatives import ON_THE_EDGE, _fewest, _Flats
from spear_np.checks.certify import Verdict
from spear_np.factors.layer import Layer
from tests.backends import Backend
from tests.cases import case_of
from tests.hidden_batches import hidden_batch, layer_from
from tests.layers import factors_of, true_directions
from tests.networks import Floats, LayerData
from tests.promises import TOLERANCE
from tests.test_certify import failed, judged


def verdict_on(data: LayerData, inputs: Floats | None = None, backend: Backend = Backend.NUMPY) -> Verdict:
    """Return the verdict on the batch of these `inputs` (b, n), or on the true one."""
    factors = factors_of(data, backend)
    return judged(factors, true_directions(factors, data.inputs if inputs is None else inputs))[0]


def nested(rng: np.random.Generator, own: int, z: Floats | None = None) -> LayerData:
    """Return a layer of four inputs: input 1 turns on what input 0 does, in part, and `own` further units.

    Where input 0 leaves other units off, so does input 1.
    """
    z = rng.standard_normal((60, 4)) if z is None else z
    z[:, 1] = np.where(z[:, 0] > 0, z[:, 1], -np.abs(z[:, 1]))
    z[:own, :2] = [-1.0, 1.0]
    return layer_from(z, np.where(z > 0, rng.standard_normal(z.shape), 0), rng)


class TestOneDoubtfulDirection:
    """All others being certain, so is its input, and the units that it leaves off determine it."""

    @pytest.mark.parametrize("seed", range(4))
    def test_a_single_unit_is_enough_to_tell_two_inputs_apart(self, backend: Backend, seed: int) -> None:
        verdict = verdict_on(nested(np.random.default_rng([seed, 1]), own=1), backend=backend)
        assert verdict.certificate.redundancy[0] == 0
        assert min(verdict.certificate.redundancy[1:]) > 0
        assert verdict.status is Status.EXACT, str(verdict.certificate)
        assert verdict.certificate["alternatives"].value == 0
        assert any("single units" in caveat for caveat in verdict.certificate.caveats)

    def test_no_unit_is_not(self) -> None:
        verdict = verdict_on(nested(np.random.default_rng(2), own=0))
        assert {"unique_directions", "alternatives"} <= failed(verdict)

    def test_two_units_need_no_argument(self) -> None:
        verdict = verdict_on(nested(np.random.default_rng(3), own=3))
        assert verdict.status is Status.EXACT
        assert min(verdict.certificate.redundancy) > 0
        assert not any("single units" in caveat for caveat in verdict.certificate.caveats)

    def test_the_bound_counts_the_noise_of_that_unit(self) -> None:
        """The fainter the gradient on it, the less of the other input it excludes."""
        bounds = []
        for size in (1.0, 1e-3, 1e-6, 1e-12):
            data = nested(np.random.default_rng(4), own=1)
            output_grad = data.output_grad.copy()
            output_grad[0, 1] *= size
            faint = replace(data, weight_grad=output_grad @ data.inputs, bias_grad=output_grad.sum(axis=1))
            bounds.append(max(verdict_on(faint).certificate.error_bound))
        assert bounds[0] < bounds[1] < bounds[2] < bounds[3] == math.inf

    def test_without_bias_grad_nothing_is_refuted(self) -> None:
        data = nested(np.random.default_rng(5), own=1)
        factors = factors_of(data, Backend.NUMPY, bias_grad=None)
        verdict, _ = judged(factors, true_directions(factors, data.inputs))
        assert "alternatives" in failed(verdict)

    def test_a_unit_whose_sign_is_in_doubt_tells_nothing(self) -> None:
        rng = np.random.default_rng(6)
        z = rng.standard_normal((60, 4))
        data = nested(rng, own=1, z=z)
        weight = data.weight.copy()
        # Input 0 leaves the unit off by less than the error that `exact` allows.
        weight[0] += (1 - 1e-7) * np.linalg.pinv(data.inputs)[:, 0]
        assert verdict_on(replace(data, weight=weight)).status is not Status.EXACT


class TestTwoDoubtfulDirections:
    """Each of two inputs has one unit of its own: both may hide between where both units are on."""

    @pytest.mark.parametrize(("near", "exact"), [(0.2, False), (0.45, False), (0.55, True), (0.8, True)])
    def test_the_order_in_which_their_units_change_sides_decides(
        self, backend: Backend, near: float, exact: bool
    ) -> None:
        rng = np.random.default_rng(7)
        z = rng.standard_normal((60, 4))
        z[:, 1] = np.abs(z[:, 1]) * np.sign(z[:, 0])
        # On the way from input 0 to input 1 unit 0 turns on at `near`, and unit 1 turns off at one minus that.
        z[0, :2], z[1, :2] = [-near, 1 - near], [1 - near, -near]
        data = layer_from(z, np.where(z > 0, rng.standard_normal(z.shape), 0), rng)
        verdict = verdict_on(data, backend=backend)
        assert verdict.certificate.redundancy[:2] == (0, 0)
        assert verdict.certificate["unique_directions"].value == 1
        assert (verdict.status is Status.EXACT) == exact
        assert (verdict.certificate["alternatives"].value == 0) == exact

    def test_columns_that_depend_on_each_other_refute_nothing(self) -> None:
        """As behind a single output: where both inputs turn a unit on, their gradients have one ratio."""
        rng = np.random.default_rng(17)
        z = rng.standard_normal((60, 4))
        z[:, 1] = np.abs(z[:, 1]) * np.sign(z[:, 0])
        z[0, :2], z[1, :2] = [-0.8, 0.2], [0.2, -0.8]
        output_grad = rng.standard_normal(z.shape)
        assert verdict_on(layer_from(z, np.where(z > 0, output_grad, 0), rng)).status is Status.EXACT
        output_grad[:, 1] = 2 * output_grad[:, 0]
        verdict = verdict_on(layer_from(z, np.where(z > 0, output_grad, 0), rng))
        assert "alternatives" in failed(verdict)
        assert verdict.status is not Status.EXACT


class TestBatchesThatHide:
    """Two batches that fit as well: the zeros of one are by design, and nothing that is shared tells."""

    @pytest.mark.parametrize("together", [2, 3])
    @pytest.mark.parametrize("seed", range(8))
    def test_neither_is_exact(self, together: int, seed: int) -> None:
        hidden = hidden_batch(np.random.default_rng([seed, together]), together)
        wrong, true = verdict_on(hidden.data, hidden.others), verdict_on(hidden.data)
        spread = np.ptp(hidden.data.inputs)
        assert np.max(np.abs(hidden.data.inputs - hidden.others)) > TOLERANCE * spread
        # Whatever else is checked holds.
        assert wrong.certificate["unique_directions"].value == 1
        assert set(wrong.certificate.sign_agreement) == {1.0}
        assert wrong.certificate["alternatives"].value == together
        assert wrong.status is not Status.EXACT
        assert true.status is not Status.EXACT

    @pytest.mark.parametrize("together", [2, 3])
    def test_the_solver_calls_none_exact(self, together: int) -> None:
        for seed in range(3):
            data = hidden_batch(np.random.default_rng([seed, together]), together).data
            assert case_of("hidden", data).invert(max_proposals=500).status is not Status.EXACT

    def test_they_would_be_if_each_direction_were_looked_at_alone(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The attack is one: with half of the argument it succeeds."""

        def alone(_found: object, _flats: object, off: Floats, _spared: object, doubtful: Floats) -> Floats:
            return off[doubtful]

        monkeypatch.setattr(alternatives, "_zeros_of_alternatives", alone)
        verdicts = []
        for seed in range(8):
            hidden = hidden_batch(np.random.default_rng([seed, 2]), 2)
            verdicts.append(verdict_on(hidden.data, hidden.others).status is Status.EXACT)
        assert sum(verdicts) > 4


class TestCellsOfALine:
    @settings(max_examples=60, deadline=None)
    @given(seed=st.integers(0, 10_000), t=st.floats(-20, 20), name=st.sampled_from(["relu", "relu6"]))
    def test_what_is_off_at_any_point_includes_what_is_off_on_a_border(
        self, seed: int, t: float, name: str
    ) -> None:
        rng = np.random.default_rng(seed)
        z, doubt = 4 * rng.standard_normal((12, 2)), 0.4 * rng.random((12, 2))
        layer = Layer(z, np.ones(12), np.zeros(12), Activation(name))
        rows = rng.random(12) < 0.8
        borders = _Flats(layer, z, doubt).off_between(0, 1, rows)
        assert not np.any(borders[:, ~rows])
        shares = np.asarray([1 - t, t])
        off = layer.states(z @ shares, doubt @ np.abs(shares))[1]
        assert np.any(np.all(off | ~borders, axis=1))
        # Nothing but the unit that changes is given away: the inputs themselves are among the points.
        for index in range(2):
            own = layer.states(z[:, index], doubt[:, index] * (1 + ON_THE_EDGE))[1] & rows
            assert np.any(np.all(borders == own, axis=1))

    def test_the_fewest_zeros_leave_the_most(self) -> None:
        masks = np.asarray([[1, 1, 0], [1, 0, 0], [0, 1, 1], [1, 1, 1], [1, 0, 0]], dtype=bool)
        assert sorted(_fewest(masks).tolist()) == sorted([[True, False, False], [False, True, True]])
