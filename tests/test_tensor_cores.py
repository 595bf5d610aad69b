"""Tensor cores: for the products of descent and reflections alone, on a card alone, and the mode of cuBLAS is put back; and their emulation."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import tf32
from benchmarks.networks import Network
from spear_np.backend.algebra import product
from spear_np.backend.card import TF32_MATH, tensor_cores
from spear_np.backend.devices import CPU, Device, device_for
from spear_np.backend.host import to_host
from spear_np.network.problem import ChainProblem
from spear_np.search import ChainSearch, blocks, fits, reflections
from spear_np.search.levenberg import Levenberg
from spear_np.search.reflect import Reflect
from tests.backends import Backend
from tests.chains import chain_on, digit_network
from tests.fake_cupy import CUBLAS, forgotten, install
from tests.layers import digit_layer
from tests.test_blocks import Shape, block


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Device]]:
    monkeypatch.delenv("CUPY_TF32", raising=False)
    with forgotten():
        install(monkeypatch, cards=2)
        yield [device_for("gpu:0"), device_for("gpu:1")]


def mode(device: Device) -> int:
    number: int = CUBLAS.getMathMode(device.handle.cublas_handle)
    return number


class TestMode:
    def test_it_is_that_of_tensor_cores_inside_and_the_old_one_afterwards(self, cards: list[Device]) -> None:
        with tensor_cores(cards[1]):
            assert [mode(card) for card in cards] == [0, TF32_MATH]
            with tensor_cores(cards[1]):
                assert mode(cards[1]) == TF32_MATH
            assert mode(cards[1]) == TF32_MATH
        assert [mode(card) for card in cards] == [0, 0]

    @pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
    def test_it_is_put_back_whatever_happens(self, cards: list[Device], error: type[BaseException]) -> None:
        with pytest.raises(error), tensor_cores(cards[0]):
            raise error
        assert mode(cards[0]) == 0

    @pytest.mark.parametrize("chosen", [1, 2, TF32_MATH, 16])
    def test_who_has_chosen_another_keeps_it(self, cards: list[Device], chosen: int) -> None:
        handle = cards[0].handle.cublas_handle
        CUBLAS.setMathMode(handle, chosen)
        with tensor_cores(cards[0]):
            assert mode(cards[0]) == chosen
        assert mode(cards[0]) == chosen

    @pytest.mark.parametrize(("text", "expected"), [("0", 0), ("1", TF32_MATH)])
    def test_the_environment_may_forbid_it(
        self, cards: list[Device], monkeypatch: pytest.MonkeyPatch, text: str, expected: int
    ) -> None:
        monkeypatch.setenv("CUPY_TF32", text)
        with tensor_cores(cards[0]):
            assert mode(cards[0]) == expected

    def test_other_threads_have_their_own(self, cards: list[Device]) -> None:
        seen: list[int] = []
        with tensor_cores(cards[0]):
            other = threading.Thread(target=lambda: seen.append(mode(cards[0])))
            other.start()
            other.join()
        assert seen == [0]

    def test_a_processor_has_none(self) -> None:
        with tensor_cores(CPU):
            pass


@pytest.mark.gpu
@pytest.mark.parametrize("stack", [1, 3], ids=["matrix", "stack"])
def test_products_on_a_card_have_ten_bits_inside_and_all_of_them_afterwards(
    stack: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if Backend.CUPY.missing is not None:
        pytest.skip(Backend.CUPY.missing)
    monkeypatch.delenv("CUPY_TF32", raising=False)
    device = Backend.CUPY.device
    if int(device.handle.compute_capability) < 80:
        pytest.skip("a card without TF32")
    numbers = np.random.default_rng(0).standard_normal((2, stack, 256, 256)).astype(np.float32)
    left, right = (device.float32(one) for one in numbers)
    exact = numbers[0].astype(np.float64) @ numbers[1]
    off = []
    for context in (tensor_cores(device), nullcontext()):
        with context:
            found = to_host(product(device.xp, left, right, device.xp.empty_like(left)))
        off.append(np.sqrt(np.mean((found - exact) ** 2)) / np.sqrt(np.mean(exact**2)))
    assert 1e-5 < off[0] < 1e-3
    assert off[1] < 1e-6


class Watch:
    """Notes of each product whether tensor cores were at work."""

    def __init__(self) -> None:
        self.at_work: list[Device] = []
        self.inside: list[bool] = []

    @contextmanager
    def tensor_cores(self, device: Device) -> Iterator[None]:
        self.at_work.append(device)
        try:
            yield
        finally:
            self.at_work.pop()

    def product(self, *arguments: Any) -> Any:
        self.inside.append(bool(self.at_work))
        return product(*arguments)


def test_only_the_steps_of_the_descent_are_taken_by_them(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch()

    def apart(device: Device, *arguments: Any) -> Any:
        assert not watch.at_work, "what starts are the same is not for them to say"
        return compared(device, *arguments)

    compared = blocks._apart
    monkeypatch.setattr(blocks, "tensor_cores", watch.tensor_cores)
    monkeypatch.setattr(blocks, "product", watch.product)
    monkeypatch.setattr(blocks, "_apart", apart)
    settings = blocks.Settings(sign_interval=2)
    blocks.descend(CPU, [block(Shape(known=2), settings)])
    assert watch.inside
    assert all(watch.inside)
    assert not watch.at_work


def test_the_steps_of_reflections_are_taken_by_them_and_those_of_fits_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watch = Watch()
    monkeypatch.setattr(reflections, "tensor_cores", watch.tensor_cores)
    for module in (reflections, fits):
        monkeypatch.setattr(module, "product", watch.product)
    left = ChainProblem(chain_on(digit_network(6))).start().left
    rng = np.random.default_rng(0)
    searches: list[tuple[ChainSearch, bool]] = [(Reflect(), True), (Levenberg(), False)]
    for search, expected in searches:
        memory = search.start(left, rng)
        watch.inside.clear()
        search.propose(left, memory, rng)
        assert watch.inside
        # Starts that are drawn anew are put on the sets by float32, after the steps.
        assert (watch.inside[0], any(watch.inside)) == (expected, expected)
        assert not watch.at_work


def digits(m: int, b: int, seed: int) -> Any:
    """A layer as the benchmark takes it, made without an optimizer, which PyTorch takes seconds to import."""
    data = digit_layer(b, width=m, seed=seed)
    arguments = {name: getattr(data, name) for name in ("weight_grad", "bias_grad", "weight", "bias")}
    return SimpleNamespace(
        arguments=arguments, images=SimpleNamespace(inputs=data.inputs), weight_grad=data.weight_grad
    )


class TestEmulation:
    @given(st.floats(width=32, allow_nan=False, allow_infinity=False), st.booleans())
    def test_it_leaves_ten_bits(self, number: float, to_nearest: bool) -> None:
        value = np.array([number], dtype=np.float32)
        rounded = (tf32.nearest if to_nearest else tf32.cut_off)(value)
        exponent = np.frexp(value.astype(np.float64))[1]
        step = 2.0 ** (max(int(exponent[0]), -125) - 11)  # below 2⁻¹²⁶ numbers are evenly spaced
        times = float(value[0]) / step
        expected = np.float64(round(times) if to_nearest else int(times)) * step  # `round` takes ties to even
        with np.errstate(over="ignore"):
            assert rounded[0] == np.float32(expected)

    def test_what_is_no_number_stays(self) -> None:
        values = np.array([np.inf, -np.inf, np.nan], dtype=np.float32)
        for rounding in (tf32.nearest, tf32.cut_off):
            np.testing.assert_array_equal(rounding(values), values)

    @pytest.mark.parametrize("activation", ["", "relu", "gelu"])
    def test_it_reaches_the_products_of_every_search_and_no_further(
        self, activation: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tf32, "STARTS", 2)
        monkeypatch.setattr(tf32, "REFLECTIONS", 1)
        monkeypatch.setattr(tf32, "make_problem", digits)
        monkeypatch.setattr(tf32, "Network", partial(Network, source="gaussian"))
        cell = tf32.Cell("small", 60, 6, activation, steps=20)
        batch = tf32.Inputs(cell, 1) if activation else tf32.Columns(cell, 1)
        count = 0

        def counting(values: tf32.Array) -> tf32.Array:
            nonlocal count
            assert values.dtype == np.float32
            count += 1
            return values

        before = batch.ends()
        with tf32.emulated(counting):
            assert batch.ends() == before
        assert count > 20
        last = count
        batch.ends()
        assert count == last
