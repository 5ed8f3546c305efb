"""A cross-encoder with a linear head as one of transformers' own sequence classifiers.

Their heads are not linear: between two linear layers they have an activation, or a norm. The same logits
come out of them all the same, because of an identity or up to less than float32 resolves:

- gelu, relu, silu: `f(x) - f(-x) = x`, exactly. The first layer gives the logits and their negatives,
  the second one subtracts.
- tanh: `tanh(s x) / s = x (1 - (s x)^2 / 3 + ...)`. With s = 2^-14 a logit of 10 is off by 1.2e-6.
- ModernBERT's norm: beside the logits and their negatives stand K and -K, so that the mean is 0 and the
  deviation is K's up to `(x / K)^2`. With K = 2^15 a logit of 10 is off by 1e-6 or so.

`sequence_classifier` compares the logits, and returns no model whose logits are not the same.
"""

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from psy_agents_noaug.exports.windows import WindowModel
from psy_agents_noaug.models.criteria import CriteriaModel
from psy_agents_noaug.models.execution import run_encoder

TOLERANCE = 1e-5  # of logits up to 10; of larger ones a millionth
LABELS = ("not met", "met")
_TANH_SCALE = 2.0**-14  # a power of two: weights keep their bits
_NORM_CONSTANT = 2.0**15
_NORM_LOGITS, _NORM_ROWS = 4, 6
_ODD_PART_IS_HALF = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "swish")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Head:
    """The head of a sequence classifier: `classifier(activation(dense(vector of the first token)))`.

    Args:
        dense: name of the first layer.
        classifier: name of the second layer.
        activation: its name; `tanh`, or one of those whose odd part is half of the identity.
        activation_key: the setting with the name of the activation; None: it has none.
    """

    dense: str
    classifier: str
    activation: str
    activation_key: str | None = None


_ROBERTA = _Head("classifier.dense", "classifier.out_proj", "tanh")
_HEADS = {
    "bert": _Head("bert.pooler.dense", "classifier", "tanh"),
    "camembert": _ROBERTA,
    "deberta-v2": _Head("pooler.dense", "classifier", "gelu", "pooler_hidden_act"),
    "distilbert": _Head("pre_classifier", "classifier", "relu"),
    "electra": _Head("classifier.dense", "classifier.out_proj", "gelu"),
    "mpnet": _ROBERTA,
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
}
_WITH_NORM = "modernbert"


def sequence_classifier(model: WindowModel) -> nn.Module | None:
    """Return the sequence classifier of transformers with the logits of `model`, or None."""
    ours = model.model
    if not isinstance(ours, CriteriaModel):
        return None
    (encoder,) = model.encoders.values()
    kind = str(encoder.model.config.model_type)  # type: ignore[union-attr]
    linear = [layer for layer in ours.head.modules() if isinstance(layer, nn.Linear)]
    poolings = {_WITH_NORM: ("cls", "mean"), **dict.fromkeys(_HEADS, ("cls",))}
    if len(linear) != 1 or ours.pooling.kind not in poolings.get(kind, ()):
        return None
    (network,) = model.encoder_modules().values()
    config: Any = type(network.config)(**network.config.to_dict())  # type: ignore[union-attr, operator]
    config.id2label = dict(enumerate(LABELS))
    config.label2id = {label: number for number, label in enumerate(LABELS)}
    config.problem_type = "single_label_classification"
    if kind == _WITH_NORM:
        config.classifier_pooling = ours.pooling.kind
        config.classifier_bias, config.classifier_activation = True, "linear"
    found: Any = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    absent, unknown = found.base_model.load_state_dict(network.state_dict(), strict=False)
    if unknown or any(not name.startswith("pooler.") for name in absent):
        return None
    with torch.no_grad():
        if kind == _WITH_NORM:
            _fill_with_norm(found, linear[0])
        elif not _fill(found, _HEADS[kind], linear[0]):
            return None
    found.eval().requires_grad_(False)
    off = _largest_difference(model, found)
    if not off <= TOLERANCE:
        logger.warning(
            "%s cannot give the logits of this model (they differ by %.1e): the encoder and the head "
            "are exported apart.",
            type(found).__name__,
            off,
        )
        return None
    return found  # type: ignore[no-any-return]


def _largest_difference(model: WindowModel, classifier: nn.Module) -> float:
    """Return the largest difference of a logit on windows of random tokens; of one above 10 a tenth."""
    ours: Any = model.model
    differences = []
    for n_tokens in (12, 64):
        examples = model.examples(n_windows=4, n_tokens=n_tokens, seed=3)
        named = dict(zip(model.input_names, examples, strict=True))
        with torch.no_grad():
            tokens = run_encoder(ours.encoder, named)
            logits = ours.window_logits(tokens, named["attention_mask"])
            off = (classifier(**named).logits - logits).abs() / (logits.abs() / 10).clamp(min=1.0)
            differences.append(float(off.max()))
    return max(differences)


def _fill(model: nn.Module, head: _Head, linear: nn.Linear) -> bool:
    """Write the weights of a linear head into `head`; return whether its activation allows it."""
    config: Any = model.config
    activation = (
        head.activation if head.activation_key is None else getattr(config, head.activation_key)
    )
    dense: Any = model.get_submodule(head.dense)
    classifier: Any = model.get_submodule(head.classifier)
    n_logits, width = linear.weight.shape
    _zero(dense, classifier)
    classifier.bias.copy_(linear.bias)
    if activation == "tanh":
        dense.weight[:n_logits] = linear.weight * _TANH_SCALE
        classifier.weight[:, :n_logits] = torch.eye(n_logits) / _TANH_SCALE
        return True
    if activation not in _ODD_PART_IS_HALF or width < 2 * n_logits:
        return False
    _logits_and_negatives(dense, linear)
    classifier.weight[:, : 2 * n_logits] = _difference(n_logits)
    return True


def _fill_with_norm(model: nn.Module, linear: nn.Linear) -> None:
    """Write the weights of a linear head into ModernBERT's."""
    head: Any = model.get_submodule("head")
    classifier: Any = model.get_submodule("classifier")
    n_logits, width = linear.weight.shape
    _zero(head.dense, classifier)
    _logits_and_negatives(head.dense, linear)
    head.dense.bias[_NORM_LOGITS:_NORM_ROWS] = torch.tensor([_NORM_CONSTANT, -_NORM_CONSTANT])
    head.norm.weight.fill_(1.0)
    if head.norm.bias is not None:
        head.norm.bias.zero_()
    deviation = _NORM_CONSTANT * (2 / width) ** 0.5
    classifier.weight[:, : 2 * n_logits] = _difference(n_logits) * deviation / 2
    classifier.bias.copy_(linear.bias)


def _logits_and_negatives(dense: nn.Linear, linear: nn.Linear) -> None:
    dense.weight[: 2 * len(linear.weight)] = torch.cat([linear.weight, -linear.weight])


def _difference(n_logits: int) -> Tensor:
    """Return the matrix that subtracts the second half of `2 * n_logits` values from the first."""
    return torch.cat([torch.eye(n_logits), -torch.eye(n_logits)], dim=1)


def _zero(*layers: nn.Linear) -> None:
    for layer in layers:
        layer.weight.zero_()
        layer.bias.zero_()
