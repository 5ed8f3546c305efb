"""The story of an adaptation: from unlabelled posts to an encoder that trainings begin with."""

import logging
import shutil
from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from psy_agents_noaug import __version__
from psy_agents_noaug.config.adaptation import AdaptConfig
from psy_agents_noaug.config.schema import TrainConfig
from psy_agents_noaug.models.encoder import BUNDLED_PREFIX, Encoder, load_encoder, rebuild_encoder
from psy_agents_noaug.models.masked_lm import load_language_model, rebuild_language_model
from psy_agents_noaug.run.adapted import FACTS, WEIGHTS
from psy_agents_noaug.run.checks import check_monitor, check_space
from psy_agents_noaug.run.directory import RunDirectory
from psy_agents_noaug.run.evaluate import RunResult
from psy_agents_noaug.run.hardware import prepare_hardware
from psy_agents_noaug.run.records import (
    manifest_status,
    open_tracker,
    record_training,
    send_history,
    tracking_status,
    write_history,
)
from psy_agents_noaug.run.train import (
    check_resumption,
    continued_checkpoint,
    observer_of,
    shared_directory,
)
from psy_agents_noaug.run.unlabelled import UnlabelledPosts, unlabelled_posts
from psy_agents_noaug.tasks.base import ENCODER, TaskInputs
from psy_agents_noaug.tasks.build import build_task
from psy_agents_noaug.tasks.masked_lm import (
    LANGUAGE_MODEL,
    MaskedLanguageEvaluation,
    MaskedLanguageTask,
    check_encoder,
)
from psy_agents_noaug.tracking.base import Tracker
from psy_agents_noaug.training.checkpoint import Checkpoint, load_checkpoint, using, weights_sha256
from psy_agents_noaug.training.evaluator import Evaluator
from psy_agents_noaug.training.hardware import Hardware
from psy_agents_noaug.training.trainer import Trainer, TrainingObserver, TrainingOutcome
from psy_agents_noaug.utils.files import (
    sha256_of_file,
    storing,
    temporary_beside,
    write_json,
    write_text,
)
from psy_agents_noaug.utils.out_of_memory import explained_memory_errors
from psy_agents_noaug.utils.private_errors import without_texts

logger = logging.getLogger(__name__)

FOLDER = "encoder"  # in the run's directory
_HEADS = {
    "pretrained": "of the pretrained weights",
    "new": "begun from the encoder's word embeddings, its other weights random",
}


@dataclass(frozen=True)
class Adaptation(RunResult):
    """What an adaptation ended with.

    Args:
        model: the folder of the adapted encoder, for `model.pretrained_model`.
    """

    model: Path


@dataclass(frozen=True)
class _Run:
    config: AdaptConfig
    hardware: Hardware
    directory: RunDirectory
    posts: UnlabelledPosts
    tracker: Tracker
    head: str

    def record(self, status: str, *, weights: str | None, **extra: object) -> None:
        record_training(
            self.config,
            self.hardware,
            self.directory,
            self.tracker,
            data=self.posts.fingerprints(),
            status=status,
            weights=weights,
            extra={"posts": self.posts.counts, "language_model_head": self.head, **extra},
        )


