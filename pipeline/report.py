"""The collected tables of an experiment -> figures and one page that needs no server, network or script.

python -m pipeline.report pipeline/experiments/digits.yaml
"""

from __future__ import annotations

import argparse
import base64
import logging
import platform
from collections.abc import Iterator
from html import escape
from importlib import metadata
from itertools import count
from pathlib import Path

import pandas as pd

from pipeline import stage
from pipeline.drawing import Drawing, in_words, render
from pipeline.figures import FIGURES, draw
from pipeline.markup import CSS, NONE, cell, number, pairs, rows_of, table
from pipeline.paths import DEFAULT_EXPERIMENT, Paths
from pipeline.provenance import commit
from pipeline.records import replace_file
from pipeline.search_figures import SEARCH_FIGURES
from pipeline.search_section import search_section, trials_table
from pipeline.summary import summary
from pipeline.tables import OWN, Frame, Results, counted, read_results, standard_error
from pipeline.verdict_section import verdict_section
from pipeline.winners import load_whole

PACKAGES = ("numpy", "pandas", "matplotlib", "snakemake", "torch")
OF_SEARCH = ("ray", "optuna")
MAX_NAMED = 20  # failures that the box names
ODE_WITHIN = " <i>An ODE within</i>: the smallest margin, in points, with which the verdict would be so."


def page(results: Results, drawings: dict[str, Drawing], images: dict[str, bytes], source: str) -> str:
    """The whole report. images: PNG by figure name; source: the text of the experiment file."""
    experiment = results.experiment
    parts = [
        f"<h1>{escape(experiment.name)}</h1>",
        f'<p class="question">{escape(experiment.question)}</p>',
        failures(results),
        "<h2>What was found</h2>",
        f"<ul>{''.join(f'<li>{escape(sentence)}</li>' for sentence in summary(results))}</ul>",
        *verdict_section(results),
    ]
    shown = [(name in SEARCH_FIGURES, text) for name, text in _figures(drawings, images)]
    if experiment.search is not None:
        parts += [*search_section(results), *(text for of_search, text in shown if of_search), *trials_table(results)]
    parts += [text for of_search, text in shown if not of_search]
    split = experiment.evaluate_with.split
    parts += [
        f"<h2>{split.capitalize()} accuracy in %, by solver</h2>",
        "<p>Mean over seeds and, below it, their standard deviation. Bold: the training solver. "
        "†: the training or a solve failed for at least one seed.</p>",
        cross_table(results),
        "<h2>All jobs</h2>",
        f"<p>Accuracies in % ± binomial standard error; loss in nats; <i>own</i>: under the training solver, "
        f"<i>finest</i>: under {escape(results.finest) or 'none'}. Agreement and logit gaps compare the two."
        f"{'' if results.validity.empty else ODE_WITHIN}</p>",
        jobs_table(results),
        "<h2>Parameters that all jobs share</h2>",
        pairs(results.shared),
        "<h2>What made this</h2>",
        pairs(provenance(results)),
        f"<h2>The experiment file</h2>\n<pre>{escape(source)}</pre>",
    ]
    head = f'<meta charset="utf-8"><title>{escape(experiment.name)}</title><style>{CSS}</style>'
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(parts) + "\n</body></html>\n"


def _figures(drawings: dict[str, Drawing], images: dict[str, bytes]) -> Iterator[tuple[str, str]]:
    """Each figure under its heading; those that are drawn have numbers. Those of a search are parts of its section."""
    numbers = count(1)
    for name, drawing in drawings.items():
        title, heading = (FIGURES | SEARCH_FIGURES)[name][0], "h3" if name in SEARCH_FIGURES else "h2"
        text = f"<p>{escape(drawing.caption)}</p>"
        if drawing.figure is not None:
            data = base64.b64encode(images[name]).decode()
            text = (
                f'<figure><img alt="{escape(in_words(drawing.figure))}" src="data:image/png;base64,{data}">\n'
                f"<figcaption>Figure {next(numbers)}. {escape(drawing.caption)}</figcaption></figure>"
            )
        yield name, f"<{heading}>{escape(title)}</{heading}>\n{text}"


def failures(results: Results) -> str:
    """The box that says which jobs stopped and which solves did not end `ok`."""
    jobs, stopped, failed = results.jobs, results.stopped, results.failed
    lines = [f"{job['job']}: stopped ({job['train_status']}) in epoch {job['train_epoch']}" for job in rows_of(stopped)]
    lines += [
        f"{row['job']} under {row['solved_with']}: {row['status']}, "
        f"{row['num_failed']} of {row['num_samples']} samples failed"
        for row in rows_of(failed)
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
        f"{counted(len(results.evaluations), 'evaluation')} did not end well. Failed samples count as wrong."
        f"<ul>{items}</ul></div>"
    )


