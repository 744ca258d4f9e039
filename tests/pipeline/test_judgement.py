"""What verdicts come to: the critical step of a known ladder, solvers of a training's own, numbers in print."""

import dataclasses
import re
from pathlib import Path

import pytest
from made import CRITICAL, EPOCHS, STEPS, make_models
from test_collect import change, load
from test_report import drawn, read_again, whole_page

from pipeline import tables
from pipeline.comparison import compare, comparisons, training_evals
from pipeline.experiment import Published
from pipeline.figures import draw
from pipeline.judgement import sentences, verdict_table
from pipeline.ladders import Ladder, find_ladders
from pipeline.paths import Paths
from pipeline.records import EvaluationRecord, TrainingRecord, ValidityRecord, read_records, write_records
from pipeline.summary import summary
from pipeline.tables import OWN, Results

SPHERES = """
question: From which step on?
job:
  data: {name: spheres, dimension: 2}
  model: {network: raw, family: neural_ode, width: 8}
  train: {solver: euler@1, optimiser: adam, lr: 1e-2, epochs: 4, batch_size: 64}
"""
JUDGED = """
evaluate_with:
  solvers: [euler@1, euler@2, euler@4, euler@8, euler@16, euler@32, euler@64, rk4@1, rk4@2, rk4@4, rk4@8, dopri5@1e-6]
  num_paths: 20
  num_drawn: 5
"""
LADDER = f"""{SPHERES}
sweep:
  train.solver: [euler@16, euler@1, euler@4, euler@8, euler@2, euler@32, rk4@1, rk4@2, rk4@4]
  seed: [0, 1]
{JUDGED}"""
ADAPTED = f"""{SPHERES}
sweep:
  train:
    - {{solver: euler@4}}
    - {{solver: euler@8}}
    - {{solver: euler@500, adapt: {{rule: step}}}}
    - {{solver: euler@500, adapt: {{rule: agreement}}}}
  data: [{{num_validation: 100}}]
  seed: [0, 1, 2]
{JUDGED}"""
ENDED = {0: "euler@37", 1: "euler@32", 2: "euler@5"}  # the second was asked for too; the third is too coarse


def models(text: str, folder: Path, spoil=lambda experiment, paths: None, **law) -> Results:
    """law: see made.make_models."""
    experiment, paths = load(text, folder), Paths(str(folder / "results"))
    make_models(experiment, paths, **law)
    spoil(experiment, paths)
    return read_again(experiment, paths)


@pytest.fixture(scope="module")
def ladder(tmp_path_factory):
    """Not to be changed."""
    return models(LADDER, tmp_path_factory.mktemp("ladder"))


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    """Not to be changed."""
    return models(ADAPTED, tmp_path_factory.mktemp("adapted"), ended=ENDED)


def verdict(kind: str, *solvers: str, seed: int | None = None):
    """A spoiler: these models, trained with `solvers`, have another verdict."""

    def spoil(experiment, paths: Paths) -> None:
        for job, config in experiment.jobs.items():
            if config.train.solver in solvers and seed in (None, config.seed):
                change(paths.validity(job, experiment.evaluate_with.id), ValidityRecord, verdict=kind)

    return spoil


def ladders(results: Results, margin: float | None = None) -> list[Ladder]:
    return list(results.ladders(margin).values())


def published(measure, low: float, high: float, *of: str, margin: float | None = None) -> Published:
    return Published("It", measure, low, high, "A paper", of, margin)


