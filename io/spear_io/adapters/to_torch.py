"""From PyTorch to a gradient dump: a training step, gradients of `torch.func`, or two states of the weights.

::

    from spear_io.adapters.to_torch import record_gradients

    with record_gradients(model) as recorder:
        loss = criterion(model(inputs), labels)
        loss.backward()
    recorder.write("dump.h5", labels=labels, input_shape=(1, 28, 28))

Every `nn.Linear` of the model is recorded, wherever it is and however its ReLU is called, with the weights of the
forward pass and the gradients as they are when the block ends: clip them or add noise inside the block to dump what
a client really shares. The model itself is left as it was.

Whoever has gradients or weights in hand already::

    from_gradients(model, torch.func.grad(loss)(parameters), inputs=inputs).write("dump.h5")
    from_weights(model, before, after, learning_rate=0.1, inputs=inputs).write("dump.h5")
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

try:
    import torch
    from torch import nn
except ImportError as error:
    msg = "PyTorch is not installed: pip install 'spear-np[torch]'"
    raise ImportError(msg) from error

from spear_io.dump import RecordInfo
from spear_io.dump_writer import NO_INFO, LayerArrays

from . import _round
from ._layers import activations_of, check_names
from ._round import RecordingError
from ._torch_observers import linear_layers, observed, owners_of, unusable
from ._torch_tensors import DTYPES, rows_of, to_numpy

__all__ = ["Recorder", "RecordingError", "RoundWriter", "from_gradients", "from_weights", "record_gradients"]

PRODUCER = f"torch {torch.__version__}"

Tensors = Mapping[str, torch.Tensor]


@dataclass
class Recorder(_round.Update):
    """What the layers of a model share; after `record_gradients`, filled when the block ends."""

    producer: str = PRODUCER
    to_numpy: Any = to_numpy


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
        Any model. Reentrant checkpoints and custom autograd functions hide what follows a layer: its activation is
        then "unknown".
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
    with observed(linear_layers(model, layers), keep_inputs=keep_inputs, copy=copy) as seen:
        yield recorder
    owners = owners_of(model)
    for observer in seen.in_order():
        reason = observer.unusable(owners)
        if reason is None:
            recorder.layers[observer.name] = observer.arrays()
        else:
            recorder.skipped[observer.name] = reason


def from_gradients(
    model: nn.Module,
    gradients: Tensors,
    *,
    parameters: Tensors | None = None,
    inputs: Any = None,
    activations: Mapping[str, str] | None = None,
) -> Recorder:
    """Return an update of gradients by parameter name, as `torch.func.grad` gives them.

    Nothing is copied: write the update before the training goes on.

    Parameters
    ----------
    model : nn.Module
        Tells which parameters belong to fully connected layers; left as it was.
    gradients : mapping of tensors
        By the names of `model.named_parameters()`; what is missing is skipped.
    parameters : mapping of tensors, optional
        Where the gradients were taken. Defaults to those of the model.
    inputs : tensor or tuple, optional
        What the model was called with. It is called once more with them, to see the order of the layers, what follows
        each and its true inputs. By default layers come in the order of the model, with a ReLU after all but the last.
    activations : mapping, optional
        What follows layers, by name, where it is known better.

    Raises
    ------
    ValueError
        If `activations` names something that is no `nn.Linear` of the model.
    RecordingError
        If a gradient does not have the shape of its parameter.
    """
    if parameters is None:
        parameters = {name: p.detach() for name, p in model.named_parameters()}
    differences = {name: (gradient, None) for name, gradient in gradients.items()}
    return _update(model, parameters, differences, NO_INFO, inputs, activations)


def from_weights(
    model: nn.Module,
    before: Tensors,
    after: Tensors,
    *,
    learning_rate: float | None = None,
    local_steps: int | None = None,
    inputs: Any = None,
    activations: Mapping[str, str] | None = None,
) -> Recorder:
    """Return an update of the weights before and after a client trained.

    Nothing is copied: write the update before the training goes on.

    Parameters
    ----------
    model : nn.Module
        Tells which parameters belong to fully connected layers; left as it was.
    before, after : mapping of tensors
        Two state dicts. ``model.state_dict()`` is no copy: ``before = copy.deepcopy(model.state_dict())``.
    learning_rate : float, optional
        Of plain SGD. Without it everything but the scale of the gradient is known.
    local_steps : int, optional
        How many steps lie between the two.
    inputs, activations
        As for `from_gradients`.

    Raises
    ------
    ValueError
        If `activations` names something that is no `nn.Linear` of the model.
    RecordingError
        If the two are the same tensors, or differ in shape.
    """
    info = RecordInfo(update="weight_delta", learning_rate=learning_rate, local_steps=local_steps)
    differences = {name: (after[name], before[name]) for name in before.keys() & after.keys()}
    return _update(model, before, differences, info, inputs, activations)


def _update(
    model: nn.Module,
    parameters: Tensors,
    differences: Mapping[str, tuple[torch.Tensor, torch.Tensor | None]],
    info: RecordInfo,
    inputs: Any,
    activations: Mapping[str, str] | None,
) -> Recorder:
    """Return what `differences`, gradients or (after, before), say about the layers of `model`."""
    recorder = Recorder(info=info)
    linear, owners = linear_layers(model), owners_of(model)
    seen = activations_of(list(linear), activations) if inputs is None else {}
    true_inputs = {}
    if inputs is not None:
        check_names(activations or (), linear, "activations")
        with observed(linear, keep_inputs=True, copy=False) as observation:
            _run(model, parameters, inputs)
        for observer in observation.in_order():
            seen[observer.name] = (activations or {}).get(observer.name, observer.activation)
            true_inputs[observer.name] = observer.inputs()
    paths = {id(module): name for name, module in model.named_modules()}
    for name, activation in seen.items():
        path = paths[id(linear[name])]
        weight, bias = (f"{path}.{leaf}".lstrip(".") for leaf in ("weight", "bias"))
        reason = unusable(linear[name], owners)
        if reason is None and (weight not in differences or weight not in parameters):
            reason = "nothing of it was given"
        if reason is None and differences[weight][0].dtype not in DTYPES:
            reason = f"its gradient has dtype {differences[weight][0].dtype}, which a dump cannot hold"
        if reason is not None:
            recorder.skipped[name] = reason
            continue
        recorder.layers[name] = LayerArrays(
            weight_grad=_rows(weight, differences, parameters),
            bias_grad=_rows(bias, differences, parameters) if bias in differences else None,
            weight=rows_of(parameters[weight]),
            bias=rows_of(parameters.get(bias)),
            inputs=true_inputs.get(name),
            activation=activation,
        )
    return recorder


def _rows(
    name: str, differences: Mapping[str, tuple[torch.Tensor, torch.Tensor | None]], parameters: Tensors
) -> Any:
    """Return one gradient or difference, found to fit its parameter."""
    tensor, minus = differences[name]
    if tensor.shape != parameters[name].shape:
        msg = (
            f"{name!r} has shape {tuple(parameters[name].shape)} before and {tuple(tensor.shape)} after: "
            "hand over what belongs to the same model"
        )
        raise RecordingError(msg)
    if minus is not None and tensor.data_ptr() == minus.data_ptr():
        msg = (
            "the weights before and after are the same tensors: keep a copy before the training, "
            "before = copy.deepcopy(model.state_dict())"
        )
        raise RecordingError(msg)
    return rows_of(tensor, minus)


def _run(model: nn.Module, parameters: Tensors, inputs: Any) -> None:
    """Call `model` with these parameters and inputs, and leave it and the random numbers as they were."""
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    state = {name: p.detach().requires_grad_(name in trained) for name, p in parameters.items()}
    state |= {name: buffer.clone() for name, buffer in model.named_buffers()}
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=list(devices)), torch.enable_grad():
        torch.func.functional_call(model, state, inputs)
