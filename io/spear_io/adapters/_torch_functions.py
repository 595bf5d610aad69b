"""PyTorch functions as calls: their names in a dump, their arguments, and which of them change no number."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

Function = Callable[..., Any]

RESHAPES = frozenset(
    {
        "view", "view_as", "reshape", "reshape_as", "flatten", "unflatten", "ravel", "squeeze", "unsqueeze",
    }
)  # fmt: skip
"""Functions that keep all numbers and their order, in another shape."""

MOVES = frozenset(
    {
        "transpose", "permute", "movedim", "moveaxis", "expand", "expand_as", "broadcast_to",
        "getitem", "narrow", "select", "index_select", "flip", "roll",
    }
)  # fmt: skip
"""Functions that put numbers in another place, repeat them or leave some out."""

CASTS = frozenset(
    {"to", "type", "type_as", "float", "double", "half", "bfloat16", "cpu", "cuda", "clone", "contiguous", "requires_grad"}
)  # fmt: skip
"""Functions that keep every number in its place, perhaps rounded."""

DROPOUTS = frozenset(
    {"dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"}
)
TENSOR_ATTRIBUTES = frozenset({"T", "mT", "H", "mH", "data", "real"})
"""Attributes of tensors that are tensors made of the same numbers."""

_REFLECTED = re.compile(r"(?:r|i)?(add|sub|mul|div|truediv|matmul|pow)")
_SYNONYMS = {
    "truediv": "div",
    "true_divide": "div",
    "divide": "div",
    "multiply": "mul",
    "subtract": "sub",
    "clip": "clamp",
    "concat": "cat",
    "concatenate": "cat",
    "special_expit": "sigmoid",
    **dict.fromkeys(("T", "mT", "H", "mH", "t", "adjoint", "swapaxes", "swapdims"), "transpose"),
    "multi_head_attention_forward": "multi_head_attention",
}


@dataclass(frozen=True)
class FunctionCall:
    """One call of a PyTorch function, however it was written: as module, function, method or operator."""

    func: Function
    name: str
    """In snake case: "add" also for `+=` and `torch.ops.aten.add.Tensor`, "relu" also for `relu_`."""
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """Return an argument that may have come by position or by name."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)

    @property
    def tensors(self) -> list[torch.Tensor]:
        """All tensors among the arguments, each once."""
        return list({id(tensor): tensor for tensor in tensors_in((self.args, self.kwargs))}.values())

    @property
    def in_place(self) -> bool:
        """Whether its name or arguments say that the result takes the place of an argument."""
        name = self.func.__name__.partition(".")[0]
        by_name = name.startswith("__i") or (name.endswith("_") and not name.endswith("__"))
        return by_name or bool(self.kwargs.get("inplace"))

    @property
    def keeps_numbers(self) -> bool:
        """Whether every number stays where it is: a cast, a copy, a dropout that is switched off."""
        if self.name in DROPOUTS:
            return self.argument(2, "training", True) is False or self.argument(1, "p", 0.5) == 0
        return self.name in CASTS


def called(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> FunctionCall:
    """Return a call as it is named in a dump."""
    return FunctionCall(func, _name_of(func), args, kwargs)


def tensors_in(values: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors in arbitrarily nested arguments or results."""
    if isinstance(values, torch.Tensor):
        yield values
    elif isinstance(values, dict):
        yield from tensors_in(list(values.values()))
    elif isinstance(values, list | tuple):
        for value in values:
            yield from tensors_in(value)


def name_of_node(node: Any) -> str:
    """Return the name of the function behind a node of autograd's graph: "gradient_reversal" for GradientReversal."""
    plain = re.sub(r"Backward\d*$", "", node.name())
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", plain.strip("_")).lower()


def attribute_of(func: Function) -> str | None:
    """Return the attribute of a tensor that a call of `func` reads; None if it is no attribute."""
    if func.__name__ != "__get__":
        return None
    return str(getattr(getattr(func, "__self__", None), "__name__", ""))


def _name_of(func: Function) -> str:
    name = func.__name__.partition(".")[0]
    if name == "__get__":
        name = attribute_of(func) or name
    if name.startswith("__"):
        name = _REFLECTED.sub(r"\1", name.strip("_")) if _REFLECTED.fullmatch(name.strip("_")) else name
    name = name.strip("_")
    return _SYNONYMS.get(name, name)
