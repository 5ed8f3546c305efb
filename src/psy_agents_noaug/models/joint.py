"""The joint model: label and evidence of a pair, from two encoders or a shared one.

Shapes: B pairs; V windows for the label and W for the evidence, of T tokens; encoder width H.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from psy_agents_noaug.models.encoder import encode_rows
from psy_agents_noaug.models.evidence import NULL_POSITION, EvidenceModel
from psy_agents_noaug.models.heads import ClassificationHead, Pooling
from psy_agents_noaug.models.windows import WindowPooling, pool_windows
from psy_agents_noaug.utils.host import on_host

Fusion = Literal["none", "concat", "evidence_attention"]


class JointModel(nn.Module):
    """Classifies a pair and finds its evidence.

    Args:
        evidence: encoder and head of the spans.
        criteria_encoder: encoder of the label; None shares that of the evidence, in one forward pass.
        hidden_size: width of the encoder of the label.
        evidence_hidden_size: width of the encoder of the evidence.
        fusion: what the head of the label reads from the evidence encoder, besides its own pooled
            windows: `none`; `concat`: the pooled vector; `evidence_attention`: the token vectors,
            weighted by their probability of lying in a span.
        window_pooling: how the log odds of the windows are combined, see `pool_windows`.
        learned_weights: whether the weights of the losses are learned (`log_variances`).
        pooling: of the label, see `CriteriaModel`.
        head_layers: of the label, see `CriteriaModel`.
        head_width: of the label, see `CriteriaModel`.
        head_dropout: of the label, see `CriteriaModel`.
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
        """Return log odds of "met" `[B]`, span logits `[W, T, 2]`, log variances of the losses `[2]`.

        Args:
            criteria: inputs of the criteria encoder, `[V, T]`; not read with a shared encoder.
            evidence: inputs of the evidence encoder, `[W, T]`.
            criteria_pairs: `[V]`, the pair of each window of the label.
            evidence_pairs: `[W]`, the pair of each window of the evidence, in ascending order.
            context_mask: `[W, T]`, see `EvidenceModel.forward`.
        """
        n_pairs = int(on_host(evidence_pairs)[-1]) + 1
        tokens = encode_rows(self.evidence.encoder, evidence, max_tokens=self.evidence.max_tokens)
        spans = self.evidence.score(tokens, context_mask)
        if self.criteria_encoder is None:
            label_tokens, mask = tokens, evidence["attention_mask"]
        else:
            label_tokens = encode_rows(
                self.criteria_encoder,
                criteria,
                max_tokens=self.evidence.max_tokens,
                first_only=self.pooling.kind == "cls",
            )
            mask = criteria["attention_mask"]
        fused = None
        if self.fusion != "none":
            by_window = self.fused(tokens, spans, evidence["attention_mask"])
            fused = _mean_by_pair(by_window, evidence_pairs, n_pairs)[criteria_pairs]
        log_odds = pool_windows(
            self.window_odds(label_tokens, mask, fused),
            criteria_pairs,
            n_pairs,
            kind=self.window_pooling,
        )
        log_variances = spans.new_zeros(2) if self.log_variances is None else self.log_variances
        return log_odds, spans, log_variances

    def window_odds(self, tokens: Tensor, mask: Tensor, fused: Tensor | None) -> Tensor:
        """Return the log odds of "met" of each window of the label, float32 `[V]`.

        Args:
            tokens: vectors of the label's encoder, `[V, T, H]`.
            mask: its attention mask, `[V, T]`.
            fused: what the head reads from the evidence encoder, `[V, H]`; None with `fusion` none.
        """
        pooled = self.pooling(tokens, mask)
        if fused is not None:
            pooled = torch.cat([pooled, fused], dim=-1)
        logits = self.head(pooled).float()
        odds: Tensor = logits[:, 1] - logits[:, 0]
        return odds

    def fused(self, tokens: Tensor, spans: Tensor, mask: Tensor) -> Tensor:
        """Return the vector of each window of the evidence that `fusion` asks for, `[W, H]`.

        Args:
            tokens: vectors of the evidence encoder, `[W, T, H]`.
            spans: span logits, `[W, T, 2]`.
            mask: its attention mask, `[W, T]`.
        """
        if self.evidence_pooling is not None:
            pooled: Tensor = self.evidence_pooling(tokens, mask)
            return pooled
        weights = span_attention(spans).to(tokens.dtype)
        return (tokens * weights.unsqueeze(-1)).sum(dim=1)


def span_attention(logits: Tensor) -> Tensor:
    """Return weights of the tokens, `[W, T]`, from span logits `[W, T, 2]`. They sum to 1.

    The weight of a token of the post is the probability that the span starts at or before it and ends at
    or after it, if start and end were independent. The weight of NULL_POSITION is 1 minus the largest of
    these. All weights are then divided by their sum.
    """
    probabilities = logits.softmax(dim=1)
    inside = probabilities.clone()
    inside[:, NULL_POSITION] = 0.0
    # A product with a triangular matrix, because the cumulative sum is not deterministic on CUDA.
    length = logits.shape[1]
    until = torch.ones(length, length, dtype=logits.dtype, device=logits.device).triu()
    weights = (inside[:, :, 0] @ until) * (inside[:, :, 1] @ until.T)
    weights = weights * torch.isfinite(logits[:, :, 0])
    null = 1.0 - weights[:, 1:].amax(dim=1, keepdim=True)
    weights = torch.cat([null, weights[:, 1:]], dim=1)
    return weights / weights.sum(dim=1, keepdim=True)


def _mean_by_pair(vectors: Tensor, pairs: Tensor, n_pairs: int) -> Tensor:
    total = vectors.new_zeros(n_pairs, vectors.shape[1]).index_add(0, pairs, vectors)
    counts = torch.bincount(pairs, minlength=n_pairs).to(vectors.dtype)
    return total / counts.unsqueeze(1)
