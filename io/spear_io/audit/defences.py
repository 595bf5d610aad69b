"""What a client may do to an update before it is shared, from weak to strong."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from spear_np import Sliceable

from ..files.storage import Floats
from ..show.progress import power_of_ten
from .replay import PerExample, Replay
from .update import Shared

Rng = np.random.Generator
Change = Callable[[Shared, float, Rng], Shared]


@dataclass(frozen=True)
class Defence:
    """One defence at several strengths."""

    name: str
    title: str
    unit: str
    """What a strength counts, as it is read behind a number: "bits for each entry"."""
    stronger: str
    """What a strength that protects more is: "more", "less" or "fewer"."""
    strengths: tuple[float, ...]
    """From weak to strong."""
    apply: Change
    limits: str
    """What it does not protect, whatever the sweep shows."""
    keeps_batch: bool = True
    """Whether what is shared is of the same number of inputs: an attacker may know it."""
    graded: bool = True
    """Whether there are strengths between those of the sweep."""
    switch: bool = False
    """Whether it is there or not, and nothing between: strengths 0 and 1."""
    at_weakest: str = ""
    """What it means if even the weakest strength stops this method; by default that weaker was not tried."""

    @property
    def scale(self) -> str:
        """What a strength is, and which way it grows, in a sentence."""
        if self.switch:
            return f"{self.unit}."
        return f"{self.unit}; {self.stronger} is stronger."

    def amount(self, strength: float) -> str:
        """Return a strength with its unit: "6 bits for each entry"."""
        return f"{text(strength)} {self.unit}"


NOISE = (1e-5, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
MULTIPLIERS = (1e-6, 1e-5, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
VALUES = (30.0, 10.0, 5.0, 3.0, 2.0, 1.0, 0.5)
NORMS = (1.0, 0.1, 0.01)
SHARES = (0.99, 0.9, 0.75, 0.5, 0.25, 0.1, 0.01)
BITS = (16.0, 12.0, 8.0, 6.0, 4.0, 2.0, 1.0)
STEPS = (1.0, 2.0, 5.0, 10.0)
LEARNING_RATE = 0.01
"""Of local steps, where neither the file nor the user says one: what the SGD of Keras takes by default."""


def text(value: float) -> str:
    """Return a strength as people read it."""
    return power_of_ten(f"{value:.2g}") if value else "0"


def noise(update: Shared, strength: float, rng: Rng) -> Shared:
    """Add Gaussian noise of `strength` times the root mean square of weight_grad to every entry that is shared."""
    deviation = strength * update.size
    return update.changed(lambda values: values + deviation * rng.standard_normal(values.shape))


def clip_values(update: Shared, strength: float, rng: Rng) -> Shared:
    """Cut every entry off at `strength` times the root mean square of its array."""

    def clip(values: Floats) -> Floats:
        most = strength * math.sqrt(float(np.mean(values**2)))
        return np.clip(values, -most, most)

    return update.changed(clip)


def clip_norm(update: Shared, strength: float, rng: Rng) -> Shared:
    """Scale the whole update to `strength` times its norm, as a server or a client that clips it does."""
    return update.changed(lambda values: strength * values)


def top_k(update: Shared, strength: float, rng: Rng) -> Shared:
    """Keep the largest share `strength` of the entries of each array, set the others to zero."""

    def keep(values: Floats) -> Floats:
        size = np.abs(values)
        kept: Floats = np.where(size >= np.quantile(size, 1 - strength), values, 0.0)
        return kept

    return update.changed(keep)


def quantise(update: Shared, strength: float, rng: Rng) -> Shared:
    """Round each array to evenly spaced levels of `strength` bits between its largest entries; one bit: signs."""

    def rounded(values: Floats) -> Floats:
        if strength == 1:
            signs: Floats = np.sign(values) * np.mean(np.abs(values))
            return signs
        step = float(np.max(np.abs(values))) / (2 ** (strength - 1) - 1) or 1.0
        levels: Floats = np.rint(values / step) * step
        return levels

    return update.changed(rounded)


def without_bias(update: Shared, strength: float, rng: Rng) -> Shared:
    """Leave the gradient of every bias out, where `strength` is 1."""
    if not strength:
        return update
    return replace(update, layers=tuple(replace(layer, bias_grad=None) for layer in update.layers))


def fewer_layers(update: Shared, strength: float, rng: Rng) -> Shared:
    """Share only the first `strength` of the layers."""
    return replace(update, layers=update.layers[: int(strength)], names=update.names[: int(strength)])


def summed(others: Sequence[Shared]) -> Change:
    """Return a defence that shares the sum of an update and of the first ones of `others`, as secure aggregation does."""

    def add(update: Shared, strength: float, rng: Rng) -> Shared:
        added = others[: int(strength) - 1]
        layers = []
        for number, layer in enumerate(update.layers):
            all_of_them = [layer, *(other.layers[number] for other in added)]
            biases = [one.bias_grad for one in all_of_them if one.bias_grad is not None]
            layers.append(
                replace(
                    layer,
                    weight_grad=_sum([one.weight_grad for one in all_of_them]),
                    bias_grad=_sum(biases) if len(biases) == len(all_of_them) else None,
                )
            )
        return replace(update, layers=tuple(layers))

    return add


def clip_examples(examples: PerExample, norm: float) -> Change:
    """Return a defence that clips the gradient of each input to `strength` times `norm`."""

    def clip(update: Shared, strength: float, rng: Rng) -> Shared:
        return examples.clipped(update, strength * norm)

    return clip


def dp_sgd(examples: PerExample, norm: float) -> Change:
    """Return DP-SGD (Abadi et al. 2016): each input clipped to `norm`, noise of `strength` times that added to all.

    `norm` is in the units of what is shared: the clipping norm over the batch size where that is a mean.
    """

    def share(update: Shared, strength: float, rng: Rng) -> Shared:
        deviation = strength * norm
        return examples.clipped(update, norm).changed(
            lambda values: values + deviation * rng.standard_normal(values.shape)
        )

    return share


def local_steps(replay: Replay, rate: float, *, mean: bool) -> Change:
    """Return a defence that shares the sum of `strength` steps of SGD at `rate`, as a client of FedAvg does, over their number."""

    def train(update: Shared, strength: float, rng: Rng) -> Shared:
        return replay.steps(update, int(strength), rate, mean=mean)

    return train


def usual_defences(update: Shared) -> list[Defence]:
    """Return the defences that need nothing but one update."""
    found = [
        Defence(
            "noise",
            "Gaussian noise",
            "times the root mean square of the gradient",
            "more",
            NOISE,
            noise,
            "It covers one update, and has an ε only where the gradient of each input is clipped too. Noise of the same inputs in T updates "
            "averages out: T of them are worth noise that is √T times smaller. And what this method no longer finds, another may still "
            "guess in part.",
        ),
        Defence(
            "clip_norm",
            "Clipping the whole update",
            "times its norm",
            "less",
            NORMS,
            clip_norm,
            "A factor of the whole update changes no input: clipping the norm of an update protects nothing by itself. It only "
            "limits what noise has to cover.",
        ),
        Defence(
            "clip_values",
            "Clipping every entry",
            "times the root mean square of its array",
            "less",
            VALUES,
            clip_values,
            "Entries below the limit are shared as they are, and so is the sign of every other.",
        ),
        Defence(
            "top_k",
            "Sharing the largest entries only",
            "of all entries",
            "fewer",
            SHARES,
            top_k,
            "What is shared is exact. The rows of a single strongly weighted input can be whole.",
        ),
        Defence(
            "bits",
            "Rounding to few bits",
            "bits for each entry",
            "fewer",
            BITS,
            quantise,
            "Rounding is noise whose size everybody knows, and it is the same each time: no guarantee comes with it.",
            graded=False,
        ),
    ]
    if update.first.bias_grad is not None:
        found.append(
            Defence(
                "no_bias",
                "Sharing no gradient of the bias",
                "(0: it is shared, 1: it is not)",
                "more",
                (0.0, 1.0),
                without_bias,
                "A layer that is inverted alone loses only the scale of each input, on which what a picture shows does not depend. That "
                "layers are not linked without it is a limit of this method.",
                graded=False,
                switch=True,
            )
        )
    if len(update.layers) > 1:
        found.append(
            Defence(
                "fewer_layers",
                "Sharing only the first layers",
                f"of {len(update.layers)} layers",
                "fewer",
                tuple(float(count) for count in range(len(update.layers), 0, -1)),
                fewer_layers,
                "A layer that is withheld is not trained. What the first layer gives away by itself stays.",
                graded=False,
            )
        )
    return found


def _sum(arrays: Sequence[Sliceable]) -> Floats:
    """Return the sum of arrays, added in float64, in the precision of the first."""
    total = np.sum([np.asarray(array[...], dtype=np.float64) for array in arrays], axis=0)
    return np.asarray(total, dtype=arrays[0].dtype)
