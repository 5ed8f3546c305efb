"""The story of an evaluation, from a checkpoint to a report on a split."""

import itertools
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from psy_agents_noaug.config.loading import compose_config, lay_over
from psy_agents_noaug.config.schema import EvaluateConfig, TrainConfig
from psy_agents_noaug.data.examples import HELD_OUT
from psy_agents_noaug.errors import CheckpointError, first_of
from psy_agents_noaug.metrics.classification import values_at_prevalence
from psy_agents_noaug.metrics.held_out import held_out_table
from psy_agents_noaug.run.checks import (
    check_evaluation_settings,
    check_unseen,
    evaluation_directory,
)
from psy_agents_noaug.run.context import RunContext
from psy_agents_noaug.run.data import PreparedData, prepare_data
from psy_agents_noaug.run.directory import RunDirectory
from psy_agents_noaug.run.hardware import prepare_hardware
from psy_agents_noaug.run.records import open_tracker, send_report, tracking_status
from psy_agents_noaug.tasks.base import (
    DecisionRule,
    MetricValues,
    SplitPredictions,
    Task,
    TaskInputs,
)
from psy_agents_noaug.tasks.build import build_task, rebuild_encoders
from psy_agents_noaug.training.checkpoint import (
    Checkpoint,
    load_checkpoint,
    using,
    weights_sha256,
)
from psy_agents_noaug.training.evaluator import Evaluator
from psy_agents_noaug.training.hardware import Hardware
from psy_agents_noaug.utils.out_of_memory import explained_memory_errors
from psy_agents_noaug.utils.private_errors import without_texts

logger = logging.getLogger(__name__)

TRAINED_ON = "The model has learned these pairs: the figures say nothing about other posts."
ANNOTATED_ONLY = (
    "Annotated sentences only: ordinary sentences, on which a model can raise false alarms, are not "
    "judged."
)


@dataclass(frozen=True)
class RunResult:
    """What a run ended with.

    Args:
        directory: of the run, or of the evaluation.
        metrics: figures by name, with their split.
        summary: a table of them for the console.
    """

    directory: Path
    metrics: dict[str, Any]
    summary: str

    @property
    def table(self) -> pd.DataFrame:
        """The figures: a row per split and scope (all, a criterion, a baseline), a column per figure."""
        rows: dict[tuple[str, str], dict[str, Any]] = {}
        for key, value in self.metrics.items():
            split, *scope, name = key.split("/")
            rows.setdefault((split, "/".join(scope) or "all"), {})[name] = value
        table = pd.DataFrame.from_dict(rows, orient="index")
        table.index = pd.MultiIndex.from_tuples(list(rows), names=["split", "scope"])
        return table


