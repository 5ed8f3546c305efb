"""Checkpoints of tiny random models, which no training has made."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from transformers import AutoConfig, AutoModel

from psy_agents_noaug import export
from psy_agents_noaug.config.loading import load_train_config
from psy_agents_noaug.data.dsm5 import MAJOR_DEPRESSIVE_EPISODE
from psy_agents_noaug.data.examples import Example
from psy_agents_noaug.tasks.base import Task, TaskInputs
from psy_agents_noaug.tasks.build import build_task, load_encoders
from psy_agents_noaug.tasks.one_pass import outputs_of
from psy_agents_noaug.tasks.pairs import ENCODER_INPUTS
from psy_agents_noaug.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

CRITERIA = MAJOR_DEPRESSIVE_EPISODE[:3]
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 130,
}
FAMILIES = {
    "roberta": {"type_vocab_size": 1, "pad_token_id": 1},
    "modernbert": {"global_attn_every_n_layers": 2, "local_attention": 8},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "electra": {"embedding_size": 8},
    "distilbert": {"hidden_dim": 64},
}
OF_LABELS = {
    "thresholds": {c.criterion_id: 0.4 for c in CRITERIA},
    "global_threshold": 0.4,
    "calibration": {"slope": 1.0, "intercepts": {c.criterion_id: 0.0 for c in CRITERIA}},
}
OF_EVIDENCE = {"null_score_diff_threshold": -1.5}
RULES = {"criteria": OF_LABELS, "evidence": OF_EVIDENCE, "joint": {**OF_LABELS, **OF_EVIDENCE}}


@dataclass(frozen=True)
class Trained:
    """A checkpoint, and the task whose weights it has, which runs as in an evaluation."""

    path: Path
    task: Task
    posts: ClassVar[list[str]] = [
        "I sleep badly 🐕. It is late.",
        # Some of its white space is a token of a byte-level tokenizer.
        "My exam is on Friday.   \n \n The bus was late again.",
    ]

    def exported(self, kind: str, **settings: Any) -> Path:
        """Export it, and return the folder."""
        folder = Path(settings.pop("output", self.path.with_suffix("")))
        return export(self.path, kind, {"output": folder, **settings}, verbose=False).folder

    def scale_head(self, factor: float) -> None:
        """Multiply the weights of the head, in the checkpoint too."""
        checkpoint = load_checkpoint(self.path)
        for name, value in checkpoint.weights.items():
            if name.startswith("head."):
                value *= factor
        save_checkpoint(self.path, checkpoint)
        self.task.model.load_state_dict(checkpoint.weights)

    def outputs(self, criterion: int, posts: list[str]) -> dict[str, torch.Tensor]:
        """Return what the task's own model says of posts, by the names of an export.

        Args:
            criterion: which is asked for; those of label attention are asked for at once.
            posts: short ones; the texts.
        """
        reads_texts = self.task.reads_texts
        asked = CRITERIA if reads_texts else [CRITERIA[criterion]]
        examples = [
            Example(f"{n}/{c.criterion_id}", str(n), str(n), c.criterion_id, post, 0, True, (), ())
            for n, post in enumerate(posts)
            for c in asked
        ]
        batch = self.task.encode("val", examples).collate(range(len(posts)))
        model = self.task.model.eval()
        with torch.no_grad():
            if reads_texts:
                odds, spans, _ = outputs_of(model, batch)
                shape = (len(posts), len(asked))
                odds, spans = odds.view(shape), spans.unflatten(0, shape)
            else:
                odds, spans = self._of_pairs(model, batch)
        found = {}
        if self.task.name != "evidence":
            found["log_odds"] = odds
        if self.task.name != "criteria":
            found |= {"start_logits": spans[..., 0], "end_logits": spans[..., 1]}
        return found

    def _of_pairs(self, model, batch):
        inputs = {name: batch[name] for name in ENCODER_INPUTS if name in batch}
        pairs = batch["pairs"]
        if self.task.name == "criteria":
            return model(inputs, pairs=pairs, n_pairs=len(pairs)), None
        if self.task.name == "evidence":
            return None, model(**inputs, context_mask=batch["context_mask"])
        of_label = {n: batch[f"criteria/{n}"] for n in ENCODER_INPUTS if f"criteria/{n}" in batch}
        odds, spans, _ = model(
            criteria=of_label or inputs,
            evidence=inputs,
            criteria_pairs=batch.get("criteria/pairs", pairs),
            evidence_pairs=pairs,
            context_mask=batch["context_mask"],
        )
        return odds, spans


@pytest.fixture(scope="session")
def family_encoder(tiny_encoder, byte_level_tokenizer, tmp_path_factory):
    """Return a function from an architecture to a folder with a random encoder of it."""

    def make(family: str) -> Path:
        if family == "bert":
            return tiny_encoder
        folder = tmp_path_factory.mktemp(family)
        if family == "roberta":
            byte_level_tokenizer.save_pretrained(folder)
        else:
            for path in tiny_encoder.glob("tokenizer*.json"):
                shutil.copy(path, folder)
        size = len(byte_level_tokenizer) if family == "roberta" else 300
        special = {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3}
        special |= {"bos_token_id": 2, "eos_token_id": 3}
        own = {**SMALL, **special, "vocab_size": size, **FAMILIES[family]}
        with torch.random.fork_rng():
            torch.manual_seed(1)
            AutoModel.from_config(AutoConfig.for_model(family, **own)).save_pretrained(folder)
        return folder

    return make


@pytest.fixture
def make_trained(overrides_for, family_encoder, tmp_path):
    """Return a function from a task, settings and an architecture of encoders to a `Trained`.

    Its weights are random, unless it is of the bundled encoder.
    """

    def make(name: str, *settings: str, family: str = "bert") -> Trained:
        encoder = "model=minilm"
        if family != "minilm":
            encoder = f"model.pretrained_model={family_encoder(family)}"
        given = overrides_for(tmp_path / "outputs", name)
        if family == "minilm":
            given = [word for word in given if not word.startswith("model.pretrained_model=")]
        given = [*given, encoder, *settings]
        config = load_train_config(name, given)
        with torch.random.fork_rng():
            torch.manual_seed(2)
            inputs = TaskInputs(load_encoders(config), CRITERIA, {}, 4096)
            task = build_task(config, inputs)
            with torch.no_grad():
                for parameter in task.model.parameters() if family != "minilm" else ():
                    parameter += 0.1 * torch.randn_like(parameter)
        path = tmp_path / f"{name}.pt"
        metadata = {
            **task.metadata(),
            "fingerprints": {"corpus": "f" * 64, "splits": "0" * 64},
            "seen_texts": [],
        }
        checkpoint = Checkpoint(
            task=name,
            step=7,
            config=config.model_dump(),
            metadata=metadata,
            weights=task.model.state_dict(),
            decision_rule=RULES[name],
            metrics={"f1_macro": 0.25},
        )
        save_checkpoint(path, checkpoint)
        return Trained(path, task)

    return make


@pytest.fixture
def loaded():
    """Return a function from an export to what the Python code of its card defines, by name."""

    def run(folder: Path) -> dict[str, Any]:
        card = (folder / "README.md").read_text(encoding="utf-8")
        code = card.partition("```python\n")[2].partition("```")[0]
        assert 'folder = "."' in code
        assert "psy_agents_noaug" not in code
        defined: dict[str, Any] = {}
        exec(code.replace('folder = "."', f"folder = {str(folder)!r}"), defined)
        return defined

    return run
