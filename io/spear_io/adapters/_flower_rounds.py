"""A round of federated training as a dump, whichever of Flower's interfaces it came through."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flwr

from spear_io.files.dump import RecordInfo
from spear_io.files.dump_writer import Follows

from ._arrays import Arrays, differences, update_of
from ._flower_models import update_of_model
from ._layers import Activations, check_names, follow
from ._round import RoundWriter, Update

PRODUCER = f"flwr {flwr.__version__}"

RATE_NAMES = ("lr", "learning-rate", "learning_rate")
"""What a train configuration may call the learning rate."""


@dataclass(frozen=True)
class Reply:
    """What came back from one client."""

    client: int | str
    before: Arrays
    """The parameters that it was sent, by their names or positions."""
    after: Arrays
    examples: int | None
    """How many it was trained on, as it says."""
    learning_rate: float | None


class RoundDumps:
    """The dumping half of a strategy: where the files go, and what is known of the model and the clients.

    Parameters
    ----------
    strategy : Strategy
        The strategy that does the rest.
    folder : path
        Where to write `round-1.h5`, `round-2.h5`, …; created if it is not there.
    names : sequence of str, optional
        Names of the parameters in the order in which they are sent, e.g. ``list(model.state_dict())``. By default
        those that they are sent with, or their positions.
    learning_rate : float, optional
        Of the clients' plain SGD. Defaults to "lr" or "learning-rate" in the train configuration.
    weight_decay : float, optional
        λ of their SGD, of each step, if it is known. By default it is told from the updates themselves.
    local_steps : int, optional
        How many steps a client takes in a round. If it is one, the number of examples in a reply is the batch size.
    order : sequence of str, optional
        Names of the layers in forward order; others are left out.
    activations : mapping, optional
        What is applied to the output of layers, by name: a name, or ``spear_np.Activation(name, {parameter: …})``. By
        default what `model` shows; without it, a ReLU follows all but the last.
    follows : bool or mapping, optional
        Which layers take, exactly, the activated output of which, with nothing in between. By default what `model`
        shows; without it, nothing. True: each that of the one before it, but where something is seen in between. A
        mapping, e.g. ``{"fc2": "fc1"}``, decides for the layers that it names. False: none.
    model : keras.Model or torch.nn.Module, optional
        The network that is trained: tells how its parameters are used. A Keras model has them in the order of
        `get_weights`; a PyTorch model is called once with `example`, in the mode in which it is.
    example : tensor or tuple, optional
        What a PyTorch model can be called with, of any values; nothing of it is written.
    loss : str, optional
        What the clients minimise, e.g. "cross_entropy".
    transposed : bool, optional
        Whether matrices are (input features, output units), as in Keras and Flax. By default the length of the bias
        decides, or else the name.
    """

    def __init__(
        self,
        strategy: Any,
        folder: str | Path,
        *,
        names: Sequence[str] | None = None,
        learning_rate: float | None = None,
        weight_decay: float | None = None,
        local_steps: int | None = None,
        order: Sequence[str] | None = None,
        activations: Activations | None = None,
        follows: Follows = None,
        model: Any = None,
        example: Any = None,
        loss: str | None = None,
        transposed: bool | None = None,
    ) -> None:
        self.strategy = strategy
        self.folder = Path(folder)
        self._names = names
        self._learning_rate = learning_rate
        self._weight_decay = weight_decay
        self._local_steps = local_steps
        self._order = order
        self._activations = activations
        self._follows = follows
        self._model = model
        self._example = example
        self._loss = loss
        self._transposed = transposed

    def _write(self, server_round: int, replies: Iterable[Reply]) -> None:
        """Write one file with a record for each reply."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with RoundWriter(self.folder / f"round-{server_round}.h5", producer=PRODUCER) as dump:
            for reply in replies:
                self._add(dump, server_round, reply)

    def _add(self, dump: RoundWriter, server_round: int, reply: Reply) -> None:
        before, after = self._named(reply.before), self._named(reply.after)
        update = self._update(before, after)
        update.producer = PRODUCER
        update.info = RecordInfo(
            update="weight_delta",
            learning_rate=self._learning_rate or reply.learning_rate,
            weight_decay=self._weight_decay,
            local_steps=self._local_steps,
            batch_size=reply.examples if self._local_steps == 1 else None,
            loss=self._loss,
            client=reply.client,
            round=server_round,
        )
        dump.add(f"client-{reply.client}", update)

    def _update(self, before: Arrays, after: Arrays) -> Update:
        """Return what changed, read as the model tells, or by names and shapes alone."""
        if self._model is not None:
            update = update_of_model(self._model, before, after, self._example, self._activations)
            if self._order is not None:
                check_names(self._order, update.layers, "order")
                update.layers = {name: update.layers[name] for name in self._order}
            update.layers = follow(update.layers, self._follows)
            return update
        return update_of(
            before,
            differences(before, after),
            producer=PRODUCER,
            order=self._order,
            activations=self._activations,
            follows=self._follows,
            transposed=self._transposed,
        )

    def _named(self, arrays: Arrays) -> Arrays:
        names = list(arrays) if self._names is None else self._names
        if len(names) != len(arrays):
            msg = f"`names` has {len(names)} names, but {len(arrays)} parameters are sent"
            raise ValueError(msg)
        return dict(zip(names, arrays.values(), strict=True))


def stated_rate(config: Mapping[str, Any]) -> float | None:
    """Return the learning rate in the configuration that clients are sent, if it is there."""
    return next((config[name] for name in RATE_NAMES if isinstance(config.get(name), float)), None)
