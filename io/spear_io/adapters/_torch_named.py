"""Parameters or gradients as people hold them (a mapping, the tuple of `autograd.grad`, a list of arrays), by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from spear_np import InputError, Sliceable
from spear_np.adopt import adopted

from ._round import RecordingError
from .prefixes import AmbiguousNamesError, counterparts

Values = Mapping[str, Sliceable | None] | Sequence[Sliceable | None]
"""Tensors or arrays: by name, or all of a model in its order."""

Tensors = Mapping[str, torch.Tensor]


def tensors_by_name(model: nn.Module, values: Values, what: str) -> dict[str, torch.Tensor]:
    """Return `values` as tensors under the names that `model` has for them; None among them is left out.

    Parameters
    ----------
    model : nn.Module
        Whose parameters or state they are.
    values : mapping or sequence
        By name, perhaps with what `torch.compile`, DataParallel and the like put before the names of one side; or all
        of `model.parameters()`, of those that are trained, or of `model.state_dict()`, in their order.
    what : str
        Named in errors.

    Raises
    ------
    RecordingError
        If it is neither, does not fit the model, or fits in several ways.
    """
    if isinstance(values, Mapping):
        named = _aligned(model, values, what)
    elif isinstance(values, Sequence) and not isinstance(values, str | bytes):
        named = _in_order(model, list(values), what)
    else:
        msg = f"`{what}` is a {type(values).__name__}: hand over a mapping by name, or a list in the order of the model"
        raise RecordingError(msg)
    return {name: _tensor(name, value, what) for name, value in named.items() if value is not None}


def _aligned(model: nn.Module, values: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Return `values` under the names of the model; names that it does not know stay as they are."""
    own = list(model.state_dict(keep_vars=True))
    try:
        meant = counterparts(values, own)
    except AmbiguousNamesError as error:
        msg = (
            f"the names in `{what}` fit those of the model in several ways: without "
            f"{' or '.join(map(repr, error.choices))}; hand over those of one model"
        )
        raise RecordingError(msg) from error
    if values and own and not meant:
        msg = (
            f"no name in `{what}` is one of the model: there is {_some(values)}, but the model has {_some(own)}; hand "
            "over what belongs to this model"
        )
        raise RecordingError(msg)
    return {meant.get(name, name): value for name, value in values.items()}


def _in_order(model: nn.Module, values: list[Any], what: str) -> dict[str, Any]:
    """Return `values` under the names of what they must be by their number and shapes."""
    parameters = dict(model.named_parameters())
    state = dict(model.state_dict(keep_vars=True))
    trained = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
    for candidates in (parameters, state, trained):
        if len(candidates) == len(values) and all(
            value is None or tuple(np.shape(value)) == tuple(tensor.shape)
            for value, tensor in zip(values, candidates.values(), strict=True)
        ):
            return dict(zip(candidates, values, strict=True))
    msg = (
        f"`{what}` holds {len(values)} arrays, which do not fit the {len(parameters)} parameters of the model (with "
        f"buffers {len(state)}) one after the other: hand over all of them, in their order, or a mapping by name"
    )
    raise RecordingError(msg)


def _tensor(name: str, value: Any, what: str) -> torch.Tensor:
    """Return an array of any library as a tensor that shares its memory where it can."""
    if isinstance(value, torch.Tensor):
        return value.detach()
    try:
        array, _ = adopted(name, value)
        array = np.asarray(array)
        if array.dtype.name == "bfloat16":  # the extension type for NumPy, which PyTorch does not take
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        return (
            torch.tensor(array)
            if not array.flags.writeable
            else torch.from_numpy(np.ascontiguousarray(array))
        )
    except (InputError, TypeError, ValueError, RuntimeError) as error:
        msg = f"{name!r} in `{what}` is a {type(value).__name__} of which no tensor can be made ({error})"
        raise RecordingError(msg) from error


def _some(names: Any) -> str:
    names = list(names)
    return ", ".join(map(repr, names[:3])) + (" and more" if len(names) > 3 else "")
