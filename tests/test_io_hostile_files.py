"""Small files that claim, multiply or repeat: refused by what comes out, before it is there."""

from __future__ import annotations

import json
import os
import struct
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import h5py
import msgpack
import numpy as np
import pytest
import safetensors.numpy
from numpy.lib import format as npy

from spear_io import DumpWriter, FileError, open_dump, open_inversion
from spear_io.convert.archives import open_archive, read_member
from spear_io.convert.keras_config import LARGEST_NETWORK, model_config
from spear_io.files import safety
from spear_io.problems import Place
from tests.io_files import Command, command, layer_arrays, layer_data, leftovers, write_good_dump

LAYER = "records/client-0/layers/fc1"
SMALL = np.ones((5, 7), np.float32)


@pytest.fixture
def spear(capsys: pytest.CaptureFixture[str]) -> Command:
    return command(capsys)


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    write_good_dump(tmp_path / "dump.h5", layer_data(b=2, m=24))
    return tmp_path / "dump.h5"


def edit(path: Path, change: Callable[[h5py.File], Any]) -> None:
    with h5py.File(path, "r+") as file:
        change(file)


# --- filters ----------------------------------------------------------------------------------------------------------


def filtered(*add: Callable[[Any], None]) -> Callable[[h5py.File], None]:
    """Store the gradient once more through filters."""

    def change(file: h5py.File) -> None:
        values = file[LAYER]["weight_grad"][:]
        del file[LAYER]["weight_grad"]
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk(values.shape)
        for one in add:
            one(properties)
        space = h5py.h5s.create_simple(values.shape)
        dataset = h5py.h5d.create(file[LAYER].id, b"weight_grad", h5py.h5t.IEEE_F32LE, space, properties)
        dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, values)

    return change


def deflate(properties: Any) -> None:
    properties.set_deflate(4)


def scale_offset(properties: Any) -> None:
    properties.set_scaleoffset(h5py.h5z.SO_FLOAT_DSCALE, 3)


def nbit(properties: Any) -> None:
    properties.set_filter(h5py.h5z.FILTER_NBIT, 0)


def szip(properties: Any) -> None:
    properties.set_filter(h5py.h5z.FILTER_SZIP, h5py.h5z.FLAG_OPTIONAL, (4, 8))


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ((deflate, deflate), "packed more than once with gzip"),
        ((szip,), "packed with filter 4"),
    ],
)
def test_few_filters_are_trusted(
    spear: Command, dump: Path, filters: tuple[Callable[[Any], None], ...], message: str
) -> None:
    try:
        edit(dump, filtered(*filters))
    except (ValueError, OSError):
        pytest.skip("this HDF5 does not write it")
    run = spear("inspect", dump)
    assert run.status == 2
    assert f"dataset 'weight_grad': {message}" in run.error


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "gzip"},
        {"compression": "lzf", "shuffle": True},
        {"compression": "gzip", "shuffle": True, "fletcher32": True},
    ],
)
def test_the_others_are_read(spear: Command, dump: Path, options: dict[str, Any]) -> None:
    def change(file: h5py.File) -> None:
        values = file[LAYER]["weight_grad"][:]
        del file[LAYER]["weight_grad"]
        file[LAYER].create_dataset("weight_grad", data=values, **options)

    edit(dump, change)
    run = spear("inspect", dump, "--json")
    assert json.loads(run.out)["records"][0]["layers"][0]["survey"]["batch_size"] == 2


@pytest.mark.parametrize("filters", [(nbit,), (nbit, deflate), (scale_offset,)])
def test_numbers_that_nbit_or_scale_offset_packed_are_read(
    spear: Command, dump: Path, filters: tuple[Callable[[Any], None], ...]
) -> None:
    edit(dump, filtered(*filters))
    with open_dump(dump) as opened, h5py.File(dump) as file:
        layer = opened.records[0].layers[0]
        assert np.array_equal(layer.gradients.weight_grad[:, :], file[LAYER]["weight_grad"][:])
    assert spear("inspect", dump).status == 0


def test_whole_numbers_that_scale_offset_packed_are_as_they_were(dump: Path) -> None:
    labels = np.array([3, 900], np.int64)

    def change(file: h5py.File) -> None:
        truth = file["records/client-0"].require_group("truth")
        truth.pop("labels", None)
        truth.create_dataset("labels", data=labels, scaleoffset=0)

    edit(dump, change)
    with open_dump(dump) as opened:
        assert np.asarray(opened.records[0].labels).tolist() == [3, 900]


