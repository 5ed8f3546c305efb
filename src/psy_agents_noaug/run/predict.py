"""The story of a prediction: posts are read, judged and written a chunk at a time."""

import logging
import signal
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from psy_agents_noaug.config.schema import PredictConfig
from psy_agents_noaug.data.posts_stream import PostsStream
from psy_agents_noaug.errors import ConfigError, DataError, Interrupted, PsyAgentsError
from psy_agents_noaug.metrics.tables import render_table
from psy_agents_noaug.run.data import data_folder
from psy_agents_noaug.run.prediction_files import PredictionFile, open_predictions
from psy_agents_noaug.run.scale.predict import predict_in_units
from psy_agents_noaug.run.scoring import Scorer
from psy_agents_noaug.training.progress import PostsProgress
from psy_agents_noaug.utils.files import without_tilde
from psy_agents_noaug.utils.out_of_memory import explained_memory_errors
from psy_agents_noaug.utils.private_errors import without_texts
from psy_agents_noaug.utils.signals import StopSignals

logger = logging.getLogger(__name__)

STANDARD = "-"  # for standard input
NO_DIAGNOSIS = "A model's predictions are no diagnosis."


@dataclass
class Counts:
    """What was predicted so far.

    Attributes:
        posts: number of posts.
        met: number of posts with a decision that the criterion is met, by criterion.
        seconds: that judging and writing took.
    """

    posts: int = 0
    met: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    def add(self, n_posts: int, scored: pa.Table) -> None:
        """Count the predictions of further posts."""
        self.posts += n_posts
        for criterion_id in pc.unique(scored["criterion_id"]).to_pylist():
            self.met[criterion_id] += 0
        met = scored.filter(is_met(scored))
        counted = met.group_by("criterion_id").aggregate([("post_id", "count_distinct")])
        for row in counted.to_pylist():
            self.met[row["criterion_id"]] += row["post_id_count_distinct"]


def is_met(predictions: pa.Table) -> pa.ChunkedArray:
    """Return for each row whether it decides that the criterion is met: here, that there is evidence."""
    if "decision" in predictions.column_names:
        return pc.equal(predictions["decision"], 1)
    return pc.greater(pc.list_value_length(predictions["evidence"]), 0)


@without_texts()
@explained_memory_errors()
def predict(config: PredictConfig) -> str:
    """Judge the posts of a file, and write the predictions.

    A table of posts without annotations is enough. Memory does not grow with the file, but for 8 bytes a
    post, by which an identifier that occurs twice is found.

    Args:
        config: the settings.

    Returns:
        A summary for standard output; empty where the predictions are written there.

    Raises:
        DataError: the file breaks the data contract; what was predicted before the fault is kept.
        CheckpointError, ConfigError: before a post is judged.
        StorageError: the predictions cannot be written.
        Interrupted: by a signal; what was predicted is kept.
    """
    if config.is_in_units:
        return predict_in_units(config)
    source = _source(config)
    _refuse_to_replace(source, config.output)
    counts = Counts()
    columns = config.data.columns.get("posts", {})
    with (
        closing(PostsStream(source, columns, rows=config.posts_per_chunk)) as posts,
        closing(open_predictions(config.output)) as predictions,
    ):
        scorer = Scorer(config.checkpoint, config, overrides=config.overrides)
        try:
            _predict_all(posts, scorer, predictions, counts, skip=config.skip)
        except BrokenPipeError:
            return ""  # who reads standard output wants no more of it, as `head` does
        except PsyAgentsError as error:
            raise type(error)(f"{error}\n{_kept(predictions, counts, config)}") from error
        except (KeyboardInterrupt, Interrupted) as stop:
            code = stop.exit_code if isinstance(stop, Interrupted) else 128 + signal.SIGINT
            message = f"Stopped. {_kept(predictions, counts, config)}"
            raise Interrupted(message, exit_code=code) from stop
    told = summary(counts, output=predictions.name)
    if predictions.is_standard_output:
        logger.info("%s", told)
        return ""
    return f"\n{told}"


def _predict_all(
    posts: PostsStream, scorer: Scorer, predictions: PredictionFile, counts: Counts, *, skip: int
) -> None:
    """Predict part after part. What is counted is written, and the other way round."""
    began = time.perf_counter()
    n_read = 0
    with PostsProgress() as progress:
        for part in posts:
            wanted = part.slice(max(0, skip - n_read))
            n_read += len(part)
            if len(wanted) > 0:
                scored = scorer(wanted)
                with StopSignals() as stop:
                    predictions.write(scored)
                    counts.add(len(wanted), scored)
                if stop.received:
                    raise Interrupted("", exit_code=128 + stop.received)
            counts.seconds = time.perf_counter() - began
            progress.update(posts=len(wanted), fraction=posts.fraction_read)
    if skip > n_read:
        raise DataError(f"`skip` must be at most {n_read:,}, the number of posts, but is {skip:,}.")
    predictions.finish(scorer.schema)


def _source(config: PredictConfig) -> Path | None:
    """Return the file of posts; None: standard input."""
    if config.data.posts == STANDARD:
        return None
    return data_folder(config.data) / without_tilde(str(config.data.posts))


def _refuse_to_replace(source: Path | None, output: str | None) -> None:
    """Refuse to write the predictions where the posts are.

    Raises:
        ConfigError: both are one file.
    """
    if source is None or output is None or not (source.exists() and Path(output).exists()):
        return
    if source.samefile(output):
        raise ConfigError(f"`output` must be another file than `data.posts`, but is {output}.")


def _kept(predictions: PredictionFile, counts: Counts, config: PredictConfig) -> str:
    """Say what was predicted before a prediction ended, and how to go on."""
    place = predictions.keep()
    if place is None:
        return "No predictions were written."
    done = config.skip + counts.posts
    return (
        f"The predictions of {counts.posts:,} posts are in {place}, and are whole. The same command "
        f"with skip={done} and another `output` predicts the others."
    )


def summary(counts: Counts, *, output: str) -> str:
    """Return what a prediction ends with: posts decided met by criterion, the rate, and the output.

    Args:
        counts: what was predicted.
        output: where it was written.
    """
    rows = [["criterion", "posts met", "share"]]
    rows += [
        [criterion_id, f"{count:,}", f"{count / counts.posts:.3f}"]
        for criterion_id, count in counts.met.items()
    ]
    rate = counts.posts / max(counts.seconds, 1e-9)
    return "\n".join(
        [
            render_table(rows, left=1),
            "",
            f"{counts.posts:,} posts in {counts.seconds:,.1f} s, {rate:,.1f} posts/s: {output}",
            NO_DIAGNOSIS,
        ]
    )
