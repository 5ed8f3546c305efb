"""The training loop of every task: reproducible, resumable, and independent of the micro-batches."""

import logging
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from psy_agents_noaug.config.schema import TrainConfig
from psy_agents_noaug.errors import Interrupted, NonFiniteError, OutOfMemoryError, faults_message
from psy_agents_noaug.metrics.tables import format_value
from psy_agents_noaug.tasks.base import DecisionRule, MetricValues, Task
from psy_agents_noaug.tracking.base import NullTracker, Tracker
from psy_agents_noaug.training.batching import Step, TrainingSteps
from psy_agents_noaug.training.checkpoint import Checkpoint, save_checkpoint
from psy_agents_noaug.training.distributed import flat_gradients
from psy_agents_noaug.training.early_stopping import EarlyStopping
from psy_agents_noaug.training.evaluator import Evaluator, PredictionStopped
from psy_agents_noaug.training.hardware import Hardware
from psy_agents_noaug.training.loading import loaded
from psy_agents_noaug.training.names import BEST, LAST
from psy_agents_noaug.training.optim import build_optimizer, build_scheduler, trainable
from psy_agents_noaug.training.precision import all_finite
from psy_agents_noaug.training.progress import BestSoFar, NullProgress, TrainingProgress
from psy_agents_noaug.training.refit import RefitDecisions
from psy_agents_noaug.training.resuming import check_complete
from psy_agents_noaug.utils.host import to_device
from psy_agents_noaug.utils.out_of_memory import (
    MEMORY_ERRORS,
    cause_of,
    explained_memory_errors,
    give_memory_back,
    is_out_of_memory,
)
from psy_agents_noaug.utils.reproducibility import derived_seed
from psy_agents_noaug.utils.signals import StopSignals

logger = logging.getLogger(__name__)


