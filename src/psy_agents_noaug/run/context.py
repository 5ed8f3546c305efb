"""What the steps of a run share."""

from dataclasses import dataclass

from psy_agents_noaug.config.schema import TrainConfig
from psy_agents_noaug.run.data import PreparedData
from psy_agents_noaug.run.directory import RunDirectory
from psy_agents_noaug.tracking.base import Tracker
from psy_agents_noaug.training.hardware import Hardware


@dataclass(frozen=True)
class RunContext:
    """One run: its settings, and where and with what it happens.

    Args:
        config: the settings.
        hardware: processes, device and precision.
        directory: where results are written.
        data: the examples of every split, and what was found in them.
        tracker: records the results.
    """

    config: TrainConfig
    hardware: Hardware
    directory: RunDirectory
    data: PreparedData
    tracker: Tracker

    @property
    def is_main(self) -> bool:
        """Whether this process, of several, writes the results."""
        return self.hardware.distributed.is_main
