"""A task in a package of its own: how severe is a criterion in a post, from 0 to 3?

After `pip install`, `psy-agents train task=severity data=tables ...` trains it; `psy-agents eval` and
`resume` work as for every task. The entry point in `pyproject.toml` is all that makes it known.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from sklearn.metrics import cohen_kappa_score, mean_absolute_error
from torch import Tensor, nn

from psy_agents_noaug.config.schema import TaskSettings, TrainConfig
from psy_agents_noaug.data.dsm5 import Criterion
from psy_agents_noaug.data.examples import Example
from psy_agents_noaug.data.labels import LabelScale
from psy_agents_noaug.data.windows import encode_windows
from psy_agents_noaug.metrics.tables import format_value, render_table
from psy_agents_noaug.models.execution import run_encoder
from psy_agents_noaug.models.heads import ClassificationHead, Pooling
from psy_agents_noaug.tasks.base import (
    ENCODER,
    Batch,
    DecisionRule,
    MetricValues,
    Predictions,
    SplitPredictions,
    Task,
    TaskEvaluation,
    TaskInputs,
    example_ids,
)
from psy_agents_noaug.tasks.pairs import ENCODER_INPUTS, PairSource

HIGHEST = 3


class SeverityTaskConfig(TaskSettings):
    """Settings of the severity task (`configs/task/severity.yaml`)."""

    headline_metrics = ("mae", "kappa_quadratic")

    name: Literal["severity"]
    loss: Literal["squared", "absolute"]


class SeverityModel(nn.Module):
    """Severity of (criterion, post) pairs, `[B]`, from the pooled output of an encoder."""

    def __init__(
        self, encoder: nn.Module, *, hidden_size: int, pooling: str, dropout: float
    ) -> None:
        super().__init__()
        self.backbone = encoder
        self.pooling = Pooling(pooling, hidden_size)
        self.head = ClassificationHead(hidden_size, classes=1, dropout=dropout)

    def forward(self, **inputs: Tensor) -> Tensor:
        hidden = run_encoder(self.backbone, inputs)
        severity: Tensor = (
            self.head(self.pooling(hidden, inputs["attention_mask"])).float().squeeze(-1)
        )
        return severity


class SeverityEvaluation(TaskEvaluation):
    """Mean absolute error and quadratic-weighted kappa. Predictions hold `severity`, `[pairs]`."""

    def __init__(
        self, criteria: Sequence[Criterion], examples: Mapping[str, Sequence[Example]]
    ) -> None:
        self._criteria = criteria
        self._examples = examples

    def monitors(self) -> dict[str, Literal["max", "min"]]:
        return {"mae": "min", "kappa_quadratic": "max"}

    def fit_decision_rule(self, predictions: Predictions) -> DecisionRule:
        return {}  # a severity is rounded, so nothing is fitted

    def metrics(self, predicted: SplitPredictions) -> MetricValues:
        labels, severity = self._labels(predicted.split), predicted.values["severity"]
        figures = _figures(labels, severity)
        for criterion in self._criteria:
            own = self._of(criterion, predicted.split)
            for name, value in _figures(labels[own], severity[own]).items():
                figures[f"per_criterion/{criterion.criterion_id}/{name}"] = value
        return figures

    def report(self, predicted: SplitPredictions) -> MetricValues:
        mean = float(self._labels("train").mean())
        constant = np.full(len(self._labels(predicted.split)), mean)
        baseline = _figures(self._labels(predicted.split), constant)
        return {
            **self.metrics(predicted),
            **{f"baseline_mean/{name}": value for name, value in baseline.items()},
        }

    def records(self, predicted: SplitPredictions) -> Iterator[dict[str, Any]]:
        pairs = zip(self._examples[predicted.split], predicted.values["severity"], strict=True)
        for example, severity in pairs:
            decision = int(_rounded(severity))
            yield {
                **example_ids(example),
                "label": example.label,
                "severity": float(severity),
                "decision": decision,
            }

    def summary(self, metrics: MetricValues) -> str:
        rows = [["system", "MAE", "weighted kappa", "pairs"]]
        for name, prefix in {"model": "", "mean of train": "baseline_mean/"}.items():
            figures = (metrics.get(prefix + key) for key in ("mae", "kappa_quadratic"))
            rows.append([name, *map(format_value, figures), str(metrics["n_pairs"])])
        return render_table(rows, left=1)

    def _labels(self, split: str) -> np.ndarray:
        return np.asarray([example.label for example in self._examples[split]], dtype=np.int64)

    def _of(self, criterion: Criterion, split: str) -> np.ndarray:
        return np.asarray([e.criterion_id == criterion.criterion_id for e in self._examples[split]])


class SeverityTask(Task):
    """Severity as a number, trained by regression and rounded for the decision."""

    name = "severity"
    settings = SeverityTaskConfig
    labels = LabelScale("ordinal", high=HIGHEST)

    def __init__(self, config: TrainConfig, inputs: TaskInputs) -> None:
        super().__init__(config, inputs)
        assert isinstance(config.task, SeverityTaskConfig)
        self._loss = config.task.loss
        self.model = SeverityModel(
            self.network(ENCODER),
            hidden_size=inputs.encoders[ENCODER].hidden_size,
            pooling=config.model.pooling,
            dropout=config.model.head_dropout,
        )
        self.evaluation = SeverityEvaluation(inputs.criteria, self.examples)

    def encode(self, split: str, examples: Sequence[Example]) -> PairSource:
        windows = encode_windows(
            self.inputs.encoders[ENCODER].tokenizer,
            self.criterion_texts(examples),
            [example.text for example in examples],
            max_length=self.max_length,
            stride=None,  # longer posts are truncated
            token_cache=self.token_cache,
        )
        return PairSource(examples, windows)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        error = model(**_inputs(batch)) - batch["labels"]
        return error.square() if self._loss == "squared" else error.abs()

    def predict(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        return {"severity": model(**_inputs(batch))}


def _inputs(batch: Batch) -> Batch:
    return {name: value for name, value in batch.items() if name in ENCODER_INPUTS}


def _rounded(severity: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(severity), 0, HIGHEST).astype(np.int64)


def _figures(labels: np.ndarray, severity: np.ndarray) -> MetricValues:
    figures: MetricValues = {"n_pairs": len(labels)}
    if not len(labels):
        return {**figures, "mae": None, "mae_undefined": "no pair"} | {
            "kappa_quadratic": None,
            "kappa_quadratic_undefined": "no pair",
        }
    figures["mae"] = float(mean_absolute_error(labels, severity))
    decided = _rounded(severity)
    if len(set(labels) | set(decided)) < 2:
        reason = "only one severity was annotated and predicted"
        return {**figures, "kappa_quadratic": None, "kappa_quadratic_undefined": reason}
    kappa = cohen_kappa_score(labels, decided, labels=range(HIGHEST + 1), weights="quadratic")
    return {**figures, "kappa_quadratic": float(kappa)}
