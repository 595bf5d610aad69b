"""Rank, noise floor and coordinates: whatever the precision, the scale of the rows and the way of reading."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from spear_np import InputError, LayerGradients, invert_layer
from spear_np.backend.devices import CPU
from spear_np.backend.host import to_host
from spear_np.factors import gradients
from spear_np.factors.factorize import Factors, factorize, spectrum_of
from spear_np.factors.rank import Spectrum, additive_rank, gap_rank, rounding_rank
from tests.backends import Backend, assert_array, assert_lives_on
from tests.layers import digit_layer, factors_of, layer_data_of, true_directions
from tests.networks import Floats, LayerData
from tests.precision import round_to_bfloat16
from tests.test_gradients import OnDisk

M = 80


def changed(data: LayerData, **changes: Any) -> LayerData:
    return LayerData(**(vars(data) | changes))


def rounded(data: LayerData, precision: str) -> LayerData:
    """Return the layer with both gradients rounded to `precision`, scaled so that nothing underflows."""
    fields = {}
    for name in ("weight_grad", "bias_grad"):
        values = getattr(data, name).astype(np.float64) / np.max(np.abs(data.weight_grad))
        fields[name] = round_to_bfloat16(values) if precision == "bfloat16" else values.astype(precision)
    return changed(data, **fields)


def underflowing(data: LayerData, unscale: float = 1.0) -> tuple[LayerData, LayerData]:
    """Return the layer with gradients near 3e-4, of some units a thousand times smaller; and the same as float16 shares it.

    Both are multiplied by `unscale` afterwards, as where a loss scale is taken out again.
    """
    factor = np.where(np.arange(len(data.bias_grad)) % 8 == 0, 1e-3, 1.0)
    factor *= 3e-4 / np.sqrt(np.mean(data.weight_grad**2))
    exact = {"weight_grad": data.weight_grad * factor[:, None], "bias_grad": data.bias_grad * factor}
    shared = {name: values.astype(np.float16).astype(np.float32) for name, values in exact.items()}

    def scaled(arrays: dict[str, Floats]) -> LayerData:
        return changed(data, **{name: values * values.dtype.type(unscale) for name, values in arrays.items()})

    return scaled(exact), scaled(shared)


class TestRank:
    @pytest.mark.parametrize("b", [1, 2, 5, 20])
    @pytest.mark.parametrize("precision", ["float64", "float32", "float16", "bfloat16"])
    def test_it_is_the_batch_size_at_every_precision(self, backend: Backend, b: int, precision: str) -> None:
        data = rounded(digit_layer(b, width=M, seed=b, dtype=np.float64), precision)
        factors = factors_of(data, backend, precision=precision)
        assert factors.space.batch_size == factors.space.spectrum.rank == b
        assert factors.space.spectrum.rounding
        assert factors.space.spectrum.gap > 3

    @pytest.mark.parametrize("power", [0, -12])
    @pytest.mark.parametrize("seed", range(4))
    def test_numbers_too_small_for_their_precision_add_none(self, seed: int, power: int) -> None:
        """Below 6e-5 float16 has fewer digits: rows that small are noise, in proportion to nothing."""
        b = 6
        exact, shared = underflowing(digit_layer(b, width=M, seed=seed, dtype=np.float64), 2.0**power)
        factors = factors_of(shared, Backend.NUMPY)
        spectrum = factors.space.spectrum
        assert (spectrum.rank, spectrum.rounding, spectrum.alternatives) == (b, True, 0)
        assert spectrum.spacing == 2.0 ** (power - 24)
        assert spectrum.rank_without_spacing is None or spectrum.rank_without_spacing > b
        # What the noise is taken for is no less than what rounding did.
        error = np.linalg.norm(shared.weight_grad - exact.weight_grad, axis=1) / np.sqrt(
            exact.inputs.shape[1]
        )
        assert np.all(error <= to_host(factors.space.noise))

    def test_where_all_numbers_are_large_enough_their_spacing_plays_no_part(self) -> None:
        data = rounded(digit_layer(5, width=M, seed=1, dtype=np.float64), "float16")
        spectrum = factors_of(data, Backend.NUMPY).space.spectrum
        assert spectrum.rank_without_spacing in (None, spectrum.rank)
        assert factors_of(digit_layer(5, width=M, seed=1), Backend.NUMPY).space.spectrum.spacing == 0

    def test_equal_inputs_count_once(self) -> None:
        data = digit_layer(5, width=M, seed=1)
        twice = changed(
            data,
            weight_grad=data.weight_grad + np.outer(data.output_grad[:, 1], data.inputs[1]),
            bias_grad=data.bias_grad + data.output_grad[:, 1],
        )
        assert factors_of(twice, Backend.NUMPY).space.batch_size == 5

    @pytest.mark.parametrize("dead", [[0], [3, 4, 40], [*range(60)]])
    def test_dead_units_do_not_change_it(self, backend: Backend, dead: list[int]) -> None:
        data = digit_layer(4, width=M, seed=2)
        weight_grad = data.weight_grad.copy()
        weight_grad[dead] = 0
        factors = factors_of(changed(data, weight_grad=weight_grad), backend)
        assert factors.space.batch_size == 4
        alive = np.flatnonzero(np.any(weight_grad != 0, axis=1))
        assert set(to_host(factors.space.live)) <= set(alive)

    def test_columns_without_gradient_do_not_change_it(self, backend: Backend) -> None:
        data = digit_layer(4, width=M, seed=3)
        padded = np.zeros((M, 500), dtype=np.float32)
        padded[:, 200:264] = data.weight_grad
        factors = factors_of(changed(data, weight_grad=padded, weight=padded), backend)
        assert factors.space.batch_size == 4

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_rows_of_very_different_size_do_not_hide_it(self, backend: Backend, dtype: Any) -> None:
        data = digit_layer(6, width=M, seed=4, dtype=dtype)
        size = np.logspace(0, -12, M)[np.random.default_rng(4).permutation(M), None].astype(dtype)
        factors = factors_of(changed(data, weight_grad=data.weight_grad * size), backend)
        assert factors.space.batch_size == 6
        # Scaling a row changes neither its direction nor how well it is known, so no row is lost.
        assert factors.space.live.shape[0] == factors_of(data, backend).space.live.shape[0]

    @pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e30])
    def test_the_scale_of_the_loss_does_not_matter(self, scale: float) -> None:
        data = digit_layer(5, width=M, seed=5, dtype=np.float64)
        factors = factors_of(
            changed(data, weight_grad=data.weight_grad * scale, bias_grad=data.bias_grad * scale),
            Backend.NUMPY,
        )
        plain = factors_of(data, Backend.NUMPY).space
        assert factors.space.batch_size == 5
        assert factors.space.relative_noise == pytest.approx(plain.relative_noise, rel=0.2)

    @pytest.mark.parametrize("level", [1e-6, 1e-5, 1e-4, 1e-3, 1e-2])
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_added_noise_does_not_change_it(self, backend: Backend, level: float, dtype: Any) -> None:
        factors = factors_of(noisy(digit_layer(5, width=M, seed=6, dtype=dtype), level), backend)
        assert factors.space.batch_size == 5
        # The noise is given relative to the root mean square of all entries, like `relative_noise` by rows.
        assert 0.5 * level < factors.space.relative_noise < 10 * level

    def test_a_full_rank_is_no_rank(self, backend: Backend) -> None:
        values = np.random.default_rng(7).standard_normal((20, 30)).astype(np.float32)
        found = factorize(backend.gradients(changed(digit_layer(1, width=20, seed=7), weight_grad=values),
                                            weight=None, bias=None), backend.device)  # fmt: skip
        assert isinstance(found, Spectrum)
        assert found.rank is None

    @pytest.mark.parametrize(("m", "n", "b"), [(10, 64, 10), (10, 64, 14), (70, 40, 40), (70, 40, 80)])
    def test_a_batch_as_large_as_the_layer_has_no_rank(self, m: int, n: int, b: int) -> None:
        rng = np.random.default_rng(8)
        data = layer_data_of(rng.standard_normal((b, n)), rng, width=m)
        found = factorize(Backend.NUMPY.gradients(data), Backend.NUMPY.device)
        assert isinstance(found, Spectrum)
        assert found.rank is None

    def test_no_gradient_at_all_has_rank_zero(self, backend: Backend) -> None:
        data = changed(digit_layer(2, width=M, seed=9), weight_grad=np.zeros((M, 64), np.float32))
        found = factorize(backend.gradients(data), backend.device)
        assert isinstance(found, Spectrum)
        assert found.rank == 0

    def test_a_batch_size_can_be_forced(self, backend: Backend) -> None:
        data = digit_layer(5, width=M, seed=10)
        for forced in (4, 6):
            factors = factors_of_size(data, backend, forced)
            assert (factors.space.batch_size, factors.space.spectrum.rank) == (forced, 5)
            assert tuple(factors.space.to_basis.shape) == (M, forced)

    @pytest.mark.parametrize("forced", [0, -1, 65])
    def test_an_impossible_batch_size_is_refused(self, forced: int) -> None:
        data = digit_layer(2, width=M, seed=11)
        with pytest.raises(InputError, match=f"batch size of {forced} is impossible.*80 x 64.*at most 64"):
            factorize(Backend.NUMPY.gradients(data), Backend.NUMPY.device, forced)

    def test_rounding_alone_is_no_signal(self) -> None:
        m, n = 60, 200
        noise = np.linalg.svd(np.random.default_rng(1).standard_normal((m, n)), compute_uv=False)
        assert rounding_rank(noise, m, n, n) == 0
        assert rounding_rank(np.concatenate([[1e6, 1e5], noise[2:]]), m, n, n) == 2
        # Nothing is left over to see the noise in: no rank can be told.
        assert rounding_rank(np.full(m, 1e6), m, n, n) is None
        assert rounding_rank(np.full(m, 1e6), m, n, 10) is None


def noisy(data: LayerData, level: float) -> LayerData:
    """Return the layer with Gaussian noise in both gradients, relative to their root mean square."""
    rng = np.random.default_rng(17)
    fields = {}
    for name in ("weight_grad", "bias_grad"):
        values = getattr(data, name)
        noise = level * np.sqrt(np.mean(values**2)) * rng.standard_normal(values.shape)
        fields[name] = (values + noise).astype(values.dtype)
    return changed(data, **fields)


def factors_of_size(data: LayerData, backend: Backend, batch_size: int) -> Factors:
    factors = factorize(backend.gradients(data), backend.device, batch_size)
    assert isinstance(factors, Factors)
    return factors


class TestNoise:
    @pytest.mark.parametrize(
        ("precision", "unit"),
        [("float64", 2.0**-53), ("float32", 2.0**-24), ("float16", 2.0**-11), ("bfloat16", 2.0**-8)],
    )
    def test_it_follows_the_precision(self, backend: Backend, precision: str, unit: float) -> None:
        data = rounded(digit_layer(6, width=M, seed=20, dtype=np.float64), precision)
        factors = factors_of(data, backend, precision=precision)
        # Our own float64 products are less precise than one float64 number.
        most = 100 if precision == "float64" else 30
        assert 0.1 * unit < factors.space.relative_noise < most * unit

    @pytest.mark.parametrize("precision", ["float64", "float32", "float16", "bfloat16"])
    @pytest.mark.parametrize("seed", range(21, 25))
    def test_zeros_are_told_from_the_rest(self, precision: str, seed: int) -> None:
        data = rounded(digit_layer(6, width=M, seed=seed, dtype=np.float64), precision)
        factors = factors_of(data, Backend.NUMPY, precision=precision)
        directions = true_directions(factors, data.inputs)
        silent = (data.output_grad == 0)[to_host(factors.space.live)].T
        zeros = factors.space.zeros(directions)
        # No zero may be taken for a gradient; a few gradients that drown in the noise are no mistake.
        assert np.all(zeros[silent])
        assert np.mean(zeros[~silent]) < (0.1 if precision == "bfloat16" else 0.02)

    def test_every_row_has_its_own(self, backend: Backend) -> None:
        data = digit_layer(6, width=M, seed=25)
        size = np.logspace(0, -12, M)[:, None].astype(np.float32)
        plain = to_host(factors_of(data, backend).space.noise)
        scaled = to_host(factors_of(changed(data, weight_grad=data.weight_grad * size), backend).space.noise)
        live = np.any(data.weight_grad != 0, axis=1)
        ratio = (scaled / plain / size[:, 0])[live]
        assert np.all((ratio > 0.3) & (ratio < 3))

    def test_it_does_not_shrink_with_columns_that_hold_nothing(self) -> None:
        data = digit_layer(6, width=M, seed=26)
        padded = np.zeros((M, 6400), dtype=np.float32)
        padded[:, :64] = data.weight_grad
        wide = changed(data, weight_grad=padded, weight=None)
        zeros = zero_figures(wide, np.pad(data.inputs, ((0, 0), (0, 6400 - 64))))
        assert np.max(zeros) < 6

    @pytest.mark.parametrize("copies", [4, 16, 64])
    def test_equal_columns_are_rounded_alike_and_do_not_average_out(self, copies: int) -> None:
        data = digit_layer(6, width=M, seed=27)
        wide = changed(data, weight_grad=np.repeat(data.weight_grad, copies, axis=1), weight=None)
        assert np.max(zero_figures(wide, np.repeat(data.inputs, copies, axis=1))) < 6


def zero_figures(data: LayerData, inputs: Floats) -> Floats:
    """Sizes, in noise units, of the entries of ∂L/∂Z that are truly zero."""
    factors = factors_of(data, Backend.NUMPY, weight=None, bias=None)
    silent = (data.output_grad == 0)[to_host(factors.space.live)].T
    units: Floats = to_host(factors.space.noise_units(true_directions(factors, inputs)))[silent]
    return units


class TestFactors:
    def test_they_are_what_they_say(self, backend: Backend) -> None:
        data = digit_layer(5, width=M, seed=30)
        factors = factors_of(data, backend)
        weight_grad, weight = data.weight_grad.astype(np.float64), data.weight.astype(np.float64)
        live, S = backend.host(factors.space.live), backend.host(factors.space.S)
        U, noise = backend.host(factors.space.U), backend.host(factors.space.noise)
        to_basis, coordinates = backend.host(factors.space.to_basis), backend.host(factors.space.coordinates)
        V = weight_grad.T @ to_basis
        np.testing.assert_allclose(U.T @ U, np.eye(5), atol=1e-12)
        np.testing.assert_allclose(V.T @ V, np.eye(5), atol=1e-9)
        np.testing.assert_allclose(coordinates @ V.T, weight_grad, atol=1e-6 * np.max(np.abs(weight_grad)))
        np.testing.assert_allclose(coordinates[live] / noise[live, None], U * S, rtol=1e-9, atol=1e-6 * S[0])
        assert_array(factors.space.row_norm, np.linalg.norm(weight_grad, axis=1), backend, rtol=1e-9)
        assert factors.layer is not None
        assert_array(factors.layer.weight_in_basis, weight @ V, backend, atol=1e-9)
        assert_array(factors.layer.weight_norm, np.linalg.norm(weight, axis=1), backend, rtol=1e-12)
        assert_array(factors.layer.bias, data.bias.astype(np.float64), backend)
        assert factors.bias_grad is not None
        assert_array(factors.bias_grad, data.bias_grad.astype(np.float64), backend)

    def test_true_directions_give_the_true_columns(self, backend: Backend) -> None:
        data = digit_layer(5, width=M, seed=31)
        factors = factors_of(data, backend)
        q = backend.array(true_directions(factors, data.inputs))
        assert_array(factors.space.columns(q), data.output_grad.astype(np.float64), backend, atol=1e-6)
        zeros = backend.host(factors.space.zeros(q))
        np.testing.assert_array_equal(zeros, (data.output_grad == 0)[backend.host(factors.space.live)].T)
        spread = factors.space.expand(factors.space.zeros(q))
        assert_lives_on(spread, backend)
        silent = data.output_grad == 0
        silent[~np.isin(np.arange(M), backend.host(factors.space.live))] = False
        np.testing.assert_array_equal(backend.host(spread), silent)

    def test_without_weight_there_are_no_signs(self, backend: Backend) -> None:
        data = digit_layer(3, width=M, seed=32)
        factors = factors_of(data, backend, weight=None, bias=None)
        assert factors.layer is None
        assert not factors.signs_known

    def test_a_bias_that_is_missing_counts_as_zero(self, backend: Backend) -> None:
        layer = factors_of(digit_layer(3, width=M, seed=32), backend, bias=None).layer
        assert layer is not None
        assert_array(layer.bias, np.zeros(M), backend)

    @pytest.mark.parametrize("activation", ["gelu", "none", "tanh", "sine"])
    def test_what_follows_the_layer_does_not_matter(self, backend: Backend, activation: str) -> None:
        data = digit_layer(5, width=M, seed=35)
        plain, other = (factors_of(data, backend, activation=a) for a in ("relu", activation))
        assert other.space.batch_size == 5
        assert_array(other.space.U, backend.host(plain.space.U), backend)
        assert other.layer is not None
        assert other.layer.activation.name == activation
        # Pre-activations need no zeros either.
        coordinates = backend.array(data.inputs.astype(np.float64)) @ (
            backend.array(data.weight_grad.astype(np.float64)).T @ other.space.to_basis
        )
        z = data.inputs.astype(np.float64) @ data.weight.T.astype(np.float64) + data.bias
        assert_array(other.layer.preactivations(coordinates), z.T, backend, atol=1e-5)

    def test_without_bias_grad_signs_are_known_only_if_there_is_no_bias(self) -> None:
        data = digit_layer(3, width=M, seed=33)
        assert factors_of(data, Backend.NUMPY).signs_known
        assert not factors_of(data, Backend.NUMPY, bias_grad=None).signs_known
        assert factors_of(data, Backend.NUMPY, bias_grad=None, bias=None).signs_known

    def test_the_noise_of_an_angle_falls_with_the_precision(self) -> None:
        angles = []
        for precision in ("bfloat16", "float16", "float32"):
            data = rounded(digit_layer(6, width=M, seed=34, dtype=np.float64), precision)
            factors = factors_of(data, Backend.NUMPY, precision=precision)
            angles.append(np.max(factors.space.angle_noise(true_directions(factors, data.inputs))))
        assert angles[0] > angles[1] > angles[2] >= 1e-6


class TestReading:
    @pytest.mark.parametrize("columns", [1, 7, 40])
    def test_blocks_give_what_the_whole_gives(
        self, backend: Backend, columns: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data = digit_layer(5, width=30, seed=40)
        whole = factors_of(data, backend)
        monkeypatch.setattr(gradients, "BLOCK_BYTES", columns * 8 * 30)
        parts = factors_of(data, backend)
        space, same = parts.space, whole.space
        assert space.batch_size == same.batch_size
        np.testing.assert_array_equal(backend.host(space.live), backend.host(same.live))
        np.testing.assert_allclose(
            space.spectrum.singular_values[:5], same.spectrum.singular_values[:5], rtol=1e-6
        )
        np.testing.assert_allclose(backend.host(space.noise), backend.host(same.noise), rtol=1e-3)
        directions = true_directions(parts, data.inputs)
        np.testing.assert_allclose(
            backend.host(space.columns(backend.array(directions))), data.output_grad, atol=1e-6
        )
        # The bases may differ by a rotation; what W sees of the inputs may not.
        X = data.inputs.astype(np.float64)
        for factors in (parts, whole):
            V = data.weight_grad.astype(np.float64).T @ backend.host(factors.space.to_basis)
            assert factors.layer is not None
            z = backend.host(factors.layer.weight_in_basis) @ (X @ V).T
            np.testing.assert_allclose(z, data.weight.astype(np.float64) @ X.T, atol=1e-6)

    def test_the_whole_matrix_is_never_asked_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        data = digit_layer(5, width=30, seed=41)
        monkeypatch.setattr(gradients, "BLOCK_BYTES", 8 * 30 * 9)
        weight_grad, weight = OnDisk(data.weight_grad), OnDisk(data.weight)
        factors = factors_of(data, Backend.NUMPY, weight_grad=weight_grad, weight=weight)
        assert factors.space.batch_size == 5
        assert weight_grad.largest == weight.largest == 30 * 9

    def test_small_singular_values_survive(self) -> None:
        # 1e-11 of the largest: a Gram matrix in float64 would lose it among rounding errors of 1e-8.
        rng = np.random.default_rng(42)
        left, right = (
            np.linalg.qr(rng.standard_normal((40, 3)))[0],
            np.linalg.qr(rng.standard_normal((90, 3)))[0],
        )
        data = digit_layer(1, width=40, seed=42, dtype=np.float64)
        weight_grad = (left * [1.0, 1e-5, 1e-11]) @ right.T
        found = spectrum_of(
            Backend.NUMPY.gradients(changed(data, weight_grad=weight_grad), weight=None, bias=None),
            Backend.NUMPY.device,
        )
        assert found.rank == 3

    @pytest.mark.parametrize("name", ["weight_grad", "weight", "bias_grad", "bias"])
    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_what_is_no_number_is_found(
        self, backend: Backend, name: str, value: float, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(gradients, "BLOCK_BYTES", 8 * 30 * 10)
        data = digit_layer(2, width=30, seed=43)
        spoiled = getattr(data, name).copy()
        spoiled[(7, 25)[: spoiled.ndim]] = value
        where = " in columns 20 to 29" if spoiled.ndim == 2 else ""
        with pytest.raises(InputError, match=f"`{name}` holds NaN or infinity{where}$"):
            factors_of(changed(data, **{name: spoiled}), backend)

    @pytest.mark.parametrize(
        ("name", "factor"), [("weight_grad", 1e150), ("weight_grad", 1e-150), ("weight", 1e150)]
    )
    @pytest.mark.parametrize("also", ["bias_grad", "bias"])
    def test_numbers_without_room_for_arithmetic_are_refused(
        self, name: str, factor: float, also: str
    ) -> None:
        data = digit_layer(2, width=30, seed=44, dtype=np.float64)
        spoiled = {name: getattr(data, name) * factor, also: getattr(data, also) * factor}
        with pytest.raises(InputError, match=r"magnitude .* leaves no room for arithmetic"):
            factors_of(changed(data, **spoiled), Backend.NUMPY)


class TestRanksFromGaps:
    SIGNAL = (1.0, 0.5, 0.2, 0.1)

    def test_a_single_wide_gap_tells_the_rank(self) -> None:
        values = np.asarray([*self.SIGNAL, *np.linspace(1e-3, 5e-4, 40)])
        assert gap_rank(values, 1e-8) == 4

    def test_not_where_a_signal_lies_below_it(self) -> None:
        values = np.asarray([*self.SIGNAL, 1e-3, *np.linspace(1e-5, 5e-6, 40)])
        assert gap_rank(values, 1e-8) is None

    def test_not_where_the_values_only_decay(self) -> None:
        assert gap_rank(0.5 ** np.arange(50.0), 1e-8) is None
        assert gap_rank(np.ones(3), 1e-8) is None

    def test_nor_where_hardly_any_are_left(self) -> None:
        assert gap_rank(np.asarray([1.0, 0.9, 1e-6, 1e-6]), 1e-12) is None
        assert additive_rank(np.asarray([1.0, 0.9, 1e-6]), 3, 100) is None

    def test_equal_noise_would_be_in_all_rows(self) -> None:
        rng = np.random.default_rng(176)
        data = layer_data_of(rng.random((4, 100)), rng, width=60)
        noise = rng.normal(0, 1e-4 * float(np.std(data.weight_grad)), data.weight_grad.shape)
        assert spectrum_of(LayerGradients(data.weight_grad + noise), CPU).noise_known
        weak = np.array(data.weight_grad + noise)
        weak[5] = 1e-9 * data.weight_grad[5]
        assert not spectrum_of(LayerGradients(weak), CPU).noise_known

    def test_noise_of_no_known_kind_is_told_from_rounding(self) -> None:
        rng = np.random.default_rng(170)
        data = layer_data_of(rng.random((6, 100)), rng, width=120)
        # Neither in proportion to the rows nor the same in all of them.
        level = 1e-4 * np.std(data.weight_grad) * 10 ** rng.uniform(-3, 0, (120, 1))
        noisy = data.weight_grad + level * rng.standard_normal(data.weight_grad.shape)
        spectrum = spectrum_of(LayerGradients(noisy), CPU)
        assert (spectrum.rank, spectrum.noise_known) == (6, False)
        assert spectrum_of(LayerGradients(data.weight_grad), CPU).noise_known

    def test_noise_of_no_known_kind_is_taken_for_as_large_as_its_largest_singular_value(self) -> None:
        rng = np.random.default_rng(175)
        data = layer_data_of(rng.random((6, 100)), rng, width=120)
        level = 1e-4 * np.std(data.weight_grad) * 10 ** rng.uniform(-3, 0, (120, 1))
        noisy = data.weight_grad + level * rng.standard_normal(data.weight_grad.shape)
        factors = factorize(Backend.NUMPY.gradients(data, weight_grad=noisy), CPU)
        assert isinstance(factors, Factors)
        assert factors.space.spectrum.noise_excess > 1.3
        assert np.median(factors.space.noise[factors.space.live] / level[factors.space.live, 0]) > 1.2

    def test_every_reading_has_its_turn(self) -> None:
        data = digit_layer(6, width=100, seed=171)
        step = np.max(np.abs(data.weight_grad)) / 2**9
        levels = (np.rint(data.weight_grad / step) * step).astype(np.float32)
        shared = Backend.NUMPY.gradients(data, weight_grad=levels)
        ranks = []
        for reading in range(3):
            factors = factorize(shared, CPU, reading=reading)
            assert isinstance(factors, Factors)
            ranks.append(factors.space.batch_size)
            if not factors.space.spectrum.alternatives:
                break
        # Evenly spaced levels are no rounding of float32: by that, all of their errors are signal.
        assert ranks[0] > 6
        assert 6 in ranks
        assert len(set(ranks)) == len(ranks)

    def test_an_input_that_may_lie_below_the_rank_counts(self, backend: Backend) -> None:
        data = digit_layer(6, width=100, seed=172)
        whole, less = (
            factorize(backend.gradients(data), backend.device, batch_size) for batch_size in (6, 5)
        )
        assert isinstance(whole, Factors)
        assert isinstance(less, Factors)
        assert whole.space.hidden_input_factor == 1
        # What is left out is no noise at all: many millions of its standard deviations.
        assert less.space.hidden_input_factor > 1


@pytest.mark.parametrize("left", [0.0, 1e-13, 1e-11])
@pytest.mark.parametrize("right", [0.0, 1e-13, 1e-11])
def test_zeros_do_not_rest_on_the_accuracy_of_a_decomposition(
    left: float, right: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Singular vectors of some libraries are off by far more than a rounding, which is all that hides float64 zeros."""
    rng, exact_svd = np.random.default_rng(0), CPU.xp.linalg.svd

    def tilted(size: int, angle: float) -> Any:
        skew = rng.standard_normal((size, size)) * angle / np.sqrt(size)
        turn, R = np.linalg.qr(np.eye(size) + skew - skew.T)
        return turn * np.sign(np.diag(R))

    def loose_svd(matrix: Any, *, full_matrices: bool = True) -> Any:
        svd = exact_svd(matrix, full_matrices=full_matrices)
        if matrix.ndim != 2 or full_matrices:
            return svd
        size = svd.S.shape[0]
        return type(svd)(svd.U @ tilted(size, left), svd.S, tilted(size, right).T @ svd.Vh)

    monkeypatch.setattr(CPU.xp.linalg, "svd", loose_svd)
    data = digit_layer(8, width=M, seed=3, dtype=np.float64)
    result = invert_layer(LayerGradients(data.weight_grad, data.bias_grad, data.weight, data.bias))
    assert result.status == "exact"
    distances = np.linalg.norm(np.asarray(result.inputs)[:, None] - data.inputs, axis=2)
    assert np.max(np.min(distances, axis=0)) < 1e-13 * np.linalg.norm(data.inputs)
