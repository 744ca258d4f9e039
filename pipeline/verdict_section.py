"""The part of the page that answers: is it an ODE?"""

from __future__ import annotations

from html import escape

import pandas as pd

from pipeline.comparison import Comparison, comparisons
from pipeline.judgement import VERDICTS, verdict_table
from pipeline.markup import NONE, cell, number, rows_of, table
from pipeline.tables import Results, points

MAX_REASONS = 10  # undecided models that say why


def verdict_section(results: Results) -> list[str]:
    """The section on the question of questions: numbers in print beside ours, then what each model was found to be."""
    parts = ["<h2>Is it an ODE?</h2>"]
    if results.validity.empty and not results.experiment.published:
        return [*parts, "<p>No model of this experiment has a path through time that could be one of an ODE.</p>"]
    parts.append(
        "<p>A model is an ODE if its accuracy stays the same, within the margin, in the limit of small steps and under "
        "every solver at least as exact as that of its training; it is a discrete net in disguise if one of them "
        "surely changes it. A solver coarser than that of the training may always fail, and never counts against a "
        "model.</p>"
    )
    if found := comparisons(results):
        parts.append(_comparison_table(found))
    if not results.validity.empty:
        parts += [_verdict_table(results), _undecided(results)]
    return parts


def _comparison_table(found: list[Comparison]) -> str:
    rows = []
    for each in found:
        remark = f"<small>{escape(each.remark)}</small>" if each.remark else ""
        source = f"<small>{escape(each.published.source)}</small>"
        row = [f'<td class="text">{escape(each.published.claim)}{source}</td>', cell(each.in_print, "text")]
        row.append(f'<td class="text">{escape(each.ours)}{remark}</td>')
        rows.append([*row, cell(NONE if each.agrees is None else each.verdict, "text")])
    return table(["claim", "in print", "ours", "agreement"], rows, text=[0, 1, 2, 3])


def _verdict_table(results: Results) -> str:
    """A row per (model, training solver)."""
    rows = []
    for row in rows_of(verdict_table(results)):
        cells = [cell(row["label"], "text"), cell(results.trained(row["train.solver"]), "text")]
        cells += [cell(row[verdict]) for verdict in VERDICTS]
        cells.append(cell(f"{points(row['gap'])} ({points(row['gap_low'])} to {points(row['gap_high'])})"))
        worst = "" if pd.isna(row["worst_gap"]) else f"{row['worst_solver']}: {points(row['worst_gap'])}"
        cells += [number(row["agreement"], "{:.1%}"), cell(worst or NONE, "text")]
        cells += [number(row["order"], "{:.2f}"), number(row["method_order"], "{:.0f}")]
        cells += [number(row[share], "{:.1%}") for share in ("share_folded", "share_crossing")]
        rows.append(cells)
    head = ["model", "trained<br>with", *VERDICTS, "gap in the limit<br>(points)", "agree-<br>ment (%)"]
    head += ["worst finer<br>solver (points)", "order<br>observed", "of the<br>method"]
    head += ["folded<br>(%)", "crossing<br>(%)"]
    return table(head, rows, text=[0, 1, 7], escaped=True)


def _undecided(results: Results) -> str:
    """Why, of the first MAX_REASONS."""
    jobs = results.validity[results.validity["verdict"] == "undecided"]
    if jobs.empty:
        return ""
    named = [f"{row['job']}: {row['reason']}" for row in rows_of(jobs.head(MAX_REASONS))]
    items = "".join(f"<li>{escape(line)}</li>" for line in named)
    rest = len(jobs) - MAX_REASONS
    more = f"<li>and {rest} more: see the column reason of validity.csv</li>" if rest > 0 else ""
    return f"<p>Undecided:</p><ul>{items}{more}</ul>"
