"""Which parameters make a layer, how they lie and in which order: told from names and shapes alone."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spear_io.adapters._layers import Shape, activations_of, find_layers


def found(shapes: dict[str, Shape], **options: object) -> list[tuple[str, tuple[int, int], bool]]:
    layers, _ = find_layers(shapes, **options)  # type: ignore[arg-type]
    return [(layer.layer, layer.shape, layer.transposed) for layer in layers]


def flax(*sizes: int, names: list[str] | None = None) -> dict[str, Shape]:
    names = names or [f"Dense_{number}" for number in range(len(sizes) - 1)]
    shapes: dict[str, Shape] = {}
    for name, (n, m) in zip(names, pairwise(sizes), strict=True):
        shapes |= {f"{name}.bias": (m,), f"{name}.kernel": (n, m)}
    return shapes


NAMING: dict[str, tuple[dict[str, Shape], list[str], bool]] = {
    "flax": (flax(64, 80, 10), ["Dense_0", "Dense_1"], True),
    "pytorch": (
        {"fc1.weight": (80, 64), "fc1.bias": (80,), "fc2.weight": (10, 80), "fc2.bias": (10,)},
        ["fc1", "fc2"],
        False,
    ),
    "haiku": (
        {
            "mlp/~/linear_0.b": (80,),
            "mlp/~/linear_0.w": (64, 80),
            "mlp/~/linear_1.b": (10,),
            "mlp/~/linear_1.w": (80, 10),
        },
        ["mlp.~.linear_0", "mlp.~.linear_1"],
        True,
    ),
    "numbered leaves": ({"W1": (64, 80), "W2": (80, 10), "b1": (80,), "b2": (10,)}, ["1", "2"], True),
    "pairs": ({"0.0": (64, 80), "0.1": (80,), "1.0": (80, 10), "1.1": (10,)}, ["0", "1"], True),
    "by position": ({"0": (80, 64), "1": (80,), "2": (10, 80), "3": (10,)}, ["0", "2"], False),
    "by position, no biases": ({"0.weight": (80, 64), "1.weight": (10, 80)}, ["0", "1"], False),
}


@pytest.mark.parametrize(("shapes", "names", "transposed"), NAMING.values(), ids=NAMING.keys())
def test_parameters_are_paired_however_they_are_named(
    shapes: dict[str, Shape], names: list[str], transposed: bool
) -> None:
    assert found(shapes) == [
        (names[0], (80, 64), transposed),
        (names[1], (10, 80), transposed),
    ]


def test_one_layer_alone() -> None:
    layers, skipped = find_layers({"kernel": (64, 80), "bias": (80,)})
    assert (layers[0].layer, layers[0].weight, layers[0].bias) == ("linear", "kernel", "bias")
    assert skipped == {}
    assert find_layers({}) == ([], {})


def test_numbers_count_as_numbers() -> None:
    names = [f"fc{number}" for number in (1, 10, 2, 9)]  # as a tree sorts them
    assert [name for name, *_ in found(flax(8, 8, 8, 8, 8, names=names))] == ["fc1", "fc2", "fc9", "fc10"]


@given(st.permutations(range(4)), st.data())
def test_names_of_several_kinds_are_put_in_a_row_by_their_sizes(
    order: list[int], data: st.DataObject
) -> None:
    sizes = data.draw(st.lists(st.integers(1, 99), min_size=5, max_size=5, unique=True))
    names = ["entry", "middle", "deep", "exit"]
    shapes = flax(*sizes, names=names)
    shuffled = {
        f"{names[number]}.{leaf}": shapes[f"{names[number]}.{leaf}"]
        for number in order
        for leaf in ("bias", "kernel")
    }
    assert [name for name, *_ in found(shuffled)] == names


def test_the_output_layer_comes_last_where_it_would_fit_earlier() -> None:
    shapes = flax(64, 80, 80, 10, names=["in", "hidden", "a_head"])
    assert [name for name, *_ in found(dict(sorted(shapes.items())))] == ["in", "hidden", "a_head"]


def test_what_does_not_join_stays_as_it_is() -> None:
    shapes = flax(64, 80, names=["b"]) | flax(32, 10, names=["a"])
    assert [name for name, *_ in found(shapes)] == ["b", "a"]


def test_an_order_that_is_given_decides_and_selects() -> None:
    shapes = flax(64, 80, 70, 10)
    assert [name for name, *_ in found(shapes, order=["Dense_2", "Dense_0"])] == ["Dense_2", "Dense_0"]
    with pytest.raises(ValueError, match="`order` names 'fc', but the fully connected layers are: Dense_0"):
        find_layers(shapes, order=["fc"])


def test_what_is_no_fully_connected_layer_says_why() -> None:
    layers, skipped = find_layers(
        {
            "conv.kernel": (3, 3, 1, 4),
            "norm.scale": (64,),
            "norm.bias": (64,),
            "emb.embedding": (10, 64),
            "cell.weight_ih": (40, 64),
            "cell.weight_hh": (40, 10),
            "odd.weight": (3, 4),
            "odd.bias": (5,),
            "none.weight": (0, 4),
            "step": (),
            "fc.kernel": (64, 80),
            "fc.scale": (64,),
            "fc.bias": (80,),
        }
    )
    (layer,) = layers
    assert (layer.layer, layer.bias) == ("fc", "fc.bias")
    assert {name: reason.partition(",")[0].partition(":")[0] for name, reason in skipped.items()} == {
        "conv": "its weight has 4 dimensions",
        "emb": "an embedding",
        "cell": "holds 2 matrices",
        "odd": "its vector has 5 entries",
        "none": "its weight has shape (0",
    }


def test_a_square_matrix_lies_as_its_name_or_the_others_say() -> None:
    assert found({"a.kernel": (8, 8), "a.bias": (8,)})[0][2]
    assert not found({"a.weight": (8, 8), "a.bias": (8,)})[0][2]
    square = {"0": (8, 8), "1": (8,)}
    assert found({"0": (4, 8), "1": (8,), "2": (8, 8), "3": (8,)})[1][2]
    for transposed in (False, True):
        assert found(square, transposed=transposed)[0][2] == transposed
    with pytest.raises(
        ValueError, match=r"\(8, 8\) weight of layer '0' .* give `transposed=False` if its rows"
    ):
        find_layers(square)


def test_nothing_but_the_last_layer_is_taken_to_lack_its_relu() -> None:
    assert activations_of(["a", "b", "c"]) == {"a": "relu", "b": "relu", "c": "linear"}
    assert activations_of(["a", "b"], {"b": "relu6"}) == {"a": "relu", "b": "relu6"}
    assert activations_of([]) == {}
    with pytest.raises(ValueError, match="`activations` names 'd', but"):
        activations_of(["a"], {"d": "relu"})
