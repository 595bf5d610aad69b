"""Work in blocks: how large, on which threads, and what happens when memory does not do."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import TypeVar

import numpy as np
from threadpoolctl import ThreadpoolController

from .card import current, give_back_memory
from .devices import Device
from .memory import free_memory

T = TypeVar("T")


BLOCK_NUMBERS = 8_000_000
"""Numbers of one temporary array that a loop over blocks may make where nothing tells how much memory is free (64 MB in float64).

Heuristic: large enough to keep a GPU busy, small beside the memory of any machine; it changes no answer.
"""


CARD_ARRAYS = 32
"""Temporary arrays of the size of a block that the free memory of a card has room for.

Heuristic: a block makes some ten at once, and what decomposes them takes as much again; if it does not do, blocks are halved.
"""


CACHED_NUMBERS = 250_000
"""Numbers of one temporary array of blocks that a processor passes over many times (2 MB in float64).

Measured: whole inversions take 1.06, 6.6 and 2.55 s (eight of m = 200, b = 20, two of 400, 100 and of 200, 60) where blocks of a million
numbers take 1.27, 7.1 and 2.66, of 125,000 1.05, 6.8 and 2.57, and of 60,000 1.08, 8.0 and 2.73; at 1000, 200 a round takes a tenth
less time (AMD EPYC with 1 MB of second-level cache a core, one thread).
"""


def block_length(entries: int, numbers: int = BLOCK_NUMBERS) -> int:
    """How many items of `entries` numbers each fill a temporary array of so many `numbers`, at least one."""
    return max(1, numbers // max(1, entries))


def block_numbers(device: Device) -> int:
    """Numbers of one temporary array that a loop over blocks makes: what a processor caches, or what a card has free for it."""
    if device.name == "cpu":
        return CACHED_NUMBERS
    free = free_memory(device)
    room = BLOCK_NUMBERS if free is None else free // (np.dtype(np.float64).itemsize * CARD_ARRAYS)
    # A power of two: what another process takes of the card seldom changes how the work is divided.
    return max(1, 1 << max(0, room.bit_length() - 1 - _HALVINGS.get()))


def blocks(device: Device, count: int, entries: int) -> list[slice]:
    """Slices of `count` items with `entries` numbers each that fill temporary arrays one at a time."""
    step = block_length(entries, block_numbers(device))
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]


SMALL_MATRIX = 250_000
"""Entries up to which a second thread gains a matrix product nothing.

Measured: on a busy machine of two cores two threads took 30 times as long as one at m = 200, b = 20, and at m = 1000, b = 200
ten times as long (556 s for 34). Blocks of work for several cores are `mapped`: they do not wait for each other.
"""


SHARED_FROM = 30_000
"""Entries of a matrix from which cores share steps that pass over it: many small ones, each a few calls of the library.

Measured: two cores take 1.6 steps of the descent at m = 400, b = 100 while one takes one, and 1.8 at m = 1000, b = 200; at m = 200,
b = 65 they gain nothing. Inputs of a chain are examined by two cores 1.2 times faster at m = 400, b = 160, 1.1 at m = 300, b = 120
and a little slower at m = 200, b = 80: what a step does besides its products waits for the interpreter.
"""


@contextmanager
def suitable_threads(device: Device, entries: int) -> Iterator[None]:
    """Keep BLAS to one thread while matrices have at most `SMALL_MATRIX` entries; a no-op on a GPU.

    Thousands of small products a second spend their time waiting for each other's threads, and when another process
    holds a core they stall.
    """
    if device.name != "cpu" or entries > SMALL_MATRIX:
        yield
        return
    pools = _pools(len(sys.modules))
    before = _WORKERS.set(_WORKERS.get() or _threads_of(pools))
    try:
        with pools.limit(limits=1, user_api="blas"):
            yield
    finally:
        _WORKERS.reset(before)


_WORKERS: ContextVar[int | None] = ContextVar("workers", default=None)
"""How many threads BLAS was allowed before `suitable_threads` took all but one."""


@lru_cache(maxsize=1)
def _pools(_modules: int) -> ThreadpoolController:
    """The libraries with threads; they are looked for anew, which takes milliseconds, when modules have come that may bring others."""
    return ThreadpoolController()


def _threads_of(pools: ThreadpoolController) -> int:
    """How many threads BLAS may use: as many as this process may compute with."""
    return max((pool["num_threads"] for pool in pools.select(user_api="blas").info()), default=1)


_HALVINGS: ContextVar[int] = ContextVar("halvings", default=0)
"""How often `narrowing` has halved the blocks of a card."""


def mapped(device: Device, function: Callable[[slice], T], parts: Sequence[slice]) -> list[T]:
    """[function(part) for part in parts], on all cores; a part for which memory does not do is halved, again and again.

    On a CPU each thread works on a part of its own, with a BLAS of one thread: the many small products and decompositions of a
    stack gain little from several, and where another process holds a core they wait for each other.

    Raises
    ------
    MemoryError
        If memory does not do for a single item.
    """
    serial = device.name != "cpu" or len(parts) < 2  # threads would share the stream of a GPU
    pools = None if serial else _pools(len(sys.modules))
    workers = 1 if pools is None else min(len(parts), _WORKERS.get() or _threads_of(pools))
    if pools is None or workers == 1:
        return one_by_one(device, function, parts)
    with pools.limit(limits=1, user_api="blas"), ThreadPoolExecutor(workers) as pool:
        found = list(pool.map(lambda part: _halved(device, function, part), parts))
    return [result for results in found for result in results]


def one_by_one(device: Device, function: Callable[[slice], T], parts: Sequence[slice]) -> list[T]:
    """As `mapped`, in this thread: where a part is one large operation, which all cores share."""
    return [result for part in parts for result in _halved(device, function, part)]


def narrowing(device: Device, entries: int, compute: Callable[[], T]) -> T:
    """compute(), which loops over blocks; again with blocks of half the size while the memory of a card does not do.

    Raises
    ------
    MemoryError
        If it does not do for blocks of `entries` numbers, those of a single item.
    """
    before = _HALVINGS.get()
    try:
        while True:
            try:
                return compute()
            except MemoryError:
                if device.name == "cpu" or block_numbers(device) <= entries:
                    raise
            give_back_memory(device)
            _HALVINGS.set(_HALVINGS.get() + 1)
    finally:
        _HALVINGS.set(before)


def _halved(device: Device, function: Callable[[slice], T], part: slice) -> list[T]:
    """[function(part)], or of the halves of `part` if memory does not do for all of it."""
    try:
        with current(device):
            return [function(part)]
    except MemoryError:  # CuPy's is one too
        if part.stop - part.start < 2:
            raise
    give_back_memory(device)
    middle = (part.start + part.stop) // 2
    halves = slice(part.start, middle), slice(middle, part.stop)
    return [result for half in halves for result in _halved(device, function, half)]
