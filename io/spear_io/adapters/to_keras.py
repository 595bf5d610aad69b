"""From Keras 3, on JAX or PyTorch, to a gradient dump.

::

    from spear_io.adapters.to_keras import from_gradients

    gradients = jax.grad(loss)(model.trainable_variables, …)      # of stateless_call, on JAX
    gradients = [v.value.grad for v in model.trainable_variables]  # after loss.backward(), on PyTorch
    from_gradients(model, gradients).write("dump.h5", labels=labels, input_shape=(28, 28, 1))

Every `Dense` layer is written, with the activation that it has or that follows it, and the layer whose activated
output it takes. What happens inside `call` of a model of your own cannot be seen: `activations` and `follows` tell it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

try:
    import keras
except ImportError as error:
    msg = "Keras is not installed: pip install 'spear-np[keras]'"
    raise ImportError(msg) from error

import numpy as np

from spear_io.files.dump import RecordInfo
from spear_io.files.dump_writer import NO_INFO, Follows, LayerArrays
from spear_np import Sliceable
from spear_np.factors.activation import as_activation

from . import _round
from ._arrays import Difference, Transposed, check_fit
from ._keras_layers import dense_layers, wiring_of
from ._layers import Activations, check_names, follow
from ._round import RecordingError, Update

__all__ = ["RecordingError", "RoundWriter", "Update", "from_gradients", "from_weights"]

PRODUCER = f"keras {keras.__version__} ({keras.backend.backend()})"


class RoundWriter(_round.RoundWriter):
    """Writes the updates of several clients into one dump; a model that they share is stored once.

    ::

        with RoundWriter("round-7.h5") as dump:
            for client in clients:
                dump.add(client.name, from_gradients(model, client.gradients))

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
    model: keras.Model,
    gradients: Sequence[Sliceable],
    *,
    activations: Activations | None = None,
    follows: Follows = None,
    inputs: Mapping[str, Sliceable] | None = None,
) -> Update:
    """Return an update of a model and its gradients; nothing is copied, so write it before the training goes on.

    Parameters
    ----------
    model : keras.Model
        With the weights at which the gradients were taken. Layers are called by their names, inner models in front.
    gradients : sequence of arrays or tensors
        In the order of `model.trainable_variables`.
    activations : mapping, optional
        What is applied to the output of layers, by name, where it is known better: ``{"dense": "relu"}``,
        ``{"dense": spear_np.Activation("leaky_relu", {"negative_slope": 0.2})}``.
    follows : bool or mapping, optional
        Which layers take the activated output of which. By default what the model's own graph tells: nothing across a
        dropout whose rate is not zero, as if the gradients were taken in training mode. True: each that of the one
        before it, but where something is seen in between. A mapping, e.g. ``{"head": "dense"}`` or
        ``{"head": None}``, decides for the layers that it names. False: none.
    inputs : mapping of (b, n) arrays, optional
        True inputs by layer, so that `spear-np evaluate` can tell how good an inversion is.

    Raises
    ------
    ValueError
        If `activations`, `follows` or `inputs` names something that is no layer.
    RecordingError
        If the gradients are not those of the trainable variables.
    """
    variables = model.trainable_variables
    _check_number(gradients, variables, "trainable variables")
    given = {id(variable): gradient for variable, gradient in zip(variables, gradients, strict=True)}
    parameters = {id(variable): variable.value for variable in variables}
    _check_shapes(variables, given)
    return _update(model, given, parameters, NO_INFO, activations, follows, inputs)


def from_weights(
    model: keras.Model,
    before: Sequence[Sliceable],
    after: Sequence[Sliceable],
    *,
    learning_rate: float | None = None,
    weight_decay: float | None = None,
    local_steps: int | None = None,
    activations: Activations | None = None,
    follows: Follows = None,
    inputs: Mapping[str, Sliceable] | None = None,
) -> Update:
    """Return an update of the weights before and after a client trained.

    Parameters
    ----------
    model : keras.Model
        Tells which weights belong together.
    before, after : sequence of arrays
        As `model.get_weights()` gives them.
    learning_rate : float, optional
        Of plain SGD. Without it everything but the scale of the gradient is known.
    weight_decay : float, optional
        λ of SGD, if it is known: of each step, if there are several. It counts only with `learning_rate`; by default the
        update itself tells it.
    local_steps : int, optional
        How many steps lie between the two.
    activations, follows, inputs
        As for `from_gradients`.

    Raises
    ------
    ValueError, RecordingError
        As for `from_gradients`.
    """
    variables = model.weights
    states = []
    for weights in (before, after):
        _check_number(weights, variables, "weights")
        # On PyTorch `get_weights` widens bfloat16, and the way back is exact; Keras has made NumPy know that type.
        states.append(
            {
                id(v): np.asarray(w).astype(np.dtype(v.dtype), copy=False)
                for v, w in zip(variables, weights, strict=True)
            }
        )
        _check_shapes(variables, states[-1])
    old, new = states
    trained = {id(variable) for variable in model.trainable_variables}
    given = {key: Difference(array, old[key]) for key, array in new.items() if key in trained}
    info = RecordInfo(
        update="weight_delta",
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        local_steps=local_steps,
    )
    return _update(model, given, old, info, activations, follows, inputs)


def _update(
    model: keras.Model,
    given: Mapping[int, Sliceable],
    parameters: Mapping[int, Sliceable],
    info: RecordInfo,
    activations: Activations | None,
    follows: Follows,
    inputs: Mapping[str, Sliceable] | None,
) -> Update:
    """Return the update of all `Dense` layers, whose arrays come by the id of their variables."""
    activations, inputs = activations or {}, inputs or {}
    layers = dense_layers(model)
    check_names(activations, layers, "activations")
    check_names(inputs, layers, "inputs")
    update = Update(info=info, producer=PRODUCER, to_numpy=keras.ops.convert_to_numpy)
    written = []
    for name, layer in layers.items():
        if id(layer.kernel) in given:
            written.append(name)
        else:
            update.skipped[name] = "its kernel is frozen, or computed from other variables"
    wiring = wiring_of(model, written)
    for name in written:
        kernel, bias = id(layers[name].kernel), id(layers[name].bias)
        update.layers[name] = LayerArrays(
            weight_grad=_rows(given[kernel], turned=True),
            bias_grad=_rows(given.get(bias)),
            weight=_rows(parameters[kernel], turned=True),
            bias=_rows(parameters.get(bias)),
            inputs=inputs.get(name),
            activation=as_activation(activations.get(name, wiring[name].activation)),
            follows=wiring[name].follows,
            between=wiring[name].between,
        )
    update.layers = follow(update.layers, follows)
    return update


def _rows(array: Any, *, turned: bool = False) -> Sliceable | None:
    """Return an array as a dump takes it, a kernel (n, m) turned to (m, n)."""
    if keras.backend.backend() == "torch" and keras.ops.is_tensor(array):
        from ._torch_tensors import rows_of

        return rows_of(array.T if turned else array)
    return Transposed(array) if turned and array is not None else array


def _check_number(arrays: Sequence[Sliceable], variables: Sequence[Any], what: str) -> None:
    if len(arrays) != len(variables):
        msg = f"{len(arrays)} arrays for the {len(variables)} {what} of the model: hand over one for each, in order"
        raise RecordingError(msg)


def _check_shapes(variables: Sequence[Any], given: Mapping[int, Sliceable]) -> None:
    named = {variable.path: variable for variable in variables}
    check_fit(named, {variable.path: given[id(variable)] for variable in variables})
