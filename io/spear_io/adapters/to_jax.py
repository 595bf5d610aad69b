"""From JAX to a gradient dump: Flax (linen and nnx), Haiku, Equinox, or any tree of parameters.

::

    from spear_io.adapters.to_jax import from_gradients

    gradients = jax.grad(loss)(params, images, labels)
    from_gradients(params, gradients).write("dump.h5", labels=labels, input_shape=(28, 28, 1))

A tree says which parameters belong together, not how they are used: `forward` does, the function that was
differentiated. It is traced once more, and its layers come in the order in which it uses them, with their activations
and the layers that they take their inputs from::

    from_gradients(params, gradients, forward=lambda params: loss(params, images, labels))

Without it, layers are put in the order of the numbers in their names, or so that their sizes fit together; a ReLU is
taken to follow all of them but the last, and none is said to follow another. `order`, `activations` and `follows` tell
it where that is wrong.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

try:
    import jax
except ImportError as error:
    msg = "JAX is not installed: pip install 'spear-np[jax]'"
    raise ImportError(msg) from error

from spear_io.files.dump import RecordInfo
from spear_io.files.dump_writer import Follows
from spear_np import Sliceable

from . import _round
from ._arrays import See, differences, update_of
from ._jax_graph import wiring_of
from ._layers import Activations, Parameters
from ._round import RecordingError, Update
from .wiring import Wiring

__all__ = ["RecordingError", "RoundWriter", "Update", "from_gradients", "from_weights"]

PRODUCER = f"jax {jax.__version__}"

Tree = Any
Forward = Callable[[Tree], Any]


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
    forward: Forward | None = None,
    activations: Activations | None = None,
    follows: Follows = None,
    transposed: bool | None = None,
    inputs: Mapping[str, Sliceable] | None = None,
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
    forward : callable, optional
        The network or its loss as a function of `params` alone, with dropout and the like as in the step. It is
        traced, not run. Behind the last layer only an activation is told from the loss.
    activations : mapping, optional
        What is applied to the output of layers, by name, where it is known better: ``{"Dense_1": "gelu"}``,
        ``{"Dense_1": spear_np.Activation("leaky_relu", {"negative_slope": 0.2})}``.
    follows : bool or mapping, optional
        Which layers take, exactly, the activated output of which, with nothing in between. By default what `forward`
        shows; without it, nothing. True: each that of the one before it, but where something is seen in between. A
        mapping, e.g. ``{"Dense_1": "Dense_0"}``, decides for the layers that it names. False: none.
    transposed : bool, optional
        Whether matrices are (input features, output units), as in Flax and Haiku. By default the length of the bias
        decides, or else the name.
    inputs : mapping of (b, n) arrays, optional
        True inputs by layer, so that `spear-np evaluate` can tell how good an inversion is.

    Raises
    ------
    ValueError
        If `order`, `activations`, `follows` or `inputs` names something that is no layer, or nothing tells how a matrix lies.
    RecordingError
        If the two trees do not fit together, or `forward` cannot be traced.
    """
    return update_of(
        _named(params),
        _named(grads),
        producer=PRODUCER,
        order=order,
        activations=activations,
        follows=follows,
        see=None if forward is None else _seen_in(forward, params),
        transposed=transposed,
        inputs=inputs,
    )


def from_weights(
    before: Tree,
    after: Tree,
    *,
    learning_rate: float | None = None,
    weight_decay: float | None = None,
    local_steps: int | None = None,
    order: Sequence[str] | None = None,
    forward: Forward | None = None,
    activations: Activations | None = None,
    follows: Follows = None,
    transposed: bool | None = None,
    inputs: Mapping[str, Sliceable] | None = None,
) -> Update:
    """Return an update of the parameters before and after a client trained.

    Parameters
    ----------
    before, after : pytree of arrays
        Of the same structure.
    learning_rate : float, optional
        Of plain SGD. Without it everything but the scale of the gradient is known.
    weight_decay : float, optional
        λ of SGD, if it is known: of each step, if there are several. It counts only with `learning_rate`; by default the
        update itself tells it.
    local_steps : int, optional
        How many steps lie between the two.
    order, forward, activations, follows, transposed, inputs
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
        follows=follows,
        see=None if forward is None else _seen_in(forward, before),
        transposed=transposed,
        inputs=inputs,
        info=RecordInfo(
            update="weight_delta",
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            local_steps=local_steps,
        ),
    )


def _seen_in(forward: Forward, params: Tree) -> See:
    """Return what tells how `forward` wires the layers of its parameters."""
    nnx = sys.modules.get("flax.nnx")
    if nnx is not None and isinstance(
        params, nnx.Module
    ):  # which counts its random numbers, inside the trace
        definition, state = nnx.split(params)
        return _seen_in(lambda state: forward(nnx.merge(definition, state)), state)

    def see(layers: Sequence[Parameters], written: Sequence[str]) -> dict[str, Wiring]:
        return wiring_of(forward, params, _names(params), layers, written)

    return see


def _named(tree: Tree) -> dict[str, jax.Array]:
    """Return the arrays of a tree by their paths, without what the frameworks wrap around them."""
    leaves = jax.tree_util.tree_leaves(tree)
    return {name: leaf for name, leaf in zip(_names(tree), leaves, strict=True) if hasattr(leaf, "shape")}


def _names(tree: Tree) -> list[str]:
    """Return the paths of the leaves of a tree."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    paths = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves]
    # nnx keeps the array of a parameter in its `value`.
    return [path.removeprefix("params.").removesuffix(".value") for path in paths]
