"""The page's look, and its tables and lists as text. All that comes from outside is escaped here."""

from __future__ import annotations

from html import escape
from typing import Any

import pandas as pd

from pipeline.tables import Frame

NONE = "\N{EM DASH}"  # a number that does not exist
CSS = """
body { font: 16px/1.5 Georgia, "Times New Roman", serif; color: #111; background: #fff; max-width: 68em;
  margin: 2em auto; padding: 0 1.5em; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2em; }
.question { font-size: 1.2em; font-style: italic; }
.box { border: 1px solid #666; border-left: 6px solid #0072b2; padding: .4em 1em; margin: 1em 0; }
.box.failures { border-left-color: #d55e00; }
figure { margin: 1em 0; } figure img { width: 100%; max-width: 800px; } figcaption { font-size: .9em; color: #333; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font: 12px/1.35 "Helvetica Neue", Arial, sans-serif;
  font-variant-numeric: tabular-nums; }
th, td { padding: .2em .5em; white-space: nowrap;
  text-align: right; vertical-align: top; border-bottom: 1px solid #ddd; }
th { border-bottom: 1px solid #111; vertical-align: bottom; } td.text, th.text { text-align: left; }
td.id { text-align: left; font-family: monospace; overflow-wrap: anywhere; min-width: 17em; white-space: normal; }
td.text { white-space: normal; }
td.own { font-weight: bold; } td small { display: block; color: #444; font-weight: normal; }
pre { font-size: 12px; line-height: 1.35; background: #f4f4f4; padding: 1em; white-space: pre-wrap; }
dl.row { columns: 2 26em; font-size: .9em; } dl.row dt { float: left; clear: left; width: 14em; }
dl.row dd { margin-left: 15em; overflow-wrap: anywhere; }
@media print {
  body { font-size: 10pt; max-width: none; margin: 0; padding: 0; } table { font-size: 6.5pt; }
  .wide { overflow: visible; } figure, tr, .box { break-inside: avoid; } h2 { break-after: avoid; }
  thead { display: table-header-group; } td.id { min-width: 9em; } td, th { padding: .15em .3em; }
}
"""


def rows_of(frame: Frame) -> list[dict[str, Any]]:
    return frame.to_dict("records")


def cell(value: Any, kind: str = "") -> str:
    return f'<td class="{kind}">{escape(str(value))}</td>' if kind else f"<td>{escape(str(value))}</td>"


def number(value: float, form: str) -> str:
    return cell(NONE if pd.isna(value) else form.format(value).replace("%", ""))


def table(head: list[str], rows: list[list[str]], text: list[int], escaped: bool = False) -> str:
    """rows: finished cells. text: the columns that hold text."""
    cells = "".join(
        f'<th scope="col"{" class=text" if i in text else ""}>{name if escaped else escape(name)}</th>'
        for i, name in enumerate(head)
    )
    body = "\n".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{cells}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'


def pairs(pairs: dict[str, str]) -> str:
    items = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in pairs.items())
    return f'<dl class="row">{items}</dl>'
