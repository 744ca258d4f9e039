"""Laws of the verdict: its counts are exact, an ODE is one under every fine solver, and coarse ones say nothing."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from on_spheres import SPHERES, own_labels, point_job, scaled, tallies_of, verdict
from small import small_job, write_job
from torch import Tensor

from gode_core.networks import Prediction
from gode_core.solution import Solution, Status
from gode_core.solvers import parse_solver
from pipeline import checkpoint
from pipeline.build import build_network
from pipeline.data import load_split
from pipeline.evaluate import judge, trained_with
from pipeline.experiment import Judging
from pipeline.paths import Paths
from pipeline.records import (
    EvaluationRecord,
    PathRecord,
    TrainingRecord,
    ValidityRecord,
    read_records,
    write_records,
)
from pipeline.verdicts import Geometry, Shares, verdict_of

LIMIT = "dopri5@1e-6"
FINE = ("euler@128", "euler@256", "euler@512", "rk4@32", LIMIT)


@pytest.mark.parametrize(
    ("scale", "own", "limit", "max_steps"),
    [
        (1.5, "euler@2", LIMIT, 1000),
        (1.5, "dopri5@1e-1", LIMIT, 1000),
        (1.5, "euler@2", LIMIT, 4),
        (5.0, "euler@2", "euler@300", 1000),
        (5.0, "euler@300", "euler@64", 1000),
    ],
    ids=["fixed steps", "adaptive", "a limit given up", "points lost in the limit", "points lost in training"],
)
def test_counts_are_those_of_a_recount_over_the_whole_split(scale, own, limit, max_steps):
    """Each point by itself."""
    judging = Judging(("euler@7", "rk4@2", limit), max_steps=max_steps, limit=limit)
    network, split = scaled(point_job(), scale), load_split(point_job().data, "test", "data")
    parts = [(split.images[i : i + 100], split.labels[i : i + 100]) for i in range(0, len(split), 100)]
    logits, good = {}, {}
    with torch.no_grad():
        for name in (*judging.solvers, own):
            found = [network.predict(images, parse_solver(name), max_steps=max_steps) for images, _ in parts]
            logits[name] = torch.cat([prediction.logits for prediction in found])
            ended = [torch.full((100,), p.solutions[0].stopped is None) for p in found]
            good[name] = torch.cat(ended) & torch.isfinite(logits[name]).all(1)
    right = {name: (logits[name].argmax(1) == split.labels) & good[name] for name in logits}
    for name, tally in tallies_of(network, own, judging, parts).items():
        pairs = list(zip(right[own].tolist(), right[name].tolist()))
        assert (tally.lost, tally.gained) == (pairs.count((True, False)), pairs.count((False, True)))
        assert (tally.correct, tally.failed) == (right[name].sum(), (~good[name]).sum())
        assert tally.lost - tally.gained == right[own].sum() - right[name].sum()
        if (good[name] & good[limit]).all():
            gap = (logits[name].double() - logits[limit].double()).abs().mean().item()
            assert tally.limit_gap == pytest.approx(gap, rel=1e-4)
        else:
            assert tally.limit_gap is None


@pytest.mark.parametrize(("scale", "limit"), [(1.5, LIMIT), (5.0, "euler@300")])
def test_points_are_lost_gained_and_failed_above(scale, limit):
    """So that it is no comparison of zeros."""
    split = load_split(point_job().data, "test", "data")
    network, judging = scaled(point_job(), scale), Judging((limit,))
    tally = tallies_of(network, "euler@2", judging, [(split.images, split.labels)])[limit]
    assert min(tally.lost, tally.gained) > 50
    assert (0 < tally.failed < 1000) == (limit == "euler@300")


def test_a_net_whose_euler_steps_are_nearly_exact_is_an_ode():
    row = verdict("euler@64", FINE, 0.5)
    assert row.verdict == "ode"
    assert -row.margin <= row.gap_low <= row.gap <= row.gap_high <= row.margin
    assert (row.num_finer, row.limit, row.limit_check) == (4, LIMIT, "rk4@32")
    assert row.limit_check_gap < row.logit_gap


def test_a_net_that_is_right_under_one_large_step_alone_is_discrete():
    row = verdict("euler@1", FINE, 2.0)
    assert (row.verdict, row.accuracy) == ("discrete", 1.0)
    assert row.limit_accuracy == row.agreement < 0.8
    assert row.gap == pytest.approx(row.accuracy - row.limit_accuracy)
    assert row.gap_low > row.margin
    assert row.reason.startswith("in the limit, ")


def test_a_net_whose_limit_leaves_the_numbers_is_discrete():
    """The flow was followed to where it ends: that is a finding."""
    row = verdict("euler@1", (LIMIT,), 8.0)
    assert (row.verdict, row.limit_accuracy, row.logit_gap) == ("discrete", 0.0, None)


def test_a_limit_that_was_given_up_decides_nothing():
    row = verdict("euler@1", FINE, 2.0, max_steps=2)
    assert row.verdict == "undecided"
    assert "was given up" in row.reason


def test_nothing_is_said_of_points_that_the_training_solver_itself_loses():
    """Where both fail, both are wrong, and agree: no reason to call a net an ODE."""
    row = verdict("euler@64", (LIMIT,), 8.0)
    assert (row.accuracy, row.limit_accuracy, row.gap) == (0.0, 0.0, 0.0)
    assert row.verdict == "undecided"
    assert "1000 of 1000 solves failed under euler@64" in row.reason


def test_the_limit_does_not_judge_itself():
    row = verdict(LIMIT, FINE, 0.5)
    assert row.verdict == "undecided"
    assert f"{LIMIT}, the finest solver judged with, is not known to be finer than {LIMIT}" in row.reason
    assert (row.logit_gap, row.agreement, row.limit_check) == (0.0, 1.0, "rk4@32")


@pytest.mark.parametrize(
    ("own", "solvers"),
    [("euler@64", ("euler@4", "euler@16")), ("rk4@16", ("euler@16", "euler@64")), ("dopri5@1e-4", ("dopri5@1e-2",))],
)
def test_a_limit_that_is_coarser_than_the_training_decides_nothing(own, solvers):
    row = verdict(own, solvers, 2.0)
    assert (row.verdict, row.ode_within) == ("undecided", None)
    assert f"the finest solver judged with, is not known to be finer than {own}" in row.reason


@pytest.mark.parametrize(
    ("own", "limit", "scale", "why"),
    [
        ("dopri5@1e-6", "euler@16", 2.0, "is not known to be finer than dopri5@1e-6"),
        ("dopri5@1e-2", "trapezoid@4", 2.0, "is not known to be finer than dopri5@1e-2"),
        ("rk4@64", "dopri5@1e-1", 3.0, "is too loose: of an adaptive limit the tolerance must be at most 0.001"),
        ("dopri5@1e-1", "dopri5@1e-2", 3.0, "is too loose"),
    ],
)
def test_a_limit_that_nothing_shows_to_be_one_decides_nothing(own, limit, scale, why):
    """An adaptive solver has no steps to compare with; and a tolerance as large as the margin moves as many samples."""
    row = verdict(own, (limit,), scale)
    assert abs(row.gap) > row.margin
    assert (row.verdict, row.ode_within) == ("undecided", None)
    assert why in row.reason


@pytest.mark.parametrize(("limit", "scale", "gap"), [("midpoint@32", 4.0, 0.464), ("euler@65", 2.0, 0.0)])
def test_a_limit_that_a_finer_solver_contradicts_decides_nothing(limit, scale, gap):
    """Neither that the net is discrete nor that it is an ODE: rk4@64 is farther from it than the training solver."""
    row = verdict("euler@64", ("rk4@64", limit), scale, limit=limit)
    assert row.gap == pytest.approx(gap)
    assert (row.limit_check, row.limit_check_gap > row.logit_gap) == ("rk4@64", True)
    assert row.verdict == "undecided"


def test_the_check_of_the_limit_is_no_coarser_than_the_training():
    """However near to the limit it comes."""
    row = verdict("rk4@16", ("euler@1000", "rk4@4", "rk4@32", LIMIT), 0.5)
    assert row.limit_check == "rk4@32"
    assert verdict("rk4@16", ("euler@1000", "rk4@4", LIMIT), 0.5).limit_check is None


class Said:
    """In place of a network: it says the class `says[solver]` of each sample, or nothing where that is -1, since its
    solve was lost as `lost_as`."""

    def __init__(self, says: dict[str, Tensor], num_classes: int, lost_as: Status = "nonfinite"):
        self.says, self.num_classes, self.lost_as = says, num_classes, lost_as

    def eval(self) -> None:
        pass

    def predict(self, images: Tensor, solver, max_steps: int) -> Prediction:
        said = self.says[str(solver)][: len(images)]
        logits = torch.nn.functional.one_hot(said.clamp(min=0), self.num_classes).float()
        logits[said == -1] = math.nan
        return Prediction(logits, [Solution(logits, [], 1, 1, lost_as=self.lost_as)])


def said(own: Tensor, limit: Tensor, labels: Tensor, num_classes: int = 2, **options) -> ValidityRecord:
    judging, network = Judging((LIMIT,)), Said({"euler@64": own, LIMIT: limit}, num_classes, **options)
    tallies = tallies_of(network, "euler@64", judging, [(torch.zeros(len(labels), 1, 2), labels)])  # type: ignore[arg-type]
    return verdict_of(tallies, "euler@64", judging, Geometry(Shares(), []), "job")


CLASSES = torch.arange(1000) % 2


@pytest.mark.parametrize(("share", "answer"), [(0.5, "undecided"), (0.52, "undecided"), (0.53, "ode"), (0.9, "ode")])
def test_a_net_that_is_no_better_than_a_guess_is_nothing(share, answer):
    """Whatever its logits do: all solvers agree about nothing. 0.5 + 1.645 sqrt(0.25 / 1000) = 0.526."""
    says = torch.where(torch.arange(1000) < round(1000 * share), CLASSES, 1 - CLASSES)
    row = said(says, says, CLASSES)
    assert (row.gap, row.accuracy, row.verdict) == (0.0, share, answer)
    assert (row.ode_within is None) == ("no better than a guess" in row.reason) == (answer == "undecided")


def test_a_guess_is_the_commonest_class():
    """Of 1000 samples 700 are of one: 0.71 is no knowledge."""
    labels = (torch.arange(1000) >= 700).long()
    says = (torch.arange(1000) >= 990).long()
    row = said(says, says, labels)
    assert (row.accuracy, row.verdict) == (0.71, "undecided")
    assert "no better than a guess" in row.reason


@pytest.mark.parametrize("num_right", [0, 500])
def test_a_net_that_knows_nothing_may_be_discrete(num_right):
    """It then depends on the solver, which no ODE does."""
    says = torch.where(torch.arange(1000) < num_right, CLASSES, 1 - CLASSES)
    row = said(says, CLASSES, CLASSES)
    assert (row.verdict, row.ode_within) == ("discrete", None)


def test_nothing_is_said_of_points_that_the_limit_loses():
    """Though the accuracies agree: the training solver has these wrong."""
    labels, lost = torch.arange(1000) % 10, torch.arange(1000) >= 500
    row = said(labels.where(~lost, 9 - labels), labels.where(~lost, -1), labels, num_classes=10)
    assert (row.accuracy, row.limit_accuracy, row.gap) == (0.5, 0.5, 0.0)
    assert (row.verdict, row.ode_within) == ("undecided", None)
    assert f"500 of 1000 solves failed under {LIMIT}" in row.reason


@pytest.mark.parametrize(("lost_as", "answer"), [("unconverged", "undecided"), ("nonfinite", "discrete")])
def test_samples_that_the_limit_did_not_solve_are_no_finding(lost_as, answer):
    """Those that left the numbers are."""
    row = said(CLASSES, CLASSES.where(torch.arange(1000) >= 40, -1), CLASSES, lost_as=lost_as)
    assert (row.gap, row.verdict) == (0.04, answer)
    assert ("was given up" in row.reason) == (answer == "undecided")


def test_one_point_that_leaves_the_numbers_is_one_point():
    """The other 999 of its batch are followed to the end."""
    network, split = scaled(point_job(), 0.5), load_split(point_job().data, "test", "data")
    images, judging = split.images.clone(), Judging((LIMIT,))
    labels, images[7] = own_labels(network, images, "euler@64"), 3e38
    tallies = tallies_of(network, "euler@64", judging, [(images, labels)])
    row = verdict_of(tallies, "euler@64", judging, Geometry(Shares(), []), "job")
    assert tallies[LIMIT].failed == 1
    assert (tallies[LIMIT].status, row.verdict) == ("nonfinite", "ode")


@pytest.mark.parametrize(("scale", "own", "answer"), [(0.5, "euler@64", "ode"), (2.0, "euler@4", "discrete")])
def test_coarser_judges_change_nothing(scale, own, answer):
    """However wrong they are."""
    few, more = (verdict(own, solvers, scale) for solvers in (FINE, ("euler@1", "euler@2", "midpoint@1", *FINE)))
    assert few == more
    assert few.verdict == answer


def test_the_limit_is_the_one_that_was_named():
    fine, coarse = (verdict("euler@64", ("euler@1", *FINE), 2.0 / 3, limit=limit) for limit in (LIMIT, "euler@1"))
    assert (fine.limit, coarse.limit) == (LIMIT, "euler@1")
    assert coarse.logit_gap > 10 * fine.logit_gap
    assert coarse.limit_accuracy < fine.limit_accuracy


@pytest.mark.parametrize(("own", "order"), [("euler@16", 1), ("midpoint@1", 2)])
def test_the_output_comes_to_the_limit_at_the_order_of_the_method(own, order):
    method, _, least = own.partition("@")
    ladder = tuple(f"{method}@{int(least) << k}" for k in range(5))
    row = verdict(own, (*ladder, LIMIT), 0.5)
    assert row.method == method
    assert row.num_orders >= 3
    assert row.order == pytest.approx(order, abs=0.1)
    assert row.order_error < 0.1


def test_the_order_is_fitted_to_steps_of_the_method_from_the_training_step_on():
    ladder = ("euler@16", "euler@32", "euler@64", "euler@128", "euler@256", "rk4@16", LIMIT)
    row, other = (verdict("euler@16", (*more, *ladder), 1.0) for more in ((), ("euler@1", "euler@8", "midpoint@16")))
    assert (row.order, row.order_error, row.num_orders) == (other.order, other.order_error, other.num_orders)
    assert row.num_orders == 5


def test_no_step_counts_in_the_order_whose_error_may_be_that_of_the_limit():
    """euler@256 tells how near that is known to be, and euler@128 is only twice as far from it."""
    ladder = ("euler@16", "euler@32", "euler@64", "euler@128", "euler@256", LIMIT)
    row = verdict("euler@16", ladder, 1.0)
    assert (row.limit_check, row.num_orders) == ("euler@256", 3)


def test_no_order_without_three_steps_or_fixed_ones():
    for own, solvers in (("euler@64", ("euler@128", LIMIT)), ("dopri5@1e-3", FINE)):
        row = verdict(own, solvers, 0.5)
        assert (row.method, row.order, row.order_error, row.num_orders) == (None, None, None, 0)


# The stage


def judged(config, network, tmp_path, judging: Judging, ended: str | None = None) -> tuple[Paths, str]:
    """The files of a job whose training is over: a model, and the solver that it ended with."""
    paths, job = write_job(tmp_path, config)
    checkpoint.save_model(paths.model(job), config, network)
    numbers = (2, 16, 1e-3, 0.5, 0.5, None, None, 2.0, "ok")
    write_records(paths.training(job), [TrainingRecord(job, "c0de", *numbers, solver=ended)])
    judge(config, job, judging, paths, "data", torch.device("cpu"))
    return paths, job


def test_a_job_gets_one_row_and_the_solver_of_its_training_need_not_be_asked_for(tmp_path):
    judging = Judging(("rk4@32", LIMIT))
    paths, job = judged(point_job(solver="euler@64"), scaled(point_job(), 0.5), tmp_path, judging)
    (row,) = read_records(ValidityRecord, paths.validity(job, judging.id))
    found = {each.solver: each for each in read_records(EvaluationRecord, paths.evaluation(job, judging.id))}
    assert list(found) == ["rk4@32", LIMIT]
    assert (row.job, row.solver, row.limit, row.num_samples) == (job, "euler@64", LIMIT, 1000)
    assert row.limit_accuracy == found[LIMIT].accuracy
    assert row.agreement == found[LIMIT].agreement
    for each in found.values():
        assert each.num_lost - each.num_gained == round(1000 * (row.accuracy - each.accuracy))
    assert found[LIMIT].limit_gap == 0.0
    assert read_records(PathRecord, paths.trajectories(job, judging.id)) == []  # none was asked for


def test_the_rows_are_json_without_nan(tmp_path):
    judging = Judging(("euler@1", "euler@300"), num_paths=4, num_drawn=4)
    paths, job = judged(point_job(solver="euler@64"), scaled(point_job(), 8.0), tmp_path, judging)
    for path in paths.judged(job, judging.id):
        lines = Path(path).read_text().splitlines()
        assert lines
        for line in lines:
            json.loads(line, parse_constant=pytest.fail)


@pytest.mark.parametrize("ended", ["euler@37", "rk4@32"])
def test_an_adapted_job_is_judged_as_the_solver_that_it_ended_with(tmp_path, ended):
    """Which gets a row of its own, and none twice."""
    config = point_job(solver="euler@500", adapt={"rule": "step"})
    judging = Judging(("euler@1", "rk4@32", LIMIT))
    paths, job = judged(config, scaled(config, 0.5), tmp_path, judging, ended)
    found = read_records(EvaluationRecord, paths.evaluation(job, judging.id))
    assert [row.solver for row in found] == [*judging.solvers, *(["euler@37"] if ended == "euler@37" else [])]
    (own,) = [row for row in found if row.solver == ended]
    assert (own.agreement, own.logit_gap_max, own.num_lost, own.num_gained) == (1.0, 0.0, 0, 0)
    (row,) = read_records(ValidityRecord, paths.validity(job, judging.id))
    assert (row.solver, row.accuracy) == (ended, own.accuracy)


def test_without_a_rule_the_solver_is_the_one_of_the_file(tmp_path):
    """Whatever a record says: its phases may have had others."""
    paths, job = write_job(tmp_path, point_job())
    assert trained_with(point_job(), job, paths) == parse_solver("euler@2")


@pytest.mark.parametrize("data", [None, SPHERES], ids=["digits", "points"])
def test_a_discrete_net_has_no_verdict_and_no_paths(tmp_path, data):
    """Between its layers is nothing."""
    model = {"family": "lm_resnet"} | ({"pad_channels": None} if data else {})
    config = small_job(data=data, model=model, solver="layers@2")
    judging = Judging(("euler@1", LIMIT), num_paths=4, num_drawn=4)
    paths, job = judged(config, build_network(config), tmp_path, judging)
    assert read_records(ValidityRecord, paths.validity(job, judging.id)) == []
    assert read_records(PathRecord, paths.trajectories(job, judging.id)) == []
    (row,) = read_records(EvaluationRecord, paths.evaluation(job, judging.id))
    assert (row.solver, row.agreement, row.num_lost, row.num_gained) == ("layers@2", 1.0, 0, 0)


def test_what_the_paths_show_stands_in_the_row():
    shares = Shares(7, 0.25, 0.5, 1.5, -0.5)
    judging, split = Judging(("euler@1", LIMIT)), load_split(point_job().data, "test", "data")
    tallies = tallies_of(scaled(point_job(), 0.5), "euler@64", judging, [(split.images, split.labels)])
    row = verdict_of(tallies, "euler@64", judging, Geometry(shares, []), "job")
    assert vars(shares).items() <= vars(row).items()
