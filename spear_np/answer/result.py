"""What the solver hands back: data, and the reading of the inputs by blocks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np

from ..arrays import Array, HostArray
from ..backend.devices import Device
from ..backend.host import to_host
from ..backend.work import narrowing
from ..factors.gradients import LayerGradients
from .certificate import Certificate
from .notebook import Answer, answer_html, answer_table, figures_of, square_picture

if TYPE_CHECKING:
    from .notebook import DataFrame


class Status(StrEnum):
    """How much of the batch was recovered, and how sure that is."""

    EXACT = "exact"
    """Every input recovered, every check of the certificate holds at the precision of the data."""
    APPROXIMATE = "approximate"
    """Every input recovered, but noise or missing data keeps exactness from being certified."""
    PARTIAL = "partial"
    """Only some of the batch recovered; those inputs carry error bounds."""
    FAILED = "failed"
    """Nothing recovered; `Inversion.reason` says why."""


@dataclass(frozen=True)
class Progress:
    """One report of a running inversion, handed to the callback of `spear_np.invert`."""

    stage: str
    """"factorize", "search" or "verify"."""
    seconds: float
    """Since the start of `invert`."""
    time_limit: float
    """Seconds after which the search stops."""
    batch_size: int = 0
    """Directions wanted; 0 until the rank is known."""
    found: int = 0
    """Independent directions found so far."""
    proposals: int = 0
    """Candidates examined so far."""
    expected: float | None = None
    """Proposals the published search would be expected to need in all, where a forecast exists."""


@dataclass(frozen=True)
class Round:
    """One round of the search, for the history of a result."""

    search: str
    """Name of the search that proposed."""
    proposals: int
    """Candidates it examined."""
    found: int
    """Independent directions known after the round."""
    agreement: float | None
    """λ of the best complete choice so far; None while directions are missing or without W."""
    seconds: float
    """Since the start of `invert`."""


@dataclass(frozen=True, eq=False, repr=False)
class Inversion:
    """The answer of `spear_np.invert` for one layer. It prints as a summary of a few lines.

    Shapes: m output units, n input features, k recovered inputs. Arrays live where the computation ran.
    """

    status: Status
    reason: str
    """One sentence: why this status and, if it is not `exact`, what would help."""
    batch_size: int
    """Rank of `weight_grad`: the number of linearly independent inputs that can be seen in it; 0 if unknown."""
    found: int
    """k, the number of inputs handed out."""
    output_grad: Array
    """(m, k) float64, ∂L/∂Z: column i belongs to row i of `inputs`."""
    certificate: Certificate
    device: str
    """"cpu" or "gpu:N"."""
    scale_known: bool
    """False if every input is known up to a factor only (no bias_grad), however that was chosen: see `spear_np.inputs.scale`."""
    gradients: LayerGradients
    recovery: Array
    """(k, m) float64: ``inputs = recovery @ weight_grad``."""
    where: Device
    """The device itself."""
    data_range: tuple[float, float] | None = None
    """Range of the inputs that was given; it matters only where the scale is unknown."""
    labels: Array | None = None
    """(k,) int64: class of each input as the gradient of the output layer tells it, -1 where it does not; None if not asked."""
    chain: tuple[str, ...] = ()
    """Names of the layers that were used together, in forward order; empty for a layer inverted alone."""
    singular_values: tuple[float, ...] = ()
    """Of weight_grad with every row divided by its noise, largest first: the first `batch_size` stand for inputs."""
    relative_noise: float = math.nan
    """Noise of one entry of weight_grad over the root mean square of its row, median over rows; NaN without a rank."""
    method: str = ""
    """This and what follows is filled in by the loop."""
    seed: int = 0
    seconds: float = 0.0
    proposals: int = 0
    """Candidate directions examined."""
    history: tuple[Round, ...] = ()

    @property
    def claim(self) -> str:
        """The status as the line of a table says it: "exact if plain gradient", with the names of what it rests on.

        Whatever hands out inputs rests on it, with all bounds; only `failed` rests on nothing.
        """
        premises = ", ".join(premise.name for premise in self.certificate.rests_on)
        claims = premises and self.status is not Status.FAILED
        return f"{self.status} if {premises}" if claims else str(self.status)

    def __repr__(self) -> str:
        """Status with what it rests on, what was found, the worst bound and the reason; no arrays."""
        bounds = self.certificate.error_bound
        lines = [self._answer.headline, self.reason]
        if bounds:
            factor = "" if self.scale_known else " of the scale that was chosen"
            largest = max(bounds)
            lines.append(
                f"no entry is off by more than {largest:.3g}{factor}"
                if math.isfinite(largest)
                else "nothing bounds the errors of some inputs"
            )
        lines.append(
            f"{self.proposals} proposals in {self.seconds:.3g} s on {self.device}, method {self.method}, seed {self.seed}"
        )
        return f"<{type(self).__name__} " + "\n  ".join(lines) + ">"

    @property
    def _answer(self) -> Answer:
        """What is shown of it."""
        m, n = self.gradients.shape

        def first(rows: int, columns: int) -> HostArray:
            shown = np.zeros((rows, columns))
            for where, block in self.input_blocks():
                if where.start >= columns:
                    break
                stop = min(where.stop, columns)
                shown[:, where.start : stop] = to_host(block[:rows, : stop - where.start])
            return shown

        return Answer(
            claim=self.claim,
            found=self.found,
            batch_size=self.batch_size,
            layer=f"a layer {m} x {n}",
            reason=self.reason,
            features=n,
            certificate=self.certificate,
            picture=square_picture(n),
            first=first,
        )

    def _repr_html_(self) -> str:
        """What a notebook shows: status, premises, certificate, and the inputs as pictures where they may be some."""
        return answer_html(self._answer)

    def to_dataframe(self) -> DataFrame:
        """Return a `pandas.DataFrame` with one row for each input: its figures, its label, then its features.

        Columns are `zero_count`, `redundancy`, `sign_agreement`, `false_probability` and `error_bound` where the certificate has
        them, `label` where labels were asked for, and ``x0`` to ``x(n-1)``, float64, in units of the input.

        Raises
        ------
        ImportError
            Without pandas: ``pip install pandas``.
        """
        figures: dict[str, Sequence[float] | HostArray] = {**figures_of(self.certificate, self.found)}
        if self.labels is not None:
            figures["label"] = to_host(self.labels)
        return answer_table(to_host(self.inputs), figures)

    @property
    def inputs(self) -> Array:
        """(k, n) float64: one recovered input per row, computed anew at each access."""
        m, n = self.gradients.shape
        if not self.found:
            return self.where.zeros((0, n))

        def whole() -> Array:
            return self.where.xp.concat([block for _, block in self.input_blocks()], axis=1)

        with self.where.activate():
            return narrowing(self.where, m, whole)

    def input_blocks(self) -> Iterator[tuple[slice, Array]]:
        """Yield ``(columns, block)``, block (k, width) float64: the inputs without holding all of them."""
        read = self.gradients.blocks("weight_grad", device=self.where)

        def following() -> tuple[slice, Array] | None:
            with (
                self.where.activate()
            ):  # not while the caller is at work, who has a current device of their own
                return next(((columns, self.recovery @ block) for columns, (block,) in read), None)

        return iter(following, None)


def on_device(answer: Inversion, device: Device) -> Inversion:
    """The `answer`, computed on the host, with its arrays on `device`."""
    labels = None if answer.labels is None else device.integers(answer.labels)
    return replace(
        answer,
        output_grad=device.float64(answer.output_grad),
        recovery=device.float64(answer.recovery),
        labels=labels,
        device=device.name,
        where=device,
    )


def with_decay_said(answer: Inversion) -> Inversion:
    """Return the `answer` with the weight decay that was taken out of its gradient among reason and caveats."""
    decay = answer.gradients.decay
    if not decay.present:
        return answer
    certificate = answer.certificate
    if certificate.checks:
        caveat = (
            f"the update held {decay}, as weight decay leaves it, and everything here is of what is left: bounds allow for an "
            "error of that number, not for another multiple in each unit"
        )
        certificate = replace(certificate, caveats=(*certificate.caveats, caveat))
    reason = f"{answer.reason}; weight decay was taken out first: {decay}"
    return replace(answer, reason=reason, certificate=certificate)
