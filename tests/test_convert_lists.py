"""Arrays without names: lists with holes, lists in lists, one long vector; paired where they fit, or refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spear_io import open_dump
from spear_io.convert.source import NamedArray
from spear_io.convert.spans import Lies, lie
from spear_io.problems import Place
from tests.convert_files import Step, assert_exact, converted, torch_step
from tests.io_files import Command, command
from tests.networks import digit_batch

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
nn = torch.nn


@pytest.fixture
def spear(capsys: pytest.CaptureFixture[str]) -> Command:
    return command(capsys)


def trained(*modules: Any, b: int = 4) -> tuple[Any, Any]:
    """Return a network after one backward pass on digits, and their images (b, 64)."""
    model = nn.Sequential(*modules)
    images, labels = digit_batch(b, seed=3)
    nn.functional.cross_entropy(model(torch.tensor(images)), torch.tensor(labels)).backward()
    return model, images


def lists(folder: Path, model: Any, *, state: bool = False) -> tuple[Path, str, str, Path]:
    """Save gradients and parameters as lists; return what `convert` is told."""
    torch.save([p.grad for p in model.parameters()], folder / "gradients.pt")
    parameters = model.state_dict().values() if state else model.parameters()
    torch.save([p.detach().clone() for p in parameters], folder / "model.pt")
    return folder / "gradients.pt", "--gradients", "--model", folder / "model.pt"


def weights(folder: Path) -> dict[str, Any]:
    """Return weight and gradient of the layers of the dump."""
    with open_dump(folder / "dump.h5") as dump:
        return {
            layer.name: (layer.arrays["weight"][:], layer.arrays["weight_grad"][:])
            for layer in dump.records[0].layers
            if layer.kind == "linear"
        }


def frozen(sizes: Sequence[int], which: Sequence[int]) -> Any:
    torch.manual_seed(5)
    linear = [nn.Linear(n, m) for n, m in pairwise(sizes)]
    for k in which:
        for parameter in linear[k].parameters():
            parameter.requires_grad_(False)
    return trained(*[m for one in linear for m in (one, nn.ReLU())][:-1])[0]


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("sizes", [(64, 64, 64, 10), (64, 64, 64, 64), (64, 64, 64, 64, 64)])
@pytest.mark.parametrize("which", [[0], [1], [0, 1]])
def test_none_keeps_its_place(
    spear: Command, tmp_path: Path, sizes: Sequence[int], which: Sequence[int], named: bool
) -> None:
    """Layers of one shape: counted off, the gradient of the second would be taken for that of the first."""
    model = frozen(sizes, which)
    arguments = lists(tmp_path, model)
    if named:
        torch.save(model.state_dict(), tmp_path / "model.pt")
    document = converted(spear, tmp_path, *arguments, "--orientation", "mn")
    linear = [module for module in model if isinstance(module, nn.Linear)]
    wanted = [one for one in linear if one.weight.grad is not None]
    found = list(weights(tmp_path).values())
    assert len(found) == len(wanted)
    for (weight, gradient), one in zip(found, wanted, strict=True):
        assert np.array_equal(weight, one.weight.detach())
        assert np.array_equal(gradient, one.weight.grad)
    assert not named or sum("frozen" in reason for reason in document["skipped"].values()) == 2 * len(which)


@pytest.mark.parametrize("sizes", [(64, 64, 64, 10), (64, 64, 64, 64)])
def test_a_list_without_its_holes_is_refused(spear: Command, tmp_path: Path, sizes: Sequence[int]) -> None:
    model = frozen(sizes, [0])
    arguments = lists(tmp_path, model)
    torch.save([p.grad for p in model.parameters() if p.grad is not None], tmp_path / "gradients.pt")
    run = spear("convert", *arguments, tmp_path / "dump.h5")
    assert run.status == 2
    assert "do not fit the model: they are of 2 layers, but it has 3; leave None in the place" in run.error


@pytest.mark.parametrize("state", [False, True])
@pytest.mark.parametrize(
    ("norms", "bias"),
    [
        (lambda: [nn.RMSNorm(80)], True),
        (lambda: [nn.LayerNorm(80, bias=False)], True),
        (lambda: [nn.LayerNorm(80)], True),
        (lambda: [nn.LayerNorm(80), nn.LayerNorm(80, bias=False)], True),
        (lambda: [nn.RMSNorm(80), nn.RMSNorm(80), nn.RMSNorm(80)], True),
        (lambda: [nn.BatchNorm1d(80)], True),
        (lambda: [nn.PReLU(80)], True),
        (lambda: [nn.RMSNorm(80)], False),
        (lambda: [nn.LayerNorm(80)], False),
    ],
)
def test_the_bias_is_the_vector_whose_gradient_fits(
    spear: Command, tmp_path: Path, norms: Any, bias: bool, state: bool
) -> None:
    """However many vectors of normalisations follow it, or lie in its place."""
    torch.manual_seed(5)
    model, images = trained(nn.Linear(64, 80, bias=bias), nn.ReLU(), *norms(), nn.Linear(80, 10))
    document = converted(spear, tmp_path, *lists(tmp_path, model, state=state), "--orientation", "mn")
    first, last = document["layers"]
    wanted = ["weight_grad", "bias_grad", "weight", "bias"]
    assert first["datasets"] == (wanted if bias else ["weight_grad", "weight"])
    assert last["datasets"] == wanted
    with open_dump(tmp_path / "dump.h5") as dump:
        arrays = dump.records[0].layers[0].arrays
        if bias:
            assert np.array_equal(arrays["bias"][:], model[0].bias.detach())
            assert np.array_equal(arrays["bias_grad"][:], model[0].bias.grad)
    if bias and len(norms()) < 3:
        assert_exact(spear, tmp_path, images)


def test_what_cannot_be_told_is_left_out_and_said(spear: Command, tmp_path: Path) -> None:
    """A gradient of full rank spans everything: nothing tells a bias from a normalisation."""
    rng = np.random.default_rng(3)
    arrays = [rng.random(shape, np.float32) for shape in ((8, 30), (8,), (8,), (4, 8), (4,))]
    np.savez(tmp_path / "a.npz", *arrays)
    document = converted(spear, tmp_path, tmp_path / "a.npz", "--gradients")
    assert document["layers"][0]["datasets"] == ["weight_grad"]
    assert {name: "may be a bias or" in why for name, why in document["skipped"].items()} == {
        "arr_1": True,
        "arr_2": True,
    }


def array(numbers: Any) -> NamedArray:
    return NamedArray("a", numbers.shape, str(numbers.dtype), Place(Path("a")), lambda: numbers)


@pytest.mark.parametrize("noise", [0.0, 1e-7, 1e-3])
@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (50, 50)])
def test_a_sum_of_columns_lies_in_their_span(shape: tuple[int, int], noise: float) -> None:
    rng = np.random.default_rng(1)
    m, n = shape
    alive, used = np.arange(m) % 4 > 0, np.arange(n) % 5 > 0  # units that are off, and pixels that are dark
    columns = rng.standard_normal((m, 6)) * alive[:, None]
    rows = rng.standard_normal((6, n)) + 5  # whose mean is the largest part
    matrix = (columns @ rows + noise * rng.standard_normal(shape)) * alive[:, None] * used
    vectors = [
        array((columns.sum(1) + noise * rng.standard_normal(m)) * alive),
        array(rng.standard_normal(m) * alive),
    ]
    for gradient in (matrix, matrix.T):
        assert lie(array(gradient), vectors) == [Lies.INSIDE, Lies.OUTSIDE]
    full = array(rng.standard_normal(shape))
    assert lie(full, vectors) == [Lies.UNDECIDED, Lies.UNDECIDED]
    zero = array(np.zeros(m))
    assert lie(array(matrix), [zero, array(np.full(m, np.nan))]) == [Lies.UNDECIDED, Lies.UNDECIDED]


def payloads(step: Step) -> dict[str, Any]:
    """Nestings in which clients send a round."""
    gradients = [torch.tensor(array) for array in step.gradients.values()]
    model = [torch.tensor(array) for array in step.model.values()]
    pairs = [[(a[k], a[k + 1]) for k in (0, 2)] for a in (gradients, model)]
    return {
        "in a payload": {"round": 3, "payload": {"grads": gradients, "weights": model}},
        "beside a model": {"client": {"gradients": gradients}, "model": {"params": model}},
        "in pairs": {"grads": pairs[0], "params": pairs[1]},
        "beside a counter": {"grads": gradients, "params": model, "history": [torch.ones(1), torch.ones(1)]},
    }


@pytest.mark.parametrize("which", payloads(torch_step()))
def test_nested_lists_are_paired(spear: Command, tmp_path: Path, which: str) -> None:
    torch.save(payloads(torch_step())[which], tmp_path / "a.pt")
    document = converted(spear, tmp_path, tmp_path / "a.pt")
    assert [layer["datasets"] for layer in document["layers"]] == [
        ["weight_grad", "bias_grad", "weight", "bias"]
    ] * 2
    assert_exact(spear, tmp_path, torch_step().images)


@pytest.mark.parametrize(
    ("payload", "fragment"),
    [
        (
            lambda g, w: {"alice": {"grads": g}, "bob": {"grads": g}, "params": w},
            "several lists of gradients",
        ),
        (lambda g, w: {"grads": g, "first": w, "second": w}, "several lists of arrays"),
        (lambda g, w: (g, w), "without gradients"),
    ],
)
def test_lists_of_which_nothing_says_what_they_hold_are_refused(
    spear: Command, tmp_path: Path, payload: Any, fragment: str
) -> None:
    step = torch_step()
    gradients, model = ([torch.tensor(a) for a in arrays.values()] for arrays in (step.gradients, step.model))
    torch.save(payload(gradients, model), tmp_path / "a.pt")
    run = spear("convert", tmp_path / "a.pt", tmp_path / "dump.h5")
    assert run.status == 2
    assert fragment in run.error


def flat(arrays: Mapping[str, Any]) -> Any:
    return np.concatenate([array.ravel() for array in arrays.values()])


@pytest.mark.parametrize("kind", ["torch", "npz", "one file"])
def test_a_vector_of_all_gradients_is_split_by_the_model(spear: Command, tmp_path: Path, kind: str) -> None:
    step = torch_step()
    vector = flat(step.gradients)
    arguments: list[Any] = [tmp_path / "g.pt", "--gradients", "--model", tmp_path / "m"]
    if kind == "torch":
        torch.save(torch.tensor(vector), tmp_path / "g.pt")
        torch.save({name: torch.tensor(array) for name, array in step.model.items()}, tmp_path / "m")
    elif kind == "npz":
        np.save(tmp_path / "g.npy", vector)
        with (tmp_path / "m").open("wb") as stream:
            np.savez(stream, **step.model)
        arguments[0] = tmp_path / "g.npy"
    else:
        np.savez(tmp_path / "one.npz", **step.model, gradient=vector)
        arguments = [tmp_path / "one.npz"]
    converted(spear, tmp_path, *arguments)
    with open_dump(tmp_path / "dump.h5") as dump:
        for layer in dump.records[0].layers:
            assert np.array_equal(layer.arrays["weight_grad"][:], step.gradients[f"{layer.name}.weight"])
            assert np.array_equal(layer.arrays["bias_grad"][:], step.gradients[f"{layer.name}.bias"])
    assert_exact(spear, tmp_path, step.images)


def test_a_vector_that_does_not_fit_is_refused(spear: Command, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    step = torch_step()
    np.save(tmp_path / "g.npy", flat(step.gradients)[1:])
    np.savez(tmp_path / "m.npz", **step.model)
    run = spear(
        "convert", tmp_path / "g.npy", "--gradients", "--model", tmp_path / "m.npz", tmp_path / "d.h5"
    )
    assert (run.status, "is one vector of 6009 numbers, but the model has 6010" in run.error) == (2, True)
    np.save(tmp_path / "g.npy", flat(step.gradients))
    save_file(dict(step.model), tmp_path / "m")  # sorted by size and name
    run = spear("convert", tmp_path / "g.npy", "--gradients", "--model", tmp_path / "m", tmp_path / "d.h5")
    assert (run.status, "does not say in which order" in run.error) == (2, True)
