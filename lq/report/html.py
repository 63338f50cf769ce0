"""One self-contained HTML page: text, tables and pictures, without a single request to the network."""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = Mapping[str, Any]

_DPI = 144  # sharp on a phone


@dataclass(frozen=True)
class Section:
    """A part of the page; whatever is given is shown, in this order.

    Args:
        title: its heading, without markup, like all other text.
        text: paragraphs, separated by empty lines.
        rows: a table, a row each; columns are the keys of all rows, in their order.
        figures: matplotlib figures, or names of PNG files, each with what it shows in words.
        code: text in a monospaced block that scrolls, e.g. the plan.
        folded: whether table and code are hidden until they are asked for; print shows them.

    Example:
        >>> Section("Plan", code="fc  Linear").title
        'Plan'
    """

    title: str
    text: str = ""
    rows: Sequence[Row] = ()
    figures: Sequence[tuple[Figure | str | os.PathLike[str], str]] = ()
    code: str = ""
    folded: bool = False


def write_report(path: str | os.PathLike[str], title: str, sections: Sequence[Section]) -> Path:
    """Write the page.

    Args:
        path: of the file; its directory is made.
        title: of the page.
        sections: its parts.

    Returns:
        the path.

    Raises:
        ValueError: if there are no sections.
        FileNotFoundError: if a picture does not exist.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = write_report(f"{folder}/report.html", "MobileNetV2", [Section("Result", "All is well.")])
        ...     "<p>All is well.</p>" in path.read_text(encoding="utf-8")
        True
    """
    if not sections:
        raise ValueError("write_report: no sections; give at least one, e.g. Section('Result', rows=rows).")
    names = [f"s{index}" for index in range(len(sections))]
    links = " ".join(f'<a href="#{n}">{_text(s.title)}</a>' for n, s in zip(names, sections, strict=True))
    body = "\n".join(_section(name, section) for name, section in zip(names, sections, strict=True))
    page = _PAGE.format(title=_text(title), style=_STYLE, links=links, body=body, script=_SCRIPT)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(page, encoding="utf-8")
    return target


def _section(name: str, section: Section) -> str:
    parts = [f"<p>{_text(part)}</p>" for part in section.text.split("\n\n") if part.strip()]
    pictures = [_picture(picture, words) for picture, words in section.figures]
    parts += ['<div class="figures">', *pictures, "</div>"] if len(pictures) > 1 else pictures
    details = []
    if section.rows:
        details.append(_table(section.rows))
    if section.code:
        details.append(f"<pre>{_text(section.code)}</pre>")
    if details and section.folded:
        details = ["<details><summary>show</summary>", *details, "</details>"]
    inner = "\n".join(parts + details)
    return f'<section id="{name}">\n<h2>{_text(section.title)}</h2>\n{inner}\n</section>'


def _picture(picture: Figure | str | os.PathLike[str], words: str) -> str:
    if isinstance(picture, (str, os.PathLike)):
        content = Path(picture).read_bytes()
    else:
        buffer = io.BytesIO()
        picture.savefig(buffer, format="png", dpi=_DPI)
        content = buffer.getvalue()
    data = base64.b64encode(content).decode()
    words = _text(words)
    image = f'<img src="data:image/png;base64,{data}" alt="{words}">'
    return f"<figure>{image}<figcaption>{words}</figcaption></figure>"


def _table(rows: Sequence[Row]) -> str:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    numeric = {c for c in columns if all(_is_figure(row.get(c)) for row in rows)}
    head = "".join(f'<th{_right(c in numeric)} scope="col">{_text(c)}</th>' for c in columns)
    lines = []
    for row in rows:
        first, *others = columns
        cells = f'<th scope="row">{_text(_cell(row.get(first)))}</th>'
        cells += "".join(f"<td{_right(c in numeric)}>{_text(_cell(row.get(c)))}</td>" for c in others)
        lines.append(f"<tr>{cells}</tr>")
    return (
        f'<div class="wide" tabindex="0"><table><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{chr(10).join(lines)}</tbody></table></div>"
    )


