"""Units are scored one after the other in this process; what is done is checked and not done again."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from psy_agents_noaug.data.validation import MAX_FAULTS_LISTED
from psy_agents_noaug.errors import DataError, faults_message
from psy_agents_noaug.run.scale.parts import (
    Footer,
    TableScorer,
    digest_of,
    footers_of,
    read_footer,
    write_part,
)
from psy_agents_noaug.run.scale.plan import Plan, Unit

logger = logging.getLogger(__name__)

PostsReader = Callable[[Plan, Unit], Iterable[pa.Table]]


@dataclass(frozen=True)
class Outcome:
    """What became of a unit.

    Args:
        unit: its number.
        n_posts: of the unit; 0 where there is a fault.
        n_rows: of its predictions.
        was_done: whether they were there before.
        fault: why there are none, or why those that are there are refused; None: they are there.
    """

    unit: int
    n_posts: int = 0
    n_rows: int = 0
    was_done: bool = False
    fault: str | None = None


@dataclass(frozen=True)
class Job:
    """What a process needs to know to score units. Can be sent to other machines that see the same disk.

    Args:
        plan: what is scored.
        output: the folder of the parts.
        read: reads the posts of a unit, a table at a time.
    """

    plan: Plan
    output: Path
    read: PostsReader

    def settle(self, unit: Unit, scorer: TableScorer) -> Outcome:
        """Score a unit; if that is done, check that its posts are still those that were scored.

        Args:
            unit: of the plan.
            scorer: of the plan's identity.

        Raises:
            StorageError: the predictions cannot be written.
        """
        path = self.plan.part_of(self.output, unit)
        if path.exists():
            footer = read_footer(path)
            fault = self.changed(unit, footer)
            return Outcome(unit.number, footer.n_posts, footer.n_rows, was_done=True, fault=fault)
        posts = self.read(self.plan, unit)
        try:
            footer = write_part(path, posts, scorer, plan=self.plan, unit=unit)
        except DataError as error:
            return Outcome(unit.number, fault=f"{unit}: {error}")
        return Outcome(unit.number, footer.n_posts, footer.n_rows)

    def changed(self, unit: Unit, footer: Footer) -> str | None:
        """Read the posts of a unit again, and say so if they are others than those that were scored."""
        if footer.rows == unit.rows:
            try:
                digest = digest_of(self.read(self.plan, unit))
            except DataError as error:
                return f"{unit}: {error}"
            if digest.hexdigest() == footer.input_sha256:
                return None
        every = unit.part.rpartition("-")[0]
        return (
            f"{unit}: the posts have changed since they were scored. Remove {unit.part} to score them "
            f"again, or {every}-* for all of the file; or write into another folder (`output`)"
        )


class Engine(Protocol):
    """Who scores the units."""

    def close(self) -> None:
        """End what was started."""

    def identity(self) -> dict[str, str]:
        """Return the identity of the scorer where it runs."""

    def settle(self, job: Job, units: Sequence[Unit]) -> Iterator[Outcome]:
        """Check the units that are done, and score the others.

        Raises:
            DataError: parts that are there are not those of the plan; before anything is scored.
            PsyAgentsError: a scorer cannot be made, or a part cannot be written.
        """


class LocalEngine:
    """This process.

    Args:
        make_scorer: makes the scorer.
    """

    def __init__(self, make_scorer: Callable[[], TableScorer]) -> None:
        self._scorer = make_scorer()

    def close(self) -> None:
        """There is nothing to end. See `Engine`."""

    def identity(self) -> dict[str, str]:
        return self._scorer.identity

    def settle(self, job: Job, units: Sequence[Unit]) -> Iterator[Outcome]:
        """Check all units that are done before one is scored. See `Engine`."""
        done = footers_of(job.plan, units, job.output)
        checked = [job.settle(unit, self._scorer) for unit in units if unit.number in done]
        raise_faults_of_units([outcome.fault for outcome in checked])
        yield from checked
        for unit in units:
            if unit.number not in done:
                yield job.settle(unit, self._scorer)


def raise_faults_of_units(faults: Iterable[str | None]) -> None:
    """Raise one DataError for all units whose predictions are not there, or not of their posts."""
    if found := [fault for fault in faults if fault is not None]:
        headline = (
            "Of these units there are no predictions, or none of these posts; what there is of others "
            "is kept. Mend what is wrong, and the same command scores the rest:"
        )
        rest = len(found) - MAX_FAULTS_LISTED
        more = [f"and {rest:,} units more"] if rest > 0 else []
        raise DataError(faults_message(headline, [*found[:MAX_FAULTS_LISTED], *more]))
