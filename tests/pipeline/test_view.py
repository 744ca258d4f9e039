"""What MLflow is to show of verdicts and of solvers that changed in training."""

import dataclasses
from pathlib import Path

from made import make_models
from test_judgement import ADAPTED, ENDED, LADDER
from test_report import load

from pipeline.paths import Paths
from pipeline.records import DecisionRecord, TrainingRecord, ValidityRecord, read_records, write_records
from pipeline.view import VALIDITY, find_views, read_job_content


def contents(text, folder, **law):
    experiment, paths = load(text, folder), Paths(str(folder / "results"))
    make_models(experiment, paths, **law)
    for job in experiment.jobs:
        Path(paths.model(job)).write_bytes(b"weights")
    source = folder / "of.yaml"
    source.write_text(text)
    _, *jobs = find_views(experiment, source, paths, following=False)
    return experiment, paths, {view.name: (view, read_job_content(view, experiment.jobs[view.name])) for view in jobs}


def test_a_job_shows_its_verdict_and_the_numbers_behind_it(tmp_path):
    experiment, paths, shown = contents(LADDER, tmp_path)
    for job, (view, content) in shown.items():
        (row,) = read_records(ValidityRecord, paths.validity(job, experiment.evaluate_with.id))
        assert (content.tags["verdict"], content.tags["verdict_reason"]) == (row.verdict, row.reason)
        points = {point.name: point.value for point in content.measures if point.name.endswith("/validity")}
        numbers = {name: getattr(row, name) for name in VALIDITY}
        assert points == {f"{name}/validity": value for name, value in numbers.items() if value is not None}
        assert Path(paths.validity(job, experiment.evaluate_with.id)).name in view.files


def test_a_job_that_adapts_shows_its_steps_as_a_curve(tmp_path):
    experiment, paths, shown = contents(ADAPTED, tmp_path, ended=ENDED)
    for job, (view, content) in shown.items():
        rows = read_records(TrainingRecord, paths.training(job))
        curve = [(p.step, p.value) for points in content.curves for p in points if p.name == "num_steps"]
        chosen = [(row.step, float((row.solver or "").partition("@")[2])) for row in rows]
        assert curve == (chosen if experiment.jobs[job].train.adapt else [])
        assert "decisions.jsonl" in view.files


def test_another_decision_is_another_digest(tmp_path):
    experiment, paths, shown = contents(ADAPTED, tmp_path, ended=ENDED)
    job = next(job for job, config in experiment.jobs.items() if config.train.adapt)
    before = shown[job][0].digest
    rows = read_records(DecisionRecord, paths.decisions(job))
    write_records(paths.decisions(job), [dataclasses.replace(rows[0], reason="another"), *rows[1:]])
    after = {view.name: view.digest for view in find_views(experiment, tmp_path / "of.yaml", paths, False)}
    assert after[job] != before
