"""The examples of each update, and how they are cut into micro-batches.

Both depend only on the seed and the number of the update, so resuming needs no saved state of them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from torch.utils.data import Dataset

from psy_agents_noaug.errors import DataError
from psy_agents_noaug.tasks.base import Batch, Task
from psy_agents_noaug.utils.reproducibility import derived_seed


class Step(NamedTuple):
    """The share of one process in one update.

    Args:
        batches: the collated micro-batches.
        indices: the examples of each micro-batch.
        weight: 1.0; or 0.0 for a placeholder example, which a process without examples computes to stay
            synchronised with the others.
        n_examples: examples of the whole update, over all processes.
        n_tokens: tokens of this share, by `ExampleSource.lengths`.
    """

    batches: list[Batch]
    indices: list[list[int]]
    weight: float
    n_examples: int
    n_tokens: int


def cut_by_tokens(
    indices: Sequence[int],
    lengths: np.ndarray,
    *,
    max_tokens: int,
    max_examples: int | None = None,
    packed: bool = False,
    rows: np.ndarray | None = None,
) -> list[list[int]]:
    """Sort examples by length, longest first, and cut them into micro-batches within a token budget.

    An example that exceeds the budget gets a micro-batch of its own. Examples of equal length keep their
    order.

    Args:
        indices: the examples.
        lengths: tokens of each example, by index.
        max_tokens: the budget per micro-batch.
        max_examples: maximum examples per micro-batch.
        packed: whether the budget counts no padding.
        rows: of each example, by index, if `lengths` are those of its longest row; None: one row each.
    """
    ordered = sorted(indices, key=lambda index: -int(lengths[index]))
    batches: list[list[int]] = []
    cost = 0
    for index in ordered:
        n_rows = 1 if rows is None else int(rows[index])
        # The first example of a micro-batch is the longest and determines the padded length.
        length = int(lengths[index if packed or not batches else batches[-1][0]]) * n_rows
        fits = (
            batches
            and cost + length <= max_tokens
            and (max_examples is None or len(batches[-1]) < max_examples)
        )
        if fits:
            batches[-1].append(index)
            cost += length
        else:
            batches.append([index])
            cost = int(lengths[index]) * n_rows
    return batches


class TrainingSteps(Dataset[Step]):
    """The updates of a training as a sequence, for one of `world_size` processes: item k is update k.

    The examples of an epoch are shuffled by seed and epoch. An update takes the next `train_batch_size`
    examples, sorts them by length, distributes them to the processes in turn, and cuts each share into
    micro-batches.

    Args:
        task: has the training examples.
        seed: of the run.
        train_batch_size: examples per update, over all processes.
        max_tokens: per micro-batch, see `cut_by_tokens`.
        max_examples: per micro-batch.
        rank: of this process.
        world_size: number of processes.

    Raises:
        DataError: there is no training example.
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
                "There is no pair to train on: see the alignment and label reports for lost pairs, and "
                "`data.negatives`."
            )
        self.steps_per_epoch = -(-n_examples // train_batch_size)

    def indices(self, step: int) -> list[int]:
        """Return the examples of update `step` (from 0) over all processes, longest first."""
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
        indices = self.indices(step)
        own = indices[self._rank :: self._world_size]
        share = own or indices[-1:]
        cut = cut_by_tokens(
            share,
            self._source.lengths,
            max_tokens=self._max_tokens,
            max_examples=self._max_examples,
            packed=self._task.packs,
        )
        return Step(
            batches=[self._source.collate(micro_batch) for micro_batch in cut],
            indices=cut,
            weight=1.0 if own else 0.0,
            n_examples=len(indices),
            n_tokens=int(self._source.lengths[own].sum()),
        )