def test_the_critical_step_of_a_ladder_is_where_its_law_puts_it(ladder):
    found = {ladder.method: ladder for ladder in ladders(ladder)}
    assert {name: ladder.counts for name, ladder in found.items()} == {"euler": (1, 2, 4, 8, 16, 32), "rk4": (1, 2, 4)}
    for name, ladder in found.items():
        assert (ladder.critical.coarser, ladder.critical.num_steps) == (CRITICAL[name] // 2, CRITICAL[name])
        assert {each.num_steps for each in ladder.by_seed.values()} == {CRITICAL[name]}
    assert found["rk4"].evals == {1: 4, 2: 8, 4: 16}


@pytest.mark.parametrize(("steps", "next_one"), [("1, euler@2, euler@32", "euler@8"), ("1, euler@4, euler@8", "")])
def test_a_wide_bracket_says_what_to_train_with_next(tmp_path, steps, next_one):
    """By bisection among the powers of two; nothing where none lies between."""
    text = LADDER.replace("[euler@16, euler@1, euler@4, euler@8, euler@2, euler@32,", f"[euler@{steps},")
    found = next(each for each in sentences(models(text, tmp_path)) if "trained with euler: the critical step" in each)
    assert ("; to narrow it, train with " in found) == bool(next_one)
    assert f"to narrow it, train with {next_one};" in found or not next_one


def test_all_seeds_together_need_the_finest_step_that_one_needs(tmp_path):
    results = models(LADDER, tmp_path, critical={("euler", 0): 16, ("euler", 1): 4, "rk4": 1})
    euler, rk4 = ladders(results)
    assert (euler.critical.coarser, euler.critical.num_steps) == (8, 16)
    assert {seed: each.num_steps for seed, each in euler.by_seed.items()} == {0: 16, 1: 4}
    text = " ".join(sentences(results))
    assert "the critical step lies between 1/8 and 1/16, 8 and 16 field evaluations per solve" in text
    assert (
        "at the coarser one, of 2 seeds 1 discrete; taken one by one, the seeds are ODEs from 1/4 to 1/16 on." in text
    )
    assert rk4.critical.coarser is None
    assert "neural-ode trained with rk4: already the coarsest step, 1/1, gives an ODE" in text


def test_a_solve_goes_through_all_blocks_of_a_net(tmp_path):
    """Three of them, of eight steps each."""
    data, model = "data: {name: digits}", "model: {network: stages, field: preactivation, family: neural_ode, width: 4}"
    text = re.sub(r"data: .*", data, re.sub(r"model: .*", model, LADDER)).replace(
        "  num_paths: 20\n  num_drawn: 5\n", ""
    )
    results = models(text, tmp_path)
    assert ladders(results)[0].evals[8] == 24
    assert "between 1/4 and 1/8, 12 and 24 field evaluations per solve" in " ".join(sentences(results))
    found = compare(results, published("critical_evals", 13, 20, "method=euler"))
    assert (found.agrees, found.ours) == (
        *(True, "more than 12, at most 24 evaluations (2 seeds; one by one 24 are enough)"),
    )


def within(solver: str, value: float):
    """Makes the models of a training solver ODEs from this margin on, and not at their own."""

    def spoil(experiment, paths) -> None:
        for job, config in experiment.jobs.items():
            if config.train.solver == solver:
                path = paths.validity(job, experiment.evaluate_with.id)
                change(path, ValidityRecord, verdict="discrete", ode_within=value)

    return spoil


def test_a_wider_margin_has_a_critical_step_of_its_own(tmp_path):
    """8 steps are enough; then the law is broken at 8: there gaps of up to 4 points must be allowed."""
    results = models(LADDER, tmp_path, within("euler@8", 0.04))
    assert ladders(results)[0].critical.num_steps == 16
    assert ladders(results, margin=0.04)[0].critical.num_steps == 8
    assert ladders(results, margin=0.0399)[0].critical.num_steps == 16
    assert compare(results, published("critical_evals", 4, 8, "method=euler")).agrees is False
    wide = published("critical_evals", 4, 8, "method=euler", margin=0.05)
    assert compare(results, wide).agrees
    results = dataclasses.replace(results, experiment=dataclasses.replace(results.experiment, published=(wide,)))
    assert "With gaps of up to 5.0 points allowed, every seed is one at 1/8, not at 1/4." in " ".join(
        sentences(results)
    )


def test_ladders_are_found_once_for_each_margin_however_many_there_are(tmp_path, monkeypatch):
    """Each of six asks for all, in the figure and in the sentences."""
    asked = []

    def counted(rows, margin):
        asked.append(margin)
        return find_ladders(rows, margin)

    monkeypatch.setattr(tables, "find_ladders", counted)
    wide = "{claim: C, measure: critical_evals, margin: 0.05, low: 4, high: 8, source: S, of: [model.width=3]}"
    text = LADDER.replace("seed: [0, 1]", "model.width: [3, 4, 5]")
    results = models(f"{text}\npublished: [{wide}]\n", tmp_path)
    assert len(ladders(results)) == 3 * 2
    assert draw("cross_solver", results).figure
    assert len(sentences(results)) == 2 + 6
    assert asked == [None, 0.05]


def test_a_ladder_that_is_not_monotone_says_so(tmp_path):
    results = models(LADDER, tmp_path, verdict("undecided", "euler@16", seed=1))
    euler = ladders(results)[0]
    assert (euler.critical.coarser, euler.critical.num_steps) == (16, 32)
    text = " ".join(sentences(results))
    assert "of 2 seeds 1 undecided; coarser yet, 1/8 gave an ODE, which does not count" in text


def test_a_ladder_that_ends_too_soon_has_no_critical_step(tmp_path):
    results = models(LADDER, tmp_path, verdict("discrete", "euler@32", seed=0))
    assert ladders(results)[0].critical.num_steps is None
    text = " ".join(sentences(results))
    assert "not even the finest step, 1/32, gives an ODE for every seed (of 2 seeds 1 discrete)" in text
    assert "ODEs from 1/8 on, 1 of 2 nowhere on the ladder" in text
    found = compare(results, published("critical_evals", 64, 128, "method=euler"))
    assert found.agrees is None
    assert "ends too soon" in found.ours
    below = compare(results, published("critical_evals", 4, 16, "method=euler"))
    assert below.agrees is False
    assert below.verdict == "ours lies above it by 16 evaluations"


def test_a_training_solver_that_was_not_judged_with_has_the_accuracy_of_its_verdict(tmp_path):
    """And stands where others do: among the best, in the losses, as a ring."""
    text = re.sub(r"  solvers: .*", "  solvers: [euler@1, euler@2, euler@4, euler@8, euler@64, dopri5@1e-6]", LADDER)
    few, whole = (models(each, tmp_path).jobs for each in (text, LADDER))
    results = models(text, tmp_path)
    for name in ("accuracy_own", "accuracy_lost"):
        assert list(few[name]) == list(whole[name])
    assert set(few.loc[few["train.solver"] == "rk4@2", "num_evals_own"]) == {20}  # of a step of its last epoch
    assert "(neural-ode, trained with euler@16; 2 seeds)" in summary(results)[1]  # the first of equals
    assert list(rings("cost", results, "trained with rk4@2")) == [(20, 98)]
    steps = [x for x, _ in rings("order", results, "neural-ode, trained with euler,\ntested with euler")]
    assert sorted(1 / x for x in steps) == [1, 2, 4, 8, 16, 32]
    text = text.replace(
        "euler@16, euler@1, euler@4, euler@8, euler@2, euler@32, rk4@1, rk4@2, rk4@4", "euler@32, rk4@2"
    )
    html = whole_page(models(text, tmp_path))  # no ladder
    assert "Trained with rk4@2 and then solved with dopri5@1e-6, the loss of accuracy in points is, by family" in html
    assert "nan" not in html.lower()


def rings(name: str, results: Results, title: str) -> list[tuple[float, float]]:
    figure = draw(name, results).figure
    assert figure is not None
    (ax,) = [ax for ax in figure.axes if ax.get_title() == title]
    hollow = [line for line in ax.lines if line.get_markersize() in (8, 9)]
    return [xy for line in hollow for xy in zip(*line.get_data())]


def test_two_step_counts_are_no_ladder(tmp_path):
    results = models(re.sub(r"train.solver: .*", "train.solver: [euler@4, euler@8]", LADDER), tmp_path)
    assert ladders(results) == []
    found = compare(results, published("critical_evals", 1, 2))
    assert (found.agrees, found.ours) == (None, "no model was trained with one method at 3 step counts")


def test_verdicts_are_counted_and_the_orders_are_those_of_the_methods(tmp_path):
    results = models(LADDER, tmp_path, verdict("undecided", "euler@8", seed=1))
    table = verdict_table(results).set_index("train.solver")
    assert list(table.loc["euler@8", ["num_jobs", "ode", "discrete", "undecided"]]) == [2, 1, 0, 1]
    assert list(table.loc["euler@1", ["num_jobs", "ode", "discrete", "undecided"]]) == [2, 0, 2, 0]
    assert table.loc["euler@1", "gap"] == pytest.approx(0.48)
    assert table.loc["euler@1", "gap_low"] < 0.48 < table.loc["euler@1", "gap_high"]
    assert table.loc["euler@8", "gap"] == 0
    assert table.loc["euler@4", "order"] == pytest.approx(1)
    assert table.loc["rk4@2", "order"] == pytest.approx(4)
    assert list(table.loc[["euler@4", "rk4@2"], "method_order"]) == [1, 4]
    assert "Of 18 trained models, 9 are ODEs, 8 discrete nets in disguise and 1 undecided" in sentences(results)[0]


def test_solvers_that_trainings_came_to_are_one_cell(adapted):
    results = adapted
    assert results.labels == ["neural-ode", "neural-ode rule=step", "neural-ode rule=agreement"]
    assert results.solvers[-1] == OWN
    assert results.solvers[:-1] == list(results.experiment.evaluate_with.solvers)
    own = results.cells[results.cells["solver"] == OWN]
    assert list(own["num_jobs"]) == [3, 3]
    assert set(own["trained_with"]) == {OWN}
    changed = results.jobs[results.jobs["trained_with"] == OWN]
    assert list(changed["solved_with_own"]) == [ENDED[seed] for seed in changed["seed"]]
    asked = results.cells[(results.cells["solver"] == "euler@32") & (results.cells["train.solver"] == "euler@500")]
    assert list(asked["num_jobs"]) == [3, 3]  # the one that ended with it among them
    rows = len(results.experiment.jobs) * 12 + 2 * 2
    assert len(results.evaluations) == rows  # each solve once
    assert len(results.table) == rows + 2
    assert results.trained("euler@500") == "euler@500, adapted"
    assert results.trained("euler@8") == "euler@8"
    assert "nan" not in whole_page(results).lower()


def test_the_most_steps_that_a_rule_may_come_to_are_no_ladder(tmp_path):
    most = ", ".join(f"{{solver: euler@{n}, adapt: {{rule: step}}}}" for n in (100, 200, 500))
    results = models(f"{SPHERES}\nsweep: {{train: [{most}]}}\n{JUDGED}", tmp_path, ended=ENDED)
    assert len(results.validity) == 3
    assert results.labels == ["neural-ode"]
    assert ladders(results) == []


def test_a_job_that_does_not_adapt_is_trained_with_its_solver(ladder):
    results = ladder
    assert OWN not in results.solvers
    assert (results.table["trained_with"] == results.table["train.solver"]).all()


def test_a_rule_shows_in_the_label_and_what_goes_with_it_does_not(tmp_path):
    text = ADAPTED.replace("adapt: {rule: agreement}", "adapt: {rule: step, every: 25}")
    labels = models(text, tmp_path, ended=ENDED).labels
    assert labels == ["neural-ode", "neural-ode rule=step every=50", "neural-ode rule=step every=25"]


def test_numbers_in_print_that_ours_agree_with(ladder):
    results = ladder
    found = compare(results, published("critical_evals", 5, 7, "method=euler"))
    assert found.agrees
    assert found.ours == "more than 4, at most 8 evaluations (2 seeds; one by one 8 are enough)"
    assert found.sentence == f"It: A paper gives 5 to 7 evaluations, and we find {found.ours}: they agree."
    accuracy = compare(results, published("critical_accuracy", 0.975, 0.985, "method=euler"))
    assert (accuracy.agrees, accuracy.ours) == (True, "98.0 ± 0.0 % (2 seeds, euler@8)")
    assert compare(results, published("share_ode", 0.45, 0.55, "method=euler")).ours == "6 of 12"
    assert (
        compare(results, published("share_crossing", 0.1, 0.2, "train.solver=euler@1")).ours == "25.0 ± 0.0 % (2 seeds)"
    )
    assert compare(results, published("share_folded", 0.4, 0.4, "train.solver=euler@1", "seed=1")).agrees


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(8, 16, "ours lies below it"), (10, 16, "ours lies below it by 2 evaluations"), (1, 3, "ours lies above it by 1"),
     (1, 4, "ours lies above it")],
)  # fmt: skip
def test_a_bracket_that_only_touches_does_not_agree(ladder, low, high, words):
    found = compare(ladder, published("critical_evals", low, high, "method=euler"))
    assert found.agrees is False
    assert found.verdict.startswith(words)


