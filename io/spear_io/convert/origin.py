"""Where the gradients come from: one source, with or without the model beside it, or two models."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from spear_np import Activation

from ..adapters.keras_operations import UNKNOWN_SLOPE
from ..adapters.wiring import Elementwise, Step
from ..problems import FileError, Place
from .detect import open_source
from .difference import only_after, two_precisions, updates
from .flat_vector import split_vector
from .mapping import mapped
from .names import understand
from .pairing import Given, Unread
from .source import Source


@dataclass(frozen=True)
class Origin:
    """What to read; either `source`, or `before` and `after`.

    Parameters
    ----------
    source : Path, optional
        A file or folder of arrays.
    gradients : bool
        Whether everything in `source` is a gradient, whatever the names say.
    model : Path, optional
        Where the weights are, if not in `source`.
    before, after : Path, optional
        The model before and after the step.
    maps : sequence of str
        ``[LAYER.]PART=NAME``: what these arrays of `source` are; the others are known by their names.
    round : int, optional
        Of the training, where the name of the file tells it.
    """

    source: Path | None = None
    gradients: bool = False
    model: Path | None = None
    before: Path | None = None
    after: Path | None = None
    maps: Sequence[str] = ()
    round: int | None = None

    @property
    def files(self) -> list[Path]:
        """All that is read."""
        return [path for path in (self.source, self.model, self.before, self.after) if path is not None]

    def open(self, stack: ExitStack) -> Opened:
        """Open everything until `stack` unwinds."""
        if self.before is not None and self.after is not None:
            before, after = (stack.enter_context(open_source(path)) for path in (self.before, self.after))
            given = updates(before, after)
            skipped = only_after(before, after) | dict(before.skipped)
            notes = (*before.notes, *two_precisions(before, after))
            lost = before.skipped.items()
            unread = [
                Unread(name, why, gradient=gradient) for gradient in (False, True) for name, why in lost
            ]
            return Opened(replace(before, skipped=skipped, notes=notes), given, unread)
        assert self.source is not None
        source = stack.enter_context(open_source(self.source))
        if self.model is not None and not (self.gradients or self.maps or _says_gradient(source)):
            msg = "no array is named as a gradient, and the model is in another file"
            raise FileError(
                msg, source.place, "say --gradients: all its arrays are gradients, named as in the model"
            )
        if self.maps:
            given = mapped(source, self.maps)
            taken = {one.array.name for one in given}
        else:
            given, taken = [], set()
        # What no map names is known by its name, as without any.
        others = [array for array in source.arrays if array.name not in taken]
        given += [Given(a, gradient=self.gradients, ordered=source.in_forward_order) for a in others]
        unread = [Unread(name, why, gradient=self.gradients) for name, why in source.skipped.items()]
        if self.model is not None:
            model = stack.enter_context(open_source(self.model))
            given += [Given(array, ordered=model.in_forward_order) for array in model.arrays]
            unread += [Unread(name, why) for name, why in model.skipped.items()]
            network = model.network or _without_slopes(source.network)
            skipped = dict(model.skipped) | dict(source.skipped)
            source = replace(source, network=network, notes=(*source.notes, *model.notes), skipped=skipped)
        elif self.gradients:
            source = replace(source, network=_without_slopes(source.network))
        return Opened(source, split_vector(given, source.place), unread, two_files=self.model is not None)


def successive(models: Sequence[Path]) -> dict[str, Origin]:
    """Return the updates between models of one training, each of which came of the one before, by names for records.

    The last number in the name of a file is taken for its round, if all have one and they grow.

    Raises
    ------
    FileError
        If there are fewer than two models.
    """
    if len(models) < 2:
        where = models[0] if models else Path()
        msg = "is the only model: an update is what lies between two"
        raise FileError(msg, Place(where), "give the models of several rounds, or a folder of them")
    found = [re.findall(r"\d+", path.name) for path in models]
    rounds = [int(numbers[-1]) if numbers else None for numbers in found]
    told = [number for number in rounds if number is not None]
    growing = len(told) == len(models) and all(one < other for one, other in pairwise(told))
    origins: dict[str, Origin] = {}
    for (before, after), number in zip(pairwise(models), rounds[1:], strict=True):
        name = after.stem if after.stem not in origins else f"{after.stem} ({len(origins) + 1})"
        origins[name] = Origin(before=before, after=after, round=number if growing else None)
    return origins


@dataclass(frozen=True)
class Opened:
    """What there is to convert."""

    source: Source
    """The file with the gradients, or the model before; what is not taken of the other file is among `skipped`."""
    given: list[Given]
    """All arrays, with what is known of them."""
    unread: list[Unread]
    """What cannot be taken."""
    two_files: bool = False
    """Whether the model lies in a file of its own."""


def _says_gradient(source: Source) -> bool:
    return any(
        understand(name).gradient for name in (*(array.name for array in source.arrays), *source.skipped)
    )


def _without_slopes(network: Sequence[Step]) -> tuple[Step, ...]:
    """Return a network of a file of gradients: what stands for the slopes of a PReLU are their gradients."""
    prelu = Elementwise(Activation(UNKNOWN_SLOPE))
    return tuple(
        replace(step, operation=prelu)
        if isinstance(step.operation, Elementwise) and step.operation.activation.name == "prelu"
        else step
        for step in network
    )
