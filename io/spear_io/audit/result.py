"""What is asked of an audit, and what it found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from .privacy import Training
from .sweep import Curve, Point

NAMES = (
    "noise",
    "dp_sgd",
    "clip_norm",
    "clip_examples",
    "clip_values",
    "top_k",
    "bits",
    "local_steps",
    "no_bias",
    "fewer_layers",
    "records",
)


@dataclass(frozen=True)
class Asked:
    """What a user asks of an audit."""

    record: str | None = None
    layer: str | None = None
    defences: tuple[str, ...] = ()
    """Some of `NAMES`; all that are possible if empty."""
    clip_norm: float | None = None
    """C of DP-SGD; by default the median norm of the gradients of the inputs in the layers that are used."""
    learning_rate: float | None = None
    """Of local steps; by default that of the record, else `spear_io.audit.defences.LEARNING_RATE`."""
    training: Training = field(default_factory=Training)
    """What ε is of."""
    refine: bool = True


@dataclass(frozen=True)
class Audit:
    """What an audit found."""

    source: str
    record: str
    layers: tuple[str, ...]
    """The layer whose inputs are sought, and those behind it that are used with it."""
    batch: int
    truth: bool
    """Whether the dump held the true inputs; else what the update gives away without a defence stands for them."""
    baseline: Point
    curves: tuple[Curve, ...]
    not_tried: dict[str, str]
    """Defences that were left out, and why."""
    complete: bool
    clip_norm: float | None
    """C of DP-SGD; None where it is not known."""
    training: Training
    multiplier_needed: float | None
    """Noise multiplier whose ε is `spear_io.audit.privacy.MEANINGFUL`, for this training; None without the accountant."""

    @property
    def leaky(self) -> bool:
        """Whether any input is recovered without a defence."""
        return self.baseline.recovered > 0


def chosen_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return names of defences as they are known, whatever hyphens they are written with."""
    return tuple(dict.fromkeys(name.replace("-", "_") for name in names))
