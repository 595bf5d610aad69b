"""What the configuration of a Keras model says of its layers: their classes, their order, and how they are wired."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from typing import Any

from ..adapters.keras_operations import is_custom, of_custom_layer, operations_of
from ..adapters.wiring import Kept, Operation, Output, Step

DEEPEST = 64
"""Models inside each other."""

LARGEST_NETWORK = 100_000
"""Operations of a network, models that are used several times counted as often: more is no model."""

Slopes = Callable[[str], Any]
"""Title of a PReLU → its slopes, or None."""

Path = tuple[str, ...]
"""Names of the models that a layer is in, from the outermost one inside the whole, and its own."""

Call = tuple[str, int]
"""Name of a layer, and which of its calls."""


@dataclass(frozen=True)
class ModelConfig:
    """The layers of a model in forward order, those of models inside it in their place."""

    kinds: Mapping[str, str] = field(default_factory=dict)
    """Class of each layer by its title, e.g. "Dense"."""
    network: tuple[Step, ...] = ()
    """What they do, layers under their titles; those whose title is not the only one of its kind have none."""


def model_config(config: Any, slopes: Slopes) -> ModelConfig:
    """Return what a configuration says.

    Parameters
    ----------
    config : mapping
        The serialised model; one that is written as code of its own has no layers to list.
    slopes : callable
        Tells what the configuration does not: the slopes of a PReLU by its title.

    Raises
    ------
    ValueError
        If layers take each other's outputs in a circle, or there are too many.
    """
    named = list(_named(config, ()))
    titles = titled([path for path, _ in named])
    network = _Network(slopes, titles)
    network.add(Output(), network.expand(config, [], ()))
    return ModelConfig({titles[path]: kind for path, kind in named if path in titles}, tuple(network.steps))


def titles_of(config: Any) -> dict[Path, str]:
    """Return what a configuration calls its layers, by their paths."""
    return titled([path for path, _ in _named(config, ())])


def titled(paths: Iterable[Path]) -> dict[Path, str]:
    """Return what layers are called: by their names, or with those of the models that they are in if others have theirs.

    What even so is not the only one of its kind has no title.
    """
    paths = list(paths)
    names, whole = Counter(path[-1] for path in paths), Counter(paths)
    return {path: path[-1] if names[path[-1]] == 1 else "/".join(path) for path in paths if whole[path] == 1}


def _layers(model: Any) -> list[Any]:
    """Return the layers of a model; the oldest configurations of a sequence are nothing but its layers."""
    config = model["config"]
    layers: list[Any] = config.get("layers", []) if isinstance(config, dict) else config
    return layers


def _is_model(layer: Any) -> bool:
    return isinstance(layer["config"], dict) and isinstance(layer["config"].get("layers"), list)


def _named(model: Any, path: Path) -> Iterator[tuple[Path, str]]:
    """Yield path and class of every layer that is no model itself."""
    for layer in _layers(model):
        inner = (*path, layer["config"]["name"])
        if _is_model(layer) and len(path) < DEEPEST:
            yield from _named(layer, inner)
        else:
            yield inner, layer["class_name"]


@dataclass
class _Network:
    slopes: Slopes
    titles: Mapping[Path, str]
    steps: list[Step] = field(default_factory=list)
    visits: int = 0

    def add(self, operation: Operation, takes: Sequence[int] = ()) -> int:
        if len(self.steps) >= LARGEST_NETWORK:
            msg = f"a network of more than {LARGEST_NETWORK} operations"
            raise ValueError(msg)
        self.steps.append(Step(operation, tuple(dict.fromkeys(takes))))
        return len(self.steps) - 1

    def taken(self, outputs: Mapping[Call, Sequence[int]], calls: Sequence[Call]) -> list[int]:
        """Return where the outputs of several calls are; a model may hand out and take the same ones again and again."""
        self.visits += sum(len(outputs[call]) for call in calls)
        if self.visits > LARGEST_NETWORK:
            msg = f"a network of more than {LARGEST_NETWORK} connections"
            raise ValueError(msg)
        return [at for call in calls for at in outputs[call]]

    def expand(self, model: Any, entries: Sequence[int], path: Path) -> list[int]:
        """Add the layers of a model whose inputs are at `entries`; return where its outputs are."""
        layers = {layer["config"]["name"]: layer for layer in _layers(model)}
        entries = [self.add(Kept(), entries[at : at + 1]) for at in range(max(len(entries), 1))]
        if model["class_name"] == "Sequential":
            at: Sequence[int] = entries
            for name, layer in layers.items():
                at = self._call((*path, name), layer, at)
            return list(at)
        calls: dict[Call, Any] = {
            (name, number): node
            for name, layer in layers.items()
            for number, node in enumerate(layer.get("inbound_nodes") or [None])
        }
        sources = {call: [_known(s, calls) for s in _mentioned(node, layers)] for call, node in calls.items()}
        begin = [name for name, _ in _mentioned(model["config"].get("input_layers"), layers)]
        if len(begin) == len(entries):
            given = {name: [at] for name, at in zip(begin, entries, strict=True)}
        else:  # which is which cannot be told
            given = {name: list(entries) for name in begin}
        outputs: dict[Call, list[int]] = {}
        for call in _forward(sources):
            name, takes = call[0], self.taken(outputs, sources[call])
            outputs[call] = self._call((*path, name), layers[name], given.get(name, takes))
        ends = [_known(end, calls) for end in _mentioned(model["config"].get("output_layers"), layers)]
        return self.taken(outputs, ends or list(outputs))

    def _call(self, path: Path, layer: Any, takes: Sequence[int]) -> list[int]:
        """Add one call of a layer; return where its outputs are."""
        if _is_model(layer) and len(path) <= DEEPEST:
            return self.expand(layer, takes, path)
        kind, config = layer["class_name"], layer["config"]
        title = self.titles.get(path)
        if is_custom(layer):
            operations = of_custom_layer(kind, config, title)
        else:
            slope = self.slopes(title) if kind == "PReLU" and title else None
            operations = operations_of(kind, config, layer=title, slope=slope)
        for operation in operations:
            takes = [self.add(operation, takes)]
        return list(takes)


def _forward(sources: Mapping[Call, Sequence[Call]]) -> list[Call]:
    """Return the calls in an order in which each comes after those whose outputs it takes."""
    try:
        return list(TopologicalSorter(sources).static_order())
    except CycleError as error:
        msg = "its layers take each other's outputs in a circle"
        raise ValueError(msg) from error


def _known(source: Call, calls: Mapping[Call, Any]) -> Call:
    """Return a call that is there: models count their own calls in another way."""
    return source if source in calls else (source[0], 0)


def _mentioned(node: Any, layers: Mapping[str, Any]) -> Iterator[Call]:
    """Yield the calls that arguments name: [name, node, tensor, …], in every version of Keras."""
    if isinstance(node, dict):
        for value in node.values():
            yield from _mentioned(value, layers)
    elif isinstance(node, list):
        if len(node) >= 3 and isinstance(node[0], str) and isinstance(node[1], int) and node[0] in layers:
            yield node[0], node[1]
        else:
            for value in node:
                yield from _mentioned(value, layers)
