"""Names, positions, orientation, order: what is concluded from what, and when it is asked instead."""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spear_io import open_dump
from spear_io.convert.names import understand, understand_all
from tests.convert_files import converted
from tests.io_files import Command, command, layer_data, write_good_dump


@pytest.fixture
def spear(capsys: pytest.CaptureFixture[str]) -> Command:
    return command(capsys)


@pytest.mark.parametrize(
    ("name", "role", "gradient", "title"),
    [
        ("fc1.weight.grad", "weight", True, "fc1"),
        ("fc1.weight_grad", "weight", True, "fc1"),
        ("fc1_bias_grad", "bias", True, "fc1"),
        ("grad/fc1/weight", "weight", True, "fc1"),
        ("grads.fc1.kernel", "weight", True, "fc1"),
        ("params/Dense_0/kernel", "weight", False, "Dense_0"),
        ("['params']['Dense_0']['bias']", "bias", False, "Dense_0"),
        ("layers/0/kernel/value", "weight", False, "layers.0"),
        ("dW1", "weight", True, "layer_1"),
        ("db1", "bias", True, "layer_1"),
        ("W1", "weight", False, "layer_1"),
        ("b", "bias", False, "layer"),
        ("W_hidden", "weight", False, "hidden"),
        ("weight_1", "weight", False, "1"),
        ("layers.0.weight", "weight", False, "layers.0"),
        ("0.weight", "weight", False, "0"),
        ("attn.v.weight", "weight", False, "attn.v"),
        ("dense/kernel:0", "weight", False, "dense"),
        ("net.fc1.W", "weight", False, "fc1"),
        ("fc.W2", "weight", False, "fc_2"),
        ("dL_dW1", "weight", True, "layer_1"),
        ("dLdb1", "bias", True, "layer_1"),
        ("dL/dW1", "weight", True, "layer_1"),
        ("fc1/dL_dW", "weight", True, "fc1"),
        ("mu.weight", "weight", False, "mu"),
    ],
)
def test_names_that_are_understood(name: str, role: str, gradient: bool, title: str) -> None:
    meaning = understand(name)
    assert (meaning.role, meaning.gradient, meaning.title, meaning.reason) == (role, gradient, title, None)


@pytest.mark.parametrize("name", ["arr_10", "10", "param_10", "gradient_10", "grads/10"])
def test_names_that_are_positions(name: str) -> None:
    meaning = understand(name)
    assert (meaning.position, meaning.gradient) == (10, "grad" in name)


@pytest.mark.parametrize(
    ("name", "fragment"),
    [
        ("fc1.weight.exp_avg", "moment"),
        ("optimizer/state/0/exp_avg_sq", "moment"),
        ("v_dW1", "moment"),
        ("s_db1", "moment"),
        ("mdW1", "moment"),
        ("velocity_W1", "moment"),
        ("fc1/kernel/v", "moment"),
        ("opt_state/0/mu/Dense_0/kernel", "moment"),
        ("momentum_buffer.fc1.weight", "moment"),
        ("bn1.weight", "normalisation"),
        ("bn1.running_mean", "normalisation"),
        ("encoder.layer_norm.bias", "normalisation"),
        ("lstm.weight_ih_l0", "recurrent"),
        ("token_embedding.weight", "embedding"),
        ("step", "neither weight nor bias"),
        ("grads", "neither weight nor bias"),
    ],
)
def test_names_that_are_not_used(name: str, fragment: str) -> None:
    reason = understand(name).reason
    assert reason is not None
    assert fragment in reason


@pytest.mark.parametrize(
    ("names", "moments"),
    [
        (["fc1/kernel", "m/fc1/kernel"], ["m/fc1/kernel"]),
        (["m/fc1/kernel", "m/bn/scale", "v/fc1/kernel", "v/bn/scale"], ["m", "v"]),
        (["params/fc1/kernel", "nu/fc1/kernel"], ["nu"]),
        (["mu.weight", "mu.bias", "nu.weight", "nu.bias"], []),
        (["mu.0.weight", "logvar.0.weight"], []),
        (["v/fc1/kernel", "fc2/kernel"], []),
    ],
)
def test_trees_of_moments_mirror_the_model_or_each_other(names: list[str], moments: list[str]) -> None:
    skipped = [name for name, meaning in understand_all(names).items() if meaning.reason]
    assert skipped == [name for name in names if name.startswith(tuple(moments))]


def ones(*shape: int) -> Any:
    return np.ones(shape, np.float32)


def write(folder: Path, *positional: Any, **named: Any) -> Path:
    np.savez(folder / "a.npz", *positional, **named)
    return folder / "a.npz"


def found(document: dict[str, Any]) -> list[tuple[Any, ...]]:
    return [(layer["layer"], tuple(layer["shape"]), layer["activation"]) for layer in document["layers"]]


