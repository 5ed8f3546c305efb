"""The story of an evaluation, from a checkpoint to a report on a split."""

import itertools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from psy_agents_noaug.config.loading import compose_config, lay_over, to_yaml
from psy_agents_noaug.config.schema import EvaluateConfig, TrainConfig
from psy_agents_noaug.data.examples import HELD_OUT
from psy_agents_noaug.data.splits import WHOLE, shown_split
from psy_agents_noaug.errors import CheckpointError
from psy_agents_noaug.metrics.classification import values_at_prevalence
from psy_agents_noaug.metrics.held_out import held_out_table
from psy_agents_noaug.metrics.names import MERGED_BY
from psy_agents_noaug.run.annotators import merged_labels
from psy_agents_noaug.run.checks import (
    OF_THE_MODEL,
    check_evaluation_settings,
    check_needs_no_training_pairs,
    check_protocol_split,
    check_val_is_unlearned,
    evaluation_directory,
)
from psy_agents_noaug.run.context import RunContext
from psy_agents_noaug.run.data import PreparedData, prepare_data
from psy_agents_noaug.run.directory import (
    RunDirectory,
    checkpoint_file,
    directory_of,
    output_dir_of,
)
from psy_agents_noaug.run.ensemble import (
    Checkpoints,
    Member,
    as_one,
    built_model,
    ensemble_sha256,
    fitted_rule,
    load_members,
    mean_of,
    means_pairs,
    means_tokens,
    read_rule,
    rule_folder,
    write_rule,
)
from psy_agents_noaug.run.hardware import prepare_hardware
from psy_agents_noaug.run.rebuild import trained_criteria
from psy_agents_noaug.run.records import (
    ReportWriter,
    make_report,
    no_report,
    open_tracker,
    send_report,
    tracking_status,
)
from psy_agents_noaug.run.refits import describe, refit_of
from psy_agents_noaug.run.seen import NOT_CHECKED, check_unseen, on_training_data
from psy_agents_noaug.run.trec import write_rankings
from psy_agents_noaug.tasks.base import (
    BASELINE,
    DecisionRule,
    MetricValues,
    Predictions,
    SplitPredictions,
    Task,
)
from psy_agents_noaug.training.checkpoint import (
    Checkpoint,
    load_checkpoint,
    using,
)
from psy_agents_noaug.training.evaluator import Evaluator
from psy_agents_noaug.utils.files import make_folder, write_text
from psy_agents_noaug.utils.out_of_memory import explained_memory_errors
from psy_agents_noaug.utils.private_errors import without_texts

logger = logging.getLogger(__name__)

TRAINED_ON = "The model has learned these pairs: the figures say nothing about other posts."
ANNOTATED_ONLY = (
    "Annotated sentences only: ordinary sentences, on which a model can raise false alarms, are not "
    "judged."
)

