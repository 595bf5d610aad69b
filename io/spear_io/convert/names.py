"""What the name of an array says: which layer it belongs to, and whether it is a weight, a bias or a gradient."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from .source import Orientation

Role = Literal["weight", "bias", "inputs"]

LONGEST_NUMBER = 18
"""Digits of a number in a name: what is longer is a text, and Python refuses to read a very long one."""

WORD = re.compile(r"[^./_\-:\s|()\[\]']+")
"""What lies between separators."""

LEAF = re.compile(r"(?P<change>d?)(?P<leaf>weights?|kernel|bias|biases|w|b)(?P<number>\d*)", re.IGNORECASE)
"""The word that tells the role, as in fc1.weight, W1, dW1, kernel."""

GRADIENT = frozenset({"grad", "grads", "gradient", "gradients"})

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

NORMALISATION = re.compile(
    r"(^|[^a-z])(running_(mean|var)|moving_(mean|variance)|num_batches_tracked|batch_stats|gamma|beta|scale"
    r"|(batch|layer|group|rms)_?norm(ali[sz]ation)?|(bn|ln|norm)\d*)([^a-z]|$)"
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
    reason: str | None = None
    """Why the array is not used."""


def understand_all(names: Iterable[str]) -> dict[str, Meaning]:
    """Return what names say, each beside the others: trees of moments mirror the model or each other."""
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
    return {
        name: Meaning(reason=MOMENT) if path.lower().startswith(moments) else understand(name)
        for name, path in paths.items()
    }


def understand(name: str) -> Meaning:
    """Return what a name says, e.g. of `fc1.weight.grad`, `grads/fc1/kernel`, `dW1`, `arr_0`."""
    name = LOSS.sub("", re.sub(r":\d+$", "", name))  # TensorFlow's number of an output
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
    while len(words) > 1 and words[0][0].lower() in ROOTS:
        words.pop(0)
    meaning = _leaf(words, name)
    if NORMALISATION.search(lower):
        return Meaning(title=meaning.title, reason=NORMALISATIONS[0])
    if EMBEDDING.search(lower):
        return Meaning(reason="belongs to an embedding")
    return replace(meaning, gradient=gradient or meaning.gradient)


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
