"""From PyTorch to a gradient dump: a training step, gradients of `torch.func`, or two states of the weights.

::

    from spear_io.adapters.to_torch import record_gradients

    with record_gradients(model) as recorder:
        loss = criterion(model(inputs), labels)
        loss.backward()
    recorder.write("dump.h5", labels=labels, input_shape=(1, 28, 28))

Every `nn.Linear` of the model is recorded, with the weights of the forward pass and the gradients as they are when
the block ends: clip them or add noise inside the block to dump what a client really shares. The model itself is left
as it was.

What stands between layers is told by following the values themselves (`_torch_watch` says how): the activation of
each layer with its parameters, however it is called; the layer whose activated output is its input, if nothing else
happens on the way; the names of what does happen; and the loss.

Whoever has gradients or weights in hand already::

    from_gradients(model, torch.func.grad(loss)(parameters), inputs=inputs).write("dump.h5")
    from_weights(model, before, after, learning_rate=0.1, inputs=inputs).write("dump.h5")
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

try:
    from torch import nn
except ImportError as error:
    msg = "PyTorch is not installed: pip install 'spear-np[torch]'"
    raise ImportError(msg) from error

from spear_io.files.dump import RecordInfo
from spear_io.files.dump_writer import NO_INFO
from spear_np import Activation

from . import _round
from ._round import RecordingError
from ._torch_named import Values, tensors_by_name
from ._torch_observers import linear_layers, observed
from ._torch_updates import PRODUCER, Recorder, update_of

__all__ = ["Recorder", "RecordingError", "RoundWriter", "from_gradients", "from_weights", "record_gradients"]


class RoundWriter(_round.RoundWriter):
    """Writes the updates of several clients into one dump; a model that they share is stored once.

    ::

        with RoundWriter("round-7.h5") as dump:
            for client in clients:
                with record_gradients(model) as recorder:
                    client.loss(model).backward()
                dump.add(client.name, recorder)
                model.zero_grad()

    Parameters
    ----------
    path : path
        Where; the file takes its name when the block ends well.
    compression : str, optional
        h5py's name of a built-in filter, e.g. "gzip".
    """

    def __init__(self, path: str | Path, *, compression: str | None = None) -> None:
        super().__init__(path, producer=PRODUCER, compression=compression)


@contextmanager
def record_gradients(
    model: nn.Module, *, layers: Iterable[str] | None = None, keep_inputs: bool = True, copy: bool = True
) -> Iterator[Recorder]:
    """Record what the fully connected layers of `model` share: one forward and backward pass inside the block.

    A layer that is called several times in the step has all its inputs in one gradient, and is recorded so: so is a
    layer that works on tokens, each of which counts as one input. Passes without gradients are ignored.

    Parameters
    ----------
    model : nn.Module
        Any model; what `torch.compile` has compiled runs uncompiled inside the block. Reentrant checkpoints and
        custom autograd functions hide what follows a layer: its activation is then "unknown".
    layers : iterable of str, optional
        Names of the layers to record, as in `model.named_modules()`. Defaults to every `nn.Linear`.
    keep_inputs : bool
        Whether to keep the true inputs of every layer, so that `spear-np evaluate` can tell how good an inversion is.
    copy : bool
        Whether to keep copies. False is for models that do not fit into memory twice: what is written are the tensors
        themselves, a block of rows at a time, so write them before the next step. What was changed in the meantime is
        refused; fused optimizers and `.data` hide their changes.

    Yields
    ------
    Recorder
        Complete after the block.

    Raises
    ------
    ValueError
        If `layers` names something that is no `nn.Linear` of the model.
    RecordingError
        From inside the block, if gradients of an earlier step are still there or the weights change between two
        forward passes.
    """
    recorder = Recorder()
    with observed(model, linear_layers(model, layers), keep_inputs=keep_inputs, copy=copy) as seen:
        yield recorder
    recorded = []
    for observer in seen.in_order():
        reason = observer.unusable()
        if reason is None:
            recorded.append(observer)
        else:
            recorder.skipped[observer.name] = reason
    links = seen.links(observer.name for observer in recorded)
    recorder.layers.update({observer.name: observer.arrays(links[observer.name]) for observer in recorded})
    recorder.info = seen.with_loss(recorder.info)


def from_gradients(
    model: nn.Module,
    gradients: Values,
    *,
    parameters: Values | None = None,
    inputs: Any = None,
    activations: Mapping[str, str | Activation] | None = None,
) -> Recorder:
    """Return an update of gradients, as `torch.func.grad` or `torch.autograd.grad` give them.

    Nothing is copied: write the update before the training goes on.

    Parameters
    ----------
    model : nn.Module
        Tells which parameters belong to fully connected layers; left as it was.
    gradients : mapping or sequence of tensors or arrays
        By the names of `model.named_parameters()`, where what `torch.compile` and the like put before them does not
        matter; or all in the order of `model.parameters()`. What is missing, or None, is skipped.
    parameters : mapping or sequence of tensors or arrays, optional
        Where the gradients were taken. Defaults to those of the model.
    inputs : tensor or tuple, optional
        What the model was called with. It is called once more with them, to see the order of the layers, what follows
        each and its true inputs; nothing is taken to follow its output. By default layers come in the order of the
        model, with a ReLU after all but the last, and none is said to follow another.
    activations : mapping, optional
        What follows layers, by name, where it is known better.

    Raises
    ------
    ValueError
        If `activations` names something that is no `nn.Linear` of the model.
    RecordingError
        If a gradient does not have the shape of its parameter, or names or numbers do not fit the model.
    """
    if parameters is None:
        known = {name: p.detach() for name, p in model.named_parameters()}
    else:
        known = tensors_by_name(model, parameters, "parameters")
    named = tensors_by_name(model, gradients, "gradients")
    alone = {name: (gradient, None) for name, gradient in named.items()}
    return update_of(model, known, alone, info=NO_INFO, inputs=inputs, activations=activations)


def from_weights(
    model: nn.Module,
    before: Values,
    after: Values,
    *,
    learning_rate: float | None = None,
    weight_decay: float | None = None,
    local_steps: int | None = None,
    inputs: Any = None,
    activations: Mapping[str, str | Activation] | None = None,
) -> Recorder:
    """Return an update of the weights before and after a client trained.

    Nothing is copied: write the update before the training goes on.

    Parameters
    ----------
    model : nn.Module
        Tells which parameters belong to fully connected layers; left as it was.
    before, after : mapping or sequence of tensors or arrays
        Two state dicts, or their values in their order. ``model.state_dict()`` is no copy:
        ``before = copy.deepcopy(model.state_dict())``.
    learning_rate : float, optional
        Of plain SGD. Without it everything but the scale of the gradient is known.
    weight_decay : float, optional
        λ of SGD, if it is known: of each step, if there are several. It counts only with `learning_rate`; by default the
        update itself tells it.
    local_steps : int, optional
        How many steps lie between the two.
    inputs, activations
        As for `from_gradients`.

    Raises
    ------
    ValueError
        If `activations` names something that is no `nn.Linear` of the model.
    RecordingError
        If the two are the same tensors, differ in shape, or do not fit the model.
    """
    before, after = tensors_by_name(model, before, "before"), tensors_by_name(model, after, "after")
    info = RecordInfo(
        update="weight_delta",
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        local_steps=local_steps,
    )
    differences = {name: (after[name], before[name]) for name in before.keys() & after.keys()}
    return update_of(model, before, differences, info=info, inputs=inputs, activations=activations)
