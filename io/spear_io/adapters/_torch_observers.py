"""Watching a model while it runs: which layers take part, in which order, with which inputs, and what follows them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from spear_io.files.dump import RecordInfo
from spear_io.files.dump_writer import LayerArrays
from spear_np import Activation, Sliceable
from spear_np.arrays import HostArray

from ._layers import check_names
from ._round import RecordingError
from ._torch_functions import tensors_in
from ._torch_links import Link, links, loss_of
from ._torch_tensors import DTYPES, array_of, rows_of, to_numpy
from ._torch_trails import Call, Trail, can_be_followed
from ._torch_watch import Watch

ROWS_COMPARED = 32
"""So many inputs of a layer are compared with what the layer before must have put out; the watch has seen the rest."""

LARGEST_ROUNDING = 2.0**-5
"""Share by which they may differ: eight roundings of bfloat16, the coarsest in which layers multiply."""


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


class Observation:
    """What was seen of the layers of a model."""

    def __init__(self, model: nn.Module) -> None:
        self.watch = Watch()
        self.observers: dict[str, Observer] = {}
        self.called: list[str] = []
        """The layers that were called, in forward order."""
        self.owners = owners_of(model)

    def in_order(self) -> Iterator[Observer]:
        """Yield the observers of what was called in forward order, then the others."""
        for name in dict.fromkeys([*self.called, *self.observers]):
            yield self.observers[name]

    def links(self, recorded: Iterable[str]) -> dict[str, Link]:
        """Return what is said of the layers, of which only those `recorded` go into the dump, in forward order."""
        layers = {name: self.observers[name].calls for name in recorded}
        shapes = {name: self.observers[name].shape for name in layers}
        return links(layers, shapes, self._agree)

    def with_loss(self, info: RecordInfo) -> RecordInfo:
        """Return `info` with the loss functions that were seen."""
        loss, reduction = loss_of(self.watch.losses)
        return replace(info, loss=loss, loss_reduction=reduction)

    def _agree(self, before: str, after: str, activation: Activation) -> bool:
        """Whether the inputs of one layer are the activated outputs of another, as far as both were kept."""
        outputs, inputs = self.observers[before].some_outputs(), self.observers[after].some_inputs()
        if outputs is None or inputs is None:
            return True
        expected, _ = activation.value_and_slope(outputs)
        if inputs.shape != expected.shape:
            return False
        return bool(np.linalg.norm(inputs - expected) <= LARGEST_ROUNDING * np.linalg.norm(expected))

    def _before_model(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Follow what the model is called with."""
        for tensor in tensors_in((args, kwargs)):
            if can_be_followed(tensor) and self.watch.trails.of(tensor) is None:
                self.watch.trails.set(tensor, Trail())


