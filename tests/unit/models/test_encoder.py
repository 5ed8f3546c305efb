import importlib.util
import shutil
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import huggingface_hub.constants
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModel, AutoTokenizer

from psy_agents_noaug.errors import CheckpointError, ConfigError
from psy_agents_noaug.models import encoder as encoder_module
from psy_agents_noaug.models.criteria import CriteriaModel
from psy_agents_noaug.models.encoder import (
    BUNDLED_PACKAGE,
    add_lora,
    load_encoder,
    rebuild_encoder,
)
from psy_agents_noaug.models.recompute import recompute_activations

TEXTS = ["I sleep badly 🐕.", "The bus was late again this morning and I bought a new lamp."]
BUNDLED = "bundled:all-MiniLM-L6-v2"
needs_bundle = pytest.mark.skipif(
    importlib.util.find_spec(BUNDLED_PACKAGE) is None, reason="the extra `offline` is not installed"
)

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 96,
}
ARCHITECTURES = {
    "bert": {},
    "roberta": {"type_vocab_size": 1, "pad_token_id": 0},
    "electra": {"embedding_size": 8},
    "distilbert": {"hidden_dim": 32},
    "modernbert": {"global_attn_every_n_layers": 2, "pad_token_id": 0},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
}


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def encode(tiny_encoder):
    """Return padded tensors of two pairs of unequal length."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder)
    return tokenizer(TEXTS, TEXTS[::-1], padding=True, return_tensors="pt")


def vectors(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(**batch).last_hidden_state


def criteria_model(encoder) -> CriteriaModel:
    return CriteriaModel(
        encoder.model,
        hidden_size=encoder.hidden_size,
        pooling="mean",
        head_layers=1,
        head_width=None,
        head_dropout=0.0,
        window_pooling="max",
        max_tokens=4096,
    )


def odds(model: CriteriaModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The log odds of pairs with one window each."""
    n_pairs = len(batch["input_ids"])
    found: torch.Tensor = model(batch, pairs=torch.arange(n_pairs), n_pairs=n_pairs)
    return found


def rates(model: nn.Module) -> set[float]:
    """Return the rates of all dropouts: modules, and the attributes that fused attention reads."""
    found = set()
    for module in model.modules():
        if isinstance(module, nn.Dropout) or type(module).__name__ == "StableDropout":
            found.add(float(getattr(module, "p", getattr(module, "drop_prob", 0.0))))
        found |= {
            float(value)
            for name, value in vars(module).items()
            if "dropout" in name and isinstance(value, int | float)
        }
    return found


def test_a_folder_written_by_save_pretrained_is_loaded_in_fp32(tiny_encoder, encode):
    encoder = load_encoder(str(tiny_encoder))
    reference = AutoModel.from_pretrained(tiny_encoder)
    torch.testing.assert_close(vectors(encoder.model, encode), vectors(reference, encode))
    assert encoder.hidden_size == 32
    assert {p.dtype for p in encoder.model.parameters()} == {torch.float32}
    assert encoder.model.pooler is None
    assert encoder.tokenizer.is_fast


def test_the_files_of_an_encoder_rebuild_it_and_its_tokenizer(tiny_encoder, encode):
    encoder = load_encoder(str(tiny_encoder))
    rebuilt = rebuild_encoder(encoder.files)
    assert encoder.files.keys() >= {"config.json", "tokenizer.json"}
    assert all("PAD" not in name and "/" not in name for name in encoder.files)
    assert rebuilt.tokenizer(TEXTS)["input_ids"] == encoder.tokenizer(TEXTS)["input_ids"]
    assert rebuilt.tokenizer.model_input_names == encoder.tokenizer.model_input_names
    assert rebuilt.tokenizer.pad_token_id == encoder.tokenizer.pad_token_id
    assert not torch.equal(vectors(rebuilt.model, encode), vectors(encoder.model, encode))
    rebuilt.model.load_state_dict(encoder.model.state_dict())
    assert torch.equal(vectors(rebuilt.model, encode), vectors(encoder.model, encode))
    assert rebuilt.files == encoder.files


