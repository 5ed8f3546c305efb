"""README and docs/: links lead somewhere, commands are of this version, generated pages are up to date.

Nothing is trained: commands go through the command line and the schema; what they start is replaced.
"""

import ast
import inspect
import itertools
import os
import re
import runpy
import shlex
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import psy_agents_noaug
from psy_agents_noaug.__main__ import main
from psy_agents_noaug.run.evaluate import RunResult

REPOSITORY = Path(__file__).parents[2]
DOCS = REPOSITORY / "docs"
PAGES = [REPOSITORY / "README.md", *sorted(DOCS.rglob("*.md"))]
# Whose links are checked too.
OTHERS = [
    *(REPOSITORY / name for name in ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")),
    REPOSITORY / "benchmarks" / "RESULTS.md",
]
LANGUAGES = {"bash", "console", "python", "text", "yaml"}
SECTIONS = ("data", "model", "training", "tracking", "task", "hpo")
# Commands of others, which no test here can check.
OF_OTHERS = {
    "#!/bin/bash",
    "do",
    "done",
    "eval",
    "for",
    "git",
    "hf",
    "jq",
    "source",
    "spark-submit",
}


def named(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def parts_of(text: str) -> Iterator[tuple[str, str]]:
    """Yield each fenced block with its language, and what stands between with the language ""."""
    prose: list[str] = []
    block: list[str] | None = None
    language = ""
    for line in text.splitlines():
        fence = re.match(r"\s*```(\w*)", line)
        if fence and block is None:
            language, block = fence[1] or "none", []
        elif fence and block is not None:
            yield language, textwrap.dedent("\n".join(block))
            block = None
        else:
            (prose if block is None else block).append(line)
    assert block is None, "a block is not closed"
    yield "", "\n".join(prose)


def prose_of(path: Path) -> str:
    return "\n".join(part for language, part in parts_of(path.read_text("utf-8")) if not language)


def blocks_of(path: Path, *languages: str) -> list[str]:
    return [part for language, part in parts_of(path.read_text("utf-8")) if language in languages]


# -------------------------------------------------------------------------------------------- links


def anchors_of(path: Path) -> dict[str, str]:
    """Return the anchor of each heading on GitHub, with that on the site."""
    headings = re.findall(r"^#+ (.+)$", prose_of(path), re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-"): re.sub(
            r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()
        )
        for heading in headings
    }


@pytest.mark.parametrize("path", [*PAGES, *OTHERS], ids=named)
def test_every_link_leads_to_a_file_and_a_heading(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", prose_of(path))):
        if target.startswith(("https://", "http://")):
            continue
        file, _, anchor = target.partition("#")
        found = path.parent / file if file else path
        assert found.exists(), target
        assert not anchor or anchor in anchors_of(found), target
        # The site has nothing else.
        assert DOCS not in path.parents or DOCS in found.resolve().parents, target


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_headings_have_the_same_anchors_on_github_and_on_the_site(path: Path) -> None:
    anchors = anchors_of(path)
    assert list(anchors) == list(anchors.values())
    assert len(anchors) == len(re.findall(r"^#+ ", prose_of(path), re.MULTILINE))


def test_the_site_has_every_page() -> None:
    nav = tomllib.loads((REPOSITORY / "zensical.toml").read_text("utf-8"))["project"]["nav"]
    listed = set(re.findall(r"'([\w/-]+\.md)'", str(nav)))
    assert listed == {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}


def test_the_readme_is_short_and_its_picture_small() -> None:
    text = (REPOSITORY / "README.md").read_text("utf-8")
    assert len(text.splitlines()) < 100
    pictures = re.findall(r"!\[.+\]\((.+)\)", text)
    assert pictures
    assert all((REPOSITORY / picture).stat().st_size < 200_000 for picture in pictures)


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_lists_and_tables_are_read_alike_on_github_and_on_the_site(path: Path) -> None:
    """The site begins a list or a table behind an empty line only, and nests by four spaces."""
    lines = ["", *prose_of(path).splitlines()]
    for before, line in itertools.pairwise(lines):
        if line.startswith(("- ", "1. ")):
            assert not before.strip() or re.match(r"\s*(- |\d+\. |  )", before), line
        assert not re.match(r" {1,3}- ", line), line
        if line.startswith("|"):
            assert not before.strip() or before.startswith("|"), line


# ----------------------------------------------------------------------------------------- commands


@pytest.fixture
def without_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, own_logging: None) -> None:
    """Replace what commands start, once their settings are read and checked."""
    from psy_agents_noaug.hpo import stages

    result = RunResult(tmp_path, {}, "")
    replaced: dict[str, Any] = {
        "run.train.train": result,
        "run.series.work.run_series": result,
        "run.series.refit.run_refit": result,
        "run.trec.trec": "",
        "run.adapt.adapt": SimpleNamespace(summary="", directory=tmp_path, model=""),
        "report.data_check.check_and_write": SimpleNamespace(summary="", page=tmp_path, faults=()),
        "importers.run.import_annotations": "",
        "exports.labelstudio.export_predictions": "",
        "run.evaluate.evaluate": result,
        "run.evaluate.checkpoint_task": "criteria",
        "run.predict.predict": "",
        "run.scale.merge.merge": "",
        "run.sync.sync_all": "",
        "run.listing.runs": "",
        "run.overview.run_report": "",
        "report.write.write_report": tmp_path,
        "report.errors.write_errors_page": tmp_path,
        "comparison.write.compare_and_write": (None, tmp_path),
        "comparison.tables.summary": "",
        "exports.export.export": SimpleNamespace(summary=""),
        "hpo.stages._read_best": None,  # of a stage before
    }
    for name, returned in replaced.items():
        monkeypatch.setattr(
            f"psy_agents_noaug.{name}", lambda *_, returned=returned, **__: returned
        )
    monkeypatch.setattr(stages, "run_stage", lambda argv: str(stages.read_request(argv)))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs" / "hpo_stage2").mkdir(parents=True)
    (tmp_path / "outputs" / "hpo_stage2" / "best_config.yaml").write_text("{}")


def commands_of(block: str) -> Iterator[list[str]]:
    """Yield the words of each command of a shell block: those of pipes and loops apart."""
    for line in re.sub(r"\\\n\s*", " ", block).splitlines():
        if line.startswith("#SBATCH"):
            continue
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
        lexer.whitespace_split = True
        command: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set("|&;"):
                if command:
                    yield command
                command = []
            elif not (not command and word in ("do", "exec")):
                command.append(word)


def shell_commands(path: Path) -> list[list[str]]:
    """Return the commands of a page, without what stands behind `<` and `>`."""
    blocks = blocks_of(path, "bash")
    for block in blocks_of(path, "console"):
        blocks += [line[2:] for line in block.splitlines() if line.startswith("$ ")]
    return [
        command[: next((n for n, word in enumerate(command) if word in ("<", ">")), None)]
        for block in blocks
        for command in commands_of(block)
    ]


def psy_agents(*words: str) -> None:
    if "task=severity" in words:
        return  # of a package of its own, see tests/e2e/test_severity_example.py
    assert main(words) == 0, words


def python(*words: str) -> None:
    if words[0] == "-m":
        assert words[1] == "psy_agents_noaug"
        return psy_agents(*words[2:])
    script = REPOSITORY / words[0]
    if script.parent.name != "scripts":
        flags = [word.partition("=")[0] for word in words[1:] if word.startswith("--")]
        text = script.read_text("utf-8") + (REPOSITORY / "benchmarks" / "common.py").read_text(
            "utf-8"
        )
        assert [flag for flag in flags if f'"{flag}"' not in text] == []
        return None
    argv, sys.argv = sys.argv, [str(script), *words[1:]]
    try:
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(script), run_name="__main__")
    finally:
        sys.argv = argv
    assert ended.value.code == 0, words
    return None