@contextmanager
def observed(
    model: nn.Module, layers: dict[str, nn.Linear], *, keep_inputs: bool, copy: bool
) -> Iterator[Observation]:
    """Observe the layers of a model while the block runs; compiled models run uncompiled there."""
    seen = Observation(model)
    with ExitStack() as stack:
        stack.callback(seen.watch.release)
        stack.callback(model.register_forward_pre_hook(seen._before_model, with_kwargs=True).remove)
        for name, module in layers.items():
            seen.observers[name] = Observer(name, module, seen, stack, keep_inputs=keep_inputs, copy=copy)
        if hasattr(torch.compiler, "set_stance"):
            stack.enter_context(torch.compiler.set_stance("force_eager"))
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
        self._calls: list[Call] = []
        self._inputs: dict[Call, torch.Tensor] = {}
        self._weight: torch.Tensor | None = None
        self._bias: torch.Tensor | None = None
        self._model_rows: tuple[Sliceable | None, Sliceable | None] = (None, None)
        self._accumulating = False
        # Before the hooks of others: they may put something else in the place of the output.
        hook = module.register_forward_hook(self._after_forward, with_kwargs=True, prepend=True)
        stack.callback(hook.remove)

    @property
    def calls(self) -> list[Call]:
        """The calls to which a gradient came back; all calls where none did."""
        return [call for call in self._calls if call.reached] or self._calls

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n): output units, input features."""
        return self._module.out_features, self._module.in_features

    def inputs(self) -> Sliceable | None:
        """(b, n) what the layer was called with, a copy; None if it was not called or nothing was kept."""
        inputs = self._kept()
        return None if inputs is None else array_of(inputs)

    def some_inputs(self) -> HostArray | None:
        """(k, n) some of the inputs, evenly spread, in float64; None if none were kept."""
        inputs = self._kept()
        if inputs is None:
            return None
        return to_numpy(inputs[:: max(1, len(inputs) // ROWS_COMPARED)].cpu().double())

    def some_outputs(self) -> HostArray | None:
        """(k, m) W x + b of `some_inputs`, in float64; None if none were kept."""
        inputs = self.some_inputs()
        if inputs is None or self._weight is None:
            return None
        outputs: HostArray = inputs @ to_numpy(self._weight.cpu().double()).T
        return outputs if self._bias is None else outputs + to_numpy(self._bias.cpu().double())

    def unusable(self) -> str | None:
        """Why there is no gradient of this layer to record; None if there is."""
        reason = unusable(self._module, self._seen.owners)
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

    def arrays(self, link: Link) -> LayerArrays:
        """Return what was recorded, on the host if it is a copy."""
        bias = parameter(self._module, "bias")
        gradients = (self._module.weight.grad, None if bias is None else bias.grad)
        model = (self._weight, self._bias)
        if self._copy:
            weight_grad, bias_grad = (array_of(gradient, copy=True) for gradient in gradients)
            weight, bias = (array_of(tensor) for tensor in model)
        else:
            weight_grad, bias_grad = (rows_of(gradient) for gradient in gradients)
            weight, bias = self._model_rows
        return LayerArrays(
            weight_grad=weight_grad,
            bias_grad=bias_grad,
            weight=weight,
            bias=bias,
            inputs=self.inputs(),
            activation=link.activation,
            follows=link.follows,
            between=link.between,
        )

    def _kept(self) -> torch.Tensor | None:
        kept = [self._inputs[call] for call in self.calls if call in self._inputs]
        return kept[0] if len(kept) == 1 else torch.cat(kept) if kept else None

    def _after_forward(
        self, module: nn.Linear, args: tuple[Any, ...], kwargs: dict[str, Any], output: torch.Tensor
    ) -> None:
        """Note one call: the weights it used, its inputs, and from now on what follows it."""
        self._seen.called.append(self.name)
        if not output.requires_grad or unusable(module, self._seen.owners) is not None:
            return  # an evaluation pass, or nothing before or in this layer is trained
        if self._weight is not None and _in_backward():
            return  # activation checkpointing runs the same call again
        if self._weight is None:
            self._note_model(module)
        elif not torch.equal(self._weight, module.weight):
            msg = (
                f"the weight of layer {self.name!r} changed between two forward passes: "
                "record one step at a time, and call optimizer.step() after the block"
            )
            raise RecordingError(msg)
        self._note_call(module, args[0] if args else kwargs["input"], output)

    def _note_call(self, module: nn.Linear, inputs: torch.Tensor, output: torch.Tensor) -> None:
        """Note the inputs of one call, and follow its output if it is the plain product with the weights."""
        watch = self._seen.watch
        product = watch.product
        call = Call(self.name, output.numel())
        watch.trails.mark_when_reached(output, call)
        if (
            product is not None
            and product.output is output
            and product.weight is module.weight
            and product.bias is module.bias
        ):
            inputs, call.came = product.inputs, product.came
            watch.trails.set(output, Trail(call))
        self._calls.append(call)
        if self._keep_inputs:
            self._inputs[call] = inputs.detach().reshape(-1, inputs.shape[-1]).clone()

    def _note_model(self, module: nn.Linear) -> None:
        """Keep the weights of the first call."""
        self._weight = module.weight.detach()
        self._bias = None if module.bias is None else module.bias.detach()
        if self._copy:  # an optimizer changes parameters in place, perhaps before the block ends
            self._weight = self._weight.clone()
            self._bias = None if self._bias is None else self._bias.clone()
        else:
            self._model_rows = (rows_of(self._weight), rows_of(self._bias))
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