def test_positions_with_normalisations_and_convolutions(spear: Command, tmp_path: Path) -> None:
    arrays = [
        *(ones(4, 1, 3, 3), ones(4)),  # convolution and its bias
        *(ones(30, 64), ones(30), ones(30), ones(30)),  # dense, its bias, normalisation
        *(ones(20, 30), ones(20), ones(20)),  # dense without bias, normalisation
        *(ones(10, 20), ones(10)),
    ]
    document = converted(spear, tmp_path, write(tmp_path, *arrays), "--gradients")
    assert found(document) == [
        ("layer_0", (4, 1, 3, 3), "relu"),
        ("layer_1", (30, 64), "relu"),
        ("layer_2", (20, 30), "relu"),
        ("layer_3", (10, 20), "none"),
    ]
    assert [layer["datasets"] for layer in document["layers"]] == [
        [],
        ["weight_grad", "bias_grad"],
        ["weight_grad"],
        ["weight_grad", "bias_grad"],
    ]
    assert set(document["skipped"]) == {"arr_4", "arr_5", "arr_7", "arr_8"}
    run = spear("inspect", tmp_path / "dump.h5", "--json")
    problems = [layer["problem"] for layer in json.loads(run.out)["records"][0]["layers"]]
    assert "'conv2d' layer" in problems[0]
    assert "followed by no activation" in problems[-1]


@pytest.mark.parametrize(
    ("arrays", "shape", "known_by"),
    [
        ({"a.W_grad": ones(5, 7), "a.b": ones(7)}, (7, 5), "length of the bias"),
        ({"a.W_grad": ones(5, 7), "a.b": ones(5)}, (5, 7), "length of the bias"),
        ({"a.kernel_grad": ones(7, 7), "a.b": ones(7)}, (7, 7), "name of the array"),
        ({"W1_grad": ones(6, 9), "W2_grad": ones(9, 4)}, (9, 6), "sizes of its neighbours"),
        ({"W1_grad": ones(9, 6), "W2_grad": ones(4, 9)}, (9, 6), "sizes of its neighbours"),
        ({"a.W_grad": ones(7, 7), "b.W_grad": ones(5, 7), "b.b": ones(5)}, (7, 7), "as the other layers"),
    ],
)
def test_orientation_from_what_is_known(
    spear: Command, tmp_path: Path, arrays: dict[str, Any], shape: tuple[int, int], known_by: str
) -> None:
    document = converted(spear, tmp_path, write(tmp_path, **arrays))
    first = document["layers"][0]
    assert (tuple(first["shape"]), first["known_by"]) == (shape, known_by)


@pytest.mark.parametrize(
    ("arrays", "fragment"),
    [
        ({"dW1": ones(7, 7), "db1": ones(7)}, "nothing in the file says"),
        ({"dW": ones(7, 5)}, "are the 7 rows or the 5 columns of 'dW' its output units?"),
        ({"d1.weight_grad": ones(6, 9), "d2.weight_grad": ones(9, 4)}, "contradict each other"),
    ],
)
def test_an_open_question_is_asked_and_a_flag_answers_it(
    spear: Command, tmp_path: Path, arrays: dict[str, Any], fragment: str
) -> None:
    path = write(tmp_path, **arrays)
    run = spear("convert", path, tmp_path / "dump.h5")
    assert run.status == 2
    assert fragment in run.error
    assert "--orientation mn" in run.error
    assert not (tmp_path / "dump.h5").exists()
    for orientation, turn in (("mn", 1), ("nm", -1)):
        document = converted(spear, tmp_path, path, "--orientation", orientation)
        matrices = [array.shape[::turn] for array in arrays.values() if array.ndim == 2]
        assert sorted(tuple(layer["shape"]) for layer in document["layers"]) == sorted(matrices)
        assert {layer["known_by"] for layer in document["layers"]} == {"as given"}


def test_a_bias_that_contradicts_the_flag(spear: Command, tmp_path: Path) -> None:
    path = write(tmp_path, dW=ones(7, 5), db=ones(7))
    run = spear("convert", path, tmp_path / "dump.h5", "--orientation", "nm")
    assert run.status == 2
    assert "the bias of 'layer' has 7 entries" in run.error


@pytest.mark.parametrize("numerator", ["dL_", "dL", "dL/"])
def test_derivatives_of_the_loss_belong_to_their_weights(
    spear: Command, tmp_path: Path, numerator: str
) -> None:
    arrays = {f"{numerator}dW1": ones(5, 7), f"{numerator}db1": ones(5), "W1": ones(5, 7), "b1": ones(5)}
    moments = {"v_dW1": ones(5, 7), "s_db1": ones(5)}
    document = converted(spear, tmp_path, write(tmp_path, **arrays, **moments), "--orientation", "mn")
    (layer,) = document["layers"]
    assert layer["layer"] == "layer_1"
    assert layer["datasets"] == ["weight_grad", "bias_grad", "weight", "bias"]
    assert set(document["skipped"]) == set(moments)