@without_texts()
@explained_memory_errors()
def evaluate(
    evaluation: EvaluateConfig,
    *,
    task_name: str,
    explicit: Mapping[str, Any],
    tracking_is_required: bool = True,
) -> RunResult:
    """Evaluate a checkpoint on a split, with the settings that it was trained with.

    Results go to the run's own directory, or, where weights, data or settings are not those that it
    reports, to a folder in its `evaluations/`.

    Args:
        evaluation: the checkpoint and the split.
        task_name: the task that the checkpoint must be of.
        explicit: settings that replace the checkpoint's, by dotted keys.
        tracking_is_required: start nothing without MLflow.

    Raises:
        CheckpointError: the file is damaged, of another task or other criteria, or training has seen
            posts of the split.
        ConfigError: `explicit` would make another model of the weights.
    """
    check_evaluation_settings(explicit)
    path, split = _checkpoint_file(Path(evaluation.checkpoint)), evaluation.split
    checkpoint = load_checkpoint(path, task=task_name)
    with using(path):
        config = lay_over(
            checkpoint.config,
            {**_destinations(path, checkpoint.config, task_name=task_name), **explicit},
        )
    hardware = prepare_hardware(config)
    distributed = hardware.distributed
    with distributed.shared_errors():
        data = prepare_data(config)
        with using(path):
            seen = check_unseen(checkpoint, data, split, path)
        before = checkpoint.config["data"].get("unit")
        if before != config.data.unit:
            logger.warning(
                "The thresholds and the calibration were fitted on pairs of unit %s, but %s is judged "
                "by %s: decisions and calibrated figures may be far off.",
                before,
                split,
                config.data.unit,
            )
        weights = weights_sha256(checkpoint.weights)
        directory = evaluation_directory(path, checkpoint, data, config, weights=weights)
        task = _rebuilt(config, hardware, data, checkpoint, path)
    # Nothing of another process can fail here, which would leave the tracker open.
    with distributed.shared_errors():
        parent = RunDirectory(path.resolve().parent.parent).read_manifest().get("mlflow_run_id")
        tracker = open_tracker(
            config,
            hardware,
            directory,
            run_name=f"{directory.path.name}-{split}",
            parent_run_id=parent,
            is_required=tracking_is_required,
        )
    context = RunContext(config, hardware, directory, data, tracker)
    with tracking_status(tracker):
        with distributed.shared_errors():
            if context.is_main:
                number = directory.record_evaluation(
                    split,
                    weights_sha256=weights,
                    step=checkpoint.step,
                    data=data.fingerprints(),
                    mlflow_run_id=tracker.run_id,
                    tracking_uri=config.tracking.uri,
                )
                logger.info(
                    "This is evaluation %d of %s on this data by this run; see %s.",
                    number,
                    split,
                    directory.path,
                )
            tracker.set_tags({"checkpoint_weights_sha256": weights, **data.fingerprints()})
        return report_split(
            context,
            task,
            split,
            rule=checkpoint.decision_rule,
            step=checkpoint.step,
            seen=seen,
            prevalence=evaluation.prevalence,
            rule_is_fitted_here=split == "val"
            and checkpoint.metadata["fingerprints"] == data.fingerprints(),
        )


def _rebuilt(
    config: TrainConfig,
    hardware: Hardware,
    data: PreparedData,
    checkpoint: Checkpoint,
    path: Path,
) -> Task:
    """Build the task of the checkpoint at `path` on all splits, with its weights."""
    with using(path):
        encoders = rebuild_encoders(config, checkpoint.metadata)
    inputs = TaskInputs(
        encoders, data.criteria, data.examples, hardware.max_tokens_held, data.held_out
    )
    task = build_task(config, inputs)
    with using(path):
        if task.metadata()["criteria"] != checkpoint.metadata["criteria"]:
            raise CheckpointError(f"{path} was trained on other criteria than `data` has.")
        task.model.load_state_dict(checkpoint.weights)
    if absent := task.evaluation.absent_from(checkpoint.decision_rule):
        raise CheckpointError(f"{path} lacks {first_of(absent)} in its decision rule.")
    task.model.to(hardware.distributed.device)
    return task


def _destinations(path: Path, recorded: Mapping[str, Any], *, task_name: str) -> dict[str, Any]:
    """Return where an evaluation sends and keeps things, by dotted keys.

    None of it comes from the checkpoint, which may be a stranger's: the tracker and the token cache are
    the defaults of this installation, and the tracker's files lie beside the run of the checkpoint. The
    checkpoint can only say that nothing is tracked.
    """
    own = compose_config("config", [], task=task_name)
    run = path.resolve().parent.parent  # <output_dir>/<task>/<run>/checkpoints/<file>
    if RunDirectory(run).config.is_file():
        own["output_dir"] = str(run.parent.parent)
    tracking = recorded.get("tracking")
    if isinstance(tracking, Mapping) and tracking.get("name") == "none":
        own["tracking"] = {"name": "none"}
    elif isinstance(tracking, Mapping) and tracking.get("uri"):
        logger.warning(
            "The training was tracked elsewhere; this evaluation is tracked in %s. Give "
            "`tracking.uri` to send it there.",
            own["output_dir"],
        )
    return {
        "tracking": own["tracking"],
        "output_dir": own["output_dir"],
        "data.token_cache": own["data"]["token_cache"],
    }


def checkpoint_task(path: Path) -> str:
    """Return the task of a checkpoint, or of a run's best one.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    return load_checkpoint(_checkpoint_file(path)).task


def _checkpoint_file(path: Path) -> Path:
    """Return the best checkpoint of a run's directory; a file is one itself."""
    return RunDirectory(path).best_checkpoint if path.is_dir() else path


