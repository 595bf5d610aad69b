"""What a card makes of single steps: subsets a second, milliseconds a step of every search, and the published search beside them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import array_api_compat
import numpy as np
import torch

from benchmarks.networks import Network, share
from benchmarks.problems import make_problem
from spear_np import LayerGradients
from spear_np.backend.devices import CPU, Device
from spear_np.chain.sets import Open, open_sets
from spear_np.directions.pool import Pool
from spear_np.factors.behind import Behind, with_layer_behind
from spear_np.factors.factorize import Factors, factorize
from spear_np.factors.signs import sign_model, smoother
from spear_np.network.read import Linked, read_chain
from spear_np.placement import algebra_device
from spear_np.search.blocks import Block, Settings, Tempering, descend
from spear_np.search.columns import Columns
from spear_np.search.descent import Descent
from spear_np.search.levenberg import Levenberg
from spear_np.search.reflect import Reflect
from spear_np.search.sampling import Sampling

Row = dict[str, Any]


@contextmanager
def timed(device: Device) -> Iterator[Callable[[], float]]:
    """Yield a function that returns, afterwards, the seconds of what was done within: by events on a card, which wait for nothing.

    On a CPU it is the time that passed.
    """
    if not array_api_compat.is_cupy_namespace(device.xp):
        times = [time.perf_counter()]
        yield lambda: times[1] - times[0]
        times.append(time.perf_counter())
        return
    import cupy

    first, last = cupy.cuda.Event(), cupy.cuda.Event()
    first.record()
    yield lambda: float(cupy.cuda.get_elapsed_time(first, last)) / 1e3
    last.record()
    last.synchronize()


def best_seconds(device: Device, work: Callable[[], Any], repeats: int) -> float:
    """Least seconds of some calls, after one that compiles and loads; nothing is copied to the host."""
    work()
    times = []
    for _ in range(repeats):
        with timed(device) as seconds:
            work()
        times.append(seconds())
    return min(times)


def product_rate(device: Device, size: int, repeats: int) -> float:
    """Floating-point operations a second of the product of two float32 matrices of `size` x `size`, its output in place."""
    rng = np.random.default_rng(0)
    a, out = device.float32(rng.standard_normal((size, size))), device.float32(np.zeros((size, size)))
    return 2 * size**3 / best_seconds(device, lambda: device.xp.matmul(a, a, out=out), repeats)


def factors_on(device: Device, m: int, b: int, seed: int) -> Factors:
    """The factors of a fresh batch, on `device`."""
    factors = factorize(LayerGradients(**make_problem(m, b, seed).arguments), device)
    assert isinstance(factors, Factors)
    return factors


def sampling_rates(device: Device, m: int, b: int, repeats: int) -> Row:
    """Subsets a second of whole blocks of the search: tables, kernel, survivors on the host."""
    space = factors_on(device, m, b, seed=1).space
    pool, search = Pool.empty(b, space.U.shape[0]), Sampling()
    examined = search.propose(space, pool, np.random.default_rng(0)).examined
    seconds = best_seconds(device, lambda: search.propose(space, pool, np.random.default_rng(1)), repeats)
    return {"m": m, "b": b, "subsets": examined, "rate": examined / seconds}


def published_rate(m: int, b: int, block: int, repeats: int) -> Row:
    """Subsets a second of the published search in plain PyTorch: draw, null vectors by SVD, count zeros; on a card if it has one."""
    where = "cuda" if torch.cuda.is_available() else "cpu"
    space = factors_on(CPU, m, b, seed=1).space
    rows = torch.asarray(np.asarray(space.U), dtype=torch.float32, device=where)

    def work() -> int:
        picks = torch.rand((block, rows.shape[0]), device=where).argsort(dim=1)[:, : b - 1]
        vectors = torch.linalg.svd(rows[picks], full_matrices=True).Vh[:, -1, :]
        zeros = (torch.abs(vectors @ rows.T) < 1e-4).sum(dim=1)
        return int((zeros > 0.35 * rows.shape[0]).sum())  # waits for the card

    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return {"m": m, "b": b, "subsets": block, "rate": block / min(times), "on": where}


def descent_step(device: Device, m: int, b: int, starts: int | None, steps: int, repeats: int) -> Row:
    """Milliseconds a step of the descent and the operations of its products; `starts` None for as many as the card suggests."""
    factors = factors_on(device, m, b, seed=1)
    xp, model = device.xp, sign_model(factors)
    assert model is not None
    search = Descent.prepare(factors.space, model)
    rows = search.weighting.rows
    count = search.starts(factors.space) if starts is None else starts
    picks = np.random.default_rng(0).integers(0, rows.shape[0], count)
    start = xp.take(rows, device.integers(picks), axis=0)
    signs = smoother(factors.space, model, None)
    tempering, settings = Tempering(steps, 0.3, (0.0, 10.0), 0.5, 0.3, 1.0), Settings(thinning=False)
    block = Block.prepare(device, rows, start, tempering, settings, signs=signs)
    seconds = best_seconds(device, lambda: descend(device, [block]), repeats)
    predictions = sum(
        step / steps >= settings.warm_up and step % settings.sign_interval == 0 for step in range(steps)
    )
    operations = 4 * count * rows.shape[0] * (steps * rows.shape[1] + predictions * signs[0].shape[1])
    return {
        "search": "descent",
        "m": m,
        "b": b,
        "starts": count,
        "milliseconds": 1e3 * seconds / steps,
        "rate": operations / seconds,
    }


def chain_left(device: Device, m: int, b: int, activation: str) -> Open:
    """What is left open of a chain with nothing known, one layer behind the first."""
    shared = share(Network(widths=(m, m, m), activation=activation), b, 1)
    layers = [replace(layer, **_moved(layer, device)) for layer in shared.layers]
    linked = read_chain(layers, device, None, ())
    assert isinstance(linked, Linked)
    return open_sets(linked.chain, 1)


def _moved(layer: LayerGradients, device: Device) -> dict[str, Any]:
    names = ("weight_grad", "bias_grad", "weight", "bias")
    return {name: device.xp.asarray(getattr(layer, name), device=device.handle) for name in names}


def chain_step(device: Device, name: str, m: int, b: int, repeats: int) -> Row:
    """Milliseconds a step of the search of chains called `name`; of small layers only the steps are on the device."""
    left = chain_left(algebra_device(device, m), m, b, "gelu" if name == "levenberg" else "relu")
    search = (Levenberg if name == "levenberg" else Reflect).suited(left.chain, device)
    with np.errstate(all="ignore"):
        memory: Any = search.start(left, np.random.default_rng(0))
        first = search.propose(left, memory, np.random.default_rng(1))
        memory, examined = first.memory, first.examined  # what stays on the device is there from now on
        seconds = best_seconds(
            device, lambda: search.propose(left, memory, np.random.default_rng(1)), repeats
        )
    steps = math.ceil(examined / search.count)
    return {
        "search": name,
        "m": m,
        "b": b,
        "starts": search.count,
        "milliseconds": 1e3 * seconds / steps,
        "rate": None,
    }


def columns_step(device: Device, m: int, b: int, repeats: int) -> Row:
    """Milliseconds a step of the search for columns, what follows its steps included."""
    shared = share(Network(widths=(m,)), b, 1)
    first, last = (replace(layer, **_moved(layer, device)) for layer in shared.layers)
    behind = Behind(last, last=True)
    factors = factorize(first, device)
    assert isinstance(factors, Factors)
    factors = replace(factors, space=with_layer_behind(factors.space, behind))
    search = Columns.prepare(factors, sign_model(factors), behind)
    assert search is not None
    space, pool = factors.space, Pool.empty(b, factors.space.U.shape[0])
    examined = search.propose(space, pool, np.random.default_rng(0)).examined
    seconds = best_seconds(device, lambda: search.propose(space, pool, np.random.default_rng(0)), repeats)
    return {
        "search": "columns",
        "m": m,
        "b": b,
        "starts": None,
        "milliseconds": 1e3 * seconds / max(1, examined),
        "rate": None,
    }


@dataclass
class KernelTimes:
    """Launches of our own kernels and the time each took on the card."""

    device: Device
    launches: dict[str, list[Callable[[], float]]] = field(default_factory=dict)

    @property
    def watched(self) -> Device:
        """The device, with a watch on every launch."""
        return self.device if self.device.launch is None else replace(self.device, launch=self._launch)

    def _launch(
        self, source: str, name: str, blocks: int, threads: int, arguments: tuple[Any, ...], shared: int
    ) -> None:
        import cupy

        assert self.device.launch is not None
        first, last = cupy.cuda.Event(), cupy.cuda.Event()
        first.record()
        self.device.launch(source, name, blocks, threads, arguments, shared)
        last.record()
        self.launches.setdefault(name, []).append(
            lambda: float(cupy.cuda.get_elapsed_time(first, last)) / 1e3
        )

    def rows(self) -> list[Row]:
        """Name, launches and seconds of each kernel, the longest first; waits for the card."""
        if self.launches:
            import cupy

            cupy.cuda.runtime.deviceSynchronize()
        totals = [
            {"kernel": name, "launches": len(times), "seconds": sum(one() for one in times)}
            for name, times in self.launches.items()
        ]
        return sorted(totals, key=lambda row: -row["seconds"])
