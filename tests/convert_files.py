"""Sources to convert: one training step of a real network, and what must come back from its dump."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spear_io import open_dump, open_inversion
from tests.io_files import Command
from tests.networks import Floats, digit_batch

WIDTH, BATCH, RATE = 80, 4, 1.0

Arrays = Mapping[str, Any]


@dataclass(frozen=True)
class Step:
    """One step of plain SGD: arrays by their names in the model, rows of a weight being output units."""

    model: Arrays
    gradients: Arrays
    after: Arrays
    images: Floats
    """(b, 64)."""

    @property
    def named(self) -> dict[str, Any]:
        """Model and gradients under names that tell which is which."""
        return {**self.model, **{f"{name}_grad": array for name, array in self.gradients.items()}}


@cache
def torch_step(*, width: int = WIDTH, b: int = BATCH, seed: int = 3) -> Step:
    """Return a step of a PyTorch network of two layers, fc1 and fc2, on digits; float32."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    images, labels = digit_batch(b, seed=seed)
    torch.manual_seed(seed)
    model = torch.nn.Sequential()
    model.add_module("fc1", torch.nn.Linear(64, width))
    model.add_module("relu", torch.nn.ReLU())
    model.add_module("fc2", torch.nn.Linear(width, 10))
    torch.nn.functional.cross_entropy(model(torch.tensor(images)), torch.tensor(labels)).backward()
    before = {name: p.detach().numpy().copy() for name, p in model.named_parameters()}
    gradients = {name: p.grad.numpy().copy() for name, p in model.named_parameters()}
    torch.optim.SGD(model.parameters(), lr=RATE).step()
    after = {name: p.detach().numpy().copy() for name, p in model.named_parameters()}
    return Step(before, gradients, after, images)


def converted(spear: Command, folder: Path, *arguments: Any) -> dict[str, Any]:
    """Convert to `dump.h5` and return the JSON document; every layer is reported as it was written."""
    dump = folder / "dump.h5"
    run = spear("convert", *arguments, dump, "--json")
    assert run.status == 0, run.err
    document: dict[str, Any] = json.loads(run.out)
    with open_dump(dump) as opened:
        (record,) = opened.records
        written = [(layer.name, str(layer.activation)) for layer in record.layers]
    assert written == [(layer["layer"], layer["activation"]) for layer in document["layers"]]
    return document


def inverted(spear: Command, folder: Path, *arguments: Any) -> tuple[str, Floats]:
    """Invert `dump.h5` and return the status of its only inverted layer and the recovered inputs (k, n)."""
    out = folder / "out.h5"
    run = spear("invert", folder / "dump.h5", "-o", out, "--json", *arguments)
    (layer,) = json.loads(run.out)["layers"]
    with open_inversion(out) as inversion:
        return layer["status"], inversion.layers[0].inputs[:]


def worst_psnr(recovered: Floats, images: Floats) -> float:
    """Return the PSNR of the worst image, each recovered row matched to the image next to it, for a range of 1."""
    errors = ((recovered[:, None, :] - images[None]) ** 2).mean(axis=2)
    assert sorted(errors.argmin(axis=1)) == list(range(len(images)))
    return float(-10 * np.log10(errors.min(axis=1).max()))


def assert_exact(spear: Command, folder: Path, images: Floats, *arguments: Any) -> None:
    """Hold that the dump gives every image back, certified."""
    status, recovered = inverted(spear, folder, *arguments)
    assert status == "exact"
    assert np.abs(recovered[:, None, :] - images[None]).max(axis=2).min(axis=1).max() < 1e-4
    assert worst_psnr(recovered, images) > 80
