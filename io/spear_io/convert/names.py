"""What the name of an array says: which layer it belongs to, and whether it is a weight, a bias or a gradient."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from ..adapters.prefixes import unwrapped
from .source import Orientation

Role = Literal["weight", "bias", "inputs"]

LONGEST_NUMBER = 18
"""Digits of a number in a name: what is longer is a text, and Python refuses to read a very long one."""

WORD = re.compile(r"[^./_\-:@\s|()\[\]']+")
"""What lies between separators."""

LEAF = re.compile(r"(?P<change>d?)(?P<leaf>weights?|kernel|bias|biases|w|b)(?P<number>\d*)", re.IGNORECASE)
"""The word that tells the role, as in fc1.weight, W1, dW1, kernel."""

GRADIENT = frozenset({"grad", "grads", "gradient", "gradients"})

CHANGES = frozenset({"delta", "deltas", "update", "updates"})
"""Words for what training has added to a weight: a tree of them, or the last word of a name."""

ROOTS = frozenset(
    {
        "params",
        "param",
        "parameters",
        "model",
        "module",
        "net",
        "network",
        "state",
        "dict",
        "variables",
        "vars",
    }
)
"""First words that stand for the whole model."""

WRAPPERS = frozenset({"value", "raw", "data"})
"""Last words that stand for the array itself, as in Flax's nnx."""

POSITIONAL = frozenset({"arr", "array", "param", "parameter", "tensor", "gradient", "grad", "g"})
"""Words that with a number name nothing but a position: numpy.savez calls arrays arr_0, arr_1, …"""

LOSS = re.compile(
    r"(?<![a-z])d(L|J|C|loss|cost)[/_.]?(?=d(w|b|weights?|bias|biases|kernel)(?![a-z]))", re.IGNORECASE
)
"""The numerator of a derivative, as in dL_dW1, dL/dW1 and dLdW1, which mean dW1."""

MOMENT = "looks like a moment of the optimizer, no gradient"

# A single letter at the beginning may as well be a layer: that is seen beside the other names.
OPTIMIZER = re.compile(
    r"(^|[^a-z])(exp_avg|exp_avg_sq|momentum|momentums|momentum_buffer|velocity|velocities|moments?|adam|adamw|sgd"
    r"|optimi[sz]er|opt_state|accumulator)([^a-z]|$)|[./](m|v|mu|nu)$"
    r"|(^|[^a-z])(m|v|s|mu|nu)_?d(w|b)([^a-z]|$)"
)
SIBLINGS = {"m": "v", "v": "m", "mu": "nu", "nu": "mu"}
"""First words of names of moments, and of the moments that go with them."""

COMPUTED = re.compile(
    r"(?P<stem>.*(?:weight|bias))_(?P<part>g|v|u|orig|mask)(?:[._/](?:grad|value))?"
    r"|(?P<new>.*[./])?parametri[sz]ations[./](?:weight|bias)[./].*",
    re.IGNORECASE,
)
"""What PyTorch keeps instead of a weight under weight norm, spectral norm or pruning."""

IS_COMPUTED = (
    "belongs to a weight that is computed from other parameters (weight norm, spectral norm, pruning): its gradient is "
    "not that of the weight"
)

NORMALISATION = re.compile(
    r"(^|[^a-z])(running_(mean|var)|moving_(mean|variance)|num_batches_tracked|batch_stats|gamma|beta|scale"
    r"|(batch|layer|group|rms)_?norm(ali[sz]ation)?|(bn|ln|norm)\d*)([^a-z]|$)"
)
BUFFER = re.compile(
    r"(^|[^a-z])(running_(mean|var)|moving_(mean|variance)|num_batches_tracked|batch_stats)([^a-z]|$)"
)
RECURRENT = re.compile(r"(^|[^a-z])(lstm|gru|rnn|recurrent|(weight|bias)_(ih|hh)_l\d+)([^a-z]|$)")
EMBEDDING = re.compile(r"(^|[^a-z])(embedding|embeddings|embed|wte|wpe)([^a-z]|$)")


PER_SAMPLE = "is one gradient a sample"
SAMPLES = re.compile(r"(^|[./_])grad_sample$")
"""How Opacus calls the gradients of the samples of a batch, one after the other."""

UNKNOWN = "has a name that says neither weight nor bias"
NORMALISATIONS = ("belongs to a normalisation", "is a weight of one dimension, as of a normalisation")
"""Reasons not to use an array: by its name, by its shape."""


