"""Watching a model while it runs: which layers take part, in which order, with which inputs, and what follows them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from spear_io.files.dump_writer import LayerArrays

from ._layers import check_names
from ._round import RecordingError
from ._torch_activations import ActivationWatch
from ._torch_tensors import DTYPES, array_of, rows_of

Array = Any


def linear_layers(model: nn.Module, chosen: Iterable[str] | None = None) -> dict[str, nn.Linear]:
    """Return the fully connected layers of `model` by name, or the `chosen` ones.

    Raises
    ------
    ValueError
        If `chosen` names something that is no `nn.Linear` of the model.
    """
    linear = {
        name or "linear": module for name, module in model.named_modules() if isinstance(module, nn.Linear)
    }
    if chosen is None:
        return linear
    wanted = [chosen] if isinstance(chosen, str) else list(chosen)
    check_names(wanted, linear, "layers")
    return {name: linear[name] for name in wanted}


def parameter(module: nn.Module, name: str) -> torch.Tensor | None:
    """Return a parameter of a layer, not a tensor that a parametrisation computes under its name."""
    return dict(module.named_parameters(recurse=False)).get(name)


def owners_of(model: nn.Module) -> Counter[int]:
    """Return how many modules hold each parameter, by its id."""
    return Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))


def unusable(module: nn.Linear, owners: Counter[int]) -> str | None:
    """Why no gradient of this layer alone can exist, or None if it can."""
    weight = parameter(module, "weight")
    if weight is None:
        return "its weight is computed from other parameters"
    if not weight.requires_grad:
        return "its weight is frozen"
    if owners[id(weight)] > 1:
        return "its weight is shared with another module, and so is the gradient"
    return None


@dataclass
class Observation:
    """What was seen of the layers of a model."""

    watch: ActivationWatch = field(default_factory=ActivationWatch)
    observers: dict[str, Observer] = field(default_factory=dict)
    used: list[str] = field(default_factory=list)
    """The layers that took part, in forward order."""

    def in_order(self) -> Iterator[Observer]:
        """Yield the observers of what was used in forward order, then the others."""
        for name in dict.fromkeys([*self.used, *self.observers]):
            yield self.observers[name]


@contextmanager
def observed(layers: dict[str, nn.Linear], *, keep_inputs: bool, copy: bool) -> Iterator[Observation]:
    """Observe the layers while the block runs."""
    seen = Observation()
    with ExitStack() as stack:
        stack.callback(seen.watch.release)
        for name, module in layers.items():
            seen.observers[name] = Observer(name, module, seen, stack, keep_inputs=keep_inputs, copy=copy)
        stack.enter_context(seen.watch)
        yield seen


class Observer:
    """Hooks into one layer until `stack` unwinds, and holds its arrays afterwards."""

    def __init__(
        self,
        name: str,
        module: nn.Linear,
        seen: Observation,
        stack: ExitStack,
        *,
        keep_inputs: bool,
        copy: bool,
    ) -> None:
        self.name = name
        self._module = module
        self._seen = seen
        self._stack = stack
        self._keep_inputs = keep_inputs
        self._copy = copy
        self._inputs: list[torch.Tensor] = []
        self._weight: torch.Tensor | None = None
        self._bias: torch.Tensor | None = None
        self._accumulating = False
        self._model: dict[str, Array] = {}
        stack.callback(module.register_forward_hook(self._after_forward, with_kwargs=True).remove)

    @property
    def activation(self) -> str:
        """What followed the layer."""
        return self._seen.watch.activation(self.name)

    def inputs(self) -> Array:
        """(b, n) what the layer was called with, a copy; None if it was not called or nothing was kept."""
        return array_of(torch.cat(self._inputs)) if self._inputs else None

    def unusable(self, owners: Counter[int]) -> str | None:
        """Why there is no gradient of this layer to record; None if there is."""
        reason = unusable(self._module, owners)
        if reason is not None:
            return reason
        if self._weight is None:
            return "no forward pass with gradients went through it"
        gradient = self._module.weight.grad
        if gradient is None:
            return "it has no gradient: none reached it, or it was removed before the end of the block"
        if gradient.dtype not in DTYPES:
            return f"its gradient has dtype {gradient.dtype}, which a dump cannot hold"
        return None

    def arrays(self) -> LayerArrays:
        """Return what was recorded, on the host if it is a copy."""
        bias = parameter(self._module, "bias")
        weight_grad, bias_grad = self._module.weight.grad, None if bias is None else bias.grad
        if self._copy:
            gradients = {
                "weight_grad": array_of(weight_grad, copy=True),
                "bias_grad": array_of(bias_grad, copy=True),
            }
            model = {"weight": array_of(self._weight), "bias": array_of(self._bias)}
        else:
            gradients = {"weight_grad": rows_of(weight_grad), "bias_grad": rows_of(bias_grad)}
            model = self._model
        return LayerArrays(
            **gradients,
            **model,
            inputs=self.inputs(),
            activation=self.activation,
        )

    def _after_forward(
        self, module: nn.Linear, args: tuple[Any, ...], kwargs: dict[str, Any], output: torch.Tensor
    ) -> None:
        """Note one call: the weights it used, its inputs, and from now on what follows it."""
        if not output.requires_grad:
            return  # an evaluation pass, or nothing before or in this layer is trained
        if self._weight is not None and _in_backward():
            return  # activation checkpointing runs the same call again
        if self._weight is None:
            self._seen.used.append(self.name)
            self._note_model(module)
        elif not torch.equal(self._weight, module.weight):
            msg = (
                f"the weight of layer {self.name!r} changed between two forward passes: "
                "record one step at a time, and call optimizer.step() after the block"
            )
            raise RecordingError(msg)
        if self._keep_inputs:
            inputs = args[0] if args else kwargs["input"]
            self._inputs.append(inputs.detach().reshape(-1, inputs.shape[-1]).clone())
        self._seen.watch.watch(output, self.name)

    def _note_model(self, module: nn.Linear) -> None:
        """Keep the weights of the first call."""
        self._weight = module.weight.detach()
        if self._copy:  # an optimizer changes parameters in place, perhaps before the block ends
            self._weight = self._weight.clone()
            self._bias = None if module.bias is None else module.bias.detach().clone()
        else:
            self._model = {"weight": rows_of(self._weight), "bias": rows_of(module.bias)}
        if module.weight.requires_grad:
            self._stack.callback(module.weight.register_hook(self._before_accumulation).remove)

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
