"""Laws of evaluation: the training solver agrees with itself, counts are exact, failures are findings."""

import json
import math
import os
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from small import on_cpu, small_job, write_job

from gode_core.solvers import parse_solver
from pipeline.build import build_network
from pipeline.config import canonical
from pipeline.data import evaluation_batches, load_split
from pipeline.evaluate import evaluate, forget, judge, main
from pipeline.experiment import Judging, load_experiment
from pipeline.finished import is_judged
from pipeline.paths import Paths
from pipeline.records import EvaluationRecord, read_records
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


def test_the_winner_of_a_search_is_judged_like_any_job(trained, tmp_path):
    """By its config.json and the experiment file, which does not name it."""
    config, job, paths = trained
    space = "space: {train.lr: {choice: [1e-3, 5e-3]}}"
    data = json.dumps(canonical(config))
    judges = "evaluate_with: {solvers: [euler@2]}"
    file = tmp_path / "found.yaml"
    file.write_text(f"question: Which?\njob: {data}\nsearch: {{{space}, num_trials: 2}}\n{judges}\n")
    experiment = load_experiment(file)
    assert job not in experiment.jobs
    main(Namespace(experiment=file, configs=[paths.config(job)], done=None, data="data", device="cpu", threads=1))
    (row,) = read_records(EvaluationRecord, paths.evaluation(job, experiment.evaluate_with.id))
    assert (row.job, row.solver, row.agreement) == (job, "euler@2", 1.0)


def test_what_a_resume_needs_is_forgotten_when_the_job_is_judged(tmp_path):
    """And the record of attempts is kept."""
    paths = Paths(str(tmp_path))
    Path(paths.state("job")).mkdir(parents=True)
    for file in (paths.resume("job"), paths.training_so_far("job"), paths.attempts("job")):
        Path(file).write_text("")
    forget("job", paths)
    assert [p.name for p in Path(paths.state("job")).iterdir()] == ["attempts.jsonl"]
    forget("never begun", paths)


def test_judged_is_what_has_all_files_and_none_older_than_the_model(trained, tmp_path):
    """In a batch, what is judged already is left as it is."""
    config, job, paths = trained
    judging = Judging(("euler@3",))
    judge(config, job, judging, paths, "data", torch.device("cpu"))
    assert is_judged(job, judging.id, paths)
    model = Path(paths.model(job))
    later = Path(paths.evaluation(job, judging.id)).stat().st_mtime + 10
    earlier = model.stat().st_mtime
    os.utime(model, (later, later))
    assert not is_judged(job, judging.id, paths)
    os.utime(model, (earlier, earlier))
    Path(paths.trajectories(job, judging.id)).unlink()
    assert not is_judged(job, judging.id, paths)
    assert not is_judged(job, Judging(("euler@5",)).id, paths)


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
