"""The figures of a protocol (`configs/protocol/`), by the probabilities of pairs."""

from collections.abc import Sequence

import numpy as np

from psy_agents_noaug.config.schema import ProtocolConfig
from psy_agents_noaug.data.examples import Example
from psy_agents_noaug.metrics.classification import PairPredictions
from psy_agents_noaug.metrics.multilabel import multilabel_metrics, with_none_label
from psy_agents_noaug.metrics.names import protocol_prefix
from psy_agents_noaug.metrics.posts import by_post
from psy_agents_noaug.metrics.ranking import ranking_metrics
from psy_agents_noaug.tasks.base import MetricValues, flat_metrics


def protocol_figures(
    protocol: ProtocolConfig,
    pairs: PairPredictions,
    examples: Sequence[Example],
    *,
    criteria: Sequence[str],
) -> MetricValues:
    """Return `protocol/<name>/<figure>`; nothing where there is no protocol.

    Args:
        protocol: of the run.
        pairs: labels and probabilities.
        examples: the same pairs.
        criteria: every criterion.
    """
    text_ids = np.asarray([example.text_id for example in examples])
    if protocol.figures == "multilabel":
        figures = _multilabel(protocol, pairs, text_ids, criteria)
    elif protocol.figures == "ranking":
        figures = flat_metrics(ranking_metrics(pairs, text_ids, criteria=criteria))
    else:
        return {}
    prefix = protocol_prefix(protocol.name)
    return {f"{prefix}{key}": value for key, value in figures.items()}


def _multilabel(
    protocol: ProtocolConfig,
    pairs: PairPredictions,
    text_ids: np.ndarray,
    criteria: Sequence[str],
) -> MetricValues:
    texts = by_post(
        pairs,
        decisions=pairs.probabilities > protocol.threshold,
        post_ids=text_ids,
        criteria=list(criteria),
    )
    names = list(criteria)
    if protocol.none_label is not None:
        texts, names = with_none_label(texts), [*names, protocol.none_label]
    figures = flat_metrics(multilabel_metrics(texts, names=names))
    n_left_out = len(set(text_ids.tolist())) - len(texts.labels)
    return {**figures, "n_texts_left_out": n_left_out}
