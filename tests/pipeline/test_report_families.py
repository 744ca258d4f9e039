"""The report of what is not a plain ODE under one solver: discrete nets, and trainings of several phases."""

import re
from dataclasses import replace

import pytest
from test_collect import change
from test_report import drawn, results_of, whole_page

from pipeline.records import TrainingRecord, read_records, write_records
from pipeline.summary import summary

DISCRETE = """
question: Deep?
job:
  data: {name: digits, num_validation: 144}
  model: {network: raw, family: resnet, width: 8}
  train: {solver: layers@2, optimiser: adam, lr: 5e-3, epochs: 5, batch_size: 64}
sweep:
  train.solver: [layers@2, layers@4]
evaluate_with: {solvers: []}
"""
ODE = "{model: {family: neural_ode}, train: {solver: euler@4}}"
MIXED = DISCRETE.replace("train.solver: [layers@2, layers@4]", f"job: [{{}}, {ODE}]")
MIXED = MIXED.replace("solvers: []", "solvers: [euler@4, rk4@8]")
PHASES = """
question: Coarse to fine?
job:
  data: {name: digits, num_validation: 144}
  model: {network: raw, family: gode, width: 8, basis: {degree: 3, num_coefficients: 8}}
  train:
    {solver: rk4@4, optimiser: adam, lr: 5e-3, epochs: 5, batch_size: 64, phases: [{until: 3, solver: euler@4}]}
sweep: {seed: [0, 1]}
evaluate_with: {solvers: [euler@4, rk4@4]}
"""


def text_of(results) -> str:
    return re.sub("<[^>]*>", " ", whole_page(results))


def test_a_discrete_net_is_judged_by_its_own_layers_alone_and_the_page_says_so(tmp_path):
    results = results_of(MIXED, tmp_path)
    assert list(results.table[results.table["model.family"] == "resnet"]["solver"]) == ["layers@2"]
    assert results.solvers == ["euler@4", "rk4@8", "layers@2"]
    assert results.finest == "rk4@8"
    text = text_of(results)
    assert "The nets of layers@2 are discrete: between their layers is no ODE" in text
    assert "empty: a discrete net" in drawn(results)["cross_solver"].caption
    titles = [ax.get_title() + ax.get_title(loc="left") for ax in drawn(results)["step"].figure.axes]
    assert any("trained with euler@4" in title for title in titles)
    assert not any("layers@2" in title for title in titles)


def test_an_experiment_of_discrete_nets_alone_needs_no_solver(tmp_path):
    results = results_of(DISCRETE, tmp_path)
    assert results.finest == ""
    assert not any("finest solver" in sentence for sentence in summary(results))
    text = text_of(results)
    assert "under none" in text
    assert "hollow" not in drawn(results)["coefficients"].caption


def converted(experiment, paths) -> None:
    """In epoch 4, from 0.9 to 0.6 and 0.5; the first job is as good again in epoch 5, the second never."""
    for job, (at_once, then) in zip(experiment.jobs, ((0.6, 0.95), (0.5, 0.8))):
        rows = read_records(TrainingRecord, paths.training(job))
        values = [0.3, 0.6, 0.9, 0.7, then]
        rows = [
            TrainingRecord(**{**vars(row), "validation_accuracy": v, "solver": "rk4@4"}) for row, v in zip(rows, values)
        ]
        write_records(paths.training(job), rows[:4])
        change(paths.training(job), TrainingRecord, converted_accuracy=at_once, converted_error=0.25)
        write_records(paths.training(job), [*read_records(TrainingRecord, paths.training(job)), rows[4]])


def test_what_a_conversion_lost_and_when_it_was_repaired(tmp_path):
    results = results_of(PHASES, tmp_path, converted)
    (sentence,) = [s for s in summary(results) if "carried over" in s]
    assert "at once 35.0 points of validation accuracy are lost (mean of 2 jobs; 30.0 to 40.0)" in sentence
    assert "the largest relative error of a weight is 0.25" in sentence
    assert "reached again after 2 epochs and not by the end in 1 job." in sentence
    drawing = drawn(results)["training"]
    assert "Hollow" in drawing.caption
    hollow = [line for line in drawing.figure.axes[0].lines if line.get_markerfacecolor() == "white"]
    assert sorted(xy for line in hollow for xy in zip(*line.get_data())) == [(3, 50), (3, 60)]


GROWING = PHASES.replace(
    "[{until: 3, solver: euler@4}]",
    "[{until: 1, solver: rk4@4, basis: {degree: 0, num_coefficients: 1}}, "
    "{until: 3, solver: rk4@4, basis: {degree: 3, num_coefficients: 4}}]",
)


