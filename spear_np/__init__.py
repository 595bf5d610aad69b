"""Exact recovery of whole batches from the gradients of fully connected ReLU layers.

Arrays in, arrays out: NumPy, CuPy, or anything that follows the array API standard; no files, no frameworks.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from .answer.certificate import Certificate, Check, Evidence, Premise
from .answer.result import Inversion, Progress, Round, Status
from .arrays import Array, Sliceable
from .check import check
from .errors import DeviceError, InputError
from .factors.activation import ACTIVATIONS, Activation
from .factors.gradients import LayerChain, LayerGradients, WeightDecay
from .invert import invert, invert_chain, invert_layer
from .loop.options import METHODS, Options
from .many import invert_many
from .survey import Survey, survey, weight_decay

try:
    __version__ = version("spear-np")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"

__all__ = [
    "ACTIVATIONS",
    "METHODS",
    "Activation",
    "Array",
    "Certificate",
    "Check",
    "DeviceError",
    "Evidence",
    "InputError",
    "Inversion",
    "LayerChain",
    "LayerGradients",
    "Options",
    "Premise",
    "Progress",
    "Round",
    "Sliceable",
    "Status",
    "Survey",
    "WeightDecay",
    "check",
    "invert",
    "invert_chain",
    "invert_layer",
    "invert_many",
    "survey",
    "theory",
    "weight_decay",
]
