"""How long a training takes on this machine, from some of its updates."""

import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from psy_agents_noaug.config.schema import TrainConfig, TrainingConfig
from psy_agents_noaug.data.examples import Example
from psy_agents_noaug.tasks.base import Task, TaskInputs
from psy_agents_noaug.tasks.build import build_task, load_encoders
from psy_agents_noaug.training.evaluator import Evaluator
from psy_agents_noaug.training.hardware import Hardware
from psy_agents_noaug.training.progress import NullProgress
from psy_agents_noaug.training.trainer import Trainer, TrainingObserver

N_UPDATES, MAX_SECONDS = 8, 10.0
_WARM_UP = 1
_N_EVALUATED = 48


@dataclass(frozen=True)
class TrainingTime:
    """How long a training takes, by some of its updates.

    Args:
        device: cpu, cuda or mps.
        n_updates: of the whole training, if nothing ends it early.
        seconds_per_update: mean of the measured ones.
        n_measured: updates that were measured.
        n_evaluations: on val, that of the report included.
        seconds_per_evaluation: predictions of val, without baselines, intervals and the report.
        examples_per_epoch: training examples.
    """

    device: str
    n_updates: int
    seconds_per_update: float
    n_measured: int
    n_evaluations: int
    seconds_per_evaluation: float
    examples_per_epoch: int

    @property
    def seconds(self) -> float:
        """Of the whole training."""
        return (
            self.n_updates * self.seconds_per_update
            + self.n_evaluations * self.seconds_per_evaluation
        )


class _Enough(Exception):  # noqa: N818  (nothing is wrong)
    pass


class _Clock(NullProgress):
    """Notes when each update ends, and ends the training after enough of them."""

    def __init__(self, n_updates: int, max_seconds: float) -> None:
        self._n_updates, self._max_seconds = n_updates, max_seconds
        self._ends: list[float] = [time.perf_counter()]

    def update(self, *, step: int, loss: float, examples: int, tokens: int) -> None:
        self._ends.append(time.perf_counter())
        is_late = step > _WARM_UP and self._ends[-1] - self._ends[0] > self._max_seconds
        if step >= self._n_updates or is_late:
            raise _Enough

    @property
    def seconds(self) -> list[float]:
        """Of each update after the first ones, which also allocate and load."""
        return [float(value) for value in np.diff(self._ends)[_WARM_UP:]]


def training_time(config: TrainConfig, task: Task, hardware: Hardware) -> TrainingTime:
    """Make some updates of the configured training, and predict some of val.

    The examples are drawn from those of an epoch. Nothing is written.

    Args:
        config: of the training.
        task: built on train and val; it is not trained.
        hardware: as the training's.
    """
    batch_size = config.training.train_batch_size
    pool, n_val = task.epoch_pool(0), len(task.pairs_of_examples("val"))
    measured = {
        "train": _drawn(task, "train", pool, N_UPDATES * batch_size),
        "val": _drawn(task, "val", np.arange(n_val), _N_EVALUATED),
    }
    # Encoders of its own, since the other task may have wrapped them in adapters.
    inputs = TaskInputs(
        load_encoders(config), task.inputs.criteria, measured, hardware.max_tokens_held
    )
    short = _without_end(config)
    own = build_task(short, inputs)
    clock = _Clock(N_UPDATES, MAX_SECONDS)
    trainer = Trainer(
        own, short, hardware, maximise=True, checkpoint_dir=Path(config.output_dir), metadata={}
    )
    with suppress(_Enough):
        trainer.fit(TrainingObserver(progress=clock))
    evaluator = Evaluator(own, hardware, eval_batch_size=config.training.eval_batch_size)
    source = own.source("val")
    began = time.perf_counter()
    evaluator.predict(own.model, source)
    per_example = (time.perf_counter() - began) / len(source.ids)
    return _whole(
        config.training,
        n_train=len(pool),
        seconds_per_update=float(np.mean(clock.seconds)),
        n_measured=len(clock.seconds),
        seconds_per_evaluation=per_example * n_val,
        device=hardware.distributed.device.type,
    )


def _whole(
    training: TrainingConfig,
    *,
    n_train: int,
    seconds_per_update: float,
    n_measured: int,
    seconds_per_evaluation: float,
    device: str,
) -> TrainingTime:
    """Return the time of the whole training."""
    per_epoch = -(-n_train // training.train_batch_size)
    n_updates = training.epochs * per_epoch
    n_updates = min(n_updates, training.max_steps or n_updates)
    return TrainingTime(
        device,
        n_updates,
        seconds_per_update,
        n_measured,
        # One after the last update in any case, and that of the report.
        n_evaluations=-(-n_updates // (training.eval_steps or per_epoch)) + 1,
        seconds_per_evaluation=seconds_per_evaluation,
        examples_per_epoch=n_train,
    )


def _drawn(task: Task, split: str, pool: np.ndarray, n_wanted: int) -> list[Example]:
    """Return the pairs of some examples; of train a met and an unmet pair are among them."""
    pairs, members = task.examples[split], task.pairs_of_examples(split)
    chosen = np.random.default_rng(0).permutation(pool)[:n_wanted].tolist()
    for wanted in (True, False):
        if not any((pairs[n].label > 0) is wanted for one in chosen for n in members[one]):
            chosen += [
                one
                for one in pool.tolist()
                if any((pairs[n].label > 0) is wanted for n in members[one])
            ][:1]
    return [pairs[number] for one in chosen for number in members[one]]


def _without_end(config: TrainConfig) -> TrainConfig:
    """Return the configuration for the drawn examples alone: all of them, and no evaluation."""
    many = 1_000_000
    training = {"epochs": N_UPDATES + 1, "max_steps": None, "eval_steps": many, "save_steps": None}
    return config.model_copy(
        update={
            "data": config.data.model_copy(update={"negatives": "all"}),
            "training": config.training.model_copy(update=training),
        }
    )
