"""How much memory a device has, has free, and gets back."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import array_api_compat

from .card import current

if TYPE_CHECKING:
    from .devices import Device


def memory_of(device: Device) -> int | None:
    """Bytes of memory that `device` has in all, or that this process may take of it; None where the system does not say."""
    if array_api_compat.is_cupy_namespace(device.xp):
        import cupy

        with current(device):
            return int(cupy.cuda.runtime.memGetInfo()[1])
    sizes = _memory_of_groups()
    with suppress(AttributeError, ValueError, OSError):
        sizes.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(sizes, default=None)


def free_memory(device: Device) -> int | None:
    """Bytes that a card has free, with what CuPy's pool holds unused, within the limit of that pool; None for what is no card."""
    if not array_api_compat.is_cupy_namespace(device.xp):
        return None
    import cupy

    with current(device):
        pool = cupy.get_default_memory_pool()
        free = int(cupy.cuda.runtime.memGetInfo()[0]) + int(pool.free_bytes())
        limit = int(pool.get_limit())
        return min(free, max(0, limit - int(pool.used_bytes()))) if limit else free


def _memory_of_groups(
    groups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> list[int]:
    """Bytes that each of the control groups of this process allows it, where one does (Linux, version 2)."""
    try:
        lines = own.read_text().splitlines()
    except (OSError, ValueError):
        return []
    sizes = []
    for name in (line.removeprefix("0::/") for line in lines if line.startswith("0::/")):
        for folder in (name, *map(str, Path(name).parents)):
            with suppress(OSError, ValueError):  # "max" is no limit
                sizes.append(int((groups / folder / "memory.max").read_text()))
    return sizes
