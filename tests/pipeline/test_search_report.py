"""The report of a search shows every trial, what mattered, and what came of it."""

import dataclasses
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from made import make_models
from searched import FAILED, SEARCH, Searched
from test_collect import SMALL, run_stage
from test_report import read_again, results_of, whole_page

from pipeline.drawing import Drawing
from pipeline.figures import FIGURES, draw
from pipeline.importance import importances
from pipeline.report import page
from pipeline.search_figures import SEARCH_FIGURES
from pipeline.search_section import search_sentences
from pipeline.space import Domain
from pipeline.tables import Results, read_results

FEW = SEARCH.replace("num_trials: 24", "num_trials: 3").replace("[validation_accuracy, num_evals]", "[validation_loss]")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Searched:
    """Not to be changed."""
    searched = Searched(tmp_path_factory.mktemp("made"))
    searched.try_all()
    searched.end()
    return searched


@pytest.fixture(scope="module")
def results(made) -> Results:
    return read_again(made.whole, made.paths)


def axes(results: Results, name: str):
    figure = draw(name, results).figure
    assert figure is not None
    return figure.axes[0]


def points(ax, *, hollow: bool, marker: str = "o") -> set[tuple[float, float]]:
    """Of the trials, without the rings."""
    found = set()
    for line in ax.lines:
        mine = line.get_marker() == marker and line.get_markersize() < 9 and line.get_linestyle() == "None"
        if mine and (line.get_markerfacecolor() == "white") == hollow:
            found |= {(float(x), round(float(y), 6)) for x, y in zip(line.get_xdata(), line.get_ydata())}
    return found


def test_the_front_shows_every_trial_once_filled_where_it_was_trained_to_its_end(results):
    ax, trials = axes(results, "search_front"), results.trials
    trials = trials[trials["outcome"] != "failed"]
    for outcome, hollow in (("finished", False), ("stopped", True)):
        rows = trials[trials["outcome"] == outcome]
        assert points(ax, hollow=hollow) == {
            (x, round(100 * y, 6)) for x, y in zip(rows["num_evals"], rows["validation_accuracy"])
        }
    (line,) = [line for line in ax.lines if line.get_drawstyle() == "steps-post"]
    best = results.trials[results.trials["front"]].sort_values("num_evals")
    assert list(line.get_xdata()) == list(best["num_evals"])
    assert np.all(np.diff(line.get_ydata()) > 0)
    assert {text.get_text() for text in ax.texts} == {
        str(n) for n in results.trials.loc[results.trials["winner"], "trial"]
    }
    assert "23 trials of one seed each" in draw("search_front", results).caption
    assert "(144 validation samples)" in draw("search_front", results).caption


def test_every_trial_crosses_each_axis_at_what_was_chosen(results):
    ax = axes(results, "search_parallel")
    lines = [line for line in ax.lines if len(line.get_xdata()) == 6 and line.get_linestyle() != "None"]
    trials = results.trials[results.trials["outcome"] != "failed"]
    assert len(lines) == len(trials) == 23
    heights = sorted((tuple(line.get_ydata()) for line in lines), key=lambda found: found[3])
    by_lr = trials.sort_values("train.lr")
    low, high = trials["validation_accuracy"].min(), trials["validation_accuracy"].max()
    for found, row in zip(heights, by_lr.to_dict("records")):
        assert found[0] == pytest.approx(["2", "4", "8"].index(row["model.basis.num_coefficients"]) / 2, abs=0.04)
        assert found[1] == pytest.approx(row["model.basis.degree"] / 3, abs=0.04)
        assert found[3] == pytest.approx(np.log10(row["train.lr"] / 1e-3) / 2, abs=1e-9)
        assert found[4] == pytest.approx(np.log2(row["num_evals"] / 2) / 3, abs=1e-9)
        assert found[5] == pytest.approx((row["validation_accuracy"] - low) / (high - low), abs=1e-9)
    names = " ".join(label.get_text().replace("\n", "") for label in ax.get_xticklabels())
    assert names.split()[:4] == list(results.experiment.search.space.domains)


def test_the_curve_of_each_trial_ends_with_a_mark_that_says_why(results):
    ax, curves = axes(results, "search_curves"), results.trial_curves
    lines = [line for line in ax.lines if line.get_linestyle() != "None"]
    drawn = sorted(tuple(np.round(line.get_ydata(), 6)) for line in lines)
    assert drawn == sorted(tuple(np.round(100 * rows["validation_accuracy"], 6)) for _, rows in curves.groupby("trial"))
    stopped = results.trials[results.trials["outcome"] == "stopped"]
    assert points(ax, hollow=True, marker="s") == {(2.0, round(100 * y, 6)) for y in stopped["validation_accuracy"]}
    legend = {text.get_text() for text in ax.get_figure().legends[0].get_texts()}
    assert {f"stopped by ASHA: {len(stopped)}", "finished: 12", "failed: 1"} <= legend
    assert "1 more finished no epoch" in draw("search_curves", results).caption


