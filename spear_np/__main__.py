"""`python -m spear_np` is the command `spear-np`, which lives in `spear_io`: found by its name, so that nothing here imports it."""

from __future__ import annotations

import runpy
import sys

if __name__ == "__main__":
    try:
        runpy.run_module("spear_io", run_name="__main__", alter_sys=True)
    except ImportError as error:
        if error.name != "spear_io":
            raise
        sys.exit(
            "spear-np: error: the command is in the package spear_io, which is not installed; install spear-np"
        )
