"""Jobs that differ in the seed alone, as Snakemake runs them: one rule for a stack; what is finished stays as it is."""

import json

import pytest
import yaml
from test_dag import planned

from pipeline.config import job_id
from pipeline.experiment import load_experiment
from pipeline.run import Run

POINTS = {
    "question": "Are they trained together?",
    "job": {
        "data": {"name": "spheres", "dimension": 2, "num_train": 128},
        "model": {"network": "raw", "family": "neural_ode", "width": 16},
        "train": {"solver": "euler@1", "optimiser": "adam", "lr": 1e-3, "epochs": 2, "batch_size": 64},
    },
    "sweep": {"train.solver": ["euler@1", "euler@2"], "seed": [0, 1]},
    "evaluate_with": {"solvers": ["euler@1", "euler@4"]},
}


@pytest.fixture
def experiment(tmp_path):
    """Writes the experiment with so many seeds; returns its file."""

    def write(seeds, **more):
        sweep = POINTS["sweep"] | {"seed": seeds} | more
        file = tmp_path / "points.yaml"
        file.write_text(yaml.safe_dump(POINTS | {"sweep": sweep}))
        return file

    return write


def stacks(file):
    return Run.of({}, [str(file)]).stacks


def test_each_stack_is_one_rule(workplace, experiment):
    """And no job is planned by itself; one seed that is left over is."""
    file = experiment([0, 1, 2])
    code, output = workplace.snakemake("-n", "--quiet", "rules", experiment=file)
    assert code == 0, output
    counts = planned(output)
    assert len(stacks(file)) == 2
    expected = {rule: 1 for stack in stacks(file) for rule in (stack.train, stack.evaluate)}
    assert {k: v for k, v in counts.items() if k.startswith(("train", "evaluate"))} == expected


def test_what_is_left_over_is_trained_by_itself(workplace, experiment):
    file = experiment(list(range(9)))
    code, output = workplace.snakemake("-n", "--quiet", "rules", experiment=file)
    assert code == 0, output
    counts = planned(output)
    expected = {rule: 1 for stack in stacks(file) for rule in (stack.train, stack.evaluate)}
    alone = {"train": 2, "evaluate": 2}
    assert {k: v for k, v in counts.items() if k.startswith(("train", "evaluate"))} == expected | alone


@pytest.mark.slow
def test_a_seed_more_trains_nothing_again(workplace, experiment):
    """The new seed makes other stacks of the same jobs: those that are finished are written from their checkpoints,
    byte for byte, without a step."""
    code, output = workplace.snakemake(experiment=experiment([0, 1]))
    assert code == 0, output
    before = {name: workplace.files(name) for name in ("model.safetensors", "training.jsonl", "weights.jsonl")}
    judged = workplace.files("evaluation-*.jsonl")
    assert len(before["model.safetensors"]) == len(judged) == 4
    assert all(len(attempts) == 1 for attempts in attempts_of(workplace).values())
    file = experiment([0, 1, 2])
    code, output = workplace.snakemake(experiment=file)
    assert code == 0, output
    for name, files in before.items():
        after = workplace.files(name)
        assert len(after) == 6
        assert {path: after[path] for path in files} == files
    assert {path: _numbers(text) for path, text in workplace.files("evaluation-*.jsonl").items() if path in judged} == {
        path: _numbers(text) for path, text in judged.items()
    }
    found = attempts_of(workplace)
    steps = 2 * 2
    for job, config in load_experiment(file).jobs.items():
        assert job == job_id(config)
        first, *later = found[job]
        assert (first["from_step"], first["to_step"]) == (0, steps)
        assert len(later) == (config.seed < 2)
        assert all(again["from_step"] == again["to_step"] == steps for again in later)


def attempts_of(workplace):
    """Job -> its attempts."""
    files = workplace.folder.glob("results/jobs/*/state/attempts.jsonl")
    return {path.parts[-3]: [json.loads(line) for line in path.read_text().splitlines()] for path in files}


def _numbers(text):
    """The rows without the time that they took."""
    return [{**json.loads(line), "seconds": None} for line in text.splitlines()]
