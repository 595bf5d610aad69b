"""What is applied to each layer's output, and which layer feeds which: as is said, as the file tells, or assumed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from spear_np import Activation

from ..adapters.wiring import NONE, Wiring, wire
from ..problems import FileError, listing, printable
from .layers import FoundLayer, natural
from .orientation import Settled, numbered
from .source import Source

RELU = Activation("relu")

UNSEEN = Activation("unknown")
"""Of a layer that may be the last one or not."""


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


@dataclass(frozen=True)
class LastLayer:
    """Which of the layers that were found is the last of the network."""

    layer: FoundLayer | None
    """None if there is but one, or the last is among those that cannot be used."""
    unread: tuple[str, ...] = ()
    """Names of layers that are there, but cannot be used."""
    doubt: str = ""
    """What cannot be told; then `layer` is the last of those that were found, and may be hidden."""


def last_layer(
    ordered: Sequence[FoundLayer], unread: Sequence[FoundLayer], settled: Mapping[str, Settled]
) -> LastLayer:
    """Return which of the layers is the last one, counting those that cannot be used.

    Where those come is told by their numbers, if the names of all layers differ by nothing else, or by the lengths of
    their biases: what has as many output units as a layer has inputs comes before it.

    Parameters
    ----------
    ordered : sequence of FoundLayer
        Those that were found, in forward order.
    unread : sequence of FoundLayer
        The others.
    settled : mapping
        (m, n) of the fully connected layers that were found, by title.
    """
    names = tuple(one.title for one in unread)
    if not ordered or len(ordered) + len(unread) < 2:
        return LastLayer(None, names)
    last = ordered[-1]
    if not unread:
        return LastLayer(last)
    if numbered([*ordered, *unread]):
        later = max((*ordered, *unread), key=natural) is not last
        return LastLayer(None if later else last, names)
    inputs = settled[last.title].shape[1] if last.title in settled else None
    if inputs is not None and all(one.vector_length == inputs for one in unread) and len(unread) == 1:
        return LastLayer(last, names)
    doubt = f"whether '{printable(last.title)}' is that is not known, say --activation {printable(last.title)}=relu if a "
    return LastLayer(last, names, doubt + "ReLU follows it, or none")


def wired(
    last: LastLayer,
    chosen: Sequence[FoundLayer],
    settled: Mapping[str, Settled],
    source: Source,
    said: Said,
    *,
    only_chosen: bool,
) -> dict[str, Wiring]:
    """Return what the dump says of each chosen layer, by title.

    A ReLU is assumed after every layer but the `last`.

    Raises
    ------
    FileError
        If `said` names something that is no chosen layer, or takes layers for neighbours between which one is missing.
    """
    titles = [one.title for one in chosen]
    _check_names(said.activations, titles, "--activation", source)
    _check_names(said.links, titles, "--follows", source)
    if said.follows and last.unread:
        msg = f"--follows takes each layer for the one after the last, but {listing(last.unread)} cannot be used"
        raise FileError(msg, source.place, "say which layer follows which: --follows LAYER=EARLIER")
    told = _told(chosen, settled, source)
    found: dict[str, Wiring] = {}
    before: str | None = None
    for one in chosen:
        wiring = told.get(one.title)
        assumed = False
        if one.title in said.activations:
            activation = said.activations[one.title]
        elif said.activation is not None and (only_chosen or one is not last.layer):
            activation = said.activation
        elif wiring is not None:
            activation = wiring.activation
        elif one.low_rank_factor:
            activation = NONE
        else:
            activation = (UNSEEN if last.doubt else NONE) if one is last.layer else RELU
            assumed = said.activation is None
        wiring = replace(wiring or Wiring(NONE), activation=activation, assumed=assumed)
        if one.title in said.links:
            wiring = Wiring(activation, follows=said.links[one.title], assumed=assumed)
        elif said.follows and one.kind == "linear" and wiring.follows is wiring.between is None:
            wiring = replace(wiring, follows=before)
        before = one.title if one.kind == "linear" else None
        found[one.title] = wiring
    return found


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
