"""Many layers and chains at once: on a card their searches share launches, on the host they go one after the other.

A small layer leaves a card idle: a step of its search takes as long as launching it. So some tens of them are under way
together, each in a thread, and meet where they have something for the card (`search.together`).
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import numpy as np

from .answer.result import Inversion, Progress, Status
from .backend.devices import CPU, Device, device_for
from .backend.memory import memory_of
from .backend.work import suitable_threads
from .errors import DeviceError
from .factors.gradients import LayerChain, LayerGradients
from .factors.memory import working_memory
from .invert import chain_answer, check_method, invert_chain, invert_layer, layer_answer
from .kernels.sampling import KEPT_VECTORS, LARGEST_KERNEL
from .layer.assemble import inversion
from .loop.budget import Budget
from .loop.options import DataRange, Options, SearchFactory
from .loop.run import Run
from .placement import algebra_device
from .search.blocks import Settings
from .search.reflect import STARTS
from .search.together import Meeting

MOST_TOGETHER = 32
"""Layers, or chains, under way at once, at most.

Derived: the 200 steps of a block take a card some 12 ms, however many layers share them, and the host some 50 ms for each layer
(m = 200, b = 20): shared by 32, they are less than a hundredth of that, and more layers would only hold memory.
"""
MEMORY_SHARE = 0.5
"""Share of the memory of host and card that layers under way may have together.

Heuristic: the rest is for the gradients themselves, for libraries, and for others.
"""
STEP_TABLES = 8
"""Tables of (starts, units) numbers of a launch at once.

Derived: products, pulls, patterns, predictions and weights, and what is made of them where libraries make copies; for chains the
points, those next to them on the graph, their reflections and where these lead.
"""
SET_TABLES = 12
"""Tables of (units, units) numbers, at most, that a layer of a chain takes on a card.

Derived: weights, directions and inverses, each the other way round too, and the Jacobians of one start with what they are made of.
"""
TICK = 0.1
"""Seconds between two looks whether the caller wants to stop.

