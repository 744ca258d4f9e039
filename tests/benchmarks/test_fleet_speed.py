"""What a job costs beside its own training, by a fleet, by a process of its own, and by Ray Tune with an actor for each
trial: jobs a minute and seconds, within one run: `pytest -m slow -s tests/benchmarks/test_fleet_speed.py`."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from pipeline.config import JobConfig, canonical, job_id
from pipeline.crew import Crew, run_fleet
from pipeline.describe import write_configs
from pipeline.experiment import load_experiment
from pipeline.finished import is_trained
from pipeline.paths import Paths
from pipeline.private_ray import private_ray
from pipeline.train import train
from pipeline.training import RunSettings, Training

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[2]
MOST_OVERHEAD = 0.2  # seconds of a job of the fleet, once its processes are warm
NUM_JOBS, FEW, CPUS = 24, 6, 2
RUN = RunSettings(data_root="none", device="cpu")
SMALL = """
question: What does it cost to train it?
job:
  data: {name: digits, num_validation: 50}
  model: {network: raw, family: neural_ode, width: 4, pad_channels: 2}
  train: {solver: euler@2, optimiser: adam, lr: 5e-3, epochs: 3, batch_size: 64}
sweep: {seed: SEEDS}
evaluate_with: {solvers: [euler@2]}
"""


def never() -> bool:
    return False


def own_seconds(config: JobConfig) -> float:
    """Steps and validation alone: neither data, nor network, nor files."""
    training = Training(config, "own", RUN)
    started = time.perf_counter()
    while not training.finished:
        training.run_epoch(never)
    return time.perf_counter() - started


def by_fleet(jobs: Mapping[str, JobConfig], paths: Paths, workers: int) -> tuple[float, list[float]]:
    """Seconds in all, those in which Ray and the processes start with them; and when each job had ended."""
    started, ends = time.perf_counter(), []
    with private_ray(cpus=CPUS, gpus=0):
        units = [{job: config} for job, config in jobs.items()]
        run_fleet(units, paths, RUN, never, lambda outcome: ends.append(time.perf_counter()), Crew(workers))
    return time.perf_counter() - started, ends


def by_processes(jobs: Mapping[str, JobConfig], paths: Paths) -> float:
    """Seconds in all; as many at once as there are CPUs."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pipeline.train", "--device", "cpu", "--data", "none"]
    started, left, running = time.perf_counter(), list(jobs), []
    while left or running:
        while left and len(running) < CPUS:
            one = [*command, paths.config(left.pop())]
            running.append(subprocess.Popen(one, env=environment, stderr=subprocess.DEVNULL))
        done = running.pop(0)
        assert done.wait() == 0
    return time.perf_counter() - started


def by_tune(jobs: Mapping[str, JobConfig], paths: Paths, folder: Path) -> float:
    """Seconds in all, without Ray's start: a function, and a fresh actor for each trial."""
    from ray import tune

    def trial(given: dict[str, Any]) -> None:
        from pipeline.config import read_job

        config = read_job(given["job"], "trial")
        train({job_id(config): config}, paths, RUN, lambda: False)
        tune.report({"trained": 1})

    with private_ray(cpus=CPUS, gpus=0):
        started = time.perf_counter()
        tuner = tune.Tuner(
            tune.with_resources(trial, {"cpu": 1}),
            param_space={"job": tune.grid_search([canonical(config) for config in jobs.values()])},
            tune_config=tune.TuneConfig(reuse_actors=False),
            run_config=tune.RunConfig(storage_path=str(folder), verbose=0),
        )
        assert tuner.fit().num_errors == 0
        return time.perf_counter() - started


def test_a_job_of_the_fleet_costs_little_beside_its_training(tmp_path):
    file = tmp_path / "small.yaml"
    file.write_text(SMALL.replace("SEEDS", str(list(range(NUM_JOBS)))))
    experiment = load_experiment(file)
    jobs = experiment.jobs
    few = dict(list(jobs.items())[:FEW])
    places = {name: Paths(str(tmp_path / name)) for name in ("warm", "fleet", "process", "tune")}
    write_configs(experiment, places["process"], few)
    own = median([own_seconds(config) for config in few.values()])
    _, ends = by_fleet(jobs, places["warm"], workers=1)
    overhead = median([after - before for before, after in pairwise(ends[1:])]) - own
    whole, ends = by_fleet(jobs, places["fleet"], workers=0)
    warm = (ends[-1] - ends[CPUS]) / (len(ends) - 1 - CPUS)
    per_job = {
        f"fleet, with its start, {NUM_JOBS} jobs": whole / NUM_JOBS,
        "fleet, warm": warm,
        "a process for each job": by_processes(few, places["process"]) / FEW,
        "Tune, an actor for each trial": by_tune(few, places["tune"], tmp_path / "tune-storage") / FEW,
    }
    print(f"\nown training of a job: {own:.3f} s; {CPUS} at once:")
    for way, seconds in per_job.items():
        print(f"  {way:32} {60 / seconds:6.1f} jobs a minute, {CPUS * seconds - own:.2f} s beside the training")
    print(f"  fleet, one process, warm: {overhead:.3f} s beside the training")
    for name, asked in (("warm", jobs), ("fleet", jobs), ("process", few), ("tune", few)):
        assert all(is_trained(job, places[name]) for job in asked), name
    assert overhead <= MOST_OVERHEAD
    with_start, _, process, tuned = per_job.values()
    assert with_start < min(process, tuned)
