"""The training examples of an epoch."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from psy_agents_noaug.data.examples import Example
from psy_agents_noaug.utils.reproducibility import derived_seed

_SAMPLING = 1  # a seed other than that of the shuffle of the same epoch


class NegativeSampler:
    """Selects all annotated examples for every epoch, and a new sample of the unannotated negatives.

    An example with several pairs is annotated or positive if one of them is.

    Args:
        examples: the pairs of each training example.
        negatives: unannotated negatives per positive in an epoch, or `all` of them.
        seed: of the run.
    """

    def __init__(
        self,
        examples: Sequence[Sequence[Example]],
        *,
        negatives: float | Literal["all"],
        seed: int,
    ) -> None:
        unannotated = np.asarray(
            [not any(e.annotated or e.label > 0 for e in pairs) for pairs in examples], dtype=bool
        )
        self._kept = np.flatnonzero(~unannotated)
        self._unannotated = np.flatnonzero(unannotated)
        self._seed = seed
        n_positive = sum(any(pair.label > 0 for pair in pairs) for pairs in examples)
        self._n_drawn = len(self._unannotated)
        if negatives != "all":
            self._n_drawn = min(round(negatives * n_positive), self._n_drawn)

    def pool(self, epoch: int) -> np.ndarray:
        """Return the sorted indices of the examples of `epoch`. They depend on it and the seed only."""
        if self._n_drawn == len(self._unannotated):
            return np.arange(len(self._kept) + len(self._unannotated))
        generator = np.random.default_rng(derived_seed(self._seed, epoch, _SAMPLING))
        sample = generator.choice(self._unannotated, size=self._n_drawn, replace=False)
        return np.sort(np.concatenate([self._kept, sample]))
