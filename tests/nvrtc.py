"""NVIDIA's run-time compiler through ctypes, from the wheels that the `test` extra installs: no card and no driver needed."""

from __future__ import annotations

import ctypes
import importlib.util
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Nvrtc:
    """One version of the compiler."""

    path: Path

    @property
    def _library(self) -> ctypes.CDLL:
        # The one library asks for the other by name only, wherever that is.
        for builtins in self.path.parent.glob("libnvrtc-builtins.so.*"):
            ctypes.CDLL(str(builtins))
        return ctypes.CDLL(str(self.path))

    @property
    def version(self) -> tuple[int, int]:
        """Of CUDA."""
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._check(self._library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
        return major.value, minor.value

    @property
    def architectures(self) -> tuple[int, ...]:
        """Compute capabilities it compiles for, times ten."""
        count = ctypes.c_int()
        self._check(self._library.nvrtcGetNumSupportedArchs(ctypes.byref(count)))
        numbers = (ctypes.c_int * count.value)()
        self._check(self._library.nvrtcGetSupportedArchs(numbers))
        return tuple(numbers)

    def compile(self, source: str, architecture: int) -> tuple[bytes, str]:
        """Return the code for cards of an `architecture`, and what the compiler says.

        Raises
        ------
        ValueError
            If it refuses the source, with its log.
        """
        library, program = self._library, ctypes.c_void_p()
        self._check(
            library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernels.cu", 0, None, None)
        )
        try:
            options = [f"--gpu-architecture=sm_{architecture}", "--std=c++14"]
            texts = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
            status = library.nvrtcCompileProgram(program, len(options), texts)
            log = self._bytes(program, "ProgramLog").rstrip(b"\0").decode()
            if status:
                raise ValueError(log)
            return self._bytes(program, "CUBIN"), log
        finally:
            library.nvrtcDestroyProgram(ctypes.byref(program))

    def _bytes(self, program: ctypes.c_void_p, what: str) -> bytes:
        size = ctypes.c_size_t()
        self._check(getattr(self._library, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
        text = ctypes.create_string_buffer(size.value)
        self._check(getattr(self._library, f"nvrtcGet{what}")(program, text))
        return text.raw

    @staticmethod
    def _check(status: int) -> None:
        assert status == 0, f"NVRTC returned {status}"


def compilers() -> list[Nvrtc]:
    """All versions that are installed."""
    found = importlib.util.find_spec("nvidia")
    folders = [] if found is None else list(found.submodule_search_locations or [])
    paths = [path for folder in folders for path in Path(folder).glob("*/lib/libnvrtc.so.*")]
    return [Nvrtc(path) for path in sorted(paths)]
