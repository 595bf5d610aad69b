"""What an answer rests on is said with it, and the marks of alterations that keep zeros, rank and residuals are seen."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import spear_np
from benchmarks.alterations import drawn, invert, judged
from benchmarks.families import FAMILIES, Shared, mean_free, orthogonalised
from spear_np import Premise, Status
from spear_np.checks.agreement import Agreement
from spear_np.checks.hidden import room_for_hidden
from spear_np.checks.premises import sign_resolution
from spear_np.checks.specification import MIN_MISSING_CHANCE, missing_chance
from tests.backends import values_of
from tests.chains import digit_network, network_of
from tests.layers import digit_layer
from tests.networks import LayerData, digit_batch

LIMIT: dict[str, Any] = {"max_proposals": 12_000, "time_limit": 20.0}


def solved(data: LayerData, **changes: Any) -> spear_np.Inversion:
    names = ("weight_grad", "bias_grad", "weight", "bias")
    return spear_np.invert(**({name: getattr(data, name) for name in names} | changes), **LIMIT)


def premises(result: spear_np.Inversion) -> list[str]:
    return [premise.name for premise in result.certificate.rests_on]


def uniform_layer(b: int = 4, *, seed: int = 1, m: int = 100, n: int = 64) -> LayerData:
    """A layer whose inputs have neither zeros nor few bits."""
    rng = np.random.default_rng(seed)
    x = rng.random((b, n)).astype(np.float32)
    weight = (rng.uniform(-1, 1, (m, n)) / np.sqrt(n)).astype(np.float32)
    bias = (rng.uniform(-1, 1, m) / np.sqrt(n)).astype(np.float32)
    d = np.where(x @ weight.T + bias > 0, rng.standard_normal((b, m)), 0).astype(np.float32)
    return LayerData(d.T @ x, d.sum(axis=0), weight, bias, x, d.T.copy())


class TestWhatIsSaid:
    def test_the_line_that_says_exact_says_what_it_rests_on(self) -> None:
        result = solved(uniform_layer())
        assert result.status is Status.EXACT
        assert result.claim == "exact if plain gradient, none alike"
        assert "if  plain gradient: weight_grad and bias_grad are the plain gradient" in str(
            result.certificate
        )

    def test_of_a_single_input_it_says_that_nothing_else_speaks_for_it(self) -> None:
        result = solved(uniform_layer(1))
        assert result.claim == "exact if plain gradient of one input, none alike"
        assert result.certificate.rests_on[0].meaning.endswith("and no other input does")

    def test_bounds_of_any_other_status_rest_on_it_too(self) -> None:
        result = solved(uniform_layer(), weight=None, bias=None)
        said = "approximate if plain gradient, none alike, none hidden between"
        assert (result.status, result.claim) == (Status.APPROXIMATE, said)
        assert replace(result, status=Status.PARTIAL).claim == said.replace("approximate", "partial")
        assert replace(result, status=Status.FAILED).claim == "failed"
        assert premises(result) == ["plain gradient", "none alike", "none hidden between"]
        assert "no activation signs test it" in result.certificate.rests_on[0].meaning

    def test_premises_become_plain_data(self) -> None:
        certificate = spear_np.Certificate(rests_on=(Premise("a", "b"),))
        assert certificate.as_dict()["rests_on"] == [{"name": "a", "meaning": "b"}]


class TestBits:
    @pytest.mark.parametrize("bits", [4, 8, 11])
    def test_rounded_inputs_are_those_that_the_layer_saw(self, bits: int) -> None:
        rng = np.random.default_rng(bits)
        data = uniform_layer(seed=bits)
        mantissa, exponent = np.frexp(data.inputs.astype(np.float64))
        seen = np.ldexp(np.rint(mantissa * 2.0**bits) / 2.0**bits, exponent)
        d = np.where(seen @ data.weight.T + data.bias > 0, rng.standard_normal((4, 100)), 0)
        result = solved(
            data, weight_grad=(d.T @ seen).astype(np.float32), bias_grad=d.sum(axis=0).astype(np.float32)
        )
        assert result.claim == f"exact if plain gradient, none alike, seen with {bits} bits"

    def test_noise_leaves_no_bits_to_see(self) -> None:
        data = digit_layer(4, width=100, seed=3)
        assert "seen with 4 bits" in premises(solved(data))
        noise = (
            3e-2 * np.std(data.weight_grad) * np.random.default_rng(3).standard_normal(data.weight_grad.shape)
        )
        noisy = solved(data, weight_grad=(data.weight_grad + noise).astype(np.float32))
        assert noisy.found == 4
        assert "seen with 4 bits" not in premises(noisy)


def test_features_without_gradient_are_counted() -> None:
    data = uniform_layer()
    gone = data.weight_grad.copy()
    gone[:, :3] = 0
    weight = data.weight.copy()
    weight[:, :3] *= 1e-4  # too faint for the signs
    changed = replace(data, weight=weight)
    d = np.where(data.inputs @ weight.T + data.bias > 0, 1.0, 0) * np.random.default_rng(5).standard_normal(
        (4, 100)
    )
    gone = d.T @ np.where(np.arange(64) < 3, 0, data.inputs)
    result = solved(changed, weight_grad=gone, bias_grad=d.sum(axis=0))
    assert result.claim == "exact if plain gradient, none alike, 3 features zero"
    # Without weights they belong to no input at all.
    weight[:, :3] = 0
    assert (
        solved(changed, weight_grad=gone, bias_grad=d.sum(axis=0), weight=weight).claim
        == "exact if plain gradient, none alike"
    )


class TestMarks:
    @pytest.mark.parametrize(
        ("name", "change"),
        [
            ("feature_mean", mean_free),
            ("singular_values", lambda g: orthogonalised(np.random.default_rng(0), g)),
            ("column_norms", lambda g: g / np.linalg.norm(g, axis=0)),
        ],
    )
    def test_what_an_alteration_leaves_costs_the_word_and_the_bounds(self, name: str, change: Any) -> None:
        """Without W no sign objects."""
        data = uniform_layer(3, seed=8)
        assert solved(data).certificate[name].passed
        product = data.output_grad.astype(np.float64) @ data.inputs
        altered = solved(data, weight_grad=change(product).astype(np.float32), weight=None, bias=None)
        assert altered.certificate[name].passed is False
        assert altered.status is Status.APPROXIMATE
        assert np.all(np.isinf(altered.certificate.error_bound))
        assert "nothing bounds the errors" in repr(altered)

    def test_one_input_may_have_entries_of_one_size(self) -> None:
        data = uniform_layer(1, seed=9)
        x = np.sign(data.inputs - 0.5).astype(np.float32)
        d = np.where(x @ data.weight.T + data.bias > 0, data.output_grad.T + 1, 0).astype(np.float32)
        result = solved(data, weight_grad=d.T @ x, bias_grad=d.sum(axis=0))
        assert result.status is Status.EXACT


class TestHidden:
    """x_3 between x_1 and x_2 may hide if it is off wherever one of them is."""

    def test_between_two(self) -> None:
        z = np.array([[1.0, 1.0], [0.1, -1.0], [-1.0, 0.1]])
        assert room_for_hidden(z) == (0, 1)
        # The middle is on in the second unit now, and so is all that is off in the third.
        assert room_for_hidden(np.array([[1.0, 1.0], [1.0, -0.1], [-0.1, 1.0]])) is None

    def test_on_the_line_beyond_one_that_turns_on_less(self) -> None:
        assert room_for_hidden(np.array([[1.0, 1.0], [-1.0, 1.0]])) == (0, 1)

    def test_among_three_where_no_two_leave_room(self) -> None:
        z = np.array(
            [
                [1.0, 1, 1],
                [0.2, 0.2, -1],
                [0.2, -1, 0.2],
                [-1, 0.2, 0.2],
                [1.5, -1, -1],
                [-1, 1.5, -1],
                [-1, -1, 1.5],
            ]
        )
        assert room_for_hidden(z[:, :2]) is None
        assert room_for_hidden(z) is not None

    def test_one_input_has_no_others(self) -> None:
        assert room_for_hidden(np.ones((5, 1))) is None

    def test_it_agrees_with_a_search(self) -> None:
        """Against points on a grid of combinations of three inputs."""
        ends = np.linspace(-4, 5, 181)
        first, second = (values.ravel() for values in np.meshgrid(ends, ends))
        shares = np.stack([first, second, 1 - first - second])
        told = []
        for seed in range(40):
            z = np.random.default_rng(seed).standard_normal((10, 3))
            found = False
            for group in ([0, 1], [0, 2], [1, 2], [0, 1, 2]):
                others = np.setdiff1d(np.arange(3), group)
                some = shares[:, np.all(np.abs(shares[others]) < 1e-9, axis=0)]
                bound = ~np.all(z[:, group] > 0, axis=1)
                found |= bool(np.any(np.all(z[bound] @ some < -1e-9, axis=0)))
            told.append((found, room_for_hidden(z) is not None))
        # The grid may miss what is narrower than its steps, or beyond its ends; and not all that is not excluded is there.
        assert all(there or not seen for seen, there in told)
        assert 2 * sum(seen for seen, _ in told) > sum(there for _, there in told)
        assert not all(there for _, there in told)

    def test_an_answer_says_whether_there_is_room(self) -> None:
        hidden = invert(drawn("between two others", 1), **LIMIT)
        assert hidden.status is Status.EXACT
        assert "none hidden between" in hidden.claim
        free = solved(uniform_layer())
        assert "none hidden between" not in free.claim
        assert any(
            "there is no room for one among these inputs" in caveat for caveat in free.certificate.caveats
        )


class TestSigns:
    def test_their_resolution_is_that_of_a_random_error(self) -> None:
        rng = np.random.default_rng(3)
        z = rng.standard_normal((400, 5))
        size = sign_resolution(z)
        turned = np.mean(
            [np.sum((z > 0) != (z + size * rng.standard_normal(z.shape) > 0)) for _ in range(400)]
        )
        assert turned == pytest.approx(3, rel=0.1)

    def test_few_of_them_resolve_nothing(self) -> None:
        assert sign_resolution(np.full((3, 1), 5.0)) == 1.0

    @pytest.mark.parametrize(
        ("missing", "expected", "holds"), [(0, 0.0, True), (1, 0.0, True), (3, 0.0, False), (3, 2.0, True)]
    )
    def test_gradients_may_be_missing_as_far_as_noise_hides_them(
        self, missing: int, expected: float, holds: bool
    ) -> None:
        nothing = np.zeros(1)
        signs = Agreement(*(nothing,) * 6, np.array([missing]), np.array([expected]), nothing, nothing)
        assert (missing_chance(signs) >= MIN_MISSING_CHANCE) is holds


class TestFamilies:
    @pytest.mark.parametrize("name", FAMILIES)
    def test_no_line_says_more_than_is_so(self, name: str) -> None:
        for seed in (1, 2):
            update = drawn(name, seed)
            row = judged(invert(update, max_proposals=3000, time_limit=20), update)
            assert not row["unstated"], row["what"]
            assert not row["unstated_beyond"], row["what"]

    @pytest.mark.parametrize(
        ("name", "seed"),
        [
            ("one input a mean of two others", 5040),  # a direction of two inputs, bounded as one's
            ("two local steps", 5069),
            ("stale weights", 5071),
            ("weights after the step", 5092),
        ],
    )
    def test_rows_are_within_bounds_that_once_broke(self, name: str, seed: int) -> None:
        update = drawn(name, seed)
        answer = invert(update, max_proposals=3000, time_limit=20)
        assert not judged(answer, update)["unstated_beyond"]
        named = [premise.name for premise in answer.certificate.rests_on]
        assert ("layer as given" in named) is (answer.status is Status.PARTIAL)

    def test_the_judge_sees_a_wrong_row_and_a_missing_one(self) -> None:
        update = drawn("plain", 1)
        answer = invert(update, **LIMIT)
        assert answer.status is Status.EXACT
        assert not judged(answer, update)["wrong"]
        moved = replace(update, inputs=update.inputs + 1e-3, seen=update.seen + 1e-3)
        assert judged(answer, moved)["unstated"]
        assert judged(answer, moved)["unstated_beyond"] == answer.found
        more = np.concatenate([update.seen, update.seen[:1] / 2])
        assert judged(answer, replace(update, inputs=more, seen=more))["unstated"]
        # What it states excuses it only if that is not so.
        assert not judged(answer, replace(moved, plain=False))["unstated"]
        assert judged(answer, replace(moved, plain=False))["wrong"]

    def test_a_seed_makes_the_same_update_whatever_families_there_are(self) -> None:
        one, other = (drawn("Adafactor", 3).layers[0] for _ in range(2))
        assert isinstance(one, Shared)
        np.testing.assert_array_equal(one.weight_grad, other.weight_grad)


class TestChains:
    """The layer behind sees what one layer cannot."""

    @pytest.mark.parametrize("name", ["all columns scaled by 1e-3", "weight_grad 0.1 % too large"])
    def test_it_contradicts_altered_features(self, name: str) -> None:
        update = drawn(name, 1)
        assert invert(update, **LIMIT).status is Status.EXACT
        answer = invert(update, chain=True, max_proposals=3000, time_limit=2)
        assert answer.status is not Status.EXACT

    @pytest.mark.parametrize("seed", [6005, 6010])
    def test_a_mean_that_the_layer_took_away_is_said_to_be_missing(self, seed: int) -> None:
        update = drawn("weight standardisation", seed)
        answer = invert(update, chain=True, **LIMIT)
        assert answer.status is Status.EXACT
        assert "inputs without mean" in answer.claim
        assert judged(answer, update)["wrong"]
        assert not judged(answer, update)["unstated"]

    @pytest.mark.parametrize("seed", [8010, 8013])
    def test_the_noise_of_the_basis_is_in_the_bound_of_a_single_input(self, seed: int) -> None:
        update = drawn("plain, one input", seed)
        row = judged(invert(update, chain=True, **LIMIT), update)
        assert row["rows"] == 1
        assert not row["beyond"], row["what"]

    def test_an_answer_that_it_bears_out_rests_on_the_links(self) -> None:
        update = drawn("plain", 1)
        answer = invert(update, chain=True, **LIMIT)
        assert answer.status is Status.EXACT
        assert answer.claim == "exact if layers linked"
        alone = invert(update, chain=True, method="descent", **LIMIT)
        assert (alone.status, alone.claim) == (Status.EXACT, "exact if layers linked")
        assert alone.certificate["membership"].passed
        assert alone.chain == ()

    @pytest.mark.parametrize("method", ["auto", "chain", "descent"])
    def test_noise_in_it_is_no_proof_of_the_first(self, method: str) -> None:
        """Features that were scaled by a thousandth, and a layer behind too noisy to see it."""
        data = digit_network(5, activation="relu", gain=2.0)
        rng = np.random.default_rng(0)
        first, second, *rest = data.layers
        G = values_of(second.weight_grad)
        first = replace(
            first, weight_grad=values_of(first.weight_grad) * (1 + 1e-3 * rng.standard_normal(64))
        )
        second = replace(second, weight_grad=G + 0.01 * np.std(G) * rng.standard_normal(G.shape))
        answer = spear_np.invert_chain([first, second, *rest], method=method, **LIMIT)
        assert answer.status is not Status.EXACT or "plain gradient" in answer.claim

    def test_inputs_without_mean_are_certified_where_the_layers_behind_see_them(self) -> None:
        """As behind a layer normalisation without parameters: one layer alone cannot tell them from centred gradients."""
        inputs, labels = digit_batch(5, seed=0)
        centred = inputs - inputs.mean(axis=1, keepdims=True)
        data = network_of(centred, labels, widths=(80, 60), activation="gelu", gain=2.0)
        assert spear_np.invert_chain(data.layers, **LIMIT).status is Status.EXACT

    def test_it_shows_an_input_that_hides_in_the_first(self) -> None:
        update = drawn("between two others", 3)
        answer = invert(update, chain=True, method="descent", **LIMIT)
        assert answer.status is Status.APPROXIMATE
        assert "the layer behind shows 3 inputs at least, this one 2" in answer.reason
