"""What of the memory of a card is taken, what happens when it does not do, and that it is given back."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import spear_np
from spear_np import DeviceError, LayerGradients
from spear_np.backend.devices import CPU, Device, device_for
from spear_np.backend.host import to_host
from spear_np.backend.memory import free_memory, memory_of
from spear_np.backend.work import (
    BLOCK_NUMBERS,
    CACHED_NUMBERS,
    CARD_ARRAYS,
    block_numbers,
    blocks,
    mapped,
    narrowing,
    one_by_one,
)
from spear_np.factors import gradients
from spear_np.layer.problem import layer_readings
from spear_np.loop.budget import Budget
from spear_np.loop.options import Options
from spear_np.loop.run import Run, invert_readings
from tests.backends import Backend
from tests.fake_cupy import OutOfMemoryError, current_card, forgotten, install
from tests.layers import digit_layer
from tests.networks import digit_batch, relu_network_gradients

GIB = 2**30


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Two cards with 4 GiB free on each."""
    with forgotten():
        yield install(monkeypatch, cards=2, free=4 * GIB)


class TestSizes:
    def test_blocks_take_a_share_of_what_is_free(self, cupy: ModuleType) -> None:
        card = device_for("gpu:1")
        assert free_memory(card) == 4 * GIB
        assert block_numbers(card) == 4 * GIB // 8 // CARD_ARRAYS
        assert [part.stop - part.start for part in blocks(card, 100, 2**20)] == [16] * 6 + [4]
        pool = cupy.get_default_memory_pool()
        pool.unused[1] = 4 * GIB
        assert block_numbers(card) == 8 * GIB // 8 // CARD_ARRAYS
        pool.unused[1] = GIB
        assert block_numbers(card) == 4 * GIB // 8 // CARD_ARRAYS, "the least power of two"
        pool.limit, pool.used[1] = 2 * GIB, GIB
        assert free_memory(card) == GIB
        pool.used[1] = 3 * GIB
        assert (free_memory(card), block_numbers(card)) == (0, 1)

    def test_a_processor_caches_the_same_whatever_is_free(self) -> None:
        assert free_memory(CPU) is None
        assert block_numbers(CPU) == CACHED_NUMBERS

    def test_a_card_that_does_not_tell_has_blocks_all_the_same(self) -> None:
        card = Device(Backend.STRICT.xp, Backend.STRICT.handle, "gpu:0")
        assert BLOCK_NUMBERS / 2 < block_numbers(card) <= BLOCK_NUMBERS

    @pytest.mark.parametrize(("free", "width"), [(2**36, 700), (2**20, 5), (0, 1)])
    def test_columns_of_a_gradient_are_as_many_as_its_rows_if_there_is_room(
        self, monkeypatch: pytest.MonkeyPatch, free: int, width: int
    ) -> None:
        monkeypatch.setattr(gradients, "BLOCK_BYTES", 8 * 700 * 10)
        layer = LayerGradients(np.ones((700, 1500), dtype=np.float32))
        assert layer._width(CPU) == 10
        with forgotten():
            install(monkeypatch, free=free)
            assert layer._width(device_for("gpu")) == width


