from __future__ import annotations

import json
import os
import resource
import signal
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import spear_np
from spear_io import Display, FileError, InversionWriter, RecordInfo, open_inversion
from spear_io.files.sight import Seen, Sight
from tests.io_files import B, M, N, fake_inversion, layer_data, leftovers


@pytest.fixture
def gradients() -> spear_np.LayerGradients:
    data = layer_data()
    return spear_np.LayerGradients(data.weight_grad, data.bias_grad, data.weight, data.bias)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out.h5"


def test_everything_is_in_the_file(path: Path, gradients: spear_np.LayerGradients) -> None:
    inputs = layer_data().inputs
    with InversionWriter(path, source="folder/dump.h5") as out:
        out.add("client-0", "fc1", fake_inversion(gradients, inputs), ["the scale is a guess"])
    with h5py.File(path) as file:
        root = dict(file.attrs)
        assert root.pop("created").startswith("20")
        assert root == {
            "format": "spear-inversion",
            "format_version": 1,
            "source": "dump.h5",
            "version": spear_np.__version__,
        }
        layer = file["records/client-0/layers/fc1"]
        attributes = dict(layer.attrs)
        assert json.loads(attributes.pop("caveats")) == ["identical inputs count once"]
        assert json.loads(attributes.pop("notes")) == ["the scale is a guess"]
        made, missing = json.loads(attributes.pop("checks"))
        assert json.loads(attributes.pop("rests_on")) == [{"name": "plain", "meaning": "nobody changed it"}]
        assert attributes == {
            "status": "exact",
            "claim": "exact if plain",
            "reason": "every check holds",
            "batch_size": B,
            "found": B,
            "method": "sampling",
            "seed": 3,
            "seconds": 0.25,
            "device": "cpu",
            "proposals": 12345,
            "activation": "relu",
            "scale_known": True,
        }
        np.testing.assert_array_equal(layer["inputs"][:], inputs.astype(np.float64))
        assert layer["output_grad"].shape == (M, B)
        assert layer["zero_count"][:].tolist() == [30] * B
        assert layer["redundancy"][:].tolist() == [27] * B
        assert layer["sign_agreement"][:].tolist() == [1.0] * B
        assert layer["error_bound"][:].tolist() == [1e-6] * B
        evidence = dict(zip(layer["evidence"].attrs["facts"], layer["evidence"][:].T.tolist(), strict=True))
        assert evidence["within_bound"] == [1] * B
        assert evidence["signs_agree"] == [-1] * B
        assert made.pop("meaning").startswith("gradient and layer agree")
        assert made == {
            "name": "sign_agreement",
            "relation": ">=",
            "threshold": 1.0,
            "value": 1.0,
            "passed": True,
        }
        assert missing["name"] == "bias_residual"
        assert "value" not in missing
        assert "passed" not in missing
    assert leftovers(path.parent) == []


def test_what_was_written_is_read_back(path: Path, gradients: spear_np.LayerGradients) -> None:
    inputs = layer_data().inputs
    with InversionWriter(path, source="dump.h5") as out:
        out.add("a", "fc1", fake_inversion(gradients, inputs))
        out.add("b", "fc1", fake_inversion(gradients, inputs[:2], status="partial", batch_size=B))
        out.add("c", "fc1", fake_inversion(gradients, status="failed", batch_size=B))
    with open_inversion(path) as inversion:
        assert inversion.source == "dump.h5"
        assert [(layer.record, layer.layer, layer.found) for layer in inversion.layers] == [
            ("a", "fc1", B),
            ("b", "fc1", 2),
            ("c", "fc1", 0),
        ]
        a, b, c = inversion.layers
        assert (a.status, b.status, c.status) == ("exact", "partial", "failed")
        assert b.batch_size == B
        assert a.scale_known
        np.testing.assert_array_equal(b.inputs[:], inputs[:2])
        assert a.error_bound is not None
        np.testing.assert_array_equal(a.error_bound[:], [1e-6] * B)
        assert c.inputs.shape == (0, N)
        assert c.error_bound is None


INFO = RecordInfo(
    input_shape=(1, 8, 8),
    input_mean=(0.5,),
    input_std=(0.25,),
    client="kitchen",
    round=7,
    batch_size=B,
    loss="mse",
)


