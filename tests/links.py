"""Whether a dump that says which layer feeds which says the truth, recomputed from nothing but the dump."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from spear_io import open_dump

SLACK = 64
"""Roundings of float32, of the largest number, between a recorded input and the one recomputed in float64."""


def holding_links(path: Path) -> dict[str, str]:
    """Return which layer follows which in the first record, each found to hold for its true inputs.

    Where the activation can be computed, the true inputs of the later layer are those of the earlier one, multiplied
    by its weight, with its bias added and its activation applied, to rounding.
    """
    with open_dump(path) as dump:
        (record,) = dump.records
        layers = {layer.name: layer for layer in record.layers}
        links = {}
        for name, layer in layers.items():
            if layer.follows is None:
                continue
            before = layers[layer.follows]
            assert layer.between is None, f"{name} follows, and something stands between"
            links[name] = before.name
            if not before.activation.known:
                continue
            assert before.truth is not None
            assert layer.truth is not None
            inputs, weight = before.truth[:].astype(np.float64), before.arrays["weight"][:].astype(np.float64)
            bias = before.arrays["bias"][:] if "bias" in before.arrays else 0
            wanted = before.activation.value_and_slope(inputs @ weight.T + bias)[0]
            found = layer.truth[:]
            allowed = SLACK * np.finfo(np.float32).eps * max(1, np.abs(wanted).max(initial=0))
            np.testing.assert_allclose(
                found, wanted, rtol=0, atol=allowed, err_msg=f"{name} follows {before.name}"
            )
    return links


def said(path: Path) -> dict[str, tuple[str, str | None, str | None]]:
    """Return activation, `follows` and `between` of every layer of the first record."""
    with open_dump(path) as dump:
        return {
            layer.name: (str(layer.activation), layer.follows, layer.between)
            for layer in dump.records[0].layers
        }
