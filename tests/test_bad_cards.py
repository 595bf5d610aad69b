"""Whatever is wrong with a card is one line that says what to do, and never an answer from the CPU instead."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import spear_np
from spear_np.backend.devices import Device, device_for
from tests.fake_cupy import CUDARuntimeError, OutOfMemoryError, forgotten, install


@pytest.fixture(autouse=True)
def _anew() -> Iterator[None]:
    with forgotten():
        yield


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no card": (
        {"count": CUDARuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")},
        r"CUDA shows no card: `nvidia-smi` must list one, and CUDA_VISIBLE_DEVICES must not hide it",
    ),
    "no card counted": ({"cards": 0}, r"gpu:0 was asked for, but CUDA shows 0 device\(s\): there is none"),
    "driver too old": (
        {"count": CUDARuntimeError("cudaErrorInsufficientDriver: CUDA driver version is insufficient")},
        r"driver is missing, or older .* install a newer one, or CuPy for an older CUDA, pip install 'spear-np\[cuda12\]'",
    ),
    "driver updated": (
        {"count": CUDARuntimeError("cudaErrorSystemDriverMismatch: system has unsupported combination")},
        r"restart the machine",
    ),
    "something else": (
        {"count": CUDARuntimeError("cudaErrorUnknown: unknown error")},
        r"CUDA does not answer: `nvidia-smi` must list the card \(cudaErrorUnknown: unknown error\)",
    ),
    "another CUDA": (
        {"compiler": RuntimeError("Failure finding\nlibnvrtc.so.12\n")},
        r"finds no compiler of its CUDA version: pip install 'cupy-cuda13x\[ctk\]' .* \(libnvrtc\.so\.12\)",
    ),
    "held by another": (
        {"memory": CUDARuntimeError("cudaErrorDevicesUnavailable: device(s) is/are busy or unavailable")},
        r"gpu:0: another process holds the card: end it, `nvidia-smi` names it, or choose another card with gpu:N",
    ),
    "full": (
        {"product": OutOfMemoryError("Out of memory allocating 16 bytes")},
        r"gpu:0: the card has no memory left: end what holds it, .* \(Out of memory allocating 16 bytes\)",
    ),
    "unknown to CuPy": (
        {"product": CUDARuntimeError("cudaErrorNoKernelImageForDevice: no kernel image is available")},
        r"this CuPy does not know the card: pip install --upgrade 'spear-np\[cuda13\]'",
    ),
    "driver older than the compiler": (
        {"wait": CUDARuntimeError("cudaErrorUnsupportedPtxVersion: unsupported toolchain")},
        r"older than CuPy's compiler: install a newer one",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_it_is_one_line(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong, message = WRONG[what]
    install(monkeypatch, **wrong)
    with pytest.raises(spear_np.DeviceError, match=message) as caught:
        spear_np.invert(np.eye(4), np.ones(4), device="gpu")
    assert "\n" not in str(caught.value)


def test_a_number_that_is_not_there_names_those_that_are(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, cards=2)
    with pytest.raises(
        spear_np.DeviceError, match=r"gpu:2 was asked for, but CUDA shows 2 .* gpu:0 to gpu:1"
    ):
        device_for("gpu:2")
    assert device_for("gpu:1").name == "gpu:1"


def test_a_cupy_that_does_not_load_is_told_from_one_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(spear_np.DeviceError, match="CuPy is not installed"):
        device_for("gpu")
    broken = ImportError(
        "====\nFailed to import CuPy.\n\nOriginal error:\n  ImportError: libcudart.so.12: no such file\n===="
    )

    class Broken:
        """Finds CuPy, and fails to load it."""

        def find_spec(self, name: str, *_: object) -> None:
            if name == "cupy":
                raise broken

    monkeypatch.delitem(sys.modules, "cupy")
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    wanted = r"CuPy does not load: install the one for your CUDA, .* \(ImportError: libcudart\.so\.12: no such file\)"
    with pytest.raises(spear_np.DeviceError, match=wanted) as caught:
        device_for("gpu")
    assert "\n" not in str(caught.value)


def test_a_card_is_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    cupy = install(monkeypatch)
    assert device_for("gpu").name == device_for("gpu:0").name
    cupy.cuda.runtime.getDeviceCount = None
    assert device_for("gpu").name == "gpu:0"


def test_one_that_failed_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, memory=OutOfMemoryError("full"))
    with pytest.raises(spear_np.DeviceError):
        device_for("gpu")
    install(monkeypatch)
    assert device_for("gpu").name == "gpu:0"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OutOfMemoryError("Out of memory allocating 8,000 bytes"), "gpu:0: the card has no memory left"),
        (
            CUDARuntimeError("cudaErrorIllegalAddress: an illegal memory access"),
            "gpu:0: CUDA does not answer",
        ),
    ],
)
def test_what_goes_wrong_later_is_one_line_too(
    monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    install(monkeypatch)
    device: Device = device_for("gpu")
    with pytest.raises(spear_np.DeviceError, match=message), device.activate():
        raise error


def test_other_errors_stay_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    with pytest.raises(KeyError), device_for("gpu").activate():
        raise KeyError