@pytest.mark.skipif(
    h5py.version.hdf5_version_tuple < (2,), reason="this HDF5 does not tell the parameters that it stores"
)
@pytest.mark.parametrize(
    ("add", "name", "position", "wrong"),
    [
        (scale_offset, "scale-offset", 2, 5),  # entries
        (scale_offset, "scale-offset", 2, 2**31),
        (scale_offset, "scale-offset", 4, 8),  # bytes of each
        (nbit, "nbit", 2, 5),
        (nbit, "nbit", 3, 3),  # class: a compound type, described by what follows
        (nbit, "nbit", 4, 8),
        (nbit, "nbit", 6, 33),  # bits
        (nbit, "nbit", 7, 1),  # where they begin
        (nbit, "nbit", 7, 2**32 - 1),
    ],
)
def test_a_filter_for_another_chunk_is_refused(
    spear: Command, dump: Path, add: Callable[[Any], None], name: str, position: int, wrong: int
) -> None:
    """It would make more or less of the chunk than HDF5 has room for."""
    edit(dump, filtered(add))
    with h5py.File(dump) as file:
        _, _, parameters, _ = file[LAYER]["weight_grad"].id.get_create_plist().get_filter(0)
    words = list(parameters)
    right = struct.pack(f"<{len(words)}I", *words)
    words[position] = wrong
    content = dump.read_bytes()
    assert content.count(right) == 1
    dump.write_bytes(content.replace(right, struct.pack(f"<{len(words)}I", *words)))
    run = spear("inspect", dump)
    assert run.status == 2
    assert f"dataset 'weight_grad': packed with {name} for a chunk of another size or type" in run.error


# --- what is there once and claimed often -----------------------------------------------------------------------------


def many_records(file: h5py.File) -> None:
    for number in range(1300):
        file[f"records/{number}"] = file["records/client-0"]


def many_layers(file: h5py.File) -> None:
    layers = file["records/client-0/layers"]
    for number in range(1300):
        layers[f"fc{number + 2}"] = layers["fc1"]


def shared_gradient(file: h5py.File) -> None:
    """Records of their own, but one large gradient of zeros for all of them."""
    zeros = file.create_dataset("zeros", (400, 20_000), np.float32)
    for number in range(40):
        layer = file.create_group(f"records/{number}/layers/fc1")
        layer.attrs.update({"kind": "linear", "activation": "relu"})
        layer["weight_grad"] = zeros


def unwritten_gradients(file: h5py.File) -> None:
    for number in range(40):
        layer = file.create_group(f"records/{number}/layers/fc1")
        layer.attrs.update({"kind": "linear", "activation": "relu"})
        layer.create_dataset("weight_grad", (400, 20_000), np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (many_records, "names or more for"),
        (many_layers, "names or more for"),
        (shared_gradient, "under many names"),
        (unwritten_gradients, "in all, but is"),
    ],
)
def test_links_and_claims_do_not_multiply(
    spear: Command, dump: Path, change: Callable[[h5py.File], None], message: str
) -> None:
    edit(dump, change)
    started = time.process_time()
    for arguments in (["inspect", dump], ["invert", dump, "-o", dump.with_name("out.h5"), "--time-limit", 1]):
        run = spear(*arguments)
        assert run.status == 2
        assert message in run.error
    assert time.process_time() - started < 10


@pytest.mark.parametrize(("links", "message"), [(1300, "names or more for"), (40, "under many names")])
def test_nor_where_any_hdf5_is_converted(spear: Command, tmp_path: Path, links: int, message: str) -> None:
    with h5py.File(tmp_path / "a", "w") as file:
        shape = (400, 20_000) if links == 40 else (4, 3)
        file.create_dataset("grads/fc0/weight", shape, np.float32)
        for number in range(links):
            file[f"grads/fc{number + 1}/weight"] = file["grads/fc0/weight"]
    run = spear("convert", tmp_path / "a", tmp_path / "dump.h5")
    assert run.status == 2
    assert message in run.error


def test_an_honest_share_is_no_multiple(tmp_path: Path) -> None:
    """Hundreds of clients of one model."""
    path = tmp_path / "dump.h5"
    data = layer_data(b=2, m=24)
    with DumpWriter(path) as writer:
        writer.add_record("model", {"fc1": layer_arrays(data)})
        for number in range(150):
            update = layer_arrays(data, weight=None, bias=None, inputs=None)
            writer.add_record(str(number), {"fc1": update}, model_of="model")
    with open_dump(path) as dump:
        assert sum("weight" in record.layers[0].arrays for record in dump.records) == 151


def test_two_records_of_one_name(spear: Command, tmp_path: Path) -> None:
    path = tmp_path / "dump.h5"
    with h5py.File(path, "w") as file:  # in the oldest layout, where no checksum sees it
        file.attrs.update({"format": "spear-gradients", "format_version": 1})
        for name in ("recAAAA1", "recAAAA2"):
            layer = file.create_group(f"records/{name}/layers/fc1")
            layer.attrs.update({"kind": "linear", "activation": "relu"})
            layer["weight_grad"] = SMALL
    path.write_bytes(path.read_bytes().replace(b"recAAAA2", b"recAAAA1"))
    for arguments in (["inspect", path], ["invert", path, "-o", tmp_path / "out.h5"]):
        run = spear(*arguments)
        assert run.status == 2
        assert "several members of one name: 'recAAAA1'" in run.error


