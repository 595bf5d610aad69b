"""Where the searches of several layers, or chains of layers, meet, so that what they launch on a card is one launch.

Each has a thread and a `Seat`. A search that has something for the card hands it to its seat and waits; as soon as
all layers under way wait, or one of them has waited as long as it had worked before, the card does what all that wait want.
Where all wait, nobody else needs the interpreter meanwhile, which a launch asks for thousands of times.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from ..arrays import Array, HostArray
from ..backend.card import give_back_memory
from ..backend.devices import Device
from ..backend.host import to_host
from ..errors import DeviceError
from ..kernels.sampling import Draw, Sample, sample
from ..placement import carried
from .blocks import Block, descend
from .fits import Fit, Fitted, fit_on
from .reflections import Walk, Walked, walk_on

Launch = Callable[[Device, Sequence[Any]], Sequence[Any]]
"""Does on a device what several searches want, of one kind, and returns an answer for each.

What they want is on the host, or where an earlier answer left it.
"""


@dataclass(eq=False)
class _Request:
    """What one search wants of the card."""

    launch: Launch
    kind: Hashable
    """What requests must have in common, besides the function, to be answered together."""
    wanted: Any
    until: float
    """When it has waited for others as long as it had worked before, by `time.monotonic`."""
    answer: Any = None
    error: BaseException | None = None
    done: bool = False


class Meeting:
    """Layers under way on one device, until the block that it manages ends; `seat` lets another one join.

    Parameters
    ----------
    device : Device
        The card. What searches hand over and work with is on the host.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        # One thread for all launches: libraries of a card have their memory for each thread.
        self._launcher = ThreadPoolExecutor(1, "spear-launcher")
        self._changed = threading.Condition()
        self._present = 0
        self._waiting: list[_Request] = []
        self._launching = False

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(self, *_: object) -> None:
        """End, when everybody has left."""
        self._launcher.shutdown()

    @contextmanager
    def seat(self) -> Iterator[Seat]:
        """Yield the seat of a layer, which the others wait for until the block ends, however it does."""
        with self._changed:
            self._present += 1
        try:
            yield Seat(self)
        finally:
            with self._changed:
                self._present -= 1
                self._changed.notify()  # one of those who wait sees whether they waited for this layer alone

    def ask(self, request: _Request) -> Any:
        """Return the answer to a request, alone or together with those of others; raises what it failed with."""
        with self._changed:
            self._waiting.append(request)
        while True:
            with self._changed:
                while not request.done and (self._launching or not self._due()):
                    self._changed.wait(
                        None if self._launching else max(0.0, request.until - time.monotonic())
                    )
                if request.done:
                    break
                taken, self._waiting, self._launching = self._waiting, [], True
            try:
                self._launcher.submit(self._answer, taken).result()
            finally:
                with self._changed:
                    self._launching = False
                    self._changed.notify_all()
        if request.error is not None:
            raise request.error
        return request.answer

    def _due(self) -> bool:
        """Whether nobody is missing, or has kept another one waiting for long enough."""
        if len(self._waiting) >= self._present:
            return True
        return time.monotonic() >= min((request.until for request in self._waiting), default=float("inf"))

    def _answer(self, requests: Sequence[_Request]) -> None:
        """Answer all `requests`, those of a kind together."""
        kinds: dict[Hashable, list[_Request]] = {}
        for request in requests:
            kinds.setdefault((request.launch, request.kind), []).append(request)
        for alike in kinds.values():
            self._launch(alike)

    def _launch(self, requests: Sequence[_Request]) -> None:
        """Answer `requests` of one kind; where that fails, its halves, so that the one at fault does not cost the others.

        A card that does not answer fails for all of them.
        """
        try:
            with self.device.activate():
                answers = requests[0].launch(self.device, [request.wanted for request in requests])
        except BaseException as error:  # noqa: BLE001  (each has it raised in its own thread)
            lost = isinstance(error, DeviceError) and not isinstance(error.__cause__, MemoryError)
            if lost or len(requests) == 1:
                for request in requests:
                    request.error, request.done = error, True
                return
        else:
            for request, answer in zip(requests, answers, strict=True):
                request.answer, request.done = answer, True
            return
        give_back_memory(self.device)
        middle = len(requests) // 2
        self._launch(requests[:middle])
        self._launch(requests[middle:])


@dataclass(eq=False)
class Seat:
    """The place of one layer or chain at a `Meeting`; for its thread alone. What it works with goes in and comes back on the host."""

    meeting: Meeting
    _since: float = field(default_factory=time.monotonic)
    """When it began to work for itself."""

    @property
    def device(self) -> Device:
        """The card."""
        return self.meeting.device

    def descend(self, block: Block) -> Array:
        """(k', b) float32: the ends of a block, as `blocks.descend` has them."""
        ends: Array = self._asked(_descended, block.pace, block)
        return ends

    def sample(self, draw: Draw) -> Sample:
        """What is found among the subsets of a draw, as `kernels.sampling.sample` has it."""
        found: Sample = self._asked(_sampled, None, draw)
        return found

    def walk(self, walk: Walk) -> Walked:
        """Where the starts of a chain are after its steps, as `reflections.walk_on` has it; they stay on the card."""
        walked: Walked = self._asked(_walked, walk.kind, walk)
        return walked

    def fit(self, fit: Fit) -> Fitted:
        """Where the starts of a chain end, as `fits.fit_on` has it; what they are led by stays on the card."""
        fitted: Fitted = self._asked(_fitted, fit.kind, fit)
        return fitted

    def _asked(self, launch: Launch, kind: Hashable, wanted: Any) -> Any:
        now = time.monotonic()
        try:
            return self.meeting.ask(_Request(launch, kind, wanted, until=now + (now - self._since)))
        finally:
            self._since = time.monotonic()


def _descended(device: Device, blocks: Sequence[Block]) -> list[HostArray]:
    return [to_host(ends) for ends in descend(device, [carried(block, device) for block in blocks])]


def _sampled(device: Device, draws: Sequence[Draw]) -> list[Sample]:
    return sample(device, [draw.on(device) for draw in draws])


def _walked(device: Device, walks: Sequence[Walk]) -> list[Walked]:
    with _running_away():
        return walk_on(device, [carried(walk, device) for walk in walks])


def _fitted(device: Device, fits: Sequence[Fit]) -> list[Fitted]:
    with _running_away():
        return fit_on(device, [carried(fit, device) for fit in fits])


def _running_away() -> AbstractContextManager[None]:
    """Starts of chains may overflow, and are left behind for it: what NumPy says of it is set for each thread."""
    return np.errstate(over="ignore", invalid="ignore", divide="ignore")
