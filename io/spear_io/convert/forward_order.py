"""Which layer comes after which: from the file, from numbers in names, and checked against the sizes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

from .layers import FoundLayer, natural
from .orientation import chains

Sizes = tuple[int, int]

LONGEST_SEARCH = 8
"""Layers whose orders are all tried."""


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
            in_file = candidate is candidates[0]
            return (
                candidate,
                None if in_file else "the layers are taken in the order of their names: their sizes fit",
            )
    chain = _only_chain(layers, shapes)
    if chain is not None:
        return chain, "the layers are taken in the only order in which their sizes fit"
    return candidates[0], "which layer follows which is not sure: their sizes do not fit one after the other"


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
    if len(layers) > LONGEST_SEARCH or any(layer.title not in shapes for layer in layers):
        return None
    found = list(islice(_chains([], list(layers), shapes), 2))
    return found[0] if len(found) == 1 else None


def _chains(
    begun: list[FoundLayer], rest: list[FoundLayer], shapes: dict[str, Sizes]
) -> Iterator[list[FoundLayer]]:
    """Yield every order of the layers in which sizes fit."""
    if not rest:
        yield begun
    for layer in rest:
        if not begun or chains([shapes[begun[-1].title], shapes[layer.title]]):
            yield from _chains([*begun, layer], [other for other in rest if other is not layer], shapes)
