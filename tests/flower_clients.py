"""Flower clients in this process: each takes one step of SGD on images of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity
from torch import nn

from tests.networks import Floats, digit_batch

B = 5
IDS = (11, 22, 2**64 - 1)


def pretend_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give this process what Flower's messages carry: the number of the run that they belong to."""
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def network() -> Any:
    torch.manual_seed(17)
    return nn.Sequential(nn.Linear(64, 80), nn.ReLU(), nn.Linear(80, 70), nn.ReLU(), nn.Linear(70, 10))


def client_batch(client: int) -> tuple[Floats, Floats]:
    """Return the images (b, 64) and labels (b,) of one client."""
    return digit_batch(B, seed=IDS.index(client))


def train(arrays: ArrayRecord, client: int, learning_rate: float) -> ArrayRecord:
    """Return the parameters after one step of plain SGD on the client's batch."""
    model = network()
    values = [torch.tensor(array.numpy()) for array in arrays.values()]
    model.load_state_dict(dict(zip(model.state_dict(), values, strict=True)))
    inputs, labels = (torch.tensor(values) for values in client_batch(client))
    nn.functional.cross_entropy(model(inputs), labels).backward()
    torch.optim.SGD(model.parameters(), lr=learning_rate).step()
    trained = [values.numpy() for values in model.state_dict().values()]
    return ArrayRecord(dict(zip(arrays, ArrayRecord(trained).values(), strict=True)))


class Clients(Grid):  # type: ignore[misc]
    """The interface through which a Flower server reaches its clients, and the clients behind it."""

    def __init__(self, train: Callable[..., ArrayRecord] = train, failing: int | None = None) -> None:
        self._train = train
        self._failing = failing

    def get_node_ids(self) -> Iterable[int]:
        return IDS

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        return [self._reply(message) for message in messages]

    def _reply(self, message: Message) -> Message:
        client = message.metadata.dst_node_id
        if client == self._failing:
            return Message(Error(code=0, reason="out of battery"), reply_to=message)
        content = RecordDict({"metrics": MetricRecord({"num-examples": B})})
        if message.metadata.message_type == "train":
            content["arrays"] = self._train(
                message.content["arrays"], client, message.content["config"]["lr"]
            )
        return Message(content, reply_to=message)

    def _unused(self, *arguments: Any, **options: Any) -> Any:
        raise NotImplementedError

    run = property(_unused)
    set_run = create_message = push_messages = pull_messages = _unused