@without_texts()
@explained_memory_errors()
def adapt(config: AdaptConfig) -> Adaptation:
    """Continue masked-language-model training of an encoder on unlabelled posts.

    The best weights by the held-out perplexity are written as a folder that `model.pretrained_model`
    takes. Gururangan et al. 2020, "Don't Stop Pretraining".

    Args:
        config: of the run.

    Raises:
        As `run.train.train`.
    """
    hardware = prepare_hardware(config)
    distributed = hardware.distributed
    with shared_directory(config, hardware) as directory, ExitStack() as stack:
        with distributed.shared_errors():
            # Before the posts are read, which takes minutes.
            mode = check_monitor(config.training.monitor, MaskedLanguageEvaluation())
            checkpoint = continued_checkpoint(config, directory)
            encoder, language_model, head = _models(config, checkpoint, directory)
            check_encoder(encoder, max_length=config.model.max_length)
            posts = stack.enter_context(unlabelled_posts(config, encoder.tokenizer, directory.path))
            if checkpoint is not None:
                check_resumption(checkpoint, posts.fingerprints(), config, hardware, directory)
            task = _task(config, hardware, encoder, language_model, posts)
        trainer = Trainer(
            task,
            config,
            hardware,
            maximise=mode == "max",
            checkpoint_dir=directory.checkpoints,
            metadata={**task.metadata(), "fingerprints": posts.fingerprints(), "head": head},
        )
        with distributed.shared_errors():
            if checkpoint is not None:
                with using(directory.last_checkpoint):
                    trainer.restore(checkpoint)
            if distributed.is_main:
                check_space(directory, task)
            tracker = open_tracker(config, hardware, directory)
        run = _Run(config, hardware, directory, posts, tracker, head)
        is_main = distributed.is_main
        with tracking_status(tracker), manifest_status(directory) if is_main else nullcontext():
            with distributed.shared_errors():
                if is_main:
                    run.record("running", weights=None, monitor_mode=mode)
                    tracker.log_params(config.model_dump())
                    send_history(tracker, trainer.history)
                    if trainer.history:
                        write_history(directory.history, trainer.history)
            observer = observer_of(trainer, directory, tracker) if is_main else TrainingObserver()
            return _finish(run, task, trainer.fit(observer))


def _models(
    config: AdaptConfig, checkpoint: Checkpoint | None, directory: RunDirectory
) -> tuple[Encoder, nn.Module, str]:
    """Return encoder, language model and the kind of its head, pretrained or of the last checkpoint."""
    model = config.model
    if checkpoint is not None:
        with using(directory.last_checkpoint):
            metadata = checkpoint.metadata
            return (
                rebuild_encoder(metadata[f"{ENCODER}_files"]),
                rebuild_language_model(metadata[LANGUAGE_MODEL]),
                metadata["head"],
            )
    encoder = load_encoder(
        model.pretrained_model, revision=model.revision, dropout=model.encoder_dropout
    )
    language_model, absent = load_language_model(model.pretrained_model, revision=model.revision)
    head = "new" if absent else "pretrained"
    logger.info("Language-model head: %s.", _HEADS[head])
    return encoder, language_model, head


def _task(
    config: AdaptConfig,
    hardware: Hardware,
    encoder: Encoder,
    language_model: nn.Module,
    posts: UnlabelledPosts,
) -> MaskedLanguageTask:
    def make(_: TrainConfig, inputs: TaskInputs) -> MaskedLanguageTask:
        return MaskedLanguageTask(
            config, inputs, language_model=language_model, blocks=posts.blocks
        )

    inputs = TaskInputs({ENCODER: encoder}, (), {}, hardware.max_tokens_held)
    task = build_task(config, inputs, make=make)
    assert isinstance(task, MaskedLanguageTask)
    return task


def _finish(run: _Run, task: MaskedLanguageTask, outcome: TrainingOutcome) -> Adaptation:
    """Evaluate the best weights, and write them and the records."""
    directory, hardware = run.directory, run.hardware
    hardware.distributed.wait()
    with hardware.distributed.shared_errors():
        checkpoint = load_checkpoint(directory.best_checkpoint, task=task.name)
    task.model.load_state_dict(checkpoint.weights)
    evaluator = Evaluator(task, hardware, eval_batch_size=run.config.training.eval_batch_size)
    figures = evaluator.evaluate(task.model, "val").metrics
    metrics = {f"val/{name}": value for name, value in figures.items()}
    folder = directory.path / FOLDER
    with hardware.distributed.shared_errors():
        if hardware.distributed.is_main:
            directory.add_metrics(metrics)
            facts = _facts(run, metrics, outcome)
            write_encoder(folder, task, facts)
            run.record(
                "finished",
                weights=weights_sha256(checkpoint.weights),
                steps=outcome.step,
                best_step=outcome.best_step,
                best_value=outcome.best_value,
                stopped_early=outcome.stopped_early,
                encoder_sha256=sha256_of_file(folder / WEIGHTS),
            )
            run.tracker.log_metrics(
                {k: v for k, v in metrics.items() if not isinstance(v, str)},
                step=outcome.step,
                replaces=True,
            )
            for path in (directory.config, directory.manifest, directory.history):
                run.tracker.log_artifact(path)
    return Adaptation(directory.path, metrics, task.evaluation.summary(figures), folder)


