"""Jobs that differ in the seed alone, as Snakemake runs them: one rule for a stack; what is finished stays as it is."""

import shutil

import pytest
import yaml
from test_dag import planned

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
COLLECT = ("--until", "collect")


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
    return Run.of({}, [str(file)]).batches


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
@pytest.mark.timeout(600)
def test_a_seed_more_touches_nothing_that_is_finished(workplace, experiment):
    """The new seed makes other stacks of the same jobs: only its own are trained and judged. A job whose folder was
    deleted is made again when the table is, alone, and its company stays as it is."""
    code, output = workplace.snakemake(*COLLECT, experiment=experiment([0, 1]))
    assert code == 0, output
    before = everything(workplace)
    assert len(workplace.files("model.safetensors")) == 4
    file = experiment([0, 1, 2])
    code, output = workplace.snakemake(*COLLECT, experiment=file)
    assert code == 0, output
    after = everything(workplace)
    assert len(workplace.files("model.safetensors")) == 6
    assert {path: after[path] for path in before} == before
    gone = next(iter(load_experiment(file).jobs))
    shutil.rmtree(workplace.folder / "results/jobs" / gone)
    code, output = workplace.snakemake("--forcerun", "collect", *COLLECT, experiment=file)
    assert code == 0, output
    again = everything(workplace)
    assert again.keys() == after.keys()
    assert {path for path in again if again[path] != after[path]} == {path for path in after if gone in path.parts}


def everything(workplace):
    """Path -> when it was last written, of all files of the jobs."""
    return {path: path.stat().st_mtime_ns for path in workplace.folder.glob("results/jobs/*/**/*") if path.is_file()}
