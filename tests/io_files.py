"""Dumps to test with, a stand-in for the solver's answer, and the command run in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import spear_np
from spear_io import LayerArrays, RecordInfo, write_dump
from spear_io.cli.main import main
from spear_np.backend.devices import CPU
from tests.networks import LayerData, digit_batch, relu_network_gradients

M, N, B = 60, 64, 4


def layer_data(*, b: int = B, m: int = M, seed: int = 11, dtype: Any = np.float32) -> LayerData:
    """Return a real batch and its gradients."""
    inputs, labels = digit_batch(b, seed=seed)
    return relu_network_gradients(inputs, labels, width=m, seed=seed, dtype=dtype)


def layer_arrays(data: LayerData, **changes: Any) -> LayerArrays:
    """Return everything of `data` that a dump can hold."""
    arrays = LayerArrays(data.weight_grad, data.bias_grad, data.weight, data.bias, inputs=data.inputs)
    return replace(arrays, **changes)


def write_good_dump(path: Path, data: LayerData | None = None, **info: Any) -> LayerData:
    """Write one record 'client-0' with one layer 'fc1'."""
    data = data or layer_data()
    write_dump(path, {"fc1": layer_arrays(data)}, record="client-0", info=RecordInfo(**info))
    return data


def write_earlier(path: Path, kind: str = "spear-gradients") -> bytes:
    """Write a file that the command may replace, and return what is in it."""
    with h5py.File(path, "w") as file:
        file.attrs["format"] = kind
    return path.read_bytes()


def fake_inversion(
    gradients: spear_np.LayerGradients,
    inputs: np.ndarray[Any, Any] | None = None,
    *,
    status: str = "exact",
    batch_size: int | None = None,
    error_bound: float = 1e-6,
    labels: Sequence[int] | None = None,
    chain: tuple[str, ...] = (),
) -> spear_np.Inversion:
    """Return an answer as the solver would give it, with the given recovered inputs (k, n)."""
    m, n = gradients.shape
    rows = np.zeros((0, n)) if inputs is None else np.asarray(inputs, dtype=np.float64)
    k = len(rows)

    @dataclass(frozen=True, eq=False, repr=False)
    class Fake(spear_np.Inversion):
        def input_blocks(self) -> Iterator[tuple[slice, Any]]:
            for start in range(0, n, 20):  # several blocks, the last one narrower
                yield slice(start, min(start + 20, n)), rows[:, start : start + 20]

    certificate = spear_np.Certificate(
        checks=(
            spear_np.Check("sign_agreement", 1.0, ">=", 1.0, "gradient and layer agree where units are on"),
            spear_np.Check("bias_residual", None, "<=", 6.0, "bias_grad is reproduced"),
        ),
        zero_count=(30,) * k,
        redundancy=(27,) * k,
        sign_agreement=(1.0,) * k,
        false_probability=(1e-30,) * k,
        error_bound=(error_bound,) * k,
        caveats=("identical inputs count once",),
        rests_on=(spear_np.Premise("plain", "nobody changed it"),),
        evidence=(spear_np.Evidence(True, True, True, True, True, None),) * k,
    )
    return Fake(
        status=spear_np.Status(status),
        reason="every check holds" if status == "exact" else "something is missing",
        batch_size=k if batch_size is None else batch_size,
        found=k,
        output_grad=np.ones((m, k)),
        certificate=certificate,
        method="sampling",
        seed=3,
        seconds=0.25,
        device="cpu",
        proposals=12345,
        history=(),
        gradients=gradients,
        recovery=np.zeros((k, m)),
        scale_known=gradients.bias_grad is not None,
        where=CPU,
        labels=None if labels is None else np.asarray(labels, dtype=np.int64),
        chain=chain,
    )


@dataclass(frozen=True)
class Run:
    """What a command did."""

    status: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line of the error."""
        assert self.err.count("\n") == 1, self.err
        assert self.err.startswith("spear-np: error: ")
        return self.err.removeprefix("spear-np: error: ").rstrip("\n")


Command = Callable[..., Run]


def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Return a function that runs `spear-np` in this process."""

    def run(*arguments: Any) -> Run:
        status = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return Run(status, out, err)

    return run


def leftovers(folder: Path) -> Sequence[str]:
    """Temporary files that should be gone."""
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]
