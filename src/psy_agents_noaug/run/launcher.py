"""Refuse what `accelerate launch` was asked for and this package does not do."""

from collections.abc import Mapping

from psy_agents_noaug.errors import ConfigError

_UNSUPPORTED = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_IN_TPU_POD": "TPUs",
    "ACCELERATE_CPU_AFFINITY": "CPU affinity",
}
_MPI_SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


def check_launcher(environment: Mapping[str, str], *, amp: str) -> None:
    """Check the options that `accelerate launch` passes on in environment variables.

    They come from its command line or from the file that `accelerate config` wrote.

    Args:
        environment: `os.environ`.
        amp: the precision of the run: `off`, `bf16` or `fp16`.

    Raises:
        ConfigError: an option that would be ignored.
    """
    for variable, name in _UNSUPPORTED.items():
        if environment.get(variable, "").lower() in ("true", "1"):
            raise ConfigError(
                f"`accelerate launch` was asked for {name}, but only data-parallel training is "
                "supported: use its --multi_gpu without other options, or torchrun."
            )
    # Only `accelerate launch` without torchrun sets ACCELERATE_USE_CPU.
    over_mpi = any(int(environment.get(variable, "1")) > 1 for variable in _MPI_SIZES)
    if "ACCELERATE_USE_CPU" in environment and over_mpi:
        raise ConfigError(
            "`accelerate launch` was asked for processes over MPI, which are not supported: use "
            "torchrun."
        )
    if environment.get("ACCELERATE_DYNAMO_BACKEND", "no").lower() != "no":
        raise ConfigError(
            "`accelerate launch` was asked to compile the model: set `training.compile=true` "
            "instead, and launch with --dynamo_backend=no."
        )
    asked = environment.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if asked not in ("no", amp):
        supported = asked if asked in ("bf16", "fp16") else "bf16"
        raise ConfigError(
            f"`accelerate launch` was asked for {asked}, but `training.amp` is {amp}: set "
            f"`training.amp={supported}` and launch with --mixed_precision={supported} or no."
        )
