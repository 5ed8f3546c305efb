"""Which examples an update sees, and how they are cut into micro-batches.

Everything is a pure function of (seed, epoch, position): nothing of it needs saving to resume.
"""

import signal
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from torch.utils.data import Dataset

from psy_agents_noaug.errors import DataError
from psy_agents_noaug.tasks.base import Batch, Task
from psy_agents_noaug.utils.reproducibility import derived_seed


class Step(NamedTuple):
    """One process's share of one update.

    batches: the collated micro-batches; indices: their examples; weights: 1, or 0 for a stand-in
    that keeps a process without examples in step with the others; n_examples: those of the whole
    update, over all processes; n_tokens: real tokens of this share.
    """

    batches: list[Batch]
    indices: list[list[int]]
    weight: float
    n_examples: int
    n_tokens: int


def leave_signals_to_main(worker: int) -> None:
    """Let a loader's worker outlive a signal to the whole process group, until the state is saved."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def cut_by_tokens(
    indices: Sequence[int],
    lengths: np.ndarray,
    *,
    max_tokens: int,
    max_examples: int | None = None,
    packed: bool = False,
) -> list[list[int]]:
    """Sort by length, longest first, and cut so that a micro-batch fits the token budget.

    That budget counts padding too, unless they are `packed`. A single example above the budget gets a
    micro-batch of its own. Ties keep the given order.
    """
    ordered = sorted(indices, key=lambda index: -int(lengths[index]))
    batches: list[list[int]] = []
    cost = 0
    for index in ordered:
        # The first of a micro-batch is its longest, so it sets the padded width.
        width = int(lengths[index if packed or not batches else batches[-1][0]])
        fits = (
            batches
            and cost + width <= max_tokens
            and (max_examples is None or len(batches[-1]) < max_examples)
        )
        if fits:
            batches[-1].append(index)
            cost += width
        else:
            batches.append([index])
            cost = int(lengths[index])
    return batches


class TrainingSteps(Dataset[Step]):
    """The whole training as a sequence: item k is update k, for one of `world_size` processes.

    An epoch's pool is shuffled by (seed, epoch); update k takes the next `train_batch_size` examples,
    sorts them by length, deals them to the processes in turn, and cuts each share into micro-batches.
    """

    def __init__(
        self,
        task: Task,
        *,
        seed: int,
        train_batch_size: int,
        max_tokens: int,
        max_examples: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._task = task
        self._source = task.source("train")
        self._seed = seed
        self._train_batch_size = train_batch_size
        self._max_tokens = max_tokens
        self._max_examples = max_examples
        self._rank = rank
        self._world_size = world_size
        self._epoch = -1
        self._order = np.zeros(0, dtype=np.int64)
        n_examples = len(task.epoch_pool(0))
        if n_examples == 0:
            raise DataError(
                "No pair is left to train on: see the alignment and label reports for what was lost, "
                "and `data.negatives`."
            )
        self.steps_per_epoch = -(-n_examples // train_batch_size)

    def indices(self, step: int) -> list[int]:
        """Return the examples of update `step` (from 0), over all processes, longest first."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            pool = self._task.epoch_pool(epoch)
            generator = np.random.default_rng(derived_seed(self._seed, epoch))
            self._order = pool[generator.permutation(len(pool))]
            self._epoch = epoch
        begin = position * self._train_batch_size
        taken = self._order[begin : begin + self._train_batch_size]
        longest_first = np.argsort(-self._source.lengths[taken], kind="stable")
        order: list[int] = taken[longest_first].tolist()
        return order

    def __getitem__(self, step: int) -> Step:
        everyone = self.indices(step)
        mine = everyone[self._rank :: self._world_size]
        share = mine or everyone[-1:]
        cut = cut_by_tokens(
            share,
            self._source.lengths,
            max_tokens=self._max_tokens,
            max_examples=self._max_examples,
            packed=self._task.packs,
        )
        return Step(
            batches=[self._source.collate(indices) for indices in cut],
            indices=cut,
            weight=1.0 if mine else 0.0,
            n_examples=len(everyone),
            n_tokens=int(self._source.lengths[mine].sum()),
        )
