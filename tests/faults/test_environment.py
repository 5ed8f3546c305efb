"""Homes, locales, clocks, folders and devices that are not what a developer's machine has."""

import json
import logging
import os
import pwd
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from psy_agents_noaug.cli import main
from psy_agents_noaug.config.overrides import hydra_literal
from psy_agents_noaug.config.schema import TrainConfig
from psy_agents_noaug.data.tokens import cache_folder
from psy_agents_noaug.errors import ConfigError
from psy_agents_noaug.run import hardware as hardware_module
from psy_agents_noaug.run.hardware import prepare_hardware
from psy_agents_noaug.tracking.base import without_private_parts

REPOSITORY = Path(__file__).parents[2]


def figures(run: Path) -> dict[str, object]:
    """What a run found: its metrics, and the hash of its weights."""
    manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    return {**metrics, "weights": manifest["weights_sha256"]}


@pytest.mark.slow
@pytest.mark.faults(
    "no HOME, locale C, another time zone, hash seed, working directory",
    "the same weights and figures",
)
def test_the_figures_do_not_depend_on_the_environment(
    overrides_for: Callable[..., list[str]], tmp_path: Path, own_logging: None
) -> None:
    assert main(["train", "task=criteria", *overrides_for(tmp_path / "here"), "run_name=a"]) == 0
    elsewhere = tmp_path / "wörk 🐕 dir"
    elsewhere.mkdir()
    kept = {key: value for key, value in os.environ.items() if key not in ("HOME", "LANG")}
    odd = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "TZ": "Pacific/Kiritimati"}
    ended = subprocess.run(
        [
            sys.executable,
            str(REPOSITORY / "scripts" / "train_criteria.py"),
            *overrides_for("relative outputs"),
            "run_name=a",
        ],
        cwd=elsewhere,
        env={**kept, **odd, "PYTHONHASHSEED": "123", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr.decode()
    run = elsewhere / "relative outputs" / "criteria" / "a"
    assert figures(run) == figures(tmp_path / "here" / "criteria" / "a")


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user of a container: without HOME, and unknown to the system."""

    def unknown(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(RuntimeError):
        Path.home()


@pytest.mark.faults("no HOME, and a user unknown to the system", "trains without a token cache")
def test_a_training_needs_no_home(
    homeless: None, overrides: list[str], own_logging: None, tmp_path: Path
) -> None:
    assert cache_folder("auto") is None
    assert without_private_parts(f"{Path.cwd()}/x") == "./x"
    assert main(["train", "task=criteria", *overrides]) == 0
    assert list(tmp_path.iterdir()) == [tmp_path / "outputs"]


@pytest.mark.faults("no HOME, and a user unknown to the system", "trains without a token cache")
def test_a_path_in_no_home_is_refused_as_absent(
    homeless: None, refusal_of_training: Callable[..., str]
) -> None:
    assert "~/corpus/redsm5_posts.csv: there is no such file" in refusal_of_training(
        "data.dir=~/corpus"
    )


def test_the_private_parts_of_a_removed_working_directory_are_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert without_private_parts("/data/x") == "/data/x"


@pytest.mark.slow
@pytest.mark.faults("odd characters in output_dir", "works as any other folder")
@pytest.mark.parametrize(
    "name",
    [
        "with space",
        "日本 🐕 é",
        'it\'s "it"',
        "50% #1?a=b&c",
        "[a]*",
        "back\\slash",
        "-x",
        "a,b;c|{d}",
        "line\nend\a",
    ],
)
def test_odd_characters_in_output_dir_are_taken_as_they_are(
    overrides: list[str], own_logging: None, tmp_path: Path, name: str
) -> None:
    output = tmp_path / name
    given = [*overrides, f"output_dir={hydra_literal(str(output))}", "run_name=a"]
    assert main(["train", "task=criteria", *given]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {name}
    checkpoint = hydra_literal(str(output / "checkpoints" / "best_checkpoint.pt"))
    assert main(["eval", f"checkpoint={checkpoint}", "split=val"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {name}


@pytest.mark.faults("output_dir holds what no file name may", "refused with one message")
@pytest.mark.parametrize("name", ["nul\0", "\udcff"])
def test_characters_that_no_folder_should_have_are_refused(
    refusal_of_training: Callable[..., str], tmp_path: Path, name: str
) -> None:
    told = refusal_of_training(f"output_dir={hydra_literal(str(tmp_path / name))}")
    assert "`output_dir` must be" in told
    assert list(tmp_path.iterdir()) == []


@pytest.mark.faults("the clock is set back in a training, and before it", "trains, and goes on")
def test_a_clock_that_goes_back_ends_nothing(
    overrides: list[str],
    own_logging: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    now = time.time()
    ticks = count()
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: now - 1000.0 * next(ticks))
        assert main(["train", "task=criteria", *overrides, "run_name=a"]) == 0
    run = tmp_path / "outputs" / "criteria" / "a"
    before = figures(run)
    manifest = (run / "manifest.json").read_text()
    (run / "manifest.json").write_text(manifest.replace('"finished"', '"running"'))
    for path in [run, *run.rglob("*")]:
        os.utime(path, (now + 1e6, now + 1e6))
    capfd.readouterr()
    assert main(["train", "task=criteria", *overrides, "resume=auto"]) == 0
    assert f"Going on with {run}" in capfd.readouterr().err
    assert figures(run) == before


# ------------------------------------------------------------------------------------- devices


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What PyTorch says on a machine with two V100; the test may change it."""
    gpu = SimpleNamespace(
        name="Tesla V100", major=7, minor=0, total_memory=2**34, architectures=["sm_70", "sm_80"]
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: gpu)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: gpu.architectures)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(hardware_module, "set_seed", lambda *_, **__: None)
    return gpu


def test_the_device_that_was_asked_for_is_the_current_one(
    two_gpus: SimpleNamespace,
    make_config: Callable[..., TrainConfig],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    prepared = prepare_hardware(make_config("training.device=cuda:1", "training.amp=off"))
    assert chosen == [torch.device("cuda:1")] == [prepared.distributed.device]


@pytest.mark.faults("PyTorch has no kernels for the GPU", "refused, with what it has kernels for")
@pytest.mark.parametrize(
    ("capability", "architectures"),
    [
        ((7, 0), ["sm_75", "sm_80", "sm_90", "sm_100", "sm_120", "compute_120"]),
        ((8, 0), ["sm_86"]),
        ((10, 0), ["sm_90a"]),
    ],
)
def test_a_gpu_that_pytorch_has_no_kernels_for_is_refused(
    two_gpus: SimpleNamespace,
    make_config: Callable[..., TrainConfig],
    capability: tuple[int, int],
    architectures: list[str],
) -> None:
    two_gpus.major, two_gpus.minor = capability
    two_gpus.architectures = architectures
    with pytest.raises(ConfigError, match="has no kernels for cuda:0, Tesla V100") as caught:
        prepare_hardware(make_config())
    assert "compute capability is {}.{}".format(*capability) in str(caught.value)
    assert ", ".join(architectures) in str(caught.value)


@pytest.mark.parametrize(
    ("capability", "architectures"),
    [((8, 6), ["sm_80"]), ((9, 0), ["sm_90a"]), ((12, 1), ["compute_90"]), ((7, 0), [])],
)
def test_a_gpu_that_kernels_of_another_one_run_on_is_used(
    two_gpus: SimpleNamespace,
    make_config: Callable[..., TrainConfig],
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int],
    architectures: list[str],
) -> None:
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    two_gpus.major, two_gpus.minor = capability
    two_gpus.architectures = architectures
    prepared = prepare_hardware(make_config("training.amp=off"))
    assert prepared.distributed.device.type == "cuda"


@pytest.mark.faults("PyTorch is built for CUDA and finds no GPU", "trains on the CPU, and says why")
def test_a_cuda_build_without_a_gpu_says_why_the_cpu_is_used(
    make_config: Callable[..., TrainConfig],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    caplog.set_level(logging.WARNING)
    prepare_hardware(make_config())
    assert "is built for CUDA but finds no GPUs: there may be no NVIDIA driver" in caplog.text
    assert "Training uses the CPU." in caplog.text
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ConfigError, match="CUDA_VISIBLE_DEVICES='' may hide them"):
        prepare_hardware(make_config("training.device=cuda"))
    caplog.clear()
    prepare_hardware(make_config("training.device=cpu"))
    assert not caplog.text
