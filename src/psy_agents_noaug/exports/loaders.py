"""The Python code of a model card: how an export is loaded where this package is not installed."""

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from psy_agents_noaug.exports.windows import ENDS, LOG_ODDS, STARTS, WindowModel
from psy_agents_noaug.models.joint import JointModel
from psy_agents_noaug.models.label_attention import LabelAttentionModel

FOLDER_LINE = (
    'folder = "."  # of this export; of a repository: huggingface_hub.snapshot_download("NAME")'
)
_POOLED = {
    "cls": "{x}[:, 0]",
    "mean": "{x}.masked_fill(~{mask}.unsqueeze(-1), 0).sum(1) / {mask}.sum(1, keepdim=True)",
    "max": "{x}.masked_fill(~{mask}.unsqueeze(-1), torch.finfo({x}.dtype).min).amax(1)",
    "attention": (
        '({x} * linear({x}, head["{name}.weight"])'
        ".masked_fill(~{mask}.unsqueeze(-1), -torch.inf).softmax(1)).sum(1)"
    ),
}
_MLP = """
def mlp(x, name, layers):
    for n in range(layers):
        x = linear(gelu(x) if n else x, head[f"{name}.{n}.weight"], head[f"{name}.{n}.bias"])
    return x
"""
_EVIDENCE_ATTENTION = """\
    inside = spans.softmax(1)
    inside[:, 0] = 0
    weights = inside[..., 0].cumsum(1) * inside[..., 1].flip(1).cumsum(1).flip(1) * context
    weights[:, 0] = 1 - weights[:, 1:].amax(1)
    fused = ({x} * (weights / weights.sum(1, keepdim=True)).unsqueeze(-1)).sum(1)"""
_LABEL_ATTENTION = """\
    vectors = head["vectors"]  # of the criteria, in the order of settings.json
    keys = gelu(linear(tokens, head["key.weight"], head["key.bias"]))
    queries = linear(vectors, head["query.weight"], head["query.bias"]).view(len(vectors), 3, -1)
    values = torch.einsum("wth,cqh->qwct", keys, queries) / vectors.shape[1] ** 0.5
    attention = (values[0] + head["attention_bias"]).masked_fill(~mask.unsqueeze(1), -torch.inf)"""
_LABEL_ATTENTION_ODDS = """\
    found, own = attention.softmax(-1) @ tokens, vectors.expand(len(posts), -1, -1)
    pointed = torch.stack([attention.amax(-1), attention.logsumexp(-1)], -1)
    odds = mlp(torch.cat([found, own, found * own, pointed], -1), "label", {layers}).squeeze(-1)"""


def head_tensors(model: WindowModel) -> dict[str, Tensor]:
    """Return the weights of a model without its encoders, by the names that `torch_loader` reads."""
    trained: Any = model.model
    found: dict[str, Tensor] = {}
    for name, head in _heads(model).items():
        layers = [layer for layer in head.modules() if isinstance(layer, nn.Linear)]
        for number, layer in enumerate(layers):
            found |= {f"{name}.{number}.weight": layer.weight, f"{name}.{number}.bias": layer.bias}
    for name in ("pooling", "evidence_pooling"):
        score = getattr(getattr(trained, name, None), "score", None)
        if score is not None:
            found[f"{name}.weight"] = score.weight
    if isinstance(trained, LabelAttentionModel):
        assert model.vectors is not None
        found |= {"vectors": model.vectors, "attention_bias": trained.attention_bias}
        for name in ("key", "query"):
            layer = getattr(trained, name)
            found |= {f"{name}.weight": layer.weight, f"{name}.bias": layer.bias}
    return {name: value.detach().contiguous() for name, value in found.items()}


