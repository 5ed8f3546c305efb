"""The page of a check of the data, and its summary for the console."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from psy_agents_noaug.config.schema import DataCheckConfig, TrainConfig
from psy_agents_noaug.data.alignment import AlignmentReport
from psy_agents_noaug.data.splits import SPLIT_NAMES
from psy_agents_noaug.errors import DataError
from psy_agents_noaug.metrics.tables import format_value
from psy_agents_noaug.report.background import DUPLICATES, corpus_parts
from psy_agents_noaug.report.figures import drawing, lengths_figure, picture, together_figure
from psy_agents_noaug.report.next_steps import next_steps
from psy_agents_noaug.report.page import Part, Pictures, Section, Table, Text, render
from psy_agents_noaug.report.write import write_only_parts
from psy_agents_noaug.run.annotators import what_agreement_is_over
from psy_agents_noaug.run.data_check.facts import DataFacts, ValidFacts, check
from psy_agents_noaug.run.data_check.lengths import MAX_TEXTS_WITH_SPANS, EncoderLengths
from psy_agents_noaug.run.data_check.salvage import Salvage
from psy_agents_noaug.run.directory import RunDirectory
from psy_agents_noaug.tasks.registry import task_class
from psy_agents_noaug.tracking.base import without_private_parts
from psy_agents_noaug.utils.files import make_folder, write_bytes

FILE, FILE_WITH_TEXT = "data.html", "data_with_text.html"
_MAX_ROWS = 100


@dataclass(frozen=True)
class DataCheck:
    """What a check of the data gives.

    Args:
        page: where it is.
        summary: for the console.
        facts: behind both.
    """

    page: Path
    summary: str
    facts: DataFacts


def check_and_write(
    config: TrainConfig, settings: DataCheckConfig, overrides: Sequence[str]
) -> DataCheck:
    """Check the data and write the page; without text, with figures/ and tables/ beside it.

    Args:
        config: of the training that the check is about.
        settings: of the check.
        overrides: that both come from, for the commands of the page.

    Raises:
        DataError: all faults of the data; the page shows what could be read.
        ConfigError: a setting contradicts another, or this machine.
        StorageError: a file cannot be written.
    """
    facts = check(config, settings, overrides)
    folder = Path(settings.output or Path(config.output_dir) / "data" / config.data.name)
    with drawing():
        sections = data_sections(facts)
    html = render(
        "report.html.jinja",
        title=f"Data {config.data.name}",
        sections=sections,
        lead=_lead(facts),
    )
    make_folder(folder)
    if settings.with_text:  # in one file, for its owner alone
        page = folder / FILE_WITH_TEXT
        write_bytes(page, html.encode(), mode=0o600)
    else:
        page = folder / FILE
        write_bytes(page, html.encode())
        write_only_parts(sections, RunDirectory(folder))
    if facts.faults:
        raise DataError("\n".join([*facts.faults, f"What could be read: {page}"]))
    return DataCheck(page, summary(facts), facts)


def data_sections(facts: DataFacts) -> list[Section]:
    """Return the sections of the page; one without content is left out."""
    valid = facts.valid
    made: list[tuple[str, Iterator[Part]]] = [
        ("Faults", _faults(facts)),
        ("Warnings", _warnings(facts)),
        ("At a glance", _glance(facts)),
        ("What to do next", _next(facts)),
        ("What could be read", _readable(facts.readable)),
    ]
    if valid is not None:
        data = valid.data
        made += [
            ("Criteria", _criteria(facts, valid)),
            ("What the figures will tell", _expected(facts, valid)),
        ]
    made.append(("Length in tokens", _lengths(facts)))
    if valid is not None:
        names = {one.criterion_id: one.name for one in valid.data.criteria}
        made += [
            ("Data", corpus_parts(valid.report, names, origin=data.splits.origin)),
            ("Evidence to look at", _doubtful(facts, data.alignment)),
            ("Duplicates", _duplicates(valid)),
        ]
    made.append(("Time of a training", _time(facts)))
    sections = [Section(title, list(parts)) for title, parts in made]
    return [section for section in sections if section.parts]


def summary(facts: DataFacts) -> str:
    """Return what the console shows."""
    known = _facts(facts)
    width = max(map(len, known), default=0)
    blocks = ["\n".join(f"{name:{width}}  {value}" for name, value in known.items())]
    if warnings := _warning_lines(facts):
        blocks.append("\n".join(["warnings:", *(f"  {line}" for line in warnings)]))
    lines = ["what to do next:"]
    for step in next_steps(facts):
        lines += [f"  {step.reason}", *([f"    {step.command}"] if step.command else [])]
    return "\n\n".join([*blocks, "\n".join(lines)])


def _lead(facts: DataFacts) -> str:
    state = "A training would be refused" if facts.faults else "A training would accept this data"
    return (
        f"{state}: task {facts.config.task.name}, model {_model(facts)}, "
        f"model.max_length={facts.config.model.max_length}."
    )


def _model(facts: DataFacts) -> str:
    return without_private_parts(facts.config.model.pretrained_model)


def _faults(facts: DataFacts) -> Iterator[Part]:
    for fault in facts.faults:
        lines = [line.removeprefix("  - ") for line in fault.splitlines()]
        yield Text([without_private_parts(line) for line in lines], style="warning")


def _warning_lines(facts: DataFacts) -> list[str]:
    found = [*facts.warnings, *facts.notes]
    if facts.valid is None:
        return found
    data = facts.valid.data
    if n := len(data.labels.contradictions or ()):
        merged = task_class(facts.config.task.name).labels.merged
        found.append(
            f"The annotations of {n} pairs contradict each other; the {merged} label counts."
        )
    if data.annotators is not None and data.annotators.n_disagreements:
        found.append(
            f"Annotators: {what_agreement_is_over(data.annotators.to_json())} "
            f"`data.merge={data.annotators.rule}` decides."
        )
    return found


def _warnings(facts: DataFacts) -> Iterator[Part]:
    if lines := _warning_lines(facts):
        yield Text([without_private_parts(line) for line in lines], style="warning")


def _glance(facts: DataFacts) -> Iterator[Part]:
    rows = [[name, value] for name, value in _facts(facts).items()]
    yield Table("glance", "The corpus at a glance", ["what", "value"], rows, left=2)


def _facts(facts: DataFacts) -> dict[str, str]:
    """Return the lines that the console and the page begin with."""
    found: dict[str, str] = {}
    if (valid := facts.valid) is not None:
        data = valid.data
        labels, divided = data.labels, data.counts.values()
        n_pairs = sum(own["pairs"] for own in divided)
        n_met = sum(sum(own["positives"].values()) for own in divided)
        apart = {
            "posts unused": len(data.splits.unused),
            "texts left out of train": len(data.dropped),
        }
        found = {
            "posts": f"{labels.n_posts:,}, "
            + (
                f"of {valid.n_groups:,} authors"
                if valid.n_groups < labels.n_posts
                else "each a group of its own"
            ),
            "annotations": f"{labels.n_annotations:,}"
            + (f" by {valid.n_annotators} annotators" if valid.n_annotators else ""),
            f"pairs of a {facts.config.data.unit} and a criterion": f"{n_pairs:,}, of which "
            f"{n_met:,} met",
            "evidence" + (", before corrections" if data.corrections else ""): ", ".join(
                f"{n:,} {kind}" for kind, n in data.alignment.counts.items() if n
            )
            or "none",
            "splits": ", ".join(
                [f"{name} {own['posts']:,} posts" for name, own in data.counts.items()]
                + [f"{n:,} {what}" for what, n in apart.items() if n]
            ),
        }
        if data.held_out:
            found["held-out criteria"] = ", ".join(
                f"{name} ({own['pairs']:,} pairs of test, {own['positives']:,} met)"
                for name, own in data.held_out_counts().items()
            )
    for one in facts.lengths:
        if not len(one.lengths):
            continue
        unread = one.at(facts.config.model.max_length)
        cut = (
            f"; {_share(unread.texts, len(one.lengths))} do not fit into "
            f"model.max_length={unread.max_length}"
            if unread
            else ""
        )
        median, longest = int(np.median(one.lengths)), int(one.lengths.max())
        name = without_private_parts(one.encoder)
        drawn = f" (of {one.n_texts:,}, drawn)" if len(one.lengths) < one.n_texts else ""
        found[f"tokens of {name}"] = f"median {median:,}, longest {longest:,}{cut}{drawn}"
    if valid is not None:
        for split, own in valid.expected.items():
            half = own["f1_macro"].half_width
            found[f"macro-F1 of {split}"] = (
                f"will be known to ±{half:.2f}" if half is not None else "too few for an interval"
            )
    if facts.time is not None:
        found["training"] = (
            f"about {duration(facts.time.seconds)} on this machine ({facts.time.device})"
        )
    return found


def _share(n: int, total: int) -> str:
    return f"{n:,} of {total:,} ({n / max(total, 1):.1%})"


def duration(seconds: float) -> str:
    """Return a length of time in the unit that suits it."""
    for limit, unit, name in ((90, 1, "s"), (5400, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.0f} {name}" if name != "h" else f"{seconds / unit:.1f} h"
    return f"{seconds / 86_400:.1f} days"


def _next(facts: DataFacts) -> Iterator[Part]:
    for number, step in enumerate(next_steps(facts), start=1):
        lines = [f"{number}. {step.reason}", *([step.command] if step.command else [])]
        yield Text([without_private_parts(line) for line in lines], style="note")


def _readable(found: Salvage | None) -> Iterator[Part]:
    if found is None or not found.tables:
        return
    rows = [[one.kind, one.file, _n_rows(one.rows), ", ".join(one.columns)] for one in found.tables]
    yield Table("tables", "Tables", ["table", "file", "rows", "columns"], rows, left=4)
    if found.labels:
        rows = [[*label, f"{n:,}"] for label, n in found.labels.items()]
        head = ["criterion", "status", "rows"]
        n_rarer = found.n_labels - len(found.labels)
        notes = [f"{n_rarer:,} rarer labels are not listed."] if n_rarer else []
        yield Table("labels", "Labels as they are written", head, rows, left=2, notes=notes)


def _n_rows(n: int | None) -> str:
    return "cannot be read" if n is None else f"{n:,}"


def _criteria(facts: DataFacts, valid: ValidFacts) -> Iterator[Part]:
    data = valid.data
    names = [one.criterion_id for one in data.criteria]
    n_posts = valid.n_paired
    pairs = {split: own for split, own in data.examples.items() if split in SPLIT_NAMES}
    rows = []
    for number, one in enumerate(data.criteria):
        n_met = int(valid.met_together[number, number])
        row = [one.criterion_id, one.name, f"{n_met:,}", f"{n_met / max(n_posts, 1):.1%}"]
        for own in pairs.values():
            labels = [e.label > 0 for e in own if e.criterion_id == one.criterion_id]
            row.append(f"{sum(labels):,} ({np.mean(labels):.1%})" if labels else "no pair")
        rows.append(row)
    head = ["criterion", "name", "posts that meet it", "share"]
    head += [f"met pairs of {split}" for split in pairs]
    note = f"Shares are of the {n_posts:,} posts that have pairs in a split."
    if facts.config.data.unannotated_pairs == "drop":
        note += " Where a criterion was not annotated, they count as not meeting it."
    caption = "How often each criterion is met"
    yield Table("prevalence", caption, head, rows, left=2, notes=[note])
    if len(names) > 1:
        off = valid.met_together - np.diag(np.diag(valid.met_together))
        first, second = np.unravel_index(int(off.argmax()), off.shape)
        yield Pictures(
            [
                picture(
                    "together",
                    together_figure(names, valid.met_together),
                    alt=f"Posts that meet two criteria, of each two; most often {names[first]} and "
                    f"{names[second]}, in {off.max()} posts.",
                    caption="Posts that meet both criteria; on the diagonal, those that meet the one. "
                    "Numbers: the table below.",
                )
            ]
        )
        rows = [
            [name, *(f"{n:,}" for n in own)]
            for name, own in zip(names, valid.met_together.tolist(), strict=True)
        ]
        caption = "Posts that meet both criteria"
        yield Table("together", caption, ["criterion", *names], rows, is_folded=True)
    rows = [[str(n), f"{posts:,}"] for n, posts in valid.n_met.items()]
    yield Table("n_met", "Posts by the number of criteria that they meet", ["met", "posts"], rows)


def _expected(facts: DataFacts, valid: ValidFacts) -> Iterator[Part]:
    if not valid.expected:
        return
    counts = valid.data.counts
    rows = []
    for criterion in valid.data.criteria:
        one = criterion.criterion_id
        row = [one, criterion.name]
        for split, own in valid.expected.items():
            interval = own.get(f"per_criterion/{one}/f1")
            row += [f"{counts[split]['positives'][one]:,}"]
            row += [_width(interval.half_width if interval else None)]
        rows.append(row)
    for name, key in (("macro-F1", "f1_macro"), ("micro-F1", "f1_micro")):
        row = ["all", name]
        for split, own in valid.expected.items():
            row += [f"{sum(counts[split]['positives'].values()):,}", _width(own[key].half_width)]
        rows.append(row)
    head = ["criterion", "name"]
    for split in valid.expected:
        head += [f"met pairs, {split}", f"F1 will be known to, {split}"]
    notes = [
        "Half of the expected width of the 95 % interval of F1, for a model with an AUROC of "
        f"{facts.settings.assumed_auroc:g} within each criterion (assumed_auroc). Its predictions are "
        "drawn for the pairs as they are, and given the intervals of every report; a better model has "
        "narrower ones.",
    ]
    caption = "How exactly figures will be known at this size"
    yield Table("expected", caption, head, rows, left=2, n_last=2, notes=notes)


def _width(half: float | None) -> str:
    return "too few" if half is None else f"±{half:.2f}"


def _lengths(facts: DataFacts) -> Iterator[Part]:
    max_length = facts.config.model.max_length
    unit = facts.config.data.unit if facts.valid else "post"
    for number, one in enumerate(facts.lengths):
        if not len(one.lengths):
            continue
        name = without_private_parts(one.encoder)
        shares = np.percentile(one.lengths, [50, 90, 95, 99, 100]).astype(int)
        shown = ", ".join(
            f"{share} {n:,}"
            for share, n in zip(("50 %", "90 %", "95 %", "99 %", "longest"), shares, strict=True)
        )
        yield Pictures(
            [
                picture(
                    f"lengths_{number}",
                    lengths_figure(
                        one.lengths,
                        {f"read at max_length {max_length}": max_length - one.frame},
                        label=f"tokens of a {unit}",
                    ),
                    alt=f"Tokens of {name} in each {unit}: {shown}.",
                    caption=f"Tokens of {name}: {shown}. {one.frame} more are the frame: special "
                    "tokens, and the longest criterion where the encoder reads it with the text.",
                )
            ]
        )
        yield _unread_table(one, name, number, max_length)


def _unread_table(one: EncoderLengths, name: str, number: int, max_length: int) -> Table:
    rows = [
        [
            f"{u.max_length}{' (configured)' if u.max_length == max_length else ''}",
            _share(u.texts, len(one.lengths)),
            f"{u.tokens:.1%}",
            *([_share(u.spans, one.n_spans)] if one.n_spans else []),
        ]
        for u in one.unread
    ]
    head = ["model.max_length", "texts that are longer", "tokens beyond it"]
    head += ["evidence that ends beyond it"] * bool(one.n_spans)
    notes = [
        "Truncated texts lose what is beyond; with windows (task.long_posts=windows, and always for "
        "evidence) it is read in further windows, which take time."
    ]
    if len(one.lengths) < one.n_texts:
        notes.append(f"Counted are {len(one.lengths):,} of {one.n_texts:,} texts, drawn at random.")
    if one.n_spans:
        looked = min(one.n_texts_with_spans, MAX_TEXTS_WITH_SPANS)
        if looked < one.n_texts_with_spans:
            notes.append(
                f"Evidence is that of {looked:,} of {one.n_texts_with_spans:,} texts, drawn at random."
            )
    return Table(f"unread_{number}", f"What each length reads, {name}", head, rows, notes=notes)


def _doubtful(facts: DataFacts, alignment: AlignmentReport) -> Iterator[Part]:
    kinds = {
        "not in the post": alignment.ids["lost"],
        "found by similarity (score)": alignment.ids["fuzzy"],
        "occurs several times": alignment.ambiguous,
        "offsets cut words": alignment.cut,
    }
    texts = _texts_of(facts) if facts.settings.with_text else {}
    rows = []
    for kind, ids in kinds.items():
        for name in ids[:_MAX_ROWS]:
            row = int(name.rpartition("/")[2].partition(" (")[0])
            rows.append([name, kind, *([texts.get(row, "")] if texts else [])])
    if not rows:
        return
    head = ["post/criterion/row", "evidence", *(["its words"] if texts else [])]
    hidden = [
        f"{len(ids) - _MAX_ROWS:,} more: {kind}"
        for kind, ids in kinds.items()
        if len(ids) > _MAX_ROWS
    ]
    note = "" if texts else "with_text=true shows the words, on a page for its owner alone."
    notes = [line for line in (*hidden, note) if line]
    caption = "Evidence that an annotator should look at"
    yield Table("doubtful", caption, head, rows, left=len(head), notes=notes)


def _texts_of(facts: DataFacts) -> Mapping[int, str]:
    """Return the words of the evidence by annotation row."""
    assert facts.valid is not None
    corpus = facts.valid.data.corpus
    posts = {post.post_id: post.text for post in corpus.posts}
    return {
        a.row: a.evidence_text
        if a.evidence_text is not None
        else posts[a.post_id][a.start_char : a.end_char]
        for a in corpus.annotations
        if a.evidence_text is not None or a.start_char is not None
    }


def _duplicates(valid: ValidFacts) -> Iterator[Part]:
    found = valid.data.duplicates.by_kind()
    rows = [
        [first, one, second, other, DUPLICATES[kind], *(f"{value:.2f}" for value in more or [1.0])]
        for kind, pairs in found.items()
        for first, one, second, other, *more in pairs[:_MAX_ROWS]
    ]
    if n_copies := valid.data.duplicates.n_copies:
        yield Text([f"{n_copies:,} posts have a text that another post has too, in any split."])
    if rows:
        head = ["text", "split", "text", "split", "are", "similarity"]
        hidden = sum(max(len(pairs) - _MAX_ROWS, 0) for pairs in found.values())
        notes = [f"{hidden:,} more pairs are not listed."] if hidden else []
        caption = "Texts of different splits that are alike"
        yield Table("duplicate_pairs", caption, head, rows, left=5, notes=notes)


def _time(facts: DataFacts) -> Iterator[Part]:
    if (time := facts.time) is None:
        return
    rows = [
        ["device", time.device],
        ["training examples of an epoch", f"{time.examples_per_epoch:,}"],
        ["updates", f"{time.n_updates:,}"],
        ["seconds per update", format_value(time.seconds_per_update, ".3g")],
        ["evaluations of val", str(time.n_evaluations)],
        ["seconds per evaluation", format_value(time.seconds_per_evaluation, ".3g")],
        ["whole training", duration(time.seconds)],
    ]
    notes = [
        f"Measured on {time.n_measured} updates of training examples drawn at random, and on some of "
        "val. Early stopping makes it shorter. Reading the corpus, checkpoints, baselines and the "
        "report are not in it."
    ]
    yield Table("time", "How long a training takes here", ["what", "value"], rows, notes=notes)
