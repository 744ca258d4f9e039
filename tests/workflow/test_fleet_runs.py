"""`--config fleet=true`: one rule trains all jobs of an experiment, and nothing else is changed by it."""

import json
from pathlib import Path

import pytest
from test_dag import planned
from workplace import SMALL

from pipeline.run import Run

FLEET = ("--config", "fleet=true")


def test_one_rule_trains_all_and_they_are_judged_in_batches(workplace):
    code, output = workplace.snakemake("-n", "--quiet", "rules", *FLEET)
    assert code == 0, output
    counts = {k: v for k, v in planned(output).items() if k.startswith(("train", "fleet", "evaluate"))}
    assert counts.pop("fleet") == 1
    batches = Run.of({"fleet": True}, [str(SMALL)]).batches
    assert counts == {batch.evaluate: 1 for batch in batches}
    assert sum(len(batch.jobs) for batch in batches) == 6


def test_all_batches_wait_for_the_fleets_mark():
    run = Run.of({"fleet": "True", "together": 2, "results": "there"}, [str(SMALL)])
    assert run.fleet is not None
    assert {batch.trained for batch in run.batches} == {run.fleet.trained}
    assert [len(batch.jobs) for batch in run.batches] == [2, 2, 2]
    assert run.trainings == []
    assert run.rows == [batch.judged for batch in run.batches]
    plain = Run.of({"together": 2, "results": "there"}, [str(SMALL)])
    assert plain.fleet is None
    assert plain.trainings == plain.batches
    assert [batch.jobs for batch in plain.batches] == [batch.jobs for batch in run.batches]
    assert run.fleet.trained not in {batch.trained for batch in plain.batches}


def test_a_mark_that_is_no_longer_true_is_taken_back(tmp_path):
    """A model was deleted: the fleet is asked again, and so is who judges it."""
    settings = {"fleet": True, "results": str(tmp_path)}
    run = Run.of(settings, [str(SMALL)])
    marks = [Path(run.fleet.trained), Path(run.batches[0].judged)]
    for mark in marks:
        mark.parent.mkdir(exist_ok=True)
        mark.touch()
    Run.of(settings, [str(SMALL)])
    assert [mark for mark in marks if mark.exists()] == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_same_files_bit_for_bit_and_then_nothing_to_do(workplace, finished):
    code, output = workplace.snakemake(*FLEET)
    assert code == 0, output
    for pattern in ("config.json", *(f"{name}.jsonl" for name in ("training", "decisions", "weights"))):
        assert workplace.files(pattern) == finished.files(pattern), pattern
    for pattern in ("model.safetensors", "validity-*.jsonl", "trajectories-*.jsonl"):
        assert workplace.files(pattern) == finished.files(pattern), pattern
    assert untimed(workplace) == untimed(finished)
    assert len(workplace.files("model.safetensors")) == 6
    assert not workplace.files("state/resume.pt")
    code, output = workplace.snakemake(*FLEET)
    assert code == 0, output
    assert "Nothing to be done" in output


def untimed(workplace):
    """Path -> rows of the evaluations, without the seconds that they took."""
    rows = {
        path: [json.loads(line) for line in text.splitlines()]
        for path, text in workplace.files("evaluation-*.jsonl").items()
    }
    assert all(row.pop("seconds") > 0 for each in rows.values() for row in each)
    return rows
