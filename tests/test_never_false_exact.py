"""`exact` is a promise: every attempt here tries to make the solver break it, with the truth in hand.

The rule, checked by `promises.broken_promises`: rows that are called exact are distinct true inputs within 1e-4 of
the data range and within their own error bounds, and none is missing; and whatever the status, no row is further
from the truth than its bound says. Inputs that the gradient itself cannot tell apart count as one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.linalg import hadamard

from spear_np import Status
from tests.altered import altered_case
from tests.awkward import AWKWARD, check, tiny_case
from tests.cases import case_of, random_case
from tests.layers import digit_layer, layer_data_of
from tests.networks import LayerData, digit_batch, digits, relu_network_gradients
from tests.promises import broken_promises, truth_of


class TestTheJudge:
    """A judge that acquits everybody proves nothing."""

    @pytest.fixture
    def solved(self) -> tuple[Any, LayerData]:
        data = digit_layer(4, width=80, seed=190)
        result = case_of("plain", data).invert()
        assert result.status is Status.EXACT
        return result, data

    def test_an_honest_answer_passes(self, solved: Any) -> None:
        result, data = solved
        assert broken_promises(result, truth_of(data, 1e-9)) == []

    def test_a_wrong_row_is_seen(self, solved: Any) -> None:
        result, data = solved
        recovery = result.recovery.copy()
        recovery[1] += 1e-3 * recovery[0]
        broken = broken_promises(replace(result, recovery=recovery), truth_of(data, 1e-9))
        assert any("rows are off by" in text for text in broken)
        assert any("exact: an error of" in text for text in broken)

    def test_a_bound_that_is_too_small_is_seen(self, solved: Any) -> None:
        result, data = solved
        certificate = replace(result.certificate, error_bound=(1e-12,) * 4)
        for status in (Status.EXACT, Status.PARTIAL, Status.APPROXIMATE):
            doubtful = replace(result, status=status, certificate=certificate)
            assert len(broken_promises(doubtful, truth_of(data, 1e-9))) == 4

    def test_a_repeated_row_is_seen(self, solved: Any) -> None:
        result, data = solved
        recovery = result.recovery[[0, 1, 1, 3]]
        broken = broken_promises(replace(result, recovery=recovery), truth_of(data, 1e-9))
        assert "exact, but two rows are the same input" in broken

    def test_a_missing_row_is_seen(self, solved: Any) -> None:
        result, data = solved
        fewer = replace(
            result,
            found=3,
            recovery=result.recovery[:3],
            output_grad=result.output_grad[:, :3],
            certificate=result.certificate.only([0, 1, 2]),
        )
        assert broken_promises(fewer, truth_of(data, 1e-9)) == ["exact, but 1 inputs are missing"]

    def test_a_certificate_that_does_not_hold_is_seen(self, solved: Any) -> None:
        result, data = solved
        checks = (replace(result.certificate.checks[0], value=0.5), *result.certificate.checks[1:])
        doubtful = replace(result, certificate=replace(result.certificate, checks=checks))
        assert broken_promises(doubtful, truth_of(data, 1e-9)) == ["exact, but the certificate does not hold"]

    def test_only_what_no_gradient_can_show_is_forgiven(self) -> None:
        inputs, labels = digit_batch(3, seed=191)
        apart = relu_network_gradients(inputs, labels, width=60, seed=191)
        assert len(truth_of(apart, 1e-9).groups) == 3
        inputs = inputs.copy()
        inputs[1] = inputs[0]
        assert len(truth_of(relu_network_gradients(inputs, labels, width=60, seed=191), 1e-9).groups) == 2
        # One pixel by a millionth: the difference of the two gradients drowns in float32, their mean remains.
        inputs[1, 20] += 1e-6
        merged = truth_of(relu_network_gradients(inputs, labels, width=60, seed=191), 1e-9)
        assert sorted(len(group) for group in merged.groups) == [1, 2]
        inputs[1] = 0
        assert len(truth_of(relu_network_gradients(inputs, labels, width=60, seed=191), 1e-9).groups) == 2


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_layers_break_no_promise(name: str, seed: int) -> None:
    assert check(AWKWARD[name](np.random.default_rng([seed, 192]))) is None


@pytest.mark.parametrize("seed", [300_080, 300_163])
@pytest.mark.parametrize("name", ["one pixel differs by a sixteenth", "one pixel differs by a thousandth"])
def test_two_nearly_equal_inputs_are_never_taken_for_their_mean(name: str, seed: int) -> None:
    """What tells them apart is a small singular value of its own, no noise."""
    assert check(AWKWARD[name](np.random.default_rng([seed, 192]))) is None


def test_a_row_that_decides_a_fit_is_no_evidence() -> None:
    assert check(AWKWARD["nearly all units off"](np.random.default_rng([500_487, 192]))) is None


@pytest.mark.parametrize("level", [1e-6, 1e-5, 1e-4, 1e-3, 1e-2])
def test_noise_breaks_no_promise(level: float) -> None:
    rng = np.random.default_rng(193)
    data = digit_layer(4, width=100, seed=193, dtype=np.float64)
    shared = {}
    for name in ("weight_grad", "bias_grad"):
        values = getattr(data, name)
        shared[name] = values + level * np.sqrt(np.mean(values**2)) * rng.standard_normal(values.shape)
    case = case_of(f"noise {level:g}", data)
    noise = np.full(100, level * np.sqrt(np.mean(data.weight_grad**2)))
    noisy = replace(case, arguments=case.arguments | shared, noise=noise, rounding=False)
    assert check(noisy) is None


def test_random_layers_break_no_promise() -> None:
    cases = [case for seed in range(48) if (case := random_case(seed)) is not None]
    assert len(cases) > 40
    assert [text for case in cases if (text := check(case)) is not None] == []


ONCE_BROKEN = (
    *(
        201,
        268,
        313,
        317,
        382,
        390,
        413,
        700,
        705,
        739,
        856,
        935,
    ),
    *(1322, 1363, 1425, 1793, 1890, 2159, 2169, 2209, 2225, 2475, 2534),
    *(
        600352,
        700519,
        700679,
        700975,
        701069,
        701081,
        701277,
        701496,
        800202,
        810022,
        830268,
        900286,
        920195,
        1010435,
    ),
)


@pytest.mark.parametrize("seed", ONCE_BROKEN)
def test_layers_that_once_broke_a_promise_do_so_no_more(seed: int) -> None:
    case = random_case(seed)
    assert case is not None
    assert check(case) is None


@pytest.mark.slow
@pytest.mark.parametrize("block", range(20))
def test_many_random_layers_break_no_promise(block: int) -> None:
    cases = [case for seed in range(200 + 150 * block, 350 + 150 * block) if (case := random_case(seed))]
    assert [text for case in cases if (text := check(case)) is not None] == []


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_tiny_layers_break_no_promise(dtype: Any) -> None:
    seeds = (*range(20), 701166)
    assert [text for seed in seeds if (text := check(tiny_case(seed, dtype))) is not None] == []


def test_altered_updates_break_no_promise() -> None:
    cases = [case for seed in range(40) if (case := altered_case(seed)) is not None]
    assert len(cases) > 30
    assert [text for case in cases if (text := check(case)) is not None] == []


@pytest.mark.parametrize("seed", [910_688, 910_826, 1_011_389])
def test_altered_updates_that_once_broke_a_promise_do_so_no_more(seed: int) -> None:
    """A light dropout, whose missing gradients moved a partial answer; dependent directions; a faint input almost like a known one."""
    case = altered_case(seed)
    assert case is not None
    assert check(case) is None


@pytest.mark.slow
@pytest.mark.parametrize("block", range(10))
def test_many_altered_updates_break_no_promise(block: int) -> None:
    cases = [case for seed in range(100 + 100 * block, 200 + 100 * block) if (case := altered_case(seed))]
    assert [text for case in cases if (text := check(case)) is not None] == []


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("block", range(5))
def test_many_tiny_layers_break_no_promise(dtype: Any, block: int) -> None:
    seeds = range(100 + 300 * block, 400 + 300 * block)
    assert [text for seed in seeds if (text := check(tiny_case(seed, dtype))) is not None] == []


class TestWhatNoGradientCanShow:
    """Limits of the promise that no solver can lift, and that the certificate must therefore name."""

    def test_inputs_in_one_region_of_a_network_with_one_output_look_like_their_mean(self) -> None:
        # With one output the columns of ∂L/∂Z of inputs with equal patterns are multiples of each other.
        rng = np.random.default_rng(194)
        image = digits()[7].astype(np.float64)
        inputs = np.stack([image, image])
        inputs[0, 20:24] += 0.02
        inputs[1, 20:24] -= 0.02
        data = layer_data_of(inputs, rng, width=30, outputs=1, loss="linear", dtype=np.float64)
        assert np.array_equal(data.output_grad[:, 0], data.output_grad[:, 1])
        result = case_of("one region", data).invert()
        assert (result.batch_size, result.found) == (1, 1)
        np.testing.assert_allclose(result.inputs[0], inputs.mean(axis=0), atol=1e-9)
        assert any("mean" in caveat for caveat in result.certificate.caveats)

    def test_an_input_without_gradient_leaves_no_trace(self) -> None:
        data = digit_layer(3, width=80, seed=195)
        output_grad = data.output_grad * np.asarray([1, 0, 1], dtype=np.float32)
        silent = replace(
            data,
            output_grad=output_grad,
            weight_grad=output_grad @ data.inputs,
            bias_grad=output_grad.sum(axis=1),
        )
        result = case_of("no gradient", silent).invert()
        assert (result.status, result.found) == (Status.EXACT, 2)
        assert any("leave no trace" in caveat for caveat in result.certificate.caveats)


def nearly_one_norm(seed: int) -> LayerData:
    """Orthonormal inputs of a float64 layer whose norms differ by next to nothing, and columns that are orthogonal as well.

    All singular values are nearly equal: singular vectors are what the library makes of the differences.
    """
    rng = np.random.default_rng(seed)
    b, n = 8, int(rng.integers(16, 60))
    signs = hadamard(b)
    rows = []
    for _ in range(int(rng.integers(4, 7))):
        silent = rng.standard_normal(b) * (rng.random(b) < 0.5)
        silent[0] += not silent.any()
        rows += [np.roll(silent / np.linalg.norm(silent), turn) * sign for turn in range(b) for sign in signs]
    output_grad = np.stack(rows) * 10.0 ** rng.uniform(-1.5, 1.5, len(rows))[:, None]
    inputs = np.linalg.qr(rng.standard_normal((n, b)))[0].T.copy()
    inputs[0] *= 1 + 10.0 ** rng.uniform(-16, -9)
    bias = 0.3 * rng.standard_normal(len(rows))
    reached = np.where(output_grad != 0, 1.0, -1.0) * rng.uniform(0.2, 1.5, output_grad.shape)
    weight = (reached - bias[:, None]) @ inputs / np.sum(inputs**2, axis=1).mean()
    return LayerData(output_grad @ inputs, output_grad.sum(axis=1), weight, bias, inputs, output_grad)


@pytest.mark.parametrize("seed", range(12))
def test_bounds_hold_where_all_singular_values_are_nearly_equal(seed: int) -> None:
    case = case_of("nearly one norm", nearly_one_norm(seed))
    assert broken_promises(case.invert(max_proposals=6000), case.truth) == []