@dataclass
class TrainerState:
    """The state of the loop that a resumed run needs, besides weights, optimizer and scheduler.

    Args:
        max_tokens: token budget of a micro-batch; halved when memory runs out.
        step: number of updates done.
        evaluated_step: step of the last evaluation.
        loss_sums: of each part of the loss, over the examples since the last evaluation.
        loss_count: examples since the last evaluation.
        token_count: tokens since the last evaluation, without padding.
        seconds: training time since the last evaluation.
        history: one row per evaluation.
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
    """The result of a training.

    Args:
        step: number of updates done.
        best_step: step of the best evaluation by the monitor; None if the monitor was never defined.
        best_value: of the monitor; None as for `best_step`.
        stopped_early: whether early stopping ended the training.
        history: one row per evaluation.
    """

    step: int
    best_step: int | None
    best_value: float | None
    stopped_early: bool
    history: list[dict[str, Any]]


@dataclass(frozen=True)
class TrainingObserver:
    """Receives the events of a training, in the main process only.

    Args:
        tracker: receives the metrics of every evaluation.
        progress: receives every update and the end of every evaluation.
        on_evaluation: receives the rows of history.csv after every evaluation; may raise StoppedError.
    """

    tracker: Tracker = field(default_factory=NullTracker)
    progress: TrainingProgress = field(default_factory=NullProgress)
    on_evaluation: Callable[[list[dict[str, Any]]], None] = lambda history: None


class _StopRequested(Exception):  # noqa: N818  (control flow out of an evaluation, not an error)
    pass


class Trainer:
    """Runs updates until the last step, early stopping or a signal.

    Args:
        task: the trained task.
        config: of the run; stored in checkpoints.
        hardware: processes, precision and the tokens per micro-batch.
        maximise: whether a higher `training.monitor` is better.
        checkpoint_dir: folder of `best_checkpoint.pt` and `last_checkpoint.pt`.
        metadata: stored in checkpoints.
        refit: in place of val, which the task then does not have: nothing is evaluated, training does
            not stop early, and the last weights are the best.

    Attributes:
        total_steps: updates of the whole training.
        eval_steps: updates between two evaluations; there is also one after the last.
    """

    def __init__(
        self,
        task: Task,
        config: TrainConfig,
        hardware: Hardware,
        *,
        maximise: bool,
        checkpoint_dir: Path,
        metadata: Mapping[str, Any],
        refit: RefitDecisions | None = None,
    ) -> None:
        settings = config.training
        self._refit = refit
        self._task = task
        self._config = config
        self._settings = settings
        self._distributed = hardware.distributed
        self._precision = hardware.precision
        self._loader_options = hardware.loader_options
        self._checkpoint_dir = checkpoint_dir
        self._metadata = dict(metadata)
        self._state = TrainerState(max_tokens=hardware.micro_batch_tokens(packed=task.packs))
        self._steps_per_epoch = self._steps().steps_per_epoch
        self.eval_steps = settings.eval_steps or self._steps_per_epoch
        all_steps = settings.epochs * self._steps_per_epoch
        scheduled_steps = self.total_steps = min(all_steps, settings.max_steps or all_steps)
        if refit is not None:
            wanted = max(1, round(refit.epochs * self._steps_per_epoch))
            self.total_steps = min(wanted, scheduled_steps)
        self._distributed.place(task.model)
        self._model = task.model
        self._parameters = list(trainable(task.model))
        self._optimizer = build_optimizer(
            task.model,
            encoders=task.encoder_modules,
            learning_rate=settings.learning_rate,
            head_learning_rate=settings.head_learning_rate,
            weight_decay=settings.weight_decay,
            betas=(settings.adam_beta1, settings.adam_beta2),
            epsilon=settings.adam_epsilon,
        )
        self._scheduler = build_scheduler(
            settings.scheduler,
            self._optimizer,
            total_steps=scheduled_steps,
            warmup_ratio=settings.warmup_ratio,
        )
        stopping = settings.early_stopping
        self._early_stopping = EarlyStopping(
            mode="max" if maximise else "min",
            patience=stopping.patience if stopping and refit is None else None,
            min_delta=stopping.min_delta if stopping else 0.0,
        )
        self._evaluator = Evaluator(task, hardware, eval_batch_size=settings.eval_batch_size)
        self._rule: DecisionRule = refit.rule if refit else {}
        self._metrics: MetricValues = {}
        self._stop_signal = 0
        self._observer = TrainingObserver()

    @property
    def step(self) -> int:
        """Number of updates done."""
        return self._state.step

    @property
    def evaluated_step(self) -> int:
        """Step of the last evaluation."""
        return self._state.evaluated_step

    @property
    def best(self) -> BestSoFar:
        """The best evaluation so far."""
        stopping = self._early_stopping
        epoch = None if stopping.best_step is None else stopping.best_step / self._steps_per_epoch
        return BestSoFar(self._settings.monitor, stopping.best, epoch, stopping.patience_left)

    @property
    def history(self) -> list[dict[str, Any]]:
        """One row per evaluation so far."""
        return self._state.history

    def restore(self, checkpoint: Checkpoint) -> None:
        """Restore the state of a last checkpoint. Training continues as if it had not been stopped.

        Raises:
            LookupError, TypeError, ValueError, AttributeError, RuntimeError: a part is absent or unfit.
        """
        assert checkpoint.resume is not None
        check_complete(
            checkpoint.resume, state=asdict(self._state), scaler=self._precision.state_dict()
        )
        self._task.model.load_state_dict(checkpoint.weights)
        self._optimizer.load_state_dict(checkpoint.resume["optimizer"])
        self._scheduler.load_state_dict(checkpoint.resume["scheduler"])
        self._precision.load_state_dict(checkpoint.resume["scaler"])
        self._early_stopping.load_state_dict(checkpoint.resume["early_stopping"])
        self._state = TrainerState(**checkpoint.resume["state"])
        self._rule, self._metrics = checkpoint.decision_rule, checkpoint.metrics

    def fit(self, observer: TrainingObserver) -> TrainingOutcome:
        """Train until the last step or early stopping.

        Args:
            observer: receives every update and evaluation.

        Raises:
            Interrupted: a signal stopped the training; its state is saved.
            LoaderError: a worker process that collates batches died or hung.
            NonFiniteError: a loss, gradient, score or weight is NaN or infinite; the weights are not
                updated with it, or not saved.
            OutOfMemoryError: a micro-batch of one example does not fit in memory, or the optimizer's
                state does not.
            StoppedError: `observer.on_evaluation` stopped the training.
        """
        self._observer = observer
        with observer.progress, StopSignals() as signals:
            try:
                with ExitStack() as loading:
                    self._run(signals, loading)
            except _StopRequested:
                self._save_last()
                # Otherwise the launcher would end the main process, which is still saving, when another
                # process ends.
                self._distributed.wait()
                raise Interrupted(
                    f"Stopped at step {self._state.step} by signal {self._stop_signal}; the state "
                    "is saved. Continue with resume=auto.",
                    exit_code=128 + self._stop_signal,
                ) from None
        if signals.received:  # after the loop had looked for the last time
            signal.raise_signal(signals.received)
        if self._early_stopping.best_step is None:
            if self._refit is None:
                logger.warning(
                    "%s was undefined in every evaluation: the last weights are saved as the best.",
                    self._settings.monitor,
                )
            self._save(BEST, resume=None)
        return TrainingOutcome(
            step=self._state.step,
            best_step=self._early_stopping.best_step,
            best_value=self._early_stopping.best,
            stopped_early=self._state.step < self.total_steps,
            history=self._state.history,
        )

    def _run(self, signals: StopSignals, loading: ExitStack) -> None:
        state = self._state
        steps: Iterator[Step] | None = None
        self._model.train()
        while True:
            if self._evaluation_is_due():
                self._evaluate(signals)
                self._save_last()
                self._observer.progress.evaluated(step=state.step, best=self.best)
            if state.step >= self.total_steps or self._early_stopping.should_stop:
                self._stop_signal = max(self._distributed.gather(signals.received))
                if self._stop_signal:
                    raise _StopRequested
                return
            if steps is None:
                with self._distributed.shared_errors():
                    steps = loading.enter_context(self._load_from(state.step, signals))
            began = time.perf_counter()
            budget = state.max_tokens
            loss, n_examples, n_tokens = self._train_step(steps, signals)
            state.step += 1
            state.seconds += time.perf_counter() - began
            self._observer.progress.update(
                step=state.step, loss=loss, examples=n_examples, tokens=n_tokens
            )
            if state.max_tokens != budget:
                loading.close()
                steps = None
            if self._stop_signal:
                raise _StopRequested
            if self._settings.save_steps and state.step % self._settings.save_steps == 0:
                self._save_last()

    def _steps(self) -> TrainingSteps:
        """Return the updates, cut into micro-batches by the current token budget."""
        return TrainingSteps(
            self._task,
            seed=self._config.seed,
            train_batch_size=self._settings.train_batch_size,
            max_tokens=self._state.max_tokens,
            max_examples=self._settings.micro_batch_size,
            rank=self._distributed.rank,
            world_size=self._distributed.count,
        )

    def _load_from(self, step: int, signals: StopSignals) -> AbstractContextManager[Iterator[Step]]:
        def stop_on_signal() -> None:
            if signals.received:
                raise _StopRequested

        return loaded(
            self._steps(),
            range(step, self.total_steps),
            self._loader_options,
            while_waiting=stop_on_signal,
        )

    def _train_step(self, steps: Iterator[Step], signals: StopSignals) -> tuple[float, int, int]:
        """Make one update. Return its mean loss and its numbers of examples and tokens."""
        step, losses = self._gradients_within_memory(steps, signals)
        own_sums = torch.cat([rows.float().reshape(len(rows), -1) for rows in losses]).sum(dim=0)
        counts = torch.tensor([step.n_tokens, signals.received], dtype=own_sums.dtype)
        own = torch.cat([own_sums * step.weight, to_device(counts, own_sums.device)])
        totals = self._distributed.sum(own)
        self._precision.unscale(self._optimizer)
        norm = torch.nn.utils.clip_grad_norm_(
            self._parameters, self._settings.max_grad_norm or float("inf")
        )
        # Read together, because the host waits for a GPU each time that it reads.
        *loss_sums, n_tokens, was_signalled, total_norm = torch.cat(
            [totals, norm.to(totals).reshape(1)]
        ).tolist()
        loss = sum(loss_sums) / step.n_examples
        if not math.isfinite(loss):
            self._refuse_update(step, losses)
        if not self._precision.skips_overflow and not math.isfinite(total_norm):
            self._refuse_update(step, None)
        if self._update():
            self._scheduler.step()
        elif self._precision.has_collapsed:
            self._refuse_update(step, None)
        # If any process has received a signal, all of them stop after this step.
        if was_signalled:
            self._stop_signal = signals.received or signal.SIGTERM
        before = self._state.loss_sums or [0.0] * len(loss_sums)
        self._state.loss_sums = [a + b for a, b in zip(before, loss_sums, strict=True)]
        self._state.loss_count += step.n_examples
        self._state.token_count += int(n_tokens)
        return loss, step.n_examples, int(n_tokens)

    def _update(self) -> bool:
        """Update the weights and return whether they changed.

        Raises:
            OutOfMemoryError: there is no memory for the optimizer's state, which the first update makes.
        """
        if self._optimizer.state:
            return self._precision.step(self._optimizer)
        with (
            self._distributed.shared_errors(),
            explained_memory_errors(
                "the optimizer's state takes twice the memory of the trained weights, whatever the "
                "batch. Train fewer weights (`model.lora`), or choose a smaller encoder (`model=minilm`)"
            ),
        ):
            return self._precision.step(self._optimizer)

    def _gradients_within_memory(
        self, steps: Iterator[Step], signals: StopSignals
    ) -> tuple[Step, list[Tensor]]:
        """Accumulate the gradients of the next step. Out of memory halves the budget and repeats it.

        Processes exchange nothing before all of them have their gradients, so that one without a batch
        or without memory does not leave the others waiting.

        Returns:
            The step, cut as it was calculated, and the losses of each of its micro-batches.
        """
        while True:
            step, losses, flat = None, None, None
            with self._distributed.shared_errors():
                with suppress(_StopRequested):
                    step = next(steps)
                if step is not None:
                    losses, flat = self._gradients_unless_out_of_memory(step)
            if not self._distributed.any(losses is None):
                assert step is not None
                assert losses is not None
                if flat is not None:
                    self._distributed.sum_gradients(flat, self._parameters)
                return step, losses
            # A process that waited for its batch was asked to stop: all stop before this update.
            if self._distributed.any(step is None):
                self._stop_signal = max(self._distributed.gather(signals.received))
                raise _StopRequested
            assert step is not None
            self._shrink_micro_batches(step, is_out_here=losses is None)
            self._optimizer.zero_grad(set_to_none=True)
            give_memory_back()
            steps = map(self._steps().__getitem__, [self._state.step])

    def _gradients_unless_out_of_memory(
        self, step: Step
    ) -> tuple[list[Tensor] | None, Tensor | None]:
        """Return the losses of `_gradients`, None without memory, and what to sum over processes.

        The traceback of the error, which references the activations of the step, ends here.
        """
        try:
            losses = self._gradients(step)
            return losses, flat_gradients(self._parameters) if self._distributed.count > 1 else None
        except MEMORY_ERRORS as error:
            if not is_out_of_memory(error):
                raise
            logger.warning("Memory ran out: %s", cause_of(error))
            return None, None

    def _gradients(self, step: Step) -> list[Tensor]:
        """Backpropagate all micro-batches. Return the detached losses of each, `[B]` or `[B, parts]`."""
        torch.manual_seed(derived_seed(self._config.seed, self._state.step, self._distributed.rank))
        self._optimizer.zero_grad(set_to_none=True)
        # The loss of an update is a sum over its processes.
        scale = step.weight / step.n_examples
        collected: list[Tensor] = []
        with self._precision.autocast():
            for batch in step.batches:
                losses = self._task.loss(self._model, self._distributed.to_device(batch))
                self._precision.backward(losses.sum() * scale)
                collected.append(losses.detach())
        return collected

    def _shrink_micro_batches(self, step: Step, *, is_out_here: bool) -> None:
        """Halve the token budget in every process.

        Args:
            step: this process's share of the update.
            is_out_here: whether it is this process whose memory ran out.

        Raises:
            OutOfMemoryError: memory ran out with one example at a time.
        """
        single = all(len(indices) == 1 for indices in step.indices)
        with self._distributed.shared_errors():
            if is_out_here and single:
                raise OutOfMemoryError(
                    "Memory ran out with one example at a time; lower `training.micro_batch_tokens` "
                    "(which limits the memory of a post with many windows) or `model.max_length`, or "
                    "set `training.gradient_checkpointing=true`."
                )
        self._state.max_tokens //= 2
        logger.warning(
            "Out of memory at step %d: micro-batches now have at most %d tokens, and the step is "
            "repeated. Set training.micro_batch_tokens to this number to start with it.",
            self._state.step,
            self._state.max_tokens,
        )

    def _refuse_update(self, step: Step, losses: list[Tensor] | None) -> None:
        """Raise an error that names the examples with a non-finite loss.

        Args:
            step: this process's share of the update.
            losses: of its micro-batches; None if the gradient is not finite, which names all examples.

        Raises:
            NonFiniteError: always.
        """
        ids = self._task.source("train").ids
        bad = [
            ids[index]
            for number, indices in enumerate(step.indices)
            for row, index in enumerate(indices)
            if losses is None or not all_finite([losses[number][row]])
        ]
        bad_anywhere = sorted(name for share in self._distributed.gather(bad) for name in share)
        what = "gradient" if losses is None else "loss"
        weights = (
            "the weights were not updated"
            if all_finite(self._parameters)
            else "since an earlier update, weights are NaN or infinite too, and are not saved"
        )
        with self._distributed.shared_errors():
            raise NonFiniteError(
                faults_message(
                    f"The {what} is NaN or infinite at step {self._state.step}; {weights}. Lower "
                    "`training.learning_rate`, or use `training.amp=off` or bf16. Examples:",
                    bad_anywhere,
                )
            )

    def _evaluation_is_due(self) -> bool:
        state = self._state
        if state.step == state.evaluated_step:
            return False
        return state.step % self.eval_steps == 0 or state.step == self.total_steps

    def _evaluate(self, signals: StopSignals) -> None:
        state = self._state
        metrics = self._metrics_on_val(signals) if self._refit is None else {}
        state.evaluated_step = state.step
        row = self._history_row(metrics)
        state.history.append(row)
        state.loss_sums, state.loss_count = [], 0
        state.token_count, state.seconds = 0, 0.0
        on_val = self._monitored(metrics) if metrics else ""
        logger.info(
            "step %d, epoch %.2f: train loss %.4f%s",
            state.step,
            row["epoch"],
            row["train/loss"],
            on_val,
        )
        with self._distributed.shared_errors():
            if self._distributed.is_main:
                self._observer.tracker.log_metrics(
                    {key: value for key, value in row.items() if key not in ("step", "epoch")},
                    step=state.step,
                )
                self._observer.on_evaluation(state.history)

    def _metrics_on_val(self, signals: StopSignals) -> MetricValues:
        try:
            evaluation = self._evaluator.evaluate(
                self._task.model, "val", should_stop=lambda: signals.received > 0
            )
        except PredictionStopped:
            self._stop_signal = signals.received or signal.SIGTERM
            raise _StopRequested from None
        self._rule, self._metrics = evaluation.predicted.rule, evaluation.metrics
        return {f"val/{key}": value for key, value in evaluation.metrics.items()}

    def _monitored(self, metrics: MetricValues) -> str:
        """Save the weights if they are the best so far. Return the monitor's values in words."""
        value = metrics[self._settings.monitor]
        assert not isinstance(value, str)
        if self._early_stopping.update(value, step=self._state.step):
            self._save(BEST, resume=None)
        best = format_value(self._early_stopping.best, ".4f")
        return (
            f", {self._settings.monitor} {format_value(value, '.4f')} (best {best} at step "
            f"{self._early_stopping.best_step})"
        )

    def _history_row(self, metrics: MetricValues) -> dict[str, Any]:
        state = self._state
        seconds = max(state.seconds, 1e-9)
        return {
            "step": state.step,
            "epoch": state.step / self._steps_per_epoch,
            "train/loss": sum(state.loss_sums) / max(state.loss_count, 1),
            **{
                f"train/loss_{part}": value / max(state.loss_count, 1)
                for part, value in zip(self._task.loss_parts, state.loss_sums, strict=False)
            },
            "train/learning_rate": self._scheduler.get_last_lr()[0],
            "train/examples_per_second": state.loss_count / seconds,
            "train/tokens_per_second": state.token_count / seconds,
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
                "state": asdict(self._state),
                "n_processes": self._distributed.count,
            },
        )

    def _save(self, name: str, *, resume: dict[str, Any] | None) -> None:
        with self._distributed.shared_errors():
            if not self._distributed.is_main:
                return
            save_checkpoint(
                self._checkpoint_dir / name,
                Checkpoint(
                    task=self._task.name,
                    step=self._state.step,
                    config=self._config.model_dump(),
                    metadata=self._metadata,
                    weights=dict(self._task.model.state_dict()),
                    decision_rule=self._rule,
                    metrics=self._metrics,
                    resume=resume,
                ),
            )
