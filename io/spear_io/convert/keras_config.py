"""What the configuration of a Keras model says of its layers: their order, and what follows each."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

NOTHING = "none"
"""The activation of a layer that no activation follows."""

REARRANGEMENTS = frozenset({"Flatten", "Reshape", "Permute", "Identity"})
"""Layers that keep every number in another place: what follows them still follows the layer before."""

PRODUCTS = re.compile(r"Dense$|^(Depthwise|Separable)?Conv")
"""Layers that begin with a product of their own: an activation did not come in between."""

DEEPEST = 64


@dataclass(frozen=True)
class LayerConfig:
    """One layer of a configuration."""

    kind: str
    """Name of its class, e.g. "Dense"."""
    followed_by: str
    """Activation in the terms of a dump: "relu", "none", "gelu", or the name of another layer."""


def layer_configs(config: Any) -> dict[str, LayerConfig]:
    """Return the layers of a model in forward order, those of models inside it in their place.

    Parameters
    ----------
    config : mapping
        The serialised model; one that is written as code of its own has no layers to list.
    """
    found: dict[str, LayerConfig] = {}
    _collect(config, found, 0)
    return found


def _collect(config: Any, found: dict[str, LayerConfig], depth: int) -> None:
    layers = config["config"].get("layers", []) if isinstance(config["config"], dict) else config["config"]
    by_name = {layer["config"]["name"]: layer for layer in layers}
    followers = _followers(config["class_name"], layers)
    for name, layer in by_name.items():
        if "layers" in layer["config"] and depth < DEEPEST:
            _collect(layer, found, depth + 1)
        else:
            found[name] = LayerConfig(layer["class_name"], _followed_by(name, by_name, followers, 0))


def _followers(kind: str, layers: list[Any]) -> dict[str, list[str]]:
    """Return which layers take the output of each."""
    names = [layer["config"]["name"] for layer in layers]
    if kind == "Sequential":
        return {name: names[position + 1 : position + 2] for position, name in enumerate(names)}
    followers: dict[str, list[str]] = {name: [] for name in names}
    for layer, name in zip(layers, names, strict=True):
        for source in _mentioned(layer.get("inbound_nodes", []), set(names)):
            followers[source].append(name)
    return followers


def _mentioned(nodes: Any, names: set[str]) -> Iterator[str]:
    """Yield the layers that nested call arguments name: [name, node, tensor, …], in every version of Keras."""
    if isinstance(nodes, dict):
        for value in nodes.values():
            yield from _mentioned(value, names)
    elif isinstance(nodes, list):
        if len(nodes) >= 3 and isinstance(nodes[0], str) and isinstance(nodes[1], int) and nodes[0] in names:
            yield nodes[0]
        else:
            for value in nodes:
                yield from _mentioned(value, names)


def _followed_by(name: str, layers: dict[str, Any], followers: dict[str, list[str]], depth: int) -> str:
    """Return what follows a layer: its own activation, or those of all the layers that take its output."""
    own = _activation(layers[name])
    if own != NOTHING or depth > DEEPEST:
        return own
    after = set()
    for follower in followers[name]:
        kind = layers[follower]["class_name"]
        if kind in REARRANGEMENTS:
            after.add(_followed_by(follower, layers, followers, depth + 1))
        elif PRODUCTS.search(kind):
            after.add(NOTHING)
        elif kind == "Activation" or kind == "ReLU":
            after.add(_activation(layers[follower]))
        else:
            after.add(_snake(kind))
    return "+".join(sorted(after)) or NOTHING


def _activation(layer: Any) -> str:
    """Return the activation that a layer applies itself."""
    config = layer["config"]
    if layer["class_name"] == "ReLU":
        bent = config.get("negative_slope") or config.get("threshold")
        ceiling = config.get("max_value")
        return "re_lu" if bent else {None: "relu", 6: "relu6"}.get(ceiling, f"relu clipped at {ceiling}")
    own = config.get("activation")
    if isinstance(own, dict):  # an object or a function of its own
        own = own.get("config") if isinstance(own.get("config"), str) else own.get("class_name")
    return NOTHING if own in (None, "linear") else _snake(str(own))


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