def test_each_conversion_has_a_sentence_though_the_solver_stays(tmp_path):
    """The basis alone grows, twice: from 0.6 to 0.5, and from 0.8 to 0.4."""

    def grown(experiment, paths) -> None:
        for job in experiment.jobs:
            rows = read_records(TrainingRecord, paths.training(job))
            values = zip((0.6, 0.7, 0.8, 0.7, 0.9), (None, 0.5, None, 0.4, None))
            rows = [
                replace(row, validation_accuracy=value, solver="rk4@4", converted_accuracy=at_once)
                for row, (value, at_once) in zip(rows, values)
            ]
            write_records(
                paths.training(job),
                [r if r.converted_accuracy is None else replace(r, converted_error=0.1) for r in rows],
            )

    first, second = [s for s in summary(results_of(GROWING, tmp_path, grown)) if "carried over" in s]
    assert first.startswith("gode-8c-degree3, carried over to rk4@4 (conversion 1): at once 10.0 points of validation")
    assert second.startswith("gode-8c-degree3, carried over to rk4@4 (conversion 2): at once 40.0 points of validation")
    assert all("(mean of 2 jobs; " in sentence for sentence in (first, second))


def sparse(experiment, paths) -> None:
    """Records of epochs 3, the end of a phase, 5, 10 and 12 of 12: the accuracy of before is seen again in the last."""
    for job in experiment.jobs:
        row = read_records(TrainingRecord, paths.training(job))[0]
        values = {3: 0.9, 5: 0.7, 10: 0.8, 12: 0.95}
        rows = [
            replace(
                row, epoch=epoch, step=20 * epoch, validation_accuracy=value, solver="euler@4" if epoch < 4 else "rk4@4"
            )
            for epoch, value in values.items()
        ]
        rows[1] = replace(rows[1], converted_accuracy=0.5, converted_error=0.25)
        write_records(paths.training(job), rows)


def test_epochs_without_a_record_count_until_the_repair_is_seen(tmp_path):
    text = PHASES.replace("epochs: 5", "epochs: 12, record_every: 5")
    (sentence,) = [s for s in summary(results_of(text, tmp_path, sparse)) if "carried over" in s]
    assert sentence.endswith("the accuracy of before is seen again after 9 epochs (records are 5 epochs apart).")


@pytest.mark.parametrize("failed", [1, 2])
def test_a_conversion_after_which_no_solve_ended_is_counted(tmp_path, failed):
    """It is the worst case."""

    def spoil(experiment, paths) -> None:
        converted(experiment, paths)
        for job in list(experiment.jobs)[:failed]:
            rows = read_records(TrainingRecord, paths.training(job))[:4]
            write_records(paths.training(job), rows)
            values = {"status": "nonfinite", "validation_accuracy": None, "converted_accuracy": None}
            change(paths.training(job), TrainingRecord, **values)

    results = results_of(PHASES, tmp_path, spoil)
    (sentence,) = [s for s in summary(results) if "carried over" in s]
    begin = "gode-8c-degree3, carried over to rk4@4: "
    error = "the largest relative error of a weight is 0.25"
    if failed == 1:
        assert sentence == (
            f"{begin}in 1 of 2 jobs the solve right after it fails, and the training ends; else at once 40.0 points "
            f"of validation accuracy are lost (mean of 1 job; 40.0 to 40.0), {error}, and the accuracy of before is "
            "reached again not by the end in 1 job."
        )
    else:
        assert sentence == f"{begin}in 2 of 2 jobs the solve right after it fails, and the training ends; {error}."
    assert "nan" not in whole_page(results).lower()


def losses(experiment, paths) -> None:
    """The first job comes to 0.2 in its last epoch, the second in its third."""
    for job, values in zip(experiment.jobs, ([1, 0.9, 0.8, 0.5, 0.2], [1, 0.5, 0.2, 0.1, 0.15])):
        rows = read_records(TrainingRecord, paths.training(job))
        write_records(paths.training(job), [replace(row, train_loss=v) for row, v in zip(rows, values)])


def test_how_soon_each_model_reaches_what_all_reach(tmp_path):
    text = DISCRETE.replace("train.solver: [layers@2, layers@4]", "model: [{}, {family: lm_resnet}]")
    (sentence,) = [s for s in summary(results_of(text, tmp_path, losses)) if "at some time" in s]
    assert "comes to a training loss of 0.2 at some time" in sentence
    assert sentence.endswith("by model: lm-resnet 3.0, resnet 5.0.")


def test_a_label_says_what_most_of_its_jobs_do_not_share(tmp_path):
    """Three of four have the usual width, one has random ends too."""
    more = "job: [{}, {train: {random_end: 0.5}}, {model: {width: 9}}, {train: {kinetic: 0.1}}]"
    text = DISCRETE.replace("train.solver: [layers@2, layers@4]", more).replace("family: resnet", "family: neural_ode")
    text = text.replace("solver: layers@2", "solver: euler@4").replace("solvers: []", "solvers: [euler@4]")
    results = results_of(text, tmp_path)
    assert results.labels == ["neural-ode", "neural-ode random_end=0.5", "neural-ode width=9", "neural-ode kinetic=0.1"]


def test_trainings_of_one_phase_have_no_such_sentence(tmp_path):
    results = results_of(PHASES, tmp_path)
    assert not any("carried over" in s for s in summary(results))
    assert "Hollow" not in drawn(results)["training"].caption


@pytest.mark.parametrize("text", [MIXED, DISCRETE, PHASES], ids=["mixed", "discrete", "phases"])
def test_every_figure_is_drawn_or_says_why_not(text, tmp_path):
    for drawing in drawn(results_of(text, tmp_path)).values():
        assert drawing.caption
