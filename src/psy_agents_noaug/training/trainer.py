"""The training loop: one for every task, exact, interruptible, and the same update however cut."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from signal import SIGTERM
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from psy_agents_noaug.errors import Interrupted, NonFiniteError, OutOfMemoryError, faults_message
from psy_agents_noaug.tracking.base import Tracker
from psy_agents_noaug.training.batching import (
    Step,
    TrainingSteps,
    derived_seed,
    leave_signals_to_main,
)
from psy_agents_noaug.training.checkpoint import Checkpoint, save_checkpoint
from psy_agents_noaug.training.distributed import DistributedContext
from psy_agents_noaug.training.early_stopping import EarlyStopping
from psy_agents_noaug.training.evaluator import Evaluator
from psy_agents_noaug.training.optim import trainable
from psy_agents_noaug.training.precision import Precision, all_finite
from psy_agents_noaug.training.progress import TrainingProgress
from psy_agents_noaug.training.protocols import Calibration, MetricValues, Task
from psy_agents_noaug.training.signals import StopSignals
from psy_agents_noaug.utils.out_of_memory import (
    MEMORY_ERRORS,
    give_memory_back,
    is_out_of_memory,
)

logger = logging.getLogger(__name__)

BEST = "best_checkpoint.pt"
LAST = "last_checkpoint.pt"


@dataclass
class TrainerState:
    """Where the loop is. With the weights and the optimizer it is all that resuming needs.

    step: updates done; evaluated_step: the last step that was evaluated; loss_sums (of each part of
    the loss), loss_count: over the examples since then; max_tokens: the micro-batches' token budget,
    halved when memory ran out; seconds: spent training; history: a row an evaluation.
    """

    max_tokens: int
    step: int = 0
    evaluated_step: int = 0
    loss_sums: list[float] = field(default_factory=list)
    loss_count: int = 0
    token_count: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)


class TrainingOutcome(NamedTuple):
    """best_step, best_value: of the monitor (None where no evaluation defined it)."""

    step: int
    best_step: int | None
    best_value: float | None
    stopped_early: bool
    history: list[dict[str, Any]]


class _StopRequested(Exception):  # noqa: N818  (control flow out of an evaluation, not an error)
    pass


class Trainer:
    """Runs updates until the last step, early stopping or a signal.

    Args:
        task: what to train; model: its model as `DistributedContext.wrap` returned it.
        steps: the updates; total_steps: how many of them; max_tokens: a micro-batch's token budget.
        max_grad_norm: gradients are clipped to this norm; None never.
        monitor: metric key with its split, e.g. `val/f1_macro`, that decides the best checkpoint.
        eval_steps: evaluate every so many updates; None: at the end of each epoch.
        save_steps: save every so many updates besides at each evaluation.
        checkpoint_dir: where `best_checkpoint.pt` and `last_checkpoint.pt` are written.
        config, metadata: stored in checkpoints as they are.
        on_evaluation: called in the main process with the history after every evaluation.
    """

    def __init__(
        self,
        task: Task,
        model: nn.Module,
        *,
        steps: Callable[[int], TrainingSteps],
        total_steps: int,
        max_tokens: int,
        seed: int,
        optimizer: torch.optim.Optimizer,
        scheduler: torch.optim.lr_scheduler.LRScheduler,
        max_grad_norm: float | None,
        monitor: str,
        early_stopping: EarlyStopping,
        eval_steps: int | None,
        save_steps: int | None,
        loader_options: dict[str, object],
        processes: DistributedContext,
        precision: Precision,
        evaluator: Evaluator,
        tracker: Tracker,
        progress: TrainingProgress,
        checkpoint_dir: Path,
        config: Mapping[str, Any],
        metadata: Mapping[str, Any],
        on_evaluation: Callable[[list[dict[str, Any]]], None] = lambda history: None,
    ) -> None:
        self._task = task
        self._model = model
        self._steps = steps
        self._total_steps = total_steps
        self._seed = seed
        self._optimizer = optimizer
        self._scheduler = scheduler
        self._max_grad_norm = max_grad_norm
        self._monitor = monitor
        self._early_stopping = early_stopping
        self._save_steps = save_steps
        self._loader_options = loader_options
        self._processes = processes
        self._precision = precision
        self._evaluator = evaluator
        self._tracker = tracker
        self._progress = progress
        self._checkpoint_dir = checkpoint_dir
        self._config = dict(config)
        self._metadata = dict(metadata)
        self._on_evaluation = on_evaluation
        self._position = TrainerState(max_tokens=max_tokens)
        self._parameters = list(trainable(model))
        self._eval_steps = eval_steps or steps(max_tokens).steps_per_epoch
        self._steps_per_epoch = steps(max_tokens).steps_per_epoch
        self._stop_signal = 0
        self._calibration: Calibration = {}
        self._metrics: MetricValues = {}

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take up the state of a last checkpoint; what follows is as if there had been no stop."""
        assert checkpoint.resume is not None
        self._task.model.load_state_dict(checkpoint.weights)
        self._optimizer.load_state_dict(checkpoint.resume["optimizer"])
        self._scheduler.load_state_dict(checkpoint.resume["scheduler"])
        self._precision.load_state_dict(checkpoint.resume["scaler"])
        self._early_stopping.load_state_dict(checkpoint.resume["early_stopping"])
        self._position = TrainerState(**checkpoint.resume["position"])
        self._calibration, self._metrics = checkpoint.calibration, checkpoint.metrics

    def fit(self) -> TrainingOutcome:
        """Train to the end.

        Raises:
            Interrupted: a signal came; the state is saved.
            NonFiniteError: a loss or gradient is NaN or infinite; the weights are untouched by it.
            OutOfMemoryError: not even one example fits in memory.
        """
        with self._progress, StopSignals() as signals:
            try:
                self._run(signals)
            except _StopRequested:
                self._save_last()
                # A process that ends early would have the launcher end the one that still saves.
                self._processes.wait()
                raise Interrupted(
                    f"Stopped at step {self._position.step} by signal {self._stop_signal}; the state "
                    "is saved. Go on with resume=auto.",
                    exit_code=128 + self._stop_signal,
                ) from None
        if self._early_stopping.best_step is None:
            logger.warning(
                "%s was undefined throughout: the last weights stand in for the best.",
                self._monitor,
            )
            self._save(BEST, resume=None)
        return TrainingOutcome(
            step=self._position.step,
            best_step=self._early_stopping.best_step,
            best_value=self._early_stopping.best,
            stopped_early=self._position.step < self._total_steps,
            history=self._position.history,
        )

    def _run(self, signals: StopSignals) -> None:
        position = self._position
        steps: Iterator[Step] | None = None
        self._model.train()
        while True:
            if self._evaluation_is_due():
                self._evaluate(signals)
                self._save_last()
            if position.step >= self._total_steps or self._early_stopping.should_stop:
                return
            steps = steps or self._load_from(position.step)
            began = time.perf_counter()
            budget = position.max_tokens
            loss, n_examples, n_tokens = self._train_step(next(steps), signals)
            position.step += 1
            position.seconds += time.perf_counter() - began
            self._progress.update(
                step=position.step, loss=loss, examples=n_examples, tokens=n_tokens
            )
            if position.max_tokens != budget:
                steps = None
            if self._stop_signal:
                raise _StopRequested
            if self._save_steps and position.step % self._save_steps == 0:
                self._save_last()

    def _load_from(self, step: int) -> Iterator[Step]:
        return iter(
            DataLoader(
                self._steps(self._position.max_tokens),
                batch_size=None,
                sampler=range(step, self._total_steps),
                worker_init_fn=leave_signals_to_main,
                **self._loader_options,  # type: ignore[arg-type]
            )
        )

    def _train_step(self, step: Step, signals: StopSignals) -> tuple[float, int, int]:
        """Make one update. Return its mean loss, examples and real tokens, over all processes."""
        losses = self._gradients_within_memory(step)
        mine = torch.cat([rows.float().reshape(len(rows), -1) for rows in losses]).sum(dim=0)
        counts = mine.new_tensor([step.n_tokens, signals.received])
        totals = self._processes.sum(torch.cat([mine * step.weight, counts]))
        *loss_sums, n_tokens, was_signalled = totals.tolist()
        loss = sum(loss_sums) / step.n_examples
        if not torch.isfinite(totals).all():
            self._refuse_update(step, losses)
        self._precision.unscale(self._optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, self._max_grad_norm or float("inf"))
        if not self._precision.skips_overflow and not torch.isfinite(norm):
            self._refuse_update(step, None)
        if self._precision.step(self._optimizer):
            self._scheduler.step()
        elif self._precision.has_collapsed:
            self._refuse_update(step, None)
        # All processes stop at the step at which any of them was asked to, and at no other.
        if was_signalled:
            self._stop_signal = signals.received or SIGTERM
        before = self._position.loss_sums or [0.0] * len(loss_sums)
        self._position.loss_sums = [a + b for a, b in zip(before, loss_sums, strict=True)]
        self._position.loss_count += step.n_examples
        self._position.token_count += int(n_tokens)
        return loss, step.n_examples, int(n_tokens)

    def _gradients_within_memory(self, step: Step) -> list[Tensor]:
        """Accumulate the step's gradients; out of memory halves the budget and repeats the step."""
        while True:
            try:
                return self._gradients(step)
            except MEMORY_ERRORS as error:
                if not is_out_of_memory(error):
                    raise
                self._shrink_micro_batches(step, error)
            # Outside of the handler, whose traceback holds on to the failed step's activations.
            self._optimizer.zero_grad(set_to_none=True)
            give_memory_back()
            step = self._steps(self._position.max_tokens)[self._position.step]

    def _gradients(self, step: Step) -> list[Tensor]:
        """Backpropagate all micro-batches. Return each one's losses, `[B]`, detached."""
        torch.manual_seed(derived_seed(self._seed, self._position.step, self._processes.rank))
        self._optimizer.zero_grad(set_to_none=True)
        # Data-parallel training averages gradients over processes; the loss is a sum over them.
        scale = step.weight * self._processes.count / step.n_examples
        collected: list[Tensor] = []
        with self._precision.autocast():
            for number, batch in enumerate(step.batches, start=1):
                is_last = number == len(step.batches)
                with nullcontext() if is_last else self._processes.without_sync(self._model):
                    losses = self._task.loss(self._model, self._processes.to_device(batch))
                    self._precision.backward(losses.sum() * scale)
                collected.append(losses.detach())
        return collected

    def _shrink_micro_batches(self, step: Step, error: BaseException) -> None:
        single = all(len(indices) == 1 for indices in step.indices)
        if single or self._processes.count > 1:
            raise OutOfMemoryError(
                "Memory ran out with one example at a time; lower `training.micro_batch_tokens` (which "
                "bounds what a post of many windows holds) or `model.max_length`, or set "
                "`training.gradient_checkpointing=true`."
                if single
                else "Memory ran out; lower `training.micro_batch_tokens` (several processes cannot "
                "agree on it while they run)."
            ) from error
        self._position.max_tokens //= 2
        logger.warning(
            "Out of memory at step %d: micro-batches are cut to %d tokens and the step is repeated. "
            "Set training.micro_batch_tokens to this to start there.",
            self._position.step,
            self._position.max_tokens,
        )

    def _refuse_update(self, step: Step, losses: list[Tensor] | None) -> None:
        """Name the examples whose loss is not finite, or all of the step's where the gradient isn't."""
        ids = self._task.source("train").ids
        bad = [
            ids[index]
            for number, indices in enumerate(step.indices)
            for row, index in enumerate(indices)
            if losses is None or not all_finite([losses[number][row]])
        ]
        everywhere = sorted(name for share in self._processes.gather(bad) for name in share)
        what = "gradient" if losses is None else "loss"
        raise NonFiniteError(
            faults_message(
                f"The {what} is NaN or infinite at step {self._position.step}; the weights are as they "
                "were before it. Lower `training.learning_rate`, or use `training.amp=off` or bf16. "
                "Examples:",
                everywhere,
            )
        )

    def _evaluation_is_due(self) -> bool:
        position = self._position
        if position.step == position.evaluated_step:
            return False
        return position.step % self._eval_steps == 0 or position.step == self._total_steps

    def _evaluate(self, signals: StopSignals) -> None:
        def stop_if_asked() -> None:
            # Several processes would not break off at the same batch; they stop after the next step.
            if signals.received and self._processes.count == 1:
                self._stop_signal = signals.received
                raise _StopRequested

        position = self._position
        evaluation = self._evaluator.evaluate(self._task.model, "val", on_batch=stop_if_asked)
        position.evaluated_step = position.step
        self._calibration, self._metrics = evaluation.calibration, evaluation.metrics
        metrics: MetricValues = {f"val/{key}": value for key, value in evaluation.metrics.items()}
        row = self._history_row(metrics)
        position.history.append(row)
        position.loss_sums, position.loss_count = [], 0
        position.token_count, position.seconds = 0, 0.0
        monitored = metrics[self._monitor]
        assert not isinstance(monitored, str)
        if self._early_stopping.update(monitored, step=position.step):
            self._save(BEST, resume=None)
        logger.info(
            "step %d, epoch %.2f: train loss %.4f, %s %s (best %s at step %s)",
            position.step,
            row["epoch"],
            row["train/loss"],
            self._monitor,
            _shown(monitored),
            _shown(self._early_stopping.best),
            self._early_stopping.best_step,
        )
        if self._processes.is_main:
            self._tracker.log_metrics(
                {key: value for key, value in row.items() if key not in ("step", "epoch")},
                step=position.step,
            )
            self._on_evaluation(position.history)

    def _history_row(self, metrics: MetricValues) -> dict[str, Any]:
        position = self._position
        seconds = max(position.seconds, 1e-9)
        return {
            "step": position.step,
            "epoch": position.step / self._steps_per_epoch,
            "train/loss": sum(position.loss_sums) / max(position.loss_count, 1),
            **{
                f"train/loss_{part}": value / max(position.loss_count, 1)
                for part, value in zip(self._task.loss_parts, position.loss_sums, strict=False)
            },
            "train/learning_rate": self._scheduler.get_last_lr()[0],
            "train/examples_per_second": position.loss_count / seconds,
            "train/tokens_per_second": position.token_count / seconds,
            **{key: value for key, value in metrics.items() if not isinstance(value, str)},
        }

    def _save_last(self) -> None:
        self._save(
            LAST,
            resume={
                "optimizer": self._optimizer.state_dict(),
                "scheduler": self._scheduler.state_dict(),
                "scaler": self._precision.state_dict(),
                "early_stopping": self._early_stopping.state_dict(),
                "position": asdict(self._position),
            },
        )

    def _save(self, name: str, *, resume: dict[str, Any] | None) -> None:
        if not self._processes.is_main:
            return
        save_checkpoint(
            self._checkpoint_dir / name,
            Checkpoint(
                task=self._task.name,
                step=self._position.step,
                config=self._config,
                metadata=self._metadata,
                weights=dict(self._task.model.state_dict()),
                calibration=self._calibration,
                metrics=self._metrics,
                resume=resume,
            ),
        )


def _shown(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"