def test_a_file_can_be_drawn_without_its_dump(path: Path, gradients: spear_np.LayerGradients) -> None:
    result = fake_inversion(gradients, layer_data().inputs, labels=[3, -1, 0, 9], chain=("fc1", "fc2"))
    with InversionWriter(path, source="dump.h5") as out:
        out.add("a", "fc1", result, display=INFO, seen=Seen(Sight.ALTERED, None, "layer_norm+dropout"))
        out.add("b", "fc1", fake_inversion(gradients, layer_data().inputs))
    with h5py.File(path) as file:
        group = file["records/a/layers/fc1"]
        assert group["labels"].dtype == np.int64
        assert group.attrs["chain"].tolist() == ["fc1", "fc2"]
        assert "loss" not in group.attrs
        assert group.attrs["input_shape"].tolist() == [1, 8, 8]
        assert "labels" not in file["records/b/layers/fc1"]
    with open_inversion(path) as inversion:
        a, b = inversion.layers
        assert a.labels is not None
        assert a.labels.dtype == np.int64
        assert a.labels[:].tolist() == [3, -1, 0, 9]
        assert (a.chain, a.seen) == (("fc1", "fc2"), Seen(Sight.ALTERED, None, "layer_norm+dropout"))
        assert a.display == Display((1, 8, 8), (0.5,), (0.25,), "kitchen", 7)
        assert (b.labels, b.chain, b.seen, b.display) == (None, (), Seen(), Display())


def test_nothing_found_has_no_labels(path: Path, gradients: spear_np.LayerGradients) -> None:
    with InversionWriter(path, source="dump.h5") as out:
        out.add("a", "fc1", fake_inversion(gradients, status="failed", labels=[], chain=("fc1", "fc2")))
    with open_inversion(path) as inversion:
        (layer,) = inversion.layers
        assert (layer.labels, layer.chain) == (None, ("fc1", "fc2"))


def test_an_old_file_stays_until_the_new_one_is_complete(
    path: Path, gradients: spear_np.LayerGradients
) -> None:
    def write_half() -> None:
        with InversionWriter(path, source="dump.h5") as out:
            out.add("a", "fc1", fake_inversion(gradients, layer_data().inputs))
            assert path.read_bytes() == b"old"
            assert len(leftovers(path.parent)) <= 1  # on Linux it has no name yet
            raise ZeroDivisionError

    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError):
        write_half()
    assert path.read_bytes() == b"old"
    assert leftovers(path.parent) == []
    with InversionWriter(path, source="dump.h5") as out:
        out.add("a", "fc1", fake_inversion(gradients, layer_data().inputs))
    assert h5py.is_hdf5(path)


def test_an_abort_leaves_nothing(path: Path, gradients: spear_np.LayerGradients) -> None:
    with pytest.raises(KeyboardInterrupt), InversionWriter(path, source="dump.h5"):
        raise KeyboardInterrupt
    assert list(path.parent.iterdir()) == []


def test_a_symbolic_link_stays_one(path: Path, gradients: spear_np.LayerGradients) -> None:
    path.symlink_to("real.h5")
    with InversionWriter(path, source="dump.h5") as out:
        out.add("a", "fc1", fake_inversion(gradients, layer_data().inputs))
    assert path.is_symlink()
    assert h5py.is_hdf5(path.parent / "real.h5")


def no_link(*arguments: Any, **options: Any) -> None:
    raise PermissionError


@pytest.mark.parametrize("system", ["names files late", "names them early", "does not link"])
def test_a_new_file_is_private_and_a_replaced_one_keeps_its_mode(
    path: Path, gradients: spear_np.LayerGradients, monkeypatch: pytest.MonkeyPatch, system: str
) -> None:
    if system == "names them early":
        monkeypatch.setattr("spear_io.files.atomic._nameless", lambda folder: None)
    if system == "does not link":
        monkeypatch.setattr(os, "link", no_link)

    def mode_after_writing(*, fails: bool = False) -> int:
        with suppress(ZeroDivisionError), InversionWriter(path, source="dump.h5") as out:
            out.add("a", "fc1", fake_inversion(gradients))
            if fails:
                raise ZeroDivisionError
        assert leftovers(path.parent) == []
        with open_inversion(path) as written:
            assert written.layers[0].found == 0
        return stat.S_IMODE(path.stat().st_mode)

    assert mode_after_writing() == 0o600
    for mode in (0o644, 0o640):
        path.chmod(mode)
        assert mode_after_writing() == mode
        assert mode_after_writing(fails=True) == mode


def a_directory(path: Path) -> Path:
    path.mkdir()
    return path


def a_missing_folder(path: Path) -> Path:
    return path / "out.h5"


def below_a_file(path: Path) -> Path:
    path.touch()
    return path / "out.h5"


def a_device(path: Path) -> Path:
    return Path("/dev/null")


def the_source(path: Path) -> Path:
    (path.parent / "dump.h5").touch()
    return path.parent / "dump.h5"


def the_source_by_another_name(path: Path) -> Path:
    path.hardlink_to(the_source(path))
    return path