@dataclass(frozen=True)
class Meaning:
    """What a name says."""

    role: Role | None = None
    gradient: bool = False
    layer: tuple[str, ...] = ()
    """Words of the layer's name, in lower case: what pairs arrays."""
    title: str = ""
    """The layer's name for people."""
    convention: Orientation | None = None
    """How arrays of that name usually lie."""
    position: int | None = None
    """Of an array that has a number instead of a name."""
    numbers: tuple[int, ...] = ()
    """All of the numbers that stand for it, where it lies in lists inside each other."""
    group: tuple[str, ...] = ()
    """Words of the name of the list that it is in."""
    change: bool = False
    """Whether it is what training has added to the weight, rather than a gradient."""
    reason: str | None = None
    """Why the array is not used."""
    said: bool = False
    """Whether a user said so: that counts for more than any name."""


def understand_all(names: Iterable[str]) -> dict[str, Meaning]:
    """Return what names say, each beside the others.

    Trees of moments mirror the model or each other, and so do trees of changes; what stands for a computed weight
    comes in several parts; and names of nothing but a common word and numbers are a list.
    """
    names = list(names)
    paths = {name: name.replace("/", ".") for name in names}
    below: defaultdict[str, set[str]] = defaultdict(set)
    for path in paths.values():
        first, _, rest = path.partition(".")
        below[first.lower()].add(rest)
    models = [set(paths.values()), *(rests for first, rests in below.items() if first in ROOTS | GRADIENT)]
    moments = tuple(
        f"{first}."
        for first, second in SIBLINGS.items()
        if any(understand(rest).layer for rest in below.get(first, ()))  # else it is itself a layer
        and any(below[first] <= others for others in (below.get(second, set()), *models))
    )
    changes = tuple(
        f"{first}."
        for first in CHANGES & below.keys()
        if any(understand(rest).layer or understand(rest).position is not None for rest in below[first])
        and (
            len(below) == 1
            or any(below[first] <= rests for other, rests in below.items() if other != first)
            or below[first] <= set(paths.values())
        )
    )
    computed = _computed(paths.values())
    meanings = {}
    for name, path in paths.items():
        if path.lower().startswith(moments):
            meanings[name] = Meaning(reason=MOMENT)
        elif path in computed:
            meanings[name] = replace(_nameless(path), reason=IS_COMPUTED)
        elif path.lower().startswith(changes):
            meanings[name] = replace(understand(path.partition(".")[2]), gradient=True, change=True)
        else:
            meanings[name] = understand(path)
    return _with_lists(meanings)


def is_buffer(name: str) -> bool:
    """Whether an array is none of the parameters that are trained: a statistic of a normalisation, a counter."""
    return BUFFER.search(name.lower()) is not None


def _computed(paths: Iterable[str]) -> dict[str, str]:
    """Return the names of parts of computed weights: of one weight there are several, or it says so itself."""
    parts: defaultdict[str, dict[str, str]] = defaultdict(dict)
    computed = {}
    for path in paths:
        found = COMPUTED.fullmatch(path)
        if found and found["stem"] is None:
            computed[path] = ""
        elif found:
            parts[found["stem"]][found["part"].lower()] = path
    for stem, of_stem in parts.items():
        if "orig" in of_stem or {"g", "v"} <= of_stem.keys():
            computed |= dict.fromkeys(of_stem.values(), stem)
    return computed


def _nameless(path: str) -> Meaning:
    """Return the layer that a part of a computed weight belongs to."""
    stem = re.sub(r"[./]?parametri[sz]ations(?=[./])", "", path)
    stem = re.sub(r"(?i)(weight|bias)([./]|_(g|v|u|orig|mask)([._/]|$)).*", r"\1", stem)
    return replace(understand(stem), gradient=understand(path).gradient)


def _with_lists(meanings: dict[str, Meaning]) -> dict[str, Meaning]:
    """Return the meanings, with those that are members of a list told by the others that differ by numbers alone."""
    lists: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
    all_words = {name: [word[0].lower() for word in WORD.finditer(unwrapped(name))] for name in meanings}
    with_biases = {
        tuple(words[:-2]) for words in all_words.values() if words[-2:-1] in (["biases"], ["bias"])
    }
    split: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {}
    for name, meaning in meanings.items():
        words = all_words[name]
        a_list = (
            words[-2:-1] == ["weights"] and tuple(words[:-2]) not in with_biases
        )  # of all arrays of a model
        known = meaning.reason is None and meaning.position is None and not a_list
        if known or meaning.reason not in (None, UNKNOWN):
            continue
        numbers: list[int] = []
        while words and words[-1].isdecimal() and len(words[-1]) <= LONGEST_NUMBER:
            numbers.insert(0, int(words.pop()))
        if numbers:
            split[name] = tuple(words), tuple(numbers)
            lists[tuple(words)].append(name)
    found = dict(meanings)
    for common, members in lists.items():
        for name in members:
            meaning = meanings[name]
            if len(members) > 1 or meaning.position is not None:
                group = tuple(word for word in common if word not in GRADIENT | POSITIONAL)
                gradient = meaning.gradient or any(word in GRADIENT for word in common)
                changed = bool(CHANGES & set(common)) or meaning.change
                numbers_ = split[name][1]
                found[name] = Meaning(
                    gradient=gradient or changed,
                    change=changed,
                    position=numbers_[-1],
                    numbers=numbers_,
                    group=group,
                )
    return found


