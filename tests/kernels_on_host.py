"""The CUDA kernels built by a host compiler: a device whose arrays are NumPy's and whose kernels are the real source."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from spear_np.backend.devices import CPU, Device
from spear_np.kernels.source import WARP, kernel_names, source

COMPILER = shutil.which("g++")
MISSING = None if COMPILER else "no g++ to build the kernels for the host with"
HEADER = Path(__file__).parent / "host_cuda.hpp"
SHARED_BYTES = 48 * 1024
SCALARS: dict[str, type[np.generic]] = {"int": np.int32, "float": np.float32, "unsigned long long": np.uint64}


def build(folder: Path, lanes: int) -> Path:
    """Compile all kernels for warps of `lanes` threads; returns the library."""
    assert COMPILER is not None
    text = f'#include "{HEADER}"\n{source()}\n' + "".join(f"HOST_LAUNCH({n})\n" for n in kernel_names())
    code, library = folder / f"kernels_{lanes}.cpp", folder / f"kernels_{lanes}.so"
    code.write_text(text)
    options = [
        "-std=c++20",
        "-O1",
        "-Wall",
        "-Wno-unknown-pragmas",
        "-Werror",
        "-fPIC",
        "-shared",
        "-pthread",
    ]
    subprocess.run(
        [COMPILER, *options, f"-DLANES={lanes}", str(code), "-o", str(library)],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return library


def declared(name: str) -> list[tuple[bool, type[np.generic]]]:
    """Parameters of a kernel: whether it is a pointer, and to what or which number."""
    found = re.search(rf"__global__ void {name}\((.*?)\)\s*\{{", source(), re.DOTALL)
    assert found is not None, name
    text = re.sub(r"//[^\n]*|__restrict__|const", "", found[1])
    parameters = []
    for parameter in text.split(","):
        kind, pointer, _ = re.fullmatch(r"\s*([a-z ]+?)\s*(\*?)\s*(\w+)\s*", parameter).groups()  # type: ignore[union-attr]
        parameters.append((bool(pointer), SCALARS[kind]))
    return parameters


class HostKernels:
    """`Device.launch` of a library of `build`; counts launches by name."""

    def __init__(self, library: Path, lanes: int) -> None:
        self.library, self.lanes = ctypes.CDLL(str(library)), lanes
        self.launches: list[str] = []
        self._alone = threading.Lock()  # one launch at a time: blocks and threads are numbered in one place

    @property
    def device(self) -> Device:
        """The CPU, with these kernels."""
        return replace(CPU, launch=self)

    def __call__(
        self, text: str, name: str, blocks: int, threads: int, arguments: tuple[Any, ...], shared: int
    ) -> None:
        assert text == source()
        assert 1 <= blocks < 2**31
        assert 1 <= threads <= 1024
        assert threads % WARP == 0
        assert shared <= SHARED_BYTES
        parameters = declared(name)
        assert len(arguments) == len(parameters), name
        addresses = (ctypes.c_void_p * len(arguments))()
        kept = []
        for place, (argument, (pointer, kind)) in enumerate(zip(arguments, parameters, strict=True)):
            assert isinstance(argument, np.ndarray) is pointer, (name, place)
            assert argument.dtype == kind, (name, place, argument.dtype)
            if pointer:
                assert argument.flags.c_contiguous, (name, place)
                value: Any = ctypes.c_void_p(argument.ctypes.data)
            else:
                value = (ctypes.c_char * argument.nbytes).from_buffer_copy(argument.tobytes())
            kept.append(value)
            addresses[place] = ctypes.addressof(value)
        # One thread alone runs every loop to its end; more take turns at them.
        used = 1 if self.lanes == 1 else threads // WARP * self.lanes
        with self._alone:
            self.launches.append(name)
            getattr(self.library, f"launch_{name}")(blocks, used, addresses)
