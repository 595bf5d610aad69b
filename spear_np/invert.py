"""The story: from gradients to inputs with a certificate.

The way of one gradient, as in the paper:

1. Its *factors*: rank, noise and row space of weight_grad, and what W makes of it (`factors.factorize`).
2. *Rounds* (`layer.problem.LayerProblem.advance`): a search proposes directions (`search`), all are polished and pooled
   (`directions`), and once there are b of them, the best choice by λ is scaled and certified (`layer.choose`, `checks`).
3. *Until* it is certified, nothing better can be expected, or the budget is spent (`loop.run`), for each plausible rank.
4. *Inputs* with bounds: the whole batch, or those that are vouched for (`inputs`, `layer.assemble`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from .answer.result import Inversion, Progress, Status, with_decay_said
from .arrays import Sliceable
from .backend.devices import Device, device_for
from .errors import InputError
from .factors.activation import Activation
from .factors.behind import Behind
from .factors.gradients import LayerChain, LayerGradients, WeightDecay
from .layer.assemble import inversion
from .layer.problem import layer_readings
from .loop.budget import Budget
from .loop.options import DataRange, Options, SearchFactory
from .loop.run import Run, invert_problem, invert_readings, worth
from .network.confirm import confirmed
from .network.problem import ChainProblem
from .network.read import Linked, read_chain
from .placement import algebra_device
from .search.together import Seat

CHAIN_SHARE = 0.5
"""Share of the time that the chain has before the zeros of its first layer are tried alone.

