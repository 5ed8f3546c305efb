"""A masked language model of an encoder and the language-model head of its family."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForMaskedLM
from transformers.modeling_outputs import BaseModelOutput

from psy_agents_noaug.models.encoder import load_pretrained, quiet_transformers
from psy_agents_noaug.models.execution import run_encoder
from psy_agents_noaug.models.invariance import in_blocks


class MaskedLanguageModel(nn.Module):
    """Logits of masked tokens.

    The head is the family's own model of transformers, in which a placeholder passes the encoder's
    output on: thus the encoder runs packed, and the head on the masked tokens alone.

    Args:
        encoder: a transformers model.
        language_model: the family's masked language model; its own encoder is replaced.
    """

    def __init__(self, encoder: nn.Module, language_model: nn.Module) -> None:
        super().__init__()
        self.backbone = encoder
        model: Any = language_model
        self._part: str = model.base_model_prefix
        setattr(model, self._part, encoder)
        model.tie_weights()
        setattr(model, self._part, _Given())
        self.head = model
        # transformers maps a file's weights into memory, where they begin at other addresses than those
        # of a resumed run, and some products of a CPU then differ in their last bit.
        for weight in self.parameters():
            weight.data = weight.data.clone()

    def forward(self, inputs: Mapping[str, Tensor], places: Tensor) -> Tensor:
        """Return the logits `[M, vocabulary]` of M tokens, float32.

        Args:
            inputs: of the encoder, `[W, T]`.
            places: int64 `[M]`, of the tokens in the flattened rows.
        """
        hidden = run_encoder(self.backbone, inputs).flatten(0, 1)[places]
        return self._logits(hidden) if self.training else in_blocks(self._logits, hidden)

    def _logits(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.head(inputs_embeds=hidden.unsqueeze(0)).logits[0]
        return logits.float()

    def save_pretrained(self, folder: Path) -> None:
        """Write encoder and head as transformers does, for `from_pretrained`."""
        setattr(self.head, self._part, self.backbone)
        try:
            with quiet_transformers():
                self.head.save_pretrained(folder)
        finally:
            setattr(self.head, self._part, _Given())


class _Given(nn.Module):
    """Stands in the place of the encoder, and returns what it is given as its output."""

    def forward(self, *_: object, inputs_embeds: Tensor, **__: object) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=inputs_embeds)


def load_language_model(
    pretrained_model: str, *, revision: str | None = None
) -> tuple[nn.Module, list[str]]:
    """Load the masked language model of pretrained weights, its encoder included.

    Returns:
        The model, and the names of the head's weights that the file lacks: they are random, but for
        word embeddings that are tied to the encoder's.

    Raises:
        ConfigError: the family has none, or the weights cannot be had.
    """
    model, loaded = load_pretrained(AutoModelForMaskedLM, pretrained_model, revision=revision)
    return model, sorted(map(str, loaded.get("missing_keys", ())))


def config_text(language_model: nn.Module) -> str:
    """Return the config.json of a masked language model."""
    model: Any = language_model
    text: str = model.config.to_json_string(use_diff=True)
    return text


def rebuild_language_model(config: str) -> nn.Module:
    """Build the model of a `config_text`, its weights still to be filled in."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(config, encoding="utf-8")
        with quiet_transformers():
            model: nn.Module = AutoModelForMaskedLM.from_config(
                AutoConfig.from_pretrained(folder, trust_remote_code=False)
            )
    return model
