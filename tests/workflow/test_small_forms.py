"""The experiments on Ott et al. (2021), in small: a higher learning rate, some hundred iterations. Each must show the
effect that the full one measures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from pipeline.config import JobConfig
from pipeline.describe import write_configs
from pipeline.evaluate import judge
from pipeline.experiment import Experiment, load_experiment
from pipeline.paths import Paths
from pipeline.records import DecisionRecord, EvaluationRecord, TrainingRecord, ValidityRecord, read_records
from pipeline.stacks import batches_of
from pipeline.train import train
from pipeline.training import RunSettings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
EXPERIMENTS = Path(__file__).parents[2] / "pipeline" / "experiments"


class Small:
    """An experiment file with some places changed, trained and judged without Snakemake."""

    def __init__(self, name: str, folder: Path, sweep: dict, **changes):
        raw = yaml.safe_load((EXPERIMENTS / f"{name}.yaml").read_text())
        raw["name"], raw["sweep"] = name, sweep
        for path, value in changes.items():
            section, _, key = path.rpartition("__")
            (raw["job"][section] if section in raw["job"] else raw[section])[key] = value
        file = folder / f"{name}.yaml"
        file.write_text(yaml.safe_dump(raw, sort_keys=False))
        self.experiment: Experiment = load_experiment(file)
        self.paths = Paths(str(folder / "results"))
        write_configs(self.experiment, self.paths)
        stacks = batches_of(self.experiment.jobs, self.paths, "")
        together = [list(stack.jobs) for stack in stacks]
        alone = [[job] for job in self.experiment.jobs if not any(job in jobs for jobs in together)]
        for jobs in together + alone:
            configs = {job: self.experiment.jobs[job] for job in jobs}
            assert train(configs, self.paths, RunSettings("none", "cpu"), lambda: False)
        for job, config in self.experiment.jobs.items():
            judge(config, job, self.experiment.evaluate_with, self.paths, "none", torch.device("cpu"))

    def of(self, **wanted) -> list[str]:
        """Jobs by what is in `train`."""
        return [job for job, config in self.experiment.jobs.items() if self._fits(config, wanted)]

    @staticmethod
    def _fits(config: JobConfig, wanted: dict) -> bool:
        return all(getattr(config.train, key) == value for key, value in wanted.items())

    def verdict(self, job: str) -> ValidityRecord:
        (row,) = read_records(ValidityRecord, self.paths.validity(job, self.experiment.evaluate_with.id))
        return row

    def rows(self, kind, path: str) -> list:
        return read_records(kind, path)


FAST = {"train__lr": 3e-3, "train__epochs": 80, "train__record_every": 20}
JUDGES = ["euler@2", "euler@4", "euler@64", "euler@128", "euler@256", "rk4@16", "dopri5@1e-5"]


def test_a_coarse_training_is_discrete_and_a_fine_one_loses_little(tmp_path):
    """spheres-critical-step, and the paths of spheres-trajectories."""
    sweep = {"train.solver": ["euler@2", "euler@64"], "seed": [0, 1]}
    small = Small("spheres-critical-step", tmp_path, sweep, **FAST, evaluate_with__solvers=JUDGES)
    coarse = [small.verdict(job) for job in small.of(solver="euler@2")]
    fine = [small.verdict(job) for job in small.of(solver="euler@64")]
    assert all(row.accuracy > 0.9 for row in coarse + fine), "not learnt: this says nothing"
    assert {row.verdict for row in coarse} == {"discrete"}
    assert min(row.gap for row in coarse) > 0.1
    assert max(abs(row.gap) for row in fine) < min(row.gap for row in coarse) / 3
    assert max(row.share_crossing or 0 for row in fine) < min(row.share_crossing or 0 for row in coarse)
    assert max(row.share_folded or 0 for row in fine) < min(row.share_folded or 0 for row in coarse)
    assert all(0.7 < (row.order or 0) < 1.5 for row in fine)


def test_the_rules_end_nearer_to_an_ode_than_a_coarse_training(tmp_path):
    """spheres-adaptation: both rules."""
    rules = [
        {"train": {"solver": "euler@2"}},
        {"train": {"solver": "euler@256", "adapt": {"rule": "step", "every": 10}}},
        {
            "data": {"num_validation": 500},
            "train": {"solver": "euler@256", "adapt": {"rule": "agreement", "every": 10}},
        },
    ]
    slower = FAST | {"train__lr": 1e-3, "train__epochs": 100}  # the step has to keep up
    small = Small("spheres-adaptation", tmp_path, {"job": rules, "seed": [0]}, **slower, evaluate_with__solvers=JUDGES)
    coarse, *adapted = small.experiment.jobs
    for job in adapted:
        rule = small.experiment.jobs[job].train.adapt.rule
        decisions = small.rows(DecisionRecord, small.paths.decisions(job))
        trained = small.rows(TrainingRecord, small.paths.training(job))
        assert {"start", "shrink"} <= {d.action for d in decisions}, rule
        assert trained[-1].solver == decisions[-1].next_solver
        assert abs(small.verdict(job).gap) < small.verdict(coarse).gap / 2, rule


def test_the_errors_of_a_coarse_solver_divide_what_the_flow_does_not(tmp_path):
    """lady-windermere, whole but for the smaller step: 1000 steps are beyond the fan too."""
    sweep = {"train.solver": ["euler@316", "euler@1000"]}
    judges = ["euler@316", "euler@1000", "dopri5@1e-6"]
    small = Small("lady-windermere", tmp_path, sweep, evaluate_with__solvers=judges)
    judged = {
        config.train.solver: small.rows(
            EvaluationRecord, small.paths.evaluation(job, small.experiment.evaluate_with.id)
        )
        for job, config in small.experiment.jobs.items()
    }
    accuracy = {(own, row.solver): row.accuracy for own, rows in judged.items() for row in rows}
    assert accuracy["euler@316", "euler@316"] == 1.0
    assert accuracy["euler@316", "dopri5@1e-6"] <= 0.75
    assert accuracy["euler@1000", "euler@1000"] <= 0.75


def test_every_family_of_the_comparison_is_judged_as_it_can_be(tmp_path):
    """spheres-families, an epoch."""
    raw = yaml.safe_load((EXPERIMENTS / "spheres-families.yaml").read_text())["sweep"]
    small = Small("spheres-families", tmp_path, raw | {"seed": [0]}, train__epochs=1)
    for job, config in small.experiment.jobs.items():
        rows = small.rows(ValidityRecord, small.paths.validity(job, small.experiment.evaluate_with.id))
        assert len(rows) == (0 if config.model.family == "lm_resnet" else 1)