Heuristic: what a chain finds it finds in the first seconds.
"""


def invert(
    weight_grad: Sliceable,
    bias_grad: Sliceable | None = None,
    *,
    weight: Sliceable | None = None,
    bias: Sliceable | None = None,
    activation: str | Activation = "relu",
    precision: str | None = None,
    weight_decay: float = 0.0,
    batch_size: int | None = None,
    data_range: DataRange | None = None,
    method: str | SearchFactory = "auto",
    seed: int = 0,
    device: str | None = None,
    time_limit: float = 600.0,
    max_proposals: int | None = None,
    callback: Callable[[Progress], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Inversion:
    """Recover the batch behind the gradient of a fully connected ReLU layer.

    Parameters
    ----------
    weight_grad : (m, n) array or sliceable, float16, float32 or float64
        ∂L/∂W, summed or averaged over the batch; row j belongs to output unit j. An h5py dataset is read by blocks.
        PyTorch and JAX arrays, here and below, are computed with as NumPy arrays on the host, and bfloat16 is noted.
    bias_grad : (m,) array, optional
        ∂L/∂b. Without it each input is found up to its scale.
    weight : (m, n) array or sliceable, optional
        W. Without it activation signs cannot be checked and the status is `approximate` at best.
    bias : (m,) array, optional
        b; zero if missing.
    activation : str or Activation
        What follows the layer: "relu" or "relu6"; others leave no zeros to rest on.
    precision : {"float64", "float32", "float16", "bfloat16"}, optional
        What the numbers were rounded to, if narrower than their dtype.
    weight_decay : float
        λ, if it is known: `weight_grad` is ∂L/∂W + λ W, and `bias_grad` holds λ times the bias or nothing of it. What the
        update shows beyond it is fitted and taken out too, and named in the answer.
    batch_size : int, optional
        Overrides the rank read off the singular values.
    data_range : (low, high), optional
        Range of the entries of the inputs as the layer sees them, as (0, 1) for pixels. Used only where the scale of the
        inputs is otherwise unknown, because `bias_grad` is missing: each input is then handed out at the largest scale
        that the range allows, see `spear_np.inputs.scale`. Where `bias_grad` gives the scale it changes nothing.
    method : {"auto", "descent", "sampling"} or callable
        Where candidate directions come from; "sampling" is the published search. "chain" needs the layers that follow:
        see `invert_chain`. A callable receives the
        `Factors` of the layer and its `SignModel` (None without W) and returns a `spear_np.search.Search` of your own.
    seed : int
        Zero or more. Same seed, same backend, same answer.
    device : {"cpu", "gpu", "gpu:N"}, optional
        Where to compute; by default where the arrays are.
    time_limit : float
        Seconds after which the search ends with what it has; infinite for no limit.
    max_proposals : int, optional
        Number of candidates after which the search ends; for each reading of the singular values, if there are several.
    callback : callable, optional
        Receives a `Progress` now and then.
    stop : callable, optional
        Asked between rounds; True ends the search with what it has.

    Returns
    -------
    Inversion
        Always, whatever was found: see `Inversion.status`.

    Raises
    ------
    InputError
        If the arrays do not fit together, hold NaN or infinity, the activation leaves no zeros, or an option is out of
        range.
    DeviceError
        If the device asked for does not answer.

    References
    ----------
    .. [1] Dimitrov, Baader, Müller, Vechev, "SPEAR: Exact Gradient Inversion of Batches in Federated Learning",
       NeurIPS 2024, arXiv:2403.03945.
    """
    decay = WeightDecay(weight_decay, weight_decay)
    gradients = LayerGradients(weight_grad, bias_grad, weight, bias, activation, precision, decay)
    return invert_layer(
        gradients,
        batch_size=batch_size,
        data_range=data_range,
        method=method,
        seed=seed,
        device=device,
        time_limit=time_limit,
        max_proposals=max_proposals,
        callback=callback,
        stop=stop,
    )


def invert_layer(
    gradients: LayerGradients,
    *,
    batch_size: int | None = None,
    data_range: DataRange | None = None,
    method: str | SearchFactory = "auto",
    seed: int = 0,
    device: str | None = None,
    time_limit: float = 600.0,
    max_proposals: int | None = None,
    callback: Callable[[Progress], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Inversion:
    """Recover the batch behind `gradients`; options, answer and errors as in `invert`."""
    options = Options(batch_size, data_range, method, seed, time_limit, max_proposals)
    check_method(gradients, options)
    where = device_for(device, gradients.weight_grad)
    budget = Budget(options.time_limit, options.max_proposals, stop or (lambda: False))
    with where.activate():
        return layer_answer(gradients, where, Run(options, budget, callback or (lambda _: None)))


def invert_chain(
    layers: Sequence[LayerGradients],
    *,
    names: Sequence[str] = (),
    loss: str | None = None,
    batch_size: int | None = None,
    data_range: DataRange | None = None,
    method: str | SearchFactory = "auto",
    seed: int = 0,
    device: str | None = None,
    time_limit: float = 600.0,
    max_proposals: int | None = None,
    callback: Callable[[Progress], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Inversion:
    """Recover the batch behind the first of `layers`, with the help of those that follow it.

    The gradient of the next layer decides the inputs whatever the activation is, and beyond the reach of zeros; where the
    chain ends at an output layer under cross-entropy, the label of every input follows.

    Parameters
    ----------
    layers : sequence of LayerGradients
        In forward order: the activated output of each is the input of the next, with nothing in between. They need
        `weight` and `bias_grad`; what comes after a layer without them is left out.
    names : sequence of str, optional
        What the layers are called, for `Inversion.chain`.
    loss : str, optional
        "cross_entropy" or another; labels are told for cross-entropy, or where the loss is not known and the gradient at
        the output looks like it.
    method : {"auto", "chain", "descent", "sampling"} or callable
        "chain" uses the chain alone; "auto" the chain, and then, if that leads to no whole batch, the zeros of the first
        layer alone where it is a ReLU; all others the first layer alone.

    Notes
    -----
    Other options, answer and errors are those of `invert`.
    """
    options = Options(batch_size, data_range, method, seed, time_limit, max_proposals)
    chain = LayerChain(layers, names, loss)
    check_method(chain, options)
    where = device_for(device, chain.first.weight_grad)
    budget = Budget(options.time_limit, options.max_proposals, stop or (lambda: False))
    with where.activate():
        return chain_answer(chain, where, Run(options, budget, callback or (lambda _: None)))


def check_method(given: LayerGradients | LayerChain, options: Options) -> None:
    """Refuse what the method that was chosen cannot invert.

    Raises
    ------
    InputError
        If it needs layers that follow and there are none, or zeros that the activation does not leave.
    """
    if isinstance(given, LayerGradients):
        if options.method == "chain":
            msg = "method 'chain' needs the layers that follow this one: hand them to `invert_chain`"
            raise InputError(msg)
        given.require_zeros()
    elif options.method not in ("auto", "chain"):
        given.first.require_zeros()


def layer_answer(gradients: LayerGradients, device: Device, run: Run, seat: Seat | None = None) -> Inversion:
    """Return the answer of one layer, on `device`, which is current; with a `seat` its search goes with those of others."""
    return with_decay_said(invert_readings(layer_readings(gradients, device, run.options, seat=seat), run))


def chain_answer(given: LayerChain, device: Device, run: Run, seat: Seat | None = None) -> Inversion:
    """Return the answer of a chain, on `device`, which is current; with a `seat` its searches go with those of others.

    Of a chain of small layers on a card only the steps of the searches are there.
    """
    options, first = run.options, given.first
    alone = first.sigma.ceiling is not None
    behind = Behind(given.layers[1], len(given.layers) == 2, given.loss) if len(given.layers) > 1 else None
    run.report("factorize")
    algebra = algebra_device(device, given.units)
    linked = read_chain(given.layers, algebra, options.batch_size, given.names)
    best: Inversion | None = None
    if options.method in ("auto", "chain"):
        if isinstance(linked, Linked):
            share = CHAIN_SHARE if alone and options.method == "auto" else 1.0
            limited = replace(run, budget=replace(run.budget, deadline=share * options.time_limit))
            where = None if algebra is device else device
            problem = ChainProblem(linked.chain, tuple(given.names), given.loss, linked.cut, where, seat)
            with problem.threads():
                best = invert_problem(problem, limited)
            whole = best.status in (Status.EXACT, Status.APPROXIMATE)
            if whole or share == 1.0 or run.budget.exhausted(best.proposals):
                return with_decay_said(best)
        elif options.method == "chain" or not alone:
            reason = f"these layers are no chain that can be inverted: {linked.reason}"
            failed = inversion(first, device, Status.FAILED, reason, 0, options.data_range)
            return with_decay_said(run.signed(failed))
    other = invert_readings(layer_readings(first, device, options, behind, seat), run)
    other = confirmed(other, linked)
    return with_decay_said(other if best is None else max(best, other, key=worth))
