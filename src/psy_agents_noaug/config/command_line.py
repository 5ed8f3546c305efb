"""What people write in place of KEY=VALUE, and how to say it here."""

from collections.abc import Mapping, Sequence

from psy_agents_noaug.config.loading import closest_keys

_HYDRA_FLAGS = {
    (
        "-m",
        "--multirun",
    ): "psy-agents tune searches; a loop of the shell trains once for each value",
    ("-c", "--cfg", "--resolve", "-p", "--package"): (
        "psy-agents train --help prints the composed configuration"
    ),
    ("-cn", "--config-name", "-cp", "--config-path", "-cd", "--config-dir"): (
        "task=TASK and GROUP=CHOICE choose the configuration; best_config=FILE adds a file of values"
    ),
    ("-i", "--info"): "psy-agents info describes the installation, and --help the configuration",
}
_HYDRA_KEYS = (
    "Hydra composes the settings here, but runs nothing; output_dir=DIR and run_name=NAME say where a "
    "run is written"
)


def is_setting(word: str) -> bool:
    """Whether a word of a command line is KEY=VALUE, GROUP=CHOICE or ~KEY, and not for Hydra itself."""
    key, assigned, _ = word.partition("=")
    return (bool(assigned) or word.startswith("~")) and not (
        key.startswith("-") or key.lstrip("+~").startswith(("hydra.", "hydra/"))
    )


def syntax_faults(
    words: Sequence[str], *, keys: Sequence[str], groups: Mapping[str, Sequence[str]]
) -> list[str]:
    """Return a line for each word that is no setting: how to write it, or what to do instead.

    Args:
        words: the arguments of a command, without the flags that it knows.
        keys: dotted keys of its settings.
        groups: its groups and their choices.
    """
    faults = []
    left = list(words)
    while left:
        word = left.pop(0)
        if is_setting(word):
            continue
        name, assigned, value = word.partition("=")
        is_flag = word.startswith("-") and not assigned
        if is_flag and left and not is_setting(left[0]) and not left[0].startswith("-"):
            value = left.pop(0)
            word = f"{word} {value}"
        faults.append(f"`{word}`: {_answer(name, value, keys=keys, groups=groups)}.")
    return faults


def _answer(
    name: str, value: str, *, keys: Sequence[str], groups: Mapping[str, Sequence[str]]
) -> str:
    if name.lstrip("+~").startswith(("hydra.", "hydra/")):
        return _HYDRA_KEYS
    for flags, answer in _HYDRA_FLAGS.items():
        if name in flags:
            return answer
    chosen_from = [group for group, choices in groups.items() if name in choices]
    if chosen_from:
        return "write " + " or ".join(f"{group}={name}" for group in chosen_from)
    known = [*groups, *keys]
    meant = name.lstrip("-").replace("-", "_")
    similar = [meant] if meant in known else closest_keys(meant, known)
    if similar:
        return "write " + " or ".join(f"{key}={value or 'VALUE'}" for key in similar)
    return "settings are written KEY=VALUE, and --help lists them"
