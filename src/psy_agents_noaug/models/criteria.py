"""The criteria model: an encoder, a pooling, a two-class head."""

from torch import Tensor, nn

from psy_agents_noaug.models.execution import run_encoder
from psy_agents_noaug.models.heads import ClassificationHead, Pooling


class CriteriaModel(nn.Module):
    """Classifies (criterion, text) pairs: logits `[B, 2]` for not met and met.

    Args:
        encoder: a Hugging Face encoder whose output has `last_hidden_state` `[B, T, H]`.
        hidden_size: H.
        pooling: kind of `Pooling`.
        head_layers: see `ClassificationHead`.
        head_width: see `ClassificationHead`.
        head_dropout: see `ClassificationHead`.
    """

    def __init__(
        self,
        encoder: nn.Module,
        *,
        hidden_size: int,
        pooling: str,
        head_layers: int,
        head_width: int | None,
        head_dropout: float,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.pooling = Pooling(pooling, hidden_size)
        self.head = ClassificationHead(
            hidden_size, classes=2, layers=head_layers, width=head_width, dropout=head_dropout
        )

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """Return logits `[B, 2]` for token ids, mask and, if the encoder has them, segments `[B, T]`."""
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None:
            inputs["token_type_ids"] = token_type_ids
        hidden = run_encoder(self.encoder, inputs, first_only=self.pooling.kind == "cls")
        logits: Tensor = self.head(self.pooling(hidden, attention_mask))
        return logits
