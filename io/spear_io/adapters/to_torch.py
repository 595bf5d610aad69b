"""From a PyTorch training loop to a gradient dump.

::

    from spear_io.adapters.to_torch import record_gradients

    with record_gradients(model) as recorder:
        loss = criterion(model(inputs), labels)
        loss.backward()
    recorder.write("dump.h5", labels=labels, input_shape=(1, 28, 28))

Every `nn.Linear` of the model is recorded, wherever it is and however its ReLU is called, with the weights of the
forward pass and the gradients as they are when the block ends: clip them or add noise inside the block to dump what
a client really shares. The model itself is left as it was.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

try:
    import torch
    from torch import nn
except ImportError as error:
    msg = "PyTorch is not installed: pip install 'spear-np[torch]'"
    raise ImportError(msg) from error

from spear_io.dump import RecordInfo
from spear_io.dump_writer import DumpWriter, LayerArrays
from spear_io.storage import Bfloat16

from ._torch_activations import ActivationWatch

__all__ = ["Recorder", "RecordingError", "RoundWriter", "record_gradients"]

Array = Any

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class RecordingError(RuntimeError):
    """What was recorded is not the gradient of one step; the message says why and what to do."""


@dataclass
class Recorder:
    """What the layers of a model shared; filled when the block of `record_gradients` ends."""

    layers: dict[str, LayerArrays] = field(default_factory=dict)
    """The recorded layers by their names in the model, in forward order, as NumPy arrays."""
    skipped: dict[str, str] = field(default_factory=dict)
    """The other `nn.Linear` layers, and why there is nothing of them to record."""

    def write(
        self,
        path: str | Path,
        *,
        record: str = "record-0",
        labels: Any = None,
        compression: str | None = None,
        **info: Any,
    ) -> None:
        """Write a dump with this one record.

        Parameters
        ----------
        path : path
            Where; appears whole or not at all.
        record : str
            Name of the record.
        labels : (b,) array or tensor, optional
            True labels, for reports.
        compression : str, optional
            h5py's name of a built-in filter, e.g. "gzip".
        **info
            Fields of `spear_io.RecordInfo`, e.g. ``input_shape=(1, 28, 28), input_mean=0.286, input_std=0.353``.

        Raises
        ------
        RecordingError
            If no layer was recorded.
        FileError
            If the file cannot be written.
        """
        with RoundWriter(path, compression=compression) as dump:
            dump.add(record, self, labels=labels, **info)


class RoundWriter:
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
        self._writer = DumpWriter(path, producer=f"torch {torch.__version__}", compression=compression)
        self._model_record: str | None = None
        self._model: Mapping[str, LayerArrays] = {}

    def __enter__(self) -> Self:
        """Start the file under a temporary name."""
        self._writer.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the file its name, or leave nothing behind."""
        self._writer.__exit__(kind, error, trace)

    def add(self, record: str, recorder: Recorder, *, labels: Any = None, **info: Any) -> None:
        """Write one record; the arguments are those of `Recorder.write`."""
        layers: Mapping[str, LayerArrays] = recorder.layers
        if not layers:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in recorder.skipped.items())
            msg = f"no layer was recorded ({reasons or 'the model has no nn.Linear'})"
            raise RecordingError(msg)
        model_of = self._model_record if _same_model(layers, self._model) else None
        if model_of is not None:
            layers = {name: replace(layer, weight=None, bias=None) for name, layer in layers.items()}
        self._writer.add_record(
            record,
            layers,
            info=_info(**info),
            labels=_on_host(labels),
            model_of=model_of,
        )
        if self._model_record is None:
            self._model_record, self._model = record, layers


