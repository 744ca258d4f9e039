"""Laws of evaluation: the training solver agrees with itself, counts are exact, failures are findings."""

import json
import math
from pathlib import Path

import pytest
import torch
from small import on_cpu, small_job, write_job

from gode_core.solvers import parse_solver
from pipeline.build import build_network
from pipeline.data import evaluation_batches, load_split
from pipeline.evaluate import MOST_KEPT, evaluate, forget, judge
from pipeline.experiment import Judging
from pipeline.paths import Paths
from pipeline.records import AttemptRecord, EvaluationRecord, read_records
from pipeline.train import train

SOLVERS = ("euler@2", "euler@7", "rk4@2", "dopri5@1e-3")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    config = small_job(epochs=4)
    paths, job = write_job(tmp_path_factory.mktemp("results"), config)
    train({job: config}, paths, on_cpu(), lambda: False)
    return config, job, paths


def rows(trained, **options):
    config, job, paths = trained
    judging = Judging(**({"solvers": SOLVERS} | options))
    judge(config, job, judging, paths, "data", torch.device("cpu"))
    return read_records(EvaluationRecord, paths.evaluation(job, judging.id))


def test_a_row_per_solver_over_the_whole_split(trained):
    found = rows(trained)
    assert [row.solver for row in found] == list(SOLVERS)
    assert all(row.num_samples == 360 and row.num_failed == 0 and row.status == "ok" for row in found)
    assert [row.num_evals for row in found[:3]] == [2, 7, 8]
    assert found[3].num_evals > 8
    assert found[3].num_accepted >= 1


def test_what_a_resume_needs_is_kept_only_if_it_is_small(tmp_path):
    """Up to a mebibyte: beside a new seed, such a job is asked for again and must not be trained again."""
    paths = Paths(str(tmp_path))
    for job, size in (("small", MOST_KEPT), ("large", MOST_KEPT + 1)):
        Path(paths.state(job)).mkdir(parents=True)
        Path(paths.resume(job)).write_bytes(b"0" * size)
        Path(paths.training_so_far(job)).write_text("")
        forget(job, paths)
        assert [p.name for p in Path(paths.state(job)).iterdir()] == ["resume.pt"] * (job == "small")
    forget("never begun", paths)


def test_judged_again_it_is_not_trained_again(trained):
    config, job, paths = trained
    first = rows(trained)
    before = Path(paths.model(job)).read_bytes()
    train({job: config}, paths, on_cpu(), lambda: False)
    assert read_records(AttemptRecord, paths.attempts(job))[-1].from_step == 16
    assert Path(paths.model(job)).read_bytes() == before
    assert [row.accuracy for row in rows(trained)] == [row.accuracy for row in first]


def test_the_training_solver_agrees_with_itself(trained):
    own, other = rows(trained)[:2]
    assert (own.agreement, own.logit_gap_max, own.logit_gap_mean) == (1.0, 0.0, 0.0)
    assert other.logit_gap_max > 0
    assert other.logit_gap_mean <= other.logit_gap_max


def test_numbers_do_not_depend_on_the_batches(trained):
    """Fixed steps treat each sample alone; batches of 7 leave a smaller last one."""
    for whole, parts in zip(rows(trained)[:3], rows(trained, batch_size=7)[:3]):
        assert (whole.accuracy, whole.agreement, whole.num_samples) == (
            parts.accuracy,
            parts.agreement,
            parts.num_samples,
        )
        assert whole.loss == pytest.approx(parts.loss, rel=1e-5)
        assert whole.logit_gap_mean == pytest.approx(parts.logit_gap_mean, rel=1e-4)


def test_accuracy_by_hand(trained):
    config, job, paths = trained
    from pipeline import checkpoint

    network = build_network(config)
    checkpoint.load_model(paths.model(job), network)
    split = load_split(config.data, "test", "data")
    (batch,) = evaluation_batches(split, config.data, batch_size=1000, device="cpu")
    predicted = network(batch[0], parse_solver("rk4@2")).argmax(1)
    assert rows(trained)[2].accuracy == (predicted == batch[1]).sum().item() / 360


def test_validation_split(trained):
    assert all(row.num_samples == 50 and row.split == "validation" for row in rows(trained, split="validation"))


def test_a_spent_budget_is_a_row(trained):
    found = rows(trained, solvers=("dopri5@1e-5", "euler@2"), max_steps=1)
    assert (found[0].status, found[0].num_failed, found[0].accuracy) == ("budget", 360, 0.0)
    assert found[0].loss is None
    assert found[1].status == "ok"


def test_a_solve_that_blows_up_is_a_row():
    config = small_job()
    network = build_network(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(30)
    split = load_split(config.data, "validation", "data")
    batches = evaluation_batches(split, config.data, batch_size=20, device="cpu")
    solvers = [parse_solver(text) for text in ("euler@200", "dopri5@1e-3")]
    tallies = evaluate(network, parse_solver("euler@2"), solvers[1], solvers, batches, 200)
    for tally in map(tallies.get, solvers):
        assert tally.status != "ok"
        assert tally.samples == 50
        assert tally.failed > 0
        assert tally.correct <= 50 - tally.failed


def test_nothing_agrees_with_a_training_solver_that_failed():
    config = small_job()
    split = load_split(config.data, "validation", "data")
    batches = evaluation_batches(split, config.data, batch_size=50, device="cpu")
    trained_with, fine = parse_solver("dopri5@1e-5"), parse_solver("euler@4")
    tally = evaluate(build_network(config), trained_with, fine, [fine], batches, max_steps=1)[fine]
    assert (tally.status, tally.failed, tally.agreed) == ("ok", 0, 0)


def test_rows_are_json_without_nan(trained):
    config, job, paths = trained
    judging = Judging(solvers=("dopri5@1e-5",), max_steps=1)
    judge(config, job, judging, paths, "data", torch.device("cpu"))
    with open(paths.evaluation(job, judging.id)) as file:
        (row,) = [json.loads(line, parse_constant=lambda name: pytest.fail(name)) for line in file]
    assert row["loss"] is None
    assert math.isfinite(row["accuracy"])


def test_no_images_to_judge_on_is_an_error(tmp_path):
    config = small_job(data={"num_validation": 0}, epochs=1)
    paths, job = write_job(tmp_path, config)
    train({job: config}, paths, on_cpu(), lambda: False)
    with pytest.raises(ValueError, match="no validation images"):
        judge(config, job, Judging(solvers=SOLVERS, split="validation"), paths, "data", torch.device("cpu"))
