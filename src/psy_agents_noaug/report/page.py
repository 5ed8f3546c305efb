"""A page: sections of text, tables and figures, as one HTML file that needs no other."""

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, ClassVar

from psy_agents_noaug import __version__

if TYPE_CHECKING:
    from jinja2 import Environment


@dataclass(frozen=True)
class Cell:
    """A figure in a table.

    Args:
        text: shown, and what its column is sorted by: the first number in it.
        value: unrounded; None: undefined.
        low: the lower end of its interval; None: there is none.
        high: the upper end.
        is_drawn: whether a picture of the interval, on a scale from 0 to 1, is beside the text.
    """

    text: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    is_drawn: bool = False

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Table:
    """A table. Its head sorts it, by click or keyboard.

    Args:
        name: of its files; also its anchor.
        caption: says what it shows.
        head: the names of the columns.
        rows: the cells, as many as `head` has in each row. The first of a row names it.
        left: number of columns that are aligned left; the others are aligned right.
        n_last: how many of the rows, such as averages, stay below the others when it is sorted.
        notes: lines below it.
        is_folded: whether it is shown on demand, as the numbers of a figure are.
    """

    kind: ClassVar[str] = "table"
    name: str
    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    left: int = 1
    n_last: int = 0
    notes: Sequence[str] = ()
    is_folded: bool = False


@dataclass(frozen=True)
class Picture:
    """A figure.

    Args:
        name: of its files; also its anchor.
        files: the picture as svg, which the page shows, and as other kinds for its folder.
        alt: what it shows, in words.
        caption: below it.
        is_wide: whether it needs the width of two.
    """

    name: str
    files: Mapping[str, bytes]
    alt: str
    caption: str
    is_wide: bool = False

    @property
    def uri(self) -> str:
        """The picture as a data URI."""
        return f"data:image/svg+xml;base64,{base64.b64encode(self.files['svg']).decode('ascii')}"


@dataclass(frozen=True)
class Pictures:
    """Figures side by side, as many as fit."""

    kind: ClassVar[str] = "pictures"
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Text:
    """Paragraphs; `style` may be answer, note or warning."""

    kind: ClassVar[str] = "text"
    lines: Sequence[str]
    style: str = ""


Part = Table | Pictures | Text


@dataclass(frozen=True)
class Section:
    """A part of a page with a heading and an entry in its contents."""

    title: str
    parts: Sequence[Part]

    @property
    def anchor(self) -> str:
        """The id of the section's heading."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


def render(template: str, *, title: str, sections: Sequence[Section], **values: Any) -> str:
    """Return a page as HTML.

    Args:
        template: a file of `templates/` that extends `base.html.jinja`.
        title: of the page.
        sections: what it holds; also its contents.
        values: further names of the template.
    """
    names: Mapping[str, Any] = {"title": title, "sections": sections, "version": __version__}
    return _environment().get_template(template).render(**names, **values)


@cache
def _environment() -> "Environment":
    # Imported late: `--help` and the start of a training need no templates.
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader(__package__),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    folder = files(__package__) / "templates"
    environment.globals["style"] = (folder / "style.css").read_text("utf-8")
    environment.globals["script"] = (folder / "page.js").read_text("utf-8")
    return environment