def _warn_of_no_effect(
    context: RunContext, figures: Mapping[str, Any], *, split: str, prevalence: float | None
) -> None:
    """Warn of settings that ask for figures which the task does not have."""
    task = context.config.task.name
    if prevalence is not None and not any(key.endswith("_at_prevalence") for key in figures):
        logger.warning("`prevalence` has no effect: the task %s has no predictive values.", task)
    if context.config.data.subgroups and not any(key.startswith("subgroup/") for key in figures):
        logger.warning("`data.subgroups` has no effect: the task %s reports no subgroups.", task)
    is_silent = not any(key.startswith("held_out/") for key in figures)
    if split == "test" and context.data.held_out and is_silent:
        logger.warning(
            "The held-out criteria have no figures: test has no pair of them, or the task %s does not "
            "report them.",
            task,
        )


def _held_out(
    task: Task, evaluator: Evaluator, rule: DecisionRule
) -> tuple[MetricValues, str, list[dict[str, Any]]]:
    """Judge the criteria that were held out of training, on the posts of test.

    Returns:
        Figures, their table, and prediction lines; all empty where the task has no such figures, or test
        no such pair.
    """
    if not task.examples.get(HELD_OUT):
        return {}, "", []
    values = evaluator.predict(task.model, task.source(HELD_OUT))
    predicted = SplitPredictions(HELD_OUT, values, task.evaluation.held_out_rule(rule))
    figures = task.evaluation.held_out_report(predicted, criteria=task.inputs.held_out)
    if not figures:
        return {}, "", []
    names = {criterion.criterion_id: criterion.name for criterion in task.inputs.held_out}
    lines = [{**record, "held_out": True} for record in task.evaluation.records(predicted)]
    table = held_out_table(figures, names)
    return {f"held_out/{key}": value for key, value in figures.items()}, table, lines


def report_split(
    context: RunContext,
    task: Task,
    split: str,
    *,
    rule: DecisionRule,
    step: int,
    seen: Mapping[str, int] | None = None,
    prevalence: float | None = None,
    rule_is_fitted_here: bool = False,
) -> RunResult:
    """Predict a split, and write its metrics and predictions.

    Args:
        context: where they are written.
        task: with the model's weights in place.
        split: train, val or test.
        rule: makes decisions of the predictions.
        step: at which the tracker shows the figures.
        seen: how many posts of the split training may have seen, to be reported with the figures.
        prevalence: also report predictive values at this prevalence of each criterion.
        rule_is_fitted_here: whether `rule` was fitted on this split of this corpus.
    """
    evaluator = Evaluator(
        task, context.hardware, eval_batch_size=context.config.training.eval_batch_size
    )
    began = time.perf_counter()
    predicted = evaluator.evaluate(task.model, split, rule=rule).predicted
    predicted = replace(predicted, rule_is_fitted_here=rule_is_fitted_here)
    logger.info("Predicted %s in %.1f s.", split, time.perf_counter() - began)
    figures = task.evaluation.report(predicted)
    figures |= task.input_metrics(predicted, lambda source: evaluator.predict(task.model, source))
    if prevalence is not None:
        figures |= values_at_prevalence(figures, prevalence=prevalence)
    summary, lines = task.evaluation.summary(figures), task.evaluation.records(predicted)
    if split == "test" and context.data.held_out:
        held_out, table, more = _held_out(task, evaluator, rule)
        figures |= held_out
        summary = f"{summary}\n\n{table}" if table else summary
        lines = itertools.chain(lines, more)
    _warn_of_no_effect(context, figures, split=split, prevalence=prevalence)
    if split == "train":
        summary = f"{summary}\n\n{TRAINED_ON}"
    if context.config.data.judges_annotated_sentences_only:
        figures["annotated_sentences_only"] = 1
        summary = f"{summary}\n\n{ANNOTATED_ONLY}"
    metrics = {f"{split}/{key}": value for key, value in {**figures, **(seen or {})}.items()}
    with context.hardware.distributed.shared_errors():
        if context.is_main:
            directory = context.directory
            directory.add_metrics(metrics)
            directory.write_predictions(split, lines)
            send_report(context.tracker, directory, split, metrics, step=step)
    return RunResult(context.directory.path, dict(metrics), summary)