@pytest.mark.parametrize("name", ["../config.json", "/tmp/config.json", "a/config.json", ".."])
@pytest.mark.faults("a checkpoint names files outside of its folder", "refused")
def test_the_files_of_a_checkpoint_cannot_escape_their_folder(name, tmp_path, monkeypatch):
    monkeypatch.setattr(encoder_module.tempfile, "tempdir", str(tmp_path))
    with pytest.raises(CheckpointError, match="outside its folder"):
        rebuild_encoder({name: "{}"})
    assert list(tmp_path.rglob("*.json")) == []


@pytest.mark.parametrize("files", [{}, {"config.json": "{}"}, {"config.json": "no JSON"}])
def test_files_that_describe_no_encoder_are_refused(files):
    with pytest.raises(CheckpointError, match="cannot be rebuilt"):
        rebuild_encoder(files)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", ["nobody/nothing", "no/such/folder", "nothing"])
def test_an_encoder_that_cannot_be_had_is_an_error_that_says_what_to_do(name):
    with pytest.raises(ConfigError) as caught:
        load_encoder(name)
    for part in (name, "model.pretrained_model", "hf auth login", "model=minilm"):
        assert part in str(caught.value)


def test_missing_memory_is_not_called_a_damaged_file(tiny_encoder, monkeypatch):
    def full(*args: object, **options: object) -> None:
        raise MemoryError

    monkeypatch.setattr(AutoConfig, "from_pretrained", full)
    with pytest.raises(MemoryError):
        load_encoder(str(tiny_encoder))
    files = {"config.json": "{}", "tokenizer.json": "{}"}
    with pytest.raises(MemoryError):
        rebuild_encoder(files)


@pytest.mark.faults("an encoder's folder brings code", "not run")
def test_code_in_a_folder_is_not_run(tiny_encoder, tmp_path):
    folder = shutil.copytree(tiny_encoder, tmp_path / "evil")
    (folder / "evil.py").write_text("raise SystemExit('ran')\n")
    (folder / "config.json").write_text(
        '{"model_type": "evil", "auto_map": {"AutoConfig": "evil.A", "AutoModel": "evil.B"}}'
    )
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_encoder(str(folder))


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_every_kind_of_encoder_runs_through_the_criteria_model(
    kind, tiny_encoder, tmp_path, encode
):
    encoder = load_encoder(str(_save_tiny(kind, tiny_encoder, tmp_path)))
    encoded = encode
    if "token_type_ids" not in encoder.tokenizer.model_input_names:
        encoded = {k: v for k, v in encode.items() if k != "token_type_ids"}
    model = criteria_model(encoder).eval()
    with torch.no_grad():
        together = odds(model, encoded)
        length = int(encoded["attention_mask"][0].sum())
        alone = odds(model, {name: value[:1, :length] for name, value in encoded.items()})
    assert together.shape == (2,)
    torch.testing.assert_close(together[:1], alone, atol=1e-5, rtol=1e-4)
    model.train()
    odds(model, encoded).sum().backward()
    unused = [name for name, p in model.named_parameters() if p.grad is None]
    assert unused == []


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_a_dropout_rate_reaches_all_dropouts(kind, tiny_encoder, tmp_path):
    folder = str(_save_tiny(kind, tiny_encoder, tmp_path))
    assert rates(load_encoder(folder, dropout=0.25).model) == {0.25}
    silent = load_encoder(folder, dropout=0.0)
    assert rates(silent.model) == {0.0}
    assert rates(rebuild_encoder(silent.files).model) == {0.0}
    assert rates(load_encoder(folder).model) != {0.25}


def _save_tiny(kind: str, tiny_encoder: Path, tmp_path: Path) -> Path:
    """Save a small random encoder of this kind with the tiny tokenizer."""
    folder = tmp_path / kind
    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder)
    if kind in ("roberta", "modernbert", "distilbert"):
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
    tokenizer.save_pretrained(folder)
    settings = {**SMALL, **ARCHITECTURES[kind], "vocab_size": len(tokenizer)}
    if kind == "modernbert":
        # Its special tokens lie beyond the tiny vocabulary.
        settings |= dict.fromkeys(("bos_token_id", "cls_token_id"), 2)
        settings |= dict.fromkeys(("eos_token_id", "sep_token_id"), 3)
    config = transformers.AutoConfig.for_model(kind, **settings)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModel.from_config(config).save_pretrained(folder)
    return folder


