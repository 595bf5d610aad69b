"""docs/format.md names what is read and written."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import h5py
import numpy as np

import spear_np
from spear_io import InversionWriter, LayerArrays, RecordInfo, write_dump
from spear_io.files.sight import Seen, Sight
from spear_np.factors.activation import PARAMETERS
from tests.io_files import B, fake_inversion, layer_data

PAGE = (Path(__file__).parent.parent / "docs" / "format.md").read_text()
DUMP, INVERSION = re.findall(r"^## (?:Gradient dump|Inversion).*?(?=^## )", PAGE, re.DOTALL | re.MULTILINE)


def code_of(section: str) -> set[str]:
    """Every single word that a section sets as code."""
    return set(re.findall(r"`\"?(\w+)\"?`", section))


def everything_in(file: h5py.File) -> set[str]:
    names: set[str] = set()

    def visit(name: str, item: h5py.Group | h5py.Dataset) -> None:
        names.update(item.attrs)
        if isinstance(item, h5py.Dataset):
            names.add(name.rpartition("/")[2])

    file.visititems(visit)
    return names


def test_every_activation_is_there_with_its_parameters() -> None:
    rows = [line for line in DUMP.splitlines() if line.startswith("| `")]
    for name in spear_np.ACTIVATIONS:
        (row,) = [row for row in rows if f"`{name}`" in row.split("|")[1]]
        for parameter, default in PARAMETERS[name].items():
            assert f"`{parameter}`" in row
            assert f"{default:g}" in row


def test_every_attribute_and_dataset_of_a_dump_is_there(tmp_path: Path) -> None:
    layer = LayerArrays(
        *(np.eye(4), np.ones(4), np.eye(4), np.ones(4)),
        inputs=np.ones((2, 4)),
        activation=spear_np.Activation("prelu", {"slope": 0.1}),
        between="dropout",
    )
    second = LayerArrays(np.eye(4), activation="none", follows="a")
    write_dump(tmp_path / "dump.h5", {"a": layer, "b": second}, labels=np.ones(2))
    with h5py.File(tmp_path / "dump.h5") as file:
        names = everything_in(file) | {field.name for field in fields(RecordInfo)}
    assert {"follows", "between", "slope", "loss", "activation", "labels"} <= names
    assert names - {"inputs", "labels"} <= code_of(DUMP)
    assert names <= set(re.findall(r"\w+", DUMP))


def test_every_attribute_and_dataset_of_an_inversion_is_there(tmp_path: Path) -> None:
    data = layer_data()
    gradients = spear_np.LayerGradients(data.weight_grad, data.bias_grad, data.weight, data.bias)
    result = fake_inversion(gradients, data.inputs, labels=range(B), chain=("fc1", "fc2"))
    info = RecordInfo(input_shape=(8, 8), input_mean=(0.5,), input_std=(0.5,), client="a", round=1)
    with InversionWriter(tmp_path / "out.h5", source="dump.h5") as out:
        out.add("a", "fc1", result, ["a note"], display=info, seen=Seen(Sight.FEATURES, "fc0", "dropout"))
        out.mark("a", "fc1", [0] * B)
        out.describe("a", source="dump.h5", source_record="a", problem="of another layer")
    with h5py.File(tmp_path / "out.h5") as file:
        names = everything_in(file)
    assert {"repeats", "source_record", "problem"} <= names
    assert {"labels", "chain", "between", "input_std", "status", "checks"} <= names
    assert names <= code_of(INVERSION)
