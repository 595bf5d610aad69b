"""Who works: this process, processes beside it, or the workers of a Dask cluster, all with the face of `concurrent.futures`."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from ..problems import cause, printable
from .workers import Worker, Workers, processors

if TYPE_CHECKING:
    from distributed import Client

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

ANSWERING = 15.0
"""Seconds within which a scheduler must answer."""


class ExecutorError(RuntimeError):
    """Whoever should work does not, or no longer; one line."""


@dataclass(frozen=True)
class Crew:
    """Those who work."""

    executor: Executor
    room: int
    """How many tasks to hand over at a time: enough that nobody waits, and no more."""
    here: bool = False
    """Whether they are done in this process, one after the other."""


class Here(Executor):
    """Does at once, in this process, what it is given."""

    def submit(
        self, fn: Callable[Arguments, Result], /, *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Future[Result]:
        """Call `fn` and return when it is done."""
        future: Future[Result] = Future()
        future.set_running_or_notify_cancel()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001  (handed on)
            future.set_exception(error)
        return future


def crew_of(executor: Executor | None) -> Crew:
    """Return those who work for an executor of anybody's; without one, this process."""
    if executor is None:
        return Crew(Here(), 1, here=True)
    if isinstance(executor, Workers):
        return Crew(executor, 2 * executor.count)
    return Crew(executor, 2 * processors())


@contextmanager
def hired(jobs: int | None, dask: str | None) -> Iterator[Crew]:
    """Yield processes of this machine, the workers of a Dask cluster, or this process, until the block ends.

    Parameters
    ----------
    jobs : int, optional
        How many processes.
    dask : str, optional
        Address of a scheduler, as "tcp://10.0.0.1:8786", or the file that it was told to write.

    Raises
    ------
    ExecutorError
        If `dask` is not installed, the scheduler does not answer, or it has no workers.
    """
    if dask is not None:
        with _connected(dask) as client:
            yield dask_crew(client)
    elif jobs is not None:
        workers = Workers(jobs)
        try:
            yield crew_of(workers)
        except BaseException:
            workers.shutdown(wait=False, cancel_futures=True)
            raise
        workers.shutdown()
    else:
        yield crew_of(None)


class DaskWorkers(Executor):
    """The workers of a Dask cluster; each reads files in a process of its own, under the limits for strangers' files.

    Parameters
    ----------
    client : distributed.Client
        Connected.
    """

    def __init__(self, client: Client) -> None:
        # One call may not be done twice at once, nor be answered by an earlier one of the same arguments.
        self._executor = client.get_executor(pure=False)

    def submit(
        self, fn: Callable[Arguments, Result], /, *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Future[Result]:
        """Call `fn`, importable by its name, on one of the workers."""
        future: Future[Result] = self._executor.submit(apart, fn, *args, **kwargs)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Let go of the cluster, which goes on."""
        self._executor.shutdown(wait=wait)


def dask_crew(client: Client) -> Crew:
    """Return those who work behind a connected client.

    Raises
    ------
    ExecutorError
        If there is nobody.
    """
    threads = sum(client.nthreads().values())
    if not threads:
        msg = f"the Dask scheduler at {client.scheduler.address} has no workers: start some, e.g. with 'dask worker'"
        raise ExecutorError(msg)
    return Crew(DaskWorkers(client), 2 * threads)


_own = threading.local()


def apart(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Call a function in a process that belongs to this thread, and is started when it is first needed."""
    worker: Worker | None = getattr(_own, "worker", None)
    if worker is None or not worker.alive:
        worker = _own.worker = Worker()
    return worker.call(function, *arguments, **options)


@contextmanager
def _connected(address: str) -> Iterator[Client]:
    try:
        from distributed import Client
    except ImportError as error:
        msg = "Dask is not installed: pip install 'spear-np[dask]'"
        raise ExecutorError(msg) from error
    try:
        # Of a file that is not there Dask would wait for ever.
        found = address if ":" in address else json.loads(Path(address).read_bytes())["address"]
        client = Client(found, timeout=ANSWERING, set_as_default=False)
    except (OSError, ValueError, TypeError, KeyError) as error:  # nobody there, no such file, no address
        msg = f"no Dask scheduler answers at {printable(address)} ({cause(error)})"
        raise ExecutorError(msg) from error
    with client:
        yield client
