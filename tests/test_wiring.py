"""What a graph of operations says of its layers."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest

from spear_io.adapters.wiring import (
    MOST_NAMES,
    Elementwise,
    Kept,
    Moved,
    Operation,
    Other,
    Output,
    Product,
    Step,
    Wiring,
    wire,
)
from spear_np import Activation

RELU, TANH = Activation("relu"), Activation("tanh")
NONE = Activation("none")
SHAPES = dict.fromkeys("abcd", (6, 6))


def dense(name: str) -> Product:
    return Product("dense", name, linear=True)


def line(*operations: Operation) -> list[Step]:
    """Operations each of which takes the output of the one before."""
    return [Step(one, (at - 1,) if at else ()) for at, one in enumerate(operations)]


def links(steps: Sequence[Step], shapes: dict[str, tuple[int, int]] = SHAPES) -> dict[str, Wiring]:
    return wire(steps, shapes)


def test_a_chain_has_its_activations_and_links() -> None:
    steps = line(Kept(), dense("a"), Elementwise(RELU), dense("b"), Elementwise(TANH), dense("c"), Output())
    assert links(steps) == {"a": Wiring(RELU), "b": Wiring(TANH, "a"), "c": Wiring(NONE, "b")}


@pytest.mark.parametrize(
    ("between", "said"),
    [
        ([Other("dropout")], "dropout"),
        ([Elementwise(RELU), Other("dropout"), Kept("flatten"), Other("layer_norm")], "dropout+layer_norm"),
        ([Elementwise(RELU), Other("layer_norm"), Elementwise(RELU)], "layer_norm"),
        ([Elementwise(RELU), Elementwise(TANH)], "tanh"),
        ([Moved("permute"), Elementwise(RELU)], "permute"),
        (
            [Elementwise(RELU), Product("conv2d", "k"), Elementwise(RELU), Other("max_pool2d")],
            "conv2d+max_pool2d",
        ),
    ],
)
def test_what_stands_between_is_named(between: list[Operation], said: str) -> None:
    found = links(line(dense("a"), *between, dense("b"), Output()))
    assert (found["b"].follows, found["b"].between) == (None, said)


@pytest.mark.parametrize("keeps", [Kept(), Kept("flatten"), Elementwise(NONE)])
def test_what_keeps_all_numbers_is_seen_through(keeps: Operation) -> None:
    found = links(line(dense("a"), keeps, Elementwise(RELU), keeps, dense("b"), keeps, Output()))
    assert found == {"a": Wiring(RELU), "b": Wiring(NONE, "a")}


def test_widths_that_do_not_fit_are_no_link() -> None:
    shapes = {"a": (6, 6), "b": (6, 24), "c": (3, 3)}
    found = links(
        line(dense("a"), Elementwise(RELU), Kept("flatten"), dense("b"), Elementwise(TANH), dense("c")),
        shapes,
    )
    assert (found["b"].follows, found["b"].between) == (None, "flatten")
    assert (found["c"].follows, found["c"].between) == (None, "tanh")


def test_what_is_not_written_or_used_twice_is_not_followed() -> None:
    steps = line(dense("a"), dense("hidden"), dense("b"), dense("c"), dense("c"), dense("d"))
    found = links(steps)
    assert {name: (one.follows, one.between) for name, one in found.items()} == {
        "a": (None, None),
        "hidden": (None, None),
        "b": (None, "dense"),
        "c": (None, None),
        "d": (None, "dense"),
    }


def test_several_activations_of_one_output_are_joined_and_not_followed() -> None:
    steps = [
        Step(dense("a")),
        Step(Elementwise(RELU), (0,)),
        Step(dense("b"), (1,)),
        Step(Other("add"), (0, 2)),
        Step(dense("c"), (3,)),
    ]
    found = links(steps)
    assert found["a"].activation == Activation("add+relu")
    assert (found["b"].follows, found["c"].follows, found["c"].between) == (None, None, "add")


def test_a_residual_sum_leaves_the_link_below_it() -> None:
    steps = [
        Step(dense("a")),
        Step(Elementwise(RELU), (0,)),
        Step(dense("b"), (1,)),
        Step(Other("add"), (1, 2)),
        Step(dense("c"), (3,)),
    ]
    found = links(steps)
    assert (found["a"].activation, found["b"].follows, found["c"].between) == (RELU, "a", "add")


def test_walks_are_linear_where_there_are_many_paths() -> None:
    """2^5000 paths, and as many names."""
    steps = [Step(dense("a"))]
    for number in range(5000):
        last = len(steps) - 1
        steps += [Step(Other(f"left{number}"), (last,)), Step(Other(f"right{number}"), (last,))]
        steps.append(Step(Other("add"), (last + 1, last + 2)))
    steps.append(Step(dense("b"), (len(steps) - 1,)))
    begun = time.perf_counter()
    found = links(steps)
    assert time.perf_counter() - begun < 20  # minutes would be too many paths
    assert found["b"].between is not None
    assert len(found["b"].between.split("+")) == MOST_NAMES
