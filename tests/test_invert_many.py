"""Many layers in one call: the answers of each for itself, whatever becomes of the others, on the host and on a card."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from spear_np import DeviceError, InputError, Inversion, LayerGradients, Progress, invert_layer, invert_many
from spear_np.answer.result import Status
from spear_np.backend.devices import CPU, Device, device_for
from spear_np.backend.host import to_host
from spear_np.many import MOST_TOGETHER, layers_together
from spear_np.placement import HOST_UNITS
from spear_np.search import blocks, together
from tests.backends import Backend
from tests.cards import Card, strict_card
from tests.layers import digit_layer

SHAPES = ((10, 100), (4, 60), (10, 100), (14, 120), (1, 40), (7, 100))
"""Batch and units."""
ENDLESS = (40, 100)
"""Far beyond the reach of sampling."""


def gradients(b: int, width: int, seed: int, **changes: Any) -> LayerGradients:
    data = digit_layer(b, width=width, seed=seed)
    given = {
        "weight_grad": data.weight_grad,
        "bias_grad": data.bias_grad,
        "weight": data.weight,
        "bias": data.bias,
    }
    return LayerGradients(**(given | changes))


def layers(shapes: Sequence[tuple[int, int]] = SHAPES) -> list[LayerGradients]:
    return [gradients(b, width, seed) for seed, (b, width) in enumerate(shapes)]


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    """A card, and a host that has no other device."""
    card = strict_card()
    for module in ("spear_np.many", "spear_np.invert"):
        monkeypatch.setattr(sys.modules[module], "device_for", lambda *_: card)
    return card


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many blocks went down together, launch by launch."""
    found: list[int] = []
    plain = blocks.descend

    def watched(device: Device, blocks: Sequence[Any]) -> list[Any]:
        found.append(len(blocks))
        return plain(device, blocks)

    monkeypatch.setattr(together, "descend", watched)
    return found


def same(one: Inversion, other: Inversion) -> None:
    """Both say the same, up to the rounding of float32 on the way."""
    assert (one.status, one.found, one.batch_size) == (other.status, other.found, other.batch_size)
    mine, theirs = to_host(one.inputs), to_host(other.inputs)
    order = np.argmax(np.abs(mine @ theirs.T) / np.linalg.norm(theirs, axis=1), axis=1) if len(mine) else []
    assert sorted(order) == list(range(one.found))
    np.testing.assert_allclose(mine, theirs[order], atol=1e-4)


class TestOnTheHost:
    def test_the_answers_are_those_of_one_layer_bit_for_bit(self) -> None:
        many = layers()
        told: list[int] = []
        found = invert_many(many, seed=3, done=lambda number, _: told.append(number))
        assert told == list(range(len(many)))
        for one, layer in zip(found, many, strict=True):
            alone = invert_layer(layer, seed=3)
            assert (one.status, one.proposals) == (alone.status, alone.proposals)
            assert one.certificate == alone.certificate
            np.testing.assert_array_equal(one.inputs, alone.inputs)
        assert [one.status for one in found] == ["exact"] * len(many)

    def test_none_is_none(self) -> None:
        assert invert_many([]) == []

    def test_options_are_checked_before_anything_begins(self) -> None:
        for wrong in ({"method": "chain"}, {"seed": -1}, {"method": "nothing"}):
            with pytest.raises(InputError):
                invert_many(layers(), **wrong)
        with pytest.raises(InputError, match="activation"):
            invert_many([*layers(), gradients(3, 40, 0, activation="gelu")])


def no_numbers() -> LayerGradients:
    """A layer that cannot be inverted: found out when it is read."""

    class Unreadable:
        shape, dtype, ndim = (60, 20), np.dtype(np.float32), 2

        def __getitem__(self, key: Any) -> Any:
            msg = "the disk is gone"
            raise OSError(msg)

    return LayerGradients(Unreadable())


