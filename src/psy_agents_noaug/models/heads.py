"""Pooling of token vectors, and the classification head.

Shapes: B sequences of T tokens, encoder width H, classes C.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from psy_agents_noaug.models.invariance import in_blocks


class Pooling(nn.Module):
    """Pools token vectors `[B, T, H]` with mask `[B, T]` to one vector per sequence, `[B, H]`.

    Args:
        kind: `cls`: the vector of the first token; `mean`, `max`: over the tokens that are not padding;
            `attention`: their mean, weighted by the softmax of a learned score (one query vector).
        hidden_size: H.
    """

    def __init__(self, kind: str, hidden_size: int) -> None:
        super().__init__()
        self.kind = kind
        self.score = nn.Linear(hidden_size, 1, bias=False) if kind == "attention" else None

    def forward(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        if self.kind == "cls":
            return hidden[:, 0]
        present = attention_mask.bool().unsqueeze(-1)
        if self.kind == "max":
            return hidden.masked_fill(~present, torch.finfo(hidden.dtype).min).amax(dim=1)
        if self.score is None:
            mean: Tensor = hidden.masked_fill(~present, 0.0).sum(dim=1) / present.sum(dim=1)
            return mean
        scores = self.score(hidden).float().masked_fill(~present, float("-inf"))
        weights = scores.softmax(dim=1).to(hidden.dtype)
        weighted: Tensor = (hidden * weights).sum(dim=1)
        return weighted


class ClassificationHead(nn.Module):
    """Maps `[B, H]` to logits `[B, C]`: hidden layers with GELU, with dropout before each layer.

    Args:
        hidden_size: H.
        classes: C.
        layers: number of linear layers, of which the last one gives the logits.
        width: of the hidden layers; None: H.
        dropout: probability.
    """

    def __init__(
        self,
        hidden_size: int,
        *,
        classes: int,
        layers: int = 1,
        width: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        width = width or hidden_size
        widths = [hidden_size] + [width] * (layers - 1)
        hidden: list[nn.Module] = []
        for source, target in pairwise(widths):
            hidden += [nn.Dropout(dropout), nn.Linear(source, target), nn.GELU()]
        self.layers = nn.Sequential(*hidden, nn.Dropout(dropout), nn.Linear(widths[-1], classes))

    def forward(self, pooled: Tensor) -> Tensor:
        logits: Tensor = self.layers(pooled) if self.training else in_blocks(self.layers, pooled)
        return logits
