"""The report shows what the records say, all of it, and stands alone."""

import dataclasses
import math
import re
from html.parser import HTMLParser
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from matplotlib.patches import Rectangle
from test_collect import SMALL, change, load, make_results, run_stage

from pipeline import drawing
from pipeline.collect import collect
from pipeline.drawing import Drawing, render
from pipeline.experiment import Experiment
from pipeline.figures import FIGURES, draw
from pipeline.maps import MAX_NUMBERED_ROWS
from pipeline.paths import Paths
from pipeline.records import EvaluationRecord, TrainingRecord, read_records, write_records
from pipeline.report import failures, page, provenance
from pipeline.summary import summary
from pipeline.tables import Results, read_results, standard_error

ADAPTIVE = """
question: Points?
job:
  data: {name: spheres, dimension: 2}
  model: {network: raw, family: neural_ode, width: 8}
  train: {solver: dopri5@1e-4, optimiser: adam, lr: 1e-2, epochs: 5, batch_size: 64}
evaluate_with: {solvers: [dopri5@1e-4]}
"""


def results_of(text: str, folder: Path, spoil=lambda experiment, paths: None) -> Results:
    experiment, paths = load(text, folder), Paths(str(folder / "results"))
    make_results(experiment, paths)
    spoil(experiment, paths)
    return read_again(experiment, paths)


def read_again(experiment: Experiment, paths: Paths) -> Results:
    for path, table in collect(experiment, paths).items():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(path, index=False)
    return read_results(experiment, paths)


def accuracies(results: Results, paths: Paths, label: str, trained_with: str, solver: str) -> list[float]:
    """Of all seeds, from the records alone."""
    judging = results.experiment.evaluate_with
    return [
        row.accuracy
        for job, config in results.experiment.jobs.items()
        if (config.label, config.train.solver) == (label, trained_with)
        for row in read_records(EvaluationRecord, paths.evaluation(job, judging.id))
        if row.solver == solver
    ]


def drawn(results: Results) -> dict[str, Drawing]:
    return {name: draw(name, results) for name in FIGURES}


def whole_page(results: Results, source: str = "") -> str:
    drawings = drawn(results)
    return page(results, drawings, {name: b"png" for name, found in drawings.items() if found.figure}, source)


def test_a_cell_of_the_heat_map_is_the_mean_of_its_records(tmp_path):
    text = SMALL.replace("sweep:", "sweep:\n  train.solver: [euler@4, euler@8]")
    results, paths = results_of(text, tmp_path), Paths(str(tmp_path / "results"))
    figure = draw("cross_solver", results).figure
    assert figure is not None
    blocks = [ax for ax in figure.axes if ax.get_title(loc="left")]
    assert [ax.get_title(loc="left") for ax in blocks] == ["trained with euler@4", "trained with euler@8"]
    for ax, trained_with in zip(blocks, ("euler@4", "euler@8")):
        values = np.asarray(ax.collections[0].get_array()).reshape(2, 3)
        texts = iter([text.get_text() for text in ax.texts])
        for i, label in enumerate(("neural-ode", "gode-3c-degree1")):
            for j, solver in enumerate(("euler@4", "euler@8", "dopri5@1e-5")):
                found = accuracies(results, paths, label, trained_with, solver)
                assert len(found) == 2
                assert values[i, j] == pytest.approx(100 * np.mean(found), abs=1e-9)
                assert next(texts) == f"{100 * np.mean(found):.1f}"
                assert next(texts) == f"±{100 * np.std(found, ddof=1):.1f}"
        (outline,) = [patch for patch in ax.patches if not patch.get_fill()]
        assert isinstance(outline, Rectangle)
        assert (outline.get_x(), outline.get_width()) == (("euler@4", "euler@8").index(trained_with), 1)


def test_the_loss_of_a_job_is_its_own_accuracy_minus_that_under_the_finest_solver(tmp_path):
    results, paths = results_of(SMALL, tmp_path), Paths(str(tmp_path / "results"))
    for job in results.jobs.to_dict("records"):
        rows = read_records(EvaluationRecord, paths.evaluation(job["job"], results.experiment.evaluate_with.id))
        found = {row.solver: row.accuracy for row in rows}
        assert job["accuracy_lost"] == pytest.approx(found["euler@4"] - found["dopri5@1e-5"], abs=1e-12)
    lost = 100 * results.jobs.groupby("model.family")["accuracy_lost"].mean()
    for family in ("neural_ode", "gode"):
        assert f"{family} {lost[family]:.1f} (mean of 2 jobs; " in " ".join(summary(results))