def test_an_accuracy_that_misses_says_by_how_much(tmp_path):
    def spoil(experiment, paths) -> None:
        for job, config in experiment.jobs.items():
            if config.train.solver == "euler@8":  # 0.97 and 0.99: 0.98 +- 0.0141
                path = paths.evaluation(job, experiment.evaluate_with.id)
                rows = read_records(EvaluationRecord, path)
                other = [dataclasses.replace(row, accuracy=0.97 + 0.02 * config.seed) for row in rows]
                write_records(path, [b if a.solver == "euler@8" else a for a, b in zip(rows, other)])

    results = models(LADDER, tmp_path, spoil)
    found = compare(results, published("accuracy", 0.5, 0.95, "train.solver=euler@8"))
    assert found.ours == "98.0 ± 1.4 % (2 seeds)"
    assert found.verdict == "ours lies above it by 1.6 points"
    assert compare(results, published("accuracy", 0.5, 0.966, "train.solver=euler@8")).agrees


def test_evaluations_of_a_training_are_weighted_by_steps(adapted):
    """40, 20, 20, 20 a step; then records that stand for unequal numbers of steps."""
    results = adapted
    rules = results.jobs.set_index("job")["train.adapt.rule"]
    assert set(training_evals(results)[rules.isna()]) == {25.0}
    first = results.curves["epoch"] == 1
    longer = results.curves.assign(step=results.curves["step"].where(first, results.curves["step"] + 400))
    evals = training_evals(dataclasses.replace(results, curves=longer))  # 100 steps of 40 and 700 of 20
    assert set(evals[rules.isna()]) == {(100 * 40 + 700 * 20) / 800}


