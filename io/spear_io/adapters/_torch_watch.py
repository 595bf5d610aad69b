"""Following the outputs of layers through a model: which function took them, and what has become of them.

Every value is known by its place in autograd's graph (the node that made it, and the number of its output), not by
its tensor: so a full backward hook, a view or a change in place can neither lose nor mix up what is followed. What is
known of a value, its `Trail`, is kept in the `metadata` of its node, and goes when the graph goes. Values without a
gradient, such as what a frozen part of the model computes, are known by their tensors.

A `TorchFunctionMode` sees modules, functions, methods and operators alike, because all end in the same calls. A call
changes the trail of its argument in one of four ways:

- it *keeps* the numbers or only rearranges them: where each went is worked out by doing the same to their indices;
- it is the first *activation* of a layer's output: told by name and arguments, and believed only if the result agrees
  with the definition of that activation; a ReLU written by hand is told by its result, to the last bit;
- it does *nothing* to a layer's output, to the last bit (`z + 0`, `expand_as` to the same shape);
- anything else ends the trail and is remembered by its name.

What the mode cannot see (functions of custom autograd classes, of C++ or TorchScript) is read off the graph: it ends
the trail too, under the name of its node.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch.nn.modules._functions import BackwardHookFunction
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from spear_np import ACTIVATIONS, Activation

from ._torch_activations import Sample, activation_of, may_be_activation, selects_as_relu
from ._torch_functions import (
    REARRANGEMENTS,
    TENSOR_ATTRIBUTES,
    Function,
    FunctionCall,
    attribute_of,
    called,
    name_of_node,
    tensors_in,
)
from ._torch_losses import NAMES as LOSSES
from ._torch_losses import Loss, loss_of
from ._torch_tensors import version_of

UNKNOWN = "unknown"
"""What follows a layer whose output no watched function took, e.g. a custom autograd function."""

LAST = "output"
"""What follows a layer whose output is that of the model."""

IDENTITIES = ("BackwardHookFunction", "_DDPSink")
"""Autograd functions of PyTorch itself that hand on their tensors: behind modules with backward hooks, behind DDP."""

ANY = -1
"""Stands for all outputs of a node."""


@dataclass
class Use:
    """One function that took an output of a layer, perhaps already activated."""

    what: Activation | str
    """An activation that a dump can name, or else the name of the function."""
    applied: Activation | None
    """What had been applied to the output before."""
    as_it_is: bool = False
    """Whether it is no activation: the next layer, a loss, the end of the model."""
    reached: bool = False
    """Whether a gradient came back through it."""


@dataclass(eq=False)
class Call:
    """One call of a recorded layer."""

    layer: str
    came: Trail | None = None
    """What is known of its input."""
    uses: list[Use] = field(default_factory=list)
    reached: bool = False
    """Whether a gradient came back to its output."""


@dataclass(frozen=True)
class Trail:
    """Where a value came from."""

    call: Call | None = None
    """The call whose output it is, at most activated and rearranged; None if anything else happened since."""
    activation: Activation | None = None
    """What was applied to that output."""
    places: torch.Tensor | None = None
    """The index that each number had in that output; None while all are in their places."""
    passed: tuple[str, ...] = ()
    """What else happened since the last recorded layers or the input of the model; or how the numbers were moved."""
    logits_of: Use | None = None
    """The use by which this is the log-softmax of an output."""

    @property
    def in_order(self) -> bool:
        """Whether every number is in its place again."""
        if self.places is None:
            return True
        places = self.places.reshape(-1)
        return bool(torch.equal(places, torch.arange(len(places), device=places.device)))


Label = tuple[Trail | None, int | None]
"""What is known of a value, and how often its tensor had been changed in place when that was noted, if it was seen."""

NO_LABEL: Label = (None, None)


@dataclass(frozen=True)
class Product:
    """The latest `linear`: what a layer does if it is an ordinary one."""

    inputs: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    output: torch.Tensor
    came: Trail | None


class Watch(TorchFunctionMode):  # type: ignore[misc]
    """While active, follows the outputs that it was told to `start` from."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[Loss] = []
        self.product: Product | None = None
        self._plain = WeakTensorKeyDictionary()

    def start(self, tensor: torch.Tensor, trail: Trail) -> None:
        """Follow `tensor` from now on: an output of a layer, or an input of the model."""
        if _can_be_followed(tensor):
            self._set(tensor, trail)

    def trail(self, tensor: torch.Tensor) -> Trail | None:
        """Return what is known of a tensor; None if it came from out of sight."""
        if not _can_be_followed(tensor):
            return None
        node = _node(tensor)
        if node is None:
            known: Label = self._plain.get(tensor, NO_LABEL)
        else:
            known = self._of_node(node, tensor.output_nr)
        trail, version = known
        if version is not None and version != version_of(tensor):  # changed in place where nobody saw it
            return None if trail is None else Trail(passed=_joined([trail], UNKNOWN))
        return trail

    def release(self) -> None:
        """Let go of all tensors."""
        self._plain.clear()
        self.product = None

    def mark_reached(self, outputs: Any) -> None:
        """Note what the outputs of a model depend on, as a backward pass would."""
        roots = [tensor for tensor in tensors_in(outputs) if _can_be_followed(tensor)]
        for tensor in roots:
            self._note_use(LAST, [self.trail(tensor)], [tensor], as_it_is=True, reached=True)
        nodes = [node for tensor in roots if (node := _node(tensor)) is not None]
        seen = set(nodes)
        while nodes:
            node = nodes.pop()
            for mark in node.metadata.get((self, "marks"), ()):
                mark.reached = True
            parents = {parent for parent, _ in node.next_functions if parent is not None} - seen
            seen |= parents
            nodes.extend(parents)

    def mark_when_reached(self, tensor: torch.Tensor, mark: Use | Call | Loss) -> None:
        """Note it in `mark` when a gradient comes back through `tensor`."""
        if (node := _node(tensor)) is not None:
            _mark_node(self, node, mark)

    def __torch_function__(
        self, func: Function, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run `func`, and note what becomes of the values that it takes."""
        kwargs = kwargs or {}
        if attribute_of(func) not in TENSOR_ATTRIBUTES | {None}:
            return func(*args, **kwargs)
        call = called(func, args, kwargs)
        tensors = call.tensors
        taken = [(tensor, trail) for tensor in tensors if (trail := self.trail(tensor)) is not None]
        if not taken and call.name != "linear" and call.name not in LOSSES:
            return func(*args, **kwargs)
        step = _Step(self, call, tensors, taken)
        result = func(*args, **kwargs)
        step.note(result)
        return result

    def _set(self, tensor: torch.Tensor, trail: Trail) -> None:
        label = (trail, version_of(tensor))
        if (node := _node(tensor)) is None:
            self._plain[tensor] = label
        else:
            node.metadata.setdefault(self, {})[tensor.output_nr] = label

    def _of_node(self, node: Any, output: int) -> Label:
        """Return what is known of an output of a node, read off the graph where no call was seen."""
        waiting = [node]
        while waiting:
            last = waiting[-1]
            unread = [p for p, _ in _parents(last) if not self._is_read(p)] if not self._is_read(last) else []
            if unread:
                waiting.extend(unread)
            else:
                waiting.pop()
                if not self._is_read(last):
                    self._read(last)
        labels: dict[int, Label] = node.metadata[self]
        return labels.get(output) or labels.get(ANY, NO_LABEL)

    def _is_read(self, node: Any) -> bool:
        return _is_leaf(node) or self in node.metadata

    def _read(self, node: Any) -> None:
        """Note the trails of the outputs of a node that no call was seen to make; those of its inputs are known."""
        trails = [self._at(parent, output) for parent, output in _parents(node)]
        if _is_identity(node):
            node.metadata[self] = {number: (trail, None) for number, trail in enumerate(trails)}
            return
        known = [trail for trail in trails if trail is not None]
        trail = Trail(passed=_joined(known, name_of_node(node))) if known else None
        node.metadata[self] = {ANY: (trail, None)}
        for taken in known:
            if taken.call is not None:
                use = Use(UNKNOWN, taken.activation)
                taken.call.uses.append(use)
                _mark_node(self, node, use)

    def _at(self, node: Any, output: int) -> Trail | None:
        if _is_leaf(node):  # its node outlives the graph, and must hold nothing
            known: Label = self._plain.get(node.variable, NO_LABEL)
        else:
            known = self._of_node(node, output)
        return known[0]

    def _note_use(
        self,
        what: Activation | str,
        trails: Iterable[Trail | None],
        results: list[torch.Tensor],
        *,
        as_it_is: bool = False,
        reached: bool = False,
    ) -> Use | None:
        """Note that a function took outputs of layers; return the last of these uses."""
        use = None
        for trail in trails:
            if trail is None or trail.call is None:
                continue
            name = f"modified_{what}" if isinstance(what, str) and what in ACTIVATIONS else what
            use = Use(name, trail.activation, as_it_is, reached)
            trail.call.uses.append(use)
            for result in results:
                self.mark_when_reached(result, use)
        return use


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
        self._edges = {_edge(tensor) for tensor in tensors}
        self._single = self._single_output()
        self._sample: Sample | None = None
        self._before: torch.Tensor | None = None
        self._version = 0
        if self._single is not None:
            self._look_before(*self._single)

    def note(self, result: Any) -> None:
        """Note what became of the arguments."""
        results = [tensor for tensor in tensors_in(result) if _can_be_followed(tensor)]
        if self._call.name == "setitem":
            results.append(self._tensors[0])
        flowing = [tensor for tensor in results if tensor.requires_grad]
        made = [t for t in flowing if _node(t) is not None and _edge(t) not in self._edges]
        loss = self._note_loss(made)
        trail = self._kept(results) or self._activated(results, made)
        if trail is None:
            trail = self._ended(flowing, made, loss)
        for tensor in results:
            if tensor.requires_grad or not any(t.requires_grad for t, _ in self._taken):
                self._label(tensor, trail)
            else:  # the gradient ends here
                self._label(tensor, Trail(passed=_joined([t for _, t in self._taken], "detach")))
        if self._call.name == "linear" and len(made) == 1:
            self._note_product(made[0])

    def _label(self, tensor: torch.Tensor, trail: Trail | None) -> None:
        if trail is not None and tensor.dtype is not torch.bool:
            self._watch._set(tensor, trail)

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
        if self._call.name in REARRANGEMENTS and len(results) == 1:
            return trail if trail.call is None else self._rearranged(tensor, trail, results[0])
        return None

    def _rearranged(self, tensor: torch.Tensor, trail: Trail, result: torch.Tensor) -> Trail:
        """Do to the indices of the numbers what was done to the numbers."""
        in_order = (
            tensor.is_contiguous() and result.is_contiguous() and tensor.data_ptr() == result.data_ptr()
        )
        if trail.places is None and in_order and tensor.numel() == result.numel():
            return trail
        places = trail.places
        if places is None:
            places = torch.arange(tensor.numel(), device=tensor.device).view(tensor.shape)
        args = tuple(places if value is tensor else value for value in self._call.args)
        kwargs = {key: places if value is tensor else value for key, value in self._call.kwargs.items()}
        moved = self._call.func(*args, **kwargs)
        return replace(trail, places=moved, passed=_joined([trail], self._call.name))

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
                    self._watch._note_use(activation, [trail], made)
                    return replace(trail, activation=activation)
                return None
        if self._before is None or not self._alone(tensor) or made[0].shape != self._before.shape:
            return None
        if version_of(tensor) != self._version and not self._call.in_place:
            return None
        if torch.equal(made[0].detach(), self._before):
            return trail
        if trail.activation is None and selects_as_relu(self._call, tensor, self._before, made[0].detach()):
            self._watch._note_use(Activation("relu"), [trail], made)
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
            use = self._watch._note_use(name, taken, made, as_it_is=as_it_is, reached=not made)
        if not trails:
            return None
        trail = Trail(passed=_joined(trails, self._call.name))
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
            self._watch.mark_when_reached(made[0], loss)
            for trail in trails:
                if trail.logits_of is not None and loss.name.endswith("cross_entropy"):
                    trail.logits_of.what, trail.logits_of.as_it_is = loss.name, True
        return loss

    def _note_product(self, output: torch.Tensor) -> None:
        inputs = self._call.argument(0, "input")
        came = next((trail for tensor, trail in self._taken if tensor is inputs), None)
        weight, bias = self._call.argument(1, "weight"), self._call.argument(2, "bias")
        self._watch.product = Product(inputs, weight, bias, output, came)


def _can_be_followed(tensor: torch.Tensor) -> bool:
    """Whether the numbers of a tensor can be looked at: not inside `vmap` or `grad`, not nested, sparse or absent."""
    return (
        not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
        and tensor.layout is torch.strided
        and not tensor.is_nested
        and not tensor.is_meta
    )


def _node(tensor: torch.Tensor) -> Any:
    """Return the node of autograd's graph that made a tensor; None for none, or if autograd refuses to say."""
    try:
        return tensor.grad_fn
    except RuntimeError:  # a view made without gradients, whose base was changed
        return None


def _edge(tensor: torch.Tensor) -> tuple[Any, int]:
    return _node(tensor), tensor.output_nr


def _is_leaf(node: Any) -> bool:
    return type(node).__name__ == "AccumulateGrad"


def _parents(node: Any) -> Iterator[tuple[Any, int]]:
    return ((parent, output) for parent, output in node.next_functions if parent is not None)


def _is_identity(node: Any) -> bool:
    forward = getattr(type(node), "_forward_cls", None)
    return forward is BackwardHookFunction or (
        forward is not None and forward.__module__.startswith("torch.") and forward.__name__ in IDENTITIES
    )


def _joined(trails: list[Trail], name: str) -> tuple[str, ...]:
    """Return what happened to several values, and then a function of that name, each name once."""
    return tuple(dict.fromkeys([*(passed for trail in trails for passed in trail.passed), name]))


def _mark_node(watch: Watch, node: Any, mark: Use | Call | Loss) -> None:
    """Note it in `mark` when a gradient comes back through `node`, or `Watch.mark_reached` passes by it."""
    node.metadata.setdefault((watch, "marks"), []).append(mark)
    node.register_prehook(lambda *_: setattr(mark, "reached", True))
