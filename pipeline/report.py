"""The collected tables of an experiment -> figures and one page that needs no server, network or script.

python -m pipeline.report pipeline/experiments/digits.yaml
"""

from __future__ import annotations

import argparse
import base64
import logging
import platform
from html import escape
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline import stage
from pipeline.drawing import Drawing, render
from pipeline.experiment import load_experiment
from pipeline.figures import FIGURES, draw
from pipeline.paths import DEFAULT_EXPERIMENT, Paths
from pipeline.provenance import commit
from pipeline.records import replace_file
from pipeline.tables import Frame, Results, counted, read_results, standard_error, summary

PACKAGES = ("numpy", "pandas", "matplotlib", "snakemake", "torch")
NONE = "\N{EM DASH}"  # a number that does not exist
MAX_NAMED = 20  # failures that the box names
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


def page(results: Results, drawings: dict[str, Drawing], images: dict[str, bytes], source: str) -> str:
    """The whole report. images: PNG by figure name; source: the text of the experiment file."""
    experiment = results.experiment
    parts = [
        f"<h1>{escape(experiment.name)}</h1>",
        f'<p class="question">{escape(experiment.question)}</p>',
        failures(results),
        f"<h2>What was found</h2>\n<p>{escape(' '.join(summary(results)))}</p>",
    ]
    for number, (name, drawing) in enumerate(drawings.items(), 1):
        title = FIGURES[name][0]
        parts.append(f"<h2>{escape(title)}</h2>")
        if name in images:
            data = base64.b64encode(images[name]).decode()
            parts.append(
                f'<figure><img alt="{escape(title)}" src="data:image/png;base64,{data}">\n'
                f"<figcaption>Figure {number}. {escape(drawing.caption)}</figcaption></figure>"
            )
        else:
            parts.append(f"<p>{escape(drawing.caption)}</p>")
    split = experiment.evaluate_with.split
    parts += [
        f"<h2>{split.capitalize()} accuracy in %, by solver</h2>",
        "<p>Mean over seeds and, below it, their standard deviation. Bold: the training solver. "
        "†: the training or a solve failed for at least one seed.</p>",
        cross_table(results),
        "<h2>All jobs</h2>",
        f"<p>Accuracies in % ± binomial standard error; loss in nats; <i>own</i>: under the training solver, "
        f"<i>finest</i>: under {escape(results.finest) or 'none'}. Agreement and logit gaps compare the two.</p>",
        jobs_table(results),
        "<h2>Parameters that all jobs share</h2>",
        _pairs(results.shared),
        "<h2>What made this</h2>",
        _pairs(provenance(results)),
        f"<h2>The experiment file</h2>\n<pre>{escape(source)}</pre>",
    ]
    head = f'<meta charset="utf-8"><title>{escape(experiment.name)}</title><style>{CSS}</style>'
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(parts) + "\n</body></html>\n"


def failures(results: Results) -> str:
    """The box that says which jobs stopped and which solves did not end `ok`."""
    jobs, stopped, failed = results.jobs, results.stopped, results.failed
    lines = [f"{job['job']}: stopped ({job['train_status']}) in epoch {job['train_epoch']}" for job in _rows(stopped)]
    lines += [
        f"{row['job']} under {row['solver']}: {row['status']}, "
        f"{row['num_failed']} of {row['num_samples']} samples failed"
        for row in _rows(failed)
    ]
    if not lines:
        return '<div class="box">All seeds are shown; none failed.</div>'
    if len(lines) > MAX_NAMED:
        rest = len(lines) - MAX_NAMED
        lines = [*lines[:MAX_NAMED], f"and {rest} more: see the columns status and train_status of table.csv"]
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return (
        '<div class="box failures">All seeds are shown; the training of '
        f"{len(stopped)} of {counted(len(jobs), 'job')} stopped, and {len(failed)} of "
        f"{counted(len(results.table), 'evaluation')} did not end well. Failed samples count as wrong."
        f"<ul>{items}</ul></div>"
    )


def cross_table(results: Results) -> str:
    """A row per (training solver, model), a column per solver at test: what the heat map shows, to copy from."""
    rows = []
    for (solver, label), cells in results.cells.groupby(["train.solver", "label"], sort=False):
        row = [_cell(label, "text"), _cell(solver, "text")]
        by_solver = {cell["solver"]: cell for cell in _rows(cells)}
        for name in results.solvers:
            if name not in by_solver:  # a discrete net
                row.append(_cell(""))
                continue
            cell = by_solver[name]
            spread = f"<small>±{100 * cell['std']:.1f}</small>" if cell["num_jobs"] > 1 else ""
            mark = "†" if cell["num_failed"] else ""
            kind = ' class="own"' if name == solver else ""
            row.append(f"<td{kind}>{100 * cell['mean']:.1f}{mark}{spread}</td>")
        rows.append(row)
    return _table(["model", "trained with", *results.solvers], rows, text=[0, 1])