def understand(name: str) -> Meaning:
    """Return what a name says, e.g. of `fc1.weight.grad`, `grads/fc1/kernel`, `dW1`, `arr_0`."""
    name = LOSS.sub("", re.sub(r":\d+$", "", unwrapped(name)))  # TensorFlow's number of an output
    lower = name.lower()
    for pattern, what in (
        (OPTIMIZER, MOMENT),
        (RECURRENT, "belongs to a recurrent layer"),
    ):
        if pattern.search(lower):
            return Meaning(reason=what)
    if SAMPLES.search(lower):
        return Meaning(gradient=True, reason=PER_SAMPLE)
    words = list(WORD.finditer(name))
    while len(words) > 1 and words[-1][0].lower() in WRAPPERS:
        words.pop()
    position = _position([word[0].lower() for word in words])
    if position is not None:
        return Meaning(gradient=_is_gradient(words), position=position)
    gradient = _is_gradient(words)
    words = [word for word in words if word[0].lower() not in GRADIENT]
    change = _is_change(words)
    if change is not None:
        words.pop(change)
    while len(words) > 1 and words[0][0].lower() in ROOTS:
        words.pop(0)
    meaning = _leaf(words, name)
    if NORMALISATION.search(lower):
        return Meaning(title=meaning.title, reason=NORMALISATIONS[0])
    if EMBEDDING.search(lower):
        return Meaning(reason="belongs to an embedding")
    changed = change is not None
    return replace(meaning, gradient=gradient or changed or meaning.gradient, change=changed)


def _is_change(words: list[re.Match[str]]) -> int | None:
    """Return which word says that an array is a change of a weight: the last, as in fc1.weight_delta, or delta_W1."""
    lower = [word[0].lower() for word in words]
    if len(lower) > 1 and lower[-1] in CHANGES and LEAF.fullmatch(lower[-2]):
        return len(lower) - 1
    if (
        1 < len(lower) <= 3
        and lower[0] in CHANGES
        and LEAF.fullmatch(lower[1])
        and words[0].string[words[0].end()] == "_"
    ):
        return 0
    return None


def _is_gradient(words: list[re.Match[str]]) -> bool:
    return any(word[0].lower() in GRADIENT for word in words)


def _position(words: list[str]) -> int | None:
    """Return the number of an array that has no other name."""
    if (
        words
        and words[-1].isdecimal()
        and len(words[-1]) <= LONGEST_NUMBER
        and all(word in POSITIONAL | GRADIENT for word in words[:-1])
    ):
        return int(words[-1])
    return None


def _leaf(words: list[re.Match[str]], name: str) -> Meaning:
    """Find the word that tells the role: the last, the last before a number, or the first."""
    if not words:
        return Meaning(reason=UNKNOWN)
    last = words[-1][0]
    if len(words) == 1 and last.lower() == "inputs":
        return Meaning(role="inputs")
    numbered = len(words) > 1 and last.isdecimal()
    for position in (len(words) - 1, *([len(words) - 2] if numbered else []), 0):
        found = LEAF.fullmatch(words[position][0])
        if found:
            rest = [word for number, word in enumerate(words) if number != position]
            return _meaning(found, rest, name)
    return Meaning(reason=UNKNOWN)


def _meaning(found: re.Match[str], rest: list[re.Match[str]], name: str) -> Meaning:
    leaf = found["leaf"].lower()
    layer = [word[0].lower() for word in rest] + ([found["number"]] if found["number"] else [])
    title = "".join(
        (name[before.end() : word.start()] if before and before.end() <= word.start() else "") + word[0]
        for before, word in zip([None, *rest], rest, strict=False)
    )
    title = "_".join(filter(None, [re.sub(r"[/\[\]'|]+", ".", title) or "layer", found["number"]]))
    convention: dict[str, Orientation] = {"kernel": "nm", "weight": "mn", "weights": "mn"}
    return Meaning(
        role="bias" if leaf.startswith("b") else "weight",
        gradient=bool(found["change"]),
        layer=tuple(layer),
        title=title,
        convention=convention.get(leaf),
    )