def make(*targets: str) -> None:
    text = (REPOSITORY / "Makefile").read_text("utf-8")
    assert set(targets) <= set(re.findall(r"^([a-z-]+):", text, re.MULTILINE))


def pip(*words: str) -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
    for word in words[1:]:
        extras = re.fullmatch(r"psy-agents-noaug\[(.+)\]", word)
        if extras:
            assert set(extras[1].split(",")) <= set(project["optional-dependencies"])
        else:
            assert (REPOSITORY / word).is_dir()


def torchrun(*words: str) -> None:
    from torch.distributed.run import get_args_parser

    parsed = get_args_parser().parse_args(words)
    module = ["-m"] if parsed.module else []
    python(*module, parsed.training_script, *parsed.training_script_args)


def accelerate(*words: str) -> None:
    from accelerate.commands.launch import launch_command_parser

    assert words[0] == "launch"
    parsed = launch_command_parser().parse_args(words[1:])
    python(parsed.training_script, *parsed.training_script_args)


CHECKED: dict[str, Callable[..., None]] = {
    "psy-agents": psy_agents,
    "python": python,
    "make": make,
    "pip": pip,
    "torchrun": torchrun,
    "accelerate": accelerate,
}


@pytest.mark.usefixtures("without_work")
@pytest.mark.parametrize("path", [path for path in PAGES if shell_commands(path)], ids=named)
def test_every_command_is_one_of_this_version(path: Path) -> None:
    for program, *words in shell_commands(path):
        if program in CHECKED:
            CHECKED[program](*words)
        else:
            assert program in OF_OTHERS, [program, *words]


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_every_block_says_what_it_is(path: Path) -> None:
    languages = {language for language, _ in parts_of(path.read_text("utf-8")) if language}
    assert languages <= LANGUAGES


