"""Several models that read the same inputs as one, whose probabilities are the means of theirs.

A deep ensemble (Lakshminarayanan, Pritzel & Blundell 2017) is the uniform mixture of its members. Of a
label that is the mean probability. Of a span the distributions of its start and of its end, over the
tokens of the window and NULL_POSITION, are averaged each: these are the mixture's own for starts and for
ends. A span is then scored as with one model, as if start and end were independent.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from psy_agents_noaug.models.label_attention import Outputs


class MeanModel(nn.Module):
    """Gives the outputs of one model: span logits, or log odds of "met", span logits and a third.

    Args:
        models: `EvidenceModel`, `JointModel` or `LabelAttentionModel`, all of one kind and of one
            tokenizer.
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, *args: Any, **named: Any) -> Any:
        """Return logits and log odds whose probabilities are means; the third output is the first's."""
        outputs = [model(*args, **named) for model in self.models]
        first = outputs[0]
        if isinstance(first, Tensor):
            return mean_logits(outputs)
        odds, spans, _ = zip(*outputs, strict=True)
        if isinstance(first, Outputs):
            return Outputs(mean_odds(odds), mean_logits(spans), first.attention)
        return mean_odds(odds), mean_logits(spans), first[2]


def mean_logits(logits: Sequence[Tensor]) -> Tensor:
    """Return logits, float32 `[W, T, 2]`, whose softmax over the tokens is the mean of theirs."""
    return _log_mean([_precise(own).log_softmax(dim=1) for own in logits]).float()


def mean_odds(log_odds: Sequence[Tensor]) -> Tensor:
    """Return log odds, float32 `[P]`, whose sigmoid is the mean of theirs."""
    precise = [_precise(own) for own in log_odds]
    met = _log_mean([logsigmoid(own) for own in precise])
    unmet = _log_mean([logsigmoid(-own) for own in precise])
    return (met - unmet).float()


def _log_mean(values: Sequence[Tensor]) -> Tensor:
    """Return the logarithm of the mean of what these are logarithms of."""
    return torch.logsumexp(torch.stack(list(values)), dim=0) - math.log(len(values))


def _precise(values: Tensor) -> Tensor:
    # In float64 a row depends on its padding by less than float32 shows. Apple's GPUs have none.
    return values.float() if values.device.type == "mps" else values.double()
