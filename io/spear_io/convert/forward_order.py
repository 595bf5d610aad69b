"""Which layer comes after which: from the file, from numbers in names, and checked against the sizes."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .orientation import chains
from .pairing import FoundLayer

Sizes = tuple[int, int]


def natural(layer: FoundLayer) -> list[tuple[int, str]]:
    """Sort key of a name: numbers in it by their value, so that layer_10 comes after layer_2."""
    parts = re.findall(r"\d+|\D+", " ".join(layer.words))
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def forward_order(
    layers: Sequence[FoundLayer], shapes: dict[str, Sizes], in_forward_order: bool
) -> tuple[list[FoundLayer], str | None]:
    """Return the layers as they come in the forward pass, and what to say about it.

    Parameters
    ----------
    layers : sequence of FoundLayer
        In the order of the file.
    shapes : dict
        (m, n) of the fully connected ones, by title.
    in_forward_order : bool
        Whether the file's order is that of the forward pass, as far as it tells.
    """
    by_name = sorted(layers, key=natural)
    candidates = [list(layers), by_name] if in_forward_order else [by_name]
    for candidate in candidates:
        if _fits(candidate, shapes):
            said = None if candidate is candidates[0] else "by the numbers in their names"
            return (
                candidate,
                said and f"the layers are taken {said}: in the order of the file sizes do not fit",
            )
    chain = _only_chain(layers, shapes)
    if chain is not None:
        return chain, "the layers are taken in the only order in which their sizes fit"
    return candidates[
        0
    ], "the sizes of the layers do not fit one after the other: their order is that of the file"


def _fits(layers: Sequence[FoundLayer], shapes: dict[str, Sizes]) -> bool:
    """Whether fully connected layers fit their neighbours; other layers fit everything."""
    run: list[Sizes] = []
    for layer in layers:
        if layer.title not in shapes:
            run = []
            continue
        run.append(shapes[layer.title])
        if not chains(run[-2:]):
            return False
    return True


def _only_chain(layers: Sequence[FoundLayer], shapes: dict[str, Sizes]) -> list[FoundLayer] | None:
    """Return the order in which each layer's outputs are the next one's inputs, if there is just one."""
    if any(layer.title not in shapes for layer in layers):
        return None
    inputs = {shapes[layer.title][1]: layer for layer in layers}
    outputs = {shapes[layer.title][0] for layer in layers}
    first = [layer for size, layer in inputs.items() if size not in outputs]
    if len(inputs) < len(layers) or len(first) != 1:
        return None
    chain = first
    while (following := inputs.get(shapes[chain[-1].title][0])) is not None and len(chain) <= len(layers):
        chain.append(following)
    return chain if len(chain) == len(layers) else None
