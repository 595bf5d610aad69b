"""What is not read, named: files of other programs among the arrays, and formats that need another tool first."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import PurePosixPath

DENSE = "save the arrays with numpy.savez, as safetensors, or as a PyTorch state_dict"


@dataclass(frozen=True)
class Foreign:
    """A format that is known, but not read."""

    name: str
    """For people: "a Git LFS pointer, not the file itself"."""
    advice: str


LFS = Foreign(
    "a Git LFS pointer, which stands for a file that was not downloaded",
    "fetch the file itself: git lfs pull, or download it again",
)
PACKED = "unpack it first, and give what is in it"

BEGINNINGS: tuple[tuple[bytes, Foreign], ...] = (
    (b"version https://git-lfs.github.com/spec/", LFS),
    (b"version https://hawser.github.com/spec/", LFS),
    (b"\x1f\x8b", Foreign("packed with gzip", f"{PACKED} (gunzip)")),
    (b"BZh", Foreign("packed with bzip2", f"{PACKED} (bunzip2)")),
    (b"\xfd7zXZ\x00", Foreign("packed with xz", f"{PACKED} (unxz)")),
    (b"\x28\xb5\x2f\xfd", Foreign("packed with zstd", f"{PACKED} (unzstd)")),
    (b"7z\xbc\xaf\x27\x1c", Foreign("a 7-Zip archive", PACKED)),
    (b"Rar!\x1a\x07", Foreign("a RAR archive", PACKED)),
    (b"GGUF", Foreign("a GGUF file, which holds models for inference", f"it holds no gradients: {DENSE}")),
    (b"PAR1", Foreign("a Parquet table", DENSE)),
    (b"ARROW1", Foreign("an Arrow table", DENSE)),
    (
        b"CDF\x01",
        Foreign("a netCDF-3 file", "convert it to netCDF-4, which is HDF5 (nccopy -k nc4), or: " + DENSE),
    ),
    (
        b"CDF\x02",
        Foreign("a netCDF-3 file", "convert it to netCDF-4, which is HDF5 (nccopy -k nc4), or: " + DENSE),
    ),
    (b"SQLite format 3\x00", Foreign("an SQLite database", DENSE)),
    (b"%PDF", Foreign("a PDF document", DENSE)),
    (
        b"\x00\x05\x16\x07",
        Foreign("a file of macOS about another file", "give the file of the name without '._'"),
    ),
    (b"{", Foreign("JSON text", DENSE)),
    (b"[", Foreign("JSON text", DENSE)),
)
"""How formats begin that are often given; text of any kind is told by `unread` itself."""

TAR_MARK, TAR_AT = b"ustar", 257

TORCH_DISTRIBUTED = Foreign(
    "a distributed checkpoint of PyTorch (.distcp)",
    "make one file of it: python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER model.pt",
)
TENSORFLOW = Foreign(
    "a checkpoint or SavedModel of TensorFlow",
    "load it where it was made and save the arrays: numpy.savez('model.npz', **{v.path: v.numpy() for v in variables}), "
    "or a Keras model as .keras or .weights.h5",
)
ZARR = Foreign(
    "a Zarr store", "save the arrays as .npz: numpy.savez('a.npz', **{k: v[:] for k, v in group.arrays()})"
)

SYSTEM_FILES = frozenset({".DS_Store", "Thumbs.db", "desktop.ini"})


def foreign_member(name: str) -> str | None:
    """Why a member of an archive or folder is none of the arrays by its name; None if it may be one."""
    parts = PurePosixPath(name).parts
    if "__MACOSX" in parts or (parts and (parts[-1].startswith("._") or parts[-1] in SYSTEM_FILES)):
        return "was put there by the operating system, and is no array"
    if any(part.startswith(".") and part not in (".", "..") for part in parts):
        return "is hidden"
    return None


def unread(head: bytes, name: str = "") -> Foreign | None:
    """Return the format that a file of that name begins as, if it is one that is known and not read.

    Parameters
    ----------
    head : bytes
        The first bytes, 512 if there are so many.
    name : str
        Of the file: some formats have no mark.
    """
    if name.endswith(".distcp"):
        return TORCH_DISTRIBUTED
    if name.endswith((".ckpt.index", ".tfrecord", "saved_model.pb")) or ".data-0" in name:
        return TENSORFLOW
    if name.endswith(".onnx"):
        return Foreign("an ONNX model", f"it holds no gradients: {DENSE}")
    if head[TAR_AT : TAR_AT + len(TAR_MARK)] == TAR_MARK:
        return Foreign("a tar archive", f"{PACKED} (tar -xf)")
    text = head.lstrip()
    if text[:15].lower().startswith((b"<!doctype html", b"<html")):
        return Foreign(
            "a web page, perhaps an error that was saved instead of the file", "download the file again"
        )
    return next((foreign for beginning, foreign in BEGINNINGS if text.startswith(beginning)), None)


def unread_folder(names: Collection[str]) -> Foreign | None:
    """Return what a folder of these entries is, if it is one that is known and not read."""
    if any(name.endswith(".distcp") for name in names):
        return TORCH_DISTRIBUTED
    if "saved_model.pb" in names or any(".data-0" in name for name in names):
        return TENSORFLOW
    if not {".zgroup", ".zarray", ".zmetadata", "zarr.json"}.isdisjoint(names):
        return ZARR
    return None
