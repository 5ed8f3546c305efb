"""Label attention: the encoder reads a text once, and every criterion attends to its tokens.

After CAML (Mullenbach et al. 2018) and LAAT (Vu et al. 2020), with one scorer for all criteria, so that
it can read the vector of a criterion that it was not trained on. Shapes: W windows of T tokens; C
criteria; encoder width H; P pairs (of a text and a criterion) with V windows in all.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from psy_agents_noaug.models.encoder import encode_rows
from psy_agents_noaug.models.evidence import in_context
from psy_agents_noaug.models.execution import run_encoder
from psy_agents_noaug.models.heads import ClassificationHead, Pooling
from psy_agents_noaug.models.invariance import elementwise
from psy_agents_noaug.models.windows import WindowPooling, pool_windows

_FIRST_ATTENTION_BIAS = -3.0  # few tokens are evidence
_FIRST_SCORE = 20.0  # of a token that is a criterion's own vector, about; before GELU and the bias


class Outputs(NamedTuple):
    """The outputs of `LabelAttentionModel` for the pairs of a batch.

    Args:
        label_odds: log odds of "met", float32 `[P]`.
        spans: start and end logits, float32 `[V, T, 2]`, as those of `EvidenceModel`.
        attention: score of each token, float32 `[V, T]`, -inf for padding. The label reads the tokens
            weighted by the softmax of these.
    """

    label_odds: Tensor
    spans: Tensor
    attention: Tensor


def criterion_vectors(encoder: nn.Module, texts: Mapping[str, Tensor]) -> Tensor:
    """Return a vector for each criterion, `[C, H]`: the encoder's mean over the tokens of its text.

    Args:
        encoder: see `LabelAttentionModel`.
        texts: its inputs, `[C, L]`.
    """
    states = run_encoder(encoder, texts)
    mean: Tensor = Pooling("mean", hidden_size=0)(states, texts["attention_mask"])
    return mean


class LabelAttentionModel(nn.Module):
    """Judges every criterion of a text, and scores where its evidence starts and ends.

    Every criterion has a query for its attention and one each for starts and ends; their products with
    the keys of the tokens are the scores. The label's head reads the tokens' mean weighted by the
    attention, the criterion's vector, the product of both, and the largest and the summed attention.

    Args:
        encoder: a Hugging Face encoder whose output has `last_hidden_state` `[W, T, H]`.
        first_texts: texts of criteria, `[C, L]`, from whose `criterion_vectors` the attention begins.
        learned: whether these vectors become parameters. Otherwise vectors are computed in every forward
            pass, so that any criteria can be read.
        hidden_size: H.
        head_layers: hidden layers of the label's head, which compares what it reads.
        head_width: of the label, see `ClassificationHead`.
        head_dropout: of the label, see `ClassificationHead`.
        window_pooling: how the log odds of the windows of a pair are combined, see `pool_windows`.
        max_tokens: see `encode_rows`.
    """

    def __init__(
        self,
        encoder: nn.Module,
        *,
        first_texts: Mapping[str, Tensor],
        learned: bool,
        hidden_size: int,
        head_layers: int,
        head_width: int | None,
        head_dropout: float,
        window_pooling: WindowPooling,
        max_tokens: int,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        vectors = _without_dropout(encoder, first_texts)
        self.vectors = nn.Parameter(vectors) if learned else None
        self.key = nn.Linear(hidden_size, hidden_size)
        self.query = nn.Linear(hidden_size, 3 * hidden_size)
        if len(vectors) > 1:
            _add_likeness(self.key, self.query, vectors)
        self.attention_bias = nn.Parameter(torch.tensor(_FIRST_ATTENTION_BIAS))
        self.head = ClassificationHead(
            3 * hidden_size + 2,
            classes=1,
            layers=head_layers + 1,
            width=head_width or hidden_size,
            dropout=head_dropout,
        )
        self.window_pooling = window_pooling
        self.max_tokens = max_tokens

    def forward(
        self,
        inputs: dict[str, Tensor],
        criterion_texts: dict[str, Tensor],
        windows: Tensor,
        criteria: Tensor,
        pairs: Tensor,
        n_pairs: int,
        context_mask: Tensor | None = None,
    ) -> Outputs:
        """Return the outputs for the pairs of a `TextSource` batch.

        Args:
            inputs: of the encoder, `[W, T]`.
            criterion_texts: of the encoder, `[C, L]`; not read where the vectors are learned.
            windows: `[V]`, which of the W windows is read for a pair.
            criteria: `[V]`, which of the C criteria it is read for.
            pairs: `[V]`, the pair of each window.
            n_pairs: P.
            context_mask: `[V, T]`, 1 for the tokens of the post; None: no spans are wanted.
        """
        tokens = encode_rows(self.encoder, inputs, max_tokens=self.max_tokens)
        vectors = (
            criterion_vectors(self.encoder, criterion_texts)
            if self.vectors is None
            else self.vectors
        )
        n_criteria = len(vectors)
        odds, attention, borders = self.score(tokens, inputs["attention_mask"], vectors)
        read = windows * n_criteria + criteria
        spans = borders.index_select(1, read).permute(1, 2, 0)
        if context_mask is not None:
            spans = in_context(spans, context_mask)
        label_odds = pool_windows(
            odds.flatten().index_select(0, read),
            pairs,
            n_pairs,
            kind=self.window_pooling,
        )
        return Outputs(label_odds, spans, attention.flatten(0, 1).index_select(0, read))

    def score(
        self, tokens: Tensor, attention_mask: Tensor, vectors: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return what every criterion finds in every window, float32.

        Args:
            tokens: vectors of the encoder, `[W, T, H]`.
            attention_mask: `[W, T]`.
            vectors: of the criteria, `[C, H]`.

        Returns:
            Log odds of "met" `[W, C]`; scores of the tokens `[W, C, T]`, -inf for padding; logits of
            starts and ends `[2, W * C, T]`.
        """
        n_criteria, width = vectors.shape
        keys = nn.functional.gelu(self.key(tokens))
        queries = self.query(vectors).view(n_criteria * 3, width)
        scores = (keys @ (queries.T / width**0.5)).float()
        # [W, T, C * 3] to [3, W * C, T]
        scores = scores.unflatten(-1, (n_criteria, 3)).permute(3, 0, 2, 1).flatten(1, 2)
        mask = attention_mask.bool()
        attention = (scores[0] + self.attention_bias).unflatten(0, (-1, n_criteria))
        attention = attention.masked_fill(~mask.unsqueeze(1), float("-inf"))
        return self._label_odds(tokens, attention, vectors), attention, scores[1:]

    def _label_odds(self, tokens: Tensor, attention: Tensor, vectors: Tensor) -> Tensor:
        """Return the log odds of "met" in each window, `[W, C]`, from the attention `[W, C, T]`."""
        shares = attention.softmax(dim=-1)
        found = shares.to(tokens.dtype) @ tokens
        own = vectors.expand_as(found)
        highest = attention.amax(dim=-1)
        # The logarithm of the summed attention: a share is a token's part of it.
        total = highest - elementwise(torch.log, shares.amax(dim=-1))
        pointed = torch.stack([highest, total], dim=-1)
        read = torch.cat([found, own, found * own, pointed.to(found.dtype)], dim=-1)
        odds: Tensor = self.head(read).squeeze(-1).float()
        return odds


