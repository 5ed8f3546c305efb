"""Whole-word masking: which tokens of a text are hidden from a model that must predict them."""

import numpy as np

# Of the chosen tokens (Devlin et al. 2019): 80 % become the mask, 10 % another token, the rest stay.
_MASKED = 0.8
_REPLACED = 0.9


def mask_words(
    ids: np.ndarray,
    begins: np.ndarray,
    *,
    probability: float,
    mask_id: int,
    ordinary_ids: np.ndarray,
    generator: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Choose words, at least one, and hide all of their tokens.

    Each word is chosen on its own with `probability`, so that this is the expected share of the tokens
    too, whatever their words' lengths.

    Args:
        ids: of the tokens, without special ones; int32 `[tokens]`, at least one.
        begins: whether a token begins a word; bool `[tokens]`. The first one does in any case.
        probability: of a word.
        mask_id: the mask token's.
        ordinary_ids: those that a token may be replaced by.
        generator: of random numbers.

    Returns:
        The tokens that the model sees, int32 `[tokens]`, and which of them it must predict, bool
        `[tokens]`.
    """
    word_of = np.cumsum(begins)
    word_of -= word_of[0]
    n_words = int(word_of[-1]) + 1
    is_chosen = generator.random(n_words) < probability
    if not is_chosen.any():
        is_chosen[generator.integers(n_words)] = True
    chosen = is_chosen[word_of]
    draws = generator.random(len(ids))
    others = ordinary_ids[generator.integers(len(ordinary_ids), size=len(ids))]
    shown = np.where(chosen & (draws < _MASKED), mask_id, ids)
    shown = np.where(chosen & (draws >= _MASKED) & (draws < _REPLACED), others, shown)
    return shown.astype(np.int32), chosen