class TestOnACard:
    @pytest.mark.parametrize("method", ["auto", "descent", "sampling"])
    def test_the_answers_are_those_of_the_host_where_they_were_asked_for(
        self, card: Card, method: str
    ) -> None:
        many = layers()
        found = invert_many(many, device="gpu", method=method, seed=3)
        for one in found:
            assert (one.device, one.where, one.method, one.seed) == ("gpu:0", card, method, 3)
            assert type(one.output_grad).__module__.startswith("array_api_strict")
        assert [one.status for one in found] == ["exact"] * len(many)
        for one, layer in zip(found, many, strict=True):
            same(_on_host(one), _alone(layer, method))

    def test_launches_are_shared(self, card: Card, launches: list[int]) -> None:
        many = layers([(12, 100)] * 6)
        found = invert_many(many, method="descent")
        assert [one.status for one in found] == ["exact"] * 6
        blocks = sum(len(one.history) for one in found)
        assert sum(launches) == blocks
        assert len(launches) < blocks
        assert max(launches) > 1

    def test_one_that_cannot_be_read_is_raised_when_the_others_are_done(self, card: Card) -> None:
        many = layers()
        many[2:2] = [no_numbers()]
        done: dict[int, Inversion] = {}
        with pytest.raises(OSError, match="the disk is gone") as raised:
            invert_many(many, done=done.__setitem__)
        assert raised.value.__notes__ == ["layer 2 of 7, counted from 0"]
        assert sorted(done) == [0, 1, 3, 4, 5, 6]
        assert {one.status for one in done.values()} == {"exact"}
        assert not _threads()

    def test_searches_that_raise_do_not_hold_up_the_others(
        self, card: Card, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plain = blocks.descend

        def descend(device: Device, blocks: Sequence[Any]) -> list[Any]:
            if any(block.rows.shape[1] == 14 for block in blocks):
                msg = "something is wrong"
                raise ArithmeticError(msg)
            return plain(device, blocks)

        monkeypatch.setattr(together, "descend", descend)
        done: dict[int, Inversion] = {}
        with pytest.raises(ArithmeticError) as raised:
            invert_many(layers(), method="descent", done=done.__setitem__)
        assert raised.value.__notes__ == ["layer 3 of 6, counted from 0"]
        assert sorted(done) == [0, 1, 2, 4, 5]

    def test_a_card_that_does_not_answer_ends_all(self, card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
        def descend(*_: Any) -> list[Any]:
            msg = "gpu:0 is gone"
            raise DeviceError(msg)

        monkeypatch.setattr(together, "descend", descend)
        with pytest.raises(DeviceError, match="gone"):
            invert_many(layers(), method="descent")
        assert not _threads()

    def test_stopping_ends_all_with_what_they_have(self, card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("spear_np.many.MOST_TOGETHER", 2)
        many = layers([ENDLESS] * 6)
        seen: list[tuple[int, Progress]] = []

        def callback(number: int, progress: Progress) -> None:
            assert threading.current_thread() is threading.main_thread()
            seen.append((number, progress))

        found = invert_many(
            many,
            callback=callback,
            stop=lambda: any(one.stage == "search" for _, one in seen),
            time_limit=60.0,
        )
        assert {one.status for one in found} <= {Status.FAILED, Status.PARTIAL}
        assert found[-1].reason == "stopped before it began"
        assert (found[-1].device, found[-1].where) == ("gpu:0", card)
        assert {number for number, _ in seen} <= {0, 1, 2, 3}

    def test_the_time_limit_is_that_of_each_layer(self, card: Card) -> None:
        many = [*layers([ENDLESS] * 2), *layers([(4, 60)] * 2)]
        found = invert_many(many, time_limit=3.0, method="sampling")
        assert [one.status for one in found[2:]] == ["exact"] * 2
        for one in found[:2]:
            assert one.status in (Status.FAILED, Status.PARTIAL)
            assert "the time limit of 3 s is spent" in one.reason

    def test_what_a_callable_raises_ends_everything(self, card: Card) -> None:
        def done(number: int, _: Inversion) -> None:
            raise KeyError(number)

        begun = time.monotonic()
        with pytest.raises(KeyError):
            invert_many([*layers([ENDLESS] * 3), *layers([(4, 60)])], done=done, method="sampling")
        assert not _threads()
        assert time.monotonic() - begun < 60

    def test_large_layers_follow_alone(
        self, card: Card, monkeypatch: pytest.MonkeyPatch, launches: list[int]
    ) -> None:
        monkeypatch.setattr("spear_np.placement.HOST_UNITS", 100)
        told: list[int] = []
        found = invert_many(layers(), done=lambda number, _: told.append(number))
        assert [one.status for one in found] == ["exact"] * len(SHAPES)
        assert told[-1] == 3
        assert {one.device for one in found} == {"gpu:0"}

    def test_an_answer_does_not_depend_on_the_others(self, card: Card) -> None:
        one, others = gradients(12, 100, 9), layers()
        found = [invert_many(many)[-1] for many in ([one], [others[0], one], [*others, one])]
        for other in found[1:]:
            same(_on_host(found[0]), _on_host(other))


@pytest.mark.gpu
class TestOnARealCard:
    def test_the_answers_are_those_of_the_host(self) -> None:
        if Backend.CUPY.missing is not None:
            pytest.skip(Backend.CUPY.missing)
        many = layers([*SHAPES, (30, 200), (50, 400), (40, 600)])
        found = invert_many(many, device="gpu")
        for one, layer in zip(found, many, strict=True):
            assert one.device == "gpu:0"
            same(one, invert_layer(layer))


class TestHowManyGoTogether:
    def test_memory_bounds_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        sizes: dict[str, int | None] = {"gpu:0": 80 * 10**9, "cpu": 128 * 10**9}
        monkeypatch.setattr("spear_np.many.memory_of", lambda device: sizes[device.name])
        shape, card = (HOST_UNITS, 784), strict_card()
        assert layers_together(card, [[shape]] * 100) == MOST_TOGETHER
        assert layers_together(card, [[shape]] * 5) == 5
        sizes["gpu:0"] = 10**9
        few = layers_together(card, [[shape]] * 100)
        assert 4 < few < MOST_TOGETHER
        sizes["gpu:0"] = 10**6
        assert layers_together(card, [[shape]] * 100) == 1
        sizes |= {"gpu:0": None, "cpu": 10**9}
        assert 1 < layers_together(card, [[shape]] * 100) < MOST_TOGETHER


def _alone(layer: LayerGradients, method: str) -> Inversion:
    inverted: Callable[..., Inversion] = invert_layer
    module = sys.modules["spear_np.invert"]
    patched, module.device_for = module.device_for, device_for  # type: ignore[attr-defined]
    try:
        return inverted(layer, method=method, seed=3)
    finally:
        module.device_for = patched  # type: ignore[attr-defined]


def _on_host(one: Inversion) -> Inversion:
    return replace(
        one,
        output_grad=to_host(one.output_grad),
        recovery=to_host(one.recovery),
        device="cpu",
        where=CPU,
    )


def _threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("spear-")]
