"""Losses per example, `[B]`. They are not reduced: the trainer divides by the examples of the step."""

import torch
from torch import Tensor
from torch.nn import functional

EVIDENCE_WEIGHT = 3.0  # of a token of evidence against another, in `attention_loss`


def classification_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    class_weights: Tensor | None = None,
    focal_gamma: float = 0.0,
) -> Tensor:
    """Return the cross-entropy or focal loss of each example, `[B]`.

    Args:
        logits: `[B, C]`.
        labels: int64 `[B]`.
        class_weights: `[C]`; the loss of an example is multiplied by the weight of its class.
        focal_gamma: of the focal loss of Lin et al. (2017), (1 - p)^gamma * cross-entropy; 0 is plain
            cross-entropy.
    """
    loss = functional.cross_entropy(logits.float(), labels, reduction="none")
    if focal_gamma > 0.0:
        # Above 0, because a power below 1 has an infinite slope at 0.
        missed = (-torch.expm1(-loss)).clamp_min(torch.finfo(loss.dtype).tiny)
        loss = missed.pow(focal_gamma) * loss
    if class_weights is not None:
        loss = loss * class_weights[labels]
    return loss


def span_loss(logits: Tensor, gold: Tensor) -> Tensor:
    """Return the negative log likelihood of the gold borders of each window, `[W]`.

    The likelihood of the starts is the summed probability of all gold starts (Clark & Gardner 2018,
    eq. 1), that of the ends likewise. The two losses are averaged.

    Args:
        logits: `[W, T, 2]` for starts and ends; -inf where no span may start or end.
        gold: bool `[W, T, 2]`, the gold starts and ends; at least one of each per window.
    """
    log_probabilities = logits.float().log_softmax(dim=1)
    likelihood = log_probabilities.masked_fill(~gold, float("-inf")).logsumexp(dim=1)
    return -likelihood.mean(dim=-1)


def attention_loss(scores: Tensor, evidence: Tensor, known: Tensor) -> Tensor:
    """Return the mean binary cross-entropy over the known tokens of each window, `[V]`.

    Tokens of evidence count `EVIDENCE_WEIGHT` times.

    Args:
        scores: `[V, T]`, log odds that a token is evidence; any value where it is not known.
        evidence: bool `[V, T]`.
        known: bool `[V, T]`.
    """
    losses = functional.binary_cross_entropy_with_logits(
        scores.float().masked_fill(~known, 0.0),
        evidence.float(),
        reduction="none",
    )
    weights = known * (1.0 + (EVIDENCE_WEIGHT - 1.0) * evidence)
    total = (losses * weights).sum(dim=-1)
    return total / known.sum(dim=-1).clamp_min(1)
