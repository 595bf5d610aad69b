"""Blocks of a gradient on their way to a card, on streams that do nothing before somebody waits for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spear_np import LayerGradients
from spear_np.backend.devices import CPU, Device, device_for
from spear_np.backend.uploads import one_ahead
from spear_np.factors import gradients
from spear_np.factors.gradients import WeightDecay
from tests.backends import Backend, assert_array
from tests.fake_cupy import Card, Numbers, Stream, current_card, current_stream, forgotten, install

Floats = np.ndarray[Any, Any]


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two cards."""
    with forgotten():
        install(monkeypatch, cards=2)
        Stream.waited_for = 0
        yield


def numbers(count: int, dtype: Any = np.float32) -> list[list[Floats]]:
    rng = np.random.default_rng(count)
    return [[rng.standard_normal((3, 4)).astype(dtype), rng.standard_normal((3, 2))] for _ in range(count)]


def computed(device: Device, reads: Iterator[Sequence[Floats]] | list[list[Floats]]) -> list[list[Floats]]:
    """Each array plus one, launched on the current stream and never waited for before the end; blocks are dropped at once."""
    with device.activate():
        made = [[one.plus(1.0) for one in arrays] for arrays in device.streamed(reads)]  # type: ignore[attr-defined]
        return [[one.get() for one in arrays] for arrays in made]


@pytest.mark.usefixtures("cards")
class TestOnACard:
    @pytest.mark.parametrize("name", ["gpu:0", "gpu:1"])
    @pytest.mark.parametrize("count", [0, 1, 2, 3, 8])
    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int64, ">f4"])
    def test_every_number_arrives(self, name: str, count: int, dtype: Any) -> None:
        reads = numbers(count, dtype)
        found = computed(device_for(name), reads)
        for here, there in zip(reads, found, strict=True):
            for one, other in zip(here, there, strict=True):
                assert other.dtype == np.float64
                np.testing.assert_array_equal(other, one.astype(np.float64) + 1)

    @pytest.mark.parametrize("count", [1, 4])
    def test_what_waits_for_a_block_alone_sees_all_of_it(self, count: int) -> None:
        device, reads = device_for("gpu:1"), numbers(count)
        with device.activate():
            for here, arrays in zip(reads, device.streamed(reads), strict=True):
                for one, other in zip(here, arrays, strict=True):
                    np.testing.assert_array_equal(other.get(), one.astype(np.float64))  # type: ignore[attr-defined]

    def test_the_stream_of_the_caller_is_the_one_that_waits(self) -> None:
        device, reads = device_for("gpu:1"), numbers(5)
        with Card(1):
            own = Stream()
        with own:
            found = computed(device, reads)
            with Card(1):
                assert current_stream() is own
        assert not own.tasks
        np.testing.assert_array_equal(found[4][0], reads[4][0].astype(np.float64) + 1)

    def test_a_block_is_on_its_way_while_the_last_one_is_computed_with(self) -> None:
        device, read = device_for("gpu:0"), []

        def reads() -> Iterator[list[Floats]]:
            for number, arrays in enumerate(numbers(4)):
                read.append(number)
                yield arrays

        ahead = []
        with device.activate():
            for number, _ in enumerate(device.streamed(reads())):
                ahead.append(read[-1] - number)
        assert ahead == [1, 1, 1, 0]

    def test_arrays_that_are_there_are_not_sent(self, monkeypatch: pytest.MonkeyPatch) -> None:
        device = device_for("gpu:1")
        with device.activate():
            here: Any = Numbers((3, 4), np.float64)
            current_stream().do(lambda: here.values.fill(2.0))
            monkeypatch.setattr(Numbers, "set", lambda *_: pytest.fail("it was sent"))
            ((found,),) = device.streamed([[here]])
            assert found is here

    def test_a_consumer_may_stop(self) -> None:
        device, reads = device_for("gpu:0"), numbers(6)
        with device.activate():
            made = []
            for arrays in device.streamed(reads):
                made.append(arrays[0].plus(1.0))  # type: ignore[attr-defined]
                if len(made) == 2:
                    break
            assert Stream.waited_for == 1, "memory went back while a copy was on its way"
            later = [Numbers((3, 4), np.float32) for _ in range(6)]
            for one in later:
                current_stream().do(partial(one.values.fill, 7.0))
            assert all(np.all(one.get() == 7) for one in later)
            np.testing.assert_array_equal(made[1].get(), reads[1][0].astype(np.float64) + 1)

    def test_what_a_reader_raises_comes_in_its_turn(self) -> None:
        device = device_for("gpu:0")

        def reads() -> Iterator[list[Floats]]:
            yield from numbers(3)
            msg = "damaged"
            raise OSError(msg)

        seen: list[object] = []
        with device.activate(), pytest.raises(OSError, match="damaged"):
            seen.extend(device.streamed(reads()))
        assert len(seen) == 3
        assert Stream.waited_for == 1

    def test_the_card_of_the_caller_stays_current_between_blocks(self) -> None:
        device = device_for("gpu:1")
        for _ in device.streamed(numbers(3)):
            assert current_card() == 0
        with Card(0):
            assert current_card() == 0

    def test_a_gradient_is_streamed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        m, n = 4, 11
        monkeypatch.setattr(gradients, "BLOCK_BYTES", 8 * m * 3)
        rng = np.random.default_rng(3)
        matrix, weight = rng.standard_normal((2, m, n)).astype(np.float32)
        layer = LayerGradients(matrix, weight=weight)
        device = device_for("gpu:1")
        with device.activate():
            made = [
                (columns, *(one.plus(1.0) for one in blocks))  # type: ignore[attr-defined]
                for columns, blocks in layer.blocks("weight_grad", "weight", "update", device=device)
            ]
            for columns, *blocks in made:
                for one, whole in zip(blocks, (matrix, weight, matrix), strict=True):
                    np.testing.assert_array_equal(one.get(), whole[:, columns].astype(np.float64) + 1)


