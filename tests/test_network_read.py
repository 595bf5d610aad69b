"""Which layers make a chain, and what is said of those that do not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from spear_np import InputError, Inversion, LayerGradients, Status, invert_chain
from spear_np.backend.host import to_host
from spear_np.network.labels import labels_of
from spear_np.network.problem import ChainProblem
from spear_np.network.read import Linked, NoChain, read_chain
from spear_np.network.verify import spare_equations
from tests.backends import Backend
from tests.chains import NetworkData, assert_whole, chain_on, digit_network
from tests.networks import Floats

Layers = tuple[LayerGradients, ...]
SECONDS = 1.0
"""What a search has that finds nothing."""


def network(**options: Any) -> NetworkData:
    usual: dict[str, Any] = {"activation": "gelu", "gain": 2.0, "dtype": np.float32, "widths": (60, 60, 60)}
    return digit_network(8, **(usual | options))


def deep() -> NetworkData:
    """A network of which every layer is factorised, none only passes on."""
    return network(widths=(18, 18, 60))


def with_entry(array: Floats, value: float) -> Floats:
    changed = array.copy()
    changed[(3,) * array.ndim] = value
    return changed


def entry(number: int, name: str, value: float) -> Callable[[NetworkData], Layers]:
    """Return what puts `value` into one array of a layer."""
    return lambda data: data.changed(number, **{name: with_entry(getattr(data.layers[number], name), value)})


@dataclass(frozen=True)
class Refused:
    """Layers that lead to nothing, and parts of what is said."""

    layers: Callable[[NetworkData], Layers]
    said: tuple[str, ...]


OVERFLOW = 1e120
RAISED = {
    "no layers": Refused(lambda _: (), ("`layers` is empty",)),
    "NaN in the first layer": Refused(entry(0, "weight_grad", np.nan), ("`weight_grad` holds NaN",)),
}
BROKEN = {
    "NaN": (entry(2, "weight_grad", np.nan), 2, "`weight_grad` holds NaN"),
    "infinity in a weight": (entry(2, "weight", np.inf), 2, "`weight` holds NaN or infinity"),
    "NaN in a bias_grad": (entry(3, "bias_grad", np.nan), 3, "`bias_grad` holds NaN"),
    "overflow": (
        lambda data: data.changed(2, weight_grad=data.layers[2].weight_grad.astype(np.float64) * OVERFLOW),
        2,
        "no room for arithmetic",
    ),
}
NO_CHAIN = {
    "NaN behind the first layer": Refused(
        entry(1, "weight_grad", np.nan), ("layer '1' cannot be used", "`weight_grad` holds NaN")
    ),
    "one layer": Refused(lambda data: data.layers[:1], ("there is no layer behind it",)),
    "no bias_grad": Refused(
        lambda data: data.changed(0, bias_grad=None), ("the first layer has no bias_grad",)
    ),
    "no weight": Refused(
        lambda data: data.changed(0, weight=None, bias=None), ("the first layer has no weight",)
    ),
    "no bias_grad behind it": Refused(
        lambda data: data.changed(1, bias_grad=None), ("layer '1' has no bias_grad",)
    ),
    "no weight behind it": Refused(
        lambda data: data.changed(1, weight=None, bias=None), ("layer '1' has no weight",)
    ),
    "an unknown activation": Refused(
        lambda data: data.changed(0, activation="snake"), ("is followed by 'snake'", "no activation that can")
    ),
    "no activation": Refused(lambda data: data.changed(0, activation="none"), ("no activation follows",)),
    "shapes that do not follow each other": Refused(
        lambda data: (data.layers[0], data.layers[0]), ("takes 64 features, but 60 units lead to it",)
    ),
    "as many inputs as units": Refused(
        lambda _: network_of_60().layers, ("the rank of its weight_grad cannot be told",)
    ),
    "a layer behind it that shows fewer inputs": Refused(
        lambda _: network(widths=(60, 5)).layers,
        ("layer '1' has a gradient that does not have the rank of the batch",),
    ),
}


def network_of_60() -> NetworkData:
    return digit_network(60, activation="gelu", gain=2.0, widths=(60, 60))


@pytest.mark.parametrize("name", RAISED)
def test_what_is_no_gradient_is_refused_and_its_layer_named(name: str) -> None:
    case = RAISED[name]
    with pytest.raises(InputError) as caught:
        invert_chain(case.layers(network()))
    for part in case.said:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", ["auto", "chain"])
@pytest.mark.parametrize("name", NO_CHAIN)
def test_layers_that_are_no_chain_fail_and_say_why(name: str, method: str) -> None:
    case = NO_CHAIN[name]
    layers = case.layers(network())
    answer = invert_chain(layers, method=method, seed=3)
    assert answer.status is Status.FAILED
    assert answer.found == 0
    assert answer.inputs.shape == (0, 64)
    assert (answer.method, answer.seed) == (method, 3)
    assert answer.reason.startswith("these layers are no chain that can be inverted: ")
    for part in case.said:
        assert part in answer.reason


@pytest.mark.parametrize("name", BROKEN)
def test_a_chain_ends_before_a_deeper_layer_that_is_broken_and_says_so(name: str) -> None:
    change, number, said = BROKEN[name]
    data = deep()
    answer = invert_chain(change(data))
    assert_whole(answer, data)
    assert answer.chain == tuple(str(n) for n in range(number))
    (caveat,) = [one for one in answer.certificate.caveats if "ends early" in one]
    assert f"layer '{number}' cannot be used" in caveat
    assert said in caveat


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize(
    "change", [{"bias_grad": None}, {"weight": None, "bias": None}], ids=["bias_grad", "weight"]
)
def test_a_chain_ends_before_a_layer_that_lacks_something(number: int, change: dict[str, Any]) -> None:
    data = deep()
    answer = invert_chain(data.changed(number, **change))
    if number == 1:
        assert answer.status is Status.FAILED
    else:
        assert_whole(answer, data)
        assert answer.chain == tuple(str(n) for n in range(number))


def test_a_chain_ends_behind_an_activation_that_is_not_known() -> None:
    data = network()
    answer = invert_chain(data.changed(1, activation="snake"))
    assert_whole(answer, data)
    assert answer.chain == ("0", "1")


def test_a_chain_ends_behind_a_hidden_layer_without_activation() -> None:
    data = network(activation=["gelu", "none", "gelu"])
    answer = invert_chain(data.layers)
    assert_whole(answer, data)
    assert answer.chain == ("0", "1")


class TestLayersOfTwoNetworks:
    def test_nothing_is_found_and_the_time_is_named(self) -> None:
        data, other = network(), network(seed=5)
        answer = invert_chain((data.layers[0], *other.layers[1:]), time_limit=SECONDS)
        assert answer.status is Status.FAILED
        assert answer.reason == f"the time limit of {SECONDS:g} s is spent: 0 of 8 inputs"
        assert answer.batch_size == 8

    def test_nor_with_the_wrong_activation(self) -> None:
        answer = invert_chain(network().changed(0, activation="silu"), time_limit=SECONDS)
        assert answer.status is Status.FAILED

    def test_a_relu_falls_back_on_its_own_zeros(self) -> None:
        data = digit_network(4, gain=2.0, widths=(80, 80), dtype=np.float32)
        other = digit_network(4, gain=2.0, widths=(80, 80), dtype=np.float32, seed=5)
        mixed = (data.layers[0], *other.layers[1:])
        answer = invert_chain(mixed, time_limit=2 * SECONDS)
        assert (answer.status, answer.found, answer.chain) == (Status.APPROXIMATE, 4, ())
        assert np.all(data.errors(answer)[0] < 1e-4)
        # The layer behind denies them, rightly or not: one layer alone cannot tell.
        assert "do not fit the gradient of the layer behind" in answer.reason
        assert answer.certificate["membership"].passed is False
        assert np.all(np.isinf(answer.certificate.error_bound))
        alone = invert_chain(mixed, method="chain", time_limit=SECONDS)
        assert alone.status is Status.FAILED
        assert alone.chain == ("0", "1", "2")


class TestFallBack:
    def test_auto_inverts_a_relu_alone_where_there_is_no_chain(self) -> None:
        data = digit_network(4, gain=2.0, widths=(80, 80), dtype=np.float32)
        answer = invert_chain(data.changed(1, bias_grad=None))
        assert_whole(answer, data)
        assert answer.chain == ()
        assert answer.labels is None

    def test_a_search_of_single_layers_uses_the_first_alone(self) -> None:
        data = digit_network(4, gain=2.0, widths=(80, 80), dtype=np.float32)
        answer = invert_chain(data.layers, method="descent")
        assert_whole(answer, data)
        assert answer.chain == ()
        with pytest.raises(InputError, match="only a ReLU"):
            invert_chain(network().layers, method="descent")

    def test_a_spent_budget_ends_both(self) -> None:
        answer = invert_chain(network(activation="relu").layers, max_proposals=1)
        assert answer.status in (Status.FAILED, Status.PARTIAL)
        assert "limit of 1 proposals" in answer.reason
        stopped = invert_chain(network(activation="relu").layers, stop=lambda: True)
        assert "stopped on request" in stopped.reason


class TestBatchSize:
    def test_one_that_is_too_small_finds_nothing_exact(self) -> None:
        answer = invert_chain(network().layers, batch_size=7, time_limit=SECONDS)
        assert answer.status is not Status.EXACT

    def test_one_that_deeper_layers_do_not_show_is_no_chain(self) -> None:
        answer = invert_chain(network().layers, batch_size=9)
        assert answer.status is Status.FAILED
        assert "rank 8, and so does not show its 9 inputs" in answer.reason

    def test_one_beyond_the_width_is_an_error(self) -> None:
        with pytest.raises(InputError, match="a batch size of 61 is impossible"):
            invert_chain(network().layers, batch_size=61)


class TestEquations:
    @pytest.mark.parametrize(("b", "count"), [(8, 2), (8, 3), (30, 3), (40, 4)])
    def test_spare_ones_are_those_beyond_the_unknowns(self, b: int, count: int) -> None:
        chain = chain_on(digit_network(b, activation="gelu", gain=2.0, widths=(60, 60, 60, 60)), count=count)
        assert chain.depth == count - 1
        # Each layer asks m - b numbers to vanish and one sum to be one; s · c = 1 leaves b - 1 coordinates.
        assert spare_equations(chain, chain.depth) == (count - 1) * (60 - b + 1) - (b - 1)

    def test_too_few_say_how_many_layers_would_do(self) -> None:
        data = digit_network(40, activation="gelu", gain=2.0, widths=(60, 60, 60, 60))
        chain = read_chain(data.layers[:2], Backend.NUMPY.device)
        assert isinstance(chain, NoChain)
        assert "40 inputs meet 21 equations in 39 unknowns with 1 layer(s)" in chain.reason
        assert chain.reason.endswith("2 would do")
        assert isinstance(read_chain(data.layers[:3], Backend.NUMPY.device), Linked)


class TestLabels:
    @pytest.mark.parametrize("loss", [None, "mse", "cross_entropy"])
    def test_another_loss_tells_none_whatever_it_is_called(self, loss: str | None) -> None:
        data = network(loss="mse")
        answer = invert_chain(data.layers, loss=loss)
        assert answer.status is Status.EXACT, answer.reason
        assert to_host(answer.labels).tolist() == [-1] * 8

    @pytest.mark.parametrize(
        ("row", "label"),
        [
            ([0.2, -0.7, 0.5], 1),
            ([0.2, -0.7, 0.9], -1),  # sums to more than nothing
            ([0.8, -0.7, -0.1], -1),  # two classes at once
            ([0.0, 0.0, 0.0], -1),
            ([1e-12, -3e-12, 2e-12], 1),  # however small
        ],
    )
    def test_one_negative_entry_names_the_class(self, row: list[float], label: int) -> None:
        chain = chain_on(digit_network(2, activation="gelu", gain=2.0, outputs=3))
        found = labels_of(chain, np.asarray([row]), "cross_entropy")
        assert found is not None
        assert found.tolist() == [label]
        assert labels_of(chain, np.asarray([row]), "mse").tolist() == [-1]  # type: ignore[union-attr]

    def test_without_an_output_layer_there_are_none(self) -> None:
        chain = chain_on(network(), count=2)
        assert labels_of(chain, np.ones((1, 8)), "cross_entropy") is None


class TestProblem:
    def test_rounds_are_pure_functions_of_state_and_random_numbers(self) -> None:
        problem = ChainProblem(chain_on(network(activation="relu")))
        state = problem.start()
        one, other = (problem.advance(state, np.random.default_rng(2)) for _ in range(2))
        assert (one.found, one.proposals, one.refused) == (other.found, other.proposals, other.refused)
        assert (state.found, state.proposals) == (0, 0)

    def test_what_is_left_shrinks_with_each_input(self) -> None:
        problem = ChainProblem(chain_on(network(activation="relu")))
        state, rng = problem.start(), np.random.default_rng(0)
        while not state.settled:
            state = problem.advance(state, rng)
            assert state.left.missing == max(8 - state.found, 1)
            products = np.eye(0) if state.duals is None else state.duals @ state.known[-1].c[0]
            if state.found:
                assert products[-1] == pytest.approx(1, abs=1e-3)
                assert products[:-1] == pytest.approx(0, abs=1e-3)
        assert problem.answer(state, None).status is Status.EXACT

    def test_progress_is_told(self) -> None:
        stages = []
        answer: Inversion = invert_chain(network().layers, callback=lambda one: stages.append(one.stage))
        assert (stages[0], stages[-1]) == ("factorize", "verify")
        assert "search" in stages
        assert sum(entry.proposals for entry in answer.history) == answer.proposals

    def test_a_batch_of_which_some_is_found_is_partial_with_bounds(self) -> None:
        data = network(activation="relu")
        problem = ChainProblem(chain_on(data))
        state, rng = problem.start(), np.random.default_rng(0)
        while state.found < 3:
            state = problem.advance(state, rng)
        answer = problem.answer(replace(state, known=state.known[:3]), "enough")
        assert answer.status is Status.PARTIAL
        assert answer.reason == "enough: 3 of 8 inputs found"
        errors, rows = data.errors(answer)
        assert len(set(rows.tolist())) == 3
        assert np.all(errors <= np.asarray(answer.certificate.error_bound) / np.ptp(data.inputs[0]))