@pytest.mark.parametrize("rate", [1e-320, 1e-300])
def test_a_rate_that_nothing_can_be_divided_by(spear: Command, tmp_path: Path, rate: float) -> None:
    path = tmp_path / "dump.h5"
    write_good_dump(path, layer_data(b=2, m=24, dtype=np.float64), update="weight_delta", learning_rate=rate)
    edit(path, lambda file: file[LAYER]["weight_grad"].write_direct(np.full((24, 64), 1e20)))
    run = spear("invert", path, "-o", tmp_path / "out.h5")
    assert run.status == 2
    assert ("learning_rate" if rate < 1e-310 else "infinity at row 0, column 0") in run.error


def test_a_small_file_buys_no_large_decomposition(spear: Command, dump: Path) -> None:
    def change(file: h5py.File) -> None:
        for name in ("weight_grad", "weight"):
            del file[LAYER][name]
            file[LAYER].create_dataset(name, (20_000, 700), np.float32, compression="gzip")
        del file["records/client-0/truth"]
        for name in ("bias_grad", "bias"):
            del file[LAYER][name]
            file[LAYER].create_dataset(name, data=np.ones(20_000))

    edit(dump, change)
    run = spear("inspect", dump)
    assert run.status == 0
    assert "whose decomposition takes 20.1 GB" in run.out
    run = spear("invert", dump, "-o", dump.with_name("out.h5"))
    assert run.status == 2
    assert "layer 'fc1': claims a layer of shape (20000, 700)" in run.error


# --- chunks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunks", [(40, 6000), (1, 6000), (40, 1)])
def test_chunks_that_blocks_share_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunks: tuple[int, int]
) -> None:
    monkeypatch.setattr("spear_io.files.safety.BLOCK_BYTES", 8 * 40 * 50)
    values = np.random.default_rng(1).standard_normal((40, 6000)).astype(np.float32)
    with h5py.File(tmp_path / "a", "w") as file:
        file.create_dataset("x", data=values, chunks=chunks, compression="gzip")
    with h5py.File(tmp_path / "a") as file:
        array = safety.numbers(file, "x", Place(tmp_path / "a"), ndim=2)
        assert array is not None
        room = array.dataset.id.get_access_plist().get_chunk_cache()[1]
        assert room >= (values.nbytes if chunks != (40, 1) else 6000 * 4)
        for start in range(0, 6000, 500):
            np.testing.assert_array_equal(
                array[..., slice(start, start + 500)], values[:, start : start + 500]
            )


def test_chunks_that_cannot_be_kept_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spear_io.files.safety.BLOCK_BYTES", 8 * 40 * 50)
    monkeypatch.setattr("spear_io.files.safety.LARGEST_CACHE", 10_000)
    monkeypatch.setattr("spear_io.files.safety.LARGEST_REPETITION", 10**6)
    with h5py.File(tmp_path / "a", "w") as file:
        file.create_dataset("x", (40, 6000), np.float32, chunks=(40, 6000), compression="gzip")[...] = 0
        with pytest.raises(FileError, match=r"chunks of \(40, 6000\), too large to be unpacked again"):
            safety.numbers(file, "x", Place(tmp_path / "a"), ndim=2)


# --- archives, trees and names ----------------------------------------------------------------------------------------


def test_a_member_is_unpacked_no_further_than_it_claims(tmp_path: Path) -> None:
    """1 MB by its directory, 200 MB by its content."""
    path, name = tmp_path / "a.npz", "fc.weight_grad.npy"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, bytes(200_000_000))
    raw = bytearray(path.read_bytes())
    at = raw.rindex(b"PK\x01\x02")
    raw[at + 24 : at + 28] = struct.pack("<I", 1_000_000)
    path.write_bytes(raw)
    with open_archive(path) as archive:
        tracemalloc.start()
        with pytest.raises(FileError):
            read_member(archive, name, Place(path))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 20e6


