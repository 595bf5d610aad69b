"""What an audit found, in sentences: where a defence stops this method, and what that is worth."""

from __future__ import annotations

import math
from collections.abc import Iterator

from .defences import text
from .privacy import MEANINGFUL, Training
from .result import Audit
from .sweep import Curve, Point

NOISES = ("noise", "dp_sgd")
"""Defences by noise: what one of them stops, ε weighs."""
NOT_PRIVACY = (
    "Where this method stops is not where privacy begins. Weaker noise gives whole inputs away, even where they come back blurred; stronger "
    "noise leaves an update that still depends on the inputs, and other methods may guess parts of them."
)

CLIPPED_TOO = (
    "Noise by itself has no ε, as nothing limits the gradient of one input: this one holds where, besides, the gradient of each input is "
    "clipped to that norm, over all layers together, before they are added up."
)
LARGE_DELTA = "δ = {delta} is no less than one in {records} records: such a δ is met even by publishing one record whole. Take a smaller one, --delta."


def verdict_of(curve: Curve, *, leaky: bool = True) -> tuple[str, bool]:
    """Return where a defence begins to stop this method, in a sentence, and whether it does.

    Unless the update is `leaky`, nothing comes back without a defence either: none is the cause then.
    """
    leaks, enough = curve.break_even
    if leaks is None and not leaky:
        return "nothing recovered, with the defence or without", False
    defence, last = curve.defence, curve.points[-1]
    if leaks is None:
        rest = f"; {defence.at_weakest}" if defence.at_weakest else ", and weaker was not tried"
        return (
            f"nothing recovered even at the weakest that was tried, {defence.amount(enough or 0)}{rest}",
            True,
        )
    if defence.switch and curve.complete:
        return f"{last.share:.0%} of the inputs still recovered", enough is not None
    if enough is None and not curve.complete:
        return f"inputs still come back at {defence.amount(last.strength)}; nothing stronger was tried", False
    if enough is None:
        return (
            f"not enough: {last.share:.0%} recovered at the strongest that was tried, {defence.amount(last.strength)}",
            False,
        )
    return (
        f"nothing recovered at {defence.amount(enough)} or {defence.stronger}; inputs come back at {text(leaks)}",
        True,
    )


def lines_of(audit: Audit) -> Iterator[tuple[str, str]]:
    """Yield title and verdict of every defence."""
    for curve in audit.curves:
        yield curve.defence.title, verdict_of(curve, leaky=audit.leaky)[0]


def headline_of(audit: Audit) -> str:
    """Return in a sentence what leaks without a defence, and the noise that stops this method."""
    curve = noise_of(audit)
    if not audit.leaky:
        return "Nothing is recovered from this update, even without a defence."
    if curve is None:
        return f"{audit.baseline.recovered} of {audit.batch} inputs are recovered without a defence."
    leaks, enough = curve.break_even
    what = "Noise of" if curve.defence.name == "noise" else "DP-SGD with noise of"
    if enough is None:
        rest = "; stronger noise was not tried" if not curve.complete else ", the strongest that was tried"
        return f"{what} {curve.defence.amount(leaks or 0)} still gives inputs away{rest}."
    before = "" if leaks is None else f"; at {text(leaks)} inputs still come back"
    return f"{what} {curve.defence.amount(enough)} stops this method{before}."


def privacy_of(audit: Audit) -> tuple[str, ...]:
    """Return, in paragraphs, what the noise that stops this method does and does not protect, with its ε where that can be told."""
    curve = noise_of(audit)
    if curve is None or not audit.leaky:
        return ()
    enough = curve.break_even[1]
    if enough is None:
        return (NOT_PRIVACY,)
    point = next(one for one in curve.points if one.strength == enough)
    said = [NOT_PRIVACY, _worth(audit, point)]
    if point.epsilon is not None and curve.defence.name == "noise":
        said.append(CLIPPED_TOO)
    if point.epsilon is not None and audit.training.large_delta:
        records = audit.training.dataset_size or audit.training.batch_size
        said.append(LARGE_DELTA.format(delta=text(audit.training.delta), records=records))
    return tuple(said)


def _worth(audit: Audit, point: Point) -> str:
    """ε of a strength that stops this method, or why it is not told."""
    if point.multiplier is None or audit.clip_norm is None:
        return (
            "What ε this noise amounts to is not told: that takes the gradients of the single inputs, or the clipping norm of the "
            "training, --clip-norm."
        )
    as_dp = (
        f"In terms of differential privacy it is a noise multiplier of {text(point.multiplier)} at a clipping norm of "
        f"{text(audit.clip_norm)}"
    )
    if point.epsilon is None:
        return f"{as_dp}; its ε is not told, as Opacus is not installed: pip install 'spear-np[privacy]'."
    training = f"for {_training(audit.training)}"
    if not audit.training.dataset_size:
        training = f"{training} (--dataset-size and --steps tell of another training)"
    if point.epsilon <= MEANINGFUL:
        return f"{as_dp}: ε = {text(point.epsilon)} {training}, if every step has this noise."
    worth = "no bound on ε" if math.isinf(point.epsilon) else f"ε = {text(point.epsilon)}"
    needed = audit.multiplier_needed
    larger = (
        f" ε = {MEANINGFUL:g} would take a multiplier of {text(needed)}: noise {text(needed / point.multiplier)} times larger."
        if needed is not None
        else ""
    )
    return f"{as_dp}: {worth} {training}. Above {MEANINGFUL:g} an ε promises next to nothing.{larger}"


def training_of(audit: Audit) -> str:
    """Return the training that the ε of an audit is of, in words; nothing where none was told."""
    known = any(point.epsilon is not None for curve in audit.curves for point in curve.points)
    return _training(audit.training) if known else ""


def _training(training: Training) -> str:
    steps = "one step" if training.steps == 1 else f"{training.steps} steps"
    of = (
        f"with batches of {training.batch_size} drawn at random of {training.dataset_size} records"
        if training.dataset_size
        else "on all of the data"
    )
    return f"{steps} {of}, δ = {text(training.delta)}"


def noise_of(audit: Audit) -> Curve | None:
    """The first defence by noise, if one was tried."""
    found = {curve.defence.name: curve for curve in audit.curves}
    return next((found[name] for name in NOISES if name in found), None)