def cross_table(results: Results) -> str:
    """A row per (training solver, model), a column per solver at test: what the heat map shows, to copy from."""
    rows = []
    for (solver, label), cells in results.cells.groupby(["train.solver", "label"], sort=False):
        row = [cell(label, "text"), cell(results.trained(solver), "text")]
        by_solver = {found["solver"]: found for found in rows_of(cells)}
        for name in results.solvers:
            if name not in by_solver:  # a discrete net, or no solver of its own
                row.append(cell(""))
                continue
            found = by_solver[name]
            spread = f"<small>±{100 * found['std']:.1f}</small>" if found["num_jobs"] > 1 else ""
            mark = "†" if found["num_failed"] else ""
            kind = ' class="own"' if name == found["trained_with"] else ""
            row.append(f"<td{kind}>{100 * found['mean']:.1f}{mark}{spread}</td>")
        rows.append(row)
    return table(["model", "trained with", *results.solvers], rows, text=[0, 1])


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
    varied, judged = results.varied, not results.validity.empty
    verdicts = results.validity.drop_duplicates("job").set_index("job")[["verdict", "ode_within"]]
    jobs = results.jobs.join(verdicts, on="job")
    rows = []
    for job in rows_of(jobs):
        came_to = "" if job["trained_with"] != OWN else f" → {job['solved_with_own']}"
        row = [cell(job["job"], "id"), cell(job["label"], "text"), cell(job["train.solver"] + came_to, "text")]
        row += [cell(job["seed"]), *(cell("" if pd.isna(job[name]) else job[name]) for name in varied)]
        row.append(number(job["train_validation_accuracy"], "{:.1%}"))
        row += [_accuracy(job[f"accuracy_{kind}"], job["num_samples"]) for kind in ("own", "finest")]
        row += [number(job[column], form) for column, form in numbers.values()]
        if judged:
            row.append(cell(NONE if pd.isna(job["verdict"]) else job["verdict"], "text"))
            row.append(number(job["ode_within"], "{:.1%}"))
        ends = {"training": job["train_status"], "own": job["status_own"], "finest": job["status_finest"]}
        bad = [f"{name} {end}" for name, end in ends.items() if not pd.isna(end) and end != "ok"]
        rows.append([*row, cell(", ".join(bad) or "ok", "text")])
    head = ["job", "model", "trained<br>with", "seed", *(escape(name).replace(".", ".<wbr>") for name in varied)]
    head += ["valid-<br>ation (%)", "accuracy<br>own", "accuracy<br>finest", *numbers]
    texts = [0, 1, 2, *([len(head)] if judged else [])]
    head += [*(["verdict", "an ODE<br>within"] if judged else []), "status"]
    return table(head, rows, text=[*texts, len(head) - 1], escaped=True)


def provenance(results: Results) -> dict[str, str]:
    """What made the numbers and this page."""
    found = {
        "code of the training rows": " ".join(results.curves["code"].unique()),
        "code of the evaluation rows": " ".join(results.table["code"].unique()),
        "torch of the trainings": _torch(results.jobs["train_torch"]),
        "commit of this report": commit(),
        "python of this report": platform.python_version(),
    }
    for package in (*PACKAGES, *(OF_SEARCH if results.experiment.search else ())):
        try:
            found[f"{package} of this report"] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[f"{package} of this report"] = "not installed"
    return found


def _torch(noted: Frame) -> str:
    """The versions that the trainings ran under."""
    versions = sorted({version for text in noted.dropna() for version in str(text).split()})
    if not versions:
        return "not noted"
    lacking = int(noted.isna().sum())
    mixed = ": not one for all, so rows may differ by more than their jobs" if len(versions) > 1 else ""
    return " and ".join(versions) + mixed + (f"; not noted for {counted(lacking, 'job')}" if lacking else "")


def _accuracy(value: float, num_samples: int) -> str:
    if pd.isna(value):
        return cell(NONE)
    return cell(f"{100 * value:.1f} ± {100 * standard_error(value, num_samples):.1f}")


def main(arguments: argparse.Namespace) -> None:
    paths = Paths(arguments.results)
    experiment = load_whole(arguments.experiment, paths)
    results = read_results(experiment, paths)
    wanted = [*(SEARCH_FIGURES if experiment.search is not None else ()), *FIGURES]  # in the order of the page
    drawings = {name: draw(name, results) for name in wanted}
    images = {}
    for name in (*SEARCH_FIGURES, *FIGURES):
        drawing, stem = drawings.get(name), Path(paths.figures(experiment.name)) / name
        if drawing is None or drawing.figure is None:
            for suffix in (".png", ".pdf"):  # of an earlier report: it would belong to other tables
                stem.with_suffix(suffix).unlink(missing_ok=True)
            continue
        files = render(drawing.figure)
        for suffix, content in files.items():
            replace_file(stem.with_suffix(f".{suffix}"), content)
        images[name] = files["png"]
    source = Path(arguments.experiment).read_text(encoding="utf-8")
    replace_file(paths.report(experiment.name), page(results, drawings, images, source).encode())
    logging.info("%s: %d figures", paths.report(experiment.name), len(images))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", nargs="?", default=DEFAULT_EXPERIMENT, help="an experiment file")
    parser.add_argument("--results", default="results", help="root of the results (default: results)")
    stage.run(main, parser)
