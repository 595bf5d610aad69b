"""SPEAR as published, written plainly: the yardstick for everything that claims to be faster.

It shares no code with `spear_np`. It draws 10,000 submatrices at once, takes their null vectors from a batched SVD and
follows the paper step by step. Where the paper leaves a choice open (tolerances in float32, which of two equal
directions to keep) the choice is the one that solved most batches, so that the comparison is with the algorithm and
not with a careless version of it.

References
----------
.. [1] D. I. Dimitrov, M. Baader, M. N. Müller, M. Vechev, "SPEAR: Exact Gradient Inversion of Batches in Federated
   Learning", NeurIPS 2024, arXiv:2403.03945.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

BLOCK = 10_000
"""Submatrices drawn at once."""
SPARSITY = 0.35
"""τ: a direction is kept if this share of L q is zero. A true one has about a half, a mixture of two a quarter."""
SAME = 1 - 1e-5
"""Two unit vectors with a larger |cosine| are one direction."""
UNDECIDED = 1e-3
"""Share of the m·b entries that rounding may decide: λ counts as 1 if no more (or no more than two) disagree."""


@dataclass(frozen=True)
class Layer:
    """What the server knows, in the shape the algorithm uses: weight_grad = L R, and W in the basis of R.

    Shapes: m output units, n input features, b inputs.
    """

    L: Array
    """(m, b), orthonormal columns."""
    R: Array
    """(b, n)"""
    bias_grad: Array
    """(m,)"""
    weight_on_basis: Array
    """(m, b), W Rᵀ: what W makes of any input in the row space."""
    bias: Array
    """(m,)"""
    rows: Array
    """Rows of weight_grad that are not zero: the others hold for every direction and tell none apart."""
    zero: float
    """|L q| below this counts as zero, for ‖q‖ = 1."""

    @classmethod
    def decompose(cls, weight_grad: Array, bias_grad: Array, weight: Array, bias: Array) -> Layer:
        """Factorise `weight_grad` at its numerical rank: where neighbouring singular values fall most steeply."""
        # The rows of V are the right singular vectors, here and below.
        U, S, V = np.linalg.svd(weight_grad.astype(np.float64), full_matrices=False)
        floor = np.finfo(np.float64).eps * S[0]
        b = int((S[:-1] / np.maximum(S[1:], floor)).argmax()) + 1
        R = S[:b, None] * V[:b]
        # A null vector of few rows loses up to three digits against the data.
        tolerance = 1e3 * float(np.finfo(weight_grad.dtype).eps)
        return cls(
            L=U[:, :b],
            R=R,
            bias_grad=bias_grad.astype(np.float64),
            weight_on_basis=weight.astype(np.float64) @ R.T,
            bias=bias.astype(np.float64),
            rows=np.flatnonzero(np.abs(weight_grad).max(1) > 0),
            zero=tolerance / np.sqrt(len(U)),
        )

    @property
    def b(self) -> int:
        """Batch size."""
        return int(self.L.shape[1])

    @property
    def solved(self) -> float:
        """λ from which on the batch counts as solved: 1, but for the few entries that rounding decides."""
        return 1 - max(UNDECIDED, 2 / self.L.size)

    def inverse(self, directions: Array) -> Array | None:
        """Q⁻¹ (b, b), Q made of unit directions (b, b), one per row, scaled so that L Q 1 = bias_grad."""
        try:
            unscaled = np.linalg.inv(directions.T)
        except np.linalg.LinAlgError:
            return None
        scales = unscaled @ (self.L.T @ self.bias_grad)
        return None if np.any(scales == 0) else unscaled / scales[:, None]

    def agreement(self, directions: Array) -> float:
        """λ: the share of the m·b entries where ∂L/∂Z is non-zero exactly where Z is positive."""
        inverse = self.inverse(directions)
        if inverse is None:
            return 0.0
        Z = self.weight_on_basis @ inverse.T + self.bias[:, None]
        active = np.abs(self.L @ directions.T) > self.zero
        return float(((Z > 0) == active).mean())


@dataclass
class Candidates:
    """Distinct sparse directions found so far, one per row."""

    directions: Array
    zeros: Array
    """Zeros of L q: what the greedy choice goes by."""
    conditioning: Array
    """Smallest singular value of the submatrix: of two equal directions the better conditioned one is more accurate."""

    @classmethod
    def empty(cls, b: int) -> Candidates:
        """No directions of length b."""
        return cls(np.empty((0, b)), np.empty(0, dtype=np.int64), np.empty(0))

    def merge(self, other: Candidates) -> Candidates:
        """Join two sets and drop duplicates."""
        directions = np.concatenate([self.directions, other.directions])
        zeros = np.concatenate([self.zeros, other.zeros])
        conditioning = np.concatenate([self.conditioning, other.conditioning])
        kept: list[int] = []
        rest = np.argsort(-conditioning)
        while len(rest):
            kept.append(int(rest[0]))
            rest = rest[np.abs(directions[rest] @ directions[rest[0]]) < SAME]
        return Candidates(directions[kept], zeros[kept], conditioning[kept])


@dataclass(frozen=True)
class Published:
    """The answer of `recover`."""

    inputs: Array | None
    """(b, n), or None if the batch was not solved in time."""
    agreement: float
    """λ of the best choice at the end."""
    seconds: float
    submatrices: int
    candidates: int
    """Distinct directions that passed the sparsity filter."""


def recover(
    weight_grad: Array,
    bias_grad: Array,
    weight: Array,
    bias: Array,
    *,
    seed: int = 0,
    time_limit: float = 600.0,
    threads: int = 1,
) -> Published:
    """Return the batch behind the gradients of one ReLU layer, one input per row.

    Parameters
    ----------
    weight_grad, weight : (m, n) array
        ∂L/∂W and W.
    bias_grad, bias : (m,) array
        ∂L/∂b and b.
    seed : int
        Decides which submatrices are drawn.
    time_limit : float
        Seconds after which the best choice so far is given up.
    threads : int
        NumPy runs a batched SVD on one core; with more threads every block is shared between as many cores.
    """
    start = time.perf_counter()
    layer = Layer.decompose(weight_grad, bias_grad, weight, bias)
    rng = np.random.default_rng(seed)
    candidates = Candidates.empty(layer.b)
    agreement, directions, submatrices = 0.0, None, 0
    with ThreadPoolExecutor(threads) as executor:
        while agreement < layer.solved and time.perf_counter() - start < time_limit:
            found = sample(layer, rng, executor, threads)
            submatrices += BLOCK
            if len(found.directions) == 0:
                continue
            candidates = candidates.merge(found)
            chosen = greedy_basis(candidates)
            if len(chosen) == layer.b:
                agreement, directions = improve(layer, candidates, chosen)

    inputs = None
    if directions is not None and agreement >= layer.solved:
        inverse = layer.inverse(directions)
        inputs = None if inverse is None else inverse @ layer.R
    seconds = time.perf_counter() - start
    return Published(inputs, agreement, seconds, submatrices, len(candidates.directions))


def sample(layer: Layer, rng: np.random.Generator, executor: ThreadPoolExecutor, threads: int) -> Candidates:
    """Draw a block of submatrices of b - 1 rows and return the null vectors that are sparse enough."""
    order = rng.random((BLOCK, len(layer.rows))).argpartition(layer.b - 2, axis=1)
    submatrices = layer.L[layer.rows[order[:, : layer.b - 1]]]
    parts = executor.map(np.linalg.svd, np.array_split(submatrices, threads))
    _, S, V = (np.concatenate(factor) for factor in zip(*parts, strict=True))
    # Null vectors exist in one dimension only where the submatrix has its full rank.
    regular = S[:, -1] > layer.zero
    directions, conditioning = V[regular, -1], S[regular, -1]
    zeros = (np.abs(directions @ layer.L.T) < layer.zero).sum(1)
    sparse = zeros >= SPARSITY * len(layer.L)
    return Candidates(directions[sparse], zeros[sparse], conditioning[sparse])


def greedy_basis(candidates: Candidates) -> list[int]:
    """Choose independent directions, the sparsest first."""
    chosen: list[int] = []
    basis = np.empty((0, candidates.directions.shape[1]))
    for i in np.argsort(-candidates.zeros, kind="stable"):
        direction = candidates.directions[i]
        rest = direction - (basis @ direction) @ basis
        rest -= (basis @ rest) @ basis
        length = np.linalg.norm(rest)
        if length > np.sqrt(1 - SAME):
            chosen.append(int(i))
            basis = np.concatenate([basis, rest[None] / length])
    return chosen


def improve(layer: Layer, candidates: Candidates, chosen: list[int]) -> tuple[float, Array]:
    """Second stage: exchange chosen directions for others as long as λ grows; return λ and the choice (b, b)."""
    best = layer.agreement(candidates.directions[chosen])
    for other in np.argsort(-candidates.zeros, kind="stable"):
        if best >= layer.solved:
            break
        if other in chosen:
            continue
        for position in range(layer.b):
            trial = [*chosen[:position], int(other), *chosen[position + 1 :]]
            agreement = layer.agreement(candidates.directions[trial])
            if agreement > best:
                best, chosen = agreement, trial
                break
    return best, candidates.directions[chosen]
