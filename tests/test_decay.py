"""Weight decay told from the update: how well λ is fitted, when it is not, and what comes back without it."""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import spear_np
from spear_np import InputError, LayerGradients, Status, WeightDecay
from spear_np.backend.devices import CPU
from spear_np.backend.host import to_host
from spear_np.factors import gradients as gradients_module
from spear_np.factors.decay import without_decay
from spear_np.factors.factorize import Factors, factorize
from spear_np.factors.gradients import NO_DECAY
from tests.backends import Backend
from tests.chains import assert_whole, digit_network
from tests.layers import digit_layer
from tests.networks import Floats, LayerData

DECAYS = (1e-4, 5e-4, 1e-2)


def trained(data: LayerData, seed: int = 0) -> LayerData:
    """Return the layer with weights as training leaves them, its inputs and gradients as they are: a few strong directions."""
    rng = np.random.default_rng(seed)
    m, n = data.weight.shape
    strong = rng.standard_normal((m, 12)) * np.geomspace(1, 1e-2, 12) @ rng.standard_normal((12, n))
    return replace(data, weight=(data.weight + 0.1 * strong / np.sqrt(n)).astype(np.float32))


def decayed(data: LayerData, decay: float, bias_decay: float | None = None) -> LayerData:
    """Return what a client shares whose loss holds L2 of the weights, in float32."""
    both = decay if bias_decay is None else bias_decay
    return replace(
        data,
        weight_grad=(data.weight_grad + np.float32(decay) * data.weight).astype(np.float32),
        bias_grad=(data.bias_grad + np.float32(both) * data.bias).astype(np.float32),
    )


def weights_delta(data: LayerData, decay: float, rate: float) -> LayerData:
    """Return the update that two float32 models around a step show: rounded at the size of the weights."""
    held = decayed(data, decay)
    changed = {}
    for name, before in (("weight_grad", data.weight), ("bias_grad", data.bias)):
        after = before - np.float32(rate) * getattr(held, name)
        changed[name] = (before - after).astype(np.float64) / rate
    return replace(data, **changed)


def layer_of(data: LayerData, **changes: Any) -> LayerGradients:
    return Backend.NUMPY.gradients(data, **changes)


def worst_error(result: spear_np.Inversion, inputs: Floats) -> float:
    """Largest error of the recovered rows against the true input next to each, all of which must be there."""
    rows = to_host(result.inputs)
    errors = np.abs(rows[:, None, :] - inputs[None]).max(axis=2)
    assert sorted(errors.argmin(axis=0)) == list(range(len(rows)))
    assert np.all(errors.min(axis=1) <= result.certificate.error_bound)
    return float(errors.min(axis=0).max())


