"""What a training run tells the outside world, and a listener that ignores it all."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Protocol

Status = Literal["FINISHED", "FAILED", "KILLED"]


class Tracker(Protocol):
    """Receives the progress of one run: ids, numbers and settings, never the text of a post."""

    @property
    def run_id(self) -> str | None:
        """The id to resume this run by, or None where nothing is kept."""

    def log_params(self, params: Mapping[str, object]) -> None:
        """Record settings, nested as they are in the config."""

    def log_metrics(self, metrics: Mapping[str, float | int | None], *, step: int) -> None:
        """Record metrics after `step` optimizer steps; None means undefined and is skipped."""

    def log_artifact(self, path: Path) -> None:
        """Keep a copy of a file, or of a folder with all it holds."""

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Label the run; a later value replaces an earlier one."""

    def close_children(self) -> None:
        """Call those runs below this one KILLED that no process is at any more."""

    def finish(self, status: Status) -> None:
        """Close the run. A second call does nothing."""


class NullTracker:
    """Tracks nothing (`tracking=none`, and every process but the first)."""

    run_id: str | None = None

    def log_params(self, params: Mapping[str, object]) -> None:
        """Ignore."""

    def log_metrics(self, metrics: Mapping[str, float | int | None], *, step: int) -> None:
        """Ignore."""

    def log_artifact(self, path: Path) -> None:
        """Ignore."""

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Ignore."""

    def close_children(self) -> None:
        """Ignore."""

    def finish(self, status: Status) -> None:
        """Ignore."""


def without_private_parts(text: str) -> str:
    """Shorten the working directory to `.` and the home directory to `~`, and hide credentials.

    What leaves the machine (a manifest next to published weights, a shared MLflow server) must
    not carry a user name in a path, or the password in `postgresql://user:password@host/db`.
    """
    text = re.sub(r"(://)[^/\s@]+@", r"\1***@", text)
    text = re.sub(r"([?&]\w*password\w*=)[^&\s'\"]+", r"\1***", text)
    for folder, short in ((Path.cwd(), "."), (Path.home(), "~")):
        if folder != Path(folder.anchor):
            # Whole path components only: /root is not a part of /data/root or /rootfs.
            text = re.sub(rf"(?<![\w.~-]){re.escape(str(folder))}(?![\w.-])", short, text)
    return text
