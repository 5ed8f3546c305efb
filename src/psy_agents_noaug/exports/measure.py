"""What int8 costs on val: the headline figures of both ONNX files, where the posts can be read."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from psy_agents_noaug.config.loading import lay_over
from psy_agents_noaug.errors import PsyAgentsError
from psy_agents_noaug.exports.onnx import MODEL, QUANTISED, run_session, session_of
from psy_agents_noaug.exports.source import Source
from psy_agents_noaug.exports.windows import CONTEXT, ENDS, LOG_ODDS, STARTS, WindowModel
from psy_agents_noaug.models.criteria import CriteriaModel
from psy_agents_noaug.models.joint import JointModel
from psy_agents_noaug.models.label_attention import LabelAttentionModel, Outputs
from psy_agents_noaug.models.windows import pool_windows
from psy_agents_noaug.run.data import prepare_data
from psy_agents_noaug.run.refits import LEARNED_VAL, REFIT
from psy_agents_noaug.tasks.base import SplitPredictions
from psy_agents_noaug.training.evaluator import Evaluator

logger = logging.getLogger(__name__)


class SessionModel(nn.Module):
    """An ONNX file in the place of the task's model, for the evaluation loop.

    Args:
        model: what the file was made from.
        path: of the file.
    """

    def __init__(self, model: WindowModel, path: Path) -> None:
        super().__init__()
        self._model = model
        self._original: Any = model.model
        self._session = session_of(path)

    def forward(self, *args: Any, **named: Any) -> Any:
        """Return what the forward pass of the task's model returns."""
        original = self._original
        if isinstance(original, LabelAttentionModel):
            return self._one_pass(*args, **named)
        if isinstance(original, CriteriaModel):
            (inputs,) = args
            odds = self._run(inputs)[LOG_ODDS]
            kind = original.window_pooling
            return pool_windows(odds, named["pairs"], named["n_pairs"], kind=kind)
        if isinstance(original, JointModel):
            found = self._run({**named["evidence"], CONTEXT: named["context_mask"]})
            pairs = named["criteria_pairs"]
            n_pairs = int(pairs[-1]) + 1
            odds = pool_windows(found[LOG_ODDS], pairs, n_pairs, kind=original.window_pooling)
            return odds, _spans(found), torch.zeros(2)
        return _spans(self._run(named))

    def _one_pass(
        self,
        inputs: Mapping[str, Tensor],
        *,
        windows: Tensor,
        criteria: Tensor,
        pairs: Tensor,
        n_pairs: int,
        context_mask: Tensor | None,
        **_: Any,
    ) -> Outputs:
        read = dict(inputs)
        if context_mask is not None:
            # Of each pair; those of a text have the same windows.
            width = inputs["input_ids"].shape
            read[CONTEXT] = torch.zeros(width, dtype=torch.long)
            read[CONTEXT][windows] = context_mask
        found = self._run(read)
        odds = found.get(LOG_ODDS)
        label_odds = (
            torch.zeros(n_pairs)
            if odds is None
            else pool_windows(
                odds[windows, criteria], pairs, n_pairs, kind=self._original.window_pooling
            )
        )
        spans = _spans(found)[windows, criteria] if STARTS in found else torch.zeros(())
        return Outputs(label_odds, spans, torch.zeros(()))

    def _run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return run_session(self._session, [inputs[name] for name in self._model.input_names])


def _spans(found: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([found[STARTS], found[ENDS]], dim=-1)


def figures_on_val(
    source: Source, model: WindowModel, folder: Path
) -> dict[str, dict[str, float | None]] | str:
    """Return the headline figures on val of model.onnx and model_int8.onnx, or why there are none.

    Args:
        source: says where the posts of the training were.
        model: what was exported.
        folder: has both files.
    """
    if REFIT in source.checkpoint.metadata:
        return LEARNED_VAL
    trained = model.model
    if isinstance(trained, JointModel) and (trained.fusion != "none" or len(model.encoders) > 1):
        return "the windows of a post are put together inside of this model"
    # The configuration that is shared does not say where.
    found_at = lay_over(source.checkpoint.config, {"data.token_cache": "off"}).data
    config = source.config.model_copy(update={"data": found_at})
    try:
        data = prepare_data(config)
    except PsyAgentsError as error:
        logger.info("int8 is not measured on val, as its posts are not here: %s", error)
        return "the posts are not here"
    if source.checkpoint.metadata["fingerprints"] != data.fingerprints():
        return "the posts that are here are not those of the training"
    logger.info("Both ONNX files are measured on val.")
    task = source.task({split: data.examples[split] for split in ("train", "val")})
    evaluator = Evaluator(task, source.hardware, eval_batch_size=config.training.eval_batch_size)
    examples = task.source("val")
    found: dict[str, dict[str, float | None]] = {}
    for name, file in (("fp32", MODEL), ("int8", QUANTISED)):
        values = evaluator.predict(SessionModel(model, folder / file), examples)
        predicted = SplitPredictions("val", values, source.shared.decision_rule)
        metrics = task.evaluation.metrics(predicted)
        found[name] = {
            key: value
            for key in task.settings.headline_metrics
            if isinstance(value := metrics.get(key), float | int)
        }
    return found