@torch.no_grad()
def _add_likeness(key: nn.Linear, query: nn.Linear, vectors: Tensor) -> None:
    """Add to random weights what scores a token by its likeness to a criterion.

    A pretrained encoder gives like vectors to tokens and criteria of like meaning. With MiniLM, before
    any training, this likeness ranks the tokens of the evidence in the bundled corpus with an AUROC of
    0.67; random weights have 0.5. What all criteria share tells none from another, and is subtracted; of
    a single criterion nothing would be left.

    Args:
        key: `[H, H]`.
        query: `[3 H, H]`.
        vectors: of the criteria, `[C, H]`.
    """
    width = vectors.shape[1]
    scale = _FIRST_SCORE * width**0.5 / vectors.square().sum(dim=1).mean()
    same = torch.eye(width, dtype=vectors.dtype, device=vectors.device)
    key.weight.add_(same)
    query.weight.add_((scale * same).repeat(3, 1))
    query.bias.sub_((scale * vectors.mean(dim=0)).repeat(3))


def _without_dropout(encoder: nn.Module, texts: Mapping[str, Tensor]) -> Tensor:
    was_training = encoder.training
    encoder.eval()
    with torch.no_grad():
        vectors = criterion_vectors(encoder, texts)
    encoder.train(was_training)
    return vectors
