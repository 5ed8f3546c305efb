"""Train on train and val, for as long and with thresholds as a cross-validation on both says.

The folds are of train and val; no post of test is in any of them. Each is predicted by a model that was
trained, and stopped, without it. The final model learns all of them:

- for the median of the folds' best epochs. After early stopping, one may train on all data for as many
  updates or for as many passes over it; Goodfellow, Bengio & Courville 2016 ("Deep Learning", section
  7.8) leave the choice open. These are passes, with the learning rate of the same moment of the same
  schedule, since the thresholds come from models that were stopped there;
- with a decision rule that is fitted on all out-of-fold predictions together, as Platt 1999
  ("Probabilistic outputs for support vector machines") proposes for his sigmoid, and scikit-learn's
  `CalibratedClassifierCV(ensemble=False)` and `TunedThresholdClassifierCV(refit=True)` do.

So no threshold and no calibration is fitted on a post that its model has learned, nor on test.
"""

import logging
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from psy_agents_noaug.config.schema import SeriesConfig, TrainConfig
from psy_agents_noaug.data.examples import Example
from psy_agents_noaug.data.splits import OUT_OF_FOLD
from psy_agents_noaug.errors import CheckpointError, DataError
from psy_agents_noaug.run.data import prepare_data
from psy_agents_noaug.run.directory import RunDirectory
from psy_agents_noaug.run.ensemble import built_model, load_members
from psy_agents_noaug.run.evaluate import RunResult
from psy_agents_noaug.run.hardware import prepare_hardware
from psy_agents_noaug.run.rebuild import trained_criteria
from psy_agents_noaug.run.records import ReportWriter, no_report, read_history
from psy_agents_noaug.run.refits import PLAN, REFIT, describe
from psy_agents_noaug.run.series.plan import PlannedRun, Series, open_series, plan_sha256
from psy_agents_noaug.run.series.work import run_series
from psy_agents_noaug.run.train import train
from psy_agents_noaug.tasks.base import DecisionRule, Predictions, Task
from psy_agents_noaug.training.evaluator import Evaluator
from psy_agents_noaug.training.refit import RefitDecisions
from psy_agents_noaug.utils.logs import log_level

FINAL = "final"  # the name of the run
_DATA_LOG = "psy_agents_noaug.run.data"

logger = logging.getLogger(__name__)


def run_refit(
    settings: SeriesConfig,
    config: TrainConfig,
    *,
    overrides: Sequence[str],
    write_report: ReportWriter = no_report,
) -> RunResult | None:
    """Cross-validate on train and val, then train on both; or go on where the same command was stopped.

    Args:
        settings: folds and workers.
        config: of the final training, as `load_series_config` returns it.
        overrides: the command line without its verb, for the other workers.
        write_report: writes the report of the cross-validation.

    Returns:
        The directory of the final run, with the pooled figures of the cross-validation; None with
        `reports=false`.

    Raises:
        ConfigError, DataError, CheckpointError, StorageError: the user's to mend.
        Interrupted: stopped by a signal, state saved.
        NonFiniteError, LoaderError: as `train`.
    """
    of_folds = config.model_copy(update={"refit": None})
    pooled = run_series("refit", settings, of_folds, overrides=overrides, write_report=write_report)
    if pooled is None:
        return None
    series = open_series("refit", settings, of_folds)
    origin = _origin(series)
    own = {"run_name": f"{series.folder}/{FINAL}", "resume": "auto"}
    final = PlannedRun(None, config.seed, config.model_copy(update=own))
    if not _is_done(final.directory, origin):
        train(final.config, refit=_decisions(series, origin))
    directory = final.directory.path
    summary = (
        f"Cross-validation on train and val:\n{pooled.summary}\n\nThe figures above are those of the "
        f"folds' models, on train and val. {describe(origin)}\nIt has figures on test alone:\n"
        f"  psy-agents eval checkpoint={directory}"
    )
    return RunResult(directory, pooled.metrics, summary)


def _is_done(directory: RunDirectory, origin: dict[str, Any]) -> bool:
    """Whether the final model is trained.

    Raises:
        CheckpointError: by another cross-validation.
    """
    manifest = directory.read_manifest()
    if manifest.get("status") != "finished" or not directory.best_checkpoint.is_file():
        return False
    if manifest.get(REFIT) != origin:
        raise CheckpointError(
            f"The model in {directory.path} was decided by another cross-validation than the one beside "
            "it. Choose another `run_name`, or remove it."
        )
    return True


def _origin(series: Series) -> dict[str, Any]:
    """Return where the decisions come from, and for how many epochs the final model is trained."""
    best = [_best_epoch(run) for run in series.runs]
    return {
        "splits": ["train", "val"],
        PLAN: plan_sha256(series),
        "n_folds": len(series.runs),
        "best_epochs": best,
        "epochs": statistics.median(best),
    }


def _best_epoch(run: PlannedRun) -> float:
    """Return the epoch of the weights that a fold has kept.

    Raises:
        DataError: its records are damaged.
    """
    directory = run.directory
    best_step = directory.read_manifest().get("best_step")
    rows = read_history(directory.history)
    # Where the monitor was never defined, the last weights are kept.
    kept = [row for row in rows if row["step"] == best_step] or rows[-1:]
    if not kept or kept[0].get("epoch") is None:
        raise DataError(f"{directory.history} is damaged: it lacks the epoch of step {best_step}.")
    return float(kept[0]["epoch"])


def _decisions(series: Series, origin: dict[str, Any]) -> RefitDecisions:
    logger.info("Fitting the decision rule on the predictions of all folds.")
    with log_level("psy_agents_noaug", logging.WARNING), log_level(_DATA_LOG, logging.ERROR):
        rule = _out_of_fold_rule(series)
    return RefitDecisions(
        epochs=origin["epochs"],
        rule=rule,
        lines=series.directory.read_predictions(OUT_OF_FOLD),
        origin=origin,
    )


def _out_of_fold_rule(series: Series) -> DecisionRule:
    """Fit the decision rule on the predictions of every fold by the model that did not see it."""
    examples: list[Example] = []
    values: list[Predictions] = []
    for run in series.runs:
        own, predicted = _predicted_fold(run)
        examples += own
        values.append(predicted)
    together = {name: np.concatenate([part[name] for part in values]) for name in values[0]}
    # A rule is fitted on the pairs that an evaluation knows as val.
    evaluation = _model(series.runs[0], {"val": examples})[0].evaluation
    return evaluation.fit_decision_rule(together)


def _predicted_fold(run: PlannedRun) -> tuple[list[Example], Predictions]:
    examples = prepare_data(run.config).examples["test"]
    task, evaluator = _model(run, {"test": examples})
    return examples, evaluator.predict(task.model, task.source("test"))


def _model(run: PlannedRun, examples: Mapping[str, Sequence[Example]]) -> tuple[Task, Evaluator]:
    """Return the model of a fold, on examples by split."""
    (member,) = load_members(run.directory.best_checkpoint, task=run.config.task.name)
    return built_model(
        member,
        run.config,
        prepare_hardware(run.config),
        criteria=trained_criteria(member.checkpoint, member.path),
        examples=examples,
        held_out=(),
    )
