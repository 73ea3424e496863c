"""A self-contained HTML page: no network, no other files, its pictures embedded.

A page is a list of sections, a section a list of blocks. Jinja templates, which escape everything they are given,
render them as HTML. On a narrow screen, tables and figures scroll in boxes of their own; a printed page shows
everything.
"""

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from raincast.system.files import write_text

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""Content security policy: a page may show and run its own content, and load nothing."""


@dataclass(frozen=True)
class Text:
    """A paragraph; a `note` is less prominent."""

    text: str
    note: bool = False
    kind: ClassVar[str] = "text"


@dataclass(frozen=True)
class Heading:
    """A heading above a part of a section."""

    text: str
    kind: ClassVar[str] = "heading"


@dataclass(frozen=True)
class Picture:
    """A PNG or SVG below a note; `alt` describes it for those who cannot see it."""

    image: bytes
    alt: str
    note: str = ""
    kind: ClassVar[str] = "picture"


@dataclass(frozen=True)
class Facts:
    """Rows of names and values."""

    rows: Sequence[tuple[str, str]]
    kind: ClassVar[str] = "facts"


@dataclass(frozen=True)
class Cell:
    """A table cell; small text is `below`, and the best of a column is marked."""

    text: str
    below: str = ""
    best: bool = False


@dataclass(frozen=True)
class Table:
    """Rows with common columns; the first cell of each row is its heading."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    kind: ClassVar[str] = "table"

    @classmethod
    def of(cls, rows: Sequence[dict[str, str]]) -> "Table":
        """Build a table from rows keyed by column; missing values stay empty."""
        columns = list(dict.fromkeys(name for row in rows for name in row))
        return cls(columns, [[Cell(row.get(name, "")) for name in columns] for row in rows])


@dataclass(frozen=True)
class Command:
    """Text to copy verbatim."""

    text: str
    kind: ClassVar[str] = "command"


@dataclass(frozen=True)
class Folded:
    """Collapsed blocks, shown at a click and when the page is printed."""

    summary: str
    blocks: "Sequence[Block]"
    kind: ClassVar[str] = "folded"


@dataclass(frozen=True)
class Rendered:
    """The output of another template."""

    markup: Markup
    kind: ClassVar[str] = "rendered"


Block = Text | Heading | Picture | Facts | Table | Command | Folded | Rendered


@dataclass(frozen=True)
class Section:
    """Blocks below a heading."""

    title: str
    blocks: Sequence[Block]


@cache
def environment() -> Environment:
    """Return the Jinja environment with the templates of all pages."""
    made = Environment(
        loader=PackageLoader("raincast.plotting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["data_uri"] = data_uri
    return made


def render(template: str, **given: Any) -> Rendered:
    """Render a block with a template of its own."""
    return Rendered(Markup(environment().get_template(template).render(**given)))  # the template escapes


def write_page(
    path: Path,
    *,
    title: str,
    sections: Iterable[Section],
    lead: str = "",
    style: str = "",
    script: str = "",
) -> Path:
    """Write the page of `sections`, below its title and the sentence `lead`, atomically.

    `style` and `script` name templates that are added to those of all pages.
    """
    made = environment()
    page = made.get_template("page.html").render(
        title=title,
        lead=lead,
        sections=list(sections),
        policy=POLICY,
        style=Markup(made.get_template(style).render()) if style else "",
        script=Markup(made.get_template(script).render()) if script else "",
    )
    return write_text(path, page)


def data_uri(image: bytes) -> str:
    """Return a PNG or SVG as a data URI."""
    kind = "png" if image.startswith(b"\x89PNG") else "svg+xml"
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"
