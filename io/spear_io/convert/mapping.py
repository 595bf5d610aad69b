"""`--map`: arrays whose roles are said on the command line."""

from __future__ import annotations

from collections.abc import Iterable

from ..problems import FileError, listing, printable
from .layers import PARTS
from .names import Meaning, Role, understand
from .pairing import Given
from .source import Source

ROLES: dict[str, tuple[Role | None, bool]] = {part: role for role, part in PARTS.items()} | {
    "inputs": ("inputs", False)
}


def mapped(source: Source, maps: Iterable[str]) -> list[Given]:
    """Return the arrays that ``[LAYER.]PART=NAME`` choose, whatever their names say; PART is weight_grad, bias_grad, weight, bias or inputs.

    Raises
    ------
    FileError
        If there is no such part or array.
    """
    arrays = {array.name: array for array in source.arrays}
    given = []
    for text in maps:
        target, _, name = text.partition("=")
        name = name.strip("/")
        layer, _, part = target.rpartition(".")
        if part not in ROLES:
            msg = f"--map {printable(text)} does not say which part the array is"
            raise FileError(msg, source.place, f"write [LAYER.]PART=NAME with one of {listing(ROLES)}")
        if name not in arrays:
            why = source.skipped.get(name)
            msg = f"array '{printable(name)}' {why}" if why else f"there is no array '{printable(name)}'"
            raise FileError(msg, source.place, f"there is: {listing(arrays, 'nothing')}")
        role, gradient = ROLES[part]
        # The layer is the one that names of its parts would lead to, so that what is not mapped joins it.
        like = understand(f"{layer}.{part}" if layer else part)
        meaning = Meaning(
            role,
            gradient,
            like.layer or (layer,),
            layer or "layer",
            understand(name).convention,
            said=True,
        )
        given.append(Given(arrays[name], meaning=meaning))
    return given
