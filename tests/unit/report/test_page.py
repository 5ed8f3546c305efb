"""A page is one file that needs no other, and shows what it is given as text."""

import re

from psy_agents_noaug.report.page import Cell, Picture, Pictures, Section, Table, Text, render


def page(*parts):
    return render("base.html.jinja", title="A <title>", sections=[Section("First part", parts)])


def test_text_is_shown_and_never_read_as_html():
    html = page(Text(["1 < 2 & </script>"]), Table("t", "<caption>", ["<h>", "F1"], [["<a>", "1"]]))
    assert "1 &lt; 2 &amp; &lt;/script&gt;" in html
    assert "&lt;title&gt;" in html
    for mark in ("<caption><", "<h>", "<a>"):
        assert mark not in html.replace('<caption class="hidden">', "")


def test_a_page_names_no_other_file():
    html = page(Pictures([Picture("roc", {"svg": b"<svg/>"}, "words", "ROC")]))
    assert '<img src="data:image/svg+xml;base64,' in html
    addresses = re.findall(r'(?:src|href|url)[=(]"?([^">]*)', html)
    assert {address.partition(":")[0] for address in addresses} <= {
        "data",
        "#content",
        "#first-part",
    }


def test_an_interval_is_drawn_beside_its_numbers_and_not_read_aloud():
    html = page(
        Table(
            "t",
            "c",
            ["criterion", "F1"],
            [["A.1", Cell("0.50 [0.2, 0.6]", 0.5, 0.2, 0.6, is_drawn=True)]],
        )
    )
    assert "0.50 [0.2, 0.6]" in html
    assert 'd="M20.0 6H60.0"' in html
    assert 'aria-hidden="true"' in html
