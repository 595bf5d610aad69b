"""The recipes of docs/convert.md, run as they stand: every one gives the batch back."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.convert_files import inverted, torch_step, worst_psnr
from tests.io_files import Command, command
from tests.test_convert_formats import matlab_73, matlab_names

TEXT = (Path(__file__).parent.parent / "docs" / "convert.md").read_text()
RECIPES = dict(re.findall(r"^### (.+?)\n(.*?)(?=^### |\Z)", TEXT, re.MULTILINE | re.DOTALL))


@pytest.fixture
def spear(capsys: pytest.CaptureFixture[str]) -> Command:
    return command(capsys)


def blocks(recipe: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", recipe, re.MULTILINE | re.DOTALL)


def arrays(folder: Path) -> dict[str, Any]:
    return {**matlab_names(torch_step()), "images": torch_step().images}


def flower(folder: Path) -> dict[str, Any]:
    step = torch_step()
    return {
        "parameters_before": list(step.model.values()),
        "parameters_after": list(step.after.values()),
        "images": step.images,
    }


def torch_model(folder: Path) -> dict[str, Any]:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    step = torch_step()
    model = torch.nn.ModuleDict({"fc1": torch.nn.Linear(64, 80), "fc2": torch.nn.Linear(80, 10)})
    model.load_state_dict({name: torch.tensor(array) for name, array in step.model.items()})
    for name, parameter in model.named_parameters():
        parameter.grad = torch.tensor(step.gradients[name])
    return {"model": model, "images": step.images}


def keras_model(folder: Path) -> dict[str, Any]:
    pytest.importorskip("keras", reason="Keras is not installed")
    from tests.networks import digit_batch
    from tests.test_convert_keras import network

    images, labels = digit_batch(4, seed=7)
    return {"model": network(), "images": images, "labels": labels}


def flax_trees(folder: Path) -> dict[str, Any]:
    pytest.importorskip("flax", reason="Flax is not installed")
    from tests.test_convert_flax import linen_step

    params, grads, images = linen_step()
    return {"params": params, "grads": grads, "images": images}


def matlab_file(folder: Path) -> dict[str, Any]:
    """What that line of MATLAB writes, by hand."""
    matlab_73(folder, torch_step())
    (folder / "a").rename(folder / "step.mat")
    return {"images": torch_step().images}


GIVEN: dict[str, Callable[[Path], dict[str, Any]]] = {
    "NumPy": arrays,
    "Flower": flower,
    "safetensors": torch_model,
    "PyTorch checkpoint": torch_model,
    "Keras": keras_model,
    "Flax": flax_trees,
    "MATLAB": matlab_file,
    "HDF5": arrays,
}


def test_every_recipe_is_tried() -> None:
    assert list(RECIPES) == list(GIVEN)


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't:DeprecationWarning")
@pytest.mark.parametrize("name", GIVEN)
def test_the_recipe_gives_the_batch_back(
    spear: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    variables = GIVEN[name](tmp_path)
    for block in blocks(RECIPES[name], "python"):
        exec(compile(block, f"<recipe {name}>", "exec"), variables)  # noqa: S102  (ours, not a stranger's)
    ((line,),) = (block.splitlines() for block in blocks(RECIPES[name], "sh"))
    run = spear(*shlex.split(line)[1:])
    assert run.status == 0, run.err
    status, recovered = inverted(spear, tmp_path)
    assert status == "exact" or (status == "approximate" and "--before" in line)
    assert worst_psnr(recovered, variables["images"]) > 60
