"""Following the outputs of layers through a model: which function took them, and what has become of them.

A `TorchFunctionMode` sees modules, functions, methods and operators alike, because all end in the same calls. A call
changes the trail of its argument in one of four ways:

- it *keeps* the numbers or only rearranges them: where each went is worked out by doing the same to their indices;
- it is the first *activation* of a layer's output: told by name and arguments, and believed only if the result agrees
  with the definition of that activation; a ReLU written by hand is told by its result, to the last bit;
- it does *nothing* to a layer's output, to the last bit (`z + 0`, `expand_as` to the same shape);
- anything else ends the trail and is remembered by its name.

What the mode cannot see (functions of custom autograd classes, of C++ or TorchScript) `Trails` reads off autograd's
graph: it ends the trail too, under the name of its node.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from spear_np import Activation

from ._torch_activations import Sample, activation_of, may_be_activation, selects_as_relu
from ._torch_functions import (
    MOVES,
    RESHAPES,
    TENSOR_ATTRIBUTES,
    Function,
    FunctionCall,
    attribute_of,
    called,
    tensors_in,
)
from ._torch_losses import NAMES as LOSSES
from ._torch_losses import Loss, loss_of
from ._torch_tensors import version_of
from ._torch_trails import Trail, Trails, can_be_followed, edge_of, joined, node_of


@dataclass(frozen=True)
class Product:
    """The latest `linear`: what a layer does if it is an ordinary one."""

    inputs: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    output: torch.Tensor
    came: Trail | None


class Watch(TorchFunctionMode):  # type: ignore[misc]
    """While active, keeps the trails of what a model computes, and its losses."""

    def __init__(self) -> None:
        super().__init__()
        self.trails = Trails()
        self.losses: list[Loss] = []
        self.product: Product | None = None

    def release(self) -> None:
        """Let go of all tensors."""
        self.trails.release()
        self.product = None

    def __torch_function__(
        self, func: Function, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run `func`, and note what becomes of the values that it takes."""
        kwargs = kwargs or {}
        if attribute_of(func) not in TENSOR_ATTRIBUTES | {None}:
            return func(*args, **kwargs)
        call = called(func, args, kwargs)
        tensors = call.tensors
        taken = [(tensor, trail) for tensor in tensors if (trail := self.trails.of(tensor)) is not None]
        if not taken and call.name != "linear" and call.name not in LOSSES:
            return func(*args, **kwargs)
        step = _Step(self, call, tensors, taken)
        result = func(*args, **kwargs)
        step.note(result)
        return result