def _is_figure(value: Any) -> bool:
    if isinstance(value, str):
        return value[:1] in "-+0123456789" or value in ("inf", "nan")
    return value is None or isinstance(value, (int, float))


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def _right(numeric: bool) -> str:
    return ' class="n"' if numeric else ""


def _text(value: str) -> str:
    return html.escape(value)


_STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 66rem; padding: 1rem; color: #1b1b1b; background: #fff;
  font: 16px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0.5rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 0.6rem; border-bottom: 2px solid #0072b2; padding-bottom: 0.2rem; }
nav { display: flex; flex-wrap: wrap; gap: 0.2rem 1rem; font-size: 0.95rem; }
a { color: #005a8e; }
p { max-width: 46rem; margin: 0.6rem 0; }
figure { margin: 1rem 0; break-inside: avoid; }
img { width: 100%; max-width: 40rem; height: auto; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); gap: 0 1.5rem; }
figcaption { font-size: 0.88rem; color: #4a4a4a; max-width: 46rem; }
.wide { overflow-x: auto; }
.sorts { cursor: pointer; }
.sorts::after { content: " \\2195"; color: #767676; }
[aria-sort=ascending]::after { content: " \\2191"; color: #1b1b1b; }
[aria-sort=descending]::after { content: " \\2193"; color: #1b1b1b; }
.search { font: inherit; font-size: 0.9rem; padding: 0.25rem 0.5rem; width: min(100%, 20rem); }
table { border-collapse: collapse; font-size: 0.9rem; margin: 0.6rem 0; }
th, td { padding: 0.3rem 0.7rem; border-bottom: 1px solid #dcdcdc; text-align: left; vertical-align: top; }
thead th { border-bottom: 2px solid #767676; vertical-align: bottom; }
tbody th { font-weight: 600; white-space: nowrap; }
.n { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
pre { overflow-x: auto; background: #f5f6f7; padding: 0.7rem; font-size: 0.8rem; line-height: 1.35; }
summary { cursor: pointer; color: #005a8e; }
@media (max-width: 30rem) { body { padding: 0.7rem; } table { font-size: 0.8rem; }
  th, td { padding: 0.25rem 0.4rem; } tbody th { white-space: normal; } }
@media print { body { max-width: none; font-size: 10.5pt; padding: 0; }
  img { width: auto; max-height: 22cm; } nav, summary, .search { display: none; } .sorts::after { content: ""; }
  details::details-content { content-visibility: visible; display: block; }
  pre { white-space: pre-wrap; font-size: 7.5pt; } .wide { overflow: visible; } h2 { break-after: avoid; }
  tr { break-inside: avoid; } table { font-size: 8pt; } th, td { padding: 0.1rem 0.5rem; } }
"""

# Long tables can be searched, and sorted by a click on a heading; without scripts they are plain tables.
_SCRIPT = """
const figure = cell => { const n = parseFloat(cell.textContent); return isNaN(n) ? -Infinity : n; };
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0], rows = [...body.rows], headings = [...table.tHead.rows[0].cells];
  if (rows.length < 12) continue;
  const search = document.createElement("input");
  Object.assign(search, { type: "search", className: "search", placeholder: "search " + rows.length + " rows" });
  search.setAttribute("aria-label", search.placeholder);
  search.oninput = () => {
    const wanted = search.value.toLowerCase();
    for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
  };
  table.parentElement.before(search);
  headings.forEach((heading, column) => {
    heading.classList.add("sorts");
    heading.tabIndex = 0;
    const sort = () => {
      const number = heading.classList.contains("n"), before = heading.getAttribute("aria-sort");
      const up = before ? before === "descending" : !number;  // the largest numbers first
      headings.forEach(other => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", up ? "ascending" : "descending");
      const order = (a, b) => number ? figure(a.cells[column]) - figure(b.cells[column])
        : a.cells[column].textContent.localeCompare(b.cells[column].textContent, undefined, { numeric: true });
      body.append(...[...rows].sort((a, b) => up ? order(a, b) : order(b, a)));
    };
    heading.onclick = sort;
    heading.onkeydown = event => { if (event.key === "Enter") sort(); };
  });
}
"""

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
<nav>{links}</nav>
{body}
<script>{script}</script>
</body>
</html>
"""