class TestElsewhere:
    def test_blocks_are_made_when_they_are_asked_for(self, backend: Backend) -> None:
        read = []

        def reads() -> Iterator[list[Floats]]:
            for number in range(3):
                read.append(number)
                yield [np.full((2, 2), number, dtype=np.float32)]

        with backend.device.activate():
            for number, (block,) in enumerate(backend.device.streamed(reads())):
                assert backend is Backend.CUPY or read[-1] == number
                assert_array(block, np.full((2, 2), float(number)), backend)

    def test_numbers_of_the_host_are_not_copied(self) -> None:
        values = np.ones((2, 3))
        ((block,),) = CPU.streamed([[values]])
        assert np.shares_memory(np.asarray(block), values)

    def test_each_matrix_is_read_once_for_all_names(self) -> None:
        class Counted:
            def __init__(self, values: Floats) -> None:
                self.values, self.shape, self.dtype, self.reads = values, values.shape, values.dtype, 0

            def __getitem__(self, key: Any) -> Floats:
                self.reads += 1
                return np.asarray(self.values[key])

        rng = np.random.default_rng(1)
        update, weight = Counted(rng.standard_normal((3, 5))), Counted(rng.standard_normal((3, 5)))
        layer = LayerGradients(update, weight=weight, decay=WeightDecay(0.1))
        ((_, found),) = layer.blocks("weight_grad", "weight", "update", device=CPU)
        assert (update.reads, weight.reads) == (1, 1)
        for one, wanted in zip(
            found,
            (update.values - 0.1 * weight.values, weight.values, update.values),
            strict=True,
        ):
            np.testing.assert_array_equal(one, wanted)


class TestOneAhead:
    @given(st.lists(st.integers()))
    def test_nothing_is_lost(self, items: list[int]) -> None:
        assert list(one_ahead(iter(items))) == items

    @given(st.integers(0, 5))
    def test_an_error_comes_after_what_was_made_before(self, count: int) -> None:
        def items() -> Iterator[int]:
            yield from range(count)
            raise KeyError

        seen: list[int] = []
        with pytest.raises(KeyError):
            seen.extend(one_ahead(items()))
        assert seen == list(range(count))


@pytest.mark.gpu
class TestOnARealCard:
    """The same on the last card there is, with a stream of the caller's own."""

    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
    def test_every_number_arrives(self, dtype: Any) -> None:
        if Backend.CUPY.missing is not None:
            pytest.skip(Backend.CUPY.missing)
        import cupy

        device = device_for(f"gpu:{cupy.cuda.runtime.getDeviceCount() - 1}")
        rng = np.random.default_rng(0)
        reads = [[rng.standard_normal((500, 3000)).astype(dtype)] for _ in range(7)]
        with device.activate(), cupy.cuda.Stream(non_blocking=True):
            made: list[Any] = [block @ block.T for (block,) in device.streamed(reads)]
            for product, (one,) in zip(made, reads, strict=True):
                assert product.device == device.handle
                whole = one.astype(np.float64)
                np.testing.assert_allclose(product.get(), whole @ whole.T, rtol=1e-10, atol=1e-9)
