"""What follows a layer: seen by watching which PyTorch functions take its output."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

UNKNOWN = "unknown"
"""The activation of a layer whose output no watched function took, e.g. a custom autograd function."""

REARRANGEMENTS = frozenset(
    {
        "view",
        "reshape",
        "flatten",
        "unflatten",
        "squeeze",
        "unsqueeze",
        "t",
        "transpose",
        "permute",
        "__get__",
    }
)
"""Functions that keep every number in another place; `__get__` stands for attributes such as `z.T`."""

CASTS = frozenset(
    {"to", "type", "float", "double", "half", "bfloat16", "clone", "contiguous", "requires_grad_"}
)
"""Functions that keep every number in its place, perhaps rounded."""

CLAMPS = frozenset({"clamp", "clamp_", "clip", "clip_", "clamp_min", "clamp_min_"})

Function = Callable[..., Any]


class ActivationWatch(TorchFunctionMode):  # type: ignore[misc]
    """While active, remembers which functions took the outputs that it was told to `watch`.

    A mode sees modules, functions, methods and operators alike, because all of them end in the same calls.
    """

    def __init__(self) -> None:
        super().__init__()
        # The tensors are held, not only their ids: an id is used again as soon as its object is gone.
        self._outputs: dict[int, tuple[torch.Tensor, str]] = {}
        self._followers: defaultdict[str, set[str]] = defaultdict(set)

    def watch(self, output: torch.Tensor, layer: str) -> None:
        """Note from now on what takes `output`, an output of the layer of that name."""
        self._outputs[id(output)] = (output, layer)

    def release(self) -> None:
        """Let go of all tensors."""
        self._outputs.clear()

    def activation(self, layer: str) -> str:
        """Return "relu" if nothing but ReLUs took the layer's outputs; else the names of what did, joined by +."""
        return "+".join(sorted(self._followers[layer])) or UNKNOWN

    def __torch_function__(
        self, func: Function, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run `func`, and note it if it takes a watched output and passes a gradient back to it."""
        kwargs = kwargs or {}
        taken = [self._outputs[id(t)] for t in _tensors((args, kwargs)) if id(t) in self._outputs]
        result = func(*args, **kwargs)
        for output, layer in taken:
            self._note(output, layer, func, args, kwargs, result)
        return result

    def _note(
        self,
        output: torch.Tensor,
        layer: str,
        func: Function,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        result: Any,
    ) -> None:
        name = func.__name__
        differentiable = [tensor for tensor in _tensors(result) if tensor.requires_grad]
        if _keeps_numbers(name, kwargs):
            for tensor in differentiable:
                self.watch(tensor, layer)
        elif differentiable or name == "__setitem__":  # not a shape, a comparison, a detached copy
            self._followers[layer].add(_activation_name(name, args, kwargs))
            if name == "__setitem__" or any(tensor is output for tensor in differentiable):
                self._outputs.pop(id(output), None)  # in place: what comes next follows the activation


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors in arbitrarily nested arguments or results."""
    if isinstance(values, torch.Tensor):
        yield values
    elif isinstance(values, dict):
        yield from _tensors(list(values.values()))
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _tensors(value)


def _keeps_numbers(name: str, kwargs: dict[str, Any]) -> bool:
    """Whether what follows a function of that name still follows the layer."""
    return name in REARRANGEMENTS | CASTS or (name == "dropout" and kwargs.get("training") is False)


def _activation_name(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """Return the name of an activation however it was called: "relu" for `relu_`, `clamp(min=0)`, …"""
    if name in CLAMPS:
        lower = kwargs.get("min", args[1] if len(args) > 1 else None)
        upper = kwargs.get("max", args[2] if len(args) > 2 else None)
        if upper is None and not isinstance(lower, torch.Tensor) and lower == 0:
            return "relu"
    return name.strip("_")
