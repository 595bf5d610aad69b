from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from spear_io import Bfloat16, DumpWriter, FileError, RecordInfo, open_dump, write_dump
from spear_io.files import opening
from spear_io.files.last_dump import LastDump
from spear_io.files.storage import check_finite, column_blocks
from spear_np.adopt import from_bfloat16
from tests.backends import values_of
from tests.io_files import B, M, N, layer_arrays, layer_data, leftovers, write_good_dump

FULL_INFO = RecordInfo(
    input_shape=(1, 8, 8),
    input_mean=(0.5,),
    input_std=(0.25,),
    batch_size=4,
    update="gradient",
    learning_rate=0.1,
    local_steps=1,
    loss_reduction="mean",
    client="bank-7",
    round=12,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "dump.h5"


def to_bfloat16(values: Any) -> Any:
    """Cut float32 numbers to bfloat16 bits (towards zero: which way is not the point here)."""
    return (np.asarray(values, np.float32).view(np.uint32) >> 16).astype(np.uint16)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_everything_written_is_read_back(path: Path, dtype: Any) -> None:
    data = layer_data(dtype=dtype)
    labels = np.arange(B)
    write_dump(
        path, {"fc1": layer_arrays(data)}, record="client-0", info=FULL_INFO, labels=labels, producer="p 1"
    )
    with open_dump(path) as dump:
        assert dump.producer == "p 1"
        (record,) = dump.records
        assert record.name == "client-0"
        assert record.info == FULL_INFO
        assert record.labels is not None
        np.testing.assert_array_equal(record.labels[:], labels)
        (layer,) = record.layers
        assert (layer.name, layer.kind, str(layer.activation), layer.order) == ("fc1", "linear", "relu", 0)
        assert layer.unsuitable is None
        gradients = layer.gradients
        assert gradients.shape == (M, N)
        assert gradients.precision == np.dtype(dtype).name
        for name in ("weight_grad", "bias_grad", "weight", "bias"):
            stored = getattr(gradients, name)
            assert stored.dtype == dtype
            np.testing.assert_array_equal(stored[:], getattr(data, name))
        assert layer.truth is not None
        np.testing.assert_array_equal(layer.truth[:], data.inputs)
    assert leftovers(path.parent) == []


def test_slices_are_read_lazily(path: Path) -> None:
    data = write_good_dump(path)
    with open_dump(path) as dump:
        stored = dump.records[0].layers[0].gradients.weight_grad
        np.testing.assert_array_equal(stored[:, 3:7], data.weight_grad[:, 3:7])
        np.testing.assert_array_equal(stored[5], data.weight_grad[5])
        np.testing.assert_array_equal(np.asarray(stored), data.weight_grad)


def test_big_endian_numbers_are_read_in_native_order(path: Path) -> None:
    data = layer_data()
    write_dump(path, {"fc1": layer_arrays(data, weight_grad=data.weight_grad.astype(">f4"))})
    with open_dump(path) as dump:
        block = dump.records[0].layers[0].gradients.weight_grad[:]
        assert block.dtype.isnative
        np.testing.assert_array_equal(block, data.weight_grad)


@pytest.mark.parametrize("compression", ["gzip", "lzf"])
def test_compressed_dumps_are_read(path: Path, compression: str) -> None:
    data = layer_data()
    write_dump(path, {"fc1": layer_arrays(data)}, compression=compression)
    with open_dump(path) as dump:
        np.testing.assert_array_equal(dump.records[0].layers[0].gradients.weight_grad[:], data.weight_grad)


def test_optional_datasets_may_be_absent(path: Path) -> None:
    data = layer_data()
    write_dump(path, {"fc1": layer_arrays(data, bias_grad=None, weight=None, bias=None, inputs=None)})
    with open_dump(path) as dump:
        (record,) = dump.records
        gradients = record.layers[0].gradients
        assert gradients.bias_grad is None
        assert gradients.weight is None
        assert gradients.bias is None
        assert record.layers[0].truth is None
        assert record.labels is None
        assert record.info == RecordInfo()


def test_layers_come_in_forward_order(path: Path) -> None:
    data = layer_data()
    names = ["zeta", "alpha", "mid"]
    write_dump(path, {name: layer_arrays(data) for name in names})
    with open_dump(path) as dump:
        assert [layer.name for layer in dump.records[0].layers] == names


def test_one_layer_needs_no_order_but_two_do(path: Path) -> None:
    data = layer_data()
    write_dump(path, {"a": layer_arrays(data), "b": layer_arrays(data)})
    with h5py.File(path, "r+") as file:
        layers = file["records/record-0/layers"]
        del layers["a"].attrs["order"]
    with open_dump(path) as dump, pytest.raises(FileError, match="'order' is missing for 'a'"):
        _ = dump.records[0].layers
    with h5py.File(path, "r+") as file:
        del file["records/record-0/layers/b"]
    with open_dump(path) as dump:
        assert [layer.name for layer in dump.records[0].layers] == ["a"]


def test_records_may_share_one_model(path: Path) -> None:
    first, second = layer_data(seed=1), layer_data(seed=2)
    with DumpWriter(path) as dump:
        dump.add_record("client-0", {"fc1": layer_arrays(first)})
        dump.add_record(
            "client-1", {"fc1": layer_arrays(second, weight=None, bias=None)}, model_of="client-0"
        )
    with h5py.File(path) as file:
        addresses = {
            h5py.h5o.get_info(file[f"records/{name}/layers/fc1/weight"].id).addr
            for name in ("client-0", "client-1")
        }
        assert len(addresses) == 1
    with open_dump(path) as opened:
        for record in opened.records:
            np.testing.assert_array_equal(values_of(record.layers[0].gradients.weight), first.weight)
        np.testing.assert_array_equal(
            opened.records[1].layers[0].gradients.weight_grad[:], second.weight_grad
        )


def test_bfloat16_reads_as_float32(path: Path) -> None:
    data = layer_data()
    bits = to_bfloat16(data.weight_grad)
    write_dump(path, {"fc1": layer_arrays(data, weight_grad=Bfloat16(bits))})
    with h5py.File(path) as file:
        stored = file["records/record-0/layers/fc1/weight_grad"]
        assert stored.dtype == np.uint16
        assert stored.attrs["dtype"] == "bfloat16"
    with open_dump(path) as dump:
        gradients = dump.records[0].layers[0].gradients
        assert gradients.precision == "bfloat16"
        assert gradients.weight_grad.dtype == np.float32
        np.testing.assert_array_equal(gradients.weight_grad[:, 10:20], from_bfloat16(bits)[:, 10:20])


def test_bfloat16_keeps_every_special_number() -> None:
    values = np.array([0.0, -0.0, 1.0, -2.5, np.inf, -np.inf, 2.0**-130], np.float32)
    np.testing.assert_array_equal(Bfloat16(to_bfloat16(values))[:], values)
    assert np.isnan(from_bfloat16(np.array([0x7FC0], np.uint16)))[0]
    with pytest.raises(TypeError, match="int32"):
        Bfloat16(np.zeros(3, np.int32))


def test_native_bfloat16_of_new_hdf5_is_recognised(path: Path) -> None:
    data = layer_data()
    write_good_dump(path, data)
    bfloat16 = h5py.h5t.IEEE_F32LE.copy()
    bfloat16.set_fields(15, 7, 8, 0, 7)
    bfloat16.set_size(2)
    bfloat16.set_ebias(127)
    with h5py.File(path, "r+") as file:
        layer = file["records/client-0/layers/fc1"]
        del layer["weight_grad"]
        space = h5py.h5s.create_simple((M, N))
        identity = h5py.h5d.create(layer.id, b"weight_grad", bfloat16, space)
        h5py.Dataset(identity)[:] = data.weight_grad
    with open_dump(path) as dump:
        gradients = dump.records[0].layers[0].gradients
        assert gradients.precision == "bfloat16"
        np.testing.assert_allclose(gradients.weight_grad[:], data.weight_grad, rtol=2**-8, atol=1e-30)


def test_weight_delta_becomes_a_gradient(path: Path) -> None:
    data = layer_data()
    delta = layer_arrays(
        data, weight_grad=np.float32(-0.1) * data.weight_grad, bias_grad=np.float32(-0.1) * data.bias_grad
    )
    write_dump(path, {"fc1": delta}, info=RecordInfo(update="weight_delta", learning_rate=0.1, local_steps=3))
    with open_dump(path) as dump:
        (record,) = dump.records
        gradients = record.layers[0].gradients
        assert gradients.weight_grad.dtype == np.float64  # the division must not round again
        assert gradients.precision == "float32"
        np.testing.assert_allclose(gradients.weight_grad[:, :9], data.weight_grad[:, :9], rtol=1e-6)
        np.testing.assert_allclose(values_of(gradients.bias_grad), data.bias_grad, rtol=1e-6)
        np.testing.assert_array_equal(values_of(gradients.weight), data.weight)
        assert any("3 local steps" in note for note in record.notes)


def test_weight_delta_without_learning_rate_turns_the_sign_and_says_so(path: Path) -> None:
    data = layer_data()
    write_good_dump(path, data, update="weight_delta")
    with open_dump(path) as dump:
        (record,) = dump.records
        np.testing.assert_array_equal(record.layers[0].gradients.weight_grad[:], -data.weight_grad)
        (note,) = record.notes
        assert "learning_rate" in note


@pytest.mark.parametrize("rate", [0.0, -0.1, np.nan, np.inf])
def test_weight_delta_with_a_senseless_learning_rate_is_refused(path: Path, rate: float) -> None:
    write_good_dump(path, update="weight_delta", learning_rate=rate)
    with open_dump(path) as dump, pytest.raises(FileError, match=r"record 'client-0'.*learning_rate"):
        _ = dump.records[0].layers[0].gradients


def test_unknown_extras_are_ignored(path: Path) -> None:
    write_good_dump(path)
    with h5py.File(path, "r+") as file:
        file.attrs["mood"] = "fine"
        file["extra/deep"] = np.arange(3)
        file["not_a_record"] = h5py.ExternalLink("/etc/passwd", "/")
        record = file["records/client-0"]
        record["optimizer"] = np.zeros(3, complex)
        record.attrs["strange"] = np.zeros((3, 3), complex)
        layer = record["layers/fc1"]
        layer["momentum"] = h5py.SoftLink("/nowhere")
        layer["names"] = np.array([b"a", b"b"])
        layer.attrs["color"] = 7
    with open_dump(path) as dump:
        (record_read,) = dump.records
        assert record_read.layers[0].gradients.shape == (M, N)


def test_layers_of_other_kinds_are_described_not_opened(path: Path) -> None:
    data = layer_data()
    layers = {
        "conv": layer_arrays(data, kind="conv2d", weight_grad=np.zeros((4, 3, 2, 2), np.float32)),
        "gelu": layer_arrays(data, activation="gelu"),
        "fc": layer_arrays(data),
    }
    with DumpWriter(path) as writer:
        writer.add_record("r", layers)
    with open_dump(path) as dump:
        conv, gelu, fc = dump.records[0].layers
        assert "conv2d" in str(conv.unsuitable)
        assert "gelu" in str(gelu.unsuitable)
        assert fc.unsuitable is None


def test_names_survive_whatever_they_are(path: Path) -> None:
    data = layer_data()
    names = ["Ärzte № 1", "a b", "line\nbreak", "[red]"]
    with DumpWriter(path) as writer:
        for name in names:
            writer.add_record(name, {name: layer_arrays(data)})
    with open_dump(path) as dump:
        assert [record.name for record in dump.records] == names
        assert [record.layers[0].name for record in dump.records] == names
        assert "\n" not in str(dump.records[2].layers[0].place)


@pytest.mark.parametrize("name", ["", "a/b", ".", "..", "nul\0"])
def test_names_that_are_paths_cannot_be_written(path: Path, name: str) -> None:
    with pytest.raises(FileError, match="cannot be the name"), DumpWriter(path) as writer:
        writer.add_record(name, {"fc1": layer_arrays(layer_data())})
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bias_grad": np.zeros(M + 1, np.float32)}, r"'bias_grad': has shape \(61,\)"),
        ({"weight": np.zeros((M, N + 1), np.float32)}, "'weight': has shape"),
        ({"weight_grad": np.zeros(M, np.float32)}, "'weight_grad': has shape"),
        ({"weight_grad": np.zeros((M, N), np.int32)}, "dtype int32"),
        ({"weight_grad": np.zeros((M, N), complex)}, "dtype complex128"),
        ({"inputs": np.zeros((B, N + 1), np.float32)}, "'inputs': has shape"),
    ],
)
def test_writer_refuses_what_could_not_be_read(path: Path, changes: dict[str, Any], message: str) -> None:
    path.write_bytes(b"old")
    with pytest.raises(FileError, match=message):
        write_dump(path, {"fc1": layer_arrays(layer_data(), **changes)})
    assert path.read_bytes() == b"old"
    assert leftovers(path.parent) == []


