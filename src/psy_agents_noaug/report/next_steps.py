"""What to do next with a corpus, as concrete commands."""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from psy_agents_noaug.config.schema import DataCheckConfig
from psy_agents_noaug.run.data_check.facts import DataFacts, ValidFacts
from psy_agents_noaug.run.data_check.lengths import shortest_sufficient

_WIDE = 0.05  # half of an interval of macro-F1
_MAY_BE_CUT = 0.01  # of the texts
_LONG = 3600.0  # seconds


@dataclass(frozen=True)
class Step:
    """A step.

    Args:
        reason: why, and what.
        command: that does it; empty: the data must be mended by hand.
    """

    reason: str
    command: str = ""


def next_steps(facts: DataFacts) -> list[Step]:
    """Return the steps, in the order in which they should be made; the last is a training."""
    if facts.faults or facts.valid is None:
        return [
            Step(
                "Mend the faults above in the files or the settings, and check again:",
                _command(facts, "data check"),
            )
        ]
    return [*_of_data(facts, facts.valid), *_of_model(facts, facts.valid)]


def _of_data(facts: DataFacts, valid: ValidFacts) -> Iterator[Step]:
    alignment = valid.data.alignment
    if alignment.suggested is not None:
        style, n = alignment.suggested
        yield Step(
            f"{len(alignment.cut)} offsets cut words. Another way to count mends {n} of them; check "
            "again with it:",
            _command(facts, "data check", *style.settings(current=alignment.offsets).split()),
        )
    doubtful = len(alignment.ids["lost"]) + len(alignment.ambiguous)
    if doubtful and not facts.settings.with_text:
        yield Step(
            f"Evidence of {doubtful} annotations was not found or is ambiguous. See it in its words, "
            "and mend it in the annotations:",
            _command(facts, "data check", "with_text=true"),
        )
    data, fixed = facts.config.data, facts.config.protocol.fixes.get("data", {})
    may_drop = data.duplicates == "warn" and "duplicates" not in fixed
    if (crossing := valid.n_crossing) and may_drop:
        yield Step(
            f"{crossing} texts of train are in val or test too. Leave them out of training in every "
            "command that follows:",
            _command(facts, "data check", "data.duplicates=drop_from_train"),
        )


def _of_model(facts: DataFacts, valid: ValidFacts) -> Iterator[Step]:
    changed: list[str] = []
    if facts.lengths and (setting := _length_setting(facts)):
        reason, changed = setting
        yield Step(reason, _command(facts, "data check", *changed))
    if facts.time is not None and facts.time.seconds > _LONG and facts.time.device == "cpu":
        yield Step(
            f"A training takes {facts.time.seconds / 3600:.1f} hours on this CPU. See on a tenth of "
            "the updates that it learns, before you use a GPU:",
            _command(facts, "train", *changed, f"training.max_steps={facts.time.n_updates // 10}"),
        )
    expected = valid.expected.get("test", {}).get("f1_macro")
    half = expected.half_width if expected else None
    # As the protocol says, or without the posts that its file leaves unused: not into folds of all.
    divided = facts.config.protocol.divides or valid.data.splits.unused
    if expected and not divided and (half is None or half > _WIDE):
        known = "cannot have an interval" if half is None else f"will be known to ±{half:.2f} only"
        yield Step(
            f"Macro-F1 on test {known}. Cross-validation judges every post:",
            _command(facts, "cv", "folds=5", *changed),
        )
    yield Step("Train:", _command(facts, "train", *changed))


def _length_setting(facts: DataFacts) -> tuple[str, list[str]] | None:
    """Return why texts should be read otherwise, and the setting for it."""
    one, model = facts.lengths[0], facts.config.model
    unread, n_texts = one.at(model.max_length), len(one.lengths)
    enough = shortest_sufficient(one, share=_MAY_BE_CUT)
    is_truncated = getattr(facts.config.task, "long_posts", None) == "truncate"
    if unread is None or not n_texts or not is_truncated:
        return None
    if unread.texts > _MAY_BE_CUT * n_texts:
        share = f"{unread.texts / n_texts:.0%} of the texts are longer than model.max_length reads."
        if enough is not None:
            return f"{share} See what it takes to read nearly all whole:", [
                f"model.max_length={enough}"
            ]
        return f"{share} See what it takes to read them in windows:", ["task.long_posts=windows"]
    return None


def _command(facts: DataFacts, verb: str, *more: str) -> str:
    """Return a command with the settings of this check, and others."""
    replaced = {setting.partition("=")[0] for setting in more}
    if verb != "data check":
        replaced |= DataCheckConfig.model_fields.keys()
    if verb == "cv":
        replaced.add("data.splits")  # folds are the division
    kept = [one for one in facts.overrides if one.partition("=")[0].lstrip("+") not in replaced]
    task = f"task={facts.config.task.name}"
    return shlex.join(["psy-agents", *verb.split(), task, *kept, *more])
