"""What a Keras layer or operation does to numbers, told by its class and configuration alone; Keras is not needed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from spear_np import ACTIVATIONS, Activation, InputError

from .wiring import NONE, Elementwise, Kept, Moved, Operation, Other, Product

FUNCTIONS: Mapping[str, Activation] = {
    "linear": NONE,
    "leaky_relu": Activation("leaky_relu", {"negative_slope": 0.2}),
    "swish": Activation("silu"),
    "hard_tanh": Activation("hardtanh"),
    "hard_silu": Activation("hardswish"),
    "hard_swish": Activation("hardswish"),
}
"""Keras' names of functions, where they or their parameters are not those of a dump."""

ACROSS = frozenset({"softmax", "log_softmax", "sparsemax", "glu"})
"""Functions of all outputs together."""

ELEMENTWISE = frozenset(
    {
        "exponential",
        "hard_shrink",
        "hard_sigmoid",
        "log_sigmoid",
        "soft_shrink",
        "softsign",
        "sparse_plus",
        "sparse_sigmoid",
        "squareplus",
        "tanh_shrink",
    }
)
"""Elementwise functions of Keras that a dump cannot compute."""

UNKNOWN_SLOPE = "prelu_of_unknown_slope"

RESHAPES = frozenset({"Flatten", "Reshape", "ExpandDims", "Squeeze"})
NOTHING = frozenset({"Identity", "InputLayer", "Cast", "StopGradient"})
MOVES = frozenset({"Permute", "Transpose", "Swapaxes", "Moveaxis"})

PRODUCTS = re.compile(r"Dense$|^(Depthwise|Separable)?Conv")
"""Layers that begin with a product of their own: an activation did not come in between."""


def operations_of(
    kind: str,
    config: Mapping[str, Any],
    *,
    layer: str | None = None,
    slope: Any = None,
) -> list[Operation]:
    """Return what a layer does, in turn: its product, and the activation that it has itself.

    Parameters
    ----------
    kind : str
        Name of its class.
    config : mapping
        Its configuration, as `get_config` gives it.
    layer : str, optional
        What its weights are called in a dump.
    slope : array, optional
        Of a PReLU.
    """
    own = config.get("activation")
    if PRODUCTS.search(kind):
        return [Product(snake(kind), layer, linear=kind == "Dense"), of_function(own)]
    if kind == "Activation":
        return [of_function(own)]
    if kind in NOTHING or _does_nothing(kind, config):
        return [Kept()]
    if kind in RESHAPES:
        channels_first = config.get("data_format") == "channels_first"
        return [Moved(snake(kind)) if channels_first else Kept(snake(kind))]
    if kind in MOVES:
        return [Moved(snake(kind))]
    return [_of_class(kind, config, slope)]


def of_function(function: Any) -> Elementwise | Other:
    """Return what an activation does, given as a configuration has it: a name, a function, a layer, or nothing."""
    if function is None:
        return Elementwise(NONE)
    if isinstance(function, str):
        name = snake(function)
        return Other(name) if name in ACROSS else Elementwise(FUNCTIONS.get(name, Activation(name)))
    inner = function.get("config") if isinstance(function, dict) else None
    if isinstance(inner, dict):
        kind = str(function.get("class_name"))
        operation = operations_of(kind, inner)[-1]
        if isinstance(operation, Elementwise | Other) and not is_custom(function):
            return operation
        return Elementwise(of_your_own(snake(kind)))
    return Elementwise(of_your_own(inner if isinstance(inner, str) else "unknown"))


def of_custom_layer(kind: str, config: Mapping[str, Any], layer: str | None = None) -> list[Operation]:
    """Return what a layer of a class of your own does: anything, whatever it is called and inherits from."""
    anything = Other(snake(kind))
    return [anything, Product(snake(kind), layer), of_function(config.get("activation")), anything]


def is_custom(serialised: Mapping[str, Any]) -> bool:
    """Whether a serialised object is of a class that is not Keras' own; the oldest files do not tell."""
    if "module" not in serialised:
        return False
    return str(serialised["module"]).partition(".")[0] not in ("keras", "tf_keras", "tensorflow")


def of_your_own(name: str) -> Activation:
    """Return the activation of a function of that name that is not Keras' own: never one that a dump can compute."""
    known = name.lower() in ACTIVATIONS or Activation(name) == NONE
    return Activation(f"custom_{name}" if known else name)


def snake(name: str) -> str:
    """Return the name of a class as the field says it: "layer_norm", "max_pool2d", "batch_norm"."""
    short = re.sub(r"(?<=.)Normalization", "Norm", name)
    short = short.replace("Pooling", "Pool").replace("Average", "Avg")
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", short).lower()


def _does_nothing(kind: str, config: Mapping[str, Any]) -> bool:
    """Whether a layer that only disturbs a training does not do even that.

    How it is called does not tell: what is said to the whole model counts in Keras 3.
    """
    if not kind.endswith(("Dropout", "Noise", "Dropout1D", "Dropout2D", "Dropout3D")):
        return False
    return bool(config.get("rate", config.get("stddev")) == 0)


def _of_class(kind: str, config: Mapping[str, Any], slope: Any) -> Elementwise | Other:
    """Return what a layer or operation does that has no weights but those of an activation."""
    name = snake(kind)
    try:
        match kind:
            case "ReLU":
                return Elementwise(_relu(config))
            case "Relu" | "Relu6" | "Selu" | "Silu" | "Softplus" | "Tanh" | "Sigmoid" | "Mish":
                return Elementwise(Activation(name))
            case "HardTanh" | "HardSilu":
                return Elementwise(FUNCTIONS[name])
            case "LeakyReLU" | "LeakyRelu":
                # Keras 2 calls it alpha.
                steepness = config.get("negative_slope", config.get("alpha"))
                return Elementwise(Activation("leaky_relu", {"negative_slope": steepness}))
            case "ELU" | "Elu" | "Celu":
                return Elementwise(Activation(kind, {"alpha": config.get("alpha", 1.0)}))
            case "Gelu":
                return Elementwise(Activation("gelu_tanh" if config.get("approximate", True) else "gelu"))
            case "PReLU" if slope is not None:
                return Elementwise(Activation("prelu", {"slope": slope}))
    except InputError:
        return Elementwise(Activation(f"custom_{name}"))  # parameters out of a dump's range
    if kind == "PReLU":
        return Elementwise(Activation(UNKNOWN_SLOPE))
    return Elementwise(Activation(name)) if name in ELEMENTWISE else Other(name)


def _relu(config: Mapping[str, Any]) -> Activation:
    """Return what the layer `ReLU` is with its options."""
    ceiling, slope, threshold = (config.get(key) for key in ("max_value", "negative_slope", "threshold"))
    slope, threshold = slope or 0, threshold or 0
    if ceiling is None and threshold == 0:
        return Activation("leaky_relu", {"negative_slope": slope}) if slope else Activation("relu")
    if slope == threshold == 0:
        return Activation("relu6") if ceiling == 6 else Activation("hardtanh", {"low": 0, "high": ceiling})
    return Activation(f"relu(max_value={ceiling}, negative_slope={slope}, threshold={threshold})")


def slope_of(alpha: Any) -> Any:
    """Return the slopes of a PReLU as a dump has them, () or (m,); None if they differ between positions.

    Parameters
    ----------
    alpha : array
        As Keras has it: (m,), (1,), or with an axis for every axis of the output but that of the batch.
    """
    shape = tuple(alpha.shape)
    return alpha.reshape(-1) if all(size == 1 for size in shape[:-1]) else None
