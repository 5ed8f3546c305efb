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