def torch_loader(model: WindowModel, *, max_length: int) -> str:
    """Return code that defines `scores` with transformers, torch and safetensors.

    Args:
        model: whose encoders lie in the folder, or in folders of their names if there are two.
        max_length: tokens of a window.
    """
    trained: Any = model.model
    heads = {name: _n_layers(head) for name, head in _heads(model).items()}
    lines = [
        "import torch",
        "from safetensors.torch import load_file",
        "from torch.nn.functional import gelu, linear",
        "from transformers import AutoModel, AutoTokenizer",
        "",
        FOLDER_LINE,
        'head = load_file(f"{folder}/head.safetensors")',
    ]
    for part, network in model.encoder_modules().items():
        place, prefix = _place(model, part), model.prefixes[part]
        more = ", add_pooling_layer=False" if _takes_pooling_layer(network) else ""
        lines += [
            f"{prefix}tokenizer = AutoTokenizer.from_pretrained({place})",
            f"{prefix}encoder = AutoModel.from_pretrained({place}{more}).eval()",
        ]
    lines += ["", _MLP, "", "@torch.no_grad()", *_signature(model)]
    lines += _tokenised(model, max_length=max_length, tensors="pt")
    for prefix in model.prefixes.values():
        lines += [
            f"    {prefix}tokens = {prefix}encoder(**{prefix}inputs).last_hidden_state",
            f'    {prefix}mask = {prefix}inputs["attention_mask"].bool()',
        ]
    if isinstance(trained, LabelAttentionModel):
        lines += [_LABEL_ATTENTION]
        if LOG_ODDS in model.output_names:
            lines += [_LABEL_ATTENTION_ODDS.format(layers=heads["label"])]
        if STARTS in model.output_names:
            lines += [
                "    starts, ends = values[1:].masked_fill(~context.unsqueeze(1), -torch.inf)"
            ]
        return "\n".join([*lines, _returned(model)])
    label, evidence = next(iter(model.prefixes.values())), list(model.prefixes.values())[-1]
    if STARTS in model.output_names:
        lines += [
            f'    spans = mlp({evidence}tokens, "spans", {heads["spans"]})',
            "    spans = spans.masked_fill(~context.unsqueeze(-1), -torch.inf)",
            "    starts, ends = spans.unbind(-1)",
        ]
    if LOG_ODDS in model.output_names:
        lines += [f"    pooled = {_pooled(trained.pooling.kind, label, 'pooling')}"]
        if isinstance(trained, JointModel) and trained.fusion != "none":
            lines += [
                _EVIDENCE_ATTENTION.format(x=f"{evidence}tokens")
                if trained.evidence_pooling is None
                else f"    fused = {_pooled(trained.pooling.kind, evidence, 'evidence_pooling')}",
                "    pooled = torch.cat([pooled, fused], -1)",
            ]
        lines += [
            f'    logits = mlp(pooled, "label", {heads["label"]})',
            "    odds = logits[:, 1] - logits[:, 0]",
        ]
    return "\n".join([*lines, _returned(model)])


def onnx_loader(model: WindowModel, *, max_length: int, file: str) -> str:
    """Return code that defines `scores` with onnxruntime and a tokenizer of transformers.

    Args:
        model: what the file was made from.
        max_length: tokens of a window.
        file: its name in the folder.
    """
    lines = [
        "import numpy as np",
        "import onnxruntime",
        "from transformers import AutoTokenizer",
        "",
        FOLDER_LINE,
        f'session = onnxruntime.InferenceSession(f"{{folder}}/{file}")',
    ]
    for part, prefix in model.prefixes.items():
        lines += [f"{prefix}tokenizer = AutoTokenizer.from_pretrained({_place(model, part)})"]
    lines += ["", "", *_signature(model)]
    lines += _tokenised(model, max_length=max_length, tensors="np")
    fed = [
        f'{{f"{prefix}{{name}}": value for name, value in {prefix}inputs.items()}}'
        if prefix
        else "inputs"
        for prefix in model.prefixes.values()
    ]
    feed = ", ".join(f"**{one}" for one in fed)
    if STARTS in model.output_names:
        feed += ', "context_mask": context.astype(np.int64)'
    lines += [
        f"    feed = {{{feed}}}",
        "    return dict(zip([one.name for one in session.get_outputs()], session.run(None, feed)))",
    ]
    return "\n".join(lines)


