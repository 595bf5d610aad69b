"""Gradients or weights of a PyTorch model that are in hand, as one update."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from spear_io.files.dump import RecordInfo
from spear_io.files.dump_writer import LayerArrays
from spear_np import Activation, Sliceable
from spear_np.arrays import HostArray
from spear_np.factors.activation import as_activation

from ._layers import activations_of, check_names
from ._round import RecordingError, Update
from ._torch_links import Link
from ._torch_observers import Observation, linear_layers, observed, owners_of, unusable
from ._torch_tensors import DTYPES, rows_of, to_numpy
from ._torch_trails import UNKNOWN

PRODUCER = f"torch {torch.__version__}"

Tensors = Mapping[str, torch.Tensor]
Gradients = Mapping[str, tuple[torch.Tensor, torch.Tensor | None]]
"""By parameter name: a gradient alone, or weights after and before."""


@dataclass
class Recorder(Update):
    """What the layers of a model share; after `record_gradients`, filled when the block ends."""

    producer: str = PRODUCER
    to_numpy: Callable[[Any], HostArray] = to_numpy


def update_of(
    model: nn.Module,
    parameters: Tensors,
    gradients: Gradients,
    *,
    info: RecordInfo,
    inputs: Any,
    activations: Mapping[str, str | Activation] | None,
) -> Recorder:
    """Return what `gradients` say about the fully connected layers of `model`, at these parameters."""
    layers, owners = linear_layers(model), owners_of(model)
    paths = {id(module): f"{path}." if path else "" for path, module in model.named_modules()}
    check_names(activations or {}, layers, "activations")
    recorder = Recorder(info=info)
    usable: dict[str, tuple[str, str]] = {}
    for name, module in layers.items():
        weight, bias = (f"{paths[id(module)]}{leaf}" for leaf in ("weight", "bias"))
        reason = unusable(module, owners) or _not_given(weight, parameters, gradients)
        if reason is None:
            usable[name] = (weight, bias)
        else:
            recorder.skipped[name] = reason
    said, true_inputs = {}, dict.fromkeys(usable)
    if inputs is None:
        said = {name: Link(what) for name, what in activations_of(list(layers), activations).items()}
    else:
        with observed(model, layers, keep_inputs=True, copy=False) as seen:
            _run(model, parameters, inputs, seen)
        order = [observer.name for observer in seen.in_order() if observer.name in usable]
        said = _with(seen.links(order), activations or {})
        true_inputs = {name: seen.observers[name].inputs() for name in order}
        recorder.info = seen.with_loss(info)
    for name, link in said.items():
        if name not in usable:
            continue
        weight, bias = usable[name]
        recorder.layers[name] = LayerArrays(
            weight_grad=_rows(weight, parameters, gradients),
            bias_grad=_rows(bias, parameters, gradients) if bias in gradients else None,
            weight=rows_of(parameters[weight]),
            bias=rows_of(parameters.get(bias)),
            inputs=true_inputs[name],
            activation=link.activation,
            follows=link.follows,
            between=link.between,
        )
    return recorder


def _with(said: Mapping[str, Link], given: Mapping[str, str | Activation]) -> dict[str, Link]:
    """Return what is said of the layers, with the activations that were given where they are known better."""
    known = {}
    for name, link in said.items():
        before = link.follows
        if (
            before is not None
            and before in given
            and as_activation(given[before]) != as_activation(said[before].activation)
        ):
            link = replace(link, follows=None, between=UNKNOWN)
        known[name] = replace(link, activation=given.get(name, link.activation))
    return known


def _run(model: nn.Module, parameters: Tensors, inputs: Any, seen: Observation) -> None:
    """Call `model` with these parameters and inputs, and leave it and the random numbers as they were."""
    state = {name: parameters.get(name, buffer).clone() for name, buffer in model.named_buffers()}
    for name, parameter in model.named_parameters():
        state[name] = parameters.get(name, parameter).detach().requires_grad_(parameter.requires_grad)
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=list(devices)), torch.enable_grad():
        seen.watch.trails.mark_reached(torch.func.functional_call(model, state, inputs))


def _not_given(weight: str, parameters: Tensors, gradients: Gradients) -> str | None:
    """Why there is no gradient of this weight to write; None if there is."""
    if weight not in gradients or weight not in parameters:
        return "nothing of it was given"
    dtype = gradients[weight][0].dtype
    return None if dtype in DTYPES else f"its gradient has dtype {dtype}, which a dump cannot hold"


def _rows(name: str, parameters: Tensors, gradients: Gradients) -> Sliceable | None:
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
