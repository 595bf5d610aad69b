"""Many records on a card: read one by one, inverted together, and each answer safe as soon as it is there."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from spear_io import DumpWriter, Inverted, LayerArrays, RecordInfo, invert_dumps, open_inversion
from spear_io.many import together
from spear_io.many.run import Nobody
from spear_io.many.selection import Task
from spear_io.many.task import Done
from spear_io.many.task import invert_task as invert_one
from spear_np import DeviceError
from spear_np.backend.devices import device_for
from spear_np.layer.problem import layer_readings as layer_readings_of_layers
from spear_np.search import blocks as blocks_module
from spear_np.search import together as meetings
from spear_np.search.reflections import walk_on as walk_on_module
from tests.cards import Card, strict_card
from tests.chains import digit_network
from tests.federations import write_federation

RECORDS = 7

pytestmark = pytest.mark.skipif(os.name != "posix", reason="locks of POSIX")


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    path = tmp_path / "dump.h5"
    write_federation(path, RECORDS)
    return path


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    card = strict_card()

    def found(name: str | None, *_: Any) -> Any:
        return card if name == "gpu" else device_for(name)

    for module in ("spear_np.many", "spear_np.invert", "spear_io.many.task"):
        monkeypatch.setattr(sys.modules[module], "device_for", found)
    return card


def inverted(dump: Path, out: Path, **options: Any) -> Inverted:
    return invert_dumps(dump, out, device="gpu", **options)


def answers(path: Path) -> dict[str, tuple[str, int]]:
    with open_inversion(path) as inversion:
        return {layer.record: (str(layer.status), int(layer.found)) for layer in inversion.layers}


def test_the_answers_are_those_of_the_host(dump: Path, card: Card, tmp_path: Path) -> None:
    there = inverted(dump, tmp_path / "card.h5")
    assert there.statuses == {"exact": RECORDS}
    invert_dumps(dump, tmp_path / "host.h5")
    assert answers(tmp_path / "card.h5") == answers(tmp_path / "host.h5")
    with open_inversion(tmp_path / "card.h5") as one, open_inversion(tmp_path / "host.h5") as other:
        for mine, theirs in zip(one.layers, other.layers, strict=True):
            assert mine.record == theirs.record
            found, wanted = np.asarray(mine.inputs[...]), np.asarray(theirs.inputs[...])
            order = np.argmax(found @ wanted.T / np.linalg.norm(wanted, axis=1), axis=1)
            np.testing.assert_allclose(found, wanted[order], atol=1e-4)


def test_they_share_launches(dump: Path, card: Card, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[int] = []

    def descend(device: Any, blocks: Sequence[Any]) -> list[Any]:
        launched.append(len(blocks))
        return blocks_module.descend(device, blocks)

    monkeypatch.setattr(meetings, "descend", descend)
    inverted(dump, tmp_path / "out.h5", method="descent")
    assert max(launched) > 1


def test_records_that_cannot_be_used_do_not_cost_the_others(dump: Path, card: Card, tmp_path: Path) -> None:
    with h5py.File(dump, "r+") as file:
        names = list(file["records"])
        layers = [next(iter(file["records"][name]["layers"].values())) for name in names]
        layers[1]["weight_grad"][3, 5] = np.nan
        del layers[4]["weight_grad"]
        layers[4].create_dataset(
            "weight_grad", (60_000, 60_000), np.float32, chunks=(100, 100), compression=1
        )
        for name in ("weight", "bias", "bias_grad"):
            layers[4].pop(name, None)
    done = inverted(dump, tmp_path / "out.h5")
    assert done.statuses == {"exact": RECORDS - 2}
    assert {one.record for one in done.unread} == {names[1], names[4]}
    said = " ".join(str(one.error) for one in done.unread)
    assert "holds NaN at row 3, column 5" in said
    assert "60000" in said


def test_a_search_that_fails_is_that_of_its_record(
    dump: Path, card: Card, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, failing = layer_readings_of_layers, []

    def layer_readings(gradients: Any, *arguments: Any, **options: Any) -> Any:
        failing.append(gradients)
        if len(failing) == 3:
            msg = "no luck"
            raise ArithmeticError(msg)
        return plain(gradients, *arguments, **options)

    monkeypatch.setattr(sys.modules["spear_np.invert"], "layer_readings", layer_readings)
    done = inverted(dump, tmp_path / "out.h5")
    assert done.statuses == {"exact": RECORDS - 1}
    assert [str(one.error) for one in done.unread] == ["no luck"]


@pytest.fixture
def chains(tmp_path: Path) -> Path:
    """Records of three layers that follow each other, and one of a layer alone."""
    path = tmp_path / "chains.h5"
    with DumpWriter(path) as out:
        for number, activation in enumerate(("relu", "gelu", "relu", "relu")):
            data = digit_network(4, widths=(40, 30), activation=activation, seed=number, dtype=np.float32)
            layers = {
                name: LayerArrays(
                    layer.weight_grad,
                    layer.bias_grad,
                    layer.weight,
                    layer.bias,
                    activation=layer.sigma,
                    follows=before,
                )
                for name, before, layer in zip("abc", (None, "a", "b"), data.layers, strict=True)
            }
            info = RecordInfo(client=f"client-{number}", loss="cross_entropy")
            out.add_record(f"record-{number}", layers if number < 3 else {"a": layers["a"]}, info=info)
    return path


def test_layers_that_follow_are_used_together_as_on_the_host(
    chains: Path, card: Card, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched: list[int] = []

    def walk_on(device: Any, walks: Sequence[Any]) -> list[Any]:
        launched.append(len(walks))
        return walk_on_module(device, walks)

    monkeypatch.setattr(meetings, "walk_on", walk_on)
    monkeypatch.setattr(together, "invert_task", lambda *_, **__: pytest.fail("one by one"))
    assert inverted(chains, tmp_path / "card.h5").statuses == {"exact": 4}
    assert launched
    invert_dumps(chains, tmp_path / "host.h5")
    with open_inversion(tmp_path / "card.h5") as one, open_inversion(tmp_path / "host.h5") as other:
        for mine, theirs in zip(one.layers, other.layers, strict=True):
            assert (mine.record, mine.chain, mine.status) == (theirs.record, theirs.chain, theirs.status)
            assert len(mine.chain) == (0 if mine.record == "record-3" else 3)
            found, wanted = np.asarray(mine.inputs[...]), np.asarray(theirs.inputs[...])
            order = np.argmax(found @ wanted.T / np.linalg.norm(wanted, axis=1), axis=1)
            np.testing.assert_allclose(found, wanted[order], atol=1e-4)


@pytest.mark.parametrize("limit", ["READ_BYTES", "READ_AHEAD", "HOST_UNITS"])
def test_chains_too_large_to_be_read_ahead_wait_or_go_alone(
    chains: Path, card: Card, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    monkeypatch.setattr(together, limit, 1)
    assert inverted(chains, tmp_path / "out.h5", method="chain", records=["record-[0-2]"]).statuses == {
        "exact": 3
    }


def test_what_is_wrong_with_a_chain_is_said_of_its_record(chains: Path, card: Card, tmp_path: Path) -> None:
    with h5py.File(chains, "r+") as file:
        file["records/record-0/layers/a/weight_grad"][3, 5] = np.nan
        file["records/record-1/layers/b/weight_grad"][3, 5] = np.nan
    done = inverted(chains, tmp_path / "card.h5", method="chain")
    said = {one.record: str(one.error) for one in done.unread}
    assert "holds NaN at row 3, column 5" in said["record-0"]
    assert "no layer follows it" in said["record-3"]
    assert answers(tmp_path / "card.h5") == {"record-1": ("failed", 0), "record-2": ("exact", 4)}
    host = invert_dumps(chains, tmp_path / "host.h5", method="chain")
    assert {one.record: str(one.error) for one in host.unread} == said
    assert answers(tmp_path / "host.h5") == answers(tmp_path / "card.h5")


class Watch(Nobody):
    """Remembers what was begun; raises once some layers are done, if it is to."""

    def __init__(self, left: int = 100) -> None:
        self.left = left
        self.started: list[int] = []

    def start(self, task: Task) -> None:
        self.started.append(task.number)

    def end(self, task: Task, done: Done) -> None:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


def test_what_is_finished_is_kept_and_a_later_run_goes_on(
    dump: Path, card: Card, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(together, "READ_AHEAD", 2)
    watch, again, out = Watch(), Watch(), tmp_path / "out.h5"
    done = inverted(dump, out, audience=watch, stop=lambda: len(watch.started) > 2)
    assert done.journal is not None
    assert len(watch.started) == 4  # two at a time: of these two are done, and two were not begun
    assert done.unfinished == RECORDS - 2
    assert inverted(dump, out, resume=True, audience=again).statuses == {"exact": RECORDS}
    assert len(again.started) == RECORDS - 2


def test_a_kill_loses_nothing_that_was_done(dump: Path, card: Card, tmp_path: Path) -> None:
    out = tmp_path / "out.h5"
    with pytest.raises(KeyboardInterrupt, match=r"\d of 7 layers are finished and kept"):
        inverted(dump, out, audience=Watch(3))
    again = Watch()
    assert inverted(dump, out, resume=True, audience=again).statuses == {"exact": RECORDS}
    assert len(again.started) <= RECORDS - 3


def test_a_card_that_does_not_answer_ends_the_run(
    dump: Path, card: Card, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def descend(*_: Any) -> list[Any]:
        msg = "gpu:0 is gone"
        raise DeviceError(msg)

    monkeypatch.setattr(meetings, "descend", descend)
    with pytest.raises(DeviceError, match="gone"):
        inverted(dump, tmp_path / "out.h5", method="descent")
    assert not (tmp_path / "out.h5").exists()


def test_large_layers_go_alone(
    dump: Path, card: Card, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(together, "HOST_UNITS", 1)
    alone: list[int] = []

    def invert_task(task: Task, *arguments: Any, **options: Any) -> Done:
        alone.append(task.number)
        return invert_one(task, *arguments, **options)

    monkeypatch.setattr(together, "invert_task", invert_task)
    assert inverted(dump, tmp_path / "out.h5").statuses == {"exact": RECORDS}
    assert sorted(alone) == list(range(RECORDS))
