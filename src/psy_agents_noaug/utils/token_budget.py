"""How many tokens an encoder takes at once while a model predicts."""

from collections.abc import Iterator
from contextlib import contextmanager


class _Predictions:
    """Not a `ContextVar`, at which torch.compile would end its graph. One thread at a time predicts."""

    tokens_at_once: int | None = None


@contextmanager
def tokens_at_once(most: int) -> Iterator[None]:
    """Let encoders take so many tokens at once, whatever budget their model has for training.

    Predictions keep the activations of one layer alone, so that more tokens fit into memory.
    """
    before, _Predictions.tokens_at_once = _Predictions.tokens_at_once, most
    try:
        yield
    finally:
        _Predictions.tokens_at_once = before


def budget(of_training: int) -> int:
    """Return the tokens that are taken at once: those of `tokens_at_once`, or else of training."""
    return _Predictions.tokens_at_once or of_training
