"""What is known of the values in a running model: from which layer each came, and what happened on the way.

A value with a gradient is known by its place in autograd's graph: the node that made it, and the number of its output.
So a full backward hook, a view or a change in place can neither lose nor mix up what is followed. Its `Trail` is kept
in the `metadata` of the node, and goes when the graph goes. A value without a gradient, such as what a frozen part of
the model computes, is known by its tensor.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from spear_np import ACTIVATIONS, Activation

from ._torch_functions import name_of_node, tensors_in
from ._torch_losses import Loss
from ._torch_tensors import version_of

UNKNOWN = "unknown"
"""What follows a layer whose output no watched function took, e.g. a custom autograd function."""

LAST = "output"
"""What follows a layer whose output is that of the model."""

IDENTITIES = (
    ("torch.nn.modules._functions", "BackwardHookFunction"),
    ("torch.nn.parallel.distributed", "_DDPSink"),
)
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
    numbers: int
    """How many numbers the output has."""
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
        """Whether every number is there and in its place."""
        if self.places is None or self.call is None:
            return True
        if self.places.numel() != self.call.numbers:
            return False
        places = self.places.reshape(-1)
        return bool(torch.equal(places, torch.arange(len(places), device=places.device)))


Label = tuple[Trail | None, int | None]
"""What is known of a value, and how often its tensor had been changed in place when that was noted, if it was seen."""

NO_LABEL: Label = (None, None)


class Trails:
    """The trails of all values that are followed."""

    def __init__(self) -> None:
        self._plain = WeakTensorKeyDictionary()

    def set(self, tensor: torch.Tensor, trail: Trail) -> None:
        """Note what is known of a tensor; it has to be one that `can_be_followed`."""
        label = (trail, version_of(tensor))
        if (node := node_of(tensor)) is None:
            self._plain[tensor] = label
        else:
            node.metadata.setdefault(self, {})[tensor.output_nr] = label

    def of(self, tensor: torch.Tensor) -> Trail | None:
        """Return what is known of a tensor; None if it came from out of sight."""
        if not can_be_followed(tensor):
            return None
        node = node_of(tensor)
        if node is None:
            known: Label = self._plain.get(tensor, NO_LABEL)
        else:
            known = self._of_node(node, tensor.output_nr)
        trail, version = known
        if version is not None and version != version_of(tensor):  # changed in place where nobody saw it
            return None if trail is None else Trail(passed=joined([trail], UNKNOWN))
        return trail

    def release(self) -> None:
        """Let go of all tensors."""
        self._plain.clear()

    def note_use(
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

    def mark_reached(self, outputs: Any) -> None:
        """Note what the outputs of a model depend on, as a backward pass would."""
        roots = [tensor for tensor in tensors_in(outputs) if can_be_followed(tensor)]
        for tensor in roots:
            self.note_use(LAST, [self.of(tensor)], [tensor], as_it_is=True, reached=True)
        nodes = [node for tensor in roots if (node := node_of(tensor)) is not None]
        seen = set(nodes)
        while nodes:
            node = nodes.pop()
            for mark in node.metadata.get((self, "marks"), ()):
                mark.reached = True
            parents = set(_parents(node)) - seen
            seen |= parents
            nodes.extend(parents)

    def mark_when_reached(self, tensor: torch.Tensor, mark: Use | Call | Loss) -> None:
        """Note it in `mark` when a gradient comes back through `tensor`."""
        if (node := node_of(tensor)) is not None:
            _mark(self, node, mark)

    def _of_node(self, node: Any, output: int) -> Label:
        """Return what is known of an output of a node, read off the graph where no call was seen."""
        waiting = [node]
        while waiting:
            last = waiting[-1]
            unread = [] if self._is_read(last) else [p for p in _parents(last) if not self._is_read(p)]
            if unread:
                waiting.extend(unread)
                continue
            waiting.pop()
            if not self._is_read(last):
                self._read(last)
        labels: dict[int, Label] = node.metadata[self]
        return labels.get(output) or labels.get(ANY, NO_LABEL)

    def _is_read(self, node: Any) -> bool:
        return _is_leaf(node) or self in node.metadata

    def _read(self, node: Any) -> None:
        """Note the trails of the outputs of a node that no call was seen to make; those of its inputs are known."""
        trails = [self._at(parent, output) for parent, output in node.next_functions]
        if _is_identity(node):
            node.metadata[self] = {number: (trail, None) for number, trail in enumerate(trails)}
            return
        known = [trail for trail in trails if trail is not None]
        trail = Trail(passed=joined(known, name_of_node(node))) if known else None
        node.metadata[self] = {ANY: (trail, None)}
        for taken in known:
            if taken.call is not None:
                use = Use(UNKNOWN, taken.activation)
                taken.call.uses.append(use)
                _mark(self, node, use)

    def _at(self, node: Any, output: int) -> Trail | None:
        if node is None:
            return None
        if _is_leaf(node):  # its node outlives the graph, and must hold nothing
            known: Label = self._plain.get(node.variable, NO_LABEL)
        else:
            known = self._of_node(node, output)
        return known[0]


def can_be_followed(tensor: torch.Tensor) -> bool:
    """Whether the numbers of a tensor can be looked at: not inside `vmap` or `grad`, not nested, sparse or absent."""
    return (
        not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
        and tensor.layout is torch.strided
        and not tensor.is_nested
        and not tensor.is_meta
    )


def node_of(tensor: torch.Tensor) -> Any:
    """Return the node of autograd's graph that made a tensor; None for none, or if autograd refuses to say."""
    try:
        return tensor.grad_fn
    except RuntimeError:  # a view made without gradients, whose base was changed
        return None


def edge_of(tensor: torch.Tensor) -> tuple[Any, int]:
    """Return the place of a tensor in autograd's graph: its node, and the number of the output that it is."""
    return node_of(tensor), tensor.output_nr


def _is_leaf(node: Any) -> bool:
    return type(node).__name__ == "AccumulateGrad"


def _parents(node: Any) -> list[Any]:
    return [parent for parent, _ in node.next_functions if parent is not None]


def _is_identity(node: Any) -> bool:
    forward = getattr(type(node), "_forward_cls", None)
    return forward is not None and (forward.__module__, forward.__name__) in IDENTITIES


def joined(trails: list[Trail], name: str) -> tuple[str, ...]:
    """Return what happened to several values, and then a function of that name, each name once."""
    return tuple(dict.fromkeys([*(passed for trail in trails for passed in trail.passed), name]))


def _mark(trails: Trails, node: Any, mark: Use | Call | Loss) -> None:
    """Note it in `mark` when a gradient comes back through `node`, or `Trails.mark_reached` passes by it."""
    node.metadata.setdefault((trails, "marks"), []).append(mark)
    node.register_prehook(lambda *_: setattr(mark, "reached", True))
