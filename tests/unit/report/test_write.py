"""The report of a run: it shows the figures of metrics.json as the console does, in one small file."""

import csv
import html
import json
import re
import shutil

import pytest

from psy_agents_noaug.cli import main
from psy_agents_noaug.config.schema import EvaluateConfig
from psy_agents_noaug.errors import ConfigError
from psy_agents_noaug.metrics.tables import with_interval
from psy_agents_noaug.report.facts import facts_of
from psy_agents_noaug.report.page import Cell, Table
from psy_agents_noaug.report.run_report import run_sections
from psy_agents_noaug.report.tables import as_csv, as_latex
from psy_agents_noaug.report.write import write_report
from psy_agents_noaug.run.evaluate import evaluate
from psy_agents_noaug.run.train import train


@pytest.fixture(scope="module")
def reported(joint_run, tmp_path_factory):
    """A copy of the joint run with its report."""
    run = shutil.copytree(joint_run, tmp_path_factory.mktemp("reported") / "run")
    write_report(run)
    return run


def metrics_of(run):
    return json.loads((run / "metrics.json").read_text(encoding="utf-8"))


def text_of(run):
    """Return what a reader sees of a page."""
    page = (run / "report.html").read_text(encoding="utf-8")
    body = page[page.index("<body>") : page.index("<script>")]
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body)))


def test_figures_are_those_of_metrics_json_rounded_as_on_the_console(reported):
    metrics, shown = metrics_of(reported), text_of(reported)
    keys = [key.removesuffix("_ci_low") for key in metrics if key.endswith("_ci_low")]
    wanted = [
        key
        for key in keys
        if re.fullmatch(r"test/(per_criterion/[^/]+/)?(f1|auroc|recall|supported_f1|f1_macro)", key)
    ]
    assert len(wanted) > 3 * 9
    for key in wanted:
        assert with_interval(metrics, key) in shown, key


def test_the_answer_begins_with_the_headline_figure_and_the_baselines(reported):
    metrics, shown = metrics_of(reported), text_of(reported)
    answer = shown[shown.index("The answer On test") :]
    assert answer.startswith(
        f"The answer On test the supported F1 is {with_interval(metrics, 'test/supported_f1')}"
    )
    assert (
        f"The macro-F1 is {with_interval(metrics, 'test/f1_macro')}. By macro-F1 the model" in shown
    )
    assert "TF-IDF + LR" in answer


def test_what_makes_figures_doubtful_comes_first(reported):
    shown = text_of(reported)
    assert shown.index("fewer than 20: its figures") < shown.index("The answer On test")


def test_a_page_is_one_small_file_that_asks_for_no_other(reported):
    page = (reported / "report.html").read_text(encoding="utf-8")
    assert len(page) < 3e6
    addresses = re.findall(r'(?:src|href)="([^"]*)"|url\(([^)]*)\)', page)
    assert {re.split(r"[:\w-]", one + other)[0] or "data" for one, other in addresses} <= {
        "#",
        "data",
    }
    assert page.count('alt="') == page.count("<img ") > 8
    assert 'alt=""' not in page


def test_figures_and_tables_are_files_for_papers(reported):
    pictures = {path.suffix for path in (reported / "figures").iterdir()}
    assert pictures == {".png", ".pdf"}
    assert (
        b"/FontFile2" in (reported / "figures" / "roc_test.pdf").read_bytes()
    )  # TrueType, embedded
    with (reported / "tables" / "labels_test.csv").open(encoding="utf-8", newline="") as file:
        rows = {row["criterion"]: row for row in csv.DictReader(file)}
    assert float(rows["A.1"]["AUROC"]) == metrics_of(reported)["test/per_criterion/A.1/auroc"]
    latex = (reported / "tables" / "labels_test.tex").read_text(encoding="utf-8")
    assert r"\toprule" in latex
    assert latex.count(r"\\") == len(rows) + 1


@pytest.mark.slow
def test_the_same_run_has_the_same_report(reported):
    before = {path: path.read_bytes() for path in reported.rglob("*") if path.is_file()}
    (reported / "figures" / "labels_val.png").write_bytes(b"of an earlier report")
    write_report(reported)
    assert not (reported / "figures" / "labels_val.png").exists()
    assert {path: path.read_bytes() for path in before} == before


def test_damaged_files_are_left_out_and_said(joint_run, tmp_path):
    run = shutil.copytree(joint_run, tmp_path / "run")
    for split in ("test", "val"):
        path = run / "predictions" / f"{split}.jsonl"
        path.write_text(path.read_text(encoding="utf-8")[:-200], encoding="utf-8")
    (run / "history.csv").write_text("step,a\nx,y\n", encoding="utf-8")
    (run / "manifest.json").write_text("[]", encoding="utf-8")
    facts = facts_of(run)
    assert [fault.partition(" ")[0].rpartition("/")[2] for fault in facts.faults] == [
        "test.jsonl",
        "val.jsonl",
        "manifest.json:",
        "history.csv",
    ]
    assert facts.splits[0].labels is None


def test_a_directory_without_figures_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"metrics\.json, but has none"):
        write_report(tmp_path)


def test_a_training_ends_well_without_its_report(make_config, caplog):
    def broken(directory):
        raise MemoryError

    result = train(make_config("report=true"), write_report=broken)
    assert (result.directory / "metrics.json").is_file()
    assert "`psy-agents report" in caplog.text
    assert json.loads((result.directory / "manifest.json").read_text())["status"] == "finished"


def test_a_report_that_is_not_wanted_is_not_made(joint_run, tmp_path):
    run = shutil.copytree(joint_run, tmp_path / "run")  # trained with report=false
    made = []
    settings = EvaluateConfig(checkpoint=str(run), split="test")
    evaluate(settings, task_name="joint", explicit={}, write_report=made.append)
    assert made == []
    other = {"report": True, "data.near_duplicate_threshold": 0.9}
    evaluate(settings, task_name="joint", explicit=other, write_report=made.append)
    (apart,) = made
    assert apart.parent == run / "evaluations"
    facts = facts_of(apart)
    assert (facts.task, facts.is_apart, facts.config["seed"]) == ("joint", True, 42)


@pytest.mark.slow
def test_the_command_writes_reports_and_refuses_anything_else(reported, own_logging, capsys):
    (reported / "report.html").unlink()
    assert main(["report", str(reported)]) == 0
    assert (reported / "report.html").is_file()
    assert "report.html" in capsys.readouterr().out
    assert main(["report"]) == 2
    assert main(["report", str(reported), "seed=1"]) == 2


def test_cells_of_latex_and_csv_are_escaped():
    table = Table(
        "t", "50 % of A_1", ["a & b", "F1"], [["=1+1", Cell("0.5 [0.2, 0.6]", 0.5, 0.2, 0.6)]]
    )
    assert r"\caption{50 \% of A\_1}" in as_latex(table)
    assert r"a \& b & F1 \\" in as_latex(table)
    assert as_csv(table) == 'a & b,F1,"F1, low","F1, high"\n\'=1+1,0.5,0.2,0.6\n'


def test_sections_without_content_are_left_out(sentence_run):
    facts = facts_of(sentence_run)
    facts = type(facts)(
        **{**vars(facts), "splits": [type(facts.splits[0])("test", {"accuracy": 0.5})]}
    )
    titles = [section.title for section in run_sections(facts)]
    assert "Calibration" not in titles
    assert "All figures of each split" in titles