def test_what_mattered_is_drawn_for_each_goal_and_sums_to_one(results):
    figure = draw("search_importance", results).figure
    assert figure is not None
    accuracy, cost = figure.axes
    for ax in (accuracy, cost):
        assert sum(bar.get_width() for bar in ax.patches) == pytest.approx(100)
    names = [label.get_text() for label in accuracy.get_yticklabels()]
    assert cost.patches[names.index("train.solver")].get_width() > 99  # the field evaluations of a solve
    assert "from 23 trials" in draw("search_importance", results).caption


DOMAINS = {
    "lr": Domain("log_uniform", (1e-3, 1e-1)),
    "kind": Domain("choice", ("a", "b")),
    "n": Domain("integer", (1, 4)),
}


def drawn(count: int) -> list[dict]:
    generator = random.Random(0)
    return [{name: domain.draw(generator) for name, domain in DOMAINS.items()} for _ in range(count)]


@pytest.mark.parametrize("matters", ["lr", "kind", "n"])
def test_the_field_that_alone_decides_has_most_of_the_importance(matters):
    rows = drawn(40)
    values = [
        {"lr": -np.log(row["lr"]), "kind": float(row["kind"] == "a"), "n": 1.0 * row["n"]}[matters] for row in rows
    ]
    found = importances(DOMAINS, rows, values)
    assert next(iter(found)) == matters
    assert found[matters] > 0.8
    assert sum(found.values()) == pytest.approx(1)
    assert found == importances(DOMAINS, rows, values)


def test_of_too_little_nothing_is_said():
    rows = drawn(40)
    assert importances(DOMAINS, rows, [0.5] * 40) == {}
    assert importances(DOMAINS, rows[:3], [0.1, 0.2, 0.3]) == {}
    alike = [{"lr": row["lr"], "kind": "a", "n": 2} for row in rows]
    assert importances(DOMAINS, alike, [row["lr"] for row in alike]) == {}
    assert importances(DOMAINS, rows[:4], [0.1, 0.2, 0.3, 0.4])


def test_few_trials_are_shown_without_importance(tmp_path):
    few = Searched(tmp_path, FEW)
    for number in range(3):
        few.finish(number, few.begin(number))
    few.end()
    results = read_again(few.whole, few.paths)
    found = {name: draw(name, results) for name in SEARCH_FIGURES}
    assert found["search_importance"].figure is None
    assert "at least 2 fields" in found["search_importance"].caption
    assert all(found[name].figure for name in SEARCH_FIGURES if name != "search_importance")
    losses = results.trials["validation_loss"]
    assert results.trials.loc[results.trials["winner"], "validation_loss"].max() == losses.max()  # all three have won
    assert f"{losses.min():.3g}" in " ".join(search_sentences(results))


def test_nothing_but_failures_leaves_words_and_no_figures(results):
    none = dataclasses.replace(
        results,
        trials=results.trials.assign(outcome="failed", winner=False),
        trial_curves=results.trial_curves.iloc[:0],
    )
    assert all(draw(name, none).figure is None for name in SEARCH_FIGURES)


def test_the_sentences_say_what_was_searched_how_and_what_came_of_it(results):
    text = " ".join(search_sentences(results))
    for path in results.experiment.search.space.domains:
        assert path in text
    assert "model.basis.degree < model.basis.num_coefficients" in text
    assert "random search (seed 0), ASHA after 2 epochs at the earliest: the best 1/3 go on" in text
    assert "24 trials (12 finished, 11 stopped, 1 failed)" in text
    assert f"{int(results.trials['evals'].sum()):,} field evaluations" in text
    assert "3 trials won and became 6 jobs" in text
    best = results.trials.loc[results.trials["winner"], "validation_accuracy"].max()
    assert f"{100 * best:.1f} %" in text


