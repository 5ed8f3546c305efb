"""All tasks: the folders beside this file, and the entry points of other packages.

A folder `tasks/<name>/` has `<Name>TaskConfig` in `config.py` and `<Name>Task` in `task.py`. Another
package names its subclass of `Task` as an entry point of the group `psy_agents_noaug.tasks`, and has the
values of its settings in `configs/task/<name>.yaml`. Only `task_class` imports torch.
"""

import importlib
import importlib.util
import pkgutil
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING

from psy_agents_noaug.errors import ConfigError

if TYPE_CHECKING:
    from psy_agents_noaug.config.schema import TaskSettings
    from psy_agents_noaug.tasks.base import Task

ENTRY_POINTS = "psy_agents_noaug.tasks"


def task_names() -> list[str]:
    """Return the names of all tasks, sorted."""
    return sorted({*_folders(), *_installed()})


def settings_model(name: str) -> "type[TaskSettings]":
    """Return the settings model of the task `name`, for the section `task`.

    Raises:
        ConfigError: there is no such task, or its package cannot be imported.
    """
    if name not in _folders():
        return task_class(name).settings
    module = importlib.import_module(f"{__package__}.{name}.config")
    model: type[TaskSettings] = getattr(module, f"{name.capitalize()}TaskConfig")
    return model


def task_class(name: str) -> "type[Task]":
    """Return the class of the task `name`.

    Raises:
        ConfigError: there is no such task, or its package cannot be imported.
    """
    if name in _folders():
        module = importlib.import_module(f"{__package__}.{name}.task")
        task: type[Task] = getattr(module, f"{name.capitalize()}Task")
        return task
    entry = _installed().get(name)
    if entry is None:
        raise ConfigError(
            f"`task` must be one of {', '.join(task_names())}, but is {name} instead."
        )
    from psy_agents_noaug.tasks.base import Task as Base

    try:
        loaded = entry.load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"The task {name} cannot be imported from {entry.value}: {error}. Reinstall its package."
        ) from error
    if not (isinstance(loaded, type) and issubclass(loaded, Base)):
        raise ConfigError(
            f"The entry point {name} of the group {ENTRY_POINTS} must name a subclass of "
            f"psy_agents_noaug.tasks.base.Task, but {entry.value} is not."
        )
    return loaded


def config_folders() -> list[Path]:
    """Return the `configs` folders of other packages that have tasks."""
    folders = []
    for entry in _installed().values():
        package = importlib.util.find_spec(entry.module.partition(".")[0])
        if package is not None and package.origin is not None:
            folders.append(Path(package.origin).parent / "configs")
    return [folder for folder in dict.fromkeys(folders) if folder.is_dir()]


def _folders() -> list[str]:
    return [
        module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]) if module.ispkg
    ]


def _installed() -> dict[str, EntryPoint]:
    """Return the entry points of other packages, by task. A folder here wins over an entry point."""
    return {e.name: e for e in entry_points(group=ENTRY_POINTS) if e.name not in _folders()}
