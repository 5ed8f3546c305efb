"""The files of each format, and what the model card says of them."""

import logging
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from psy_agents_noaug.exports import loaders, onnx
from psy_agents_noaug.exports.card import Form, table
from psy_agents_noaug.exports.measure import figures_on_val
from psy_agents_noaug.exports.sequence_classifier import sequence_classifier
from psy_agents_noaug.exports.source import Source
from psy_agents_noaug.exports.windows import STARTS, WindowModel
from psy_agents_noaug.models.encoder import Encoder
from psy_agents_noaug.models.label_attention import LabelAttentionModel
from psy_agents_noaug.run.directory import RunDirectory
from psy_agents_noaug.tasks.registry import task_class
from psy_agents_noaug.training.checkpoint import save_checkpoint
from psy_agents_noaug.utils.files import make_folder, read_json, write_json, write_text

logger = logging.getLogger(__name__)

HEAD, HEAD_SETTINGS = "head.safetensors", "head.json"
_ENCODER_SETTINGS = "config.json"


def write_huggingface(source: Source, folder: Path, *, quantises: bool) -> Form:
    """Write a folder that transformers loads: a sequence classifier, or the encoder and our head."""
    model = source.window_model()
    max_length = source.config.model.max_length
    if (classifier := sequence_classifier(model)) is not None:
        (encoder,) = model.encoders.values()
        _write_tokenizer(encoder, folder, max_length=max_length)
        saved: Any = classifier
        saved.save_pretrained(folder)
        code = loaders.pipeline_loader(max_length=max_length, criterion=source.criteria[0].text)
        return Form(
            "transformers",
            code,
            [
                f"`{type(classifier).__name__}` of transformers, without code of others. The first text "
                "is a criterion as below, the second one the text that is judged, which alone is cut "
                "where a pair is too long. Use it in float32 or bfloat16, and train it no further: the "
                "trained head is linear, and stands here in the weights of a head that is not, some of "
                "which are too small for float16.",
                _windows(source),
            ],
            pipeline_tag="text-classification",
        )
    for part, encoder in model.encoders.items():
        place = folder / part if len(model.encoders) > 1 else folder
        make_folder(place)
        _write_tokenizer(encoder, place, max_length=max_length)
        network: Any = model.encoder_modules()[part]
        network.save_pretrained(place)
    save_file(loaders.head_tensors(model), folder / HEAD)
    write_json(folder / HEAD_SETTINGS, loaders.describe(model))
    return Form(
        "transformers",
        loaders.torch_loader(model, max_length=max_length),
        [
            "None of transformers' own classes can have this head, so that the encoder and the head are "
            f"apart. {_outputs(model)}",
            _windows(source),
        ],
    )


def write_onnx_folder(source: Source, folder: Path, *, quantises: bool) -> Form:
    """Write model.onnx, the tokenizers and, if wanted, model_int8.onnx."""
    model = source.window_model()
    max_length = source.config.model.max_length
    off = onnx.write_onnx(model, folder)
    for part, encoder in model.encoders.items():
        place = folder / part if len(model.encoders) > 1 else folder
        make_folder(place)
        _write_tokenizer(encoder, place, max_length=max_length)
        write_text(place / _ENCODER_SETTINGS, encoder.files[_ENCODER_SETTINGS])
    notes = [
        f"Numbers of windows and tokens are free. On random tokens ONNX Runtime differs from PyTorch by "
        f"{off:.1e} at most. {_outputs(model)}",
        _windows(source),
    ]
    if quantises:
        notes += _int8_notes(source, model, folder)
    code = loaders.onnx_loader(model, max_length=max_length, file=onnx.MODEL)
    return Form("onnx", code, notes)


def write_bundle(source: Source, folder: Path, *, quantises: bool) -> Form:
    """Write the checkpoint where `checkpoint=FOLDER` finds it."""
    run = RunDirectory(folder)
    make_folder(run.checkpoints)
    save_checkpoint(run.best_checkpoint, source.shared)
    code = "\n".join(
        [
            "from psy_agents_noaug import evaluate  # pip install psy-agents-noaug",
            "",
            loaders.FOLDER_LINE,
            'result = evaluate(folder, {"data": "redsm5", "data.dir": "DIR"}, split="test")',
        ]
    )
    return Form(
        "psy-agents-noaug",
        code,
        [
            "On the command line: `psy-agents eval checkpoint=FOLDER data=redsm5 data.dir=DIR`. Whether "
            "posts were seen in training cannot be checked: the checkpoint holds no trace of them."
        ],
    )


def _write_tokenizer(encoder: Encoder, folder: Path, *, max_length: int) -> None:
    """Write the files of a tokenizer, whose texts are cut at `max_length` tokens."""
    for name, content in encoder.files.items():
        if name != _ENCODER_SETTINGS:
            write_text(folder / name, content)
    path = folder / "tokenizer_config.json"
    write_json(path, {**read_json(path), "model_max_length": max_length})


def _outputs(model: WindowModel) -> str:
    """Say what comes out."""
    reads_texts = isinstance(model.model, LabelAttentionModel)
    shape = (
        "a row for each post, a column for each criterion" if reads_texts else "one for each post"
    )
    parts = [f"`log_odds` that the criterion is met: {shape}."] * ("log_odds" in model.output_names)
    if STARTS in model.output_names:
        parts.append(
            "`start_logits` and `end_logits` of the tokens, minus infinity outside of the post; the "
            "first token stands for no evidence."
        )
    return " ".join(parts)


def _windows(source: Source) -> str:
    """Say what is done with posts that are longer than a window."""
    settings: Any = source.config.task
    n_tokens = source.config.model.max_length
    if getattr(settings, "long_posts", "windows") == "truncate":
        return f"Texts were cut at {n_tokens} tokens in the training too."
    pooling = getattr(settings, "window_pooling", None)
    how = {"max": "their largest log odds", "logsumexp": "the logarithm of their mean odds"}
    together = f", and takes {how[pooling]}" if pooling else ""
    return (
        f"The code cuts a text at {n_tokens} tokens. PSY Agents NO-AUG reads longer texts in "
        f"overlapping windows{together}; the figures below are of that."
    )


def _int8_notes(source: Source, model: WindowModel, folder: Path) -> list[str]:
    """Quantise, measure, and say what was found."""
    found = onnx.quantise(model, folder)
    threads = "one thread" if found["threads"] == 1 else f"{found['threads']} threads"
    fp32, int8 = found["milliseconds_fp32"], found["milliseconds_int8"]
    notes = [
        f"`{onnx.QUANTISED}` computes matrix products in 8-bit integers: "
        f"{found['bytes_int8'] / 1e6:.1f} MB in place of {found['bytes_fp32'] / 1e6:.1f}. "
        f"{found['windows']} windows of {found['tokens']} random tokens took {int8:.1f} ms in place of "
        f"{fp32:.1f} ({fp32 / int8:.2f} times as fast) on the CPU of the export with {threads}, "
        "and a probability differed by up to "
        f"{found['largest_probability_difference']:.3f}. Thresholds and calibration were fitted in fp32."
    ]
    on_val = figures_on_val(source, model, folder)
    if isinstance(on_val, str):
        return [*notes, f"Its figures on val were not measured: {on_val}."]
    headline = task_class(source.shared.task).settings.headline_metrics
    rows = [["val", *headline]]
    for name, figures in on_val.items():
        cells = [figures.get(key) for key in headline]
        rows.append([name, *("-" if value is None else f"{value:.3f}" for value in cells)])
    return [*notes, table(rows)]