def test_lists_that_hold_each_other(spear: Command, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    tree: Any = [torch.ones(2, 3)]
    for _ in range(40):
        tree = [tree, tree]
    torch.save({"fc.weight_grad": torch.ones(2, 3), "tree": tree}, tmp_path / "a")
    run = spear("convert", tmp_path / "a", tmp_path / "dump.h5")
    assert run.status == 2
    assert "holds more than 100000 tensors" in run.error


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tensors_that_repeat_one_number(spear: Command, tmp_path: Path, dtype: str) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    one = torch.ones(1, dtype=getattr(torch, dtype))
    large, small = one.expand(2**17, 2**17), one.expand(4, 3)
    torch.save({"fc.weight_grad": large}, tmp_path / "a")
    run = spear("convert", tmp_path / "a", tmp_path / "dump.h5")
    assert run.status == 2
    assert "repeats a few numbers" in run.error
    torch.save({"fc.weight_grad": small}, tmp_path / "a")  # as a sum leaves them behind
    assert spear("convert", tmp_path / "a", tmp_path / "dump.h5").status == 0
    torch.save([torch.zeros(2**18)] * 2000, tmp_path / "a")
    run = spear("convert", tmp_path / "a", tmp_path / "dump.h5")
    assert run.status == 2
    assert "claims" in run.error


def keras_model(name: str, layers: list[Any], inputs: list[Any], outputs: list[Any]) -> dict[str, Any]:
    config = {"name": name, "layers": layers, "input_layers": inputs, "output_layers": outputs}
    return {"class_name": "Functional", "name": name, "config": config}


def test_models_that_hand_out_the_same_output_again_and_again() -> None:
    """Each takes and hands out every output of the one before twice."""
    entry = {"class_name": "InputLayer", "config": {"name": "in"}, "inbound_nodes": []}
    model = keras_model("model0", [entry], [["in", 0, 0]], [["in", 0, 0]] * 2)
    for number in range(1, 50):
        before = f"model{number - 1}"
        inner = {**model, "inbound_nodes": [[["in", 0, 0, {}]] * 2]}
        model = keras_model(f"model{number}", [entry, inner], [["in", 0, 0]], [[before, 1, 0]] * 2)
    started = time.process_time()
    with pytest.raises(ValueError, match=str(LARGEST_NETWORK)):
        model_config(model, lambda name: None)
    assert time.process_time() - started < 20


DIGITS = "9" * 50_000


def npz(name: str, path: Path) -> None:
    header = BytesIO()
    npy.write_array(header, SMALL)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.npy", header.getvalue())


def flax(name: str, path: Path) -> None:
    packed = msgpack.ExtType(1, msgpack.packb(((5, 7), "float32", SMALL.tobytes())))
    path.write_bytes(msgpack.packb({"grads": {name: {"kernel": packed}}}))


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (npz, f"dW{DIGITS}"),
        (npz, f"grads.{DIGITS}"),
        (npz, f"fc{DIGITS}.weight_grad"),
        (flax, DIGITS),
        (flax, "a\0b"),
        (flax, "a\n\x1b[31m"),
        (flax, ".."),
    ],
)
def test_names_of_any_kind(
    spear: Command, tmp_path: Path, write: Callable[[str, Path], None], name: str
) -> None:
    write(name, tmp_path / "a")
    run = spear("convert", tmp_path / "a", tmp_path / "dump.h5", "--orientation", "mn", "--gradients")
    assert run.status in (0, 2)
    if run.status == 2:
        assert len(run.error) < 4000
        assert run.error.isprintable()
    assert "\x1b" not in run.out + run.err
    assert leftovers(tmp_path) == []


def test_metadata_that_no_text_can_hold(spear: Command, tmp_path: Path) -> None:
    arrays: dict[str, Any] = {"fc.weight_grad": SMALL}
    safetensors.numpy.save_file(arrays, tmp_path / "a", metadata={"format": "a\0b\x1b"})
    assert spear("convert", tmp_path / "a", tmp_path / "dump.h5").status == 0
    with open_dump(tmp_path / "dump.h5") as dump:
        assert dump.producer is not None
        assert dump.producer.isprintable()


def test_files_whose_names_are_no_text(spear: Command, dump: Path) -> None:
    try:
        strange = dump.rename(Path(os.fsdecode(os.fsencode(dump.parent) + b"/d\xff\n.h5")))
    except OSError:
        pytest.skip("this file system has no such names")
    out = dump.with_name(strange.name + "out")
    assert spear("invert", strange, "-o", out, "--time-limit", 5).status in (0, 3)
    with open_inversion(out) as inversion:
        assert inversion.source == "d\ufffd\n.h5"
    run = spear("evaluate", strange, out)
    assert run.status == 2
    assert r"d\udcff\n.h5" in run.error
    assert spear("evaluate", out, strange, "--json").status in (0, 3)


@pytest.mark.parametrize("option", ["--record", "--loss"])
def test_words_that_no_file_can_hold(spear: Command, tmp_path: Path, option: str) -> None:
    npz("fc.weight_grad", tmp_path / "a")
    run = spear("convert", tmp_path / "a", tmp_path / "dump.h5", option, os.fsdecode(b"\xff"))
    assert run.status == 2
    assert run.error.isprintable()
    assert leftovers(tmp_path) == []
