"""The part of the page that says what was searched, how, and what came of it."""

from __future__ import annotations

from html import escape
from typing import Any

import pandas as pd

from pipeline import search_words
from pipeline.cost import duration
from pipeline.markup import cell, number, rows_of, table
from pipeline.search_config import GOALS, Search
from pipeline.search_table import column_of
from pipeline.tables import Frame, Results, counted, percent
from pipeline.tried import OUTCOMES

MOST_ROWS = 300  # trials of the table


def search_section(results: Results) -> list[str]:
    """The sentences; figures and the table of all trials come behind."""
    return ["<h2>What was searched</h2>", f"<p>{escape(' '.join(search_sentences(results)))}</p>"]


def search_sentences(results: Results) -> list[str]:
    """What was searched, how, and what came of it."""
    search, trials = results.experiment.search, results.trials
    assert search is not None
    once = trials.drop_duplicates("job")
    counts = search_words.came_to({name: int((trials["outcome"] == name).sum()) for name in OUTCOMES})
    fields = ", ".join(search.space.domains)
    conditions = " and ".join(map(str, search.space.conditions))
    return [
        f"The search varied {fields}{f' (where {conditions})' if conditions else ''}, for "
        f"{search_words.goals(search)}, by {search_words.how(search)}. "
        f"{counted(len(trials), 'trial')} ({counts}) took {once['evals'].sum():,.0f} field evaluations and "
        f"{duration(once['seconds'].sum())} of training.",
        *_saved(once),
        *_won(results, search),
    ]


def _saved(trials: Frame) -> list[str]:
    """What stopping early has spared, if the trials that were stopped would have cost as much as the others."""
    whole, evals = trials.loc[trials["outcome"] == "finished", "evals"], trials["evals"].sum()
    if not len(whole) or not (trials["outcome"] == "stopped").any() or not evals:
        return []
    share = evals / (whole.mean() * len(trials))
    return [f"That is {percent(share)} of what all would have taken at the mean of those that were trained to the end."]


def _won(results: Results, search: Search) -> list[str]:
    trials, goal = results.trials, search.settings.goals[0]
    won = trials[trials["winner"]]
    jobs = {job for jobs in won["became"] for job in str(jobs).split()}
    became = f"{counted(len(won), 'trial')} won and became {counted(len(jobs), 'job')}, trained in full and judged like"
    if won[goal].isna().all():  # undecided then, failed since; and an old file does not say how far they were
        return [f"{became} any other. What they came to in the search is not known any more."]
    best = won.loc[won[goal].idxmax() if GOALS[goal] == "max" else won[goal].idxmin()]
    value = percent(best[goal]) if goal == "validation_accuracy" else f"{best[goal]:.3g}"
    return [
        f"{became} any other. The best {search_words.GOALS_IN_WORDS[goal]} of a winner in its search is {value} (trial "
        f"{best['trial']}, {best['num_evals']:.4g} field evaluations per solve): the best of {len(trials)}, on the "
        "very samples that chose it, which flatters; the judgement below says how it holds."
    ]


def trials_table(results: Results) -> list[str]:
    """A row per trial: what was chosen, what it came to, and what was stopped when."""
    search, trials = results.experiment.search, results.trials
    assert search is not None
    fields = {column_of(path): domain.is_list for path, domain in search.space.domains.items()}
    shown = trials.head(MOST_ROWS)
    rows = [_row(row, fields) for row in rows_of(shown)]
    head = ["trial", "end", "after<br>epoch", *(escape(name).replace(".", ".<wbr>") for name in fields)]
    head += [
        "valid-<br>ation (%)",
        "valid-<br>ation loss",
        "evals<br>per solve",
        "evals<br>in all",
        "time",
        "",
        "why",
        "job",
    ]
    rest = len(trials) - len(shown)
    more = f" The first {MOST_ROWS} stand here; {rest} more in trials.csv." if rest else ""
    return [
        "<h3>All trials</h3>",
        "<p>Validation at the last epoch of each; <i>evals in all</i>: field evaluations of its training; "
        f"<i>front</i>: no other trial outdoes it.{more}</p>",
        table(head, rows, text=[1, len(head) - 3, len(head) - 2, len(head) - 1], escaped=True),
    ]


def _row(row: dict[str, Any], fields: dict[str, bool]) -> list[str]:
    reason = "" if pd.isna(row["reason"]) else str(row["reason"])
    end = search_words.end(row["outcome"], reason)
    marks = [name for name in ("winner", "front") if row[name]]
    chosen = [cell(row[name], "text") if is_list else number(row[name], "{:.4g}") for name, is_list in fields.items()]
    return [
        cell(row["trial"]),
        cell(end, "text"),
        cell(row["epochs"]),
        *chosen,
        number(row["validation_accuracy"], "{:.1%}"),
        number(row["validation_loss"], "{:.3f}"),
        number(row["num_evals"], "{:.4g}"),
        number(row["evals"], "{:,.0f}"),
        cell(duration(row["seconds"])),
        cell(", ".join(marks), "text"),
        cell(reason if reason != "ok" and reason not in search_words.SCHEDULERS else "", "text"),
        cell(row["job"], "id"),
    ]
