"""What a user's type checker sees: arrays are arrays, and nothing public is `Any` where one is meant."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import array_api_strict
import numpy as np
import pytest
from mypy import api

import spear_io
import spear_np
from spear_np.arrays import LinearAlgebra, Namespace

ROOT = Path(__file__).parent.parent

USER = """
import numpy as np
import spear_np
from spear_io import Bfloat16, LayerArrays, open_dump, open_inversion, write_dump

rng = np.random.default_rng(0)
x = rng.random((6, 50))
weight, bias = rng.standard_normal((100, 50)), rng.standard_normal(100)
grads = x.T @ x
result = spear_np.invert(weight, bias, weight=weight, bias=bias)
reveal_type(result.inputs)
reveal_type(result.inputs[0] - x)
reveal_type(result.output_grad)
reveal_type(result.labels)
reveal_type(result.gradients.weight_grad)
reveal_type(result.gradients.bias)
reveal_type([block for _, block in result.input_blocks()])
reveal_type(np.asarray(result.inputs))
reveal_type(spear_np.Activation("gelu").value_and_slope(x)[1])
reveal_type(spear_np.invert_chain([result.gradients]).inputs)
print(np.abs(result.inputs - x).max(), np.allclose(result.inputs, x), result.inputs.shape)
spear_np.check(result.gradients, result.inputs)
spear_np.check(result.gradients, x.tolist())

with open_dump("dump.h5") as dump:
    layer = dump.records[0].layers[0]
    reveal_type(layer.arrays["weight_grad"][:5])
    spear_np.invert_layer(layer.gradients)
    spear_np.invert(layer.arrays["weight_grad"], weight=layer.arrays["weight"])
with open_inversion("inverted.h5") as inversion:
    reveal_type(inversion.layers[0].inputs[:])
reveal_type(LayerArrays(weight).weight_grad)
reveal_type(Bfloat16(x)[:])
write_dump("dump.h5", {"fc1": LayerArrays(weight, bias)}, labels=[1, 2])
spear_np.invert("dump.h5")
"""
HOST = "numpy.ndarray[tuple[Any, ...], numpy.dtype[Any]]"
ARRAY = "spear_np.arrays.Array"
SLICEABLE = "spear_np.arrays.Sliceable"
SEEN = [
    ARRAY,
    ARRAY,
    ARRAY,
    f"{ARRAY} | None",
    SLICEABLE,
    f"{SLICEABLE} | None",
    f"list[{ARRAY}]",
    HOST,
    ARRAY,
    ARRAY,
    HOST,
    HOST,
    f"{SLICEABLE} | None",
    HOST,
]


def test_a_users_file_sees_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "user.py").write_text(USER)
    monkeypatch.setenv("MYPYPATH", f"{ROOT}:{ROOT / 'io'}")
    monkeypatch.chdir(tmp_path)
    settings = "[mypy]\nstrict = True\n[mypy-h5py.*,array_api_compat.*,scipy.*,threadpoolctl.*]\nignore_missing_imports = True\n"
    (tmp_path / "mypy.ini").write_text(settings)
    out, err, _ = api.run(["--explicit-package-bases", "--python-version", "3.11", "user.py"])
    assert not err
    assert re.findall(r'Revealed type is "(.*)"', out) == SEEN
    errors = [line for line in out.splitlines() if ": error:" in line]
    assert len(errors) == 1, errors
    assert 'Argument 1 to "invert" has incompatible type "str"; expected "Sliceable"' in errors[0]


@pytest.mark.parametrize("package", ["spear_np", "io/spear_io"])
def test_types_are_shipped(package: str) -> None:
    assert (ROOT / package / "py.typed").exists()


def public_hints() -> list[tuple[str, str, Any]]:
    """(owner, name, annotation) of every parameter, result and field of what the two packages show."""
    found = []
    for package in (spear_np, spear_io):
        for name in package.__all__:
            thing = getattr(package, name)
            callables = {name: thing} if callable(thing) else {}
            if inspect.isclass(thing):
                callables |= {
                    f"{name}.{key}": one
                    for key, one in vars(thing).items()
                    if inspect.isfunction(one) and (key[:1] != "_" or key[:2] == "__")
                }
                callables |= {
                    f"{name}.{key}": one.fget for key, one in vars(thing).items() if isinstance(one, property)
                }
                found += [(name, key, hint) for key, hint in vars(thing).get("__annotations__", {}).items()]
            for owner, one in callables.items():
                hints = getattr(one, "__annotations__", {})
                if not inspect.isclass(one):
                    found += [(owner, key, hint) for key, hint in hints.items()]
    return found


ANYTHING = {
    "key": "an index: a number, a slice, an array",
    "other": "of an operator: an array, a number",
    "value": "what is put into an array",
    "dtype": "as the library of the array names it",
    "device": "as the library of the array names it",
    "Sliceable.__getitem__": "a block of whatever library",
}
"""What may be anything, and why."""


def test_nothing_public_is_anything_where_an_array_is_meant() -> None:
    hints = public_hints()
    assert ("invert", "weight_grad", "Sliceable") in hints
    assert ("Inversion", "output_grad", "Array") in hints
    loose = [(owner, name) for owner, name, hint in hints if hint in ("Any", "Any | None")]
    unexplained = [
        (owner, name)
        for owner, name in loose
        if name not in ANYTHING and owner not in ANYTHING and owner.split(".")[-1] not in ANYTHING
    ]
    assert unexplained == []


@pytest.mark.parametrize("xp", [np, array_api_strict], ids=["numpy", "strict"])
def test_arrays_have_all_that_is_said_of_them(xp: Any) -> None:
    array = xp.asarray([[1.0, 2.0], [3.0, 4.0]])
    said = {
        name
        for name, one in vars(spear_np.Array).items()
        if isinstance(one, property)
        or (inspect.isfunction(one) and not name.startswith(("_proto", "__init", "__sub")))
    }
    assert {"shape", "T", "__matmul__", "__array__", "__getitem__"} <= said
    assert {name for name in said if not hasattr(array, name)} == set()
    assert isinstance(array, spear_np.Sliceable)
    for protocol, holder in ((Namespace, xp), (LinearAlgebra, xp.linalg)):
        named = {*protocol.__annotations__, *vars(protocol)}
        public = {name for name in named if not name.startswith("_")}
        assert public
        assert {name for name in public if not hasattr(holder, name)} == set()
