"""Numbers that look random and can be computed alike on any device: splitmix64 of a place in a sequence.

References
----------
.. [1] Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
"""

from __future__ import annotations

import numpy as np

from ..arrays import HostArray


def seed_from(rng: np.random.Generator) -> int:
    """A seed for `halves`."""
    return int(rng.integers(2**63))


def mixed(z: HostArray) -> HostArray:
    """uint64 numbers that look random, one for each of `z` uint64."""
    with np.errstate(over="ignore"):
        z = z + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        result: HostArray = z ^ (z >> np.uint64(31))
    return result


def below(limit: int, sequences: HostArray, count: int, seed: int) -> HostArray:
    """(count, k) int64: the first `count` integers from 0 to `limit` - 1 of each of the `sequences` (k,) int.

    Two come from each 64-bit number, the upper half first.
    """
    base = mixed(np.uint64(seed) + sequences.astype(np.uint64))
    number = mixed(base + np.arange(-(-count // 2), dtype=np.uint64)[:, None])
    half = np.stack([number >> np.uint64(32), number & np.uint64(2**32 - 1)], axis=1)
    scaled = (half.reshape(-1, len(sequences))[:count] * np.uint64(limit)) >> np.uint64(32)
    return scaled.astype(np.int64)