@pytest.mark.parametrize(
    ("solvers", "finest"),
    [
        ("euler@4, dopri5@1e-5, bosh3@1e-4, euler@999", "dopri5@1e-5"),
        ("dopri5@1e-5, bosh3@1e-5, dopri8@1e-4", "bosh3@1e-5"),
        ("euler@4, rk4@4, euler@15", "rk4@4"),
    ],
)
def test_the_finest_solver(tmp_path, solvers, finest):
    text = re.sub(r"solvers: \[.*\]", f"solvers: [{solvers}]", SMALL)
    assert results_of(text, tmp_path).finest == finest


def test_models_that_differ_in_more_than_the_seed_are_not_averaged(tmp_path):
    text = SMALL.replace("sweep:", "sweep:\n  model.width: [8, 16]\n  train.clip_norm: [null, 1.0]")
    results = results_of(text, tmp_path)
    assert len(results.jobs) == 16
    assert len(results.labels) == 8
    assert "gode-3c-degree1 width=8 clip_norm=none" in results.labels
    assert set(results.cells["num_jobs"]) == {2}


def test_what_failed_is_named_and_marked(tmp_path):
    def spoil(experiment: Experiment, paths: Paths) -> None:
        first, second = list(experiment.jobs)[:2]
        change(paths.training(first), TrainingRecord, status="nonfinite", validation_accuracy=None)
        solves = paths.evaluation(second, experiment.evaluate_with.id)
        change(solves, EvaluationRecord, status="budget", num_failed=7, loss=None, logit_gap_mean=None)

    results = results_of(SMALL, tmp_path, spoil)
    first, second, third = list(results.experiment.jobs)[:3]
    box = failures(results)
    assert f"{first}: stopped (nonfinite) in epoch 5" in box
    assert f"{second} under dopri5@1e-5: budget, 7 of 360 samples failed" in box
    assert third not in box
    figure = draw("cross_solver", results).figure
    assert figure is not None
    means = [text.get_text() for text in figure.axes[0].texts if "±" not in text.get_text()]
    assert ["†" in mean for mean in means] == [True, True, True, False, False, False]
    assert box in whole_page(results)


def test_nothing_is_said_to_have_failed_when_nothing_did(tmp_path):
    assert "none failed" in failures(results_of(SMALL, tmp_path))


