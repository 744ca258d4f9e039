"""What a search of many small trials gains by processes that stay warm, and by trials side by side: trials a minute,
within one run: `pytest -m slow -s tests/benchmarks/test_search_speed.py`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import pytest
from test_fleet_speed import CPUS, RUN, by_processes, never

from pipeline.config import JobConfig, job_id
from pipeline.crew import Crew, Unit, run_fleet
from pipeline.describe import write_config
from pipeline.experiment import load_experiment
from pipeline.finished import is_trained
from pipeline.paths import Paths
from pipeline.private_ray import private_ray
from pipeline.stacks import LARGEST, units_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

NUM_TRIALS, SAMPLE = 64, 8
SEARCH = f"""
question: Which learning rate?
job:
  data: {{name: digits, num_validation: 144}}
  model: {{network: raw, family: neural_ode, width: 8, pad_channels: 3}}
  train: {{solver: euler@4, optimiser: adam, lr: 5e-3, epochs: 3, batch_size: 32}}
search:
  space: {{train.lr: {{log_uniform: [1e-4, 3e-2]}}}}
  num_trials: {NUM_TRIALS}
evaluate_with: {{solvers: [euler@4]}}
"""


def by_fleet(units: Sequence[Unit], paths: Paths) -> tuple[float, float]:
    """Seconds in all, with Ray's start and end; and without these."""
    started = time.perf_counter()
    with private_ray(cpus=CPUS, gpus=0):
        begun = time.perf_counter()
        outcomes = run_fleet(units, paths, RUN, never, crew=Crew(CPUS))
        ended = time.perf_counter()
    assert {outcome.state for outcome in outcomes} == {"finished"}
    return time.perf_counter() - started, ended - begun


def print_figures(seconds: Mapping[str, float]) -> None:
    slowest = max(seconds.values())
    print(f"\n{NUM_TRIALS} trials, {CPUS} processes at once:")
    for way, each in seconds.items():
        print(f"  {way:58} {60 / each:6.1f} trials a minute, {slowest / each:5.2f} times")


def test_warm_processes_are_faster_than_new_ones_and_trials_side_by_side_than_one_by_one(tmp_path):
    file = tmp_path / "small.yaml"
    file.write_text(SEARCH)
    search = load_experiment(file).search
    assert search is not None
    trials: dict[str, JobConfig] = {job_id(config): config for _, config in search.first(NUM_TRIALS)}
    assert len(trials) == NUM_TRIALS
    sample = dict(list(trials.items())[:SAMPLE])
    places = {name: Paths(str(tmp_path / name)) for name in ("process", "fleet", "stacked")}
    for config in sample.values():
        write_config(config, places["process"])
    together = units_of(trials, CPUS)  # as the search forms them
    assert [len(unit) for unit in together] == [LARGEST] * (NUM_TRIALS // LARGEST)
    process = by_processes(sample, places["process"]) / SAMPLE
    fleet, fleet_warm = (s / NUM_TRIALS for s in by_fleet([{j: c} for j, c in trials.items()], places["fleet"]))
    stacked, stacked_warm = (seconds / NUM_TRIALS for seconds in by_fleet(together, places["stacked"]))
    print_figures(
        {
            f"(a) a process for each trial ({SAMPLE} of them measured)": process,
            "(b) fleet, with Ray's start and end": fleet,
            "    without these": fleet_warm,
            f"(c) fleet, {LARGEST} side by side, with Ray's start and end": stacked,
            "    without them": stacked_warm,
        }
    )
    for name, asked in (("process", sample), ("fleet", trials), ("stacked", trials)):
        assert all(is_trained(job, places[name]) for job in asked), name
    assert fleet < process
    assert stacked_warm < fleet_warm
