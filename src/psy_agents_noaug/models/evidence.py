"""The evidence model: an encoder, and a head that scores where spans start and end.

Shapes: W windows of T tokens; encoder width H.
"""

from torch import Tensor, nn

from psy_agents_noaug.models.encoder import encode_rows
from psy_agents_noaug.models.heads import ClassificationHead

NULL_POSITION = 0  # the first token, such as [CLS]; a span there means "no evidence in this window"


class EvidenceModel(nn.Module):
    """Scores the borders of spans in windows of (criterion, post) pairs.

    Args:
        encoder: a Hugging Face encoder whose output has `last_hidden_state` `[W, T, H]`.
        hidden_size: H.
        head_layers: see `ClassificationHead`, which is applied to each token.
        head_width: see `ClassificationHead`.
        head_dropout: see `ClassificationHead`.
        max_tokens: see `encode_rows`.
    """

    def __init__(
        self,
        encoder: nn.Module,
        *,
        hidden_size: int,
        head_layers: int,
        head_width: int | None,
        head_dropout: float,
        max_tokens: int,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = ClassificationHead(
            hidden_size, classes=2, layers=head_layers, width=head_width, dropout=head_dropout
        )
        self.max_tokens = max_tokens

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        context_mask: Tensor,
        token_type_ids: Tensor | None = None,
    ) -> Tensor:
        """Return start and end logits, float32 `[W, T, 2]`.

        They are -inf outside of `context_mask`, except at NULL_POSITION.

        Args:
            input_ids: `[W, T]`.
            attention_mask: `[W, T]`.
            context_mask: `[W, T]`, 1 for the tokens of the post.
            token_type_ids: `[W, T]`, if the encoder has them.
        """
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None:
            inputs["token_type_ids"] = token_type_ids
        return self.score(
            encode_rows(self.encoder, inputs, max_tokens=self.max_tokens), context_mask
        )

    def score(self, tokens: Tensor, context_mask: Tensor) -> Tensor:
        """Return the logits of `forward` for the encoder's token vectors `[W, T, H]`."""
        return in_context(self.head(tokens).float(), context_mask)


def in_context(logits: Tensor, context_mask: Tensor) -> Tensor:
    """Return logits `[W, T, 2]`, -inf outside of `context_mask` `[W, T]` except at NULL_POSITION."""
    allowed = context_mask.bool().clone()
    allowed[:, NULL_POSITION] = True
    return logits.masked_fill(~allowed.unsqueeze(-1), float("-inf"))


def log_odds(logits: Tensor) -> Tensor:
    """Return logits `[W, T, 2]` minus those of NULL_POSITION, which itself gets -inf.

    The sum of the values of a start and an end is the log odds of that span against no evidence.
    """
    relative: Tensor = logits - logits[:, NULL_POSITION : NULL_POSITION + 1]
    relative[:, NULL_POSITION] = float("-inf")
    return relative