Heuristic: less than anybody waits for.
"""

Given = LayerGradients | LayerChain
"""What is inverted: a layer alone, or one with those that follow it."""
Outcome = Inversion | Exception
"""What became of it: its answer, or what was raised in its place."""


def invert_many(
    layers: Sequence[Given],
    *,
    batch_size: int | None = None,
    data_range: DataRange | None = None,
    method: str | SearchFactory = "auto",
    seed: int = 0,
    device: str | None = None,
    time_limit: float = 600.0,
    max_proposals: int | None = None,
    callback: Callable[[int, Progress], None] | None = None,
    done: Callable[[int, Inversion], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> list[Inversion]:
    """Recover the batches behind many gradients, as those of the clients of a federation; on a card together.

    On the host they go one after the other, and the answers are those of `invert_layer` and `invert_chain`. On a card layers of up
    to `placement.HOST_UNITS` units, and chains of such layers, go together: each has as many starts as on the host, whatever the
    others are, so that its answer is its own but for the rounding of float32. Larger ones fill a card alone, and follow one
    after the other.

    Parameters
    ----------
    layers : sequence of LayerGradients or LayerChain
        Layers alone, or with those that follow them. They may differ in shape, and in everything else.
    batch_size, data_range, method, seed, max_proposals
        As in `invert` and `invert_chain`, for all alike.
    device : {"cpu", "gpu", "gpu:N"}, optional
        Where to compute; by default where the arrays of each layer are.
    time_limit : float
        Seconds for each layer, from when it begins; those that go together share the time of the host.
    callback : callable, optional
        Receives the number of a layer and its `Progress` now and then.
    done : callable, optional
        Receives the number of a layer and its answer as soon as there is one, in the order in which they end.
    stop : callable, optional
        Asked now and then; True ends all searches with what they have, and layers that were not begun have found nothing.

    Returns
    -------
    list of Inversion
        In the order of `layers`.

    Raises
    ------
    InputError
        At once, if an option is out of range, or the method cannot invert what was handed over; otherwise as below.
    DeviceError
        At once, if the device does not answer.
    Exception
        What was raised in place of an answer, with a note that says for which layer, after all others were `done`; of
        several the first.

    Notes
    -----
    All callables are called in the thread of the caller. What they raise ends everything.
    """
    options = Options(batch_size, data_range, method, seed, time_limit, max_proposals)
    answers: dict[int, Inversion] = {}
    failed: dict[int, Exception] = {}
    with closing(outcomes(layers, options, device=device, callback=callback, stop=stop)) as ended:
        for number, outcome in ended:
            if isinstance(outcome, Inversion):
                answers[number] = outcome
                if done is not None:
                    done(number, outcome)
            else:
                failed[number] = outcome
    for number, error in sorted(failed.items()):
        error.add_note(f"layer {number} of {len(layers)}, counted from 0")
        raise error
    return [answers[number] for number in range(len(layers))]


def outcomes(
    layers: Sequence[Given],
    options: Options,
    *,
    device: str | None = None,
    callback: Callable[[int, Progress], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Generator[tuple[int, Outcome]]:
    """Yield the number and the outcome of each layer, as they end; parameters as in `invert_many`.

    No layer costs the others anything but time: what one raises is its outcome. Closing the generator ends all.

    Raises
    ------
    InputError, DeviceError
        As `invert_many` at once.
    """
    for given in layers:
        check_method(given, options)
    job = _Job(layers, options, callback or (lambda *_: None), stop or (lambda: False))
    cards: dict[Device, list[int]] = {}
    others: list[int] = []
    for number, given in enumerate(layers):
        members = _members(given)
        where = device_for(device, members[0].weight_grad)
        alone = algebra_device(where, max(one.shape[0] for one in members)) is where
        (others if alone else cards.setdefault(where, [])).append(number)
    for card, numbers in cards.items():
        yield from job.together(numbers, card)
    yield from job.in_turn(others, device)


def layers_together(device: Device, shapes: Sequence[Sequence[tuple[int, int]]]) -> int:
    """How many go together on a card: `MOST_TOGETHER`, if card and host have the memory for the largest.

    `shapes` are (m, n) of the layers of each: one, or those of a chain.
    """
    launched = max(map(_launched, shapes)) * np.dtype(np.float32).itemsize
    factored = max(sum(working_memory(shape, with_weight=True) for shape in chain) for chain in shapes)
    fit = [MOST_TOGETHER, len(shapes)]
    for place, needed in ((device, launched), (CPU, factored)):
        there = memory_of(place)
        if there is not None:
            fit.append(int(MEMORY_SHARE * there / needed))
    return max(1, min(fit))


def _launched(shapes: Sequence[tuple[int, int]]) -> int:
    """Numbers that the searches of one layer, or of the chain that begins with it, have on a card."""
    units = [m for m, _ in shapes]
    alone = STEP_TABLES * Settings.starts * units[0] + KEPT_VECTORS * LARGEST_KERNEL
    if len(units) == 1:
        return alone
    return alone + sum(2 * STEP_TABLES * STARTS * m + SET_TABLES * m**2 for m in units)


def _members(given: Given) -> Sequence[LayerGradients]:
    """The layers of a chain, or the one that is alone."""
    return given.layers if isinstance(given, LayerChain) else (given,)


@dataclass(frozen=True)
class _Job:
    """One call of `outcomes`."""

    layers: Sequence[Given]
    options: Options
    callback: Callable[[int, Progress], None]
    stop: Callable[[], bool]

    def in_turn(self, numbers: Sequence[int], device: str | None) -> Iterator[tuple[int, Outcome]]:
        """One after the other, in this thread."""
        for number in numbers:
            given = self.layers[number]
            if self.stop():
                yield number, self._not_begun(number, device_for(device, _members(given)[0].weight_grad))
                continue
            options = vars(self.options) | {"device": device, "stop": self.stop}
            callback = partial(self.callback, number)
            try:
                outcome: Outcome
                if isinstance(given, LayerChain):
                    outcome = invert_chain(
                        given.layers, names=given.names, loss=given.loss, callback=callback, **options
                    )
                else:
                    outcome = invert_layer(given, callback=callback, **options)
            except DeviceError:
                raise
            except Exception as error:  # noqa: BLE001  (the outcome of this layer)
                outcome = error
            yield number, outcome

    def together(self, numbers: Sequence[int], card: Device) -> Iterator[tuple[int, Outcome]]:
        """Each in a thread, some tens at a time; what they tell is told in this one."""
        ended = threading.Event()
        told: queue.SimpleQueue[tuple[int, Progress | Outcome]] = queue.SimpleQueue()

        def invert(number: int) -> None:
            if ended.is_set():
                told.put((number, self._not_begun(number, card)))
                return
            try:
                outcome: Outcome = self._inverted(number, meeting, ended, told)
            except Exception as error:  # noqa: BLE001  (the outcome of this layer)
                outcome = error
            told.put((number, outcome))

        most = layers_together(
            card, [[one.shape for one in _members(self.layers[number])] for number in numbers]
        )
        # The library of linear algebra has one limit for all threads: it is set once, around them.
        with (
            suitable_threads(CPU, 0),
            Meeting(card) as meeting,
            ThreadPoolExecutor(most, "spear-layer") as threads,
        ):
            try:
                for number in numbers:
                    threads.submit(invert, number)
                left = len(numbers)
                while left:
                    if self.stop():
                        ended.set()
                    try:
                        number, word = told.get(timeout=TICK)
                    except queue.Empty:
                        continue
                    if isinstance(word, Progress):
                        self.callback(number, word)
                        continue
                    if isinstance(word, DeviceError):
                        raise word
                    left -= 1
                    yield number, word
            finally:
                ended.set()

    def _inverted(
        self,
        number: int,
        meeting: Meeting,
        ended: threading.Event,
        told: queue.SimpleQueue[tuple[int, Progress | Outcome]],
    ) -> Inversion:
        """Invert one of those that go together."""
        budget = Budget(self.options.time_limit, self.options.max_proposals, ended.is_set)
        run = Run(self.options, budget, lambda progress: told.put((number, progress)))
        given = self.layers[number]
        with meeting.seat() as seat, meeting.device.activate():
            if isinstance(given, LayerChain):
                return chain_answer(given, meeting.device, run, seat)
            return layer_answer(given, meeting.device, run, seat)

    def _not_begun(self, number: int, where: Device) -> Inversion:
        """What is known of one that the end came before."""
        run = Run(self.options, Budget(self.options.time_limit, None, self.stop), lambda _: None)
        reason = "stopped before it began"
        with where.activate():
            return run.signed(
                inversion(
                    _members(self.layers[number])[0], where, Status.FAILED, reason, 0, self.options.data_range
                )
            )
