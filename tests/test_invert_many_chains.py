"""Chains among what is inverted in one call: the answers of each for itself, on the host and on a card."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from spear_np import (
    InputError,
    Inversion,
    LayerChain,
    LayerGradients,
    Progress,
    invert_chain,
    invert_layer,
    invert_many,
)
from spear_np.answer.result import Status
from spear_np.backend.devices import CPU, Device
from spear_np.backend.host import to_host
from spear_np.many import MOST_TOGETHER, layers_together
from spear_np.search import together
from spear_np.search.fits import fit_on
from spear_np.search.reflections import walk_on
from tests.backends import Backend
from tests.cards import Card, strict_card
from tests.chains import NetworkData, digit_network
from tests.layers import digit_layer

NAMES = ("first", "second", "third", "fourth")


def network(b: int, widths: Sequence[int], activation: str, seed: int) -> NetworkData:
    return digit_network(b, widths=widths, activation=activation, gain=2.0, seed=seed, dtype=np.float32)


NETWORKS = (
    network(8, (60, 60), "relu", 0),
    network(6, (50, 70, 40), "relu", 1),
    network(9, (60, 60), "gelu", 2),
    network(7, (70, 50), "relu", 3),
    network(7, (50, 60), "gelu", 4),
    network(8, (60, 50), "relu6", 5),
)


def chain_of(data: NetworkData) -> LayerChain:
    return LayerChain(data.layers, NAMES[: len(data.layers)], "cross_entropy")


def layer_of(b: int, seed: int) -> LayerGradients:
    data = digit_layer(b, width=80, seed=seed)
    return LayerGradients(data.weight_grad, data.bias_grad, data.weight, data.bias)


def alone(given: LayerChain | LayerGradients, **options: Any) -> Inversion:
    """What the host says of one of them."""
    if isinstance(given, LayerGradients):
        return invert_layer(given, device="cpu", **options)
    return invert_chain(given.layers, names=given.names, loss=given.loss, device="cpu", **options)


def assert_right(answer: Inversion, data: NetworkData) -> None:
    """It is exact, holds every input once within its bound, and their labels."""
    assert answer.status is Status.EXACT, answer.reason
    inputs = to_host(answer.inputs)
    rows = [int(np.argmin(np.linalg.norm(data.inputs[0] - row, axis=1))) for row in inputs]
    assert sorted(rows) == list(range(len(data.labels)))
    off = np.max(np.abs(inputs - data.inputs[0][rows]), axis=1)
    assert np.all(off <= answer.certificate.error_bound)
    assert answer.labels is not None
    assert to_host(answer.labels).tolist() == data.labels[rows].tolist()


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    """A card, where one is asked for or nothing is."""
    card = strict_card()
    for module in ("spear_np.many", "spear_np.invert"):
        monkeypatch.setattr(
            sys.modules[module], "device_for", lambda name, *_: CPU if name == "cpu" else card
        )
    return card


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[int]]:
    """How many chains went together, launch by launch."""
    found: dict[str, list[int]] = {"walk_on": [], "fit_on": []}

    def watched(name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
        def launch(device: Device, several: Sequence[Any]) -> Any:
            found[name].append(len(several))
            return plain(device, several)

        return launch

    for name, plain in (("walk_on", walk_on), ("fit_on", fit_on)):
        monkeypatch.setattr(together, name, watched(name, plain))
    return found


class TestWhatIsHandedOver:
    def test_a_chain_has_layers_and_a_name_for_each_or_none(self) -> None:
        layers = NETWORKS[0].layers
        assert LayerChain(list(layers)).layers == layers
        with pytest.raises(InputError, match="`layers` is empty"):
            LayerChain([])
        with pytest.raises(InputError, match="2 names for 3 layers"):
            LayerChain(layers, ["a", "b"])

    def test_what_the_method_cannot_invert_is_refused_at_once(self) -> None:
        with pytest.raises(InputError, match="needs the layers that follow"):
            invert_many([chain_of(NETWORKS[0]), layer_of(4, 1)], method="chain")
        with pytest.raises(InputError, match="only a ReLU leaves"):
            invert_many([chain_of(NETWORKS[2])], method="descent")


class TestOnTheHost:
    def test_the_answers_are_those_of_one_alone_bit_for_bit(self) -> None:
        given: list[LayerChain | LayerGradients]
        given = [*(chain_of(data) for data in NETWORKS[:3]), layer_of(5, 1), chain_of(NETWORKS[5])]
        for one, found in zip(given, invert_many(given, seed=3), strict=True):
            wanted = alone(one, seed=3)
            assert (found.status, found.proposals, found.chain) == (
                wanted.status,
                wanted.proposals,
                wanted.chain,
            )
            assert found.certificate == wanted.certificate
            np.testing.assert_array_equal(found.inputs, wanted.inputs)


class TestOnACard:
    def test_one_alone_is_that_of_the_host_where_it_was_asked_for(self, card: Card) -> None:
        for data in NETWORKS[:3]:
            chain = chain_of(data)
            found = invert_chain(chain.layers, names=chain.names, loss=chain.loss, method="chain", seed=3)
            assert (found.device, found.where, found.chain) == ("gpu:0", card, alone(chain).chain)
            assert type(found.recovery).__module__.startswith("array_api_strict")
            assert_right(found, data)

    def test_chains_and_layers_go_together(self, card: Card, launches: dict[str, list[int]]) -> None:
        given: list[LayerChain | LayerGradients]
        given = [*(chain_of(data) for data in NETWORKS), layer_of(8, 1), layer_of(5, 2)]
        found = invert_many(given, device="gpu", seed=3)
        for one, answer in zip(given, found, strict=True):
            wanted = alone(one, seed=3)
            assert (answer.status, answer.found, answer.chain) == (wanted.status, wanted.found, wanted.chain)
            assert (answer.device, answer.where, answer.method, answer.seed) == ("gpu:0", card, "auto", 3)
        for data, answer in zip(NETWORKS, found, strict=False):
            assert_right(answer, data)
        rounds = sum(len(answer.history) for answer in found[: len(NETWORKS)])
        assert max(launches["walk_on"]) > 1
        assert max(launches["fit_on"]) > 1
        assert sum(map(len, launches.values())) < rounds

    def test_an_answer_does_not_depend_on_the_others(self, card: Card) -> None:
        one, others = chain_of(NETWORKS[3]), [chain_of(data) for data in NETWORKS[:2]]
        for many in ([one], [*others, one]):
            assert_right(invert_many(many, method="chain", seed=1)[-1], NETWORKS[3])

    def test_one_that_fails_does_not_cost_the_others(
        self, card: Card, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def launch(device: Device, walks: Sequence[Any]) -> Any:
            if any(walk.points[0].shape[1] == 70 for walk in walks):
                msg = "something is wrong"
                raise ArithmeticError(msg)
            return walk_on(device, walks)

        monkeypatch.setattr(together, "walk_on", launch)
        done: dict[int, Inversion] = {}
        with pytest.raises(ArithmeticError) as raised:
            invert_many([chain_of(data) for data in NETWORKS], method="chain", done=done.__setitem__)
        assert raised.value.__notes__ == ["layer 3 of 6, counted from 0"]
        assert sorted(done) == [0, 1, 2, 4, 5]
        for number, answer in done.items():
            assert_right(answer, NETWORKS[number])

    def test_zeros_of_the_first_layer_are_tried_where_the_layers_are_no_chain(self, card: Card) -> None:
        data = NETWORKS[0]
        cut = LayerChain([data.layers[0], replace(data.layers[1], weight=None)])
        (found,) = invert_many([cut])
        assert found.status is Status.EXACT
        assert (found.chain, found.device) == ((), "gpu:0")
        wrong = LayerChain([data.layers[0], NETWORKS[3].layers[1]])
        (refused,) = invert_many([wrong], method="chain")
        assert (refused.status, refused.where) == (Status.FAILED, card)

    def test_what_the_layers_behind_say_of_the_first_is_heard(self, card: Card) -> None:
        data = network(4, (60, 60), "relu", 1)
        many = [chain_of(data)]
        found, wanted = invert_many(many, method="descent")[0], alone(many[0], method="descent")
        assert (found.status, found.found) == (wanted.status, wanted.found) == (Status.EXACT, 4)
        assert [one.name for one in found.certificate.checks] == [
            one.name for one in wanted.certificate.checks
        ]
        assert "membership" in {one.name for one in found.certificate.checks}

    def test_stopping_ends_all_with_what_they_have(self, card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("spear_np.many.MOST_TOGETHER", 2)
        seen: list[Progress] = []
        many = [chain_of(network(29, (60, 60), "relu", seed)) for seed in range(4)]
        found = invert_many(
            many, method="chain", callback=lambda _, progress: seen.append(progress), stop=lambda: bool(seen)
        )
        assert {one.status for one in found} <= {Status.FAILED, Status.PARTIAL}
        assert found[-1].reason == "stopped before it began"

    def test_chains_with_a_large_layer_follow_alone(
        self, card: Card, monkeypatch: pytest.MonkeyPatch, launches: dict[str, list[int]]
    ) -> None:
        monkeypatch.setattr("spear_np.placement.HOST_UNITS", 60)
        told: list[int] = []
        chains = [chain_of(NETWORKS[number]) for number in (3, 0)]
        found = invert_many(chains, method="chain", done=lambda number, _: told.append(number))
        assert told == [1, 0]
        assert launches["walk_on"] == [1] * len(found[1].history)
        assert_right(found[0], NETWORKS[3])


@pytest.mark.gpu
class TestOnARealCard:
    def test_the_answers_are_those_of_the_host(self) -> None:
        if Backend.CUPY.missing is not None:
            pytest.skip(Backend.CUPY.missing)
        larger = [
            digit_network(40, widths=(200, 200), activation=activation, dtype=np.float32, seed=seed)
            for seed, activation in enumerate(("relu", "gelu", "relu"))
        ]
        networks = [*NETWORKS, *larger]
        found = invert_many([chain_of(data) for data in networks], device="gpu")
        for data, answer in zip(networks, found, strict=True):
            assert answer.device == "gpu:0"
            assert_right(answer, data)
            chain = chain_of(data)
            one = invert_chain(chain.layers, names=chain.names, loss=chain.loss, device="gpu")
            assert_right(one, data)


def test_memory_bounds_how_many_go_together(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: dict[str, int | None] = {"gpu:0": 80 * 10**9, "cpu": 128 * 10**9}
    monkeypatch.setattr("spear_np.many.memory_of", lambda device: sizes[device.name])
    chain, card = [(500, 784), (500, 500), (10, 500)], strict_card()
    assert layers_together(card, [chain] * 100) == MOST_TOGETHER
    for place, few in (("gpu:0", 10**9), ("cpu", 10**9)):
        monkeypatch.setitem(sizes, place, few)
        of_chains, of_layers = (layers_together(card, [one] * 100) for one in (chain, chain[:1]))
        assert 1 <= of_chains < of_layers <= MOST_TOGETHER
        monkeypatch.setitem(sizes, place, 128 * 10**9)
