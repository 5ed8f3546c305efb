"""ONNX: a `WindowModel` by PyTorch's exporter, checked in ONNX Runtime, and quantised to int8."""

import logging
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from psy_agents_noaug.errors import ConfigError
from psy_agents_noaug.exports.windows import ENDS, LOG_ODDS, STARTS, WindowModel, named_outputs
from psy_agents_noaug.utils.extras import require
from psy_agents_noaug.utils.out_of_memory import is_out_of_memory

PACKAGES = ("onnx", "onnxruntime", "onnxscript")
MODEL, QUANTISED = "model.onnx", "model_int8.onnx"
TOLERANCE = 1e-4  # of logits, between PyTorch and ONNX Runtime
_CHECKED = ((2, 12), (1, 5), (3, 41))  # windows and tokens
_TIMED = (8, 128)
_ROUNDS = 5
_CHATTY = ("torch.onnx", "onnxscript", "onnx_ir", "root")


def require_packages() -> None:
    """Check that what `format=onnx` needs is installed.

    Raises:
        ConfigError: a package is not; the message holds the pip command.
    """
    for module in PACKAGES:
        require(module, extra="export", purpose="format=onnx")


def write_onnx(model: WindowModel, folder: Path) -> float:
    """Write model.onnx, whose numbers of windows and tokens are free.

    Args:
        model: in fp32.
        folder: where to.

    Returns:
        The largest difference of a finite output between PyTorch and ONNX Runtime, on random tokens.

    Raises:
        ConfigError: the encoder's operations cannot be exported, or the outputs differ.
    """
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    examples = model.examples(n_windows=2)
    windows = torch.export.Dim("windows")
    # Two encoders may cut a text into unlike numbers of tokens; the mask is that of the last one.
    tokens = {part: torch.export.Dim(f"{prefix}tokens") for part, prefix in model.prefixes.items()}
    parts = [model.part_of(name) for name in model.input_names]
    shapes = {"tensors": tuple({0: windows, 1: tokens[part]} for part in parts)}
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                model,
                tuple(examples),
                input_names=model.input_names,
                output_names=model.output_names,
                dynamic_shapes=shapes,
                dynamo=True,
                verbose=False,
            )
            assert program is not None
            # The exporter notes for each operation which line of which file it comes from.
            ClearMetadataAndDocStringPass()(program.model)
            program.save(str(folder / MODEL))
        # A number that the graph should leave open and does not is refused by ONNX Runtime.
        found = max(difference(model, folder / MODEL, shape) for shape in _CHECKED)
    except Exception as error:  # of the exporter and of ONNX Runtime, which have many kinds
        if is_out_of_memory(error):
            raise
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(
            f"This model cannot be exported to ONNX by PyTorch {torch.__version__}: {reason} "
            "Use format=huggingface."
        ) from error
    if not found <= TOLERANCE:
        raise ConfigError(
            f"ONNX Runtime must give the outputs of PyTorch within {TOLERANCE}, but they differ by "
            f"{found:.1e}; nothing was exported. Use format=huggingface."
        )
    return found


def session_of(path: Path) -> Any:
    """Open a file in ONNX Runtime, with as many threads as PyTorch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run_session(session: Any, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return the outputs of an ONNX session by name."""
    names = [one.name for one in session.get_inputs()]
    feed = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
    outputs = [one.name for one in session.get_outputs()]
    return dict(zip(outputs, map(torch.from_numpy, session.run(None, feed)), strict=True))


def difference(model: WindowModel, path: Path, shape: tuple[int, int]) -> float:
    """Return the largest difference of an output between PyTorch and an ONNX file.

    Args:
        model: the original.
        path: of the file.
        shape: number of windows, and tokens of each.
    """
    inputs = model.examples(n_windows=shape[0], n_tokens=shape[1], seed=1)
    found = run_session(session_of(path), inputs)
    return max(
        _distance(value, found[name]) for name, value in named_outputs(model, inputs).items()
    )


def _distance(one: Tensor, other: Tensor) -> float:
    """Return the largest difference; infinite where one is finite and the other is not."""
    finite = torch.isfinite(one)
    if not torch.equal(finite, torch.isfinite(other)):
        return float("inf")
    return float((one[finite] - other[finite]).abs().max())


def quantise(model: WindowModel, folder: Path) -> dict[str, float]:
    """Write model_int8.onnx, whose matrix products are of 8-bit integers (dynamic quantisation).

    Args:
        model: the original.
        folder: has model.onnx.

    Returns:
        What it costs and gains, on windows of random tokens: `largest_probability_difference`,
        `milliseconds_fp32` and `milliseconds_int8` of a batch, its `windows` and `tokens`, `threads`,
        and the bytes of both files, `bytes_fp32` and `bytes_int8`.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    paths = {"fp32": folder / MODEL, "int8": folder / QUANTISED}
    with _quiet():
        quantize_dynamic(paths["fp32"], paths["int8"], weight_type=QuantType.QInt8)
    inputs = model.examples(n_windows=_TIMED[0], n_tokens=_TIMED[1], seed=2)
    sessions = {name: session_of(path) for name, path in paths.items()}
    outputs = {name: run_session(session, inputs) for name, session in sessions.items()}
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(_ROUNDS):  # in turn, as other work on the machine comes and goes
        for name, session in sessions.items():
            began = time.perf_counter()
            run_session(session, inputs)
            times[name].append(time.perf_counter() - began)
    return {
        "largest_probability_difference": max(
            float(
                (_probabilities(key, value) - _probabilities(key, outputs["int8"][key])).abs().max()
            )
            for key, value in outputs["fp32"].items()
        ),
        **{f"milliseconds_{name}": 1000 * median(own) for name, own in times.items()},
        "windows": _TIMED[0],
        "tokens": _TIMED[1],
        "threads": torch.get_num_threads(),
        **{f"bytes_{name}": path.stat().st_size for name, path in paths.items()},
    }


def _probabilities(name: str, output: Tensor) -> Tensor:
    """Return p(met), or the probability of each token that the span starts or ends there."""
    assert name in (LOG_ODDS, STARTS, ENDS)
    return output.sigmoid() if name == LOG_ODDS else output.softmax(dim=-1)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the notes of the exporter's libraries about themselves off the console."""
    loggers = [logging.getLogger(name) for name in _CHATTY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