def test_evaluations_of_a_training_that_adapts_are_counted_step_by_step(adapted):
    """A check comes after its step, and is paid for; the first decision comes before the first step."""
    evals, decisions = training_evals(adapted), adapted.decisions
    for job, rows in decisions.groupby("job"):
        total, chosen = int(rows["num_evals"].sum()), dict(zip(rows["step"], rows["next_solver"]))
        solver = rows["next_solver"].iloc[0]
        for step in range(STEPS * EPOCHS):
            total += int(solver.partition("@")[2])
            solver = chosen.get(step, solver) if step else solver
        assert evals[job] == total / (STEPS * EPOCHS)
    found = compare(adapted, published("training_evals", 1, 1000, "train.adapt.rule=step"))
    assert found.agrees
    assert found.ours.endswith("(3 seeds, evaluations)")


def test_trainings_that_stopped_or_learned_nothing_count_and_are_named(tmp_path):
    def spoil(experiment, paths) -> None:
        for job, config in experiment.jobs.items():
            if config.train.solver != "euler@500" and config.seed == 0:
                change(paths.training(job), TrainingRecord, status="nonfinite")
            if config.train.solver != "euler@500" and config.seed == 1:
                path = paths.evaluation(job, experiment.evaluate_with.id)
                write_records(
                    path, [dataclasses.replace(r, accuracy=0.52) for r in read_records(EvaluationRecord, path)]
                )

    results = models(ADAPTED, tmp_path, spoil, ended=ENDED)
    found = compare(results, published("accuracy", 0.9, 0.99, "train.solver=euler@8"))
    assert found.ours == "82.7 ± 26.6 % (3 seeds)"
    assert found.remark == "Of 3 trainings 1 stopped and 1 learned nothing; without them we find 98.0 % (1 seed)."
    assert found.sentence.endswith(found.remark)


