"""Gradients or weights of a PyTorch model that are in hand, as one update."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from spear_io.files.dump import RecordInfo
from spear_io.files.dump_writer import LayerArrays

from ._layers import activations_of, check_names
from ._round import RecordingError, Update
from ._torch_observers import linear_layers, observed, owners_of, unusable
from ._torch_tensors import DTYPES, rows_of, to_numpy

PRODUCER = f"torch {torch.__version__}"

Array = Any
Tensors = Mapping[str, torch.Tensor]
Gradients = Mapping[str, tuple[torch.Tensor, torch.Tensor | None]]
"""By parameter name: a gradient alone, or weights after and before."""


@dataclass
class Recorder(Update):
    """What the layers of a model share; after `record_gradients`, filled when the block ends."""

    producer: str = PRODUCER
    to_numpy: Callable[[Any], Any] = to_numpy


def update_of(
    model: nn.Module,
    parameters: Tensors,
    gradients: Gradients,
    *,
    info: RecordInfo,
    inputs: Any,
    activations: Mapping[str, str] | None,
) -> Recorder:
    """Return what `gradients` say about the fully connected layers of `model`, at these parameters."""
    recorder = Recorder(info=info)
    layers, owners = linear_layers(model), owners_of(model)
    paths = {id(module): f"{path}." if path else "" for path, module in model.named_modules()}
    for name, (activation, true_inputs) in _seen(model, layers, parameters, inputs, activations).items():
        weight, bias = (f"{paths[id(layers[name])]}{leaf}" for leaf in ("weight", "bias"))
        reason = unusable(layers[name], owners) or _not_given(weight, parameters, gradients)
        if reason is not None:
            recorder.skipped[name] = reason
            continue
        recorder.layers[name] = LayerArrays(
            weight_grad=_rows(weight, parameters, gradients),
            bias_grad=_rows(bias, parameters, gradients) if bias in gradients else None,
            weight=rows_of(parameters[weight]),
            bias=rows_of(parameters.get(bias)),
            inputs=true_inputs,
            activation=activation,
        )
    return recorder


def _seen(
    model: nn.Module,
    layers: dict[str, nn.Linear],
    parameters: Tensors,
    inputs: Any,
    activations: Mapping[str, str] | None,
) -> dict[str, tuple[str, Array]]:
    """Return (what follows it, its true inputs) of each layer in forward order, seen if there are `inputs`."""
    if inputs is None:
        return {name: (follows, None) for name, follows in activations_of(list(layers), activations).items()}
    given = activations or {}
    check_names(given, layers, "activations")
    with observed(layers, keep_inputs=True, copy=False) as observation:
        _run(model, parameters, inputs)
    return {o.name: (given.get(o.name, o.activation), o.inputs()) for o in observation.in_order()}


def _run(model: nn.Module, parameters: Tensors, inputs: Any) -> None:
    """Call `model` with these parameters and inputs, and leave it and the random numbers as they were."""
    state = {name: parameters.get(name, buffer).clone() for name, buffer in model.named_buffers()}
    for name, parameter in model.named_parameters():
        state[name] = parameters.get(name, parameter).detach().requires_grad_(parameter.requires_grad)
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=list(devices)), torch.enable_grad():
        torch.func.functional_call(model, state, inputs)


def _not_given(weight: str, parameters: Tensors, gradients: Gradients) -> str | None:
    """Why there is no gradient of this weight to write; None if there is."""
    if weight not in gradients or weight not in parameters:
        return "nothing of it was given"
    dtype = gradients[weight][0].dtype
    return None if dtype in DTYPES else f"its gradient has dtype {dtype}, which a dump cannot hold"


def _rows(name: str, parameters: Tensors, gradients: Gradients) -> Array:
    """Return one gradient or difference, found to fit its parameter."""
    tensor, before = gradients[name]
    if tensor.shape != parameters[name].shape:
        msg = (
            f"{name!r} has shape {tuple(tensor.shape)}, but the parameter has {tuple(parameters[name].shape)}: "
            "hand over what belongs to the same model"
        )
        raise RecordingError(msg)
    if before is not None and tensor.data_ptr() == before.data_ptr():
        msg = (
            "the weights before and after are the same tensors: keep a copy before the training, "
            "before = copy.deepcopy(model.state_dict())"
        )
        raise RecordingError(msg)
    return rows_of(tensor, before)
