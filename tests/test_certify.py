"""What `exact` means: the certificate, its checks, and attacks on them with the truth in hand."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import spear_np
from spear_np import Certificate, Check, Status
from spear_np.answer.certificate import Evidence
from spear_np.backend.host import to_host
from spear_np.checks.certify import ROW_TOLERANCE, Verdict, certify, verdict_of
from spear_np.checks.specification import EXACT_TOLERANCE
from spear_np.directions.disaggregate import disaggregate
from spear_np.directions.uniqueness import Uniqueness, uniqueness
from spear_np.factors.factorize import Factors, factorize
from spear_np.inputs.bounds import noise_bound
from spear_np.inputs.reconstruct import reconstruct
from tests.backends import Backend
from tests.cases import Case, case_of, pick_digits, random_case
from tests.layers import digit_layer, factors_of, layer_data_of, layer_with_patterns, true_directions
from tests.networks import Floats, LayerData
from tests.promises import TOLERANCE, broken_promises, truth_of
from tests.test_factorize import factors_of_size, noisy, rounded, underflowing

B, WIDTH = 5, 100
SUPPORTED = Evidence(True, True, True, True, True, True)
"""What speaks for an input that nothing speaks against."""


def judged(factors: Factors, q: Floats) -> tuple[Verdict, Floats]:
    """Return the verdict on a complete choice of directions, and the inputs (b, n) it leads to."""
    choice = disaggregate(factors, factors.space.device.float64(q))
    batch = reconstruct(factors, choice)
    weight_grad = to_host(factors.gradients.weight_grad).astype(np.float64)
    return certify(factors, choice, batch), to_host(batch.recovery) @ weight_grad


def verdict_on_truth(data: LayerData, backend: Backend = Backend.NUMPY, **changes: Any) -> Verdict:
    """Return the verdict on the true directions of `data`, with some of what is shared changed."""
    factors = factors_of(data, backend, **changes)
    return judged(factors, true_directions(factors, data.inputs))[0]


def failed(verdict: Verdict) -> set[str]:
    return {check.name for check in verdict.certificate.checks if check.passed is False}


class TestTheTruthPasses:
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    @pytest.mark.parametrize("b", [1, 2, 5, 12])
    def test_it_is_certified_as_exact(self, backend: Backend, b: int, dtype: Any) -> None:
        data = digit_layer(b, width=WIDTH, seed=160, dtype=dtype)
        factors = factors_of(data, backend)
        verdict, inputs = judged(factors, true_directions(factors, data.inputs))
        assert verdict.status is Status.EXACT, str(verdict.certificate)
        assert verdict.certificate.holds
        assert verdict.complete
        assert verdict.checked_signs
        errors = np.max(np.abs(inputs - data.inputs), axis=1)
        assert np.all(errors <= verdict.certificate.error_bound)
        assert np.all(np.asarray(verdict.certificate.error_bound) < 1e-5)
        assert verdict.certificate.sign_agreement == (1.0,) * b
        live = backend.host(factors.space.live)
        zeros = np.sum(data.output_grad[live] == 0, axis=0)
        assert verdict.certificate.zero_count == tuple(zeros)

    @pytest.mark.parametrize("active", [0.2, 0.8])
    def test_few_or_many_active_units_do_not_matter(self, active: float) -> None:
        rng = np.random.default_rng(161)
        data = layer_data_of(pick_digits(4, rng), rng, width=WIDTH, active=active)
        assert verdict_on_truth(data).status is Status.EXACT

    @pytest.mark.parametrize("level", [1e-6, 1e-5, 1e-4, 1e-3])
    def test_noise_widens_the_bounds_and_they_hold(self, level: float) -> None:
        data = digit_layer(B, width=WIDTH, seed=162, dtype=np.float64)
        shared = noisy(data, level)
        factors = factors_of(shared, Backend.NUMPY)
        verdict, inputs = judged(factors, true_directions(factors, data.inputs))
        errors = np.max(np.abs(inputs - data.inputs), axis=1)
        bounds = np.asarray(verdict.certificate.error_bound)
        assert np.all(errors <= bounds)
        assert np.all((level < bounds) & (bounds < 1000 * level))
        assert (verdict.status is Status.EXACT) == bool(np.max(bounds) <= TOLERANCE * np.ptp(inputs))


class TestWhatIsMissing:
    def test_without_weight_it_is_approximate(self, backend: Backend) -> None:
        verdict = verdict_on_truth(digit_layer(B, width=WIDTH, seed=163), backend, weight=None, bias=None)
        assert verdict.status is Status.APPROXIMATE
        assert verdict.reason == "all inputs found, but without weight exactness cannot be certified"
        assert verdict.certificate["sign_agreement"].passed is None
        assert all(math.isnan(share) for share in verdict.certificate.sign_agreement)
        assert not verdict.checked_signs
        assert any("signs could not be checked" in caveat for caveat in verdict.certificate.caveats)

    def test_without_bias_grad_it_is_approximate(self, backend: Backend) -> None:
        verdict = verdict_on_truth(digit_layer(B, width=WIDTH, seed=164), backend, bias_grad=None)
        assert verdict.status is Status.APPROXIMATE
        assert "without bias_grad" in verdict.reason
        assert verdict.certificate["bias_residual"].passed is None
        assert verdict.certificate["error_bound"].passed is None
        assert any("up to its scale only" in caveat for caveat in verdict.certificate.caveats)

    def test_without_either_both_are_named(self) -> None:
        data = digit_layer(B, width=WIDTH, seed=165)
        verdict = verdict_on_truth(data, bias_grad=None, weight=None, bias=None)
        assert verdict.status is Status.APPROXIMATE
        assert "without weight and bias_grad" in verdict.reason

    def test_that_small_numbers_of_float16_add_no_inputs_is_said(self) -> None:
        data = digit_layer(B, width=WIDTH, seed=167, dtype=np.float64)
        certificate = verdict_on_truth(underflowing(data)[1]).certificate
        assert certificate["rank"].passed
        assert any("float16" in caveat and "6.0e-08 apart" in caveat for caveat in certificate.caveats)
        assert not any("float16" in caveat for caveat in verdict_on_truth(data).certificate.caveats)

    def test_a_missing_bias_is_said_to_count_as_zero(self) -> None:
        data = digit_layer(B, width=WIDTH, seed=166)
        verdict = verdict_on_truth(data, bias=None)
        assert any("bias is missing and was taken for zero" in c for c in verdict.certificate.caveats)

    def test_the_scale_of_bias_grad_is_a_caveat(self) -> None:
        caveats = verdict_on_truth(digit_layer(B, width=WIDTH, seed=187)).certificate.caveats
        assert any("scale that bias_grad gives" in caveat for caveat in caveats)

    def test_merged_inputs_are_a_caveat_of_every_certificate(self) -> None:
        verdict = verdict_on_truth(digit_layer(B, width=WIDTH, seed=167))
        assert any("identical inputs count once" in caveat for caveat in verdict.certificate.caveats)


class TestWhatDoesNotFit:
    """Each change breaks the check that is there to catch it."""

    @pytest.mark.parametrize(
        ("name", "change", "checks"),
        [
            ("bias", "permute", {"contradictions"}),
            ("weight", "permute", {"contradictions", "sign_agreement"}),
            ("bias_grad", "permute", {"bias_residual", "contradictions"}),
            ("bias_grad", "double", {"contradictions"}),
            ("weight_grad", "one row", {"weight_residual"}),
        ],
    )
    @pytest.mark.parametrize("seed", [168, 169])
    def test_it_is_caught(self, name: str, change: str, checks: set[str], seed: int) -> None:
        data = digit_layer(B, width=150, seed=seed)
        rng = np.random.default_rng(seed)
        factors = factors_of(data, Backend.NUMPY)
        truth = true_directions(factors, data.inputs)
        value = getattr(data, name)
        changes: dict[str, Callable[[], Any]] = {
            "permute": lambda: rng.permutation(value),
            "double": lambda: 2 * value,
            "one row": lambda: np.where(
                np.arange(len(value))[:, None] == factors.space.live[7], 2 * value, value
            ),
        }
        changed = changes[change]()
        if name == "weight_grad":
            # The factors are those of the true matrix; the pass over the data meets another row.
            layer = replace(factors.gradients, weight_grad=changed)
            verdict, _ = judged(replace(factors, gradients=layer), truth)
        else:
            verdict, _ = judged(factors_of(data, Backend.NUMPY, **{name: changed}), truth)
        assert verdict.status is not Status.EXACT
        assert checks <= failed(verdict), str(verdict.certificate)

    @pytest.mark.parametrize("forced", [B - 1, B + 1])
    def test_a_wrong_batch_size_is_no_exact_batch(self, forced: int) -> None:
        data = digit_layer(B, width=WIDTH, seed=170)
        factors = factors_of_size(data, Backend.NUMPY, forced)
        truth = true_directions(factors_of(data, Backend.NUMPY), data.inputs)
        rng = np.random.default_rng(170)
        for _ in range(10):
            q = rng.standard_normal((forced, forced))
            q[: min(B, forced), : min(B, forced)] += 0 * truth[: min(B, forced), : min(B, forced)]
            verdict, _ = judged(factors, q)
            assert verdict.status is not Status.EXACT
            assert any(f"the batch size {forced} was given" in c for c in verdict.certificate.caveats)

    def test_a_faint_input_that_is_left_out_is_not_forgotten(self) -> None:
        # Well below the others, but far above the noise: a batch size that leaves it out contradicts the data.
        data = digit_layer(B, width=WIDTH, seed=171, dtype=np.float64)
        output_grad = data.output_grad * np.asarray([1.0] * (B - 1) + [1e-7])
        data = replace(
            data,
            output_grad=output_grad,
            weight_grad=output_grad @ data.inputs,
            bias_grad=output_grad.sum(axis=1),
        )
        assert factors_of(data, Backend.NUMPY).space.batch_size == B
        factors = factors_of_size(data, Backend.NUMPY, B - 1)
        verdict, _ = judged(factors, true_directions(factors, data.inputs[:-1]))
        assert verdict.status is not Status.EXACT

    @pytest.mark.parametrize("precision", ["float16", "bfloat16"])
    def test_half_precision_is_never_exact_to_a_grey_level(self, precision: str) -> None:
        data = rounded(digit_layer(B, width=WIDTH, seed=172, dtype=np.float64), precision)
        factors = factors_of(data, Backend.NUMPY, precision=precision)
        verdict, inputs = judged(factors, true_directions(factors, data.inputs))
        assert verdict.status is not Status.EXACT
        assert "error_bound" in failed(verdict)
        errors = np.max(np.abs(inputs - data.inputs), axis=1)
        assert np.all(errors <= verdict.certificate.error_bound)


def wrong_choices(factors: Factors, truth: Floats, rng: np.random.Generator, count: int) -> list[Floats]:
    """Return complete choices of directions of which one or two are mixtures that annul rows of their own."""
    products = to_host(factors.space.U) @ truth.T
    large = np.abs(products) / np.max(np.abs(products), axis=0)
    choices = []
    for _ in range(count):
        q = truth.copy()
        for _ in range(int(rng.integers(1, 3))):
            mixed, other = rng.choice(len(q), 2, replace=False)
            row = rng.integers(len(products))
            if min(large[row, mixed], large[row, other]) > 1e-3:
                q[mixed] = q[mixed] - products[row, mixed] / products[row, other] * truth[other]
        if not np.array_equal(q, truth) and np.linalg.cond(q / to_host(factors.space.S)) < 1e9:
            choices.append(q)
    return choices


def attackable(case: Case | None) -> tuple[Factors, Floats] | None:
    """Return factors and true directions of a case whose directions can be told from the truth."""
    if case is None:
        return None
    layer = {k: v for k, v in case.arguments.items() if k != "batch_size"}
    factors = factorize(spear_np.LayerGradients(**layer), Backend.NUMPY.device)
    inputs = case.truth.inputs
    if not isinstance(factors, Factors) or factors.space.batch_size != len(inputs) or len(inputs) < 2:
        return None
    V = layer["weight_grad"].astype(np.float64).T @ to_host(factors.space.to_basis)
    if np.linalg.cond(inputs @ V) > 1e6:
        return None
    return factors, true_directions(factors, inputs)


def attack(seeds: range, choices: int) -> tuple[int, list[str]]:
    """Put wrong choices before the certificate; returns how many and what it wrongly vouched for."""
    tried, fooled = 0, []
    for seed in seeds:
        case = random_case(seed, tamper=False)
        target = attackable(case)
        if case is None or target is None:
            continue
        factors, directions = target
        truth = case.truth
        for q in wrong_choices(factors, directions, np.random.default_rng(seed), choices):
            verdict, inputs = judged(factors, q)
            tried += 1
            met = [truth.distance(row)[0] for row in inputs]
            if verdict.status is Status.EXACT and max(met) > TOLERANCE * truth.range:
                fooled.append(f"{case.name}: exact, off by {max(met) / truth.range:.1e} of the range")
            for error, bound, sound in zip(
                met, verdict.certificate.error_bound, verdict.accepted_rows, strict=True
            ):
                if sound and error > bound:
                    fooled.append(f"{case.name}: {verdict.status}, error {error:.1e}, bound {bound:.1e}")
    return tried, fooled


class TestAttacks:
    """The certificate is shown plausible wrong choices: mixtures that annul some rows by construction."""

    def test_a_mixture_is_never_vouched_for(self) -> None:
        tried, fooled = attack(range(60), 12)
        assert tried > 150
        assert not fooled

    @pytest.mark.slow
    @pytest.mark.parametrize("block", range(10))
    def test_many_mixtures_are_never_vouched_for(self, block: int) -> None:
        tried, fooled = attack(range(1000 + 150 * block, 1150 + 150 * block), 40)
        assert tried > 1000
        assert not fooled

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_a_row_that_a_mixture_was_made_to_annul_is_indispensable(self, dtype: Any) -> None:
        tried, fooled = 0, []
        for seed in range(120):
            rng = np.random.default_rng([seed, 5])
            b, width = int(rng.integers(2, 5)), int(rng.integers(8, 40))
            data = layer_data_of(pick_digits(b, rng), rng, width=width, dtype=dtype)
            target = attackable(case_of(f"seed {seed}", data))
            if target is None:
                continue
            factors, truth = target
            for q in wrong_choices(factors, truth, rng, 4):
                (wrong,) = np.nonzero(np.any(q != truth, axis=1))
                zeros = np.asarray(factors.space.zeros(q))
                found = uniqueness(factors.space, q, q, factors.space.expand(zeros))
                for index in wrong:
                    tried += 1
                    if found.unique[index] and found.redundancy[index] > 0:
                        fooled.append((seed, b, width, int(zeros[index].sum())))
        assert tried > 200
        assert not fooled

    @pytest.mark.parametrize("seed", range(173, 179))
    def test_nested_inputs_are_not_unique(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        active = rng.random((80, 4)) < 0.5
        active[:, 1] = active[:, 0] & (rng.random(80) < 0.7)
        data = layer_with_patterns(active, rng)
        factors = factors_of(data, Backend.NUMPY)
        truth = true_directions(factors, data.inputs)
        verdict, _ = judged(factors, truth)
        # Where input 0 is off, input 1 is off too: any share of it may hide in the direction of input 0.
        assert verdict.status is not Status.EXACT
        assert {"unique_directions", "alternatives"} <= failed(verdict)
        assert not verdict.accepted_rows[0]

    def test_an_input_that_turns_every_unit_on_is_not_unique(self) -> None:
        rng = np.random.default_rng(179)
        active = rng.random((60, 3)) < 0.5
        active[:, 0] = True
        data = layer_with_patterns(active, rng)
        factors = factors_of(data, Backend.NUMPY)
        verdict, _ = judged(factors, true_directions(factors, data.inputs))
        assert verdict.status is not Status.EXACT
        assert not verdict.accepted_rows[0]
        assert verdict.certificate.redundancy[0] == 0

    def test_exactly_enough_zero_rows_are_enough_if_all_other_directions_are_certain(self) -> None:
        # Any direction can be given b - 1 zero rows, but not where an input that the others determine is on.
        rng = np.random.default_rng(180)
        active = rng.random((40, 4)) < 0.5
        active[:, 0] = True
        active[:3, 0] = False
        active[:3, 1:] = True
        data = layer_with_patterns(active, rng)
        factors = factors_of(data, Backend.NUMPY)
        verdict, _ = judged(factors, true_directions(factors, data.inputs))
        assert verdict.certificate.zero_count[0] == 3
        assert verdict.certificate.redundancy[0] == 0
        assert min(verdict.certificate.redundancy[1:]) > 0
        assert verdict.status is Status.EXACT

    def test_a_sum_of_inputs_in_one_region_is_not_taken_for_one_of_several(self) -> None:
        rng = np.random.default_rng(181)
        data = layer_data_of(pick_digits(3, rng), rng, width=30, outputs=1, loss="squares")
        target = attackable(case_of("one output", data))
        assert target is not None
        factors, truth = target
        choices = wrong_choices(factors, truth, rng, 200)
        assert len(choices) > 50
        assert all(judged(factors, q)[0].status is not Status.EXACT for q in choices)


class TestBounds:
    def test_what_zero_rows_do_not_hold_makes_the_bound_infinite(self) -> None:
        data = digit_layer(3, width=60, seed=182)
        factors = factors_of(data, Backend.NUMPY)
        batch = reconstruct(factors, disaggregate(factors, true_directions(factors, data.inputs)))
        mixing = np.full((3, 3), 1e-20)
        mixing[0, 1] = np.inf
        unique = Uniqueness(
            np.ones(3, dtype=bool), np.ones(3, dtype=np.int64), mixing, np.zeros(3, dtype=bool)
        )
        bound = noise_bound(factors.space, batch.recovery, to_host(batch.input_max), np.zeros(3), unique)
        assert np.isinf(bound).tolist() == [True, False, False]

    def test_bounds_grow_with_what_is_left_of_weight_grad(self) -> None:
        data = digit_layer(B, width=WIDTH, seed=184)
        factors = factors_of(data, Backend.NUMPY)
        choice = disaggregate(factors, true_directions(factors, data.inputs))
        batch = reconstruct(factors, choice)
        bounds = np.asarray(certify(factors, choice, batch).certificate.error_bound)
        worse = certify(factors, choice, replace(batch, residual=20 * np.ones_like(batch.residual)))
        np.testing.assert_allclose(worse.certificate.error_bound, 20 * bounds, rtol=0.2)

    def test_bounds_allow_for_noise_in_few_entries(self) -> None:
        data = digit_layer(3, width=60, seed=186)
        factors = factors_of(data, Backend.NUMPY)
        batch = reconstruct(factors, disaggregate(factors, true_directions(factors, data.inputs)))
        unique = Uniqueness(
            np.ones(3, dtype=bool), np.ones(3, dtype=np.int64), np.zeros((3, 3)), np.zeros(3, dtype=bool)
        )
        arguments = (factors.space, batch.recovery, to_host(batch.input_max), np.zeros(3), unique)
        usual = noise_bound(*arguments)
        np.testing.assert_array_equal(noise_bound(*arguments, largest=np.zeros(60)), usual)
        spike = np.zeros(60)
        spike[int(factors.space.live[0])] = 50 * float(factors.space.noise[factors.space.live[0]])
        expected = np.abs(batch.recovery[:, int(factors.space.live[0])]) * spike[int(factors.space.live[0])]
        assert np.all(noise_bound(*arguments, largest=spike) >= expected)

    @pytest.mark.parametrize("seed", range(8))
    def test_two_units_are_too_few_to_tell_noise_from_a_second_input(self, seed: int) -> None:
        """Nearly proportional columns: the second singular value is small, but nothing below it shows any noise."""
        rng = np.random.default_rng(seed)
        inputs = rng.random((2, 500))
        output_grad = np.zeros((11, 2))
        output_grad[[2, 7], 0] = rng.standard_normal(2)
        output_grad[:, 1] = output_grad[:, 0] * (1 + 1e-5 * rng.standard_normal(11))
        weight = rng.standard_normal((11, 500))
        bias = np.where(output_grad[:, 0] != 0, 500.0, -500.0)
        result = spear_np.invert(output_grad @ inputs, output_grad.sum(axis=1), weight=weight, bias=bias)
        assert result.status is Status.FAILED, result.reason

    def test_no_other_reading_is_exact_below_the_rank_that_rounding_shows(self) -> None:
        data = digit_layer(6, width=100, seed=171)
        step = np.max(np.abs(data.weight_grad)) / 2**9
        levels = (np.rint(data.weight_grad / step) * step).astype(np.float32)
        factors = factorize(
            Backend.NUMPY.gradients(data, weight_grad=levels), Backend.NUMPY.device, reading=1
        )
        assert isinstance(factors, Factors)
        assert factors.space.batch_size == 6 < factors.space.spectrum.rank_at_least
        verdict = judged(factors, true_directions(factors, data.inputs))[0]
        assert "rank" in failed(verdict)

    @pytest.mark.parametrize("fact", ["unique", "within_bound", "signs_decided", "signs_agree"])
    @pytest.mark.parametrize(
        ("wrong", "status"), [(0, Status.APPROXIMATE), (2, Status.PARTIAL), (3, Status.FAILED)]
    )
    @pytest.mark.parametrize("missing", ["weight", "bias_grad"])
    def test_only_inputs_that_their_own_evidence_supports_count_as_found(
        self, missing: str, wrong: int, status: Status, fact: str
    ) -> None:
        changes = {missing: None} | ({"bias": None} if missing == "weight" else {})
        factors = factors_of(digit_layer(3, width=60, seed=183), Backend.NUMPY, **changes)
        checks = (Check("gap", 9.0, ">=", 3.0, ""), Check("bias_residual", None, "<=", 100.0, ""))
        doubted = replace(SUPPORTED, **{fact: False})
        evidence = (doubted,) * wrong + (SUPPORTED,) * (3 - wrong)
        verdict = verdict_of(Certificate(checks, evidence=evidence), factors)
        assert verdict.status is status
        assert verdict.accepted_rows.tolist() == [False] * wrong + [True] * (3 - wrong)
        found = "all inputs found" if not wrong else f"{3 - wrong} of 3 inputs pass the checks of their own"
        assert verdict.reason.startswith(found)
        assert verdict.reason.endswith(f"without {missing} exactness cannot be certified")


class TestWithoutWeight:
    """Nothing but zeros tells: a row is handed out only if they determine it and bound its error."""

    def test_an_input_that_turns_every_unit_on_is_not_handed_out(self) -> None:
        rng = np.random.default_rng(179)
        active = rng.random((60, 3)) < 0.5
        active[:, 0] = True
        data = layer_with_patterns(active, rng)
        factors = factors_of(data, Backend.NUMPY, weight=None, bias=None)
        verdict, _ = judged(factors, true_directions(factors, data.inputs))
        row = verdict.certificate.evidence[0]
        assert not row.accepted
        assert not row.unique
        assert verdict.status in (Status.PARTIAL, Status.FAILED)
        assert "inputs pass the checks of their own" in verdict.reason

    @pytest.mark.parametrize("seed", range(184, 190))
    def test_rows_that_are_handed_out_are_inputs(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        active = rng.random((60, 4)) < 0.5
        active[:, 1] |= rng.random(60) < 0.8
        data = layer_with_patterns(active, rng)
        result = spear_np.invert(data.weight_grad, data.bias_grad, max_proposals=20_000)
        assert broken_promises(result, truth_of(data, 1e-9)) == []
        assert all(row.accepted for row in result.certificate.evidence)
        assert np.all(np.isfinite(result.certificate.error_bound))
        assert (result.status is Status.APPROXIMATE) == (result.found == 4)

    def test_a_batch_of_which_nothing_is_accepted_says_why(self) -> None:
        # Where input 0 is off, input 1 is off too, and the other way round: zeros tell neither from a mixture.
        rng = np.random.default_rng(190)
        active = np.repeat(rng.random((60, 1)) < 0.5, 2, axis=1)
        data = layer_with_patterns(active, rng)
        result = spear_np.invert(data.weight_grad, data.bias_grad, max_proposals=20_000)
        assert (result.status, result.found) == (Status.FAILED, 0)
        assert "0 of 2" in result.reason


class TestTheCertificateAsData:
    CHECKS = (
        Check("sign_agreement", 1.0, ">=", 0.99, "λ"),
        Check("contradictions", 2.0, "<=", 0.0, "units that contradict"),
        Check("bias_residual", None, "<=", 100.0, "what is left"),
    )

    @pytest.mark.parametrize(
        ("value", "relation", "threshold", "passed"),
        [
            (1.0, "<=", 1.0, True),
            (1.1, "<=", 1.0, False),
            (1.0, ">=", 1.0, True),
            (0.9, ">=", 1.0, False),
            (math.inf, ">=", 3.0, True),
            (math.inf, "<=", 3.0, False),
            (math.nan, "<=", 3.0, False),
            (math.nan, ">=", 3.0, False),
            (None, "<=", 3.0, None),
        ],
    )
    def test_a_check_holds_its_figure_against_its_threshold(
        self, value: float | None, relation: Any, threshold: float, passed: bool | None
    ) -> None:
        assert Check("x", value, relation, threshold, "").passed is passed

    def test_it_holds_only_if_every_check_was_made_and_passed(self) -> None:
        good, bad, missing = self.CHECKS
        assert Certificate((good, good)).holds
        assert not Certificate((good, bad)).holds
        assert not Certificate((good, missing)).holds
        assert not Certificate().holds

    def test_checks_are_found_by_name(self) -> None:
        assert Certificate(self.CHECKS)["contradictions"] is self.CHECKS[1]
        with pytest.raises(KeyError, match="nothing"):
            Certificate(self.CHECKS)["nothing"]

    def test_it_prints_as_a_table(self) -> None:
        lines = str(Certificate(self.CHECKS, caveats=("one thing",))).splitlines()
        assert [line[:2] for line in lines] == ["ok", "NO", "--", " *"]
        assert (
            len({line.index(relation) for line, relation in zip(lines, (">=", "<=", "<="), strict=False)})
            == 1
        )
        assert "missing" in lines[2]
        assert lines[3].endswith("one thing")

    def test_it_becomes_plain_data(self) -> None:
        certificate = Certificate(self.CHECKS, (3,), (2,), (1.0,), (1e-9,), (1e-6,), ("one thing",))
        data = json.loads(json.dumps(certificate.as_dict()))
        assert [check["passed"] for check in data["checks"]] == [True, False, None]
        assert data["checks"][0]["threshold"] == 0.99
        assert (data["zero_count"], data["redundancy"], data["caveats"]) == ([3], [2], ["one thing"])

    def test_some_rows_can_be_taken(self) -> None:
        certificate = Certificate(
            self.CHECKS, (3, 4, 5), (1, 2, 3), (1.0, 0.5, 0.2), (0.5, 0, 1), (0.1, 0.2, 0.3)
        )
        few = certificate.only([2, 0])
        assert (few.zero_count, few.redundancy) == ((5, 3), (3, 1))
        assert (few.sign_agreement, few.error_bound) == ((0.2, 1.0), (0.3, 0.1))
        assert few.false_probability == (1, 0.5)
        assert few.checks == certificate.checks

    def test_the_thresholds_are_what_the_documents_say(self) -> None:
        verdict = verdict_on_truth(digit_layer(B, width=WIDTH, seed=185))
        assert EXACT_TOLERANCE == TOLERANCE
        assert EXACT_TOLERANCE < ROW_TOLERANCE
        thresholds = {check.name: check.threshold for check in verdict.certificate.checks}
        assert thresholds["error_bound"] == EXACT_TOLERANCE
        assert thresholds["contradictions"] == 0


class TestPrinting:
    def test_an_answer_prints_as_a_summary(self) -> None:
        data = digit_layer(6, width=100, seed=192)
        result = spear_np.invert(data.weight_grad, data.bias_grad, weight=data.weight, bias=data.bias)
        text = repr(result)
        assert text.startswith(
            "<Inversion exact if plain gradient, none alike, seen with 4 bits, 15 features zero: 6 of 6"
        )
        assert "every check of the certificate holds" in text
        assert len(text) < 400
        assert text.count("\n") == 3
        assert repr(spear_np.invert(np.ones((3, 2)))).count("\n") == 2

    def test_answers_compare_without_an_error(self) -> None:
        data = digit_layer(3, width=60, seed=193)
        one, other = (spear_np.invert(data.weight_grad, data.bias_grad, weight=data.weight) for _ in range(2))
        assert one == one  # noqa: PLR0124
        assert one != other

    def test_the_certificate_shows_how_many_inputs_have_each_piece_of_evidence(self) -> None:
        data = digit_layer(4, width=80, seed=194)
        lines = str(spear_np.invert(data.weight_grad, data.bias_grad).certificate).splitlines()
        assert "ok  inputs: unique, 4 of 4" in lines
        assert "--  inputs: signs agree could not be looked at" in lines
        doubted = Certificate(evidence=(SUPPORTED, replace(SUPPORTED, spare_rows=False)))
        assert "NO  inputs: spare rows, 1 of 2" in str(doubted).splitlines()
