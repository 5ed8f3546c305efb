"""The story of a prediction in units: plan, check what is done, score the rest of a shard."""

import logging
import signal
import time
from collections.abc import Sequence
from contextlib import closing
from functools import partial

from psy_agents_noaug.config.schema import PredictConfig
from psy_agents_noaug.errors import Interrupted
from psy_agents_noaug.run.data import data_folder
from psy_agents_noaug.run.scale.plan import Plan, Unit, input_paths, make_plan, settle_plan
from psy_agents_noaug.run.scale.posts import UnitReader
from psy_agents_noaug.run.scale.ray_engine import RayEngine
from psy_agents_noaug.run.scale.units import (
    Engine,
    Job,
    LocalEngine,
    Outcome,
    raise_faults_of_units,
)
from psy_agents_noaug.run.scoring import Scorer
from psy_agents_noaug.training.progress import PostsProgress
from psy_agents_noaug.utils.files import sweep, without_tilde
from psy_agents_noaug.utils.shards import Shard

logger = logging.getLogger(__name__)

# Of a file that is one unit, from which on a kill loses a lot.
_MANY_BYTES = 50_000_000


def predict_in_units(config: PredictConfig) -> str:
    """Score the units of a shard that are not scored yet, into a folder.

    Args:
        config: the settings; `output` is the folder.

    Returns:
        A summary: what was done, and what is left to do.

    Raises:
        DataError: the posts cannot be read, have faults or have changed, or the folder holds other
            predictions; the units without faults are scored.
        CheckpointError, ConfigError: before a post is scored.
        StorageError: a part cannot be written.
        Interrupted: by a signal; whole units are kept.
    """
    output = without_tilde(str(config.output))
    paths = input_paths(config.data.posts, folder=data_folder(config.data), without=output)
    shard = Shard.parse(config.shard or "1/1")
    with closing(_engine(config)) as engine:
        plan = make_plan(
            paths,
            scorer=engine.identity(),
            columns=config.data.columns.get("posts", {}),
            unit_posts=config.unit_posts,
        )
        settle_plan(plan, output)
        _warn_of_large_units(plan)
        sweep(output)
        job = Job(plan, output, UnitReader(config.posts_per_chunk))
        began = time.perf_counter()
        settled = _settled(engine, job, shard)
        seconds = time.perf_counter() - began
    sweep(output)
    raise_faults_of_units([outcome.fault for outcome in settled])
    return _summary(job, shard, settled, seconds=seconds)


def _engine(config: PredictConfig) -> Engine:
    make_scorer = partial(Scorer, config.checkpoint, config, overrides=config.overrides)
    if config.engine == "local":
        return LocalEngine(make_scorer)
    threads = config.training.num_threads or 1
    return RayEngine(make_scorer, workers=config.workers, threads=threads)


def _settled(engine: Engine, job: Job, shard: Shard) -> list[Outcome]:
    """Score the units of a shard that are not scored, and show the progress."""
    units = shard.of(job.plan.units)
    settled: list[Outcome] = []
    n_missing, n_scored = len(_missing(job, units)), 0
    try:
        with PostsProgress() as progress:
            for outcome in engine.settle(job, units):
                settled.append(outcome)
                if not outcome.was_done:
                    n_scored += 1
                    fraction = min(1.0, n_scored / max(1, n_missing))
                    progress.update(posts=outcome.n_posts, fraction=fraction)
    except (KeyboardInterrupt, Interrupted) as stop:
        code = stop.exit_code if isinstance(stop, Interrupted) else 128 + signal.SIGINT
        left = len(_missing(job, units))
        message = f"Stopped. The same command scores the {left:,} units of {shard} that are left."
        raise Interrupted(message, exit_code=code) from stop
    return settled


def _warn_of_large_units(plan: Plan) -> None:
    large = [file for file in plan.inputs if file.n_rows is None and file.n_bytes >= _MANY_BYTES]
    if large:
        logger.warning(
            "%d files are a unit each, which no two processes share and a kill loses, such as %s; "
            "Parquet files are divided.",
            len(large),
            large[0].name,
        )


def _summary(job: Job, shard: Shard, settled: Sequence[Outcome], *, seconds: float) -> str:
    scored = [outcome for outcome in settled if not outcome.was_done]
    n_posts = sum(outcome.n_posts for outcome in scored)
    missing = _missing(job, job.plan.units)
    n_units = len(job.plan.units)
    lines = [
        f"{shard}: {len(scored):,} units scored, {len(settled) - len(scored):,} were done",
        f"{n_posts:,} posts in {seconds:,.1f} s ({n_posts / max(seconds, 1e-9):,.1f} posts/s)",
        f"{n_units - len(missing):,} of {n_units:,} units are in {job.output}"
        + ("" if missing else f": psy-agents merge {job.output} output=FILE"),
    ]
    return "\n".join(lines)


def _missing(job: Job, units: Sequence[Unit]) -> list[Unit]:
    there = {path.name for path in job.output.iterdir()}
    return [unit for unit in units if job.plan.part_of(job.output, unit).name not in there]