def jobs_table(results: Results) -> str:
    """A row per job."""
    numbers = {
        "loss<br>own": ("loss_own", "{:.3f}"),
        "loss<br>finest": ("loss_finest", "{:.3f}"),
        "agree-<br>ment (%)": ("agreement_finest", "{:.1%}"),
        "logit gap<br>mean": ("logit_gap_mean_finest", "{:.2g}"),
        "logit gap<br>largest": ("logit_gap_max_finest", "{:.2g}"),
        "evals<br>own": ("num_evals_own", "{:.4g}"),
        "evals<br>finest": ("num_evals_finest", "{:.4g}"),
    }
    varied = results.varied
    rows = []
    for job in _rows(results.jobs):
        row = [_cell(job["job"], "id"), _cell(job["label"], "text"), _cell(job["train.solver"], "text")]
        row += [_cell(job["seed"]), *(_cell("" if pd.isna(job[name]) else job[name]) for name in varied)]
        row.append(_number(job["train_validation_accuracy"], "{:.1%}"))
        row += [_accuracy(job[f"accuracy_{kind}"], job["num_samples"]) for kind in ("own", "finest")]
        row += [_number(job[column], form) for column, form in numbers.values()]
        ends = {"training": job["train_status"], "own": job["status_own"], "finest": job["status_finest"]}
        bad = [f"{name} {end}" for name, end in ends.items() if not pd.isna(end) and end != "ok"]
        rows.append([*row, _cell(", ".join(bad) or "ok", "text")])
    head = ["job", "model", "trained<br>with", "seed", *(escape(name).replace(".", ".<wbr>") for name in varied)]
    head += ["valid-<br>ation (%)", "accuracy<br>own", "accuracy<br>finest", *numbers, "status"]
    return _table(head, rows, text=[0, 1, 2, len(head) - 1], escaped=True)


def provenance(results: Results) -> dict[str, str]:
    """What made the numbers and this page."""
    found = {
        "code of the training rows": " ".join(results.curves["code"].unique()),
        "code of the evaluation rows": " ".join(results.table["code"].unique()),
        "commit of this report": commit(),
        "python": platform.python_version(),
    }
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def _rows(frame: Frame) -> list[dict[str, Any]]:
    return frame.to_dict("records")


def _cell(value: Any, kind: str = "") -> str:
    return f'<td class="{kind}">{escape(str(value))}</td>' if kind else f"<td>{escape(str(value))}</td>"


def _number(value: float, form: str) -> str:
    return _cell(NONE if pd.isna(value) else form.format(value).replace("%", ""))


def _accuracy(value: float, num_samples: int) -> str:
    if pd.isna(value):
        return _cell(NONE)
    return _cell(f"{100 * value:.1f} ± {100 * standard_error(value, num_samples):.1f}")


def _table(head: list[str], rows: list[list[str]], text: list[int], escaped: bool = False) -> str:
    """rows: finished cells. text: the columns that hold text."""
    cells = "".join(
        f"<th{' class=text' if i in text else ''}>{name if escaped else escape(name)}</th>"
        for i, name in enumerate(head)
    )
    body = "\n".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{cells}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'


def _pairs(pairs: dict[str, str]) -> str:
    items = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in pairs.items())
    return f'<dl class="row">{items}</dl>'


def main(arguments: argparse.Namespace) -> None:
    experiment, paths = load_experiment(arguments.experiment), Paths(arguments.results)
    results = read_results(experiment, paths)
    drawings, images = {}, {}
    for name in FIGURES:
        drawings[name] = draw(name, results)
        stem = Path(paths.figures(experiment.name)) / name
        if drawings[name].figure is None:
            for suffix in (".png", ".pdf"):  # of an earlier report: it would belong to other tables
                stem.with_suffix(suffix).unlink(missing_ok=True)
            continue
        files = render(drawings[name].figure)
        for suffix, content in files.items():
            replace_file(stem.with_suffix(f".{suffix}"), content)
        images[name] = files["png"]
    source = Path(arguments.experiment).read_text()
    replace_file(paths.report(experiment.name), page(results, drawings, images, source).encode())
    logging.info("%s: %d figures", paths.report(experiment.name), len(images))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", nargs="?", default=DEFAULT_EXPERIMENT, help="an experiment file")
    parser.add_argument("--results", default="results", help="root of the results (default: results)")
    stage.run(main, parser)