def test_two_layers_of_one_name(spear: Command, tmp_path: Path) -> None:
    path = write(tmp_path, **{"dW1": ones(5, 7), "db1": ones(5), "layer_1.weight_grad": ones(5, 7)})
    run = spear("convert", path, tmp_path / "dump.h5")
    assert run.status == 2
    assert "two layers would be called 'layer_1': those of 'dW1', 'layer_1.weight_grad'" in run.error


def test_a_single_number_is_no_normalisation(spear: Command, tmp_path: Path) -> None:
    path = write(tmp_path, dW=ones(5, 7), db=ones(5), grad_norm=ones(), loss=ones())
    document = converted(spear, tmp_path, path)
    assert document["skipped"] == dict.fromkeys(("grad_norm", "loss"), "is a single number")
    assert not any("normalisation" in note for note in document["notes"])


NAMED = {"fc2.weight": ones(20, 30), "fc2.bias": ones(20), "fc10.weight": ones(10, 20), "fc10.bias": ones(10)}


@pytest.mark.parametrize("reverse", [False, True])
def test_gradients_by_position_are_paired_by_rank(spear: Command, tmp_path: Path, reverse: bool) -> None:
    """Also if the file with the model is sorted by other than the forward order."""
    source = write(tmp_path, *NAMED.values())
    names = ["fc10.weight", "fc10.bias", "fc2.weight", "fc2.bias"] if reverse else NAMED
    np.savez(tmp_path / "model.npz", **{name: NAMED[name] for name in names})
    document = converted(spear, tmp_path, source, "--gradients", "--model", tmp_path / "model.npz")
    assert found(document) == [("fc2", (20, 30), "relu"), ("fc10", (10, 20), "none")]
    for layer in document["layers"]:
        assert layer["datasets"] == ["weight_grad", "bias_grad", "weight", "bias"]


def test_gradients_by_position_beside_names_that_are_numbers(spear: Command, tmp_path: Path) -> None:
    """Position 1 is not the layer called 1."""
    model = {"model/1.weight": ones(20, 30), "model/1.bias": ones(20), "model/3.weight": ones(10, 20)}
    gradients = {f"grads/{position}": array for position, array in enumerate(model.values())}
    document = converted(spear, tmp_path, write(tmp_path, **model, **gradients))
    assert found(document) == [("1", (20, 30), "relu"), ("3", (10, 20), "none")]


@pytest.mark.parametrize(
    ("arrays", "fragment"),
    [
        (list(NAMED.values())[2:], "do not fit the model"),
        (list(NAMED.values())[::-1], "do not fit the model"),
        ([ones(20, 30), ones(10, 20), ones(10)], "do not fit the model"),
    ],
)
def test_gradients_by_position_that_do_not_fit(
    spear: Command, tmp_path: Path, arrays: list[Any], fragment: str
) -> None:
    np.savez(tmp_path / "model.npz", **NAMED)
    run = spear(
        "convert",
        write(tmp_path, *arrays),
        "--gradients",
        "--model",
        tmp_path / "model.npz",
        tmp_path / "d.h5",
    )
    assert (run.status, fragment in run.error) == (2, True)


def test_gradients_by_position_that_fit_twice(spear: Command, tmp_path: Path) -> None:
    names = ("fc10.weight", "fc2.weight")
    np.savez(tmp_path / "model.npz", **{name: ones(9, 9) for name in names})
    source = write(tmp_path, ones(9, 9), ones(9, 9))
    run = spear("convert", source, "--gradients", "--model", tmp_path / "model.npz", tmp_path / "d.h5")
    assert (run.status, "in the order of the file and in that of their names" in run.error) == (2, True)


def test_numbers_in_names_are_counted_not_spelt(spear: Command, tmp_path: Path) -> None:
    """Files sorted by name have layer_10 before layer_2, where sizes do not fit."""
    widths = list(range(30, 18, -1))
    arrays = {f"layer_{k}.weight": ones(m, n) for k, (n, m) in enumerate(pairwise(widths))}
    path = write(tmp_path, **dict(sorted(arrays.items())))
    document = converted(spear, tmp_path, path, "--gradients")
    assert [layer["layer"] for layer in document["layers"]] == [f"layer_{k}" for k in range(11)]
    assert any("order of their names" in note for note in document["notes"])


def test_names_without_numbers_are_ordered_by_sizes(spear: Command, tmp_path: Path) -> None:
    path = write(tmp_path, **{"a.weight": ones(10, 8), "b.weight": ones(8, 9), "c.weight": ones(9, 30)})
    document = converted(spear, tmp_path, path, "--gradients")
    assert found(document) == [("c", (9, 30), "relu"), ("b", (8, 9), "relu"), ("a", (10, 8), "none")]


def test_sizes_that_fit_nowhere_are_said(spear: Command, tmp_path: Path) -> None:
    path = write(tmp_path, **{"a.weight": ones(10, 8), "b.weight": ones(5, 9)})
    document = converted(spear, tmp_path, path, "--gradients")
    assert any("not sure" in note for note in document["notes"])


