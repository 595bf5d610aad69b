"""Which layer comes after which: from the file, from numbers in names, and checked against the sizes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby, islice

from .layers import FoundLayer, natural
from .orientation import chains

Sizes = tuple[int, int]

LONGEST_SEARCH = 8
"""Layers whose orders are all tried."""

MOST_CHAINS = 1000
"""Orders that fit, of which those are looked for that also keep the parts of a model together."""


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
    chains_found = _all_chains(layers, shapes)
    if len(chains_found) == 1:
        return chains_found[0], "the layers are taken in the only order in which their sizes fit"
    together = [chain for chain in chains_found if _parts_together(chain)]
    if len(together) == 1:
        return together[0], (
            "the layers are taken in the only order in which their sizes fit and those of one part of the model, by their "
            "names, come one after the other"
        )
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


def _all_chains(layers: Sequence[FoundLayer], shapes: dict[str, Sizes]) -> list[list[FoundLayer]]:
    """Return the orders in which each layer's outputs are the next one's inputs; none if they are not all tried."""
    if len(layers) > LONGEST_SEARCH or any(layer.title not in shapes for layer in layers):
        return []
    found = list(islice(_chains([], list(layers), shapes), MOST_CHAINS + 1))
    return found if len(found) <= MOST_CHAINS else []


def _parts_together(chain: Sequence[FoundLayer]) -> bool:
    """Whether layers whose names begin with the same words come one after the other."""
    parts = [part for part, _ in groupby(layer.words[:-1] for layer in chain) if part]
    return len(set(parts)) == len(parts)


def _chains(
    begun: list[FoundLayer], rest: list[FoundLayer], shapes: dict[str, Sizes]
) -> Iterator[list[FoundLayer]]:
    """Yield every order of the layers in which sizes fit."""
    if not rest:
        yield begun
    for layer in rest:
        if not begun or chains([shapes[begun[-1].title], shapes[layer.title]]):
            yield from _chains([*begun, layer], [other for other in rest if other is not layer], shapes)
