"""Loss functions of PyTorch: what a dump calls them, and how they add up a batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ._torch_functions import FunctionCall

NAMES = {
    "cross_entropy": "cross_entropy",
    "nll_loss": "nll",
    "mse_loss": "mse",
    "l1_loss": "l1",
    "smooth_l1_loss": "smooth_l1",
    "huber_loss": "huber",
    "binary_cross_entropy": "bce",
    "binary_cross_entropy_with_logits": "bce_with_logits",
    "kl_div": "kl_div",
    "poisson_nll_loss": "poisson_nll",
    "gaussian_nll_loss": "gaussian_nll",
    "hinge_embedding_loss": "hinge_embedding",
    "multi_margin_loss": "multi_margin",
    "multilabel_margin_loss": "multilabel_margin",
    "multilabel_soft_margin_loss": "multilabel_soft_margin",
    "soft_margin_loss": "soft_margin",
    "cosine_embedding_loss": "cosine_embedding",
    "margin_ranking_loss": "margin_ranking",
    "triplet_margin_loss": "triplet_margin",
    "ctc_loss": "ctc",
}
"""Names in a dump by those of PyTorch."""

REDUCTIONS = ("mean", "sum")


@dataclass
class Loss:
    """One call of a loss function."""

    name: str
    reduction: str | None
    """"mean" or "sum"; None where neither."""
    reached: bool = False
    """Whether a gradient came back through it."""


def loss_of(call: FunctionCall, *, of_log_softmax: bool) -> Loss | None:
    """Return the loss that a call computes, None if it is no loss function.

    Parameters
    ----------
    call : FunctionCall
        What was called.
    of_log_softmax : bool
        Whether the predictions came out of a log-softmax: then `nll_loss` makes a cross-entropy of it.
    """
    name = NAMES.get(call.name)
    if name is None:
        return None
    if name == "nll" and of_log_softmax:
        name = "cross_entropy"
    target = call.argument(1, "target")
    if name == "cross_entropy" and isinstance(target, torch.Tensor) and target.is_floating_point():
        name = f"soft_{name}"
    if call.kwargs.get("label_smoothing"):
        name = f"smoothed_{name}"
    if call.kwargs.get("weight") is not None or call.kwargs.get("pos_weight") is not None:
        name = f"weighted_{name}"
    legacy = call.kwargs.get("size_average") is not None or call.kwargs.get("reduce") is not None
    reduction = call.kwargs.get("reduction", "mean")
    return Loss(name, reduction if reduction in REDUCTIONS and not legacy else None)
