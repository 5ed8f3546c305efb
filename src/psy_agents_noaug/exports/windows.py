"""A trained model as a plain function of tensors, one window after the other.

What is exported reads windows; to cut long posts and to put windows together is left to the reader.
Shapes: B windows (of pairs, or of texts with label attention) of T tokens; C criteria; encoder width H.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from psy_agents_noaug.errors import ConfigError
from psy_agents_noaug.models.criteria import CriteriaModel
from psy_agents_noaug.models.encoder import Encoder
from psy_agents_noaug.models.evidence import EvidenceModel, in_context
from psy_agents_noaug.models.execution import run_encoder
from psy_agents_noaug.models.joint import JointModel
from psy_agents_noaug.models.label_attention import LabelAttentionModel, criterion_vectors
from psy_agents_noaug.tasks.base import Task
from psy_agents_noaug.tasks.one_pass import criterion_inputs
from psy_agents_noaug.tasks.pairs import ENCODER_INPUTS

CONTEXT = "context_mask"
LOG_ODDS, STARTS, ENDS = "log_odds", "start_logits", "end_logits"
_TASKS = ("criteria", "evidence", "joint")
_N_TOKENS = 12  # of the examples that an exporter reads


class WindowModel(nn.Module):
    """A trained model of one of our tasks, in fp32 on the CPU, without dropout.

    Args:
        task: with the weights in place; its encoders run padded. Adapters of `model.lora` are merged
            into the encoders of its model.

    Attributes:
        model: of the task.
        vectors: of the criteria, `[C, H]`; None for a cross-encoder.
        input_names: of the tensors that `forward` takes. `context_mask` is 1 for the tokens of the post
            that cover a visible character. With two encoders the inputs of each begin with its name.
        output_names: of the tensors that `forward` returns: `log_odds` of "met", `[B]` or `[B, C]`;
            `start_logits` and `end_logits`, `[B, T]` or `[B, C, T]`, -inf outside of the post except
            at the first token.

    Raises:
        ConfigError: another package's task.
    """

    vectors: Tensor | None

    def __init__(self, task: Task) -> None:
        super().__init__()
        if task.name not in _TASKS:
            raise ConfigError(
                f"A model of the task {task.name} cannot be exported to this format, only those of "
                f"{', '.join(_TASKS)}. format=bundle exports any."
            )
        self.model = task.model.eval()
        _merge_adapters(self.model)
        self._labels, self._spans = task.name != "evidence", task.name != "criteria"
        self.encoders: Mapping[str, Encoder] = task.inputs.encoders
        self.prefixes = {
            part: f"{part}_" if len(self.encoders) > 1 else "" for part in self.encoders
        }
        self.input_names = [
            f"{self.prefixes[part]}{name}"
            for part, encoder in self.encoders.items()
            for name in ENCODER_INPUTS
            if name in (*ENCODER_INPUTS[:2], *encoder.tokenizer.model_input_names)
        ] + [CONTEXT] * self._spans
        self.output_names = [LOG_ODDS] * self._labels + [STARTS, ENDS] * self._spans
        self.register_buffer("vectors", self._criterion_vectors(task))
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def _criterion_vectors(self, task: Task) -> Tensor | None:
        if not isinstance(self.model, LabelAttentionModel):
            return None
        if self.model.vectors is not None:
            return self.model.vectors.detach().clone()
        (encoder,) = self.encoders.values()
        return criterion_vectors(
            self.model.encoder, criterion_inputs(task.inputs.criteria, encoder)
        )

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs for inputs, in the order of their names."""
        inputs = dict(zip(self.input_names, tensors, strict=True))
        odds, spans = self._scores(inputs)
        outputs = [odds] if self._labels else []
        if self._spans:
            outputs += [spans[..., 0], spans[..., 1]]
        return tuple(outputs)

    def _scores(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the log odds, and the logits of starts and ends, `[..., T, 2]`; one may be empty."""
        model: Any = self.model
        nothing = torch.zeros(())
        if isinstance(model, JointModel):
            return self._of_joint(model, inputs)
        read = self._inputs_of(next(iter(self.encoders)), inputs)
        tokens = run_encoder(model.encoder, read)
        if isinstance(model, CriteriaModel):
            logits = model.window_logits(tokens, read["attention_mask"])
            return logits[:, 1] - logits[:, 0], nothing
        if isinstance(model, EvidenceModel):
            return nothing, model.score(tokens, inputs[CONTEXT])
        assert isinstance(model, LabelAttentionModel)
        assert self.vectors is not None
        odds, _, borders = model.score(tokens, read["attention_mask"], self.vectors)
        if not self._spans:
            return odds, nothing
        n_criteria = self.vectors.shape[0]
        context = inputs[CONTEXT].repeat_interleave(n_criteria, dim=0)
        spans = in_context(borders.permute(1, 2, 0), context)
        n_windows, n_tokens = inputs[CONTEXT].shape
        return odds, spans.view(n_windows, n_criteria, n_tokens, 2)

    def _of_joint(self, model: JointModel, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        *_, evidence_part = self.encoders
        read = self._inputs_of(evidence_part, inputs)
        mask = read["attention_mask"]
        tokens = run_encoder(model.evidence.encoder, read)
        spans = model.evidence.score(tokens, inputs[CONTEXT])
        fused = None if model.fusion == "none" else model.fused(tokens, spans, mask)
        if model.criteria_encoder is not None:
            read = self._inputs_of(next(iter(self.encoders)), inputs)
            tokens, mask = run_encoder(model.criteria_encoder, read), read["attention_mask"]
        return model.window_odds(tokens, mask, fused), spans

    def _inputs_of(self, part: str, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the inputs of an encoder."""
        prefixed = {name: f"{self.prefixes[part]}{name}" for name in ENCODER_INPUTS}
        return {name: inputs[key] for name, key in prefixed.items() if key in inputs}

    def part_of(self, name: str) -> str:
        """Return the encoder that an input belongs to; `context_mask` to that of the evidence."""
        *others, last = self.encoders
        return next((part for part in others if name.startswith(self.prefixes[part])), last)

    def encoder_modules(self) -> dict[str, nn.Module]:
        """Return the network of each encoder, by part."""
        model: Any = self.model
        if isinstance(model, JointModel):
            both: list[Any] = [model.criteria_encoder, model.evidence.encoder]
            networks = both[-len(self.encoders) :]
        else:
            networks = [model.encoder]
        return dict(zip(self.encoders, networks, strict=True))

    def examples(self, *, n_windows: int, n_tokens: int = _N_TOKENS, seed: int = 0) -> list[Tensor]:
        """Return inputs of random tokens; the last window is shorter than the others.

        Args:
            n_windows: B.
            n_tokens: T.
            seed: of the tokens.
        """
        generator = torch.Generator().manual_seed(seed)
        shape = (n_windows, n_tokens)
        made: list[Tensor] = []
        for name in self.input_names:
            if name.endswith("input_ids"):
                encoder = self.encoders[self.part_of(name)]
                tokenizer, config = encoder.tokenizer, cast(Any, encoder.model.config)
                known = min(len(tokenizer), config.vocab_size)
                ids = torch.randint(known, shape, generator=generator)
                # Some encoders count positions by what is no padding.
                ids = ids.where(ids != tokenizer.pad_token_id, int(tokenizer.cls_token_id or 0))
                ids[-1, -(n_tokens // 4) :] = int(tokenizer.pad_token_id)
                made.append(ids)
                continue
            ones = torch.ones(shape, dtype=torch.long)
            ones[-1, -(n_tokens // 4) :] = 0
            if name == CONTEXT or name.endswith("token_type_ids"):
                ones[:, : n_tokens // 3] = 0  # of the criterion
            made.append(ones)
        return made


def named_outputs(model: WindowModel, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
    """Run a model, and return its outputs by name."""
    with torch.no_grad():
        return dict(zip(model.output_names, model(*inputs), strict=True))


def _merge_adapters(model: nn.Module) -> None:
    """Add the low-rank adapters of `model.lora` to the weights that they adapt."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if hasattr(child, "merge_and_unload"):
                merge: Any = child.merge_and_unload
                setattr(parent, name, merge())