def test_jobs_are_chosen_by_columns(ladder, adapted):
    results = adapted
    assert "(6 jobs)" in compare(results, published("accuracy", 0, 1, "train.adapt.rule=none")).ours
    assert "(12 jobs)" in compare(results, published("accuracy", 0, 1, "method=euler", "model.width=8.0")).ours
    assert compare(results, published("accuracy", 0, 1, "seed=9")).ours == "no job has seed=9"
    with pytest.raises(
        ValueError, match=r"no column `train.adapt.rul` in the table. Did you mean `train.adapt.rule`\?"
    ):
        compare(results, published("accuracy", 0, 1, "train.adapt.rul=step"))
    two = compare(ladder, published("critical_evals", 1, 2))
    assert two.ours.startswith("there are 2 ladders; `of` must choose one")


def test_a_switch_is_chosen_as_it_is_written_in_yaml(tmp_path):
    text = LADDER.replace("seed: [0, 1]", "model.time_channel: [true, false]")
    results = models(text, tmp_path)
    for word, number in (("true", 1), ("false", 1), ("True", 1), ("1", 0)):
        chosen = published("accuracy", 0, 1, f"model.time_channel={word}", "train.solver=euler@8")
        ours = compare(results, chosen).ours
        assert ours == ("98.0 % (1 seed)" if number else f"no job has {' and '.join(chosen.of)}")