@needs_bundle
def test_the_bundled_encoder_loads_without_a_hub(offline):
    encoder = load_encoder(BUNDLED)
    assert encoder.hidden_size == 384
    assert sum(p.numel() for p in encoder.model.parameters()) > 2e7


@needs_bundle
def test_bundled_weights_with_another_sha256_are_refused(monkeypatch):
    monkeypatch.setattr(encoder_module, "BUNDLED_SHA256", "0" * 64)
    with pytest.raises(ConfigError, match=r"must have sha256 0{64}.*Reinstall"):
        load_encoder(BUNDLED)


@pytest.mark.faults("the bundled weights are altered", "refused by their checksum")
def test_an_altered_copy_of_the_bundled_weights_is_refused(monkeypatch, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"altered")
    package = ModuleType(BUNDLED_PACKAGE)
    package.__spec__ = ModuleSpec(BUNDLED_PACKAGE, None, origin=str(tmp_path / "__init__.py"))
    monkeypatch.setitem(sys.modules, BUNDLED_PACKAGE, package)
    with pytest.raises(ConfigError, match="sha256"):
        load_encoder(BUNDLED)


def test_a_bundle_that_is_not_installed_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, BUNDLED_PACKAGE, None)
    with pytest.raises(ConfigError, match=r"pip install 'psy-agents-noaug\[offline\]'"):
        load_encoder(BUNDLED)


def test_nothing_else_is_bundled():
    with pytest.raises(ConfigError, match="all-MiniLM-L6-v2 only"):
        load_encoder("bundled:bert")


def _lora(encoder, **changes):
    options = {"rank": 2, "alpha": 4.0, "dropout": 0.0, "target_modules": "all-linear"}
    return add_lora(encoder.model, **(options | changes))


def test_lora_without_peft_says_how_to_install_it(tiny_encoder, monkeypatch):
    encoder = load_encoder(str(tiny_encoder))
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"pip install 'psy-agents-noaug\[lora\]'"):
        _lora(encoder)


def test_lora_trains_few_parameters_and_starts_as_the_encoder(tiny_encoder, encode):
    encoder = load_encoder(str(tiny_encoder))
    before = vectors(encoder.model, encode)
    total = sum(p.numel() for p in encoder.model.parameters())
    wrapped = _lora(encoder)
    trainable = {name: p.numel() for name, p in wrapped.named_parameters() if p.requires_grad}
    # 2 layers of 6 matrices, each with rank * (inputs + outputs).
    assert sum(trainable.values()) == 2 * (4 * 2 * 64 + 2 * 2 * 96)
    assert sum(trainable.values()) < total / 10
    assert all("lora" in name for name in trainable)
    torch.testing.assert_close(vectors(wrapped, encode), before)


def test_lora_targets_the_modules_named(tiny_encoder):
    wrapped = _lora(load_encoder(str(tiny_encoder)), target_modules=["query", "value"], rank=3)
    names = [name for name, p in wrapped.named_parameters() if p.requires_grad]
    assert len(names) == 2 * 2 * 2
    assert all(".query." in name or ".value." in name for name in names)


def test_lora_scales_by_alpha_over_rank_and_drops_as_asked(tiny_encoder):
    wrapped = _lora(load_encoder(str(tiny_encoder)), rank=2, alpha=6.0, dropout=0.25)
    layers = [m for m in wrapped.modules() if hasattr(m, "scaling") and hasattr(m, "lora_A")]
    assert len(layers) == 12
    assert {layer.scaling["default"] for layer in layers} == {3.0}
    assert {layer.lora_dropout["default"].p for layer in layers} == {0.25}


def test_a_lora_target_that_the_encoder_has_not_is_an_error(tiny_encoder):
    with pytest.raises(ConfigError, match=r"model\.lora\.target_modules"):
        _lora(load_encoder(str(tiny_encoder)), target_modules=["no_such_module"])