@pytest.mark.usefixtures("without_work")
def test_a_wrong_setting_or_program_is_found() -> None:
    command = next(commands_of("psy-agents train training.epoch=3 | tee log"))
    with pytest.raises(AssertionError):
        psy_agents(*command[1:])


def settings() -> set[str]:
    page = (DOCS / "reference" / "settings.md").read_text("utf-8")
    return set(re.findall(r"^\| `([\w.]+)` \|", page, re.MULTILINE))


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_settings_that_the_text_names_exist(path: Path) -> None:
    known = settings()
    words = re.findall(rf"`((?:{'|'.join(SECTIONS)})\.[a-z][\w.]*)[=`]", prose_of(path))
    unknown = {
        word
        for word in words
        if not any(
            word == key or word.startswith(f"{key}.") or key.startswith(f"{word}.") for key in known
        )
    }
    assert unknown - {"model.onnx"} == set()  # a file


@pytest.mark.parametrize("path", [path for path in PAGES if blocks_of(path, "python")], ids=named)
def test_python_blocks_call_what_exists(path: Path) -> None:
    for block in blocks_of(path, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module == "psy_agents_noaug":
                assert {name.name for name in node.names} <= set(psy_agents_noaug.__all__)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                function = getattr(psy_agents_noaug, node.func.id, None)
                if function is not None and not any(k.arg is None for k in node.keywords):
                    keywords = {keyword.arg: None for keyword in node.keywords}
                    inspect.signature(function).bind(*node.args, **keywords)


# ------------------------------------------------------------------------------------ generated pages


@pytest.mark.slow
def test_the_reference_is_that_of_the_code(tmp_path: Path) -> None:
    command = [sys.executable, str(REPOSITORY / "tools" / "reference" / "write.py"), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "src")}
    subprocess.run(command, check=True, timeout=120, env=environment)
    for page in sorted(tmp_path.iterdir()):
        committed = DOCS / "reference" / page.name
        assert committed.read_text("utf-8") == page.read_text("utf-8"), (
            f"{named(committed)} is not up to date: make docs, or python tools/reference/write.py"
        )
