"""The interface by which a run is recorded, and a tracker that records nothing."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Protocol

Status = Literal["FINISHED", "FAILED", "KILLED"]


class Tracker(Protocol):
    """Records one run: ids, numbers and settings, never the text of a post."""

    @property
    def run_id(self) -> str | None:
        """The id by which this run can be resumed, or None if nothing is recorded."""

    @property
    def parent_run_id(self) -> str | None:
        """The run under which this one is shown, if any."""

    def log_params(self, params: Mapping[str, object]) -> None:
        """Record settings, nested as they are in the config."""

    def log_metrics(
        self, metrics: Mapping[str, float | int | None], *, step: int, replaces: bool = False
    ) -> None:
        """Record metrics after `step` optimizer steps; None means undefined and is skipped.

        A metric is recorded once for a step, unless it `replaces` one of another value.
        """

    def log_artifact(self, path: Path) -> None:
        """Store a copy of a file, or of a folder with everything in it."""

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run; a later value replaces an earlier one."""

    def close_children(self) -> None:
        """Set child runs that are still RUNNING to KILLED. Their processes must have ended."""

    def finish(self, status: Status) -> None:
        """Close the run. A second call does nothing."""


class NullTracker:
    """Records nothing: for `tracking=none`, and for every process but the main one.

    Args:
        parent_run_id: the run under which this one would be shown.
    """

    run_id: str | None = None
    parent_run_id: str | None = None

    def __init__(self, parent_run_id: str | None = None) -> None:
        self.parent_run_id = parent_run_id

    def log_params(self, params: Mapping[str, object]) -> None: ...
    def log_metrics(
        self, metrics: Mapping[str, float | int | None], *, step: int, replaces: bool = False
    ) -> None: ...
    def log_artifact(self, path: Path) -> None: ...
    def set_tags(self, tags: Mapping[str, str]) -> None: ...
    def close_children(self) -> None: ...
    def finish(self, status: Status) -> None: ...


def without_private_parts(text: str) -> str:
    """Shorten the working directory to `.` and the home directory to `~`, and hide credentials.

    A manifest may be published with the weights, and an MLflow server may be shared. Neither may
    hold a user name in a path, or the password in `postgresql://user:password@host/db`.
    """
    text = re.sub(r"(://)[^/\s@]+@", r"\1***@", text)
    text = re.sub(r"([?&]\w*password\w*=)[^&\s'\"]+", r"\1***", text)
    for find, short in ((Path.cwd, "."), (Path.home, "~")):
        try:
            folder = find()
        except (OSError, RuntimeError):  # it was removed, or the user has none
            continue
        if folder != Path(folder.anchor):
            # Whole path components only: /root must not match in /data/root or /rootfs.
            text = re.sub(rf"(?<![\w.~-]){re.escape(str(folder))}(?![\w.-])", short, text)
    return text
