"""The words that a page explains: those that are on it."""

from __future__ import annotations

from collections.abc import Collection

from ..looks import Kind

SHOWN_AS = {
    Kind.PICTURE: "each is one picture",
    Kind.TABLE: "each is one row of the table",
    Kind.CURVE: "each is one curve, its numbers from left to right",
}
"""What an input is on a page."""

WORDS = (
    (
        "Gradient",
        "The correction to a model that training computes from people's data, and that federated learning shares instead of it.",
    ),
    (
        "Batch",
        (
            "The inputs that one shared gradient was computed from. Those that are identical, and those that are fainter than the noise, do not "
            "show in it on their own: a batch may have more inputs than show."
        ),
    ),
    (
        "Premise",
        "What a result takes for granted because no test can show it. The premises stand in the status line, after the word if.",
    ),
    (
        "Bound",
        (
            "The largest error that any single value of a recovered input can have. The overview and the tests give it as a share of the range "
            "of the data, which goes from the lowest value of all recovered inputs to the highest; everywhere else it is in the units that "
            "are named beside it."
        ),
    ),
    (
        "Singular values and rank",
        "How many independent inputs show in the gradient: those whose value stands above the noise.",
    ),
)
"""Words that every page explains."""
PSNR = (
    "PSNR",
    (
        "Peak signal-to-noise ratio, in decibels: how close a recovered input is to the original. Above 40 dB people see no difference; "
        "every 20 dB are a factor of ten in the error."
    ),
)
ZEROS = (
    "Zeros",
    (
        "Units of the model that an input leaves switched off. Their rows hold nothing of it, and that pattern tells inputs apart: the "
        "more zeros beyond those needed, the surer."
    ),
)
EQUATIONS = (
    "Equations to spare",
    (
        "The layers behind say what each input has to become on its way through the model. Each says so by an equation, and the more there are "
        "beyond those needed to find an input, the less can anything else meet all of them."
    ),
)


def glossary(
    kinds: Collection[str], *, zeros: bool, equations: bool, truth: bool
) -> tuple[tuple[str, str], ...]:
    """Return the words that a page explains, with what they mean: those that are on it.

    Parameters
    ----------
    kinds : collection of str
        What its inputs are drawn as.
    zeros, equations : bool
        Whether they tell inputs apart.
    truth : bool
        Whether originals stand beside some.
    """
    drawn = [words for kind, words in SHOWN_AS.items() if kind in kinds]
    here = f" Here, {'; or '.join(drawn)}." if drawn else ""
    person = (
        "Input",
        f"What one person's record is to the model: a picture, a row of a table, a text as numbers.{here}",
    )
    more = [words for words, there in ((ZEROS, zeros), (EQUATIONS, equations), (PSNR, truth)) if there]
    return (WORDS[0], person, *WORDS[1:], *more)
