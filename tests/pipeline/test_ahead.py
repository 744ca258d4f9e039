"""What a run has still to do, and why, in words."""

from pathlib import Path

import pytest
from driven import Snakemake, arguments
from places import Places
from searched import Searched
from test_progress import ago

from pipeline import resume
from pipeline.ahead import FEW, how_brief, what_runs
from pipeline.progress import standing


@pytest.fixture
def places(tmp_path):
    return Places(tmp_path)


def lines(places):
    return what_runs(standing(places.experiment, places.paths), places.paths)


def brief(places):
    return how_brief(standing(places.experiment, places.paths), places.paths)


def test_before_anything_is_done(places):
    assert lines(places) == ["To train: 4 jobs: 4 never begun.", "To judge: 4 jobs."]


def test_each_job_has_one_reason(places):
    stopped, failed, lacking, never = places.jobs
    places.attempt(stopped, "interrupted", "SIGTERM", to_step=42)
    places.attempt(failed, "failed", "RuntimeError: no", to_step=105)
    places.judge(lacking)
    places.attempt(lacking, to_step=210)
    Path(places.paths.weights(lacking)).unlink()
    reasons = "1 never begun; 2 stopped or failed, to go on from epoch 2 to 5; 1 finished, but lacking a file"
    assert lines(places) == [f"To train: 4 jobs: {reasons}.", "To judge: 4 jobs."]
    places.hold(never)
    assert "1 trained by another process now, to be waited for" in lines(places)[0]
    assert "never begun" not in lines(places)[0]


def test_before_the_first_checkpoint_there_is_nothing_to_go_on_from(places):
    """With a record, and where only a log tells."""
    places.attempt(places.jobs[0], "failed", "ValueError: no")
    places.log("train", places.jobs[1], "error: disk full\n")
    places.so_far(places.jobs[2], 3)  # killed, and its lease is gone
    reasons = (
        "1 never begun; 1 stopped or failed, to go on from epoch 3; 2 stopped or failed before the first checkpoint"
    )
    assert lines(places)[0] == f"To train: 4 jobs: {reasons}."


def test_what_is_trained_is_to_be_judged_alone(places):
    """Also where its judgement has failed."""
    done, trained, failed, _ = places.jobs
    places.judge(done)
    places.train(trained, failed)
    for job in (done, trained, failed):
        places.attempt(job, to_step=210, started=ago(1000))
    places.log("evaluate", failed, "error: no\n")
    assert lines(places) == ["To train: 1 job: 1 never begun.", "To judge: 3 jobs, 2 of them trained already."]


def test_when_all_is_done(places):
    places.judge(*places.jobs)
    assert lines(places) == [
        "Nothing to train or to judge: what is made of it is made anew where it lacks or is older."
    ]


def test_a_search_begins_goes_on_and_ends(tmp_path):
    made = Searched(tmp_path)
    after = "Its winners come after it."
    assert lines(made) == [f"The search begins: 24 not begun. {after}"]
    made.finish(0, made.begin(0))
    made.trained(1, made.begin(1), 2)
    assert lines(made) == [f"The search goes on: 1 of 24 trials is not decided, 22 not begun. {after}"]
    for number in range(1, 24):
        made.finish(number, made.begin(number))
    made.end()
    assert lines(made)[0].startswith("Nothing to train or to judge")


def test_snakemake_says_all_where_that_is_short(places):
    """Of a job that is to be trained it says two."""
    places.train(*places.jobs)
    assert (len(places.jobs), brief(places)) == (FEW, [])
    for file in (places.paths.weights(job) for job in places.jobs[:1]):
        Path(file).unlink()
    assert brief(places) == ["--quiet", "rules"]
    places.judge(*places.jobs[2:])
    assert brief(places) == []


@pytest.mark.usefixtures("no_slurm")
@pytest.mark.parametrize("dry", [True, False])
def test_it_is_said_before_snakemake_runs(tmp_path, monkeypatch, capfd, dry):
    monkeypatch.chdir(tmp_path)
    places = Places(tmp_path)
    places.attempt(places.jobs[0], "interrupted", "SIGTERM", to_step=42)

    def driver(*given):
        made = real(*given)
        Snakemake(made, "print('Snakemake runs', flush=True)")
        return made

    real = resume.Driver
    monkeypatch.setattr(resume, "Driver", driver)
    monkeypatch.setattr(resume, "POLL", 0.01)
    assert resume.main(arguments(where="local", dry_run=dry)) == 0
    out = capfd.readouterr().out.splitlines()
    assert out[0].startswith("four: 4 jobs: 1 stopped, 3 waiting.")
    assert out[1:] == [
        "To train: 4 jobs: 3 never begun; 1 stopped or failed, to go on from epoch 2.",
        "To judge: 4 jobs.",
        "Snakemake runs",
    ]
