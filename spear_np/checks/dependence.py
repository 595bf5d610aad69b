"""Do columns of ∂L/∂Z depend on each other on the units that their inputs share?

Behind a layer with c outputs, and nothing but a linear map between, the gradients of t > c inputs are dependent on all
units that all of them turn on: some combination of their directions annuls these units as well as those that all leave
off. Such zeros are many, so no lone row gives the combination away, and no chance either: the structure made them. Only
the signs of the layer tell which directions are those of inputs.
"""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np

from ..arrays import Array
from ..backend.host import to_host
from ..directions.uniqueness import OPEN_ENERGY
from ..factors.row_space import RowSpace
from ..factors.zero import ZERO_SIGMAS

LARGEST_SET = 4
"""Columns that are held against each other.

Derived: five columns share 1 / 32 of the units, hardly more than they are.
"""
SETS = 200
"""Sets of columns of one size that are looked at.

Heuristic: what makes columns dependent makes most sets dependent.
"""
BEYOND_CHANCE = 1e-9
"""Probability of a dependence by chance below which it is taken for one of the network.

Derived: hundreds of sets in millions of batches.
"""


def dependent_columns(space: RowSpace, directions: Array) -> bool:
    """Whether some columns of the `directions` (k, b) are dependent, within their noise, on all units that they share."""
    q = directions / space.noise_norm(directions)[:, None]
    columns = to_host(space.U @ q.T)  # (ℓ, k), in noise units
    active = np.abs(columns) > ZERO_SIGMAS
    k = columns.shape[1]
    rng = np.random.default_rng(k)
    for size in range(2, min(LARGEST_SET, k) + 1):
        every = math.comb(k, size) <= SETS
        sets = (
            combinations(range(k), size)
            if every
            else (rng.choice(k, size, replace=False) for _ in range(SETS))
        )
        for chosen in map(list, sets):
            rows = columns[np.all(active[:, chosen], axis=1)][:, chosen]
            spare = len(rows) - size + 1
            if spare < 1:
                continue
            noise = math.sqrt(OPEN_ENERGY * len(rows))
            least = float(np.linalg.svd(rows, compute_uv=False)[-1])
            typical = float(np.min(np.linalg.norm(rows, axis=0)))
            # Each row beyond those that the ratios are free for agrees by chance with the share of noise in it.
            if least <= noise < typical and spare * math.log(noise / typical) < math.log(BEYOND_CHANCE):
                return True
    return False
