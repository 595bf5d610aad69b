"""A certificate on a terminal, for auditors: every test by what it says, then what the result rests on, then what stays open."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

from rich.text import Text

import spear_np

from ..problems import printable
from .report.check_words import EVIDENCE, told, words_of
from .report.words import VERDICTS, premise_words

MARKS = {True: ("ok", "green"), False: ("NO", "red"), None: ("--", "yellow")}
"""What stands before a test that was passed, failed, or could not be made."""
BESIDES = ("spare_rows", "beyond_chance")
"""Evidence without which an input may be vouched for all the same: see `spear_np.Evidence.accepted`."""


def certificate_lines(status: spear_np.Status, certificate: spear_np.Certificate) -> Iterator[Text]:
    """Yield a certificate line by line: verdict, tests, tests of each input, premises, what no test can exclude."""
    checks = certificate.checks
    passed = sum(check.passed is True for check in checks)
    yield Text(f"{VERDICTS[status][0]}: {passed} of {len(checks)} tests passed", style="bold")
    rows = [(words_of(check).title, *told(check)) for check in checks]
    title, value, demand = (max(map(len, column)) for column in zip(*rows, strict=True))
    for check, (name, figure, limit) in zip(checks, rows, strict=True):
        line = f"{name:<{title}}  {figure:>{value}}  {limit:<{demand}}  {check.name}"
        yield _marked(check.passed, printable(line, 1000))
        if check.passed is False:
            yield Text(f"      {printable(words_of(check).meaning, 1000)}")
    yield from _of_each_input(certificate)
    if certificate.rests_on:
        yield Text("It rests on what no test can show:", style="bold")
        for premise in certificate.rests_on:
            short, _ = premise_words(premise)
            words = f"{premise.name}: {short.rstrip('.')}: {premise.meaning}"
            yield Text(f"if  {printable(words, 2000)}")
    if certificate.caveats:
        yield Text("What it leaves open, or takes for granted besides:", style="bold")
        yield from (Text(f" *  {printable(caveat, 2000)}") for caveat in certificate.caveats)


def _of_each_input(certificate: spear_np.Certificate) -> Iterator[Text]:
    """One line for each piece of evidence: of how many inputs it is there."""
    for fact in fields(spear_np.Evidence):
        known = [value for row in certificate.evidence if (value := getattr(row, fact.name)) is not None]
        if not certificate.evidence:
            continue
        words = f"of each input: {EVIDENCE[fact.name]}"
        if not known:
            yield _marked(None, f"{words}: could not be looked at")
        else:
            besides = " (more than is demanded)" if fact.name in BESIDES and not all(known) else ""
            yield _marked(None if besides else all(known), f"{words}: {sum(known)} of {len(known)}{besides}")


def _marked(passed: bool | None, line: str) -> Text:
    mark, style = MARKS[passed]
    return Text.assemble((mark, style), f"  {line}")