def test_layers_are_chosen_and_their_activation_given(spear: Command, tmp_path: Path) -> None:
    arrays = {"a.weight": ones(9, 30), "b.weight": ones(8, 9), "c.weight": ones(10, 8)}
    path = write(tmp_path, **arrays)
    document = converted(spear, tmp_path, path, "--gradients", "--activation", "gelu")
    assert [layer["activation"] for layer in document["layers"]] == ["gelu", "gelu", "none"]
    document = converted(spear, tmp_path, path, "--gradients", "--layer", "c", "--activation", "relu")
    assert found(document) == [("c", (10, 8), "relu")]
    assert document["skipped"] == {"a.weight": "was not chosen", "b.weight": "was not chosen"}
    run = spear("convert", path, tmp_path / "dump.h5", "--gradients", "--layer", "d")
    assert (run.status, "there is: 'a', 'b', 'c'" in run.error) == (2, True)


def test_a_layer_without_a_gradient_is_left_out_but_counts_as_the_last(
    spear: Command, tmp_path: Path
) -> None:
    path = write(tmp_path, **{"a.weight": ones(9, 30), "a.weight_grad": ones(9, 30), "b.weight": ones(8, 9)})
    document = converted(spear, tmp_path, path)
    assert found(document) == [("a", (9, 30), "relu")]
    assert document["skipped"] == {"b.weight": "is of a layer without gradient"}


def test_the_assumed_relu_is_said_where_it_is_assumed(spear: Command, tmp_path: Path) -> None:
    path = write(tmp_path, **{"a.weight": ones(9, 30), "b.weight": ones(8, 9)})
    for options, said in (
        ((), True),
        (("--layer", "a"), True),
        (("--layer", "a", "--activation", "relu"), False),
    ):
        document = converted(spear, tmp_path, path, "--gradients", *options)
        assert any("a ReLU is assumed" in note for note in document["notes"]) == said


def test_several_updates_in_one_file(spear: Command, tmp_path: Path) -> None:
    arrays = {
        f"round{k}/fc.{part}_grad": ones(*shape)
        for k in (0, 1)
        for part, shape in (("weight", (5, 7)), ("bias", (5,)))
    }
    path = write(tmp_path, **arrays)
    run = spear("convert", path, tmp_path / "dump.h5")
    assert run.status == 2
    assert "holds several updates: 'round0', 'round1'" in run.error
    document = converted(spear, tmp_path, path, "--layer", "round1.fc")
    assert found(document) == [("round1.fc", (5, 7), "none")]


def test_stages_of_one_model_are_no_updates(spear: Command, tmp_path: Path) -> None:
    path = write(tmp_path, **{"step1.a.weight_grad": ones(9, 30), "step2.b.weight_grad": ones(8, 9)})
    assert len(converted(spear, tmp_path, path)["layers"]) == 2


def test_an_input_shape_of_another_size(spear: Command, tmp_path: Path) -> None:
    path = write(tmp_path, dW=ones(5, 64), db=ones(5))
    run = spear("convert", path, tmp_path / "dump.h5", "--input-shape", "1,8,9")
    assert run.status == 2
    assert "the input shape (1, 8, 9) has 72 numbers, but 'layer' takes 64" in run.error


def test_moments_beside_gradients_look_like_a_checkpoint(spear: Command, tmp_path: Path) -> None:
    path = write(tmp_path, **{"fc.weight": ones(5, 7), "optimizer/exp_avg": ones(5, 7)})
    document = converted(spear, tmp_path, path, "--gradients")
    assert any(
        "moments of an optimizer ('optimizer/exp_avg'), as in a checkpoint" in n for n in document["notes"]
    )


def test_a_model_beside_gradients_that_are_not_called_so(spear: Command, tmp_path: Path) -> None:
    np.savez(tmp_path / "model.npz", **NAMED)
    run = spear("convert", write(tmp_path, **NAMED), "--model", tmp_path / "model.npz", tmp_path / "dump.h5")
    assert run.status == 2
    assert "say --gradients" in run.error


