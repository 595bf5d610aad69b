"""What is applied to each layer's output, and which layer feeds which: as is said, as the file tells, or assumed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from spear_np import Activation

from ..adapters.wiring import NONE, Wiring, wire
from ..problems import FileError, listing, printable
from .layers import FoundLayer
from .orientation import Settled
from .source import Source

RELU = Activation("relu")


@dataclass(frozen=True)
class Said:
    """What the user says of the layers; it holds whatever the file tells."""

    activation: Activation | None = None
    """Of the layers that are chosen by name; if none are, of all but the last."""
    activations: Mapping[str, Activation] = field(default_factory=dict)
    """Of single layers."""
    follows: bool = False
    """Whether each layer takes the activated output of the one before it, where nothing else is known."""
    links: Mapping[str, str | None] = field(default_factory=dict)
    """What single layers follow; None for those that follow none."""


def wired(
    ordered: Sequence[FoundLayer],
    chosen: Sequence[FoundLayer],
    settled: Mapping[str, Settled],
    source: Source,
    said: Said,
    *,
    only_chosen: bool,
) -> tuple[dict[str, Wiring], bool]:
    """Return what the dump says of each chosen layer, by title, and whether any activation was assumed.

    Raises
    ------
    FileError
        If `said` names something that is no chosen layer.
    """
    titles = [one.title for one in chosen]
    _check_names(said.activations, titles, "--activation", source)
    _check_names(said.links, titles, "--follows", source)
    told = _told(chosen, settled, source)
    last = ordered[-1] if len(ordered) > 1 else None
    found: dict[str, Wiring] = {}
    assumed = False
    before: str | None = None
    for one in chosen:
        wiring = told.get(one.title)
        if one.title in said.activations:
            activation = said.activations[one.title]
        elif said.activation is not None and (only_chosen or one is not last):
            activation = said.activation
        elif wiring is not None:
            activation = wiring.activation
        elif one.low_rank_factor:
            activation = NONE
        else:
            activation = NONE if one is last else RELU
            assumed |= said.activation is None
        wiring = replace(wiring or Wiring(NONE), activation=activation)
        if one.title in said.links:
            wiring = Wiring(activation, follows=said.links[one.title])
        elif said.follows and one.kind == "linear" and wiring.follows is wiring.between is None:
            wiring = replace(wiring, follows=before)
        before = one.title if one.kind == "linear" else None
        found[one.title] = wiring
    return found, assumed


def _told(chosen: Sequence[FoundLayer], settled: Mapping[str, Settled], source: Source) -> dict[str, Wiring]:
    """Return what the file says of the chosen layers, by title."""
    titles = {one.matrix.name.rpartition("/")[0]: one.title for one in chosen}
    shapes = {name: settled[title].shape for name, title in titles.items() if title in settled}
    earlier: set[str] = set()
    told: dict[str, Wiring] = {}
    network = wire(source.network, shapes)
    for name, title in titles.items():
        if (wiring := network.get(name)) is not None:
            # A file may list its layers in an order that is not that of the forward pass.
            follows = titles[wiring.follows] if wiring.follows in earlier else None
            told[title] = replace(wiring, follows=follows)
        earlier.add(name)
    return told


def _check_names(names: Iterable[str], titles: Sequence[str], option: str, source: Source) -> None:
    for name in names:
        if name not in titles:
            msg = f"{option} names '{printable(name)}', but there is no such layer"
            raise FileError(msg, source.place, f"there is: {listing(titles)}")
