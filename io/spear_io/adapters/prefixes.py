"""Two sets of names of one model, where wrappers have put something before those of one side.

`torch.compile` calls `fc1.weight` `_orig_mod.fc1.weight`, DataParallel `module.fc1.weight`, a checkpoint may keep it as
`state_dict/model.fc1.weight`, and several of these come at once.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

WRAPPERS = re.compile(
    r"(?:(?<=[./])|^)(?:_orig_mod|_module|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)[./]"
)
"""What torch.compile, Opacus, FSDP, activation checkpoints and Lightning's strategies put before a name, or into it.

No model has names of its own that begin with an underscore and end so; `module` and `model` it may have.
"""

PARALLEL = re.compile(r"(?:(?<=[./])|^)module[./]")
"""What DataParallel puts before a name, or before those of a part of the model."""


MOST_BEGINNINGS = 64
"""Beginnings that are tried: more come of names that were made up."""


class AmbiguousNamesError(ValueError):
    """Names fit in more than one way; `choices` are what could be taken off."""

    def __init__(self, choices: Sequence[str]) -> None:
        super().__init__(choices)
        self.choices = list(choices)


def unwrapped(name: str) -> str:
    """Return a name without what wrappers put into it: `enc._orig_mod.fc1.weight` is `enc.fc1.weight`."""
    return WRAPPERS.sub("", name)


def counterparts(names: Iterable[str], others: Iterable[str]) -> dict[str, str]:
    """Return which of `others` each of `names` means, where one does.

    A name means itself; or the only one that is the same without what wrappers put into it; or, if that is so for none,
    the one that is left when the same beginning is taken off the names of one side. That beginning must end at a
    separator, and all names of one side must then be found on the other.

    Raises
    ------
    AmbiguousNamesError
        If several beginnings would do.
    """
    names, others = list(dict.fromkeys(names)), list(dict.fromkeys(others))
    there = set(others)
    bare = _unique(others)
    own = _unique(names)
    found = {name: name for name in names if name in there}
    taken = set(found.values())
    for short, name in own.items():
        if name not in found and short in bare and bare[short] not in taken:
            found[name] = bare[short]
            taken.add(bare[short])
    if found or not names or not others:
        return found
    fitting = [
        *(
            {own[name]: bare[other] for name, other in shorter.items()}
            for shorter in _cut(list(own), list(bare))
        ),
        *(
            {own[name]: bare[other] for other, name in shorter.items()}
            for shorter in _cut(list(bare), list(own))
        ),
    ]
    if len(fitting) > 1:
        raise AmbiguousNamesError(sorted({_difference(*next(iter(one.items()))) for one in fitting}))
    return fitting[0] if fitting else {}


def _unique(names: Sequence[str]) -> dict[str, str]:
    """Return names by what they are without wrappers; those that would be the same are left as they are."""
    short = {name: PARALLEL.sub("", unwrapped(name)) for name in names}
    count = Counter(short.values())
    return {(short[name] if count[short[name]] == 1 else name): name for name in names}


def _cut(longer: Sequence[str], shorter: Sequence[str]) -> list[dict[str, str]]:
    """Return, for each beginning of `longer` that does, which of `shorter` is left of each."""
    if not longer or not shorter:
        return []
    wanted = set(shorter)
    one = shorter[0]
    beginnings = {
        name.removesuffix(one)
        for name in longer
        if name.endswith(one) and re.search(r"[./]$", name.removesuffix(one))
    }
    beginnings |= {longer[0][: match.end()] for match in re.finditer(r"[./]", longer[0])}
    found = []
    for beginning in sorted(beginnings)[:MOST_BEGINNINGS]:
        left = {name: name.removeprefix(beginning) for name in longer if name.startswith(beginning)}
        left = {name: rest for name, rest in left.items() if rest in wanted}
        if len(left) in (len(longer), len(wanted)):
            found.append(left)
    return found


def _difference(name: str, other: str) -> str:
    """Return the beginning that one of two names has more than the other."""
    longer, shorter = (unwrapped(one) for one in sorted((name, other), key=len, reverse=True))
    return longer.removesuffix(shorter)