def test_a_single_array_is_mapped(spear: Command, tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", ones(5, 7))
    run = spear("convert", tmp_path / "one.npy", tmp_path / "dump.h5")
    assert (run.status, "say --map weight_grad=one" in run.error) == (2, True)
    options = ("--map", "weight_grad=one", "--orientation", "mn")
    assert found(converted(spear, tmp_path, tmp_path / "one.npy", *options)) == [("layer", (5, 7), "relu")]


def test_what_is_known_of_the_update_is_stored(spear: Command, tmp_path: Path) -> None:
    path = write(tmp_path, dW=ones(5, 64), db=ones(5), inputs=ones(3, 64))
    options = ["--record", "client-3", "--batch-size", 3, "--input-shape", "1,8,8"]
    document = converted(spear, tmp_path, path, *options, "--input-mean", "0.5", "--input-std", "0.25")
    assert document["layers"][0]["datasets"] == ["weight_grad", "bias_grad", "inputs"]
    with open_dump(tmp_path / "dump.h5") as dump:
        (record,) = dump.records
        assert record.name == "client-3"
        info = record.info
        assert (info.batch_size, info.input_shape) == (3, (1, 8, 8))
        assert (info.input_mean, info.input_std) == ((0.5,), (0.25,))
        assert record.layers[0].truth is not None
        assert record.layers[0].truth.shape == (3, 64)
        assert dump.producer == "numpy, converted from NumPy .npz"


def test_the_table_says_what_was_found_and_assumed(spear: Command, tmp_path: Path) -> None:
    path = write(tmp_path, **{"a.weight_grad": ones(9, 30), "bn.weight": ones(9), "step": np.array(3)})
    run = spear("convert", path, tmp_path / "dump.h5")
    assert (run.status, run.err) == (0, "")
    for fragment in (
        "9 × 30",
        "(m, n)",
        "name of the array",
        "'step'",
        "int64",
        "'bn.weight'",
        "normalisations",
        "a ReLU is assumed",
        str(tmp_path / "dump.h5"),
    ):
        assert fragment in run.out


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["a.npz"], "SOURCE… DUMP.h5"),
        (["--before", "a.npz", "d.h5"], "--before A --after B"),
        (["--before", "a.npz", "--after", "b.npz", "a.npz", "d.h5"], "--before A --after B DUMP.h5"),
        (["--before", "a.npz", "--after", "b.npz", "d.h5", "--gradients"], "cannot be combined"),
        (["a.npz", "d.h5", "--learning-rate", "1"], "two models"),
        (["--before", "a.npz", "--after", "b.npz", "d.h5", "--learning-rate", "0"], "positive"),
        (["a.npz", "d.h5", "--input-shape", "8x8"], "separated by commas"),
        (["a.npz", "d.h5", "--input-std", "0"], "positive"),
        (["a.npz", "d.h5", "--activation", " "], "is empty"),
        (["a.npz", "d.h5", "--orientation", "rows"], "'mn', 'nm'"),
    ],
)
def test_bad_usage(spear: Command, arguments: list[str], fragment: str) -> None:
    run = spear("convert", *arguments)
    assert run.status == 2
    assert fragment in run.error


@pytest.mark.parametrize("with_model", [True, False])
@pytest.mark.parametrize("named", [True, False])
def test_one_gradient_a_sample_is_called_so(
    spear: Command, tmp_path: Path, named: bool, with_model: bool
) -> None:
    """As Opacus keeps them, under the names of the model or with its own behind them."""
    rng = np.random.default_rng(2)
    model: dict[str, Any] = {"fc1.weight": rng.random((6, 5)), "fc1.bias": rng.random(6)}
    samples: dict[str, Any] = {
        f"{name}{'.grad_sample' if named else ''}": rng.random((4, *array.shape))
        for name, array in model.items()
    }
    np.savez(tmp_path / "model.npz", **model)
    np.savez(tmp_path / "samples.npz", **samples)
    options = [
        *([] if named else ["--gradients"]),
        *(["--model", tmp_path / "model.npz"] if with_model else []),
    ]
    run = spear("convert", tmp_path / "samples.npz", tmp_path / "d.h5", *options)
    assert run.status == 2
    assert "holds one gradient a sample, not that of the batch: 'fc1.weight" in run.error
    assert len(run.error.strip().splitlines()) == 1


