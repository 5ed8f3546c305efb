"""The criteria model: an encoder, a pooling, a two-class head."""

from torch import Tensor, nn

from psy_agents_noaug.models.encoder import encode_rows
from psy_agents_noaug.models.heads import ClassificationHead, Pooling
from psy_agents_noaug.models.windows import WindowPooling, pool_windows


class CriteriaModel(nn.Module):
    """Classifies pairs of a criterion and a text, by windows of the text.

    Shapes: P pairs with V windows of T tokens.

    Args:
        encoder: a Hugging Face encoder whose output has `last_hidden_state` `[V, T, H]`.
        hidden_size: H.
        pooling: kind of `Pooling`.
        head_layers: see `ClassificationHead`.
        head_width: see `ClassificationHead`.
        head_dropout: see `ClassificationHead`.
        window_pooling: how the log odds of the windows are combined, see `pool_windows`.
        max_tokens: see `encode_rows`.
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
        window_pooling: WindowPooling,
        max_tokens: int,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.pooling = Pooling(pooling, hidden_size)
        self.head = ClassificationHead(
            hidden_size, classes=2, layers=head_layers, width=head_width, dropout=head_dropout
        )
        self.window_pooling = window_pooling
        self.max_tokens = max_tokens

    def forward(self, inputs: dict[str, Tensor], pairs: Tensor, n_pairs: int) -> Tensor:
        """Return the log odds of "met", float32 `[P]`.

        Args:
            inputs: of the encoder, for windows `[V, T]`.
            pairs: `[V]`, the pair of each window.
            n_pairs: P.
        """
        hidden = encode_rows(
            self.encoder,
            inputs,
            max_tokens=self.max_tokens,
            first_only=self.pooling.kind == "cls",
        )
        logits = self.window_logits(hidden, inputs["attention_mask"])
        return pool_windows(logits[:, 1] - logits[:, 0], pairs, n_pairs, kind=self.window_pooling)

    def window_logits(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the logits of each window, float32 `[V, 2]`: not met, met.

        Args:
            tokens: vectors of the encoder, `[V, T, H]`.
            attention_mask: `[V, T]`.
        """
        logits: Tensor = self.head(self.pooling(tokens, attention_mask)).float()
        return logits