@contextmanager
def record_gradients(
    model: nn.Module, *, layers: Iterable[str] | None = None, keep_inputs: bool = True
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
    watch = ActivationWatch()
    used: list[_Observer] = []
    with ExitStack() as stack:
        stack.callback(watch.release)
        observers = [
            _Observer(name, module, watch, used, stack, keep_inputs=keep_inputs)
            for name, module in _choose(model, layers).items()
        ]
        stack.enter_context(watch)
        yield recorder

    owners = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    # Forward order first, then what was not used.
    for observer in [*used, *(observer for observer in observers if observer not in used)]:
        reason = observer.unusable(owners)
        if reason is None:
            recorder.layers[observer.name] = observer.arrays()
        else:
            recorder.skipped[observer.name] = reason


def _choose(model: nn.Module, layers: Iterable[str] | None) -> dict[str, nn.Linear]:
    """Return the layers to record by name."""
    linear = {
        name or "linear": module for name, module in model.named_modules() if isinstance(module, nn.Linear)
    }
    if layers is None:
        return linear
    wanted = [layers] if isinstance(layers, str) else list(layers)
    for name in wanted:
        if name not in linear:
            msg = (
                f"`layers` names {name!r}, but the fully connected layers are: {', '.join(linear) or 'none'}"
            )
            raise ValueError(msg)
    return {name: linear[name] for name in wanted}


class _Observer:
    """Hooks into one layer until `stack` unwinds, and collects its arrays afterwards.

    It adds itself to `used` when the layer takes part in a step for the first time.
    """

    def __init__(
        self,
        name: str,
        module: nn.Linear,
        watch: ActivationWatch,
        used: list[_Observer],
        stack: ExitStack,
        *,
        keep_inputs: bool,
    ) -> None:
        self.name = name
        self._module = module
        self._watch = watch
        self._used = used
        self._stack = stack
        self._keep_inputs = keep_inputs
        self._inputs: list[torch.Tensor] = []
        self._weight: torch.Tensor | None = None
        self._bias: torch.Tensor | None = None
        self._accumulating = False
        handle = module.register_forward_hook(self._after_forward, with_kwargs=True)
        stack.callback(handle.remove)

    def unusable(self, owners: Counter[int]) -> str | None:
        """Why there is no gradient of this layer to record; None if there is."""
        weight = self._parameter("weight")
        if weight is None:
            return "its weight is computed from other parameters"
        if not weight.requires_grad:
            return "its weight is frozen"
        if owners[id(weight)] > 1:
            return "its weight is shared with another module, and so is the gradient"
        if self._weight is None:
            return "no forward pass with gradients went through it"
        if weight.grad is None:
            return "it has no gradient: none reached it, or it was removed before the end of the block"
        if weight.grad.dtype not in DTYPES:
            return f"its gradient has dtype {weight.grad.dtype}, which a dump cannot hold"
        return None

    def arrays(self) -> LayerArrays:
        """Copy what was recorded to the host."""
        weight, bias = self._parameter("weight"), self._parameter("bias")
        assert weight is not None
        return LayerArrays(
            weight_grad=_on_host(weight.grad),
            bias_grad=None if bias is None else _on_host(bias.grad),
            weight=_on_host(self._weight),
            bias=_on_host(self._bias),
            inputs=_on_host(torch.cat(self._inputs)) if self._inputs else None,
            activation=self._watch.activation(self.name),
        )

    def _parameter(self, name: str) -> torch.Tensor | None:
        """Return a parameter of the layer, not a tensor that a parametrisation computes under its name."""
        return dict(self._module.named_parameters(recurse=False)).get(name)

    def _after_forward(
        self, module: nn.Linear, args: tuple[Any, ...], kwargs: dict[str, Any], output: torch.Tensor
    ) -> None:
        """Note one call: the weights it used, its inputs, and from now on what follows it."""
        if not output.requires_grad:
            return  # an evaluation pass, or nothing before or in this layer is trained
        if self._weight is not None and _in_backward():
            return  # activation checkpointing runs the same call again
        weight, bias = module.weight.detach(), None if module.bias is None else module.bias.detach()
        if self._weight is None:
            self._used.append(self)
            # Copies: an optimizer changes parameters in place, perhaps before the block ends.
            self._weight, self._bias = weight.clone(), None if bias is None else bias.clone()
            if module.weight.requires_grad:
                self._stack.callback(module.weight.register_hook(self._before_accumulation).remove)
        elif not torch.equal(self._weight, weight):
            msg = (
                f"the weight of layer {self.name!r} changed between two forward passes: "
                "record one step at a time, and call optimizer.step() after the block"
            )
            raise RecordingError(msg)
        if self._keep_inputs:
            inputs = args[0] if args else kwargs["input"]
            self._inputs.append(inputs.detach().reshape(-1, inputs.shape[-1]).clone())
        self._watch.watch(output, self.name)

    def _before_accumulation(self, _: torch.Tensor) -> None:
        """Refuse to add this step's gradient to an earlier one."""
        earlier = self._module.weight.grad
        if not self._accumulating and earlier is not None and bool(earlier.any()):
            msg = (
                f"layer {self.name!r} still holds the gradient of an earlier step: "
                "call optimizer.zero_grad() before loss.backward()"
            )
            raise RecordingError(msg)
        self._accumulating = True


def _in_backward() -> bool:
    """Whether autograd is running a backward pass in this thread; PyTorch tells only under a private name."""
    return bool(torch._C._current_graph_task_id() != -1)


def _on_host(values: Any) -> Array:
    """Copy a tensor to NumPy without changing a bit of it; anything else is returned as it is."""
    if not isinstance(values, torch.Tensor):
        return values
    values = values.detach().to("cpu", copy=True).contiguous()
    if values.dtype is torch.bfloat16:  # for which NumPy has no type
        return Bfloat16(values.view(torch.int16).numpy().view(np.uint16))
    return values.numpy()


def _same_model(layers: Mapping[str, LayerArrays], model: Mapping[str, LayerArrays]) -> bool:
    """Whether every layer has the weights that `model` has under its name."""
    return all(
        name in model
        and _same_numbers(layer.weight, model[name].weight)
        and _same_numbers(layer.bias, model[name].bias)
        for name, layer in layers.items()
    )


def _same_numbers(one: Array, other: Array) -> bool:
    """Whether two arrays, or two missing ones, are the same."""
    if one is None or other is None:
        return one is other
    return one.dtype == other.dtype and np.array_equal(one[:], other[:])


def _info(**given: Any) -> RecordInfo:
    """Return the record's attributes; one figure stands for all channels."""
    for name in ("input_shape", "input_mean", "input_std"):
        if given.get(name) is not None:
            given[name] = tuple(np.atleast_1d(_on_host(given[name])).tolist())
    return RecordInfo(**given)
