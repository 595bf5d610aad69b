"""Where searches meet: what waits goes together, and nobody who leaves, fails or is slow holds up the others for ever."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from spear_np.backend.devices import CPU, Device
from spear_np.errors import DeviceError
from spear_np.search.together import Meeting, Seat

SOON = 20.0
"""Seconds after which a test is stuck."""


class Recorder:
    """What was launched together: squares of numbers, or an error for those that ask for one."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.together: list[list[int]] = []
        self.seconds = seconds

    def __call__(self, device: Device, numbers: Sequence[int]) -> list[int]:
        time.sleep(self.seconds)
        if any(number < 0 for number in numbers):
            msg = f"{[number for number in numbers if number < 0]}"
            raise ArithmeticError(msg)
        self.together.append(sorted(numbers))
        return [number**2 for number in numbers]


def all_at(meeting: Meeting, works: Sequence[Any]) -> list[Any]:
    """What each of `works`, called with a seat in a thread of its own, returns or raises."""
    ready = threading.Barrier(len(works))

    def one(work: Any) -> Any:
        try:
            with meeting.seat() as seat:
                ready.wait(SOON)
                return work(seat)
        except Exception as error:  # noqa: BLE001
            return error

    with meeting, ThreadPoolExecutor(len(works)) as threads:
        return [found.result(SOON) for found in [threads.submit(one, work) for work in works]]


def asks(launch: Recorder, *numbers: int, kind: str = "", working: float = 0.05) -> Any:
    """A layer that asks for `numbers` one after the other."""

    def work(seat: Seat) -> list[int]:
        found = []
        for number in numbers:
            time.sleep(working)
            found.append(seat._asked(launch, kind, number))
        return found

    return work


def test_all_who_are_there_go_together() -> None:
    launch = Recorder()
    found = all_at(Meeting(CPU), [asks(launch, n, 10 * n, working=0.2) for n in range(8)])
    assert found == [[n**2, 100 * n**2] for n in range(8)]
    assert launch.together == [list(range(8)), [10 * n for n in range(8)]]


def test_other_kinds_go_beside_each_other() -> None:
    launch = Recorder()
    works = [asks(launch, n, kind="odd" if n % 2 else "even", working=0.2) for n in range(6)]
    assert all_at(Meeting(CPU), works) == [[n**2] for n in range(6)]
    assert sorted(launch.together) == [[0, 2, 4], [1, 3, 5]]


def test_those_who_leave_are_not_waited_for() -> None:
    launch = Recorder()

    def leaves(_: Seat) -> str:
        time.sleep(0.1)
        return "left"

    def breaks(_: Seat) -> str:
        time.sleep(0.1)
        raise KeyError

    # The others have worked for so long that they would wait for a minute.
    def patient(seat: Seat) -> int:
        seat._since -= 60.0
        answer: int = seat._asked(launch, "", 3)
        return answer

    found = all_at(Meeting(CPU), [leaves, patient, breaks, patient])
    assert found[0] == "left"
    assert isinstance(found[2], KeyError)
    assert (found[1], found[3]) == (9, 9)
    assert launch.together == [[3, 3]]


def test_nobody_waits_longer_than_it_has_worked() -> None:
    launch = Recorder()
    release = threading.Event()

    def slow(_: Seat) -> bool:
        return release.wait(SOON)

    def quick(seat: Seat) -> int:
        begun = time.monotonic()
        answer: int = asks(launch, 5, working=0.2)(seat)[0]
        assert time.monotonic() - begun < 5
        release.set()
        return answer

    assert all_at(Meeting(CPU), [slow, quick]) == [True, 25]


def test_what_arrives_during_a_launch_goes_with_the_next() -> None:
    launch = Recorder(seconds=0.1)
    found = all_at(Meeting(CPU), [asks(launch, *range(n, n + 20, 5), working=0.01 * n) for n in range(5)])
    assert found == [[number**2 for number in range(n, n + 20, 5)] for n in range(5)]
    assert sorted(number for together in launch.together for number in together) == list(range(20))
    assert len(launch.together) < 20


def test_one_that_fails_does_not_cost_the_others() -> None:
    launch = Recorder()
    found = all_at(Meeting(CPU), [asks(launch, n if n != 5 else -5, working=0.2) for n in range(8)])
    assert isinstance(found[5], ArithmeticError)
    assert [answer for n, answer in enumerate(found) if n != 5] == [[n**2] for n in range(8) if n != 5]


class Broken(Device):
    """A card on which every launch ends with `DeviceError`, as `Device.activate` makes it of what CuPy raises."""

    cause: BaseException | None = None
    most = 0

    def activate(self) -> AbstractContextManager[Any]:
        @contextmanager
        def entered() -> Any:
            try:
                yield
            except MemoryError as error:
                msg = "full"
                raise DeviceError(msg) from error
            except OSError as error:
                msg = "gone"
                raise DeviceError(msg) from error

        return entered()


def test_a_card_that_is_gone_fails_for_all() -> None:
    tried = []

    def launch(_: Device, numbers: Sequence[int]) -> list[int]:
        tried.append(len(numbers))
        raise OSError

    found = all_at(
        Meeting(Broken(CPU.xp, "cpu", "gpu:0")),
        [asks(launch, n, working=0.2) for n in range(4)],  # type: ignore[arg-type]
    )
    assert [str(error) for error in found] == ["gone"] * 4
    assert tried == [4]


def test_a_card_that_is_full_has_fewer_at_a_time() -> None:
    tried = []

    def launch(_: Device, numbers: Sequence[int]) -> list[int]:
        tried.append(len(numbers))
        if len(numbers) > 2:
            raise MemoryError
        return [number**2 for number in numbers]

    found = all_at(
        Meeting(Broken(CPU.xp, "cpu", "gpu:0")),
        [asks(launch, n, working=0.2) for n in range(8)],  # type: ignore[arg-type]
    )
    assert found == [[n**2] for n in range(8)]
    assert sorted(tried) == [2, 2, 2, 2, 4, 4, 8]


@given(
    st.lists(
        st.tuples(st.lists(st.integers(-3, 9), max_size=4), st.integers(0, 3), st.sampled_from("ab")),
        min_size=1,
        max_size=7,
    )
)
@examples(max_examples=40, deadline=None)
def test_whatever_they_do_all_end(plans: list[tuple[list[int], int, str]]) -> None:
    launch = Recorder()
    meeting = Meeting(replace(CPU))
    works = [asks(launch, *numbers, kind=kind, working=0.001 * pause) for numbers, pause, kind in plans]
    before = threading.active_count()
    for (numbers, _, _), found in zip(plans, all_at(meeting, works), strict=True):
        if any(number < 0 for number in numbers):
            assert isinstance(found, ArithmeticError)
        else:
            assert found == [number**2 for number in numbers]
    assert threading.active_count() == before
    assert meeting._present == 0
    assert not meeting._waiting


@pytest.mark.parametrize("count", [1, 2])
def test_a_meeting_of_few_does_not_wait(count: int) -> None:
    launch, begun = Recorder(), time.monotonic()
    works = [asks(launch, 1, 2, 3, working=0.0)] * count
    assert all_at(Meeting(CPU), works) == [[1, 4, 9]] * count
    assert time.monotonic() - begun < 5
