"""What the tasks share with `model.architecture=label_attention`."""

import sys
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from psy_agents_noaug.config.schema import ModelConfig
from psy_agents_noaug.data.dsm5 import Criterion
from psy_agents_noaug.data.windows import encode_windows
from psy_agents_noaug.errors import ConfigError, first_of
from psy_agents_noaug.models.encoder import Encoder
from psy_agents_noaug.models.label_attention import LabelAttentionModel, Outputs
from psy_agents_noaug.models.windows import WindowPooling
from psy_agents_noaug.tasks.base import ENCODER, Batch, Task
from psy_agents_noaug.tasks.pairs import (
    CRITERION_PREFIX,
    ENCODER_INPUTS,
    PairSource,
    TextSource,
)


def label_attention(
    task: Task, settings: ModelConfig, *, window_pooling: WindowPooling
) -> LabelAttentionModel:
    """Build the model of a task that reads texts."""
    encoder = task.inputs.encoders[ENCODER]
    return LabelAttentionModel(
        task.network(ENCODER),
        first_texts=criterion_inputs(task.inputs.criteria, encoder),
        learned=settings.criterion_vectors == "learned",
        hidden_size=encoder.hidden_size,
        head_layers=settings.head_layers,
        head_width=settings.head_width,
        head_dropout=settings.head_dropout,
        window_pooling=window_pooling,
        max_tokens=task.inputs.max_tokens,
    )


def source_of(task: Task, pairs: PairSource) -> PairSource | TextSource:
    """Return the pairs as examples, or their texts where the task reads texts.

    Pairs with held-out criteria are a source of their own. The others are not read beside them, so that
    no bit of a prediction depends on what is held out.

    Raises:
        ConfigError: the text of a criterion is longer than the encoder reads.
    """
    if not task.reads_texts:
        return pairs
    read = {example.criterion_id for example in pairs.examples}
    held_out = task.inputs.held_out
    is_held_out = any(criterion.criterion_id in read for criterion in held_out)
    criteria = held_out if is_held_out else task.inputs.criteria
    texts = criterion_inputs(criteria, task.inputs.encoders[ENCODER])
    return TextSource(pairs, [criterion.criterion_id for criterion in criteria], texts)


def outputs_of(model: object, batch: Batch) -> Outputs:
    """Run a `LabelAttentionModel` on a `TextSource` batch."""
    assert callable(model)
    texts = {name: CRITERION_PREFIX + name for name in ENCODER_INPUTS}
    outputs: Outputs = model(
        {name: batch[name] for name in ENCODER_INPUTS if name in batch},
        criterion_texts={name: batch[key] for name, key in texts.items() if key in batch},
        windows=batch["windows"],
        criteria=batch["criteria"],
        pairs=batch["pairs"],
        n_pairs=len(batch["labels"]),
        context_mask=batch.get("context_mask"),
    )
    return outputs


def criterion_inputs(criteria: Sequence[Criterion], encoder: Encoder) -> dict[str, Tensor]:
    """Return the encoder's inputs of the criteria's texts, which are read whole."""
    rows = encode_windows(
        encoder.tokenizer,
        [None] * len(criteria),
        [criterion.text for criterion in criteria],
        max_length=sys.maxsize,  # `model.max_length` is that of the windows of posts
        stride=None,
    ).rows
    most = encoder.max_positions or sys.maxsize
    if (rows.lengths > most).any():
        ids = [criteria[row].criterion_id for row in np.flatnonzero(rows.lengths > most).tolist()]
        raise ConfigError(
            f"The text of a criterion must have at most {most} tokens, the encoder's positions, but "
            f"these have up to {rows.lengths.max()}: {first_of(ids)}. Shorten them."
        )
    return rows.pad(range(len(criteria)))