@pytest.mark.parametrize("lora", [False, True])
def test_gradient_checkpointing_gives_equal_gradients(tiny_encoder, encode, lora):
    calls = []

    def gradients(checkpointing: bool) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        encoder = load_encoder(str(tiny_encoder))
        model = _lora(encoder) if lora else encoder.model
        if checkpointing:
            recompute_activations(encoder.model)
        model.train()
        calls.append(0)
        last = [m for m in encoder.model.modules() if isinstance(m, nn.Linear)][-1]
        last.register_forward_hook(lambda *_: calls.append(calls.pop() + 1))
        torch.manual_seed(1)  # the same dropout
        model(**encode).last_hidden_state.square().sum().backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    plain, checkpointed = gradients(False), gradients(True)
    assert calls == [1, 2]
    assert plain.keys() == checkpointed.keys()
    for name in plain:
        torch.testing.assert_close(checkpointed[name], plain[name])


def renamed_weights(folder, rename):
    """Rewrite the weights of a folder under other names."""
    path = folder / "model.safetensors"
    weights = {new: value for key, value in load_file(path).items() if (new := rename(key))}
    save_file(weights, path, metadata={"format": "pt"})


@pytest.mark.faults("all weights of an encoder have other names", "refused, with their number")
def test_weights_under_another_prefix_are_refused_and_not_replaced_by_random_ones(
    tiny_encoder, tmp_path
):
    folder = shutil.copytree(tiny_encoder, tmp_path / "encoder")
    renamed_weights(folder, lambda key: f"backbone.{key}")
    with pytest.raises(ConfigError, match=r"lacks \d+ weights.*embeddings.*and \d+ more"):
        load_encoder(str(folder))


@pytest.mark.faults("a weight of an encoder is missing", "refused by name")
def test_a_weight_that_is_missing_is_named(tiny_encoder, tmp_path):
    folder = shutil.copytree(tiny_encoder, tmp_path / "encoder")
    missing = "encoder.layer.1.output.dense.weight"
    renamed_weights(folder, lambda key: None if key == missing else key)
    with pytest.raises(ConfigError, match=f"lacks 1 weights.*{missing}"):
        load_encoder(str(folder))


def test_a_pooler_that_is_missing_is_not_needed(tiny_encoder, tmp_path):
    folder = shutil.copytree(tiny_encoder, tmp_path / "encoder")
    renamed_weights(folder, lambda key: None if "pooler" in key else key)
    assert load_encoder(str(folder)).hidden_size == 32


@pytest.mark.faults("a causal decoder as encoder", "refused")
def test_a_causal_decoder_is_refused(tiny_encoder, tmp_path):
    folder = shutil.copytree(tiny_encoder, tmp_path / "decoder")
    config = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=300, n_positions=96)
    transformers.GPT2Model(config).save_pretrained(folder)
    with pytest.raises(ConfigError, match="reads from left to right"):
        load_encoder(str(folder))


def test_an_encoder_with_a_decoder_is_refused(tiny_encoder, tmp_path):
    folder = shutil.copytree(tiny_encoder, tmp_path / "t5")
    config = transformers.T5Config(
        d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, vocab_size=300
    )
    transformers.T5Model(config).save_pretrained(folder)
    with pytest.raises(ConfigError, match="has a decoder"):
        load_encoder(str(folder))


def test_the_tokenizer_must_be_fast(tiny_encoder, monkeypatch):
    slow = SimpleNamespace(is_fast=False)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *_, **__: slow)
    with pytest.raises(ConfigError, match="no fast tokenizer"):
        load_encoder(str(tiny_encoder))


def test_loading_leaves_the_verbosity_of_transformers_as_it_was(tiny_encoder):
    before = transformers.logging.get_verbosity()
    try:
        transformers.logging.set_verbosity(transformers.logging.DEBUG)
        load_encoder(str(tiny_encoder))
        assert transformers.logging.get_verbosity() == transformers.logging.DEBUG
    finally:
        transformers.logging.set_verbosity(before)
