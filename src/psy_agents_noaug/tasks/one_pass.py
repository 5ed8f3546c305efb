"""What the tasks share with `model.architecture=label_attention`."""

from psy_agents_noaug.config.schema import ModelConfig
from psy_agents_noaug.data.windows import encode_windows
from psy_agents_noaug.models.label_attention import LabelAttentionModel, Outputs
from psy_agents_noaug.models.windows import WindowPooling
from psy_agents_noaug.tasks.base import ENCODER, Batch, Task
from psy_agents_noaug.tasks.pairs import ENCODER_INPUTS, PairSource, TextSource


def label_attention(
    task: Task, settings: ModelConfig, *, window_pooling: WindowPooling
) -> LabelAttentionModel:
    """Build the model of a task that reads texts."""
    encoder = task.inputs.encoders[ENCODER]
    criteria = (*task.inputs.criteria, *task.inputs.held_out)
    texts = encode_windows(
        encoder.tokenizer,
        [None] * len(criteria),
        [criterion.text for criterion in criteria],
        max_length=task.max_length,
        stride=None,
    )
    return LabelAttentionModel(
        task.network(ENCODER),
        texts.rows.pad(range(len(criteria))),
        criterion_vectors=settings.criterion_vectors,
        hidden_size=encoder.hidden_size,
        head_layers=settings.head_layers,
        head_width=settings.head_width,
        head_dropout=settings.head_dropout,
        window_pooling=window_pooling,
        max_tokens=task.inputs.max_tokens,
    )


def source_of(task: Task, pairs: PairSource) -> PairSource | TextSource:
    """Return the pairs as examples, or their texts where the task reads texts."""
    if not task.reads_texts:
        return pairs
    criteria = (*task.inputs.criteria, *task.inputs.held_out)
    return TextSource(pairs, [criterion.criterion_id for criterion in criteria])


def outputs_of(model: object, batch: Batch, *, spans: bool) -> Outputs:
    """Run a `LabelAttentionModel` on a `TextSource` batch; with or without `context_mask`."""
    assert callable(model)
    outputs: Outputs = model(
        {name: batch[name] for name in ENCODER_INPUTS if name in batch},
        windows=batch["windows"],
        criteria=batch["criteria"],
        pairs=batch["pairs"],
        n_pairs=len(batch["labels"]),
        context_mask=batch["context_mask"] if spans else None,
    )
    return outputs
