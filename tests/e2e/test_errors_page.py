"""The page of errors in a real browser: from a run to corrections that the next run learns from."""

import csv
import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe

from psy_agents_noaug import evaluate, train
from psy_agents_noaug.cli import main

pytestmark = pytest.mark.slow
Opened = Callable[..., AbstractContextManager[Any]]
PLANTED = "quavimorthle"
HOSTILE = f"😔 </script><img src=x onerror=\"document.title='{PLANTED}'\"> <b>{PLANTED}</b> & more."
SELECT = """([first, last]) => {
  const walker = document.createTreeWalker(document.getElementById("text"), NodeFilter.SHOW_TEXT);
  const nodes = [];
  while (walker.nextNode()) {
    if (!walker.currentNode.parentElement.closest(".tag")) nodes.push(walker.currentNode);
  }
  const find = (word) => {
    const node = nodes.find((one) => one.data.includes(word));
    return [node, node.data.indexOf(word)];
  };
  const [[start, at], [end, to]] = [find(first), find(last)];
  getSelection().setBaseAndExtent(start, at, end, to + last.length);
}"""


@pytest.fixture(scope="module")
def settings(
    overrides_for: Callable[..., list[str]],
    tiny_corpus: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> list[str]:
    """The command line of a joint run on a corpus with a hostile text in every post."""
    corpus = tmp_path_factory.mktemp("hostile") / "corpus"
    shutil.copytree(tiny_corpus, corpus)
    posts = corpus / "redsm5_posts.csv"
    with posts.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    with posts.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(
            [rows[0], *([post, f"{HOSTILE} {text}"] for post, text in rows[1:])]
        )
    own = [x for x in overrides_for(corpus.parent / "outputs", "joint") if "data.dir" not in x]
    return [*own, f"data.dir={corpus}"]


@pytest.fixture(scope="module")
def run(settings: list[str]) -> Path:
    """A run that is evaluated on test, with its page of errors."""
    trained = train([*settings, "run_name=first"], task="joint", verbose=False)
    return evaluate(trained, verbose=False).directory


@pytest.fixture(scope="module")
def page_of_run(run: Path) -> Path:
    """The page, made by the command; no other file of the run, the report included, has such a word."""
    assert main(["report", str(run), "with_text=true"]) == 0
    files = [path for path in run.rglob("*") if path.is_file()]
    assert run / "report.html" in files
    with_text = [path.name for path in files if PLANTED.encode() in path.read_bytes()]
    assert with_text == ["errors.html"]
    return run / "errors.html"


def test_no_text_of_a_post_becomes_markup(page_of_run: Path, opened: Opened) -> None:
    with opened(page_of_run) as page:
        assert "".join(page.locator("h1").all_inner_texts()).startswith("Errors beside their posts")
        assert PLANTED not in page.title()
        assert page.locator("img, #text b").count() == 0
        for tag in page.locator("#text .tag").all():
            tag.evaluate(
                "(one) => { one.textContent = ''; }"
            )  # the labels of spans, between its words
        assert page.locator("#text").text_content().startswith(HOSTILE)


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault_and_the_page_is_no_wider_than_its_window(
    page_of_run: Path, opened: Opened, width: int, scheme: str
) -> None:
    with opened(page_of_run, width=width, scheme=scheme) as page:
        page.get_by_role("button", name="Type a span").click()
        page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        found = Axe().run(page).response["violations"]
        serious = [one for one in found if one["impact"] in ("serious", "critical")]
        assert [(one["id"], one["nodes"][0]["html"]) for one in serious] == []


def test_keys_go_on_unless_they_are_typed_or_turned_off(page_of_run: Path, opened: Opened) -> None:
    with opened(page_of_run) as page:
        place = page.locator("#count")
        page.keyboard.press("n")
        page.keyboard.press("j")
        assert place.inner_text().startswith("3 of ")
        assert page.evaluate("document.activeElement.id") == "pair-title"
        page.keyboard.press("p")
        page.keyboard.press("k")
        assert place.inner_text().startswith("1 of ")
        page.locator("textarea").press("n")
        assert place.inner_text().startswith("1 of ")
        page.locator("textarea").fill("")
        page.locator("#pair-title").press("Control+j")
        assert place.inner_text().startswith("1 of ")
        page.locator("#pair-title").press("/")
        assert page.evaluate("document.activeElement.name") == "split"
        page.locator("#keys").uncheck()
        page.locator("#pair-title").press("n")
        assert place.inner_text().startswith("1 of ")
        page.locator("#next").press("Enter")
        assert place.inner_text().startswith("2 of ")


def test_filters_choose_what_the_predictions_say(
    run: Path, page_of_run: Path, opened: Opened
) -> None:
    text = (run / "predictions" / "test.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    met = [line["calibrated_probability"] for line in lines]
    sure = [round(p if line["decision"] else 1 - p, 4) for p, line in zip(met, lines, strict=True)]
    bound = sorted(sure)[len(sure) // 2]
    with opened(page_of_run) as page:

        def count() -> str:
            text: str = page.locator("#count").inner_text()
            return text

        page.select_option("[name=split]", label="test")
        page.select_option("[name=kind]", "")
        assert count() == f"1 of {len(lines)} predictions"
        page.fill("[name=confidence]", str(bound))
        assert count() == f"1 of {sum(one >= bound for one in sure)} predictions"
        page.fill("[name=confidence]", "")
        page.fill("[name=post]", lines[0]["post_id"])
        page.select_option("[name=criterion]", index=1)
        assert count() == "1 of 1 predictions"
        assert page.locator("#pair-title").inner_text().startswith(f"{lines[0]['post_id']} · A.1")
        page.fill("[name=least]", "100000")
        assert count().startswith("No prediction is chosen")
        for name in ("post", "least"):
            page.fill(f"[name={name}]", "")
        page.select_option("[name=criterion]", "")
        alarms = sum(line["label"] < line["decision"] for line in lines)
        assert alarms
        page.select_option("[name=kind]", label="false alarm")
        assert count() == f"1 of {alarms} predictions"


def test_corrections_of_the_page_are_what_the_next_training_learns(
    settings: list[str], page_of_run: Path, opened: Opened, tmp_path: Path
) -> None:
    with opened(page_of_run) as page:
        page.select_option("[name=kind]", "")
        page.fill("[name=post]", "p14")
        page.select_option("[name=criterion]", index=3)
        page.evaluate(SELECT, ["</script>", "& more."])
        page.get_by_role("button", name="Selected text is evidence").click()
        page.locator("textarea").fill('= "markup", and\na line')
        page.fill("[name=post]", "p15")
        page.get_by_label("Label of the pair").select_option("0")
        with page.expect_download() as download:
            page.locator("#save").click()
        saved = tmp_path / "corrections.csv"
        download.value.save_as(saved)
        # The same file goes on, in another browser.
        page.on("dialog", lambda dialog: dialog.accept())
        page.locator("#discard").click()
        assert page.locator("#n-corrections").inner_text().startswith("0 pairs")
        page.locator("#load").set_input_files(saved)
        page.wait_for_function("document.querySelectorAll('#corrected li').length === 2")
    end = HOSTILE.index("& more.") + len("& more.")
    with saved.open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["post_id", "criterion_id", "label", "start_char", "end_char", "note"],
            ["p14", "A.3", "1", "2", str(end), '\'= "markup", and\na line'],
            ["p15", "A.3", "0", "", "", ""],
        ]
    corrected = [*settings, "run_name=second", f"data.corrections={saved}"]
    second = train(corrected, task="joint", verbose=False).directory
    done = json.loads((second / "alignment.json").read_text())["corrections"]
    assert (done["rows"], done["pairs"], done["annotations_added"]) == (2, 2, 2)
    manifests = [
        json.loads((x / "manifest.json").read_text()) for x in (second, page_of_run.parent)
    ]
    assert manifests[0]["data"]["corpus"] != manifests[1]["data"]["corpus"]
    assert manifests[0]["data"]["splits"] == manifests[1]["data"]["splits"]


def test_two_thousand_posts_open_in_under_two_seconds(
    page_of_run: Path, opened: Opened, tmp_path: Path
) -> None:
    html = page_of_run.read_text(encoding="utf-8")
    head, rest = html.split('id="data">', 1)
    content, tail = rest.split("</script>", 1)
    data = json.loads(content)
    post = {**data["posts"][0], "text": "I sleep badly, and I am tired. " * 40}
    data["posts"] = [{**post, "id": f"p{n}"} for n in range(2000)]
    n, n_criteria = 18_000, len(data["criteria"])
    data["columns"] = {name: (own * n)[:n] for name, own in data["columns"].items()}
    data["columns"]["post"] = [i // n_criteria for i in range(n)]
    data["columns"]["split"], data["n"] = [0] * n, n
    large = tmp_path / "large.html"
    large.write_text(f'{head}id="data">{json.dumps(data)}</script>{tail}', encoding="utf-8")
    with opened(large) as page:
        assert "of 0" not in page.locator("#count").inner_text()
        loaded = "performance.getEntriesByType('navigation')[0].loadEventEnd"
        page.wait_for_function(f"{loaded} > 0")
        assert page.evaluate(loaded) < 2000
