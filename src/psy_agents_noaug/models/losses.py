"""Losses an example: `[B]`, never reduced, so that the trainer divides by the step's count."""

import torch
from torch import Tensor
from torch.nn import functional


def classification_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    class_weights: Tensor | None = None,
    focal_gamma: float = 0.0,
) -> Tensor:
    """Cross-entropy of each example `[B]` from logits `[B, C]` and labels `[B]`.

    `class_weights` `[C]` multiply an example's loss by its class's weight. `focal_gamma` > 0 gives the
    focal loss of Lin et al. (2017), (1 - p)^gamma * cross-entropy; 0 is plain cross-entropy.
    """
    loss = functional.cross_entropy(logits.float(), labels, reduction="none")
    if focal_gamma > 0.0:
        # Above 0, where a power below 1 has no slope.
        missed = (-torch.expm1(-loss)).clamp_min(torch.finfo(loss.dtype).tiny)
        loss = missed.pow(focal_gamma) * loss
    if class_weights is not None:
        loss = loss * class_weights[labels]
    return loss


def span_loss(logits: Tensor, gold: Tensor) -> Tensor:
    """Negative log likelihood of the gold borders of each window, `[W]`.

    `logits` are `[W, T, 2]` for starts and ends, -inf where no span may begin or end; `gold` bool of
    the same shape marks the gold ones, at least one a window. The likelihood is the summed probability
    of all gold starts, and of all gold ends (Clark & Gardner 2018, eq. 1); the two are averaged.
    """
    log_probabilities = logits.float().log_softmax(dim=1)
    likelihood = log_probabilities.masked_fill(~gold, float("-inf")).logsumexp(dim=1)
    return -likelihood.mean(dim=-1)
