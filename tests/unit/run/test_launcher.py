import pytest

from psy_agents_noaug.errors import ConfigError
from psy_agents_noaug.run.hardware import prepare_hardware
from psy_agents_noaug.run.launcher import check_launcher


@pytest.mark.parametrize(
    ("asked", "amp", "remedy"),
    [
        ("bf16", "off", "training.amp=bf16"),
        ("BF16", "fp16", "training.amp=bf16"),
        ("fp16", "bf16", "training.amp=fp16"),
        ("fp8", "bf16", "training.amp=bf16"),
    ],
)
def test_a_precision_given_to_the_launcher_and_not_to_the_run_is_refused(asked, amp, remedy):
    with pytest.raises(ConfigError, match=f"asked for {asked.lower()}.*{amp}: set `{remedy}`"):
        check_launcher({"ACCELERATE_MIXED_PRECISION": asked}, amp=amp)


@pytest.mark.parametrize(
    ("asked", "amp"), [("no", "bf16"), ("no", "off"), ("bf16", "bf16"), ("fp16", "fp16")]
)
def test_a_launcher_that_asks_for_the_runs_precision_or_for_none_is_fine(asked, amp):
    check_launcher({"ACCELERATE_MIXED_PRECISION": asked}, amp=amp)
    check_launcher({}, amp=amp)


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed"),
        ({"ACCELERATE_USE_FSDP": "true"}, "FSDP"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "Megatron-LM"),
        ({"ACCELERATE_IN_TPU_POD": "1"}, "TPUs"),
        ({"ACCELERATE_CPU_AFFINITY": "1"}, "CPU affinity"),
        ({"ACCELERATE_USE_CPU": "True", "OMPI_COMM_WORLD_SIZE": "2"}, "MPI"),
        ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, r"training\.compile=true"),
    ],
)
def test_what_else_the_launcher_offers_is_refused(environment, named):
    with pytest.raises(ConfigError, match=named):
        check_launcher(environment, amp="off")


def test_what_accelerate_launch_sets_without_any_wish_is_fine():
    environment = {
        "ACCELERATE_USE_CPU": "False",
        "ACCELERATE_USE_FSDP": "false",
        "ACCELERATE_DYNAMO_BACKEND": "NO",
        "ACCELERATE_MIXED_PRECISION": "no",
    }
    check_launcher(environment, amp="off")
    # Independent runs that MPI started.
    check_launcher({"OMPI_COMM_WORLD_SIZE": "2"}, amp="off")


def test_a_run_checks_what_its_launcher_was_asked_for(make_config, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(ConfigError, match=r"training\.amp=bf16"):
        prepare_hardware(make_config("training.amp=off"))
    prepare_hardware(make_config("training.amp=bf16"))
