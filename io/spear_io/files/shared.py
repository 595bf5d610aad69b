"""What records share by hard links, read once for all of them: the model of a round, mostly."""

from __future__ import annotations

import h5py

from .storage import StoredArray

MOST_KEPT = 2
"""Datasets that are kept: the weight and the bias of a layer."""


class Shared:
    """The shared datasets of one open file that were read last, in memory and found finite.

    To read the weight anew for every record takes as long as to read its gradient.
    """

    def __init__(self) -> None:
        self._arrays: dict[int, StoredArray] = {}

    def find(self, address: int | None) -> StoredArray | None:
        """What was kept of the dataset at an address of the file."""
        return None if address is None else self._arrays.get(address)

    def keep(self, array: StoredArray) -> None:
        """Keep a dataset that has several names and is in memory, in the place of the one kept first."""
        info = h5py.h5o.get_info(array.dataset.id)
        if array.loaded is None or info.rc < 2 or info.addr in self._arrays:
            return
        if len(self._arrays) == MOST_KEPT:
            del self._arrays[next(iter(self._arrays))]
        self._arrays[info.addr] = array

    def clear(self) -> None:
        """Keep nothing: the file is closed."""
        self._arrays.clear()
