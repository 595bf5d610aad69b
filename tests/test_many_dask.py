"""The same records on a real Dask cluster: two workers in processes of their own, one of which is killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from spear_io import invert_dumps
from spear_io.many.executors import ExecutorError, dask_crew, hired
from spear_io.many.run import Nobody
from spear_io.many.selection import Task
from spear_io.many.task import Done
from tests.federations import beside, timeless, write_federation
from tests.io_files import Command, command

distributed = pytest.importorskip("distributed")

# Dask is a guest here: what it warns of is its own business.
pytestmark = pytest.mark.filterwarnings("ignore")

RECORDS = 8


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    ) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def client(cluster: Any) -> Iterator[Any]:
    with distributed.Client(cluster, set_as_default=False) as client:
        client.wait_for_workers(2, timeout=60)
        yield client


@pytest.fixture(scope="module")
def dump(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("federation") / "dump.h5"
    write_federation(path, RECORDS)
    return path


@pytest.fixture
def spear(capsys: pytest.CaptureFixture[str]) -> Command:
    return command(capsys)


def test_a_cluster_gives_the_same_file(
    spear: Command, cluster: Any, client: Any, dump: Path, tmp_path: Path
) -> None:
    here, out = tmp_path / "here.h5", tmp_path / "out.h5"
    invert_dumps(dump, here)
    run = spear("invert", dump, "-o", out, "--dask", cluster.scheduler_address)
    assert run.status == 0, run.err
    assert timeless(out) == timeless(here)
    assert beside(out, [here]) == []


def test_a_worker_that_is_killed_costs_no_record(client: Any, dump: Path, tmp_path: Path) -> None:
    here, out = tmp_path / "here.h5", tmp_path / "out.h5"
    invert_dumps(dump, here)
    processes = client.run(os.getpid)
    assert len(set(processes.values())) == 2
    killed: list[int] = []

    class Kills(Nobody):
        def end(self, task: Task, done: Done) -> None:
            assert done.error is None
            if not killed:
                killed.append(next(iter(processes.values())))
                os.kill(killed[0], signal.SIGKILL)

    done = invert_dumps(dump, out, executor=dask_crew(client).executor, audience=Kills())
    assert killed
    assert done.unread == ()
    assert timeless(out) == timeless(here)


def test_dumps_are_read_apart_from_the_worker(client: Any) -> None:
    executor = dask_crew(client).executor
    inside = executor.submit(os.getpid).result(timeout=60)
    assert inside not in client.run(os.getpid).values()


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("tcp://127.0.0.1:1", "no Dask scheduler answers at tcp://127.0.0.1:1"),
        ("nowhere.json", "no Dask scheduler answers at nowhere.json"),
        ("magic://x", "no Dask scheduler answers at magic://x"),
    ],
)
def test_a_scheduler_that_is_not_there_is_one_line(
    monkeypatch: pytest.MonkeyPatch, spear: Command, dump: Path, tmp_path: Path, address: str, message: str
) -> None:
    monkeypatch.setattr("spear_io.many.executors.ANSWERING", 1.0)
    run = spear("invert", dump, "-o", tmp_path / "out.h5", "--dask", address)
    assert run.status == 1
    assert message in run.error
    assert list(tmp_path.iterdir()) == []


def test_a_scheduler_without_workers_is_one_line() -> None:
    with (
        distributed.LocalCluster(n_workers=0, processes=False, dashboard_address=None) as empty,
        pytest.raises(ExecutorError, match="has no workers"),
        hired(None, empty.scheduler_address),
    ):
        pytest.fail("nobody is there")
