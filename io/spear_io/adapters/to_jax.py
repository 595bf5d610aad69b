"""From JAX to a gradient dump: Flax (linen and nnx), Haiku, Equinox, or any tree of parameters.

::

    from spear_io.adapters.to_jax import from_gradients

    gradients = jax.grad(loss)(params, images, labels)
    from_gradients(params, gradients).write("dump.h5", labels=labels, input_shape=(28, 28, 1))

A tree says which parameters belong together, not how they are used. Layers are put in the order of the numbers in
their names, or so that their sizes fit together; a ReLU is taken to follow all of them but the last. `order` and
`activations` tell it where that is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

try:
    import jax
except ImportError as error:
    msg = "JAX is not installed: pip install 'spear-np[jax]'"
    raise ImportError(msg) from error

from spear_io.files.dump import RecordInfo

from . import _round
from ._arrays import differences, update_of
from ._round import RecordingError, Update

__all__ = ["RecordingError", "RoundWriter", "Update", "from_gradients", "from_weights"]

PRODUCER = f"jax {jax.__version__}"

Tree = Any


class RoundWriter(_round.RoundWriter):
    """Writes the updates of several clients into one dump; a model that they share is stored once.

    ::

        with RoundWriter("round-7.h5") as dump:
            for client in clients:
                dump.add(client.name, from_gradients(params, client.gradients))

    Parameters
    ----------
    path : path
        Where; the file takes its name when the block ends well.
    compression : str, optional
        h5py's name of a built-in filter, e.g. "gzip".
    """

    def __init__(self, path: str | Path, *, compression: str | None = None) -> None:
        super().__init__(path, producer=PRODUCER, compression=compression)


def from_gradients(
    params: Tree,
    grads: Tree,
    *,
    order: Sequence[str] | None = None,
    activations: Mapping[str, str] | None = None,
    transposed: bool | None = None,
    inputs: Mapping[str, Any] | None = None,
) -> Update:
    """Return an update of parameters and their gradients; nothing is copied before it is written.

    Parameters
    ----------
    params : pytree of arrays
        Where the gradients were taken: linen's parameters with or without "params" around them, an `nnx.State` or
        module, dicts, lists, … Layers are called by their paths, joined by dots: "Dense_0", "encoder.Dense_1".
    grads : pytree of arrays
        Of the same structure; what is missing is skipped.
    order : sequence of str, optional
        Names of the layers in forward order; others are left out.
    activations : mapping, optional
        What follows layers, by name, e.g. ``{"Dense_1": "gelu"}``.
    transposed : bool, optional
        Whether matrices are (input features, output units), as in Flax and Haiku. By default the length of the bias
        decides, or else the name.
    inputs : mapping of (b, n) arrays, optional
        True inputs by layer, so that `spear-np evaluate` can tell how good an inversion is.

    Raises
    ------
    ValueError
        If `order`, `activations` or `inputs` names something that is no layer, or nothing tells how a matrix lies.
    RecordingError
        If the two trees do not fit together.
    """
    return update_of(
        _named(params),
        _named(grads),
        producer=PRODUCER,
        order=order,
        activations=activations,
        transposed=transposed,
        inputs=inputs,
    )


def from_weights(
    before: Tree,
    after: Tree,
    *,
    learning_rate: float | None = None,
    local_steps: int | None = None,
    order: Sequence[str] | None = None,
    activations: Mapping[str, str] | None = None,
    transposed: bool | None = None,
    inputs: Mapping[str, Any] | None = None,
) -> Update:
    """Return an update of the parameters before and after a client trained.

    Parameters
    ----------
    before, after : pytree of arrays
        Of the same structure.
    learning_rate : float, optional
        Of plain SGD. Without it everything but the scale of the gradient is known.
    local_steps : int, optional
        How many steps lie between the two.
    order, activations, transposed, inputs
        As for `from_gradients`.

    Raises
    ------
    ValueError, RecordingError
        As for `from_gradients`.
    """
    parameters = _named(before)
    return update_of(
        parameters,
        differences(parameters, _named(after)),
        producer=PRODUCER,
        order=order,
        activations=activations,
        transposed=transposed,
        inputs=inputs,
        info=RecordInfo(update="weight_delta", learning_rate=learning_rate, local_steps=local_steps),
    )


def _named(tree: Tree) -> dict[str, jax.Array]:
    """Return the arrays of a tree by their paths, without what the frameworks wrap around them."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    named = {}
    for path, leaf in leaves:
        name = jax.tree_util.keystr(path, simple=True, separator=".").removeprefix("params.")
        named[name.removesuffix(".value")] = leaf  # nnx keeps the array of a parameter in its `value`
    return {name: leaf for name, leaf in named.items() if hasattr(leaf, "shape")}