def a_name_too_long(path: Path) -> Path:
    return path.with_name("x" * 300)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (a_directory, "is a directory"),
        (a_missing_folder, "does not exist"),
        (below_a_file, "does not exist"),
        (a_device, "not a regular file"),
        (the_source, "being read"),
        (the_source_by_another_name, "being read"),
        (a_name_too_long, "too long"),
    ],
)
def test_bad_places_show_before_any_work(path: Path, place: Callable[[Path], Path], message: str) -> None:
    output = place(path)
    with (
        pytest.raises(FileError, match=message) as caught,
        InversionWriter(output, source=path.parent / "dump.h5"),
    ):
        pytest.fail("the block must not begin")
    assert caught.value.file == output
    assert "\n" not in str(caught.value)


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Let every write past `size` bytes fail, as on a full disk."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("size", [0, 3000, 20_000])
def test_a_full_disk_is_an_error_and_leaves_the_old_file(
    path: Path, gradients: spear_np.LayerGradients, size: int
) -> None:
    def write() -> None:
        with InversionWriter(path, source="dump.h5") as out:
            for name in "abcdefghij":
                out.add(name, "fc1", fake_inversion(gradients, layer_data().inputs))

    path.write_bytes(b"old")
    with file_size_limit(size), pytest.raises(FileError, match="cannot be written"):
        write()
    assert path.read_bytes() == b"old"
    assert leftovers(path.parent) == []


def change(path: Path, edit: Callable[[Any], Any]) -> None:
    with h5py.File(path, "r+") as file:
        edit(file["records/a/layers/fc1"])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda layer: layer.attrs.update(status="perfect"), "'status' is 'perfect'"),
        (lambda layer: layer.attrs.pop("status"), "'status' is ''"),
        (lambda layer: layer.pop("inputs"), "'inputs' is missing"),
        (
            lambda layer: (layer.pop("error_bound"), layer.create_dataset("error_bound", (9,), "f8")),
            r"shape \(9,\)",
        ),
        (
            lambda layer: (layer.pop("inputs"), layer.update(inputs=h5py.ExternalLink("a.h5", "/x"))),
            "external link",
        ),
        (lambda layer: (layer.pop("inputs"), layer.create_dataset("inputs", (9,), "i4")), "integers"),
        (lambda layer: layer.create_dataset("labels", data=[1, 2]), r"shape \(2,\), but there are 4 inputs"),
        (lambda layer: layer.create_dataset("labels", data=[[1]] * B), "one dimension"),
        (lambda layer: layer.create_dataset("labels", data=[1.0] * B), "must hold whole ones"),
        (lambda layer: layer.create_dataset("labels", data=["cat"] * B), "strings"),
        (lambda layer: layer.create_group("labels"), "should be a dataset"),
        (lambda layer: layer.update(labels=h5py.ExternalLink("a.h5", "/x")), "external link"),
        (lambda layer: layer.attrs.update(chain="fc1"), "'chain' should be a list of texts, but is 'fc1'"),
        (lambda layer: layer.attrs.update(chain=[1, 2]), "'chain' should be a list of texts"),
        (lambda layer: layer.attrs.update(chain=[["a"], ["b"]]), "'chain' is of a type or size"),
        (lambda layer: layer.attrs.update(chain=["x" * 40_000] * 2), "'chain' is of a type or size"),
        (lambda layer: layer.attrs.update(input_mean=[0.5] * 5000), "'input_mean' is of a type or size"),
        (lambda layer: layer.attrs.create("chain", layer.ref, dtype=h5py.ref_dtype), "'chain' is of a type"),
        (lambda layer: layer.attrs.update(between=5.0), "'between' should be text"),
        (lambda layer: layer.attrs.update(between="x" * 70_000), "'between' is of a type or size"),
        (lambda layer: layer.attrs.update(input_shape=[1.5, 8]), "positive whole numbers"),
        (lambda layer: layer.attrs.update(input_shape=[1e300]), "positive whole numbers"),
        (lambda layer: layer.attrs.update(input_mean="dark"), "'input_mean' should be numbers"),
        (lambda layer: layer.attrs.update(input_std=["1"]), "'input_std' should be numbers"),
        (lambda layer: layer.attrs.update(client=["a", "b"]), "'client' should be text or a number"),
        (lambda layer: layer.attrs.update(scale_known="perhaps"), "'scale_known' should be a truth value"),
    ],
)
def test_bad_inversions_are_refused(
    path: Path, gradients: spear_np.LayerGradients, edit: Callable[[Any], Any], message: str
) -> None:
    with InversionWriter(path, source="dump.h5") as out:
        out.add("a", "fc1", fake_inversion(gradients, layer_data().inputs))
    change(path, edit)
    with (
        pytest.raises(FileError, match=message) as caught,
        open_inversion(path),
    ):
        pytest.fail("must not open")
    assert (caught.value.record, caught.value.layer) == ("a", "fc1")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


def test_an_inversion_without_layers_is_refused(path: Path) -> None:
    with InversionWriter(path, source="dump.h5"):
        pass
    with pytest.raises(FileError, match="no layers"), open_inversion(path):
        pytest.fail("must not open")
