"""The manifest: the code, machine, data and weights that a run's numbers came from."""

import functools
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from psy_agents_noaug.tracking.base import without_private_parts
from psy_agents_noaug.utils.files import write_json
from psy_agents_noaug.utils.reproducibility import system_info

MANIFEST_FORMAT = 1

_PACKAGES = (
    "psy-agents-noaug",
    "datasets",
    "hydra-core",
    "mlflow",
    "numpy",
    "optuna",
    "pandas",
    "peft",
    "rapidfuzz",
    "regex",
    "safetensors",
    "scikit-learn",
    "scipy",
    "tokenizers",
    "torch",
    "transformers",
)
_GIT_TIMEOUT_SECONDS = 5


def environment() -> dict[str, Any]:
    """Describe the code and the machine: versions, git commit, hardware.

    `packages` maps a distribution to its version, or to None where it isn't installed. `git` has
    `commit`, `dirty` (whether the package's folder differs from that commit) and `reason` (why the
    first two are None).
    """
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": package_versions(),
        "git": _git_state(Path(__file__).resolve().parents[1]),
        "system": system_info(),
    }


def package_versions(more: Sequence[str] = ()) -> dict[str, str | None]:
    """Return the versions of the packages that results depend on, None where one isn't installed.

    Args:
        more: names of further packages.
    """
    return {name: _version(name) for name in (*_PACKAGES, *more)}


def write_manifest(
    path: Path,
    *,
    task: str,
    run_name: str,
    created_at: str,
    data: Mapping[str, object],
    weights_sha256: str | None,
    command: Sequence[str],
    extra: Mapping[str, object] | None = None,
) -> dict[str, Any]:
    """Write the manifest atomically and return what was written.

    Home and working directories and credentials in any string are shortened or hidden, so that
    the file can be published with the weights.

    Args:
        path: the file to write; its folder exists.
        task: `criteria`, `evidence` or `joint`.
        run_name: the run's name.
        created_at: ISO 8601 time.
        data: fingerprints and counts of the data.
        weights_sha256: hash of the weights, or None if the run left none.
        command: the command line, `sys.argv`.
        extra: further top-level entries.

    Raises:
        ValueError: if `extra` would replace one of the manifest's own entries.
    """
    manifest: dict[str, Any] = {
        "format": MANIFEST_FORMAT,
        "task": task,
        "run_name": run_name,
        "created_at": created_at,
        "command": list(command),
        "data": dict(data),
        "weights_sha256": weights_sha256,
        "environment": environment(),
    }
    extra = extra or {}
    clashes = sorted(manifest.keys() & extra.keys())
    if clashes:
        raise ValueError(f"`extra` must not replace {', '.join(clashes)}.")
    published: dict[str, Any] = _publishable({**manifest, **extra})
    write_json(path, published)
    return published


def _publishable(value: Any) -> Any:
    if isinstance(value, str | os.PathLike):
        return without_private_parts(str(value))
    if isinstance(value, Mapping):
        return {str(_publishable(key)): _publishable(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_publishable(entry) for entry in value]
    return value


@functools.cache
def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _git_state(folder: Path) -> dict[str, Any]:
    try:
        # If the package is installed inside another project's checkout, that commit is not its own.
        tracked = _git(folder, "ls-files", "--", "__init__.py")
        if not tracked:
            return _no_git("the package's files are not tracked by git")
        commit = _git(folder, "rev-parse", "HEAD")
        changes = _git(folder, "status", "--porcelain", "--", ".")
    except FileNotFoundError:
        return _no_git("git is not installed")
    except subprocess.TimeoutExpired:
        return _no_git(f"git took longer than {_GIT_TIMEOUT_SECONDS} s")
    except subprocess.CalledProcessError as error:
        return _no_git(f"git {error.cmd[3]} failed with exit code {error.returncode}")
    return {"commit": commit, "dirty": bool(changes), "reason": None}


def _no_git(reason: str) -> dict[str, Any]:
    return {"commit": None, "dirty": None, "reason": reason}


def _git(folder: Path, *arguments: str) -> str:
    # Inside a git hook, GIT_DIR and similar variables name another repository.
    variables = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    finished = subprocess.run(
        ["git", "--no-optional-locks", "-C", str(folder), *arguments],  # noqa: S607  (the user's git)
        check=True,
        capture_output=True,
        text=True,
        timeout=_GIT_TIMEOUT_SECONDS,
        env=variables,
    )
    return finished.stdout.strip()
