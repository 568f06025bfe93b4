"""Pages of tables, in Markdown for readers of files and in HTML for the report."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from tabulate import tabulate

from qcsbm.runtime.files import write_text

STYLE = """
body { font: 15px/1.5 sans-serif; margin: 2em auto; padding: 0 1em; max-width: 72em; color: #222;
  background: #fff; }
table { border-collapse: collapse; margin: 1em 0; display: block; overflow-x: auto; }
th, td { padding: .25em .8em; border-bottom: 1px solid #ddd; text-align: right; }
th { border-bottom: 2px solid #888; }
th, td { white-space: nowrap; }
th.left, td.left { text-align: left; }
li { margin: .2em 0; max-width: 60em; }
@media (max-width: 640px) {
  body { margin: 1em auto; }
  ul { padding-left: 1.2em; }
  th, td { padding: .25em .5em; }
}
"""


@dataclass(frozen=True)
class Section:
    """A table of texts with notes below it; the first ``left`` columns are flush left."""

    heading: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    left: int = 1


def write(stem: str | Path, title: str, sections: Sequence[Section]) -> None:
    """Write the page as ``stem``.html and ``stem``.md."""
    write_text(f"{stem}.html", html(title, sections))
    write_text(f"{stem}.md", markdown(title, sections))


def markdown(title: str, sections: Sequence[Section]) -> str:
    """The page as Markdown."""
    parts = [f"# {title}\n"]
    for section in sections:
        right = len(section.columns) - section.left
        grid = tabulate(
            section.rows,
            section.columns,
            tablefmt="pipe",
            disable_numparse=True,
            colalign=["left"] * section.left + ["right"] * right,
        )
        notes = "".join(f"- {note}\n" for note in section.notes)
        parts.append(f"## {section.heading}\n\n{grid}\n" + (f"\n{notes}" if notes else ""))
    return "\n".join(parts)


def html(title: str, sections: Sequence[Section]) -> str:
    """The page as one HTML file that refers to nothing outside itself."""
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title>",
        f"<style>{STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
    ]
    for section in sections:
        head = _row("th", section.columns, section.left)
        body = "\n".join(_row("td", row, section.left) for row in section.rows)
        notes = "\n".join(f"<li>{_code(escape(note))}</li>" for note in section.notes)
        parts.append(f"<h2>{escape(section.heading)}</h2>")
        parts.append(f"<table><thead>\n{head}\n</thead><tbody>\n{body}\n</tbody></table>")
        parts.append(f"<ul>\n{notes}\n</ul>" if notes else "")
    return "\n".join([*parts, "</body></html>\n"])


def _code(text: str) -> str:
    """``text`` with what stands between backquotes, as in Markdown, in HTML."""
    return re.sub("`([^`]+)`", r"<code>\1</code>", text)


def _row(tag: str, texts: Sequence[str], left: int) -> str:
    cells = (
        f'<{tag} class="left">{escape(text)}</{tag}>'
        if i < left
        else f"<{tag}>{escape(text)}</{tag}>"
        for i, text in enumerate(texts)
    )
    return f"<tr>{''.join(cells)}</tr>"
