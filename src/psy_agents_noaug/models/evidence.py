"""The evidence model: an encoder and a head that scores where spans begin and end."""

from torch import Tensor, nn

from psy_agents_noaug.models.encoder import encode_rows
from psy_agents_noaug.models.heads import ClassificationHead

NULL_POSITION = 0  # the first token, [CLS] or its like, stands for "no evidence here"


class EvidenceModel(nn.Module):
    """Scores the borders of spans in windows of (criterion, post) pairs.

    Args:
        encoder: a Hugging Face encoder whose output has `last_hidden_state` `[W, T, H]`.
        hidden_size: H.
        head_layers, head_width, head_dropout: see `ClassificationHead`, here applied to each token.
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
        """Return start and end logits, float32 `[W, T, 2]`, of windows with ids and masks `[W, T]`.

        They are -inf outside of `context_mask` (the post's tokens), but for NULL_POSITION.
        """
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None:
            inputs["token_type_ids"] = token_type_ids
        return self.score(
            encode_rows(self.encoder, inputs, max_tokens=self.max_tokens), context_mask
        )

    def score(self, tokens: Tensor, context_mask: Tensor) -> Tensor:
        """The logits of `forward` from the encoder's tokens `[W, T, H]`."""
        allowed = context_mask.bool().clone()
        allowed[:, NULL_POSITION] = True
        logits: Tensor = self.head(tokens).float()
        return logits.masked_fill(~allowed.unsqueeze(-1), float("-inf"))


def log_odds(logits: Tensor) -> Tensor:
    """Return logits `[W, T, 2]` relative to those of NULL_POSITION, which itself gets -inf.

    A start's and an end's entry add up to the log odds of that span against no evidence in the window.
    """
    relative: Tensor = logits - logits[:, NULL_POSITION : NULL_POSITION + 1]
    relative[:, NULL_POSITION] = float("-inf")
    return relative
