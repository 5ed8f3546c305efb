"""What `psy-agents info` reports: the installed versions, the optional packages, the machine."""

from collections.abc import Mapping
from importlib import metadata
from typing import Any

from packaging.requirements import Requirement

from psy_agents_noaug import __version__
from psy_agents_noaug.config.loading import CONFIG_DIR
from psy_agents_noaug.tracking.base import without_private_parts
from psy_agents_noaug.tracking.manifest import environment
from psy_agents_noaug.utils.reproducibility import describe_system, device_names, get_device

DISTRIBUTION = "psy-agents-noaug"


def system_report() -> dict[str, Any]:
    """Return the report as JSON-able values, without host name, user name or home folder.

    Beside what `environment()` says: `devices` with the precisions that each is fast at, `extras` with
    the packages that each still misses and its pip command, and the folder of the configurations.
    """
    devices = [get_device(name) for name in device_names()]
    return {
        "version": __version__,
        "config_dir": without_private_parts(str(CONFIG_DIR)),
        **environment(),
        "devices": [
            {
                "device": str(info.device),
                "name": info.name,
                "memory_bytes": info.memory_bytes,
                "fast_precisions": info.fast_precisions,
                "description": info.describe(),
            }
            for info in devices
        ],
        "extras": {
            extra: {"missing": missing, "install": f"pip install '{DISTRIBUTION}[{extra}]'"}
            for extra, missing in missing_packages().items()
        },
    }


def missing_packages() -> dict[str, list[str]]:
    """Return, by extra of this package, those of its packages that are not installed.

    Extras made of other extras are left out; without an installed distribution there are none.
    """
    try:
        distribution = metadata.distribution(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return {}
    requirements = [Requirement(line) for line in distribution.requires or []]
    found: dict[str, list[str]] = {}
    for extra in sorted(distribution.metadata.get_all("Provides-Extra") or []):
        own = [
            requirement.name
            for requirement in requirements
            if requirement.marker
            and requirement.marker.evaluate({"extra": extra})
            and not requirement.marker.evaluate({"extra": ""})
        ]
        if DISTRIBUTION not in own:
            found[extra] = [name for name in own if not _is_installed(name)]
    return found


def as_text(report: Mapping[str, Any]) -> str:
    """Return a report as lines for people."""
    git = report["git"]
    changed = " with changes" if git["dirty"] else ""
    lines = [
        f"{DISTRIBUTION} {report['version']}",
        f"git commit    {git['commit'] or 'none: ' + git['reason']}{changed}",
        f"configs       {report['config_dir']}",
        describe_system(report["system"]),
        "",
        "devices:",
        *(f"  {device['description']}" for device in report["devices"]),
        "",
        "packages:",
        *(
            f"  {name:16}{version or 'not installed'}"
            for name, version in report["packages"].items()
            if name != DISTRIBUTION
        ),
        "",
        "extras:",
        *(
            f"  {name:16}"
            + (f"lacks {', '.join(e['missing'])}: {e['install']}" if e["missing"] else "installed")
            for name, e in report["extras"].items()
        ),
    ]
    return "\n".join(lines)


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
