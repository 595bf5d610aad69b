"""`--activation` and `--follows` of `spear-np convert`: what people say of all layers, or of one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import typer

from spear_np import Activation, InputError

from ..convert import Said
from ..problems import printable
from .convert_command import EACH, FOLLOWS, is_link

ACTIVATION = re.compile(r"(?:(?P<layer>[^:]+?)=)?(?P<name>[^=:]+)(?::(?P<parameters>[^:]+))?")


def said_of_layers(activations: Iterable[str], follows: Iterable[str]) -> Said:
    """Return what the values of the two options say.

    Raises
    ------
    typer.BadParameter
        If one is malformed, or a parameter is out of range.
    """
    every: Activation | None = None
    single: dict[str, Activation] = {}
    for text in activations:
        layer, activation = _activation(text)
        if layer is None:
            every = activation
        else:
            single[layer] = activation
    each = False
    links: dict[str, str | None] = {}
    for text in follows:
        if text == EACH:
            each = True
            continue
        layer, _, before = text.partition("=")
        if not is_link(text):
            msg = f"'{printable(text)}' is not LAYER=EARLIER"
            raise typer.BadParameter(msg, param_hint=FOLLOWS)
        links[layer] = None if before == "none" else before
    return Said(every, single, each, links)


def _activation(text: str) -> tuple[str | None, Activation]:
    """Return the layer, None for all of them, and the activation of ``[LAYER=]NAME[:PARAMETER=X,…]``."""
    if not text.strip():
        msg = "is empty: give a name, none if nothing follows"
        raise typer.BadParameter(msg, param_hint="--activation")
    found = ACTIVATION.fullmatch(text)
    if found is None:
        msg = (
            f"'{printable(text)}' is not [LAYER=]NAME[:PARAMETER=X,…], e.g. fc2=leaky_relu:negative_slope=0.2"
        )
        raise typer.BadParameter(msg, param_hint="--activation")
    try:
        return found["layer"], Activation(found["name"], _parameters((found["parameters"] or "").split(",")))
    except InputError as error:
        raise typer.BadParameter(str(error), param_hint="--activation") from error


def _parameters(texts: Sequence[str]) -> dict[str, float]:
    parameters = {}
    for text in filter(None, texts):
        name, _, number = text.partition("=")
        try:
            parameters[name] = float(number)
        except ValueError as error:
            msg = f"'{printable(text)}' is not PARAMETER=NUMBER"
            raise typer.BadParameter(msg, param_hint="--activation") from error
    return parameters
