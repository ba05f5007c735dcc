"""One self-contained HTML page: text, tables and figures, no script, nothing fetched."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, TypeAlias

from medimg.runtime.files.text import printable

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2430 }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem } h2 { font-size: 1.2rem; margin-top: 2rem; border-bottom: 1px solid #d5dae1 }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums }
caption { text-align: left; color: #5a6675; padding-bottom: .3rem }
th, td { text-align: left; padding: .25rem .9rem .25rem 0; border-bottom: 1px solid #e6e9ee }
td { white-space: nowrap } td:last-child { white-space: normal; overflow-wrap: anywhere }
td:first-child { white-space: normal; overflow-wrap: anywhere; min-width: 8rem }
.warnings { background: #fff6e0; border-left: 4px solid #d99a00; padding: .6rem 1rem }
figure.picture { display: inline-block; width: 28rem; margin-right: 1rem; vertical-align: top }
figure { margin: 1rem 0 } figure img { max-width: 100% } figcaption { color: #5a6675 }
""".strip()


@dataclass(frozen=True)
class Table:
    """Rows of text under a head."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Figure:
    """A picture with its caption."""

    caption: str
    svg: str
    """An SVG document; shown as an image, so that nothing in it can run."""


@dataclass(frozen=True)
class Picture:
    """Pixels with their caption; several stand side by side where there is room."""

    caption: str
    png: bytes
    """A PNG file."""


Block: TypeAlias = "str | Table | Figure | Picture"


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    title: str
    blocks: tuple[Block, ...]


def page(title: str, warnings: Sequence[str], sections: Sequence[Section]) -> str:
    """Write the page, warnings first; every text is escaped.

    Args:
        title: the page's heading.
        warnings: what the reader must know before anything else.
        sections: what follows, in order.
    """
    listed = "".join(f"<li>{_text(warning)}</li>" for warning in warnings)
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
            "style-src 'unsafe-inline'; img-src data:\">",
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{_text(title)}</title><style>{_STYLE}</style></head><body>",
            f"<h1>{_text(title)}</h1>",
            f'<div class="warnings"><strong>Warnings</strong><ul>{listed}</ul></div>' if listed else "",
            *(_section(section) for section in sections),
            "</body></html>\n",
        ]
    )


def _section(section: Section) -> str:
    return f"<h2>{_text(section.title)}</h2>\n" + "\n".join(_block(block) for block in section.blocks)


def _block(block: Block) -> str:
    if isinstance(block, Table):
        head = "".join(f"<th>{_text(name)}</th>" for name in block.head)
        rows = "".join(
            "<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in block.rows
        )
        return f"<table><caption>{_text(block.caption)}</caption><tr>{head}</tr>{rows}</table>"
    if isinstance(block, Figure):
        return _figure(block.caption, "image/svg+xml", block.svg.encode())
    if isinstance(block, Picture):
        return _figure(block.caption, "image/png", block.png)
    return f"<p>{_text(block)}</p>"


def _figure(caption: str, kind: str, content: bytes) -> str:
    shown, data = _text(caption), base64.b64encode(content).decode()
    style = ' class="picture"' if kind == "image/png" else ""
    return (
        f'<figure{style}><img alt="{shown}" src="data:{kind};base64,{data}">'
        f"<figcaption>{shown}</figcaption></figure>"
    )


def _text(text: str) -> str:
    return escape(printable(text), quote=True)


def svg_of(figure: Any, *, text_stays: bool = False) -> str:  # noqa: ANN401  matplotlib has no types
    """Write a figure of matplotlib as SVG, the same text for the same figure.

    Args:
        figure: a `matplotlib.figure.Figure`.
        text_stays: whether text is text, in the reader's font, where it would be shapes.
    """
    import matplotlib

    text = io.StringIO()
    # Without the salt the picture's identifiers differ from run to run.
    style = {"svg.hashsalt": "medimg", **({"svg.fonttype": "none"} if text_stays else {})}
    with matplotlib.rc_context(style):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()