def test_the_page_has_a_section_on_the_search_before_the_other_figures(results):
    drawings: dict[str, Drawing] = {name: draw(name, results) for name in (*SEARCH_FIGURES, *FIGURES)}
    text = page(results, drawings, {name: b"png" for name, each in drawings.items() if each.figure}, "")
    headings = re.findall(r"<h[23]>(.*?)</h[23]>", text)
    own = ["What was searched", *(title for title, _ in SEARCH_FIGURES.values()), "All trials"]
    at = headings.index("What was searched")
    assert headings[at : at + 6] == own
    assert headings.index("Is it an ODE?") < at < headings.index(FIGURES["cross_solver"][0])
    numbers = [int(n) for n in re.findall(r"<figcaption>Figure (\d+)\.", text)]
    assert numbers == sorted(numbers)
    table = text[text.index("<h3>All trials</h3>") :]
    rows = re.findall(r"<tr>(.*?)</tr>", table[: table.index("</table>")])[1:]
    assert len(rows) == 24
    assert "RuntimeError: no" in rows[FAILED]
    assert "stopped by ASHA" in rows[0]
    assert [i for i, row in enumerate(rows) if "winner" in row] == sorted(
        results.trials.loc[results.trials["winner"], "trial"]
    )


def test_an_experiment_without_a_search_has_the_page_that_it_had(tmp_path):
    results = results_of(SMALL, tmp_path)
    text = whole_page(results)
    assert results.trials is None
    assert not any(title in text for title, _ in SEARCH_FIGURES.values())
    assert "searched" not in text
    assert "optuna" not in text


LADDER = """
question: From which step on, and is there a better rate?
job:
  data: {name: digits, num_validation: 144}
  model: {network: raw, family: gode, width: 16, basis: {degree: 1, num_coefficients: 4}}
  train: {solver: euler@1, optimiser: adam, lr: 5e-3, epochs: 4, batch_size: 64}
sweep: {train.solver: [euler@1, euler@2, euler@4, euler@8], seed: [0, 1]}
search:
  space: {model.basis.num_coefficients: {choice: [4]}, train.solver: {choice: [euler@16]}, train.lr: RATES}
  num_trials: 1
evaluate_with: {solvers: [euler@1, euler@2, euler@4, euler@8, euler@16, dopri5@1e-6]}
"""


@pytest.mark.parametrize(
    ("rates", "label", "counts"),
    [
        ("{choice: [2e-2]}", "gode-4c-degree1 lr=0.02", (1, 2, 4, 8)),
        ("{choice: [5e-3]}", "gode-4c-degree1", (1, 2, 4, 8, 16)),
    ],
)
def test_a_winner_is_a_rung_of_the_ladder_of_a_sweep_only_if_steps_are_all_that_differs(tmp_path, rates, label, counts):
    found = Searched(tmp_path, LADDER.replace("RATES", rates))
    found.finish(0, found.begin(0))
    make_models(found.end(), found.paths)
    results = read_again(found.whole, found.paths)
    assert results.labels == list(dict.fromkeys(["gode-4c-degree1", label]))
    ((key, ladder),) = results.ladders().items()
    assert (key, ladder.counts) == (("gode-4c-degree1", "euler"), counts)


def test_tables_of_another_search_are_refused(made, results, tmp_path):
    other = Searched(tmp_path, SEARCH.replace("train.lr: {log", "train.weight_decay: {log"))
    for path in (
        "trial_table",
        "trial_curves",
        "table",
        "curves",
        "weight_paths",
        "verdicts",
        "decision_table",
        "trajectory_table",
    ):
        file = Path(getattr(other.paths, path)("found"))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(Path(getattr(made.paths, path)("found")).read_bytes())
    mixed = dataclasses.replace(made.whole, search=other.search)
    with pytest.raises(ValueError, match="of another search"):
        read_results(mixed, other.paths)


@pytest.mark.slow
def test_the_stages_write_the_figures_and_take_away_what_no_longer_belongs(tmp_path):
    few = Searched(tmp_path, FEW)
    for number in range(3):
        few.finish(number, few.begin(number))
    few.end()
    old = Path(few.paths.figures("found"), "search_importance.png")
    old.parent.mkdir(parents=True)
    old.write_bytes(b"of more trials")
    for stage in ("collect", "report"):
        end = run_stage(stage, few.file, "--results", few.paths.root)
        assert end.returncode == 0, end.stderr
    found = {path.stem for path in old.parent.glob("search_*.png")}
    assert found == set(SEARCH_FIGURES) - {"search_importance"}
    assert "What was searched" in Path(few.paths.report("found")).read_text()


def test_a_report_of_no_search_does_not_wait_for_optuna():
    code = "import sys; import pipeline.report, pipeline.collect, pipeline.publish; print('optuna' in sys.modules)"
    end = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert end.stdout.strip() == "False"
