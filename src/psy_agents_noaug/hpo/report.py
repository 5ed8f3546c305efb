"""Files that every stage writes: trials, plots; and where settings come from."""

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

_COLUMNS = ("seconds", "evaluations", "run", "worker", "cause")

logger = logging.getLogger(__name__)


def write_trials(study: optuna.Study, path: Path) -> Path:
    """Write a row a trial, attempts that were tried again included and marked by `counts`."""
    trials = study.get_trials(deepcopy=False)
    own = {trial.number for trial in counted(trials)}
    params = list(dict.fromkeys(name for trial in trials for name in trial.params))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["number", "trial", "state", "counts", "value", *params, *_COLUMNS])
    for trial in trials:
        attributes = trial.user_attrs
        writer.writerow(
            [trial.number, original_number(trial), trial.state.name, trial.number in own]
            + ["" if trial.value is None else repr(trial.value)]
            + [trial.params.get(name, "") for name in params]
            + [attributes.get("seconds", ""), len(trial.intermediate_values)]
            + [attributes.get("run", ""), attributes.get("worker", "")]
            + [attributes.get("cause", LOST) if trial.state == TrialState.FAIL else ""]
        )
    write_text(path, text.getvalue())
    return path


def write_plots(study: optuna.Study, folder: Path) -> list[Path]:
    """Write the history of the search, and what mattered in it where that can be told."""
    from optuna.visualization.matplotlib import plot_optimization_history, plot_param_importances

    plots: dict[str, Callable[[optuna.Study], Axes]] = {
        "history": plot_optimization_history,
        "importances": plot_param_importances,
    }
    complete = StudyProgress.of(study).complete
    if len({trial.value for trial in complete}) < 2:
        logger.info("No importances are plotted: fewer than two trials ended differently.")
        del plots["importances"]
    written: list[Path] = []
    for name, plot in plots.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            # That an importance rests on few trials; how many there were stands beside it.
            warnings.simplefilter("ignore", UserWarning)
            figure = plot(study).figure
        assert isinstance(figure, Figure)
        written.append(save_figure(figure, folder / f"{name}.png"))
    return written


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a plot, atomically, and let go of it."""
    from matplotlib import pyplot

    figure.set_size_inches(8.0, 4.5)
    figure.tight_layout()
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    pyplot.close(figure)
    write_bytes(path, content.getvalue())
    return path


def publish_latest(path: Path, folder: Path) -> Path:
    """Copy a task's best_config.yaml to the stage's folder, where the latest one's is found."""
    latest = folder.parent / path.name
    write_text(latest, path.read_text(encoding="utf-8"))
    return latest


def refuse_empty(study: optuna.Study) -> None:
    """Raise ConfigError, with the causes, if no trial came to anything."""
    standing = StudyProgress.of(study)
    if standing.complete:
        return
    causes = sorted({trial.user_attrs.get("cause", LOST) for trial in standing.failed})
    raise ConfigError(
        f"No trial of {study.study_name} came to an end: {len(standing.failed)} failed, "
        f"{len(standing.pruned)} were pruned. Causes: {'; '.join(causes) or 'none'}. Begin another "
        "study by `hpo.study=NAME`, or give this one more by `hpo.n_trials`."
    )
