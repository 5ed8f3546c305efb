"""What is exported."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from psy_agents_noaug.config.schema import TrainConfig
from psy_agents_noaug.data.dsm5 import Criterion
from psy_agents_noaug.data.examples import Example
from psy_agents_noaug.exports.windows import WindowModel
from psy_agents_noaug.run.rebuild import rebuilt_task
from psy_agents_noaug.tasks.base import Task
from psy_agents_noaug.training.checkpoint import Checkpoint
from psy_agents_noaug.training.hardware import Hardware


@dataclass(frozen=True)
class Source:
    """What is exported.

    Args:
        path: of the checkpoint.
        checkpoint: as it was read; says where the data of the training are.
        shared: without anything private; all that is written is of it.
        config: of the checkpoint, for a CPU in fp32 with padding.
        hardware: as `config` has it.
        criteria: of the training.
    """

    path: Path
    checkpoint: Checkpoint
    shared: Checkpoint
    config: TrainConfig
    hardware: Hardware
    criteria: Sequence[Criterion]

    def task(self, examples: Mapping[str, Sequence[Example]]) -> Task:
        """Build the task with its weights; examples by split are needed to evaluate alone."""
        return rebuilt_task(
            self.shared,
            self.path,
            self.config,
            self.hardware,
            criteria=self.criteria,
            examples=examples,
        )

    def window_model(self) -> WindowModel:
        """Build the model as a function of tensors."""
        return WindowModel(self.task({}))
