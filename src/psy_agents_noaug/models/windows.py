"""Windows of a pair put together.

Shapes: P pairs with V windows in all.
"""

from typing import Literal

import torch
from torch import Tensor

WindowPooling = Literal["max", "logsumexp"]


def pool_windows(log_odds: Tensor, pairs: Tensor, n_pairs: int, *, kind: WindowPooling) -> Tensor:
    """Return the log odds of "met" of each pair, `[P]`.

    Args:
        log_odds: of each window, `[V]`.
        pairs: the pair of each window, `[V]`.
        n_pairs: P.
        kind: `max`: of the windows of a pair; `logsumexp`: the logarithm of their mean odds.
    """
    members = pairs.unsqueeze(0) == torch.arange(n_pairs, device=pairs.device).unsqueeze(1)
    spread = log_odds.unsqueeze(0).masked_fill(~members, float("-inf"))
    if kind == "max":
        return spread.amax(dim=1)
    return spread.logsumexp(dim=1) - members.sum(dim=1).log()
