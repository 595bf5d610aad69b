"""What JAX calls its primitive operations, by what they do to numbers, and what the field calls them."""

from __future__ import annotations

import re
from typing import Any

ELEMENTWISE = frozenset(
    """
    abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp cos cosh digamma div eq erf erf_inv
    erfc exp exp2 expm1 floor ge gt integer_pow is_finite le lgamma log log1p logistic lt max min mul ne neg not or
    pow rem round rsqrt select_n sign sin sinh sqrt square sub tan tanh xor
    """.split()  # noqa: SIM905
)
"""Functions of every number."""

UNCHANGED = frozenset(
    """
    copy copy_p device_put layout_constraint name optimization_barrier reduce_precision sharding_constraint
    stop_gradient
    """.split()  # noqa: SIM905
)
"""What hands on what it is given."""

RESHAPES = frozenset({"reshape", "squeeze", "expand_dims"})
CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
    "checkpoint": "jaxpr",
    "remat2": "jaxpr",
}
"""Operations that are functions of their own, and the parameter that holds them."""
INHERITS = frozenset({"custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"})
"""Those without a name, whose inside says nothing of the module that calls them."""

SEVERAL = frozenset({"dot_general", "gather", "scan", "while", "cond"})
"""What else a matrix of parameters may be used for."""

NAMES = {
    "reduce_window_max": "max_pool",
    "reduce_window_sum": "avg_pool",
    "dot_general": "matmul",
    "gather": "embedding",
}
"""What operations are called in the field."""

MODULE = re.compile(r"(?:.*\.)?(\w*(?:Norm|Normalization|Dropout|Attention|Cell|Embed|Embedding))\.__call__")
"""Modules that are named as such instead of by what they consist of."""


def module_of(equation: Any, boundary: str | None) -> str | None:
    """Return the class of the module in which an operation is called, if it is one that is named as such.

    `boundary` is the name of the function that is being followed: traces are kept, and beyond it lies whoever called
    it first. An empty one is met at once.
    """
    trace = equation.source_info.traceback
    for frame in trace.frames if trace is not None and boundary != "" else ():
        if (found := MODULE.fullmatch(frame.function_name)) is not None:
            return found[1]
        if boundary is not None and frame.function_name.rpartition(".")[2] == boundary:
            return None
    return None