class _Step:
    """One call of a function, before and after it ran."""

    def __init__(
        self,
        watch: Watch,
        call: FunctionCall,
        tensors: list[torch.Tensor],
        taken: list[tuple[torch.Tensor, Trail]],
    ) -> None:
        self._watch = watch
        self._call = call
        self._tensors = tensors
        self._taken = taken
        self._edges = {edge_of(tensor) for tensor in tensors}
        self._single = self._single_output()
        self._sample: Sample | None = None
        self._before: torch.Tensor | None = None
        self._version = 0
        if self._single is not None:
            self._look_before(*self._single)

    def note(self, result: Any) -> None:
        """Note what became of the arguments."""
        results = [tensor for tensor in tensors_in(result) if can_be_followed(tensor)]
        if self._call.name == "setitem":
            results.append(self._tensors[0])
        flowing = [tensor for tensor in results if tensor.requires_grad]
        made = [t for t in flowing if node_of(t) is not None and edge_of(t) not in self._edges]
        loss = self._note_loss(made)
        trail = self._kept(results) or self._activated(results, made)
        if trail is None:
            trail = self._ended(flowing, made, loss)
        for tensor in results:
            if tensor.requires_grad or not any(t.requires_grad for t, _ in self._taken):
                self._label(tensor, trail)
            else:  # the gradient ends here
                self._label(tensor, Trail(passed=joined([t for _, t in self._taken], "detach")))
        if self._call.name == "linear" and len(made) == 1:
            self._note_product(made[0])

    def _label(self, tensor: torch.Tensor, trail: Trail | None) -> None:
        if trail is not None and tensor.dtype is not torch.bool:
            self._watch.trails.set(tensor, trail)

    def _single_output(self) -> tuple[torch.Tensor, Trail] | None:
        """Return the output of a layer that the function took, if it took no other value with a trail and gradient."""
        differentiable = [(t, trail) for t, trail in self._taken if t.requires_grad]
        if len(differentiable) != 1 or differentiable[0][1].call is None:
            return None
        return differentiable[0]

    def _alone(self, tensor: torch.Tensor) -> bool:
        """Whether nothing else that the function took has a gradient."""
        return not any(other.requires_grad for other in self._tensors if other is not tensor)

    def _look_before(self, tensor: torch.Tensor, trail: Trail) -> None:
        """Keep what is needed to tell an activation from its result."""
        self._version = version_of(tensor)
        if trail.activation is None and tensor.numel() > 0 and may_be_activation(self._call):
            self._sample = Sample(tensor)
        if not self._call.in_place:
            self._before = tensor.detach()
        elif self._sample is None:
            self._before = tensor.detach().clone()

    def _kept(self, results: list[torch.Tensor]) -> Trail | None:
        """Return the trail of a result that holds the same numbers; None if it does not."""
        if not self._taken or not results or self._taken[0][0] is not self._tensors[0]:
            return None
        tensor, trail = self._taken[0]
        if self._call.keeps_numbers:
            return trail
        if self._call.name in RESHAPES | MOVES and len(results) == 1:
            return trail if trail.call is None else self._rearranged(tensor, trail, results[0])
        return None

    def _rearranged(self, tensor: torch.Tensor, trail: Trail, result: torch.Tensor) -> Trail:
        """Do to the indices of the numbers what was done to the numbers."""
        places = trail.places
        if self._call.name in RESHAPES:
            if places is None:
                return trail
            # Not the function itself: the indices may lie differently in memory, where `view` would refuse them.
            moved = places.reshape(result.shape)
        else:
            if places is None:
                places = torch.arange(tensor.numel(), device=tensor.device).view(tensor.shape)
            args = tuple(places if value is tensor else value for value in self._call.args)
            kwargs = {key: places if value is tensor else value for key, value in self._call.kwargs.items()}
            moved = self._call.func(*args, **kwargs)
        rearranged = replace(trail, places=moved, passed=joined([trail], self._call.name))
        return replace(rearranged, places=None, passed=()) if rearranged.in_order else rearranged

    def _activated(self, results: list[torch.Tensor], made: list[torch.Tensor]) -> Trail | None:
        """Return the trail behind a layer's activation, or behind what changed nothing; None behind anything else."""
        if self._single is None or len(results) != 1 or len(made) != 1:
            return None
        tensor, trail = self._single
        if self._sample is not None:
            activation = activation_of(self._call)
            by_unit = activation is not None and np.ndim(activation.parameters.get("slope", 0.0)) > 0
            if activation is not None and not (by_unit and trail.places is not None):
                if self._sample.confirms(activation, made[0]):
                    self._watch.trails.note_use(activation, [trail], made)
                    return replace(trail, activation=activation)
                return None
        if self._before is None or not self._alone(tensor) or made[0].shape != self._before.shape:
            return None
        if version_of(tensor) != self._version and not self._call.in_place:
            return None
        if torch.equal(made[0].detach(), self._before):
            return trail
        if trail.activation is None and selects_as_relu(self._call, tensor, self._before, made[0].detach()):
            self._watch.trails.note_use(Activation("relu"), [trail], made)
            return replace(trail, activation=Activation("relu"))
        return None

    def _ended(
        self, flowing: list[torch.Tensor], made: list[torch.Tensor], loss: Loss | None
    ) -> Trail | None:
        """Return the trail of what came of several values, or of a function that is no activation."""
        trails = [trail for _, trail in self._taken]
        use = None
        if flowing:
            taken = [trail for tensor, trail in self._taken if tensor.requires_grad]
            name = self._call.name if loss is None else loss.name
            # Where a gradient cannot tell, because the change was hidden from autograd, take it for part of the loss.
            as_it_is = name == "linear" or loss is not None
            use = self._watch.trails.note_use(name, taken, made, as_it_is=as_it_is, reached=not made)
        if not trails:
            return None
        trail = Trail(passed=joined(trails, self._call.name))
        is_logits = self._call.name == "log_softmax" and self._single is not None
        return replace(trail, logits_of=use) if is_logits else trail

    def _note_loss(self, made: list[torch.Tensor]) -> Loss | None:
        """Note a loss function, and what it makes of a log-softmax before it."""
        if not made:
            return None
        trails = [trail for _, trail in self._taken]
        of_log_softmax = any(trail.passed[-1:] == ("log_softmax",) for trail in trails)
        loss = loss_of(self._call, of_log_softmax=of_log_softmax)
        if loss is not None:
            self._watch.losses.append(loss)
            self._watch.trails.mark_when_reached(made[0], loss)
            for trail in trails:
                if trail.logits_of is not None and loss.name.endswith("cross_entropy"):
                    trail.logits_of.what, trail.logits_of.as_it_is = loss.name, True
        return loss

    def _note_product(self, output: torch.Tensor) -> None:
        inputs = self._call.argument(0, "input")
        came = next((trail for tensor, trail in self._taken if tensor is inputs), None)
        weight, bias = self._call.argument(1, "weight"), self._call.argument(2, "bias")
        self._watch.product = Product(inputs, weight, bias, output, came)