def _facts(run: _Run, metrics: Mapping[str, Any], outcome: TrainingOutcome) -> dict[str, Any]:
    """Return what the adapted encoder says of itself: counts, hashes and settings, no text, no path."""
    config, posts = run.config, run.posts
    name = config.model.pretrained_model
    is_public = name.startswith(BUNDLED_PREFIX) or not Path(name).expanduser().exists()
    return {
        "format": 1,
        "version": __version__,
        "adapted_from": name if is_public else "a local folder",
        "revision": config.model.revision,
        "language_model_head": run.head,
        "posts": posts.counts,
        "posts_fingerprint": posts.fingerprint,
        "left_out": posts.left_out,
        "max_length": config.model.max_length,
        "mask_probability": config.task.mask_probability,
        "epochs": config.training.epochs,
        "steps": outcome.best_step or outcome.step,
        "train_batch_size": config.training.train_batch_size,
        "learning_rate": config.training.learning_rate,
        "seed": config.seed,
        "perplexity": metrics["val/perplexity"],
    }


def write_encoder(folder: Path, task: MaskedLanguageTask, facts: Mapping[str, Any]) -> None:
    """Write encoder, head, tokenizer, card and facts into a folder, as a whole or not at all.

    Raises:
        StorageError: it cannot be written.
    """
    temporary = temporary_beside(folder)
    try:
        with storing(folder):
            temporary.mkdir()
            task.model.save_pretrained(temporary)
            task.inputs.encoders[ENCODER].tokenizer.save_pretrained(temporary)
            written = {**facts, "weights_sha256": sha256_of_file(temporary / WEIGHTS)}
            write_json(temporary / FACTS, written)
            write_text(temporary / "README.md", card(written))
            shutil.rmtree(folder, ignore_errors=True)
            temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def card(facts: Mapping[str, Any]) -> str:
    """Return the model card of an adapted encoder."""
    posts = facts["posts"]
    return f"""---
library_name: transformers
pipeline_tag: fill-mask
tags: [psy-agents-noaug, domain-adaptation]
---
# An encoder adapted to unlabelled posts

Masked-language-model training of {facts["adapted_from"]} was continued on unlabelled posts, with
whole words masked (Gururangan et al. 2020, "Don't Stop Pretraining"). It judges nothing by itself:
fine-tune it, with `model.pretrained_model=FOLDER` of PSY Agents NO-AUG or with transformers.

| what | value |
|---|---|
| posts read | {posts["read"]:,} |
| left out, with the text of a post of val or test | {posts["same"]:,} |
| left out, near duplicates of one | {posts["near"]:,} |
| trained on | {posts["train"]:,} |
| held out for the perplexity | {posts["val"]:,} |
| fingerprint of the posts | {facts["posts_fingerprint"][:16]} |
| corpus whose val and test were left out | {facts["left_out"]["corpus"][:16]} |
| its division | {facts["left_out"]["splits"][:16]} |
| language-model head | {_HEADS[facts["language_model_head"]]} |
| tokens of a block | {facts["max_length"]} |
| words masked | {facts["mask_probability"]:.0%} |
| updates, of {facts["train_batch_size"]} blocks | {facts["steps"]:,} |
| learning rate | {facts["learning_rate"]:g} |
| seed | {facts["seed"]} |
| perplexity of masked tokens of held-out posts | {facts["perplexity"]:.2f} |
| SHA-256 of {WEIGHTS} | {facts["weights_sha256"]} |

The weights may have memorised parts of the posts, which can be drawn out of them (Carlini et al. 2021):
share them only as the posts may be shared. The card holds no text and no id of a post.
"""
