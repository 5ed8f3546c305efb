"""Units are scored on a Ray cluster, or on a Ray that is started here; the parts are the same files.

All machines must see the checkpoint, the posts and the output folder at the same paths, and have this
package installed. A process that dies loses the unit that it was scoring; Ray starts it again.
"""

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from psy_agents_noaug.errors import CheckpointError, PsyAgentsError
from psy_agents_noaug.run.scale.parts import TableScorer, footers_of
from psy_agents_noaug.run.scale.plan import Unit
from psy_agents_noaug.run.scale.units import Job, Outcome
from psy_agents_noaug.utils.extras import require

logger = logging.getLogger(__name__)

# Of a Ray that is started here. What goes through it are numbers of units, and a line of each.
_OBJECT_STORE_BYTES = 128 * 2**20


class UnitActor:
    """Scores units in a process of Ray.

    Args:
        job: what is scored.
        make_scorer: makes the scorer; called once.
    """

    def __init__(self, job: Job, make_scorer: Callable[[], TableScorer]) -> None:
        self._job = job
        self._make_scorer = make_scorer
        self._made: TableScorer | None = None

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Score the unit whose number the batch holds. Return its outcome, and what is to end all."""
        unit = self._job.plan.units[int(batch["unit"][0]) - 1]
        outcome, ends = Outcome(unit.number), ""
        try:
            outcome = self._job.settle(unit, self._scorer())
        except PsyAgentsError as error:
            # Ray would wrap it into an error of its own; it is raised again where the command runs.
            ends = str(error)
        return {name: [value] for name, value in {**asdict(outcome), "ends": ends}.items()}

    def _scorer(self) -> TableScorer:
        if self._made is None:
            self._made = self._make_scorer()
            if self._made.identity != self._job.plan.scorer:
                raise CheckpointError(
                    "A machine of the cluster has another checkpoint, or chooses another precision, "
                    "than the one that began. All must see the same files and have the same version; "
                    "`training.amp=off`, for one, leaves nothing to choose."
                )
        return self._made


class RayEngine:
    """Processes of a Ray cluster: that of RAY_ADDRESS; without it, one is started here, and ended.

    Args:
        make_scorer: makes the scorer of a process.
        workers: number of processes; None: one per GPU of the cluster, or without GPUs one per
            `threads` cores.
        threads: cores of a process.

    Raises:
        ConfigError: Ray is not installed.
    """

    def __init__(
        self, make_scorer: Callable[[], TableScorer], *, workers: int | None, threads: int
    ) -> None:
        require("ray", extra="scale", purpose="`engine=ray`")
        self._make_scorer = make_scorer
        self._workers = workers
        self._threads = threads
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        import ray
        import ray.data

        own = {} if os.environ.get("RAY_ADDRESS") else {"object_store_memory": _OBJECT_STORE_BYTES}
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **own)
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        ray.data.DataContext.get_current().enable_progress_bars = False
        resources = ray.cluster_resources()
        self._gpus, self._cores = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))

    def close(self) -> None:
        """Leave the cluster, and end one that was started here."""
        import ray

        ray.shutdown()

    def identity(self) -> dict[str, str]:
        """Make a scorer on a machine like those that will score, as this one may have no GPU."""
        import ray

        task = ray.remote(_identity).options(**self._resources())
        identity, ends = ray.get(task.remote(self._make_scorer))
        if ends:
            raise PsyAgentsError(ends)
        return dict(identity)

    def settle(self, job: Job, units: Sequence[Unit]) -> Iterator[Outcome]:
        """See `Engine`. Which posts have changed is found where units are scored."""
        import ray.data

        footers_of(job.plan, units, job.output)
        if not units:
            return
        size = min(self._workers or self._gpus or self._cores // self._threads or 1, len(units))
        logger.info("Ray: %d GPUs, %d cores, %d processes", self._gpus, self._cores, size)
        dataset = ray.data.from_items(
            [{"unit": unit.number} for unit in units], override_num_blocks=len(units)
        ).map_batches(
            UnitActor,
            fn_constructor_args=(job, self._make_scorer),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=size, max_tasks_in_flight_per_actor=1),
            **self._resources(),
        )
        for row in dataset.iter_rows():
            if ends := row.pop("ends"):
                raise PsyAgentsError(ends)
            yield Outcome(**row)

    def _resources(self) -> dict[str, int]:
        return {"num_cpus": self._threads, "num_gpus": min(self._gpus, 1)}


def _identity(make_scorer: Callable[[], TableScorer]) -> tuple[dict[str, str], str]:
    """Return the identity of a scorer, or why there is none."""
    try:
        return make_scorer().identity, ""
    except PsyAgentsError as error:
        return {}, str(error)