class TestFit:
    @pytest.mark.parametrize("decay", DECAYS)
    @pytest.mark.parametrize("make", [lambda data: data, trained], ids=["fresh", "trained"])
    def test_the_multiple_is_found(self, decay: float, make: Any, backend: Backend) -> None:
        data = decayed(make(digit_layer(8, width=90, seed=31)), decay)
        found = without_decay(backend.gradients(data), backend.device)
        assert isinstance(found.factors, Factors)
        assert found.factors.space.batch_size == 8
        assert found.factors.gradients is found.gradients
        own = found.gradients.decay
        assert abs(own.weight - np.float32(decay)) <= 6 * own.deviation
        assert own.deviation < 1e-3 * decay
        assert own.bias == own.weight
        assert found.factors.space.relative_noise < 1e-5

    @pytest.mark.parametrize("rate", [0.1, 0.01])
    @pytest.mark.parametrize("decay", DECAYS)
    def test_it_is_found_in_the_difference_of_two_models(self, decay: float, rate: float) -> None:
        data = weights_delta(trained(digit_layer(8, width=90, seed=32)), decay, rate)
        own = without_decay(layer_of(data), CPU).gradients.decay
        assert abs(own.weight - decay) <= 6 * own.deviation < 0.01 * decay

    @settings(max_examples=30)
    @given(
        seed=st.integers(0, 10**6),
        exponent=st.floats(-5, 0),
        negative=st.booleans(),
        b=st.integers(1, 12),
    )
    def test_it_is_found_whatever_its_size_and_sign(
        self, seed: int, exponent: float, negative: bool, b: int
    ) -> None:
        decay = float(np.float32(10.0**exponent * (-1 if negative else 1)))
        own = without_decay(
            layer_of(decayed(digit_layer(b, width=40, seed=seed), decay)), CPU
        ).gradients.decay
        assert own.weight != 0
        assert abs(own.weight - decay) <= 8 * own.deviation

    def test_more_inputs_than_features_of_a_narrow_layer(self) -> None:
        rng = np.random.default_rng(33)
        gradient = rng.standard_normal((300, 5)) @ rng.standard_normal((5, 40))
        weight = rng.standard_normal((300, 40))
        layer = LayerGradients((gradient + 0.01 * weight).astype(np.float32), weight=weight)
        assert without_decay(layer, CPU).gradients.decay.weight == pytest.approx(0.01, rel=1e-4)

    def test_a_layer_too_large_for_its_eigenvalues(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("spear_np.factors.decay.SKETCH", 40)
        own = without_decay(layer_of(decayed(trained(digit_layer(8, width=90, seed=34)), 1e-3)), CPU)
        assert own.gradients.decay.weight == pytest.approx(1e-3, rel=1e-4)

    def test_it_stands_out_where_no_rank_shows(self) -> None:
        rng = np.random.default_rng(39)
        left, right = (np.linalg.qr(rng.standard_normal((size, 64)))[0] for size in (90, 64))
        weight = rng.standard_normal((90, 64))
        layer = LayerGradients(left * np.geomspace(1, 1e-8, 64) @ right.T + 0.01 * weight, weight=weight)
        found = without_decay(layer, CPU)
        assert found.gradients.decay.weight == pytest.approx(0.01, rel=1e-3)
        result = spear_np.invert_layer(layer, time_limit=0)
        assert "weight decay was taken out first" in result.reason

    def test_it_is_read_by_blocks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        layer = layer_of(decayed(trained(digit_layer(8, width=90, seed=35)), 1e-3))
        whole = without_decay(layer, CPU).gradients.decay.weight
        widths: list[int] = []

        class OnDisk:
            shape, dtype = layer.weight_grad.shape, layer.weight_grad.dtype

            def __init__(self, values: Any) -> None:
                self._values = values

            def __getitem__(self, key: Any) -> Floats:
                block: Floats = self._values[key]
                widths.append(block.shape[1])
                return block

        monkeypatch.setattr(gradients_module, "BLOCK_BYTES", 8 * 90 * 10)
        stored = replace(layer, weight_grad=OnDisk(layer.weight_grad), weight=OnDisk(layer.weight))
        assert without_decay(stored, CPU).gradients.decay.weight == pytest.approx(whole, rel=1e-6)
        assert max(widths) == 10

    @pytest.mark.parametrize(("bias_decay", "shown"), [(0.0, "not of the biases"), (0.01, "and biases")])
    def test_whether_biases_decay_is_told(self, bias_decay: float, shown: str) -> None:
        own = without_decay(layer_of(decayed(digit_layer(8, width=90, seed=36), 0.01, bias_decay)), CPU)
        assert own.gradients.decay.bias == pytest.approx(bias_decay, rel=1e-4)
        assert shown in str(own.gradients.decay)

    def test_biases_with_a_decay_of_their_own(self) -> None:
        own = without_decay(layer_of(decayed(digit_layer(8, width=90, seed=37), 0.01, 0.05)), CPU)
        assert own.gradients.decay.bias == pytest.approx(0.05, rel=1e-3)

    def test_a_decay_that_is_stated_is_taken_out_and_checked(self) -> None:
        data = decayed(digit_layer(8, width=90, seed=38), 5e-4)
        for stated in (5e-4, 1e-2, -1e-2):
            layer = layer_of(data, decay=WeightDecay(stated, stated))
            assert without_decay(layer, CPU).gradients.decay.weight == pytest.approx(5e-4, rel=1e-4)
        plain = layer_of(digit_layer(8, width=90, seed=38), decay=WeightDecay(1e-2, 1e-2))
        assert without_decay(plain, CPU).gradients.decay == NO_DECAY

    def test_a_decay_stated_of_the_biases_alone_is_settled_too(self) -> None:
        data = decayed(digit_layer(8, width=90, seed=38), 0.0, 0.05)
        found = without_decay(layer_of(data, decay=WeightDecay(1e-2, 1e-2)), CPU)
        assert found.gradients.decay.weight == 0
        assert found.gradients.decay.bias == pytest.approx(0.05, rel=1e-3)

    @pytest.mark.parametrize("held", [0.0, 5e-4])
    def test_the_gradients_are_those_of_the_factors(self, held: float) -> None:
        data = decayed(digit_layer(8, width=90, seed=38), held)
        for stated in (WeightDecay(1e-2, 1e-2), NO_DECAY):
            found = without_decay(layer_of(data, decay=stated), CPU)
            assert isinstance(found.factors, Factors)
            assert found.factors.gradients.decay == found.gradients.decay
            layer = layer_of(data, decay=stated)
            answer = spear_np.invert_layer(layer)
            survey = spear_np.survey(layer)
            assert survey.decay == answer.gradients.decay == found.gradients.decay
            assert ("weight decay was taken out" in answer.reason) == bool(held)

    def test_without_weights_it_cannot_be_stated(self) -> None:
        with pytest.raises(InputError, match="`weight` is missing"):
            layer_of(digit_layer(8, width=90, seed=38), weight=None, decay=WeightDecay(1e-2, 0.0))
        with pytest.raises(InputError, match="not a finite number"):
            layer_of(digit_layer(8, width=90, seed=38), decay=WeightDecay(np.nan, 0.0))


class TestNoEvidence:
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    @pytest.mark.parametrize("make", [lambda data: data, trained], ids=["fresh", "trained"])
    def test_a_plain_gradient_is_read_as_it_is_to_the_last_bit(self, dtype: Any, make: Any) -> None:
        layer = layer_of(make(digit_layer(8, width=90, seed=41, dtype=dtype)))
        found, plain = without_decay(layer, CPU), factorize(layer, CPU)
        assert found.gradients is layer
        assert found.gradients.decay == NO_DECAY
        assert isinstance(found.factors, Factors)
        assert isinstance(plain, Factors)
        for name in ("U", "S", "noise", "to_basis"):
            assert np.array_equal(getattr(found.factors.space, name), getattr(plain.space, name))

    @pytest.mark.parametrize("shape", [(30, 60), (40, 40), (60, 30), (10, 200)])
    @pytest.mark.parametrize("seed", range(5))
    def test_a_gradient_of_full_rank_holds_none(self, shape: tuple[int, int], seed: int) -> None:
        rng = np.random.default_rng([seed, 42])
        layer = LayerGradients(rng.standard_normal(shape), weight=rng.standard_normal(shape))
        assert without_decay(layer, CPU).gradients.decay == NO_DECAY

    @pytest.mark.parametrize("rank", [37, 38, 39])
    def test_an_eigenvalue_of_a_square_layer_is_no_decay(self, rank: int) -> None:
        # Some multiple of W always lowers the rank of a square matrix by one.
        rng = np.random.default_rng(43)
        gradient = rng.standard_normal((40, rank)) @ rng.standard_normal((rank, 40))
        layer = LayerGradients(gradient, weight=rng.standard_normal((40, 40)))
        assert without_decay(layer, CPU).gradients.decay == NO_DECAY

    def test_faint_inputs_that_point_along_the_weights_are_none(self) -> None:
        rng = np.random.default_rng(44)
        data = trained(digit_layer(8, width=90, seed=44))
        left, values, right = np.linalg.svd(data.weight, full_matrices=False)
        faint = 1e-4 * (left[:, :6] * values[:6]) @ right[:6]
        noise = 1e-7 * rng.standard_normal(faint.shape)
        layer = layer_of(replace(data, weight_grad=data.weight_grad.astype(float) + faint + noise))
        assert without_decay(layer, CPU).gradients.decay == NO_DECAY

    def test_noise_that_is_larger_than_what_decays_is_left_to_itself(self) -> None:
        data = digit_layer(8, width=90, seed=45)
        noise = np.random.default_rng(45).standard_normal(data.weight.shape) * 1e-3 * data.weight.std()
        held = data.weight_grad + noise + 5e-4 * data.weight
        assert without_decay(layer_of(replace(data, weight_grad=held)), CPU).gradients.decay == NO_DECAY


class TestInversion:
    @pytest.mark.parametrize("decay", DECAYS)
    def test_inputs_come_back_within_their_bounds(self, decay: float) -> None:
        data = weights_delta(digit_layer(8, width=120, seed=51), decay, 0.1)
        result = spear_np.invert_layer(layer_of(data))
        assert result.status in (Status.EXACT, Status.APPROXIMATE)
        assert worst_error(result, data.inputs) < 1e-4
        assert f"weight decay was taken out first: {result.gradients.decay}" in result.reason
        assert any("as weight decay leaves it" in caveat for caveat in result.certificate.caveats)

    def test_a_decay_that_is_known_can_be_said(self) -> None:
        data = decayed(digit_layer(8, width=120, seed=52), 5e-4)
        arrays = {name: getattr(data, name) for name in ("bias_grad", "weight", "bias")}
        result = spear_np.invert(data.weight_grad, **arrays, weight_decay=5e-4)
        assert result.status is Status.EXACT
        assert result.gradients.decay == WeightDecay(5e-4, 5e-4)
        assert worst_error(result, data.inputs) < 1e-4

    def test_what_is_not_known_of_the_multiple_widens_the_bounds(self) -> None:
        data = decayed(digit_layer(8, width=120, seed=53), 5e-4)
        sure, unsure = (
            factorize(layer_of(data, decay=WeightDecay(5e-4, 5e-4, deviation)), CPU)
            for deviation in (0.0, 1e-6)
        )
        assert isinstance(sure, Factors)
        assert isinstance(unsure, Factors)
        extra = np.sqrt(unsure.space.noise**2 - sure.space.noise**2)
        assert extra == pytest.approx(1e-6 * np.linalg.norm(data.weight, axis=1), rel=1e-3)

    def test_claims_are_checked_against_what_is_left(self) -> None:
        data = decayed(digit_layer(8, width=120, seed=54), 5e-4)
        answer = spear_np.check(layer_of(data), data.inputs)
        assert answer.status is Status.EXACT
        assert f"weight decay was taken out first: {answer.gradients.decay}" in answer.reason
        assert any("as weight decay leaves it" in caveat for caveat in answer.certificate.caveats)

    def test_what_was_stated_is_said_where_no_claim_can_be_checked(self) -> None:
        rng = np.random.default_rng(57)
        layer = LayerGradients(
            rng.standard_normal((30, 60)), weight=rng.standard_normal((30, 60)), decay=WeightDecay(0.01, 0.01)
        )
        answer = spear_np.check(layer, rng.standard_normal((3, 60)))
        assert answer.status is Status.FAILED
        assert "weight decay was taken out first: 0.01 times" in answer.reason

    def test_a_layer_too_small_to_tell_does_not_speak_against_decay(self) -> None:
        rng = np.random.default_rng(58)
        for m, said in (
            (4, "as small as this one cannot tell it"),
            (40, "no multiple of the weights explains it"),
        ):
            layer = LayerGradients(rng.standard_normal((m, 60)), weight=rng.standard_normal((m, 60)))
            assert said in spear_np.invert_layer(layer, time_limit=0).reason

    def test_a_first_look_that_is_cut_short_says_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        layer = layer_of(digit_layer(8, width=90, seed=59))
        assert spear_np.survey(layer).zeros_seen is True
        module = importlib.import_module("spear_np.survey")  # the function has the same name
        monkeypatch.setattr(module, "TRIAL_SECONDS", 0.0)
        cut = spear_np.survey(layer)
        assert (cut.zeros_seen, cut.problem) == (None, None)

    def test_a_survey_is_of_what_is_left(self) -> None:
        data = decayed(trained(digit_layer(8, width=90, seed=55)), 5e-4)
        found = spear_np.survey(layer_of(data))
        assert (found.batch_size, found.decay) == (8, spear_np.weight_decay(layer_of(data)))
        assert found.decay.weight == pytest.approx(5e-4, rel=1e-4)

    def test_without_weights_it_is_named(self) -> None:
        held = digit_layer(8, width=90, seed=56)
        grown = replace(held, weight=held.weight * np.geomspace(1, 100, 64, dtype=np.float32))
        result = spear_np.invert_layer(layer_of(decayed(grown, 1e-2), weight=None, bias=None))
        assert result.status is Status.FAILED
        assert "weight decay does that too, and can be taken out where `weight` is given" in result.reason


class TestChains:
    @staticmethod
    def layers(count: int, *, decay: float = 5e-4, decaying: int = 9) -> tuple[Any, list[LayerGradients]]:
        """A GELU network of 60 units and the gradients of its layers, the first `decaying` of which hold `decay` W."""
        data = digit_network(8, seed=61, activation="gelu", dtype=np.float32, widths=(60,) * (count - 1))
        held = [
            replace(
                one,
                weight_grad=to_host(one.weight_grad) + np.float32(decay) * to_host(one.weight),
                bias_grad=to_host(one.bias_grad) + np.float32(decay) * to_host(one.bias),
            )
            if number < decaying
            else one
            for number, one in enumerate(data.layers)
        ]
        return data, held

    def test_all_layers_lose_the_same(self) -> None:
        data, layers = self.layers(4)
        found = [without_decay(one, CPU).gradients.decay for one in layers[:3]]
        assert [one.weight for one in found] == pytest.approx([5e-4] * 3, rel=1e-4)
        answer = spear_np.invert_chain(layers)
        assert_whole(answer, data)
        assert "weight decay was taken out first" in answer.reason

    def test_a_layer_that_does_not_decay_is_left_alone(self) -> None:
        _, layers = self.layers(4, decaying=1)
        first = without_decay(layers[0], CPU).gradients.decay
        for one in layers[1:3]:
            assert without_decay(one, CPU, elsewhere=first).gradients.decay == NO_DECAY

    def test_a_layer_that_cannot_tell_takes_the_decay_of_the_others(self) -> None:
        _, layers = self.layers(3)
        first = without_decay(layers[0], CPU).gradients.decay
        last = without_decay(layers[2], CPU, elsewhere=first)
        assert last.gradients.decay.weight == pytest.approx(5e-4, rel=1e-3)
        alone = without_decay(layers[2], CPU)
        assert alone.gradients.decay == NO_DECAY or alone.gradients.decay.deviation > 1e-7

    @pytest.mark.parametrize("classes", [3, 4])
    def test_an_output_layer_of_few_classes_does_not_end_the_chain(self, classes: int) -> None:
        rng = np.random.default_rng(62)
        output_grad = rng.standard_normal((classes, 8))
        output_grad -= output_grad.mean(axis=0)  # as behind softmax: of one rank less than there are classes
        weight = rng.standard_normal((classes, 60))
        gradient = output_grad @ rng.random((8, 60))
        both, held = WeightDecay(5e-4, 5e-4), gradient + 5e-4 * weight
        for update, decay in ((held, both), (gradient, NO_DECAY)):
            layer = LayerGradients(update, np.zeros(classes), weight, np.zeros(classes))
            found = without_decay(layer, CPU, elsewhere=both)
            assert isinstance(found.factors, Factors)
            assert found.factors.space.batch_size == classes - 1
            assert found.gradients.decay.weight == decay.weight
        assert not without_decay(LayerGradients(held, weight=weight), CPU).gradients.decay.present
