"""Files that every stage writes: the table of trials, plots, the latest best configuration."""

import csv
import io
import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import optuna
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from optuna.exceptions import ExperimentalWarning
from optuna.trial import TrialState

from psy_agents_noaug.errors import ConfigError
from psy_agents_noaug.hpo.workers import LOST, StudyProgress, counted, original_number
from psy_agents_noaug.utils.files import write_bytes, write_text
from psy_agents_noaug.utils.shown import spreadsheet_cell

_COLUMNS = ("seconds", "evaluations", "run", "worker", "cause")

logger = logging.getLogger(__name__)


def write_trials(study: optuna.Study, path: Path) -> Path:
    """Write one row per trial. The column `counts` is False for an attempt that was tried again."""
    trials = study.get_trials(deepcopy=False)
    counting = {trial.number for trial in counted(trials)}
    params = list(dict.fromkeys(name for trial in trials for name in trial.params))
    rows: list[list[object]] = [["number", "trial", "state", "counts", "value", *params, *_COLUMNS]]
    for trial in trials:
        attributes = trial.user_attrs
        rows.append(
            [trial.number, original_number(trial), trial.state.name, trial.number in counting]
            + ["" if trial.value is None else trial.value]
            + [trial.params.get(name, "") for name in params]
            + [attributes.get("seconds", ""), len(trial.intermediate_values)]
            + [attributes.get("run", ""), attributes.get("worker", "")]
            + [attributes.get("cause", LOST) if trial.state == TrialState.FAIL else ""]
        )
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([[spreadsheet_cell(cell) for cell in row] for row in rows])
    write_text(path, text.getvalue())
    return path


def write_plots(study: optuna.Study, folder: Path) -> list[Path]:
    """Plot the values of the trials and, if they differ, how important each parameter was."""
    from optuna.visualization.matplotlib import plot_optimization_history, plot_param_importances

    plots: dict[str, Callable[[optuna.Study], Axes]] = {
        "history": plot_optimization_history,
        "importances": plot_param_importances,
    }
    complete = StudyProgress.of(study).complete
    if len({trial.value for trial in complete}) < 2:
        logger.info(
            "Parameter importances are not plotted: they need trials with different values."
        )
        del plots["importances"]
    written: list[Path] = []
    for name, plot in plots.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            # Optuna warns that few trials give rough importances; trials.csv shows how many there are.
            warnings.simplefilter("ignore", UserWarning)
            figure = plot(study).figure
        assert isinstance(figure, Figure)
        written.append(save_figure(figure, folder / f"{name}.png"))
    return written


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG, atomically, and close it."""
    from matplotlib import pyplot

    figure.set_size_inches(8.0, 4.5)
    figure.tight_layout()
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    pyplot.close(figure)
    write_bytes(path, content.getvalue())
    return path


def publish_latest(path: Path, folder: Path) -> Path:
    """Copy a task's best_config.yaml to the folder of the stage, which holds the latest of any task."""
    latest = folder.parent / path.name
    write_text(latest, path.read_text(encoding="utf-8"))
    return latest


def refuse_empty(study: optuna.Study) -> None:
    """Check that a trial is complete.

    Raises:
        ConfigError: none is; with the causes.
    """
    progress = StudyProgress.of(study)
    if progress.complete:
        return
    causes = sorted({trial.user_attrs.get("cause", LOST) for trial in progress.failed})
    raise ConfigError(
        f"No trial of {study.study_name} is complete: {len(progress.failed)} failed, "
        f"{len(progress.pruned)} were pruned. Causes: {'; '.join(causes) or 'none'}. Start another "
        "study with `hpo.study=NAME`, or add trials with `hpo.n_trials`."
    )
