"""The evaluation loop: predict a whole split without gradients, and compute its metrics."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from psy_agents_noaug.errors import (
    NonFiniteError,
    OutOfMemoryError,
    faults_message,
    first_of,
)
from psy_agents_noaug.tasks.base import (
    Batch,
    DecisionRule,
    ExampleSource,
    MetricValues,
    Predictions,
    SplitPredictions,
    Task,
    row_sizes,
)
from psy_agents_noaug.training.batching import cut_by_tokens
from psy_agents_noaug.training.hardware import Hardware
from psy_agents_noaug.training.loading import loaded
from psy_agents_noaug.utils.out_of_memory import (
    MEMORY_ERRORS,
    cause_of,
    give_memory_back,
    is_out_of_memory,
)
from psy_agents_noaug.utils.token_budget import tokens_at_once

logger = logging.getLogger(__name__)

# The rows of the predictions of each batch of a process, and the predictions.
_Share = tuple[list[list[int]], list[dict[str, np.ndarray]]]


class Evaluation(NamedTuple):
    """The predictions of a model on a split, and their metrics."""

    predicted: SplitPredictions
    metrics: MetricValues


class PredictionStopped(Exception):  # noqa: N818  (nothing is wrong)
    """Raised in all processes when `should_stop` of one of them said so."""


class Evaluator:
    """Predicts and evaluates a split in batches of similar length, which all processes share.

    Args:
        task: the evaluated task.
        hardware: processes, precision and the tokens per batch.
        eval_batch_size: maximum examples per batch.

    Attributes:
        distributed: the processes.
    """

    def __init__(self, task: Task, hardware: Hardware, *, eval_batch_size: int) -> None:
        self._task = task
        self.distributed = hardware.distributed
        self._precision = hardware.precision
        self._loader_options = hardware.loader_options
        self._eval_batch_size = eval_batch_size
        self._max_tokens = hardware.eval_tokens(packed=task.packs)
        # Of one example, which may be longer than a batch of several.
        self._max_tokens_held = max(self._max_tokens, hardware.max_tokens_held)

    def predict(
        self,
        model: nn.Module,
        source: ExampleSource,
        *,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Predictions:
        """Return the predictions of the task for each pair of `source`, in its order.

        If memory runs out, the token budget is halved for good, and all examples are predicted again.

        Args:
            model: the model of the task.
            source: the encoded examples.
            should_stop: asked before every batch, and while one is waited for. Processes that are not
                asked to stop predict their share first.

        Raises:
            LoaderError: see `loaded`.
            PredictionStopped: a process was asked to stop.
            OutOfMemoryError: a row of one example does not fit in memory.
            NonFiniteError: a score is NaN or infinite.
        """
        while True:
            # Processes exchange nothing before all of them are done, so that none waits for one that
            # failed.
            own, stopped = None, False
            with self.distributed.shared_errors():
                try:
                    own = self._predict_unless_out_of_memory(model, source, should_stop)
                except PredictionStopped:
                    stopped = True
            if self.distributed.any(stopped):
                raise PredictionStopped
            if not self.distributed.any(own is None):
                break
            with self.distributed.shared_errors():
                if self._max_tokens <= int(row_sizes(source).longest.min()):
                    raise OutOfMemoryError(
                        "Memory ran out during a prediction; lower `training.micro_batch_tokens` or "
                        "`model.max_length`."
                    )
            self._max_tokens //= 2
            self._max_tokens_held = self._max_tokens
            give_memory_back()
            logger.warning(
                "Out of memory during a prediction: batches now have at most %d tokens.",
                self._max_tokens,
            )
        assert own is not None
        predictions = _in_order(self.distributed.gather(own))
        with self.distributed.shared_errors():
            _refuse_non_finite(predictions, source.predicted_ids)
        return predictions

    def _predict_unless_out_of_memory(
        self, model: nn.Module, source: ExampleSource, should_stop: Callable[[], bool]
    ) -> _Share | None:
        """Return this process's share of the predictions; None if memory ran out.

        The traceback of the error, which references the tensors of the failed batch, ends here.
        """
        try:
            return self._predict(model, source, should_stop)
        except MEMORY_ERRORS as error:
            if not is_out_of_memory(error):
                raise
            logger.warning("Memory ran out: %s", cause_of(error))
            return None

    def _predict(
        self, model: nn.Module, source: ExampleSource, should_stop: Callable[[], bool]
    ) -> _Share:
        """Return this process's share of the predictions.

        Raises:
            PredictionStopped: it was asked to stop.
        """

        def stop_if_asked() -> None:
            if should_stop():
                raise PredictionStopped

        sizes, packs = row_sizes(source), self._task.packs
        cut = cut_by_tokens(
            range(len(source.lengths)),
            sizes.tokens if packs else sizes.longest,
            max_tokens=self._max_tokens,
            max_examples=self._eval_batch_size,
            packed=packs,
            rows=None if packs else sizes.rows,
        )
        mine = cut[self.distributed.rank :: self.distributed.count]
        loading = loaded(
            _Batches(source, mine),
            range(len(mine)),
            self._loader_options,
            while_waiting=stop_if_asked,
        )
        parts: list[dict[str, np.ndarray]] = []
        with (
            loading as batches,
            _in_evaluation_mode(model),
            self._precision.autocast(),
            tokens_at_once(self._max_tokens_held),
        ):
            for batch in batches:
                stop_if_asked()
                outputs = self._task.predict(model, self.distributed.to_device(batch))
                parts.append({name: value.cpu().numpy() for name, value in outputs.items()})
        return [source.predicted(batch) for batch in mine], parts

    def evaluate(
        self,
        model: nn.Module,
        split: str,
        *,
        rule: DecisionRule | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Evaluation:
        """Predict `split` and compute its metrics.

        Args:
            model: the model of the task.
            split: train, val, test or all.
            rule: turns the predictions into decisions; None fits one on them, on val only.
            should_stop: see `predict`.

        Raises:
            LoaderError, PredictionStopped, OutOfMemoryError: see `predict`.
            ValueError: `rule` is None for a split other than val.
        """
        if rule is None and split != "val":
            raise ValueError(f"A decision rule is fitted on val only, not on {split}.")
        values = self.predict(model, self._task.source(split), should_stop=should_stop)
        if rule is None:
            rule = self._task.evaluation.fit_decision_rule(values)
        predicted = SplitPredictions(split, values, rule)
        return Evaluation(predicted, self._task.evaluation.metrics(predicted))


@contextmanager
def _in_evaluation_mode(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        # Not `inference_mode`: in it autocast would cast the weights again for every batch.
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


class _Batches(Dataset[Batch]):
    def __init__(self, source: ExampleSource, cut: list[list[int]]) -> None:
        self._source = source
        self._cut = cut

    def __len__(self) -> int:
        return len(self._cut)

    def __getitem__(self, position: int) -> Batch:
        return self._source.collate(self._cut[position])


def _refuse_non_finite(predictions: Predictions, ids: Sequence[str]) -> None:
    """Refuse scores that are NaN or infinite. -inf is the score of what is not there, as of a span.

    Raises:
        NonFiniteError: naming the examples.
    """
    bad: dict[str, list[str]] = {}
    for name, values in predictions.items():
        if np.issubdtype(values.dtype, np.floating):
            rows = (np.isnan(values) | np.isposinf(values)).reshape(len(values), -1).any(axis=1)
            if rows.any():
                bad[name] = [ids[row] for row in np.flatnonzero(rows).tolist()]
    if bad:
        raise NonFiniteError(
            faults_message(
                "The model's scores are NaN or infinite; no figure can be computed from them. In "
                "training, lower `training.learning_rate`, or use `training.amp=off` or bf16. Examples:",
                [f"{name}: {first_of(examples)}" for name, examples in bad.items()],
            )
        )


def _in_order(shares: list[_Share]) -> Predictions:
    """Return the predictions of all processes, in the order of the split."""
    indices = np.concatenate([np.asarray(c, dtype=np.int64) for cut, _ in shares for c in cut])
    order = np.argsort(indices)
    names = next(parts[0] for _, parts in shares if parts)
    return {
        name: np.concatenate([part[name] for _, parts in shares for part in parts])[order]
        for name in names
    }