_WITH_HELD_OUT = ("test", WHOLE)
MAY_BE_SEEN = (
    "Not checked: whether training has seen these posts. If it has, the figures are too good."
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
    write_report: ReportWriter = no_report,
) -> RunResult:
    """Evaluate a checkpoint, or an ensemble of several, on a split, with the settings of its training.

    Results go to the run's own directory, or, where weights, data or settings are not those that it
    reports, to a folder in its `evaluations/`; of an ensemble to `<output_dir>/<task>/ensemble-<hash>/`.

    Args:
        evaluation: the checkpoint and the split.
        task_name: the task that the checkpoint must be of.
        explicit: settings that replace the checkpoint's, by dotted keys.
        tracking_is_required: start nothing without MLflow.
        write_report: writes the report when the split is evaluated.

    Raises:
        CheckpointError: the file is damaged, of another task or other criteria, or training has seen
            posts of the split.
        ConfigError: `explicit` would make another model of the weights.
    """
    check_evaluation_settings(explicit, split=evaluation.split)
    split = evaluation.split
    members = load_members(evaluation.checkpoint, task=task_name)
    is_ensemble = not isinstance(evaluation.checkpoint, str)
    path, checkpoint = members[0].path, members[0].checkpoint
    configs = [_config_of(member, explicit, task_name=task_name) for member in members]
    config = configs[0]
    check_protocol_split(config.protocol, split)
    machines = [prepare_hardware(own) for own in configs]
    hardware = machines[0]
    distributed = hardware.distributed
    with distributed.shared_errors():
        with using(path):
            trained_on = dict(checkpoint.metadata["fingerprints"])
        data = prepare_data(config, divided=split != WHOLE, trained_on=trained_on)
        for member in members:
            with using(member.path):
                check_val_is_unlearned(member.checkpoint, data, split, member.path)
                seen = check_unseen(member.checkpoint, data, split, member.path)
            _check_criteria(member.checkpoint, data, member.path)
        before = checkpoint.config["data"].get("unit")
        if before != config.data.unit:
            logger.warning(
                "The thresholds and the calibration were fitted on pairs of unit %s, but %s is judged "
                "by %s: decisions and calibrated figures may be far off.",
                before,
                shown_split(split),
                config.data.unit,
            )
        models = [
            built_model(
                member,
                own,
                machine,
                criteria=data.criteria,
                examples=data.examples,
                held_out=data.held_out,
            )
            for member, own, machine in zip(members, configs, machines, strict=True)
        ]
        models = as_one(members, models)
        task, rule = models[0][0], checkpoint.decision_rule
        if is_ensemble and means_pairs(members):
            rule = fitted_rule(members, task.evaluation)
        origin = refit_of(checkpoint.metadata)
        weights = ensemble_sha256(members) if is_ensemble else members[0].weights
        directory = evaluation_directory(
            path, checkpoint, data, config, weights=weights, is_ensemble=is_ensemble
        )
        if split == WHOLE:
            check_needs_no_training_pairs(task)
    if means_tokens(members):
        folder = rule_folder(members)
        as_trained = explicit.keys().isdisjoint(OF_THE_MODEL)
        rule = _rule_of_val(members, models[0], folder, data, is_kept=as_trained)
    # Nothing of another process can fail here, which would leave the tracker open.
    with distributed.shared_errors():
        run = RunDirectory(path.resolve().parent.parent)
        parent = None if is_ensemble else run.read_manifest().get("mlflow_run_id")
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
                make_folder(directory.path)
                if not directory.config.exists():  # of an evaluation apart: where its posts are
                    write_text(directory.config, to_yaml(config))
                looked = {"step": checkpoint.step, "data": data.fingerprints()}
                for member in members if is_ensemble else ():
                    directory_of(member.path).record_evaluation(
                        split, weights_sha256=member.weights, ensemble_sha256=weights, **looked
                    )
                number = directory.record_evaluation(
                    split,
                    weights_sha256=weights,
                    **looked,
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
        result = report_split(
            context,
            task,
            split,
            others=models[1:],
            rule=rule,
            step=checkpoint.step,
            seen=seen,
            prevalence=evaluation.prevalence,
            rule_is_fitted_here=split == "val" and on_training_data(checkpoint, data) is not False,
            n_members=len(members),
            notes=[] if origin is None else [describe(origin)],
        )
        make_report(context, write_report)
        return result


def _rule_of_val(
    members: Sequence[Member],
    model: tuple[Task, Evaluator],
    folder: Path,
    data: PreparedData,
    *,
    is_kept: bool,
) -> DecisionRule:
    """Fit the rule of an ensemble on val of the training's data and keep it; on others read it.

    A rule of models that read or decode otherwise than in training is not kept: predictions would be
    decided by it.

    Raises:
        CheckpointError: other data are evaluated, and nothing is kept.
    """
    task, evaluator = model
    distributed = evaluator.distributed
    if not on_training_data(members[0].checkpoint, data):
        with distributed.shared_errors():
            return read_rule(folder, members, task.evaluation)
    rule = task.evaluation.fit_decision_rule(evaluator.predict(task.model, task.source("val")))
    with distributed.shared_errors():
        if distributed.is_main and is_kept:
            write_rule(folder, members, rule)
    return rule


def _config_of(member: Member, explicit: Mapping[str, Any], *, task_name: str) -> TrainConfig:
    """Return the settings of a model's training with those that replace some."""
    recorded = member.checkpoint.config
    with using(member.path):
        places = _destinations(member.path, recorded, task_name=task_name)
        return lay_over(recorded, {**places, **explicit})


def _check_criteria(checkpoint: Checkpoint, data: PreparedData, path: Path) -> None:
    """Refuse data whose criteria are not those of the checkpoint.

    Raises:
        CheckpointError: a name or a text differs, or one is absent or more.
    """
    before = [(c.criterion_id, c.name, c.text) for c in trained_criteria(checkpoint, path)]
    if before != [(c.criterion_id, c.name, c.text) for c in data.criteria]:
        raise CheckpointError(f"{path} was trained on other criteria than `data` has.")


def _destinations(path: Path, recorded: Mapping[str, Any], *, task_name: str) -> dict[str, Any]:
    """Return where an evaluation sends and keeps things, by dotted keys.

    None of it comes from the checkpoint, which may be a stranger's: the tracker and the token cache are
    the defaults of this installation, and the tracker's files lie beside the run of the checkpoint. The
    checkpoint can only say that nothing is tracked.
    """
    own = compose_config("config", [], task=task_name)
    run = path.resolve().parent.parent
    if RunDirectory(run).config.is_file():
        own["output_dir"] = str(output_dir_of(run, task_name))
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


def checkpoint_task(given: Checkpoints) -> str:
    """Return the task of a checkpoint, or of a run's best one; of several that of the first.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    path = given if isinstance(given, str | Path) else given[0]
    return load_checkpoint(checkpoint_file(Path(path))).task


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
    if split in _WITH_HELD_OUT and context.data.held_out and is_silent:
        logger.warning(
            "The held-out criteria have no figures: %s has no pair of them, or the task %s does not "
            "report them.",
            split,
            task,
        )


def _held_out(
    task: Task, predict: Callable[[str], Predictions], rule: DecisionRule
) -> tuple[MetricValues, str, list[dict[str, Any]]]:
    """Judge the criteria that were held out of training, on the posts of test or of a whole corpus.

    Returns:
        Figures, their table, and prediction lines; all empty where the task has no such figures, or the
        posts have no such pair.
    """
    if not task.examples.get(HELD_OUT):
        return {}, "", []
    values = predict(HELD_OUT)
    own = {example.criterion_id for example in task.examples[HELD_OUT]}
    predicted = SplitPredictions(HELD_OUT, values, task.evaluation.unfitted_rule(rule, own))
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
    others: Sequence[tuple[Task, Evaluator]] = (),
    rule: DecisionRule,
    step: int,
    seen: Mapping[str, int] | None = None,
    prevalence: float | None = None,
    rule_is_fitted_here: bool = False,
    n_members: int = 1,
    notes: Sequence[str] = (),
) -> RunResult:
    """Predict a split, and write its metrics and predictions.

    Args:
        context: where they are written.
        task: with the model's weights in place.
        split: train, val or test; all: a corpus as a whole.
        others: further models, whose predictions are averaged with those of `task`.
        rule: makes decisions of the predictions.
        step: at which the tracker shows the figures.
        seen: figures of `check_unseen`, to be reported with the others.
        prevalence: also report predictive values at this prevalence of each criterion.
        rule_is_fitted_here: whether `rule` was fitted on this split of this corpus.
        n_members: models whose predictions, or whose scores of tokens, are averaged.
        notes: what a reader must know of the models.
    """
    evaluator = Evaluator(
        task, context.hardware, eval_batch_size=context.config.training.eval_batch_size
    )
    began = time.perf_counter()

    def predict(part: str) -> Predictions:
        models = [(task, evaluator), *others]
        return mean_of([each.predict(own.model, own.source(part)) for own, each in models])

    predicted = SplitPredictions(split, predict(split), rule, rule_is_fitted_here)
    logger.info("Predicted %s in %.1f s.", split, time.perf_counter() - began)
    figures = task.evaluation.report(predicted)
    if not others:  # whose inputs and attention differ
        figures |= task.input_metrics(
            predicted, lambda source: evaluator.predict(task.model, source)
        )
    if n_members > 1:
        figures["n_members"] = n_members
    if prevalence is not None:
        figures |= values_at_prevalence(figures, prevalence=prevalence)
    if context.data.annotators is not None:
        figures[MERGED_BY] = context.data.annotators.rule
    summary, lines = task.evaluation.summary(figures), task.evaluation.records(predicted)
    if split in _WITH_HELD_OUT and context.data.held_out:
        held_out, table, more = _held_out(task, predict, rule)
        figures |= held_out
        summary = f"{summary}\n\n{table}" if table else summary
        lines = itertools.chain(lines, more)
    _warn_of_no_effect(context, figures, split=split, prevalence=prevalence)
    if split == "train":
        summary = f"{summary}\n\n{TRAINED_ON}"
    if context.data.annotators is not None:
        summary = f"{summary}\n\n{merged_labels(context.data.annotators.rule)}"
    if context.config.data.judges_annotated_sentences_only:
        figures["annotated_sentences_only"] = 1
        summary = f"{summary}\n\n{ANNOTATED_ONLY}"
    if seen and NOT_CHECKED in seen:
        summary = f"{summary}\n\n{MAY_BE_SEEN}"
    summary = "\n\n".join([summary, *notes])
    metrics = {f"{split}/{key}": value for key, value in {**figures, **(seen or {})}.items()}
    with context.hardware.distributed.shared_errors():
        if context.is_main:
            directory = context.directory
            directory.add_metrics(metrics)
            if context.config.protocol.figures == "ranking":
                written = list(lines)
                write_rankings(directory, split, (x for x in written if not x.get("held_out")))
                lines = iter(written)
            directory.write_predictions(split, lines)
            if baseline := list(task.evaluation.baseline_records(split)):
                directory.write_predictions(split, baseline, system=f"baseline_{BASELINE}")
            send_report(context.tracker, directory, split, metrics, step=step)
    return RunResult(context.directory.path, dict(metrics), summary)