def test_the_page_answers_whether_it_is_an_ode(tmp_path):
    told = "{claim: 'Less & more', measure: critical_evals, low: 5, high: 7, source: S, of: [method=euler]}"
    results = models(f"{LADDER}\npublished: [{told}]\n", tmp_path, verdict("undecided", "euler@16", seed=1))
    html = whole_page(results)
    section = html[html.index("<h2>Is it an ODE?</h2>") : html.index("<h2>Accuracy under other solvers</h2>")]
    assert html.index("What was found") < html.index("Is it an ODE?")
    assert section.count("<tr>") == 1 + 1 + 1 + 9  # two heads, one claim, nine training solvers
    assert "Less &amp; more<small>S</small>" in section
    assert "ours lies above it by 9 evaluations" in section  # 16 to 32
    assert section.count("<li>") == 1
    assert "euler16-seed1" in section
    assert "never counts against a model" in section
    assert "nan" not in section.lower()
    assert len(comparisons(results)) == 1


def test_the_table_of_jobs_has_the_verdict_of_each_and_the_margin_that_it_needs(tmp_path):
    results = models(LADDER, tmp_path, within("euler@8", 0.04))
    html = whole_page(results)
    table = html[html.index("<h2>All jobs</h2>") :]
    found = {row["job"]: row for row in results.validity.to_dict("records")}
    for row in re.findall(r"<tr>(.*?)</tr>", table[: table.index("</table>")])[1:]:
        cells = re.findall(r"<td.*?>(.*?)</td>", row)
        verdict = found[cells[0]]
        assert cells[-3:-1] == [verdict["verdict"], f"{100 * verdict['ode_within']:.1f}"]
        assert found.pop(cells[0])
    assert not found
    assert "An ODE within" in table


def test_undecided_models_beyond_the_first_ten_are_counted(tmp_path):
    names = [f"euler@{n}" for n in (1, 2, 4, 8, 16, 32)]
    html = whole_page(models(LADDER, tmp_path, verdict("undecided", *names)))
    assert "and 2 more: see the column reason of validity.csv" in html
    undecided = html[html.index("Undecided:") :]
    assert undecided[: undecided.index("</ul>")].count("<li>") == 10 + 1


def test_rows_of_a_ladder_are_not_told_twice(ladder):
    text = " ".join(summary(ladder))
    assert "the loss of accuracy in points is" not in text
    assert "the critical step lies between 1/4 and 1/8" in text


def test_figures_without_verdicts_say_why(tmp_path):
    def spoil(experiment, paths) -> None:
        for job in experiment.jobs:
            write_records(paths.validity(job, experiment.evaluate_with.id), [])
            write_records(paths.trajectories(job, experiment.evaluate_with.id), [])

    results = models(LADDER, tmp_path, spoil)
    figures = drawn(results)
    for name in ("validity", "trajectories", "decisions"):
        assert figures[name].figure is None
        assert figures[name].caption.endswith(".")
    assert figures["cross_solver"].figure is not None
    assert "No model of this experiment" in whole_page(results)
    assert EPOCHS == 4
