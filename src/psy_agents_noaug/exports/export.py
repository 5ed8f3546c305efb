"""The story of an export: from a checkpoint to a folder that is written whole or not at all."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from psy_agents_noaug.config.loading import lay_over
from psy_agents_noaug.config.schema import ExportConfig
from psy_agents_noaug.exports.card import Form, model_card
from psy_agents_noaug.exports.facts import facts_of
from psy_agents_noaug.exports.formats import write_bundle, write_huggingface, write_onnx_folder
from psy_agents_noaug.exports.onnx import PACKAGES, require_packages
from psy_agents_noaug.exports.push import CARD, check_push, push
from psy_agents_noaug.exports.source import Source
from psy_agents_noaug.models.encoder import quiet_transformers
from psy_agents_noaug.run.directory import checkpoint_file
from psy_agents_noaug.run.hardware import prepare_hardware
from psy_agents_noaug.run.rebuild import trained_criteria
from psy_agents_noaug.run.refits import REFIT, refit_of
from psy_agents_noaug.run.sharing import shareable
from psy_agents_noaug.tracking.manifest import package_versions
from psy_agents_noaug.training.checkpoint import load_checkpoint, using, weights_sha256
from psy_agents_noaug.utils.files import check_unused, write_json, write_text, written_whole
from psy_agents_noaug.utils.out_of_memory import explained_memory_errors
from psy_agents_noaug.utils.private_errors import without_texts

logger = logging.getLogger(__name__)

SETTINGS = "settings.json"
_PACKAGES = ("psy-agents-noaug", "safetensors", "tokenizers", "torch", "transformers")
_WRITERS = {
    "huggingface": write_huggingface,
    "onnx": write_onnx_folder,
    "bundle": write_bundle,
}
# As each encoder is written by its authors, in full precision.
_PLAIN = {
    "training.device": "cpu",
    "training.amp": "off",
    "training.execution": "padded",
    "training.compile": False,
    "training.gradient_checkpointing": False,
    "data.token_cache": "off",
}


@dataclass(frozen=True)
class ExportResult:
    """What an export has written.

    Args:
        folder: the export.
        summary: what it is, for the console.
        repository: its address on the Hub; None without `push`.
    """

    folder: Path
    summary: str
    repository: str | None = None


@without_texts()
@explained_memory_errors()
def export(settings: ExportConfig, *, task: str | None = None) -> ExportResult:
    """Write a checkpoint in another format, with a model card.

    Args:
        settings: the checkpoint, the format and where to.
        task: that the checkpoint must be of; None accepts any.

    Raises:
        CheckpointError: the checkpoint is damaged, or of another task.
        ConfigError: the folder is not empty, the format cannot hold this model, a package is missing, or
            the upload failed; only in the last case is anything written.
        StorageError: the folder cannot be written.
    """
    if settings.format == "onnx":
        require_packages()
    if settings.push is not None:
        check_push(settings.push)
    assert settings.checkpoint is not None
    path = checkpoint_file(Path(settings.checkpoint))
    checkpoint = load_checkpoint(path, task=task)
    folder = _output(settings, path)
    criteria = trained_criteria(checkpoint, path)
    with using(path):
        shared = shareable(checkpoint)
        config = lay_over(shared.config, _PLAIN)
    source = Source(path, checkpoint, shared, config, prepare_hardware(config), criteria)
    packages = (*_PACKAGES, *(PACKAGES if settings.format == "onnx" else ()))
    versions = {name: package_versions(packages)[name] for name in packages}
    with written_whole(folder) as unfinished:
        with quiet_transformers():
            form = _WRITERS[settings.format](
                source, unfinished, quantises=settings.quantize is not None
            )
        write_json(unfinished / SETTINGS, _settings(source, versions))
        card = model_card(
            source,
            facts_of(path, checkpoint),
            form,
            license_id=settings.license,
            versions=versions,
        )
        write_text(unfinished / CARD, card)
        _share_alike(unfinished, (unfinished / CARD).stat().st_mode)
    logger.info("Exported to %s.", folder)
    address = (
        None if settings.push is None else push(folder, settings.push, private=settings.private)
    )
    return ExportResult(folder, _summary(folder, form, address), address)


def _output(settings: ExportConfig, path: Path) -> Path:
    """Return the folder of an export.

    Raises:
        ConfigError: it is a file, or not empty.
    """
    if settings.output is not None:
        folder = Path(settings.output)
    else:
        folder = path.resolve().parent.parent / "exports" / settings.format
        if not (path.resolve().parent.parent / "config.yaml").is_file():
            folder = path.with_name(f"{path.stem}-{settings.format}")
    check_unused(folder, what="export")
    return folder


def _share_alike(folder: Path, mode: int) -> None:
    """Let who may read the card read all files: safetensors makes its files for their owner alone."""
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)


def _settings(source: Source, versions: Mapping[str, str | None]) -> dict[str, Any]:
    """Return what settings.json holds: all that is needed to make decisions of the outputs."""
    config, refit = source.config, refit_of(source.shared.metadata)
    return {
        "format": 1,
        "task": source.shared.task,
        "architecture": config.model.architecture,
        "max_length": config.model.max_length,
        "unit": config.data.unit,
        "settings": config.task.model_dump(),
        "criteria": [
            {"criterion_id": c.criterion_id, "name": c.name, "text": c.text}
            for c in source.criteria
        ],
        **source.shared.decision_rule,
        **({REFIT: dict(refit)} if refit else {}),
        "weights_sha256": weights_sha256(source.shared.weights),
        "versions": versions,
    }


def _summary(folder: Path, form: Form, address: str | None) -> str:
    lines = ["", *form.notes, "", "to load it:", ""]
    lines += [f"    {line}".rstrip() for line in form.code.splitlines()]
    lines += ["", f"export: {folder}", *([f"repository: {address}"] if address else [])]
    return "\n".join(lines)
