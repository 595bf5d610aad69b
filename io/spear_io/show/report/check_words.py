"""The tests of a certificate, in sentences for readers who have never seen a gradient."""

from __future__ import annotations

from dataclasses import dataclass

import spear_np

from .words import number_text


@dataclass(frozen=True)
class CheckWords:
    """One test of a certificate, for readers who do not know its name."""

    title: str
    """What holds if it is passed."""
    meaning: str
    """What its figure is."""
    yes_or_no: bool = False
    """Whether the figure is 1 for yes and 0 for no."""


CHECKS = {
    "sign_agreement": CheckWords(
        "The model confirms the inputs",
        "An input switches some units of the model on and others off. Share of the units on which the shared numbers and the model's own "
        "weights say the same; worst input.",
    ),
    "contradictions": CheckWords(
        "Nothing contradicts the inputs",
        "Units that an input switched on, as the shared numbers say, although the recovered input leaves them off.",
    ),
    "missing_gradients": CheckWords(
        "No trace of an input is missing",
        "Some units that a recovered input switches on may show no trace of it. Probability that noise alone hides as many.",
    ),
    "decided_signs": CheckWords(
        "Enough units are beyond doubt",
        "Share of the units of which it is certain, with all errors allowed for, whether the input switches them on; worst input.",
    ),
    "unique_directions": CheckWords(
        "No other candidate fits",
        "Share of the inputs that the units which they leave off determine: nothing else leaves off the same.",
    ),
    "alternatives": CheckWords(
        "No other batch fits",
        "Inputs that hang on a single unit, where another set of inputs would fit the numbers as well and is not ruled out.",
    ),
    "gap": CheckWords(
        "Zeros cannot be mistaken",
        "How many times the largest number that counts as zero the smallest other numbers are.",
    ),
    "rank": CheckWords(
        "As many inputs as show",
        "Inputs that were sought, less those that show in the shared numbers. Below zero, some would have been passed over.",
    ),
    "noise_known": CheckWords(
        "The noise is of a kind that is understood",
        "Whether what is left of the shared numbers beside the inputs looks like the rounding of a computer, or like noise that is "
        "drawn for every number on its own. All bounds rest on its size. It often does not look so where the gradient is the difference of "
        "two saved models (checkpoints): they are rounded far more coarsely than their difference.",
        yes_or_no=True,
    ),
    "weight_residual": CheckWords(
        "The inputs explain the gradient",
        "What they leave of the gradient of the weights, in units of its noise: about 1 is noise and nothing else.",
    ),
    "bias_residual": CheckWords(
        "The inputs have the right size",
        "What they leave of the gradient of the biases, from which their size is taken, in units of the noise.",
    ),
    "error_bound": CheckWords(
        "Errors are small",
        "The largest error that any value of any recovered input can have, as a share of the distance from the lowest of all their "
        "values to the highest.",
    ),
    "feature_mean": CheckWords(
        "The mean was not taken away",
        "Some optimisers and defences take the mean away from the gradient. Sums of the rows of the gradient, in units of their "
        "noise: where it was taken away, they are near zero.",
    ),
    "column_norms": CheckWords(
        "Features were not brought to one size",
        "Some optimisers scale the gradient of every feature to the same size. Difference between the largest and the smallest, as a "
        "share of the largest.",
    ),
    "singular_values": CheckWords(
        "Inputs were not brought to one strength",
        "Some optimisers, such as Muon, give everything that is in the gradient the same strength. Difference between the strongest "
        "and the weakest, as a share of the strongest.",
    ),
    "inputs_found": CheckWords(
        "Every input that shows was found",
        "Inputs found, less those that show in the shared numbers.",
    ),
    "membership": CheckWords(
        "The next layers confirm the inputs",
        "Each recovered input is sent on through the model. How far the outcome is from what the gradients of the next layers say, in units "
        "of the noise; worst input.",
    ),
    "backward_side": CheckWords(
        "The way back confirms them too",
        "What each input sends back through the model as its correction. How far that is from what the gradient of the first layer holds, in "
        "units of the noise; worst input.",
    ),
    "one_output_grad": CheckWords(
        "Each input has one correction only",
        "How many times worse any other correction than the one that was found would fit; worst input.",
    ),
    "chance": CheckWords(
        "It is no coincidence",
        "Probability that something which is no input meets all equations of the layers by chance; worst input.",
    ),
    "features_weighted": CheckWords(
        "The model looks at every feature",
        "Features whose weights are all zero: nothing tests their values.",
    ),
    "scale": CheckWords(
        "Only one size of the inputs fits",
        "By what share all inputs could be larger or smaller, their outputs fitting as well.",
    ),
    "claims": CheckWords(
        "The inputs are those that were claimed",
        "Largest difference between a claimed input and the one that the gradient holds, as a share of the range of the data.",
    ),
}
"""Every test that a certificate may hold, by its name."""

EVIDENCE = {
    "unique": "no other candidate fits its zeros",
    "spare_rows": "its zeros are more than needed",
    "beyond_chance": "chance does not explain them",
    "within_bound": "its error is small enough",
    "signs_decided": "enough of its signs are sure",
    "signs_agree": "gradient and model agree",
}
"""What speaks for one input, in a few words."""


def words_of(check: spear_np.Check) -> CheckWords:
    """Return a test in plain words; one that is not known as its file describes it."""
    return CHECKS.get(check.name) or CheckWords(check.name.replace("_", " "), check.meaning)


def told(check: spear_np.Check) -> tuple[str, str]:
    """Return the figure of a test and what is demanded of it: "0.993" and "at least 0.99"."""
    if words_of(check).yes_or_no:
        value, limit = (
            "missing" if one is None else "yes" if one else "no" for one in (check.value, check.threshold)
        )
        return value, limit
    value = "missing" if check.value is None else number_text(check.value)
    return value, f"{'at most' if check.relation == '<=' else 'at least'} {number_text(check.threshold)}"
