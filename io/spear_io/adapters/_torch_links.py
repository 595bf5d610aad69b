"""What is said of each layer: its activation, the layer that it follows, and what stands before it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from spear_np import Activation

from ._torch_losses import Loss
from ._torch_trails import UNKNOWN, Call, Trail, Use

BRANCH = "branch"
"""Stands before a layer that takes an output as it is, where an activation takes it elsewhere."""

NO_ACTIVATION = Activation("none")

Agreement = Callable[[str, str, Activation], bool]
"""(earlier layer, later layer, activation between them) → whether the recorded numbers say the same."""


@dataclass(frozen=True)
class Link:
    """What is said of one layer; fields as in `LayerArrays`."""

    activation: str | Activation
    follows: str | None = None
    between: str | None = None


def links(
    layers: Mapping[str, Sequence[Call]], shapes: Mapping[str, tuple[int, int]], agree: Agreement
) -> dict[str, Link]:
    """Return what is said of each layer.

    A layer follows another only if that holds for each of its calls: call by call and row by row, behind the one
    activation that the other layer has. Others may take the same output: what comes back to it then is a sum.

    Parameters
    ----------
    layers : mapping
        The calls of every layer that goes into the dump, in forward order.
    shapes : mapping
        (m, n) of each: output units, input features.
    agree : callable
        Has the last word before a layer is said to follow another.
    """
    activations = {name: _activation(calls) for name, calls in layers.items()}
    said: dict[str, Link] = {}
    for name, calls in layers.items():
        earlier = {before: layers[before] for before in said}
        obstacles = [_obstacles(call.came, shapes[name][1], earlier, activations, shapes) for call in calls]
        between = "+".join(dict.fromkeys(obstacle for found in obstacles for obstacle in found)) or None
        follows = None
        before = [call.came.call for call in calls if call.came is not None and call.came.call is not None]
        if before and between is None:
            follows = before[0].layer
            activation = activations[follows]
            in_step = before == list(layers[follows]) and len(before) == len(calls)
            if not (in_step and isinstance(activation, Activation) and agree(follows, name, activation)):
                follows, between = None, UNKNOWN
        said[name] = Link(_shortest(activations[name]), follows, between)
    return said


def loss_of(losses: Iterable[Loss]) -> tuple[str | None, str | None]:
    """Return (loss, reduction) of the loss functions through which a gradient came back, joined by +; None if none."""
    seen = [loss for loss in losses if loss.reached]
    names = "+".join(dict.fromkeys(loss.name for loss in seen)) or None
    reductions = {loss.reduction for loss in seen}
    return names, reductions.pop() if len(reductions) == 1 else None


def _activation(calls: Sequence[Call]) -> str | Activation:
    """Return what all calls have in common if a dump can name it, or else the names of all that took the outputs."""
    uses = _used(use for call in calls for use in call.uses if use.applied is None)
    whats = [NO_ACTIVATION if use.as_it_is else use.what for use in uses]
    if not whats:
        return UNKNOWN
    if all(what == whats[0] for what in whats):
        return whats[0]
    return "+".join(sorted({use.what if isinstance(use.what, str) else use.what.name for use in uses}))


def _shortest(activation: str | Activation) -> str | Activation:
    """Return the name alone where it says all."""
    if isinstance(activation, Activation) and activation == Activation(activation.name):
        return activation.name
    return activation


def _obstacles(
    trail: Trail | None,
    features: int,
    earlier: Mapping[str, Sequence[Call]],
    activations: Mapping[str, str | Activation],
    shapes: Mapping[str, tuple[int, int]],
) -> tuple[str, ...]:
    """Return what keeps an input of so many features from being the activated output of an earlier layer."""
    if trail is None:
        return ()
    if trail.call is None:
        return trail.passed
    layer = trail.call.layer
    applied = () if trail.activation is None else (trail.activation.name,)
    if layer not in earlier:  # skipped, or the layer itself in an earlier call
        return ("linear", *applied)
    if (trail.activation or NO_ACTIVATION) != activations[layer]:
        return applied or (BRANCH,)
    if features != shapes[layer][0] or not trail.in_order:
        return trail.passed or ("reshape",)
    return ()


def _used(uses: Iterable[Use]) -> list[Use]:
    """Return the uses through which a gradient came back; all of them if none did."""
    uses = list(uses)
    return [use for use in uses if use.reached] or uses