def test_gradients_a_sample_beside_that_of_the_batch_are_left_out(spear: Command, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    samples = rng.random((4, 6, 5))
    arrays: dict[str, Any] = {
        "fc1.weight.grad": samples.sum(0),
        "fc1.bias.grad": rng.random(6),
        "fc1.weight.grad_sample": samples,
    }
    np.savez(tmp_path / "g.npz", **arrays)
    document = converted(spear, tmp_path, tmp_path / "g.npz")
    assert document["skipped"] == {"fc1.weight.grad_sample": "is one gradient a sample"}


def test_a_convolution_in_one_dimension_is_none(spear: Command, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    arrays: dict[str, Any] = {
        "c.weight_grad": rng.random((6, 4, 3)),
        "c.bias_grad": rng.random(6),
        "f.weight_grad": rng.random((3, 6)),
    }
    arrays["f.bias_grad"] = rng.random(3)
    np.savez(tmp_path / "g.npz", **arrays)
    document = converted(spear, tmp_path, tmp_path / "g.npz")
    assert [layer["kind"] for layer in document["layers"]] == ["conv1d", "linear"]


PREFIXES = (
    "module.",
    "_orig_mod.",
    "_module.",
    "_fsdp_wrapped_module.",
    "_orig_mod.module.",
    "model.",
    "backbone.",
)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("on_the_model", [False, True])
def test_a_beginning_on_one_side_of_two_files_is_taken_off(
    spear: Command, tmp_path: Path, prefix: str, on_the_model: bool
) -> None:
    rng = np.random.default_rng(1)
    model = {name: rng.random(array.shape, np.float32) for name, array in NAMED.items()}
    gradients = {name: rng.random(array.shape, np.float32) for name, array in NAMED.items()}
    for name, arrays, longer in (("g", gradients, not on_the_model), ("m", model, on_the_model)):
        named: dict[str, Any] = {(prefix if longer else "") + key: array for key, array in arrays.items()}
        np.savez(tmp_path / f"{name}.npz", **named)
    document = converted(spear, tmp_path, tmp_path / "g.npz", "--gradients", "--model", tmp_path / "m.npz")
    assert [layer["datasets"] for layer in document["layers"]] == [
        ["weight_grad", "bias_grad", "weight", "bias"]
    ] * 2
    with open_dump(tmp_path / "dump.h5") as dump:
        for layer, name in zip(dump.records[0].layers, ("fc2", "fc10"), strict=True):
            assert np.array_equal(layer.arrays["weight"][:], model[f"{name}.weight"])
            assert np.array_equal(layer.arrays["weight_grad"][:], gradients[f"{name}.weight"])
    assert any("begin in different ways" in note for note in document["notes"]) == (prefix == "backbone.")


def test_a_model_of_two_or_of_another_is_refused(spear: Command, tmp_path: Path) -> None:
    two: dict[str, Any] = {
        f"{who}.{name}": array for who in ("teacher", "student") for name, array in NAMED.items()
    }
    other: dict[str, Any] = {f"head{k}.weight": ones(20, 30) for k in (1, 2)}
    source = write(tmp_path, **NAMED)
    for arrays, fragment in ((two, "without 'student.', 'teacher.'"), (other, "none of its layers")):
        np.savez(tmp_path / "m.npz", **arrays)
        run = spear("convert", source, "--gradients", "--model", tmp_path / "m.npz", tmp_path / "d.h5")
        assert run.status == 2
        assert fragment in run.error


def test_within_one_file_no_beginning_is_taken_off(spear: Command, tmp_path: Path) -> None:
    """The weights of a teacher are none of the student's, whose gradient lies beside them."""
    arrays = {"fc.weight_grad": ones(5, 7), "fc.bias_grad": ones(5), "teacher.fc.weight": ones(5, 7)}
    document = converted(spear, tmp_path, write(tmp_path, **arrays))
    assert [layer["datasets"] for layer in document["layers"]] == [["weight_grad", "bias_grad"]]


@pytest.mark.parametrize(
    ("weight", "bias"),
    [
        ("delta/fc.weight", "delta/fc.bias"),
        ("update.fc.weight", "update.fc.bias"),
        ("deltas/params/fc/kernel", "deltas/params/fc/bias"),
        ("fc.weight_delta", "fc.bias_delta"),
        ("fc/weight/update", "fc/bias/update"),
        ("delta_W1", "delta_b1"),
    ],
)
def test_changes_are_weight_deltas(spear: Command, tmp_path: Path, weight: str, bias: str) -> None:
    path = write(tmp_path, **{weight: ones(5, 7), bias: ones(5)})
    document = converted(spear, tmp_path, path, "--orientation", "mn")
    assert document["layers"][0]["datasets"] == ["weight_grad", "bias_grad"]
    assert any("after minus the model before" in note for note in document["notes"])
    with open_dump(tmp_path / "dump.h5") as dump:
        assert dump.records[0].info.update == "weight_delta"


def test_a_tree_of_changes_beside_the_model(spear: Command, tmp_path: Path) -> None:
    arrays = {
        f"{tree}/fc/{part}": ones(*shape)
        for tree in ("delta", "weights")
        for part, shape in (("kernel", (7, 5)), ("bias", (5,)))
    }
    document = converted(spear, tmp_path, write(tmp_path, **arrays))
    assert document["layers"][0]["datasets"] in (
        ["weight_grad", "bias_grad", "weight", "bias"],
        ["weight_grad", "bias_grad"],
    )


def test_a_layer_may_be_called_update(spear: Command, tmp_path: Path) -> None:
    arrays = {"update.weight": ones(5, 7), "select.weight": ones(3, 5)}
    document = converted(spear, tmp_path, write(tmp_path, **arrays), "--gradients", "--orientation", "mn")
    assert {layer["layer"] for layer in document["layers"]} == {"update", "select"}
    with open_dump(tmp_path / "dump.h5") as dump:
        assert dump.records[0].info.update != "weight_delta"


def test_gradients_and_changes_do_not_mix(spear: Command, tmp_path: Path) -> None:
    path = write(tmp_path, **{"a.weight_grad": ones(9, 30), "b.weight_delta": ones(8, 9)})
    run = spear("convert", path, tmp_path / "d.h5")
    assert (run.status, "changes of others: 'b.weight_grad'" in run.error) == (2, True)


def test_gradients_of_paddle(spear: Command, tmp_path: Path) -> None:
    arrays = {
        "linear_0.w_0": ones(7, 5),
        "linear_0.b_0": ones(5),
        "linear_0.w_0@GRAD": ones(7, 5),
        "linear_0.b_0@GRAD": ones(5),
    }
    document = converted(spear, tmp_path, write(tmp_path, **arrays))
    assert document["layers"][0]["datasets"] == ["weight_grad", "bias_grad", "weight", "bias"]


@pytest.mark.parametrize(
    "names",
    [
        ("fc1.weight_g", "fc1.weight_v"),
        ("fc1.weight_orig", "fc1.weight_mask"),
        ("fc1.weight_orig", "fc1.weight_u", "fc1.weight_v"),
        ("fc1.parametrizations.weight.original0", "fc1.parametrizations.weight.original1"),
    ],
)
def test_weights_that_are_computed_are_called_so_and_count(
    spear: Command, tmp_path: Path, names: tuple[str, ...]
) -> None:
    """The layer behind them is then the last of two, not the only one."""
    arrays: dict[str, Any] = {name: ones(9, 30) for name in names}
    arrays |= {f"grads/{name}": ones(9, 30) for name in names} | {
        "fc1.bias": ones(9),
        "grads/fc1.bias": ones(9),
    }
    arrays |= {"fc2.weight": ones(4, 9), "grads/fc2.weight": ones(4, 9)}
    document = converted(spear, tmp_path, write(tmp_path, **arrays), "--orientation", "mn")
    assert found(document) == [("fc2", (4, 9), "none")]
    assert all("computed from other parameters" in document["skipped"][name] for name in names)
    assert any("the weights of 'fc1' cannot be used" in note for note in document["notes"])


INT8 = np.ones((9, 30), np.int8)


@pytest.mark.parametrize(
    ("arrays", "activations"),
    [
        ({"fc1.weight": INT8, "fc1.weight_grad": INT8, "fc2.weight_grad": ones(4, 9)}, ["none"]),
        ({"fc1.weight_grad": ones(9, 30), "fc2.weight": INT8}, ["relu"]),
        (
            {"fc1.weight_grad": ones(9, 30), "fc2.weight": INT8, "fc3.weight_grad": ones(4, 9)},
            ["relu", "none"],
        ),
        ({"enc.weight": INT8, "enc.bias": ones(9), "dec.weight_grad": ones(4, 9)}, ["none"]),
        ({"enc.weight": INT8, "dec.weight_grad": ones(4, 9)}, ["unknown"]),
        ({"dec.weight_grad": ones(4, 9)}, ["relu"]),
    ],
)
def test_layers_that_cannot_be_read_count_when_the_last_is_told(
    spear: Command, tmp_path: Path, arrays: dict[str, Any], activations: list[str]
) -> None:
    document = converted(spear, tmp_path, write(tmp_path, **arrays))
    assert [layer["activation"] for layer in document["layers"]] == activations
    assert any("--activation dec=relu if a ReLU follows" in n for n in document["notes"]) == (
        activations == ["unknown"]
    )


def test_follows_does_not_reach_across_a_layer_that_is_missing(spear: Command, tmp_path: Path) -> None:
    path = write(
        tmp_path, **{"fc1.weight_grad": ones(9, 30), "fc2.weight": INT8, "fc3.weight_grad": ones(4, 9)}
    )
    run = spear("convert", path, tmp_path / "d.h5", "--follows")
    assert (run.status, "but 'fc2' cannot be used; say which layer follows which" in run.error) == (2, True)


def test_advice_does_not_lead_back_to_itself(spear: Command, tmp_path: Path) -> None:
    path = write(tmp_path, first=ones(5, 7), second=ones(5))
    run = spear("convert", path, tmp_path / "d.h5")
    assert "say --gradients" in run.error
    run = spear("convert", path, tmp_path / "d.h5", "--gradients")
    assert "say --gradients" not in run.error
    assert "'first' has a name that says neither weight nor bias" in run.error
    assert "--map LAYER.weight_grad=NAME" in run.error
    options = ("--map", "fc.weight_grad=first", "--map", "fc.bias_grad=second")
    assert found(converted(spear, tmp_path, path, *options)) == [("fc", (5, 7), "relu")]


def test_parts_of_a_model_stay_together(spear: Command, tmp_path: Path) -> None:
    """Two layers of one shape could change places by their sizes, but not by their names."""
    shapes = {
        "decoder.hidden": (8, 4),
        "decoder.out": (4, 8),
        "encoder.hidden": (8, 6),
        "encoder.out": (4, 8),
        "head": (3, 4),
    }
    path = write(tmp_path, **{f"{name}.weight": ones(*shape) for name, shape in shapes.items()})
    document = converted(spear, tmp_path, path, "--gradients", "--orientation", "mn")
    order = ["encoder.hidden", "encoder.out", "decoder.hidden", "decoder.out", "head"]
    assert [layer["layer"] for layer in document["layers"]] == order
    assert any("those of one part of the model" in note for note in document["notes"])


def test_a_model_that_has_only_some_of_the_layers_is_said(spear: Command, tmp_path: Path) -> None:
    model: dict[str, Any] = {"fc2.weight": ones(20, 30), "body.fc10.weight": ones(10, 20)}
    np.savez(tmp_path / "m.npz", **model)
    source = write(tmp_path, **NAMED)
    document = converted(spear, tmp_path, source, "--gradients", "--model", tmp_path / "m.npz")
    assert any("the model has no weight under the names of 'fc10'" in note for note in document["notes"])


def test_maps_join_what_is_known_by_name(spear: Command, tmp_path: Path) -> None:
    """One array has a name that says nothing; the rest of its layer, and the other layers, need no map."""
    step = {"fc1.weight": ones(5, 7), "fc1.bias": ones(5), "fc1.bias_grad": ones(5), "g": ones(5, 7)}
    other = {"fc2.weight": ones(3, 5), "fc2.weight_grad": ones(3, 5), "fc2.bias_grad": ones(3)}
    path = write(tmp_path, **step, **other)
    document = converted(spear, tmp_path, path, "--map", "fc1.weight_grad=g", "--orientation", "mn")
    assert [layer["layer"] for layer in document["layers"]] == ["fc1", "fc2"]
    assert sorted(document["layers"][0]["datasets"]) == ["bias", "bias_grad", "weight", "weight_grad"]
    assert document["skipped"] == {}


def test_a_map_counts_for_more_than_a_name(spear: Command, tmp_path: Path) -> None:
    path = write(tmp_path, **{"fc1.weight_grad": ones(5, 7), "clipped": 2 * ones(5, 7)})
    document = converted(spear, tmp_path, path, "--map", "fc1.weight_grad=clipped", "--orientation", "mn")
    (layer,) = document["layers"]
    assert layer["datasets"] == ("weight_grad",) or layer["datasets"] == ["weight_grad"]
    assert "--map says another is" in document["skipped"]["fc1.weight_grad"]


def test_a_list_stays_out_where_maps_choose(spear: Command, tmp_path: Path) -> None:
    path = write(tmp_path, arr_0=ones(5, 7), arr_1=ones(5), arr_2=ones(9))
    options = ("--map", "fc.weight_grad=arr_0", "--map", "fc.bias_grad=arr_1", "--orientation", "mn")
    document = converted(spear, tmp_path, path, *options)
    assert [layer["layer"] for layer in document["layers"]] == ["fc"]
    assert "no --map says what it is" in document["skipped"]["arr_2"]


def test_columns_of_a_table_have_names(spear: Command, tmp_path: Path) -> None:
    path = write(tmp_path, dW=ones(5, 3), db=ones(5))
    converted(spear, tmp_path, path, "--feature-names", "age,income,<b>")
    with open_dump(tmp_path / "dump.h5") as dump:
        assert dump.records[0].info.feature_names == ("age", "income", "<b>")


@pytest.mark.parametrize("named", [True, False])
def test_inspect_says_where_the_activation_was_assumed(spear: Command, tmp_path: Path, named: bool) -> None:
    data = layer_data(b=4)
    arrays = {name: getattr(data, name) for name in ("weight_grad", "bias_grad", "weight", "bias")}
    np.savez(tmp_path / "one.npz", **{f"a.{name}": array for name, array in arrays.items()})
    options = ("--activation", "a=relu") if named else ()
    assert spear("convert", tmp_path / "one.npz", tmp_path / "dump.h5", *options).status == 0
    said = spear("inspect", tmp_path / "dump.h5").out
    assert ("relu (assumed)" in said) == (not named)
    assert ("it is assumed, and nothing names it, that 'relu' follows" in said) == (not named)
    assert ("rests on: the file says that 'relu' follows" in said) == named
    assert "a first direction with the zeros of a ReLU" in said
    (layer,) = json.loads(spear("inspect", tmp_path / "dump.h5", "--json").out)["records"][0]["layers"]
    assert layer["activation_assumed"] == (not named)


@pytest.mark.parametrize(
    ("b", "why"), [(1, "a single input shows none"), (4, "the layer is too large for a short search")]
)
def test_what_inspect_has_not_looked_for_it_does_not_claim(
    spear: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, b: int, why: str
) -> None:
    monkeypatch.setattr(sys.modules["spear_np.survey"], "TRIED_ENTRIES", 100)
    write_good_dump(tmp_path / "dump.h5", layer_data(b=b))
    said = spear("inspect", tmp_path / "dump.h5").out
    assert f"the zeros of a ReLU were not looked for, as {why}" in said
    assert "a first direction with the zeros" not in said