class Tags(HTMLParser):
    """Which tags stand in a page, what they refer to, and whether all are closed."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.references, self.rows, self.open = set(), [], 0, []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.references += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        self.rows += tag == "tr"
        if tag not in ("meta", "img", "br", "wbr"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_stands_alone_and_all_text_is_escaped(tmp_path):
    nasty = "<script>alert('a & b')</script>"
    results = results_of(SMALL.replace("Does it hold?", nasty), tmp_path)
    html = whole_page(results, source=f"# {nasty} </pre>")
    tags = Tags(html)
    assert tags.open == []
    assert not tags.tags & {"script", "link", "iframe", "object", "base"}
    assert len(tags.references) == len([found for found in drawn(results).values() if found.figure])
    assert all(reference.startswith("data:image/png;base64,") for reference in tags.references)
    assert "http" not in html
    assert "url(" not in html
    assert "@import" not in html
    assert html.count("&lt;script&gt;alert(&#x27;a &amp; b&#x27;)&lt;/script&gt;") == 2
    assert tags.rows == 2 * 1 + len(results.jobs) + 2  # two heads, the jobs, two rows by solver
    for job in results.experiment.jobs:
        assert html.count(f">{job}<") == 1


def test_only_figures_that_are_drawn_have_numbers(tmp_path):
    """In the order of the page."""
    results = results_of(SMALL, tmp_path)
    html = whole_page(results)
    undrawn = [name for name, found in drawn(results).items() if found.figure is None]
    assert {"validity", "order"} <= set(undrawn)
    numbers = [int(n) for n in re.findall(r"<figcaption>Figure (\d+)\.", html)]
    assert numbers == list(range(1, len(FIGURES) - len(undrawn) + 1))


def test_who_does_not_see_a_figure_is_told_its_panels_and_axes(tmp_path):
    alts = re.findall(r'<img alt="([^"]*)"', whole_page(results_of(SMALL, tmp_path)))
    assert not set(alts) & {title for title, _ in FIGURES.values()}
    assert "1 panel: trained with euler@4. Across: field evaluations per solve. Upwards: test accuracy (%)." in alts
    across = "Across: depth t. Upwards: weight θ(t)."
    assert f"4 panels, from conv2.weight[0], euler@4 to conv2.weight[21], euler@4. {across}" in alts


def test_heads_of_tables_say_that_they_head_columns(tmp_path):
    heads = re.findall(r"<th\b[^>]*>", whole_page(results_of(SMALL, tmp_path)))
    assert heads
    assert all('scope="col"' in head for head in heads)


@pytest.mark.parametrize(
    ("versions", "words"),
    [
        ([None], "not noted"),
        (["2.13.0+cpu"], "2.13.0+cpu"),
        (["2.13.0+cpu", None], "2.13.0+cpu; not noted for 1 job"),
        (["2.9.0 2.13.0", "2.13.0"], "2.13.0 and 2.9.0: not one for all, so rows may differ by more than their jobs"),
    ],
)
def test_the_torch_of_the_trainings_is_told_from_that_of_the_report(tmp_path, versions, words):
    results = results_of(SMALL, tmp_path)
    jobs = list(results.experiment.jobs)[: len(versions)]
    table = results.table[results.table["job"].isin(jobs)]
    table = table.assign(train_torch=table["job"].map(dict(zip(jobs, versions))))
    found = provenance(dataclasses.replace(results, table=table))
    assert found["torch of the trainings"] == words
    assert found["torch of this report"] == metadata.version("torch")
    assert "torch" not in found


@pytest.mark.parametrize("code", ["123456789012", "012345678901", "12345678e901"])
def test_a_fingerprint_of_digits_is_no_number(tmp_path, code):
    def spoil(experiment: Experiment, paths: Paths) -> None:
        for path in Path(paths.root).rglob("*.jsonl"):
            path.write_text(path.read_text().replace("c0de", code))

    found = provenance(results_of(SMALL, tmp_path, spoil))
    assert {found[f"code of the {kind} rows"] for kind in ("training", "evaluation")} == {code}


def test_each_model_has_the_samples_that_it_was_judged_on(tmp_path):
    """Data sets may be swept over: here the better model has fewer."""

    def spoil(experiment: Experiment, paths: Paths) -> None:
        for job, config in experiment.jobs.items():
            path = paths.evaluation(job, experiment.evaluate_with.id)
            rows = read_records(EvaluationRecord, path)
            many = 360 if config.model.family == "gode" else 36_000
            write_records(path, [dataclasses.replace(row, num_samples=many) for row in rows])

    results = results_of(SMALL, tmp_path)
    assert "judged on the 360 samples of the test split" in summary(results)[0]
    accuracy = results.jobs[results.jobs["model.family"] == "gode"]["accuracy_own"].mean()
    results = results_of(SMALL, tmp_path, spoil)
    assert "judged on the 360 to 36000 samples of the test split" in summary(results)[0]
    assert "(gode-3c-degree1, trained with euler@4; 2 seeds)" in summary(results)[1]
    error = 100 * standard_error(accuracy, 360)
    assert f"standard error of one job is {error:.1f} points" in summary(results)[1]


def test_one_job_judged_by_its_own_adaptive_solver(tmp_path):
    results = results_of(ADAPTIVE, tmp_path)
    drawings = drawn(results)
    assert {name for name, found in drawings.items() if found.figure} == {"cross_solver", "cost", "weights"}
    for found in drawings.values():
        assert found.caption.endswith(".")
    html = whole_page(results)
    assert "1 job (1 model, 1 training solver, 1 seed each) was judged" in html
    assert "dopri5@1e-4 is a training solver itself" in html
    assert "nan" not in html.lower()


def test_a_training_that_stopped_at_once_has_no_curve_but_a_report(tmp_path):
    def spoil(experiment: Experiment, paths: Paths) -> None:
        for job in experiment.jobs:
            path = Path(paths.training(job))
            path.write_text(path.read_text().splitlines()[0] + "\n")
            change(str(path), TrainingRecord, status="nonfinite", train_loss=None, validation_accuracy=None)
            change(
                paths.evaluation(job, experiment.evaluate_with.id),
                EvaluationRecord,
                accuracy=0.0,
                num_failed=360,
                status="nonfinite",
                loss=None,
                logit_gap_mean=None,
                logit_gap_max=None,
            )

    results = results_of(SMALL, tmp_path, spoil)
    assert draw("training", results).figure is None
    assert "the training of 4 of 4 jobs stopped" in whole_page(results)
    assert "not finite" in " ".join(summary(results))


def test_hundreds_of_jobs_are_drawn_without_numbers_and_lines_left_out_are_confessed(tmp_path):
    widths = list(range(1, MAX_NUMBERED_ROWS + 2))
    text = SMALL.replace("  model: [{family: neural_ode}, {family", f"  model.width: {widths}\n  model: [{{family")
    results = results_of(text, tmp_path)
    assert len(results.jobs) == 2 * len(widths) > 100
    figure = draw("cross_solver", results).figure
    assert figure is not None
    assert len(figure.axes[0].get_yticklabels()) == len(widths)
    assert not figure.axes[0].texts
    assert f"The first 16 of {len(widths)} models are drawn" in draw("cost", results).caption


@pytest.mark.parametrize("name", ["step", "coefficients", "cost", "training"])
def test_training_solvers_that_a_picture_has_no_room_for_are_confessed(tmp_path, monkeypatch, name):
    monkeypatch.setattr(drawing, "MAX_PANELS", 6)
    text = SMALL.replace("sweep:", f"sweep:\n  train.solver: {[f'euler@{n}' for n in range(2, 10)]}")
    results = results_of(text, tmp_path)
    found = draw(name, results)
    assert found.figure is not None
    assert len([ax for ax in found.figure.axes if ax.get_title()]) == 6
    assert "The first 6 of 8 training solvers are drawn; the table holds all." in found.caption


def test_the_largest_figure_is_not_too_large_for_matplotlib():
    assert drawing.MAX_PANELS * 3.4 * 200 < 65_536  # inches of a panel and its share of the rest, pixels of an inch


def test_more_methods_than_markers_are_drawn(tmp_path):
    fixed = ("euler", "midpoint", "heun", "ralston", "ssprk3", "kutta3", "rk4", "rk4_38", "ab2", "ab3", "ab4")
    methods = [f"{method}@4" for method in (*fixed, "leapfrog", "backward_euler", "trapezoid")]
    methods += [f"{method}@1e-4" for method in ("bosh3", "dopri5", "dopri8", "fehlberg2", "adaptive_heun")]
    assert len(methods) > 2 * len(drawing.MARKERS)
    text = re.sub(r"solvers: \[.*\]", f"solvers: [{', '.join(methods)}]", SMALL)
    assert draw("cost", results_of(text, tmp_path)).figure is not None


def test_models_of_one_family_that_are_not_alike_have_a_line_each(tmp_path):
    kinds = ("{kind: linear}", "{kind: path, basis: {degree: 1, num_coefficients: 4}}")
    evolving = ", ".join(f"{{family: evolving, evolution: {kind}}}" for kind in kinds)
    results = results_of(SMALL.replace("[{family: neural_ode},", f"[{evolving},"), tmp_path)
    figure = draw("coefficients", results).figure
    assert figure is not None
    (box,) = figure.legends
    assert [text.get_text() for text in box.get_texts()][:3] == ["evolving-linear", "evolving-path", "degree 1"]


def test_the_standard_error_is_that_of_a_share():
    counted = np.random.default_rng(0).binomial(360, 0.9, 20_000) / 360
    assert standard_error(0.9, 360) == pytest.approx(counted.std(), rel=0.03)
    assert standard_error(1.0, 360) == 0
    assert math.isclose(standard_error(0.5, 100) * 2, standard_error(0.5, 25))


def test_a_table_of_another_experiment_file_is_refused(tmp_path):
    results = results_of(SMALL, tmp_path)
    more = load(SMALL.replace("euler@8", "euler@16"), tmp_path)
    assert more.name == results.experiment.name
    with pytest.raises(ValueError, match="holds other jobs or solvers"):
        read_results(more, Paths(str(tmp_path / "results")))


def test_the_same_figure_gives_the_same_files(tmp_path):
    results = results_of(ADAPTIVE, tmp_path)
    first, second = (render(found) for found in (draw("cross_solver", results).figure for _ in range(2)) if found)
    assert first == second
    assert first["png"].startswith(b"\x89PNG")
    assert first["pdf"].startswith(b"%PDF")


def test_the_stage_writes_a_page_and_figures_and_clears_those_that_no_longer_belong(tmp_path):
    results_of(ADAPTIVE, tmp_path)
    paths = Paths(str(tmp_path / "results"))
    stale = Path(paths.figures("small")) / "step.png"
    stale.parent.mkdir()
    stale.write_text("old")
    done = run_stage("report", tmp_path / "small.yaml", "--results", paths.root)
    assert done.returncode == 0, done.stderr
    files = {path.name for path in stale.parent.iterdir()}
    assert files == {f"{name}.{suffix}" for name in ("cross_solver", "cost", "weights") for suffix in ("png", "pdf")}
    assert Path(paths.report("small")).read_text().startswith("<!DOCTYPE html>")