def test_large_arrays_are_copied_in_blocks(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spear_io.files.storage.BLOCK_BYTES", 8 * N * 7)  # 7 rows at a time
    data = write_good_dump(path)
    with open_dump(path) as dump:
        np.testing.assert_array_equal(dump.records[0].layers[0].gradients.weight_grad[:], data.weight_grad)


def test_column_blocks_cover_every_column_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spear_io.files.storage.BLOCK_BYTES", 8 * 60 * 10)
    covered = [list(range(64))[block] for block in column_blocks((60, 64))]
    assert [column for block in covered for column in block] == list(range(64))
    assert max(map(len, covered)) == 10
    assert list(column_blocks((5,))) == [slice(0, 5)]


def test_not_a_number_is_found_in_a_later_block(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spear_io.files.storage.BLOCK_BYTES", 8 * M * 10)
    data = layer_data()
    write_dump(path, {"fc1": layer_arrays(data)})
    with h5py.File(path, "r+") as file:
        file["records/record-0/layers/fc1/weight_grad"][7, 53] = -np.inf
    with (
        open_dump(path) as dump,
        pytest.raises(FileError, match=r"infinity at row 7, column 53; do it again"),
    ):
        check_finite(dump.records[0].layers[0].arrays["weight_grad"], "do it again")


@pytest.mark.parametrize("encoded", [False, True])
def test_not_a_number_is_never_written(path: Path, monkeypatch: pytest.MonkeyPatch, encoded: bool) -> None:
    """In whatever precision, and in a later block of rows."""
    monkeypatch.setattr("spear_io.files.storage.BLOCK_BYTES", 8 * N * 10)
    path.write_bytes(b"an earlier dump")
    data = layer_data()
    weight_grad = data.weight_grad.copy()
    weight_grad[53, 7] = -np.inf
    bits = (weight_grad.view(np.uint32) >> 16).astype(np.uint16)
    layer = layer_arrays(data, weight_grad=Bfloat16(bits) if encoded else weight_grad)
    with pytest.raises(FileError, match=r"'weight_grad': holds infinity at row 53, column 7"):
        write_dump(path, {"fc1": layer})
    assert path.read_bytes() == b"an earlier dump"
    assert leftovers(path.parent) == []


def test_small_layers_stay_in_memory_from_the_first_look_on(path: Path) -> None:
    data = write_good_dump(path)
    with open_dump(path) as dump:
        layer = dump.records[0].layers[0]
        layer.check_finite()
        read = layer.gradients.weight_grad
    np.testing.assert_array_equal(read[:, 1:3], data.weight_grad[:, 1:3])  # of a file that is closed
    with pytest.raises(ValueError, match="read-only"):
        read[:, :1][...] = 0


def test_large_layers_are_read_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spear_io.files.storage.BLOCK_BYTES", 8 * M * 10)
    write_good_dump(path)
    with open_dump(path) as dump:
        layer = dump.records[0].layers[0]
        layer.check_finite()
        read = layer.gradients.weight_grad
    with pytest.raises(FileError, match="cannot be read"):
        read[:, 1:3]


@pytest.mark.parametrize("kind", [list, np.asarray, tuple])
def test_names_of_features_may_be_those_of_numpy(path: Path, kind: Any) -> None:
    """As scikit-learn has them."""
    names = np.asarray([f"feature {number}" for number in range(N)])
    write_dump(
        path,
        {"fc1": layer_arrays(layer_data())},
        info=RecordInfo(feature_names=kind(names), client=np.str_("a")),
    )
    with open_dump(path) as dump:
        info = dump.records[0].info
        assert info.feature_names == tuple(names.tolist())
        assert info.client == "a"


class TestLastDump:
    @pytest.fixture
    def opened(self, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
        """Which files were opened."""
        paths, left_open = [], opening.left_open

        def noted(path: Path, **wanted: Any) -> h5py.File:
            paths.append(path)
            return left_open(path, **wanted)

        monkeypatch.setattr(opening, "left_open", noted)
        return paths

    def test_a_file_is_opened_once(self, path: Path, opened: list[Path]) -> None:
        write_good_dump(path)
        dumps, seen = LastDump(), []
        for _ in range(3):
            with dumps.open(path) as dump:
                seen.append(dump.records[0].layers[0].shape)
        dumps.close()
        assert opened == [path]
        assert seen == [(M, N)] * 3
        dumps.close()

    def test_what_records_share_is_read_once(self, path: Path) -> None:
        data = layer_data()
        arrays = layer_arrays(data)
        with DumpWriter(path) as writer:
            writer.add_record("a", {"fc1": arrays})
            writer.add_record("b", {"fc1": replace(arrays, weight=None, bias=None)}, model_of="a")
            writer.add_record("c", {"fc1": replace(arrays, weight=2 * data.weight)})
        dumps, layers = LastDump(), []
        for name in ("a", "b", "c", "a"):
            with dumps.open(path) as dump:
                layer = dump.record(name).layers[0]
                layer.check_finite()
                layers.append(layer.loaded)
        dumps.close()
        a, b, c, again = layers
        assert a is not None
        assert b is not None
        assert c is not None
        assert again is not None
        assert a.weight is b.weight is again.weight
        assert a.bias is b.bias
        assert a.weight_grad is not b.weight_grad
        np.testing.assert_array_equal(values_of(c.weight), 2 * data.weight)

    def test_a_record_is_looked_at_once_and_its_numbers_are_let_go(self, path: Path) -> None:
        with DumpWriter(path) as writer:
            for name in ("a", "b"):
                writer.add_record(
                    name, {"fc1": layer_arrays(layer_data()), "fc2": layer_arrays(layer_data())}
                )
        dumps, seen, numbers = LastDump(), [], []
        for name in ("a", "a", "b", "a"):
            with dumps.open(path) as dump:
                layer = dump.record(name).layers[1]
                layer.check_finite()
                seen.append(layer)
                numbers.append(layer.arrays["weight_grad"])
        dumps.close()
        assert seen[0] is seen[1]
        assert len({id(layer) for layer in seen}) == 3
        assert numbers[0] is not numbers[1]

    def test_another_file_and_one_that_was_changed_are_opened_anew(
        self, path: Path, opened: list[Path]
    ) -> None:
        other = path.with_name("other.h5")
        write_good_dump(path)
        write_good_dump(other, batch_size=7)
        dumps, sizes = LastDump(), []
        for one in (path, other, path):
            with dumps.open(one) as dump:
                sizes.append(dump.records[0].info.batch_size)
        write_good_dump(path, batch_size=9)
        with dumps.open(path) as dump:
            sizes.append(dump.records[0].info.batch_size)
        dumps.close()
        assert opened == [path, other, path, path]
        assert sizes[1] == 7
        assert sizes[3] == 9

    def test_what_is_no_dump_or_gone_is_said_each_time(self, path: Path, opened: list[Path]) -> None:
        dumps = LastDump()
        for _ in range(2):
            with pytest.raises(FileError, match="no such file"), dumps.open(path):
                pass
        path.write_bytes(b"no dump")
        for _ in range(2):
            with pytest.raises(FileError, match="not an HDF5 file"), dumps.open(path):
                pass
        write_good_dump(path)
        with dumps.open(path) as dump:
            assert dump.records
        path.unlink()
        with pytest.raises(FileError, match="no such file"), dumps.open(path):
            pass

    def test_what_goes_wrong_closes_it(self, path: Path, opened: list[Path]) -> None:
        write_good_dump(path)
        dumps = LastDump()
        with pytest.raises(KeyError), dumps.open(path):
            raise KeyError
        with dumps.open(path):
            pass
        dumps.close()
        assert opened == [path, path]
