"""One HTML file that needs nothing else: no network, no other file, its pictures inside."""

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from raincast.system.files import write_text

STYLE = """
body { font: 15px/1.45 sans-serif; margin: 2em auto; max-width: 1180px; padding: 0 1em; color: #1d2730; }
h1 { font-size: 1.5em; } h2 { font-size: 1.1em; margin: 1.6em 0 .4em; }
table { border-collapse: collapse; } td { padding: .15em 1.2em .15em 0; vertical-align: top; }
td:first-child { color: #5a6772; white-space: nowrap; } figure { margin: 0; }
td + td { font-variant-numeric: tabular-nums; overflow-wrap: anywhere; } img { max-width: 100%; }
th { text-align: left; padding: .15em 1.2em .15em 0; font-weight: 600; }
.wide { overflow-x: auto; font-size: 13px; } .wide td { white-space: nowrap; }
pre { background: #f2f4f6; padding: .8em 1em; white-space: pre-wrap; }
"""

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""What a browser lets a page do: show and run what stands in it, and load nothing."""


def write_page(
    path: Path, *, title: str, heading: str, parts: Iterable[str], style: str = "", script: str = ""
) -> Path:
    """The page of `parts` (HTML) below `heading`; whole at any moment, also when it takes another's place.

    `style` is added to the style of all pages, `script` runs once the page is there.
    """
    run = f"<script>{script}</script>\n" if script else ""
    body = "\n".join(parts)
    page = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f"<title>{html.escape(title)}</title><style>{STYLE}{style}</style></head>\n"
        f"<body><h1>{html.escape(heading)}</h1>\n{body}\n{run}</body></html>\n"
    )
    return write_text(path, page)


def section(title: str, content: str) -> str:
    """`content` (HTML) below its heading."""
    return f"<h2>{html.escape(title)}</h2>{content}"


def figure(title: str, image: bytes) -> str:
    """A picture below its heading."""
    return section(title, picture(image, title))


def picture(image: bytes, alt: str) -> str:
    """A PNG or SVG as part of the page; `alt` says what it shows to who cannot see it."""
    return f'<figure><img alt="{html.escape(alt)}" src="{data_uri(image)}"></figure>'


def data_uri(image: bytes) -> str:
    """A PNG or SVG as an address that holds it."""
    kind = "png" if image.startswith(b"\x89PNG") else "svg+xml"
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def pairs(title: str, rows: Iterable[tuple[str, str]]) -> str:
    """Names and values below a heading."""
    return section(title, table(rows))


def table(rows: Iterable[tuple[str, str]]) -> str:
    """Names and values."""
    return f"<table>{''.join(map(_row, rows))}</table>"


def wide_table(title: str, rows: Sequence[Mapping[str, str]]) -> str:
    """Rows that share their columns, below a heading; the page scrolls where they are too wide."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    body = "".join(_row([row.get(name, "") for name in names]) for row in rows)
    return section(title, f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>')


def command(title: str, text: str) -> str:
    """A command to copy, below a heading."""
    return section(title, f"<pre>{html.escape(text)}</pre>")


def _row(cells: Iterable[str]) -> str:
    return "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>"
