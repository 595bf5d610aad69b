"""What a certificate says, in sentences for readers who have never seen a gradient."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import spear_np

from ...problems import printable
from ..progress import duration, power_of_ten

VERDICTS = {
    spear_np.Status.EXACT: (
        "Proven, on the premises below",
        (
            "Every private input that shows in this update was reconstructed. Every test that the shared numbers allow was made, and all "
            "were passed. No other set of inputs would fit these numbers, as long as the premises below are true."
        ),
    ),
    spear_np.Status.APPROXIMATE: (
        "Complete, but not proven",
        (
            "Every private input that shows in this update was reconstructed. The shared numbers are too noisy, or parts of them are "
            "missing, so that the result is not proven to be exact. Where a bound is given, no value is off by more than it, as long as the "
            "premises below are true."
        ),
    ),
    spear_np.Status.PARTIAL: (
        "Some of it recovered",
        (
            "Only some of the private inputs were reconstructed. The others were not found, which does not mean that they are safe: "
            "a longer search, or another method, may find them."
        ),
    ),
    spear_np.Status.FAILED: (
        "Nothing recovered",
        (
            "No private input was reconstructed from this update. This is no proof that it is safe: it says that this method, on these "
            "numbers and in this time, found nothing that it could vouch for."
        ),
    ),
}
"""Headline and explanation of every status."""

PREMISES = {
    "plain gradient": (
        "The shared numbers are the gradient itself.",
        (
            "Nobody changed them on the way in a manner that differs from one feature to the next: no optimiser such as Adam, no "
            "compression, no defence that masks or rescales some of them. If somebody did, the inputs shown are those that fit the changed "
            "numbers, and not the people's data."
        ),
    ),
    "plain gradient of one input": (
        "The shared numbers are the gradient itself, of a single input.",
        "With one input there is no second one to check it against. If the numbers were changed on the way, nothing here would show it.",
    ),
    "none alike": (
        "No two inputs are treated by the model in exactly the same way.",
        (
            "If several inputs switched on the very same units with gradients in proportion, they would be seen as one, and a weighted "
            "mean of them would be shown in their place."
        ),
    ),
    "none hidden between": (
        "No input is hidden between others.",
        "An input that is a mixture of others, and switches on only units that all of those switch on, would leave no trace of its own.",
    ),
    "layer as given": (
        "The model in the file is the one that the gradient was computed with.",
        (
            "Bounds rest on which of its units each input switches on. If the weights are older or newer than the gradient, or its units "
            "are switched on by another rule than the file says, the inputs may be off by more than is stated."
        ),
    ),
    "inputs without mean": (
        "Every input has a mean of zero, as behind a layer normalisation.",
        (
            "If instead the model or the optimiser took the mean away from its weights or gradients, each input shown is off by a "
            "constant."
        ),
    ),
    "layers linked": (
        "The layers follow each other directly, and their gradients are of one training step.",
        (
            "The file says so. If something else happened between the layers, or the gradients were taken at different moments, the "
            "conclusion does not hold."
        ),
    ),
    "plain where W is blind": (
        "What the model's weights cannot see was not changed.",
        (
            "The first layer has more features than units. The part of an input that its weights do not see is taken from the shared "
            "gradient alone, which therefore has to be the true one there."
        ),
    ),
}
"""Short and long form of what an answer may rest on, by the names of the premises."""

FAMILIES = (
    (
        re.compile(r"seen with (\d+) bits"),
        "The model was given its inputs with {0} bits of precision.",
        (
            "All values found have at most {0} significant bits. They are what the model saw; if inputs were rounded before, the digits that "
            "were cut off are not known."
        ),
    ),
    (
        re.compile(r"(\d+) features zero"),
        "{0} features are zero in every input.",
        "These have no gradient at all. That is so if they are zero in every input, and also if somebody left them out of the update.",
    ),
)
"""Premises whose names hold a number."""


def premise_words(premise: spear_np.Premise) -> tuple[str, str]:
    """Return a premise as one short sentence and an explanation."""
    known = PREMISES.get(premise.name)
    if known is not None:
        return known
    for pattern, short, meaning in FAMILIES:
        found = pattern.fullmatch(premise.name)
        if found:
            return short.format(*found.groups()), meaning.format(*found.groups())
    return f"{premise.name[:1].upper()}{premise.name[1:]}.", premise.meaning


def headline(statuses: Sequence[spear_np.Status], found: int, of: int) -> str:
    """Return one sentence on what all layers together gave away."""
    if not found:
        return "No private input was recovered from what was shared."
    what = "private input" if found == 1 else "private inputs"
    if of <= found:
        every = {
            spear_np.Status.EXACT: "with proof",
            spear_np.Status.APPROXIMATE: "without proof of exactness",
        }
        how = every.get(statuses[0], "") if len(set(statuses)) == 1 else ""
        lead = f"The one {what}" if found == 1 else f"All {found} {what}"
        return f"{lead} could be read out of what was shared{', ' + how if how else ''}."
    return f"{found} of {of} private inputs could be read out of what was shared."


def label_text(value: Any) -> str | None:
    """A class as people name it; None where it is not known."""
    number = float(value)
    if not math.isfinite(number) or number < 0:
        return None
    return str(int(number)) if number == int(number) else number_text(number)


def number_text(value: float) -> str:
    """A number with three digits, or a word."""
    number = float(value)
    if math.isnan(number):
        return "–"
    if math.isinf(number):
        return "unbounded" if number > 0 else "−∞"
    if number == int(number) and abs(number) < 1e6:
        return str(int(number))
    if 1e3 <= abs(number) < 1e6:
        return f"{number:.0f}"
    return power_of_ten(f"{number:.3g}")


MOST_DIGITS = 6
"""Digits of a number in a table, at most, however well it is known."""


def known_text(value: float, bound: float) -> str:
    """A number with the digits that an error of up to `bound` leaves, six at most; with three where nothing bounds it."""
    if not (math.isfinite(value) and math.isfinite(bound) and bound > 0):
        return number_text(value)
    size = math.floor(math.log10(abs(value))) if value else 0
    decimals = min(-math.ceil(math.log10(bound)), MOST_DIGITS - 1 - size)
    if abs(value) >= 1e6 or decimals > 2 * MOST_DIGITS:
        return power_of_ten(f"{value:.{MOST_DIGITS}g}")
    shown = f"{value:.{max(0, decimals)}f}"
    return shown.rstrip("0").rstrip(".") if "." in shown else shown


def share_text(value: float) -> str:
    """A share as a percentage: of numbers that are shares of a range nobody has to guess of which."""
    return number_text(100 * value) + (" %" if math.isfinite(value) else "")


def decibels(value: float) -> str:
    """A PSNR."""
    return "identical" if math.isinf(value) else f"{value:.1f} dB"


def date_text(text: str | None) -> str:
    """A date as the file has it, in the form that people read."""
    return printable((text or "not stated").replace("T", " ").replace("+00:00", " UTC"))


def seconds_text(seconds: float) -> str:
    """A duration."""
    return f"{seconds:.2g} s" if 0 <= seconds < 60 else duration(seconds)
