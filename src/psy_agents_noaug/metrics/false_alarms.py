"""False alarms: what a user of a model's decisions would have to read in vain."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


def false_alarms_per_post(
    post_ids: NDArray[Any], labels: ArrayLike, decisions: ArrayLike
) -> float | None:
    """Return the mean number of positive decisions on negative pairs in a post.

    Args:
        post_ids: the post of each (criterion, sentence) pair, `[pairs]`.
        labels: above 0 if the criterion is met, `[pairs]`.
        decisions: 1 if it is decided met, `[pairs]`.

    Returns:
        The mean over all posts with pairs, those without a false alarm included; None without pairs.
    """
    n_posts = len(np.unique(post_ids))
    is_false_alarm = (np.asarray(decisions) > 0) & (np.asarray(labels) <= 0)
    return int(is_false_alarm.sum()) / n_posts if n_posts else None
