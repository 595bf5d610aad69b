"""Where no bias_grad gives the scale: what activation patterns and a known range of the data leave of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import spear_np
from spear_np import Certificate, Inversion, Status
from spear_np.directions.disaggregate import disaggregate
from spear_np.inputs.reconstruct import reconstruct
from spear_np.inputs.scale import _half_line, _most_agreed, choose_scale
from tests.backends import Backend, assert_lives_on
from tests.io_files import Command, command, layer_arrays
from tests.layers import digit_layer, factors_of, true_directions, with_bias
from tests.networks import Floats, LayerData, digit_batch

NORMALISED = ((0 - 0.305) / 0.376, (1 - 0.305) / 0.376)


def answer(data: LayerData, backend: Backend = Backend.NUMPY, **options: Any) -> Inversion:
    """Invert `data` without its bias_grad; options name arrays to replace or are those of the solver."""
    names = ("weight", "bias", "activation", "weight_grad")
    changes = {name: options.pop(name) for name in names if name in options}
    return spear_np.invert_layer(backend.gradients(data, bias_grad=None, **changes), **options)


def bias_free(
    b: int, *, seed: int, low: float = 0.0, high: float = 1.0, dtype: Any = np.float32
) -> LayerData:
    """Return a layer without biases that sees digits with pixels from `low` to `high`."""
    data = digit_layer(b, width=120, seed=seed, dtype=dtype)
    data = replace(data, inputs=(low + (high - low) * data.inputs).astype(dtype))
    return with_bias(data, np.zeros_like(data.bias), np.random.default_rng(seed))


def biased(data: LayerData, *, seed: int, spread: float) -> LayerData:
    """Return the layer with biases of this standard deviation, and gradients where its units are then on."""
    rng = np.random.default_rng(seed)
    bias: Floats = rng.normal(0, spread, np.shape(data.bias)).astype(np.float32)
    return with_bias(data, bias, rng)


def partners(rows: Floats, data: LayerData) -> Floats:
    """Return the true input (k, n) that each of `rows` (k, n) belongs to, whatever its scale and sign."""
    truth: Floats = data.inputs.astype(np.float64)
    cosine = rows @ truth.T / np.linalg.norm(truth, axis=1) / np.linalg.norm(rows, axis=1)[:, None]
    order = np.abs(cosine).argmax(axis=1)
    assert sorted(order) == list(range(len(truth)))
    chosen: Floats = truth[order]
    return chosen


def assert_bounded(result: Inversion, data: LayerData, backend: Backend = Backend.NUMPY) -> None:
    """Fail unless errors are within their bounds, nothing is certified and weight_grad is reproduced."""
    assert result.status is Status.APPROXIMATE
    assert not result.scale_known
    assert result.certificate["error_bound"].value is None
    rows = backend.host(result.inputs)
    assert_lives_on(result.output_grad, backend)
    error = np.abs(rows - partners(rows, data)).max(axis=1)
    assert np.all(error <= result.certificate.error_bound)
    product = backend.host(result.output_grad) @ rows
    noise = 1e-5 * np.max(np.abs(data.weight_grad))
    np.testing.assert_allclose(product, backend.host(result.gradients.weight_grad), atol=noise)


def said(result: Inversion) -> str:
    return "\n".join(result.certificate.caveats)


class TestRange:
    @pytest.mark.parametrize("b", [1, 4])
    @pytest.mark.parametrize("given", ["weight and bias", "weight", "neither"])
    def test_every_input_reaches_an_end_of_the_range(self, backend: Backend, b: int, given: str) -> None:
        data = bias_free(b, seed=400) if given == "weight" else digit_layer(b, width=120, seed=400)
        missing = {"weight and bias": (), "weight": ("bias",), "neither": ("weight", "bias")}[given]
        result = answer(data, backend, data_range=(0, 1), **dict.fromkeys(missing))
        rows = backend.host(result.inputs)
        truth = partners(rows, data)
        np.testing.assert_allclose(rows, truth / truth.max(axis=1, keepdims=True), atol=1e-5)
        assert_bounded(result, data, backend)
        assert "the largest that the data range 0 to 1 allows" in said(result)
        assert "right if an input reaches an end of that range" in said(result)
        assert result.data_range == (0.0, 1.0)

    def test_a_range_on_both_sides_of_zero_tells_the_sign_too(self, backend: Backend) -> None:
        low, high = NORMALISED
        data = bias_free(4, seed=401, low=low, high=high)
        for weight in (data.weight, None):
            result = answer(data, backend, weight=weight, bias=None, data_range=NORMALISED)
            rows = backend.host(result.inputs)
            np.testing.assert_allclose(rows, partners(rows, data), atol=1e-5)
            assert_bounded(result, data, backend)
        assert "the sign of an input is taken to be" in said(result)

    def test_a_range_without_zero_bounds_the_scale_from_below(self) -> None:
        data = bias_free(4, seed=402, low=0.2, high=1.2)
        result = answer(data, bias=None, data_range=(0.2, 1.2))
        rows = np.asarray(result.inputs)
        np.testing.assert_allclose(rows, partners(rows, data), atol=0.1)
        assert_bounded(result, data)
        assert max(result.certificate.error_bound) < 0.1

    def test_negative_inputs(self) -> None:
        data = bias_free(4, seed=403, low=0.0, high=-1.0)
        result = answer(data, weight=None, bias=None, data_range=(-1, 0))
        assert np.min(np.asarray(result.inputs)) == pytest.approx(-1)
        assert np.max(np.asarray(result.inputs)) < 1e-5
        assert_bounded(result, data)

    def test_one_that_no_input_fits_is_said_and_changes_nothing(self) -> None:
        data = bias_free(4, seed=404, low=-1.0)
        result = answer(data, bias=None, data_range=(0, 1))
        np.testing.assert_array_equal(result.inputs, answer(data, bias=None).inputs)
        assert "no scale fits 4 of 4 inputs" in said(result)
        assert result.certificate.error_bound == (np.inf,) * 4
        assert result.status is Status.APPROXIMATE

    def test_weights_of_another_layer_bound_nothing(self) -> None:
        data = digit_layer(4, width=120, seed=405)
        other = digit_layer(4, width=120, seed=406)
        result = answer(data, weight=other.weight, bias=other.bias, data_range=(0, 1), max_proposals=20_000)
        assert result.found == 4
        assert result.certificate.error_bound == (np.inf,) * 4
        assert "contradict every scale" in said(result)
        assert "contradict every scale" in result.reason

    def test_it_changes_nothing_where_the_scale_is_known(self, backend: Backend) -> None:
        data = digit_layer(4, width=120, seed=407)
        gradients = backend.gradients(data)
        without, result = (
            spear_np.invert_layer(gradients),
            spear_np.invert_layer(gradients, data_range=(0, 7)),
        )
        np.testing.assert_array_equal(backend.host(result.inputs), backend.host(without.inputs))
        np.testing.assert_array_equal(backend.host(result.output_grad), backend.host(without.output_grad))
        assert result.certificate == without.certificate
        assert (result.status, result.scale_known) == (Status.EXACT, True)

    @settings(max_examples=20)
    @given(exponent=st.floats(-12, 12), seed=st.integers(0, 3))
    def test_a_factor_of_the_gradient_does_not_change_the_inputs(self, exponent: float, seed: int) -> None:
        data = bias_free(3, seed=410 + seed, dtype=np.float64)
        options: dict[str, Any] = {"bias": None, "data_range": (0, 1)}
        before = np.asarray(answer(data, **options).inputs)
        after = np.asarray(answer(data, weight_grad=data.weight_grad * 10.0**exponent, **options).inputs)
        distance = np.abs(after[:, None] - before[None]).max(axis=2)
        assert sorted(distance.argmin(axis=1)) == [0, 1, 2]
        assert np.max(distance.min(axis=1)) < 1e-10


class TestPattern:
    @pytest.mark.parametrize("seed", range(420, 426))
    @pytest.mark.parametrize("activation", ["relu", "relu6"])
    def test_signs_bound_the_scale_without_a_range(
        self, backend: Backend, seed: int, activation: str
    ) -> None:
        data = biased(digit_layer(3, width=150, seed=seed), seed=seed, spread=0.5)
        result = answer(data, backend, activation=activation)
        rows = backend.host(result.inputs)
        truth = partners(rows, data)
        scale = np.sum(rows * truth, axis=1) / np.sum(truth**2, axis=1)
        assert np.all(np.abs(np.log(scale)) < 0.7)
        assert np.all(np.isfinite(result.certificate.error_bound))
        assert_bounded(result, data, backend)
        assert "the middle of what their activation patterns allow" in said(result)
        assert "range" not in said(result)

    def test_it_leads_to_most_batches_that_zeros_alone_do_not_determine(self) -> None:
        right = 0
        for seed in range(430, 442):
            data = digit_layer(16, width=120, seed=seed)
            rows = np.asarray(answer(data, data_range=(0, 1), time_limit=20).inputs)
            truth = data.inputs.astype(np.float64)
            lengths = np.linalg.norm(rows, axis=1)[:, None] * np.linalg.norm(truth, axis=1)[None, :]
            cosine = rows @ truth.T / lengths
            right += sorted(np.argmax(cosine, axis=1)) == list(range(16)) and bool(
                np.all(np.max(cosine, axis=1) > 1 - 1e-8)
            )
        assert right >= 9

    def test_an_input_that_does_not_reach_the_end_is_told_by_its_pattern(self) -> None:
        data = digit_layer(4, width=120, seed=427)
        data = replace(data, inputs=data.inputs * np.array([[1], [0.5], [0.2], [0.1]], dtype=np.float32))
        data = biased(data, seed=427, spread=0.2)
        result = answer(data, data_range=(0, 1))
        assert "3 of 4 inputs cannot reach an end of the data range" in said(result)
        assert_bounded(result, data)
        rows = np.asarray(result.inputs)
        ratio = rows.max(axis=1) / partners(rows, data).max(axis=1)
        assert np.all((ratio > 0.6) & (ratio < 1.7))

    def test_a_bias_of_zeros_tells_no_scale(self) -> None:
        data = bias_free(4, seed=428)
        result = answer(data)
        np.testing.assert_allclose(result.inputs, answer(data, bias=None).inputs, atol=1e-9)
        np.testing.assert_allclose(np.linalg.norm(result.output_grad, axis=0), 1, atol=1e-6)

    def test_a_wrong_direction_is_said_and_nothing_is_bounded(self) -> None:
        data = biased(digit_layer(4, width=120, seed=429), seed=429, spread=0.2)
        factors = factors_of(data, Backend.NUMPY, bias_grad=None)
        directions = true_directions(factors, data.inputs)
        for wrong in (False, True):
            q = directions.copy()
            q[0] += wrong * 0.5 * q[1]
            choice = disaggregate(factors, q)
            for data_range in (None, (0.0, 1.0)):
                certificate = Certificate(
                    redundancy=(4,) * 4, false_probability=(0.0,) * 4, error_bound=(1e-6,) * 4
                )
                batch = reconstruct(factors, choice)
                scaling = choose_scale(factors, choice.q, batch, certificate, data_range)
                assert scaling is not None
                assert np.all(np.isinf(scaling.freedom) == wrong)
                assert any("contradict every scale" in caveat for caveat in scaling.caveats) == wrong

    @pytest.mark.parametrize(("redundancy", "chance"), [(0, 0.0), (4, 0.5)])
    def test_the_pattern_of_a_doubtful_direction_bounds_nothing(self, redundancy: int, chance: float) -> None:
        data = biased(digit_layer(4, width=120, seed=429), seed=429, spread=0.2)
        factors = factors_of(data, Backend.NUMPY, bias_grad=None)
        choice = disaggregate(factors, true_directions(factors, data.inputs))
        certificate = Certificate(
            redundancy=(4, redundancy, 4, 4),
            false_probability=(0.0, chance, 0.0, 0.0),
            error_bound=(1e-6,) * 4,
        )
        scaling = choose_scale(factors, choice.q, reconstruct(factors, choice), certificate, None)
        assert scaling is not None
        assert np.isinf(scaling.freedom).tolist() == [False, True, False, False]

    @given(
        ends=st.lists(st.tuples(st.floats(0, 9), st.floats(0, 9)), min_size=1, max_size=8),
        number=st.floats(0.01, 10),
    )
    def test_no_number_lies_in_more_intervals(self, ends: list[tuple[float, float]], number: float) -> None:
        low, high = np.array(ends).T
        first, last, misses = _most_agreed(low, high)
        outside = int(np.sum(~((low < number) & (number < high))))
        assert outside >= misses
        if outside == misses:
            assert first <= number <= last

    @given(slope=st.floats(-5, 5), start=st.floats(-5, 5), number=st.floats(1e-3, 1e3))
    def test_half_lines(self, slope: float, start: float, number: float) -> None:
        low, high = _half_line(np.array(slope), np.array(start))
        value = slope * number + start
        if abs(value) > 1e-9:
            assert (low <= number <= high) == (value > 0)


class TestCommand:
    @pytest.fixture
    def spear(self, capsys: pytest.CaptureFixture[str]) -> Command:
        return command(capsys)

    def test_the_option_gives_inputs_a_scale_and_the_file_says_so(
        self, spear: Command, tmp_path: Path
    ) -> None:
        from spear_io import write_dump

        inputs, _ = digit_batch(4, seed=430)
        data = bias_free(4, seed=430)
        np.testing.assert_array_equal(data.inputs, inputs)
        dump, out, plain = (tmp_path / name for name in ("dump.h5", "out.h5", "plain.h5"))
        write_dump(dump, {"fc1": layer_arrays(data, bias_grad=None, bias=None)})
        run = spear("invert", dump, "-o", out, "--data-range", 0, 1)
        assert run.status == 0
        assert "the largest that the data range 0 to 1" in " ".join(run.out.split())
        assert spear("invert", dump, "-o", plain).status == 0
        with h5py.File(out) as file, h5py.File(plain) as other:
            (layer,), (unscaled,) = (f["records/record-0/layers"].values() for f in (file, other))
            assert layer.attrs["data_range"].tolist() == [0, 1]
            assert not layer.attrs["scale_known"]
            np.testing.assert_allclose(layer["inputs"][:].max(axis=1), 1, atol=1e-6)
            assert "data_range" not in unscaled.attrs
        assert spear("evaluate", out, dump).status == 0
