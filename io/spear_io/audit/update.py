"""One update in memory, as a client would share it: the layer under audit, and those that follow it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

import spear_np

from ..files.dump import Layer, Record
from ..files.storage import Floats
from ..problems import FileError

GRADIENTS = ("weight_grad", "bias_grad")


@dataclass(frozen=True, eq=False)
class Shared:
    """The arrays of one layer, and of those behind it that are used with it."""

    layers: tuple[spear_np.LayerGradients, ...]
    names: tuple[str, ...]
    loss: str | None

    @property
    def first(self) -> spear_np.LayerGradients:
        """The layer whose inputs are sought."""
        return self.layers[0]

    @property
    def size(self) -> float:
        """Root mean square of the entries of the first layer's weight_grad: the unit of noise."""
        return float(np.sqrt(np.mean(np.square(self.first.weight_grad[...], dtype=np.float64))))

    def changed(self, change: Callable[[Floats], Floats]) -> Shared:
        """Return the update with `change` made to every gradient, in the precision in which it is shared."""
        return replace(self, layers=tuple(_changed(layer, change) for layer in self.layers))

    def invert(self, **options: Any) -> spear_np.Inversion:
        """Invert the first layer, with those behind it if there are any.

        Raises
        ------
        InputError
            If what is shared cannot be inverted at all.
        """
        if len(self.layers) == 1:
            return spear_np.invert_layer(self.first, **options)
        return spear_np.invert_chain(self.layers, names=self.names, loss=self.loss, **options)


def read_update(record: Record, layer: Layer) -> Shared:
    """Read `layer` and what follows it into memory.

    Raises
    ------
    FileError
        If a number is none, or the layer takes more memory than the file gives reason to spend.
    """
    chain = record.chain_from(layer)
    read = []
    for member in chain:
        member.check_affordable()
        member.check_finite()
        arrays: dict[str, Any] = {name: np.asarray(array[...]) for name, array in member.arrays.items()}
        try:
            read.append(replace(member.gradients, **arrays, precision=member.arrays["weight_grad"].precision))
        except spear_np.InputError as error:
            raise FileError(str(error), member.place) from error
    return Shared(tuple(read), tuple(member.name for member in chain), record.info.loss)


def _changed(layer: spear_np.LayerGradients, change: Callable[[Floats], Floats]) -> spear_np.LayerGradients:
    arrays: dict[str, Any] = {}
    for name in GRADIENTS:
        values = getattr(layer, name)
        if values is not None:
            with np.errstate(over="ignore"):  # what is infinite then, the solver refuses
                arrays[name] = change(values.astype(np.float64)).astype(values.dtype)
    return replace(layer, **arrays, precision=None)
