"""Whatever a stranger's file holds: one line that says what and where, exit status 2, and nothing written."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import spear_np
from tests.io_files import Command, M, N, command, leftovers, write_earlier, write_good_dump

LAYER = "records/client-0/layers/fc1"
IN_LAYER = "record 'client-0', layer 'fc1'"

Breaker = Callable[[Path], None]


@pytest.fixture
def spear(capsys: pytest.CaptureFixture[str]) -> Command:
    return command(capsys)


@pytest.fixture(autouse=True)
def _no_search(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        pytest.fail("the search began although the input is bad")

    monkeypatch.setattr(spear_np, "invert_layer", refuse, raising=False)


def edit(change: Callable[[h5py.File], Any]) -> Breaker:
    """Break a good dump by changing it in place."""

    def apply(path: Path) -> None:
        write_good_dump(path)
        with h5py.File(path, "r+") as file:
            change(file)

    return apply


def replaced(dataset: str, data: Any, **options: Any) -> Breaker:
    """Break a good dump by putting other data in place of a dataset."""

    def change(file: h5py.File) -> None:
        del file[LAYER][dataset]
        file[LAYER].create_dataset(dataset, data=data, **options)

    return edit(change)


def unwritten(dataset: str, dtype: Any) -> Breaker:
    def change(file: h5py.File) -> None:
        del file[LAYER][dataset]
        file[LAYER].create_dataset(dataset, (M,), dtype)

    return edit(change)


def with_value(dataset: str, index: Any, value: float) -> Breaker:
    def change(file: h5py.File) -> None:
        file[LAYER][dataset][index] = value

    return edit(change)


def text_file(path: Path) -> None:
    path.write_text("m,n\n1,2\n")


def empty_file(path: Path) -> None:
    path.touch()


def truncated(path: Path) -> None:
    write_good_dump(path)
    os.truncate(path, path.stat().st_size // 2)


def other_hdf5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["weights"] = np.zeros(3)


def an_inversion(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.attrs.update({"format": "spear-inversion", "format_version": 1})
        file.create_group("records")


def scrambled(path: Path) -> None:
    write_good_dump(path)
    raw = bytearray(path.read_bytes())
    raw[8:200] = b"\xff" * 192
    path.write_bytes(raw)


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((M, N), np.float32)
    layout[:] = h5py.VirtualSource("elsewhere.h5", "x", (M, N), np.float32)
    del file[LAYER]["weight_grad"]
    file[LAYER].create_virtual_dataset("weight_grad", layout)


def external_storage(file: h5py.File) -> None:
    del file[LAYER]["weight_grad"]
    file[LAYER].create_dataset("weight_grad", (M, N), np.float32, external=[("/etc/passwd", 0, M * N * 4)])


def linked(link: Any, name: str = f"{LAYER}/weight_grad") -> Breaker:
    def change(file: h5py.File) -> None:
        file.move(name, "kept")
        file[name] = link

    return edit(change)


def huge_shape(**options: Any) -> Breaker:
    def change(file: h5py.File) -> None:
        del file[LAYER]["weight_grad"]
        file[LAYER].create_dataset("weight_grad", (2**20, 2**40), np.float32, **options)

    return edit(change)


def huge_chunk(file: h5py.File) -> None:
    del file[LAYER]["weight_grad"]
    file[LAYER].create_dataset(
        "weight_grad", (M, N), np.float32, maxshape=(None, None), chunks=(2**15, 2**14), compression="gzip"
    )


def unknown_filter(file: h5py.File) -> None:
    del file[LAYER]["weight_grad"]
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_chunk((M, N))
    properties.set_filter(32999, h5py.h5z.FLAG_OPTIONAL)
    space = h5py.h5s.create_simple((M, N))
    h5py.h5d.create(file[LAYER].id, b"weight_grad", h5py.h5t.IEEE_F32LE, space, properties)


def without(*names: str) -> Breaker:
    def change(file: h5py.File) -> None:
        for name in names:
            del file[name]

    return edit(change)


def without_attribute(holder: str, name: str) -> Breaker:
    def change(file: h5py.File) -> None:
        del file[holder].attrs[name]

    return edit(change)


def with_attribute(holder: str, name: str, value: Any) -> Breaker:
    def change(file: h5py.File) -> None:
        file[holder].attrs[name] = value

    return edit(change)


def name_that_is_no_text(file: h5py.File) -> None:
    file["records"].id.move(b"client-0", b"client-\xff")


def with_list_of_lists(file: h5py.File) -> None:
    file[LAYER].attrs["between"] = [["layer_norm"], ["dropout"]]


def corrupt_chunk(path: Path) -> None:
    """A chunk that does not unpack: the metadata are fine, only reading shows it."""
    write_good_dump(path)
    with h5py.File(path, "r+") as file:
        values = file[LAYER]["weight_grad"][:]
        del file[LAYER]["weight_grad"]
        dataset = file[LAYER].create_dataset(
            "weight_grad", data=values, chunks=(M, N), compression="gzip", fletcher32=True
        )
        file.flush()
        offset = dataset.id.get_chunk_info(0).byte_offset
    with path.open("r+b") as raw:
        raw.seek(offset)
        raw.write(b"\x00" * 64)


FILES: dict[str, tuple[Breaker, tuple[str, ...]]] = {
    "not HDF5": (text_file, ("not an HDF5 file", "gradient dump")),
    "empty": (empty_file, ("not an HDF5 file",)),
    "truncated": (truncated, ("cut off",)),
    "scrambled": (scrambled, ("damaged",)),
    "other HDF5": (other_hdf5, ("no attribute 'format'", "gradient dump")),
    "other format": (an_inversion, ("'spear-inversion'", "'spear-gradients'")),
    "newer version": (
        with_attribute("/", "format_version", 7),
        ("version 7", "reads up to 1", "update spear-np"),
    ),
    "no version": (without_attribute("/", "format_version"), ("'format_version' is missing",)),
    "version as text": (
        with_attribute("/", "format_version", "one"),
        ("format_version", "a number", "'one'"),
    ),
    "format as number": (with_attribute("/", "format", 5), ("'format' should be text", "5")),
    "format as references": (
        edit(lambda file: file.attrs.create("format", file.ref, dtype=h5py.ref_dtype)),
        ("'format'", "type or size"),
    ),
    "absurd attribute": (with_attribute(LAYER, "activation", "x" * 60_000 + "\n\x1b[31m"), ("followed by",)),
    "endless follows": (
        with_attribute(LAYER, "follows", "x" * 60_000 + "\n\x1b[31m"),
        (IN_LAYER, "'follows' is 'xxx", "no such layer"),
    ),
    "follows too long": (
        with_attribute(LAYER, "follows", "x" * 70_000),
        (IN_LAYER, "'follows' is of a type or size", "70 kB"),
    ),
    "follows as number": (with_attribute(LAYER, "follows", 3), (IN_LAYER, "'follows' should be text", "3")),
    "follows as list": (with_attribute(LAYER, "follows", ["fc0"]), (IN_LAYER, "'follows' should be text")),
    "between as numbers": (
        with_attribute(LAYER, "between", [1.0, 2.0]),
        (IN_LAYER, "'between' should be text", "[1.0, 2.0]"),
    ),
    "between as table": (edit(with_list_of_lists), (IN_LAYER, "'between' is of a type or size")),
    "between too long": (
        with_attribute(LAYER, "between", "layer_norm+" * 7000),
        (IN_LAYER, "'between' is of a type or size"),
    ),
    "between as references": (
        edit(lambda file: file[LAYER].attrs.create("between", file.ref, dtype=h5py.ref_dtype)),
        (IN_LAYER, "'between'", "type or size"),
    ),
    "loss as truth value": (
        with_attribute("records/client-0", "loss", True),
        ("record 'client-0'", "'loss' should be text"),
    ),
    "clients": (
        with_attribute("records/client-0", "client", ["a", "b"]),
        ("record 'client-0'", "'client' should be text or a number"),
    ),
    "input shape that overflows": (
        with_attribute("records/client-0", "input_shape", [1e300]),
        ("record 'client-0'", "'input_shape' is (1e+300,)"),
    ),
    "endless input mean": (
        with_attribute("records/client-0", "input_mean", np.zeros(8000)),
        ("record 'client-0'", "'input_mean' is of a type or size"),
    ),
    "name that is no text": (edit(name_that_is_no_text), ("name 'client-\\udcff' is not valid UTF-8",)),
    "no records": (without("records"), ("group 'records' is missing", "nothing")),
    "records empty": (without("records/client-0"), ("'records' is empty",)),
    "no layers": (without("records/client-0/layers"), ("record 'client-0'", "group 'layers' is missing")),
    "layers empty": (without(LAYER), ("record 'client-0'", "'layers' is empty")),
    "records is a dataset": (
        edit(lambda file: (file.pop("records"), file.create_dataset("records", data=[1.0]))),
        ("'records' should be a group, but is a dataset",),
    ),
    "weight_grad is a group": (
        edit(lambda file: (file[LAYER].pop("weight_grad"), file[LAYER].create_group("weight_grad"))),
        (IN_LAYER, "dataset 'weight_grad'", "should be a dataset"),
    ),
    "no weight_grad": (
        without(f"{LAYER}/weight_grad"),
        (IN_LAYER, "'weight_grad' is missing", "'bias_grad', 'weight'"),
    ),
    "no kind": (without_attribute(LAYER, "kind"), (IN_LAYER, "'kind' is missing", "linear")),
    "no activation": (without_attribute(LAYER, "activation"), (IN_LAYER, "'activation' is missing")),
    "activation as number": (
        with_attribute(LAYER, "activation", 3),
        (IN_LAYER, "'activation' should be text"),
    ),
    "unknown activation": (
        with_attribute(LAYER, "activation", "swish"),
        ("no layer can be inverted", "'fc1'", "'swish'", "ReLU"),
    ),
    "unknown kind": (
        with_attribute(LAYER, "kind", "conv2d"),
        ("no layer can be inverted", "'fc1'", "'conv2d'"),
    ),
    "unknown update": (
        with_attribute("records/client-0", "update", "momentum"),
        ("record 'client-0'", "'momentum'", "'gradient', 'weight_delta'"),
    ),
    "senseless input shape": (
        with_attribute("records/client-0", "input_shape", [1.0, np.inf]),
        ("record 'client-0'", "'input_shape' is (1.0, inf)"),
    ),
    "batch size as text": (
        with_attribute("records/client-0", "batch_size", "many"),
        ("record 'client-0'", "'batch_size' should be a number", "'many'"),
    ),
    "bias_grad too long": (
        replaced("bias_grad", np.zeros(M + 1, np.float32)),
        (IN_LAYER, "`bias_grad` has shape (61,)", "60 rows"),
    ),
    "bias too short": (replaced("bias", np.zeros(M - 1, np.float32)), (IN_LAYER, "`bias` has shape (59,)")),
    "weight transposed": (
        replaced("weight", np.zeros((N, M), np.float32)),
        (IN_LAYER, "`weight` has shape (64, 60)", "(60, 64)"),
    ),
    "weight_grad flat": (
        replaced("weight_grad", np.zeros(M * N, np.float32)),
        (IN_LAYER, "dataset 'weight_grad'", "two dimensions"),
    ),
    "weight_grad scalar": (
        replaced("weight_grad", np.float32(1)),
        ("dataset 'weight_grad'", "two dimensions"),
    ),
    "weight_grad of no size": (
        replaced("weight_grad", np.zeros((0, N), np.float32)),
        (IN_LAYER, "empty", "(0, 64)"),
    ),
    "weight_grad without columns": (
        replaced("weight_grad", np.zeros((M, 0), np.float32)),
        (IN_LAYER, "empty", "(60, 0)"),
    ),
    "null dataspace": (
        replaced("weight_grad", h5py.Empty(np.float32)),
        ("dataset 'weight_grad'", "no numbers at all"),
    ),
    "integers": (
        replaced("weight_grad", np.ones((M, N), np.int64)),
        (IN_LAYER, "dataset 'weight_grad'", "integers (int64)", "float32"),
    ),
    "uint16 that does not say bfloat16": (
        replaced("weight_grad", np.ones((M, N), np.uint16)),
        ("integers (uint16)", "dtype = 'bfloat16'"),
    ),
    "complex": (replaced("weight_grad", np.ones((M, N), np.complex64)), (IN_LAYER, "complex numbers")),
    "booleans": (replaced("bias_grad", np.ones(M, bool)), ("dataset 'bias_grad'", "enumerations")),
    "long doubles": (replaced("weight", np.ones((M, N), np.longdouble)), ("dataset 'weight'", "128 bits")),
    "strings": (replaced("bias", np.array([b"x"] * M)), ("dataset 'bias'", "strings")),
    "string objects": (replaced("bias", ["x"] * M, dtype=h5py.string_dtype()), ("dataset 'bias'", "strings")),
    "objects": (unwritten("bias", h5py.vlen_dtype(np.float32)), ("dataset 'bias'", "varying length")),
    "references": (unwritten("bias", h5py.ref_dtype), ("dataset 'bias'", "references")),
    "compound": (
        replaced("bias", np.zeros(M, [("a", np.float32)])),
        ("dataset 'bias'", "compound values"),
    ),
    "external link": (
        linked(h5py.ExternalLink("/etc/passwd", "/x")),
        (IN_LAYER, "'weight_grad' is an external link"),
    ),
    "external link to a record": (
        linked(h5py.ExternalLink("other.h5", "/x"), "records/client-0"),
        ("'client-0' is an external link",),
    ),
    "external link to all records": (
        linked(h5py.ExternalLink("other.h5", "/records"), "records"),
        ("'records' is an external link",),
    ),
    "soft link": (linked(h5py.SoftLink("/kept")), (IN_LAYER, "'weight_grad' is a soft link")),
    "soft link in a circle": (linked(h5py.SoftLink(f"/{LAYER}/weight_grad")), ("a soft link",)),
    "virtual dataset": (edit(virtual), (IN_LAYER, "dataset 'weight_grad'", "virtual dataset")),
    "external storage": (edit(external_storage), (IN_LAYER, "dataset 'weight_grad'", "another file")),
    "claims terabytes": (huge_shape(chunks=(64, 64)), ("dataset 'weight_grad'", "TB", "0 bytes")),
    "claims terabytes, packed": (huge_shape(chunks=(1024, 1024), compression="gzip"), ("TB",)),
    "huge chunks": (edit(huge_chunk), ("dataset 'weight_grad'", "chunks of 2.15 GB")),
    "unknown filter": (edit(unknown_filter), ("dataset 'weight_grad'", "filter 32999")),
    "damaged chunk": (corrupt_chunk, (IN_LAYER, "dataset 'weight_grad'", "cannot be read")),
}

VALUES: dict[str, tuple[Breaker, tuple[str, ...]]] = {
    "NaN in weight_grad": (
        with_value("weight_grad", (3, 17), np.nan),
        (IN_LAYER, "dataset 'weight_grad'", "NaN at row 3, column 17"),
    ),
    "infinity in weight_grad": (
        with_value("weight_grad", (59, 63), -np.inf),
        ("dataset 'weight_grad'", "infinity at row 59, column 63"),
    ),
    "NaN in bias_grad": (with_value("bias_grad", 5, np.nan), ("dataset 'bias_grad'", "NaN at entry 5")),
    "infinity in weight": (with_value("weight", (0, 0), np.inf), ("dataset 'weight'", "infinity at row 0")),
    "NaN in bias": (with_value("bias", 0, np.nan), ("dataset 'bias'", "NaN at entry 0")),
}

EVERYTHING = FILES | VALUES

OUTPUTS = (
    (True, EVERYTHING),
    (False, ("not HDF5", "no weight_grad", "NaN in bias", "damaged chunk")),
)


@pytest.mark.parametrize(("existing", "case"), [(old, case) for old, cases in OUTPUTS for case in cases])
def test_invert_answers_in_one_line_and_writes_nothing(
    tmp_path: Path, spear: Command, existing: bool, case: str
) -> None:
    breaker, fragments = EVERYTHING[case]
    dump, output = tmp_path / "dump.h5", tmp_path / "out.h5"
    breaker(dump)
    earlier = write_earlier(output, "spear-inversion") if existing else None
    run = spear("invert", dump, "-o", output)
    assert run.status == 2
    assert run.out == ""
    assert run.error.startswith(f"{dump}: ")
    assert len(run.error) < 1000
    assert run.error.isprintable()
    for fragment in fragments:
        assert fragment in run.error
    assert (output.read_bytes() if output.exists() else None) == earlier
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    "case", [case for case in FILES if case not in ("unknown activation", "unknown kind", "other format")]
)
def test_inspect_answers_the_same(tmp_path: Path, spear: Command, case: str) -> None:
    breaker, fragments = FILES[case]
    dump = tmp_path / "dump.h5"
    breaker(dump)
    run = spear("inspect", dump)
    if case in ("absurd attribute", "damaged chunk"):
        assert fragments[-1] in run.out
        return
    assert run.status == 2
    assert run.out == ""
    for fragment in fragments:
        assert fragment in run.error


def test_inspect_knows_an_inversion_that_holds_nothing(tmp_path: Path, spear: Command) -> None:
    an_inversion(tmp_path / "out.h5")
    run = spear("inspect", tmp_path / "out.h5")
    assert (run.status, run.out) == (2, "")
    assert "holds no layers" in run.error


@pytest.mark.parametrize("case", VALUES)
def test_inspect_shows_numbers_that_are_none(tmp_path: Path, spear: Command, case: str) -> None:
    breaker, fragments = VALUES[case]
    dump = tmp_path / "dump.h5"
    breaker(dump)
    run = spear("inspect", dump)
    assert run.status == 0
    assert fragments[-1] in run.out


def test_other_files_are_never_opened(tmp_path: Path, spear: Command) -> None:
    """A pipe stands where a virtual dataset without limits points: opening it would hang, asking its shape too."""
    os.mkfifo(tmp_path / "pipe.h5")

    def change(file: h5py.File) -> None:
        layout = h5py.VirtualLayout((M, N), np.float32, maxshape=(None, N))
        source = h5py.VirtualSource("pipe.h5", "x", (M, N), np.float32, maxshape=(None, N))
        layout[0 : h5py.h5s.UNLIMITED, :] = source[0 : h5py.h5s.UNLIMITED, :]
        del file[LAYER]["weight_grad"]
        file[LAYER].create_virtual_dataset("weight_grad", layout)
        del file[LAYER]["weight"]
        file[LAYER]["weight"] = h5py.ExternalLink("pipe.h5", "/x")

    edit(change)(tmp_path / "dump.h5")
    run = spear("invert", tmp_path / "dump.h5", "-o", tmp_path / "out.h5")
    assert run.status == 2
    assert "virtual dataset" in run.error


def test_truth_is_held_to_the_same_standard(tmp_path: Path, spear: Command) -> None:
    dump = tmp_path / "dump.h5"
    write_good_dump(dump)
    with h5py.File(dump, "r+") as file:
        truth = file["records/client-0/truth"]
        del truth["fc1"]
        truth["fc1"] = h5py.ExternalLink("/etc/passwd", "/x")
    assert "external link" in spear("inspect", dump).error
    with h5py.File(dump, "r+") as file:
        truth = file["records/client-0/truth"]
        del truth["fc1"]
        truth.create_dataset("fc1/inputs", (2**30, N), np.float32)
    assert "claims shape" in spear("inspect", dump).error
    with h5py.File(dump, "r+") as file:
        truth = file["records/client-0/truth"]
        del truth["fc1"]
        truth["labels"] = np.array([b"cat"])
    assert "dataset 'labels': holds strings" in spear("inspect", dump).error


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.h5", "no such file"),
        ("folder", "a folder without gradient dumps"),
        ("pipe", "not a regular file"),
    ],
)
def test_dumps_that_are_no_files(tmp_path: Path, spear: Command, name: str, message: str) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    run = spear("invert", tmp_path / name, "-o", tmp_path / "out.h5")
    assert run.status == 2
    assert message in run.error
    assert not (tmp_path / "out.h5").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_dump_without_permission(tmp_path: Path, spear: Command) -> None:
    dump = tmp_path / "dump.h5"
    write_good_dump(dump)
    dump.chmod(0)
    assert "ermission" in spear("inspect", dump).error


def test_a_file_from_elsewhere_cannot_write_on_the_terminal(tmp_path: Path, spear: Command) -> None:
    dump = tmp_path / "dump.h5"
    write_good_dump(dump)
    with h5py.File(dump, "r+") as file:
        file.move("records/client-0", "records/\x1b[2J[red]\nspear-np: all is well")
        file.attrs["producer"] = "\x1b]0;owned\x07"
        del file["records"][next(iter(file["records"]))]["layers/fc1/weight_grad"]
    run = spear("inspect", dump)
    assert "\x1b" not in run.err
    assert r"\x1b[2J[red]\nspear-np" in run.error


def test_a_file_with_a_writer_is_not_called_damaged(spear: Command, tmp_path: Path) -> None:
    """A writer in SWMR mode marks the file, and takes no lock that would say so."""
    path = tmp_path / "a.h5"
    writer = (
        "import h5py, os, sys\n"
        "file = h5py.File(sys.argv[1], 'w', libver='latest')\n"
        "file['fc1.weight_grad'] = [[1.0]]\n"
        "file.swmr_mode = True\n"
        "file.flush()\n"
        "os._exit(0)\n"  # as one that is stopped: the mark stays
    )
    subprocess.run([sys.executable, "-c", writer, str(path)], check=True)
    for arguments in (("convert", path, tmp_path / "d.h5"), ("inspect", path)):
        run = spear(*arguments)
        assert run.status == 2
        assert "another program is writing this file (SWMR), or was stopped" in run.error
        assert "damaged" not in run.error