class TestNotEnough:
    CARD = Device(Backend.STRICT.xp, Backend.STRICT.handle, "gpu:0")

    def test_all_is_computed_again_with_blocks_of_half_the_size(self) -> None:
        tried = []

        def compute() -> int:
            tried.append(block_numbers(self.CARD))
            if tried[-1] > 1000:
                raise MemoryError
            return len(blocks(self.CARD, 100, 100))

        before = block_numbers(self.CARD)
        assert narrowing(self.CARD, 100, compute) == -(-100 // (tried[-1] // 100))
        assert tried == [before >> halvings for halvings in range(len(tried))]
        assert 500 < tried[-1] <= 1000
        assert block_numbers(self.CARD) == before

    def test_a_single_item_that_does_not_fit_is_an_error(self) -> None:
        tried = []

        def never() -> None:
            tried.append(block_numbers(self.CARD))
            raise MemoryError

        with pytest.raises(MemoryError):
            narrowing(self.CARD, 1000, never)
        assert tried[-1] <= 1000 < tried[-2]

    def test_a_host_that_has_no_memory_says_so_at_once(self) -> None:
        tried = []

        def never() -> None:
            tried.append(0)
            raise MemoryError

        with pytest.raises(MemoryError):
            narrowing(CPU, 1, never)
        assert len(tried) == 1

    @pytest.mark.usefixtures("cupy")
    def test_it_says_what_to_do(self) -> None:
        card = device_for("gpu:1")

        def never(_: slice) -> None:
            msg = "Out of memory allocating 8,000 bytes"
            raise OutOfMemoryError(msg)

        wanted = r"gpu:1: the card has no memory left: end what holds it, .* or the CPU \(Out of memory allocating 8,000 bytes\)"
        with pytest.raises(DeviceError, match=wanted), card.activate(), card.activate():
            mapped(card, never, [slice(0, 5)])

    def test_a_whole_inversion_makes_do(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """On a card that refuses every array above a size, be it of weight_grad or of candidates."""
        limit = 35_000  # less than 256 starts compared with each other; where they lie, and their rows, stay whole
        images, labels = digit_batch(6, seed=4)
        wide = np.hstack([np.roll(images, shift, axis=1) for shift in range(20)])
        data = relu_network_gradients(wide, labels, width=60, seed=4)
        m, n = data.weight_grad.shape
        assert m * n > limit
        monkeypatch.setattr("spear_np.placement.HOST_UNITS", 0)
        options = Options(None, None, "descent", 3, 60.0, None)
        run = Run(options, Budget(60.0, None, lambda: False), lambda _: None)
        layer = LayerGradients(data.weight_grad, data.bias_grad, data.weight, data.bias)
        free = invert_readings(layer_readings(layer, self.CARD, options), run)
        refused = refusing(monkeypatch, limit)
        tight = invert_readings(layer_readings(layer, self.CARD, options), run)
        assert max(refused) > limit
        assert (tight.status, tight.proposals) == ("exact", free.proposals) == (free.status, tight.proposals)
        np.testing.assert_allclose(to_host(tight.inputs), to_host(free.inputs), rtol=1e-9, atol=1e-9)


def refusing(monkeypatch: pytest.MonkeyPatch, limit: int) -> list[int]:
    """Have array-api-strict refuse arrays of more than `limit` numbers of their own; returns the sizes of those that it refused."""
    from array_api_strict._array_object import Array

    made, refused = Array._new.__func__, []

    def new(kind: type, x: Any, /, device: Any) -> Any:
        if isinstance(x, np.ndarray) and x.base is None and x.size > limit:
            refused.append(x.size)
            raise MemoryError
        return made(kind, x, device)

    monkeypatch.setattr(Array, "_new", classmethod(new))
    return refused


class TestGivenBack:
    def test_when_the_outermost_block_ends(self, cupy: ModuleType) -> None:
        card = device_for("gpu:1")
        pools = cupy.get_default_memory_pool(), cupy.get_default_pinned_memory_pool()
        for pool in pools:
            pool.freed.clear()
        with card.activate():
            with card.activate():
                pass
            assert [pool.freed for pool in pools] == [[], []]
        assert [pool.freed for pool in pools] == [[1], [1]]

    def test_whatever_happened(self, cupy: ModuleType) -> None:
        card = device_for("gpu:0")
        pool = cupy.get_default_memory_pool()
        pool.freed.clear()
        with pytest.raises(KeyError), card.activate():
            raise KeyError
        assert pool.freed == [0]

    def test_a_card_that_is_gone_is_what_is_said(self, cupy: ModuleType) -> None:
        gone = cupy.cuda.runtime.CUDARuntimeError("cudaErrorIllegalAddress: an illegal memory access")

        def fail() -> None:
            raise gone

        card = device_for("gpu:0")
        cupy.get_default_memory_pool().free_all_blocks = fail
        with pytest.raises(DeviceError, match="cudaErrorIllegalAddress"), card.activate():
            raise gone


@pytest.mark.usefixtures("cupy")
class TestTheSecondCard:
    """Whatever runs where has its own card for the current one, and leaves the caller's as it was."""

    def test_is_current_in_every_thread_that_works_for_it(self) -> None:
        card, seen = device_for("gpu:1"), []

        def look(_: slice) -> None:
            seen.append((current_card(), threading.get_ident()))

        def work() -> None:
            mapped(card, look, [slice(0, 1), slice(1, 2)])
            one_by_one(card, look, [slice(0, 1)])

        with card.activate():
            work()
        other = threading.Thread(target=work)  # nobody has activated anything here
        other.start()
        other.join()
        assert {number for number, _ in seen} == {1}
        assert len({thread for _, thread in seen}) == 2
        assert current_card() == 0

    def test_has_its_own_checks_and_memory(self, cupy: ModuleType) -> None:
        asked = []

        def tell() -> tuple[int, int]:
            asked.append(current_card())
            return GIB, 2 * GIB

        cupy.cuda.runtime.memGetInfo = tell
        card = device_for("gpu:1")
        assert memory_of(card) == 2 * GIB
        assert free_memory(card) == GIB
        assert asked == [1, 1]

    def test_one_inside_the_other(self) -> None:
        first, second = device_for("gpu:0"), device_for("gpu:1")
        with second.activate(), first.activate():
            assert current_card() == 0
            with second.activate():
                assert current_card() == 1
            assert current_card() == 0


@pytest.mark.gpu
class TestOnARealCard:
    """With a stream of the caller's own, on each of the cards that are there."""

    @pytest.mark.parametrize("number", [0, 1])
    def test_all_is_done_on_the_stream_and_the_card_of_the_caller(self, number: int) -> None:
        if Backend.CUPY.missing is not None:
            pytest.skip(Backend.CUPY.missing)
        import cupy

        if number >= cupy.cuda.runtime.getDeviceCount():
            pytest.skip("there is no second card")
        data = digit_layer(10, width=100, seed=4)
        arrays = {name: getattr(data, name) for name in ("weight_grad", "bias_grad", "weight", "bias")}
        with cupy.cuda.Device(number):
            kept = cupy.arange(5.0)
            stream = cupy.cuda.Stream(non_blocking=True)
            with stream:
                found = spear_np.invert(**arrays, device=f"gpu:{number}", seed=3)
                inputs = found.inputs
                assert cupy.cuda.get_current_stream() == stream
            assert (found.status, inputs.device.id) == ("exact", number)
            assert kept.get().tolist() == [0, 1, 2, 3, 4]
        wanted = spear_np.invert(**arrays, seed=3).inputs
        order = [int(np.argmin(np.abs(to_host(inputs) - row).max(axis=1))) for row in to_host(wanted)]
        np.testing.assert_allclose(to_host(inputs)[order], to_host(wanted), atol=1e-4)
        assert cupy.cuda.get_current_stream() == cupy.cuda.Stream.null

    def test_memory_is_given_back(self) -> None:
        if Backend.CUPY.missing is not None:
            pytest.skip(Backend.CUPY.missing)
        import cupy

        data = digit_layer(10, width=600, seed=4)
        pool = cupy.get_default_memory_pool()
        pool.free_all_blocks()
        before, held = pool.used_bytes(), pool.total_bytes()
        found = spear_np.invert(
            data.weight_grad, data.bias_grad, weight=data.weight, bias=data.bias, device="gpu"
        )
        kept = sum(one.nbytes for one in (found.output_grad, found.recovery))  # type: ignore[attr-defined]
        assert pool.used_bytes() <= before + 4 * kept
        del found  # its arrays may lie in larger blocks, which stay as long as they do
        gc.collect()
        with device_for("gpu").activate():
            pass
        assert pool.total_bytes() <= held + 2**20
