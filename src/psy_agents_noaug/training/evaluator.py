"""The evaluation loop: a whole split through the model, without gradients."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from psy_agents_noaug.errors import OutOfMemoryError
from psy_agents_noaug.training.batching import cut_by_tokens, leave_signals_to_main
from psy_agents_noaug.training.distributed import DistributedContext
from psy_agents_noaug.training.precision import Precision
from psy_agents_noaug.training.protocols import (
    Batch,
    Calibration,
    ExampleSource,
    MetricValues,
    Predictions,
    Task,
)
from psy_agents_noaug.utils.out_of_memory import (
    MEMORY_ERRORS,
    give_memory_back,
    is_out_of_memory,
)

logger = logging.getLogger(__name__)


class Evaluation(NamedTuple):
    """What a model did on a split: predictions in the split's order, their calibration, figures."""

    predictions: Predictions
    calibration: Calibration
    metrics: MetricValues


class Evaluator:
    """Predicts and judges a split, in batches of like length, shared by all processes.

    Args:
        eval_batch_size, max_tokens: a batch holds at most so many examples and tokens.
        loader_options: keyword arguments of `DataLoader`.
    """

    def __init__(
        self,
        task: Task,
        *,
        processes: DistributedContext,
        precision: Precision,
        eval_batch_size: int,
        max_tokens: int,
        loader_options: dict[str, object],
    ) -> None:
        self._task = task
        self._processes = processes
        self._precision = precision
        self._eval_batch_size = eval_batch_size
        self._max_tokens = max_tokens
        self._loader_options = loader_options

    @property
    def is_main(self) -> bool:
        """Whether this process writes what comes of an evaluation."""
        return self._processes.is_main

    def predict(
        self, model: nn.Module, split: str, *, on_batch: Callable[[], None] = lambda: None
    ) -> Predictions:
        """Return the predictions on `split`, one row an example, in the split's order.

        `on_batch` is called before every batch and may raise to break off. Out of memory halves the
        batches, from then on, and predicts the split anew.

        Raises:
            OutOfMemoryError: not even one example fits in memory.
        """
        while True:
            try:
                return self._predict(model, split, on_batch)
            except MEMORY_ERRORS as error:
                if not is_out_of_memory(error):
                    raise
                shortest = int(self._task.source(split).lengths.min())
                if self._max_tokens <= shortest or self._processes.count > 1:
                    raise OutOfMemoryError(
                        f"Memory ran out predicting {split}; lower `training.micro_batch_tokens` or "
                        "`model.max_length`."
                    ) from error
                self._max_tokens //= 2
            # Outside of the handler, whose traceback holds on to the failed batch.
            give_memory_back()
            logger.warning(
                "Out of memory predicting %s: its batches are cut to %d tokens.",
                split,
                self._max_tokens,
            )

    def _predict(self, model: nn.Module, split: str, on_batch: Callable[[], None]) -> Predictions:
        source = self._task.source(split)
        cut = cut_by_tokens(
            range(len(source.ids)),
            source.lengths,
            max_tokens=self._max_tokens,
            max_examples=self._eval_batch_size,
            packed=self._task.packs,
        )
        mine = cut[self._processes.rank :: self._processes.count]
        loader: DataLoader[Batch] = DataLoader(
            _Batches(source, mine),
            batch_size=None,
            worker_init_fn=leave_signals_to_main,
            **self._loader_options,  # type: ignore[arg-type]
        )
        parts: list[dict[str, np.ndarray]] = []
        with _in_evaluation_mode(model), self._precision.autocast():
            for batch in loader:
                on_batch()
                outputs = self._task.predict(model, self._processes.to_device(batch))
                parts.append({name: value.cpu().numpy() for name, value in outputs.items()})
        return _in_order(self._processes.gather((mine, parts)))

    def evaluate(
        self,
        model: nn.Module,
        split: str,
        *,
        calibration: Calibration | None = None,
        on_batch: Callable[[], None] = lambda: None,
    ) -> Evaluation:
        """Predict and judge `split`; without a calibration, fit one on these predictions.

        Raises:
            ValueError: no calibration for a split other than val, on which alone it may be fitted.
        """
        if calibration is None and split != "val":
            raise ValueError(f"A calibration is fitted on val alone, not on {split}.")
        predictions = self.predict(model, split, on_batch=on_batch)
        if calibration is None:
            calibration = self._task.calibrate(predictions)
        metrics = self._task.metrics(predictions, split=split, calibration=calibration)
        return Evaluation(predictions, calibration, metrics)


@contextmanager
def _in_evaluation_mode(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        # Not `inference_mode`, in which autocast would cast the weights for every batch.
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


def _in_order(shares: list[tuple[list[list[int]], list[dict[str, np.ndarray]]]]) -> Predictions:
    """Put the batches of all processes back into the split's order."""
    indices = np.concatenate([np.asarray(c, dtype=np.int64) for cut, _ in shares for c in cut])
    order = np.argsort(indices)
    names = next(parts[0] for _, parts in shares if parts)
    return {
        name: np.concatenate([part[name] for _, parts in shares for part in parts])[order]
        for name in names
    }
