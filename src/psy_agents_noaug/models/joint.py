"""The joint model: label and evidence of a pair, from two encoders or from one.

Shapes: B pairs; V windows for the label and W for the evidence, of T tokens; H an encoder's width.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from psy_agents_noaug.models.encoder import encode_rows
from psy_agents_noaug.models.evidence import NULL_POSITION, EvidenceModel
from psy_agents_noaug.models.heads import ClassificationHead, Pooling

Fusion = Literal["none", "concat", "evidence_attention"]
WindowPooling = Literal["max", "logsumexp"]


class JointModel(nn.Module):
    """Judges a pair and finds its evidence.

    Args:
        evidence: encoder and head of the spans.
        criteria_encoder: the label's own encoder; None shares the evidence's, in one forward pass.
        hidden_size, evidence_hidden_size: widths of the label's and of the evidence's encoder.
        fusion: what the label's head sees of the evidence encoder besides its own pooled windows:
            `none`; `concat`: its pooled vector; `evidence_attention`: its tokens weighted by the
            probability of lying in a span.
        window_pooling: how the windows' log odds of "met" become the pair's, see `pool_windows`.
        learned_weights: learn the losses' weights (`log_variances`).
        pooling, head_layers, head_width, head_dropout: of the label, see `CriteriaModel`.
    """

    def __init__(
        self,
        evidence: EvidenceModel,
        criteria_encoder: nn.Module | None,
        *,
        hidden_size: int,
        evidence_hidden_size: int,
        fusion: Fusion,
        window_pooling: WindowPooling,
        learned_weights: bool,
        pooling: str,
        head_layers: int,
        head_width: int | None,
        head_dropout: float,
    ) -> None:
        super().__init__()
        self.evidence = evidence
        self.criteria_encoder = criteria_encoder
        self.fusion = fusion
        self.window_pooling = window_pooling
        self.pooling = Pooling(pooling, hidden_size)
        self.evidence_pooling = (
            Pooling(pooling, evidence_hidden_size) if fusion == "concat" else None
        )
        self.head = ClassificationHead(
            hidden_size + (0 if fusion == "none" else evidence_hidden_size),
            classes=2,
            layers=head_layers,
            width=head_width,
            dropout=head_dropout,
        )
        self.log_variances = nn.Parameter(torch.zeros(2)) if learned_weights else None

    def forward(
        self,
        criteria: dict[str, Tensor],
        evidence: dict[str, Tensor],
        criteria_pairs: Tensor,
        evidence_pairs: Tensor,
        context_mask: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return label log odds `[B]`, span logits `[W, T, 2]`, and the losses' weights' logarithms.

        `criteria` and `evidence` are the encoders' inputs, `[V, T]` and `[W, T]` (the same for a shared
        encoder, which reads `evidence` alone); the pairs `[V]` and `[W]` number each window's pair.
        """
        n_pairs = int(evidence_pairs[-1]) + 1
        tokens = encode_rows(self.evidence.encoder, evidence, max_tokens=self.evidence.max_tokens)
        spans = self.evidence.score(tokens, context_mask)
        if self.criteria_encoder is None:
            own, mask = tokens, evidence["attention_mask"]
        else:
            own = encode_rows(
                self.criteria_encoder,
                criteria,
                max_tokens=self.evidence.max_tokens,
                first_only=self.pooling.kind == "cls",
            )
            mask = criteria["attention_mask"]
        pooled = self.pooling(own, mask)
        if self.fusion != "none":
            view = self._view(tokens, spans, evidence["attention_mask"], evidence_pairs, n_pairs)
            pooled = torch.cat([pooled, view[criteria_pairs]], dim=-1)
        logits = self.head(pooled).float()
        log_odds = pool_windows(
            logits[:, 1] - logits[:, 0], criteria_pairs, n_pairs, kind=self.window_pooling
        )
        log_variances = spans.new_zeros(2) if self.log_variances is None else self.log_variances
        return log_odds, spans, log_variances

    def _view(
        self, tokens: Tensor, spans: Tensor, mask: Tensor, pairs: Tensor, n_pairs: int
    ) -> Tensor:
        """What the evidence's encoder has to say of each pair, `[B, H]`."""
        if self.evidence_pooling is not None:
            return _mean_by_pair(self.evidence_pooling(tokens, mask), pairs, n_pairs)
        weights = span_attention(spans).to(tokens.dtype)
        return _mean_by_pair((tokens * weights.unsqueeze(-1)).sum(dim=1), pairs, n_pairs)


def span_attention(logits: Tensor) -> Tensor:
    """From span logits `[W, T, 2]` to weights over the tokens, `[W, T]`, that sum to 1.

    A token of the post weighs the probability that the span begins at or before it and ends at or after
    it, as if start and end were independent. NULL_POSITION weighs what the likeliest token lacks to 1.
    """
    probabilities = logits.softmax(dim=1)
    inside = probabilities.clone()
    inside[:, NULL_POSITION] = 0.0
    # A product with a triangle, as a cumulative sum has no deterministic kernel on CUDA.
    length = logits.shape[1]
    until = torch.ones(length, length, dtype=logits.dtype, device=logits.device).triu()
    weights = (inside[:, :, 0] @ until) * (inside[:, :, 1] @ until.T)
    weights = weights * torch.isfinite(logits[:, :, 0])
    null = 1.0 - weights[:, 1:].amax(dim=1, keepdim=True)
    weights = torch.cat([null, weights[:, 1:]], dim=1)
    return weights / weights.sum(dim=1, keepdim=True)


def pool_windows(log_odds: Tensor, pairs: Tensor, n_pairs: int, *, kind: WindowPooling) -> Tensor:
    """From log odds of "met" of each window `[V]` to those of each pair `[B]`.

    `max`: of the most convinced window. `logsumexp`: of the mean odds, which is the window's own where
    there is but one.
    """
    members = pairs.unsqueeze(0) == torch.arange(n_pairs, device=pairs.device).unsqueeze(1)
    spread = log_odds.unsqueeze(0).masked_fill(~members, float("-inf"))
    if kind == "max":
        return spread.amax(dim=1)
    return spread.logsumexp(dim=1) - members.sum(dim=1).log()


def _mean_by_pair(vectors: Tensor, pairs: Tensor, n_pairs: int) -> Tensor:
    total = vectors.new_zeros(n_pairs, vectors.shape[1]).index_add(0, pairs, vectors)
    counts = torch.bincount(pairs, minlength=n_pairs).to(vectors.dtype)
    return total / counts.unsqueeze(1)
