"""Every attribute of both layouts with every kind of value: read, or refused in one line; what is read can be written."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from spear_io import FileError, InversionWriter, RecordInfo, open_dump, open_inversion
from tests.io_files import fake_inversion, layer_data, leftovers, write_good_dump

RECORD = "records/client-0"
LAYER = f"{RECORD}/layers/fc1"
OF_RECORD = tuple(field.name for field in fields(RecordInfo))
OF_LAYER = (
    "kind",
    "activation",
    "order",
    "follows",
    "between",
    "negative_slope",
    "alpha",
    "beta",
    "low",
    "high",
)
OF_INVERSION = (
    *("status", "reason", "batch_size", "found", "scale_known", "chain", "between"),
    *("input_shape", "input_mean", "input_std", "client", "round", "feature_names", "sees", "follows"),
    *("caveats", "rests_on", "notes", "method", "seed", "seconds", "device", "proposals", "activation"),
    *("relative_noise", "weight_decay"),
)

VALUES: dict[str, Any] = {
    "empty text": "",
    "long text": "x" * 60_000,
    "too long text": "x" * 70_000,
    "escapes": "\x1b[2J\n\r\x07 'quoted'",
    "bytes": np.bytes_(b"caf\xe9\0\xff"),
    "text that is no UTF-8": np.asarray(b"\xed\xa0\x80\xff", dtype=object),
    "texts": ["fc1", "fc2"],
    "texts that are no UTF-8": np.asarray([b"\xff", b"b"], dtype=object),
    "fixed texts": np.asarray([b"fc1", b"\xe9"]),
    "zero": 0,
    "negative": -3,
    "large": np.uint64(2**64 - 1),
    "fraction": 0.5,
    "huge": 1e300,
    "NaN": np.nan,
    "infinity": -np.inf,
    "half": np.float16(2.0),
    "truth value": True,
    "truth values": np.asarray([True, False]),
    "numbers": [1.0, 2.5],
    "sizes": [1, 8, 8],
    "many numbers": np.zeros(4000),
    "too many numbers": np.zeros(5000, np.int8),
    "no numbers": np.zeros(0),
    "table": [[1, 2], [3, 4]],
    "nothing": h5py.Empty("f8"),
    "nothing of text": h5py.Empty("S5"),
    "complex": 1 + 2j,
    "compound": np.zeros((), [("a", "f8"), ("b", "i4")]),
}


def put(holder: Any, name: str, value: Any) -> None:
    objects = isinstance(value, np.ndarray) and value.dtype == object
    holder.attrs.create(name, value, dtype=h5py.string_dtype() if objects else None)


def check(error: FileError, file: Path) -> None:
    """One line, and about `file`."""
    assert str(error).isprintable()
    assert len(str(error)) < 1000
    assert error.file == file


@pytest.fixture(scope="module")
def dump(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hostile") / "dump.h5"
    write_good_dump(path, input_shape=(8, 8), input_mean=(0.5,), input_std=(0.25,))
    return path


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
@pytest.mark.parametrize(
    ("holder", "names"), [(RECORD, OF_RECORD), (LAYER, OF_LAYER)], ids=["record", "layer"]
)
def test_what_a_dump_says_is_refused_or_can_be_written_again(
    tmp_path: Path, dump: Path, holder: str, names: tuple[str, ...], value: Any
) -> None:
    for name in names:
        path, out = tmp_path / "dump.h5", tmp_path / "out.h5"
        path.write_bytes(dump.read_bytes())
        with h5py.File(path, "r+") as file:
            put(file[holder], name, value)
            if name in ("negative_slope", "alpha", "beta", "low", "high"):
                activation = {"negative_slope": "leaky_relu", "alpha": "elu", "beta": "softplus"}
                file[holder].attrs["activation"] = activation.get(name, "hardtanh")
        try:
            with open_dump(path) as opened:
                (record,) = opened.records
                (layer,) = record.layers
                info, notes = record.info, record.notes
                result = fake_inversion(layer.gradients, layer_data().inputs)
                with InversionWriter(out, source=path) as writer:
                    writer.add(record.name, layer.name, result, notes, display=info, seen=layer.seen)
        except FileError as error:
            check(error, path)  # never about `out`
            assert not out.exists()
        else:
            with open_inversion(out) as inversion:
                (recovered,) = inversion.layers
                assert recovered.seen == layer.seen
                assert all(
                    np.array_equal(getattr(recovered.display, field), getattr(info, field), equal_nan=True)
                    if isinstance(getattr(info, field), tuple)
                    else getattr(recovered.display, field) == getattr(info, field)
                    for field in ("input_shape", "input_mean", "input_std", "client", "round")
                )
        out.unlink(missing_ok=True)
        assert leftovers(tmp_path) == []


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_what_an_inversion_says_is_read_or_refused(tmp_path: Path, dump: Path, value: Any) -> None:
    path = tmp_path / "out.h5"
    for name in OF_INVERSION:
        with open_dump(dump) as opened, InversionWriter(path, source=dump) as writer:
            (record,) = opened.records
            result = fake_inversion(record.layers[0].gradients, layer_data().inputs, chain=("fc1", "fc2"))
            writer.add(record.name, "fc1", result, display=record.info)
        with h5py.File(path, "r+") as file:
            put(file[LAYER], name, value)
        try:
            with open_inversion(path) as inversion:
                (recovered,) = inversion.layers
                assert all(isinstance(layer, str) for layer in recovered.chain)
                assert recovered.seen.between is None or isinstance(recovered.seen.between, str)
                assert isinstance(recovered.scale_known, bool)
                assert all(isinstance(note, str) for note in recovered.details.notes)
        except FileError as error:
            check(error, path)