def pipeline_loader(*, max_length: int, criterion: str) -> str:
    """Return code that judges a post with `pipeline("text-classification")`.

    Args:
        max_length: tokens of a pair.
        criterion: text of one.
    """
    return "\n".join(
        [
            "from transformers import pipeline",
            "",
            FOLDER_LINE,
            'classify = pipeline("text-classification", model=folder, top_k=None)',
            f"criterion = {criterion!r}",
            'pairs = [{"text": criterion, "text_pair": post} for post in ["The text of a post."]]',
            f'found = classify(pairs, truncation="only_second", max_length={max_length})',
        ]
    )


def describe(model: WindowModel) -> dict[str, Any]:
    """Return what head.json says of the head: its layers, and how they read the encoder."""
    trained: Any = model.model
    is_one_pass = isinstance(trained, LabelAttentionModel)
    pooling = getattr(trained, "pooling", None)
    return {
        "architecture": "label_attention" if is_one_pass else "cross_encoder",
        "layers": {name: _n_layers(head) for name, head in _heads(model).items()},
        "pooling": None if pooling is None else pooling.kind,
        "fusion": getattr(trained, "fusion", None),
        "encoders": list(model.encoders),
        "outputs": model.output_names,
    }


def _heads(model: WindowModel) -> Mapping[str, nn.Module]:
    """Return the heads whose outputs are exported."""
    trained: Any = model.model
    found = {}
    if LOG_ODDS in model.output_names:
        found["label"] = trained.head
    if STARTS in model.output_names and not isinstance(trained, LabelAttentionModel):
        found["spans"] = trained.evidence.head if isinstance(trained, JointModel) else trained.head
    return found


def _n_layers(head: nn.Module) -> int:
    return sum(isinstance(layer, nn.Linear) for layer in head.modules())


def _pooled(kind: str, prefix: str, name: str) -> str:
    return _POOLED[kind].format(x=f"{prefix}tokens", mask=f"{prefix}mask", name=name)


def _place(model: WindowModel, part: str) -> str:
    return f'f"{{folder}}/{part}"' if len(model.encoders) > 1 else "folder"


def _takes_pooling_layer(network: nn.Module) -> bool:
    """Whether the class has a pooler, which the exported weights lack."""
    return "add_pooling_layer" in inspect.signature(type(network).__init__).parameters


def _signature(model: WindowModel) -> list[str]:
    if isinstance(model.model, LabelAttentionModel):
        return ["def scores(posts):"]
    return ["def scores(criterion, posts):  # the text of a criterion, and a list of texts"]


def _tokenised(model: WindowModel, *, max_length: int, tensors: str) -> list[str]:
    """Return the lines that make the inputs of each encoder, and the mask of the last one's post."""
    reads_texts = isinstance(model.model, LabelAttentionModel)
    texts = (
        "posts, truncation=True"
        if reads_texts
        else '[criterion] * len(posts), posts, truncation="only_second"'
    )
    needs_context = STARTS in model.output_names
    lines = []
    for part, prefix in model.prefixes.items():
        asks = needs_context and part == list(model.prefixes)[-1]
        lines += [
            f"    {prefix}inputs = {prefix}tokenizer(",
            f"        {texts}, max_length={max_length},",
            f'        padding=True, return_tensors="{tensors}"'
            + ", return_offsets_mapping=True" * asks,
            "    )",
        ]
        if asks:
            made = "torch.tensor" if tensors == "pt" else "np.array"
            lines += [
                f'    offsets = {prefix}inputs.pop("offset_mapping").tolist()',
                f"    context = {made}([  # tokens of the post that cover a visible character",
                f"        [part == {int(not reads_texts)} and bool(post[a:b].strip())",
                f"         for part, (a, b) in zip({prefix}inputs.sequence_ids(row), offsets[row])]",
                "        for row, post in enumerate(posts)",
                "    ])",
                "    context[:, 0] = True",
            ]
    return lines


def _returned(model: WindowModel) -> str:
    names = {LOG_ODDS: "odds", STARTS: "starts", ENDS: "ends"}
    pairs = ", ".join(f'"{name}": {names[name]}' for name in model.output_names)
    return f"    return {{{pairs}}}"
