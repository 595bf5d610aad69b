"""From a Flower server to gradient dumps: every client's update of every round, one file a round.

::

    from spear_io.adapters.to_flower import DumpUpdates

    strategy = DumpUpdates(FedAvg(), "updates", local_steps=1)
    strategy.start(grid, initial_arrays=ArrayRecord(model.state_dict()), train_config=ConfigRecord({"lr": 0.1}))

Every strategy can be wrapped, and trains as it would alone. `updates/round-1.h5` then holds a record for each client
that replied, and the model that they were sent once. Parameters without names (lists of NumPy arrays) are paired by
their positions and shapes. How they are used, the network itself tells: `model=model`, and for PyTorch
`example=images`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

try:
    from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
    from flwr.common import EvaluateIns, EvaluateRes, FitIns, FitRes, Parameters, parameters_to_ndarrays
    from flwr.server import ClientManager
    from flwr.server.client_proxy import ClientProxy
    from flwr.server.strategy import Strategy as FitStrategy
    from flwr.serverapp import Grid
    from flwr.serverapp.strategy import Strategy
except ImportError as error:
    msg = "Flower is not installed: pip install 'spear-np[flower]'"
    raise ImportError(msg) from error

from ._arrays import Arrays
from ._flower_rounds import Reply, RoundDumps, stated_rate
from ._round import RecordingError

__all__ = ["DumpFits", "DumpUpdates", "RecordingError", "RoundDumps"]

EXAMPLES = "num-examples"
"""What a reply calls the number of examples it was trained on."""


class DumpUpdates(RoundDumps, Strategy):  # type: ignore[misc]
    """A strategy of `flwr.serverapp.strategy` that does what another one does, and dumps what it is sent.

    The parameters are those of `RoundDumps`.

    Raises
    ------
    ValueError, RecordingError, FileError
        In the first round, if `names`, `order`, `activations`, `follows` or `model` do not fit what is sent, or nothing tells how a
        matrix lies; in any round, if a client sends back something else than it was sent, or a file cannot be written.
    """

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Remember what each client is sent."""
        messages: Sequence[Message] = list(self.strategy.configure_train(server_round, arrays, config, grid))
        self._sent = {message.metadata.dst_node_id: _arrays(message) for message in messages}
        self._rate = stated_rate(config)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Dump the replies, and hand them on."""
        replies = list(replies)
        good = [reply for reply in replies if not reply.has_error()]
        if good:
            self._write(server_round, self._read(good))
        aggregated: tuple[Any, Any] = self.strategy.aggregate_train(server_round, replies)
        return aggregated

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """As the wrapped strategy."""
        messages: Iterable[Message] = self.strategy.configure_evaluate(server_round, arrays, config, grid)
        return messages

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """As the wrapped strategy."""
        return self.strategy.aggregate_evaluate(server_round, replies)

    def summary(self) -> None:
        """As the wrapped strategy."""
        self.strategy.summary()

    def _read(self, replies: Iterable[Message]) -> Iterator[Reply]:
        for reply in replies:
            client, metrics = reply.metadata.src_node_id, reply.content.metric_records.values()
            yield Reply(
                client=client,
                before={name: array.numpy() for name, array in self._sent[client].items()},
                after={name: array.numpy() for name, array in _arrays(reply).items()},
                examples=next((values[EXAMPLES] for values in metrics if EXAMPLES in values), None),
                learning_rate=self._rate,
            )


class DumpFits(RoundDumps, FitStrategy):  # type: ignore[misc]
    """The same for a strategy of `flwr.server.strategy`, with `configure_fit` and `aggregate_fit`.

    The parameters are those of `RoundDumps`, and the errors those of `DumpUpdates`.
    """

    def initialize_parameters(self, client_manager: ClientManager) -> Parameters | None:
        """As the wrapped strategy."""
        return self.strategy.initialize_parameters(client_manager)

    def configure_fit(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, FitIns]]:
        """Remember what each client is sent."""
        sent: list[tuple[ClientProxy, FitIns]] = self.strategy.configure_fit(
            server_round, parameters, client_manager
        )
        self._sent = {client.cid: instructions for client, instructions in sent}
        return sent

    def aggregate_fit(
        self,
        server_round: int,
        results: list[tuple[ClientProxy, FitRes]],
        failures: list[tuple[ClientProxy, FitRes] | BaseException],
    ) -> tuple[Parameters | None, dict[str, Any]]:
        """Dump the results, and hand them on."""
        if results:
            self._write(server_round, self._read(results))
        aggregated: tuple[Any, dict[str, Any]] = self.strategy.aggregate_fit(server_round, results, failures)
        return aggregated

    def configure_evaluate(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, EvaluateIns]]:
        """As the wrapped strategy."""
        sent: list[tuple[ClientProxy, EvaluateIns]] = self.strategy.configure_evaluate(
            server_round, parameters, client_manager
        )
        return sent

    def aggregate_evaluate(
        self,
        server_round: int,
        results: list[tuple[ClientProxy, EvaluateRes]],
        failures: list[tuple[ClientProxy, EvaluateRes] | BaseException],
    ) -> tuple[float | None, dict[str, Any]]:
        """As the wrapped strategy."""
        aggregated: tuple[float | None, dict[str, Any]] = self.strategy.aggregate_evaluate(
            server_round, results, failures
        )
        return aggregated

    def evaluate(self, server_round: int, parameters: Parameters) -> tuple[float, dict[str, Any]] | None:
        """As the wrapped strategy."""
        evaluated: tuple[float, dict[str, Any]] | None = self.strategy.evaluate(server_round, parameters)
        return evaluated

    def _read(self, results: Iterable[tuple[ClientProxy, FitRes]]) -> Iterator[Reply]:
        for client, result in results:
            instructions = self._sent[client.cid]
            yield Reply(
                client=client.cid,
                before=_by_position(instructions.parameters),
                after=_by_position(result.parameters),
                examples=result.num_examples,
                learning_rate=stated_rate(instructions.config),
            )


def _arrays(message: Message) -> ArrayRecord:
    """Return the parameters in a message: the first record of arrays, which strategies send before any other."""
    return next(iter(message.content.array_records.values()))


def _by_position(parameters: Parameters) -> Arrays:
    return {str(position): array for position, array in enumerate(parameters_to_ndarrays(parameters))}
