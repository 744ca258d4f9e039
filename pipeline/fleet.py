"""Many jobs inside one allocation: a few processes stay warm, and train one after the other.

    python -m pipeline.fleet results/jobs/JOB/config.json [...] [--experiment FILE] [--cpus 0] [--threads 1]
    python -m pipeline.fleet --experiment FILE [--results results] [...]        # all jobs of the experiment

The files, the bits, and what an interruption means are those of `pipeline.train`, which each process calls. A process
that dies, or seems sick, is replaced, and what it trained goes on from its checkpoint. SIGTERM, SIGUSR1, SIGINT and the
end of the allocation make all write their checkpoints, and then the exit code is 85, 'not finished'. It is 1 where jobs
failed.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterable
from pathlib import Path

from pipeline import stage
from pipeline.config import JobConfig, load_job
from pipeline.crew import Crew, processes, run_fleet
from pipeline.deadline import Allocation, Deadline
from pipeline.describe import write_configs
from pipeline.experiment import load_experiment
from pipeline.finished import is_trained
from pipeline.fleet_worker import Outcome
from pipeline.paths import Paths
from pipeline.private_ray import Interrupted, NoRay, private_ray
from pipeline.provenance import code_fingerprint
from pipeline.records import replace_file
from pipeline.stacks import units_of
from pipeline.train import Stop
from pipeline.training import RunSettings

log = logging.getLogger(__name__)
SOME_FAILED = 1


def _jobs(arguments: argparse.Namespace) -> tuple[Paths, dict[str, JobConfig]]:
    """Those that are asked for. Their config.json is written where there is none."""
    if not arguments.configs and not arguments.experiment:
        raise ValueError("which jobs? Give files config.json, or an experiment with --experiment")
    experiment = load_experiment(arguments.experiment) if arguments.experiment else None
    if not arguments.configs:
        assert experiment is not None
        paths, jobs = Paths(arguments.results), list(experiment.jobs)
    else:
        found = [Paths.of_config(file) for file in arguments.configs]
        paths, jobs = found[0][0], [job for _, job in found]
    if experiment is not None:
        write_configs(experiment, paths, [job for job in jobs if not Path(paths.config(job)).exists()])
    return paths, {job: load_job(paths.config(job), job) for job in jobs}


def main(arguments: argparse.Namespace) -> int:
    code_fingerprint()  # taken now: what is edited while this runs made none of its numbers
    for name, least in (("threads", 1), ("workers", 0), ("cpus", 0)):
        if getattr(arguments, name) < least:
            raise ValueError(f"--{name}: must be at least {least}, got {getattr(arguments, name)}")
    paths, jobs = _jobs(arguments)
    left = {job: config for job, config in jobs.items() if not is_trained(job, paths)}
    if len(left) < len(jobs):
        log.info("%d of %d are finished; delete a job's folder to train it again", len(jobs) - len(left), len(jobs))
    outcomes: list[Outcome] = []
    if left:
        allocation = Allocation.here()
        stop = Stop(Deadline(allocation), arguments.stop_with_parent)
        try:
            with private_ray(arguments.cpus or None, 0 if arguments.device == "cpu" else None) as facts:
                gpus = arguments.gpus_per_job if facts.gpus else 0.0
                crew = Crew(processes(arguments.workers, arguments.threads, gpus), gpus, allocation)
                units = units_of(left, crew.number)
                outcomes = run_fleet(units, paths, _run(arguments, allocation), stop, crew=crew)
        except Interrupted:
            outcomes = [Outcome(tuple(left), "interrupted", stop.received or "SIGTERM")]
        except NoRay as error:
            raise OSError(str(error)) from error  # the machine's: one line
    return _end(outcomes, arguments.done)


def _run(arguments: argparse.Namespace, allocation: Allocation) -> RunSettings:
    return RunSettings(
        data_root=str(Path(arguments.data).absolute()),
        device=arguments.device,
        checkpoint_seconds=arguments.checkpoint_seconds,
        threads=arguments.threads,
        slurm_job=allocation.slurm_job,
        campaign=arguments.campaign or allocation.campaign,
    )


def _end(outcomes: Iterable[Outcome], done: str | None) -> int:
    by_state: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        by_state.setdefault(outcome.state, []).append(outcome)
    for outcome in by_state.get("failed", ()):
        for job in outcome.jobs:
            log.error("error: %s: %s", job, outcome.reason)
    if interrupted := by_state.get("interrupted"):
        log.info("%s: not finished; the same command goes on", interrupted[0].reason)
        return stage.NOT_FINISHED
    if "failed" in by_state:
        return SOME_FAILED
    if done:
        replace_file(done, b"")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="*", metavar="CONFIG", help="config.json of a job; its files come beside it")
    parser.add_argument("--experiment", help="write the config.json from this file, where there is none")
    parser.add_argument("--results", default="results", help="without CONFIG: root of the experiment's results")
    parser.add_argument("--done", metavar="FILE", help="written when all are finished")
    parser.add_argument("--data", default="data", help="root of the data sets (default: data)")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="auto takes GPUs, if any")
    parser.add_argument("--cpus", type=int, default=0, help="for all together (default: 0, all that it may use)")
    parser.add_argument("--threads", type=int, default=1, help="threads of each job (default: 1)")
    parser.add_argument("--workers", type=int, default=0, help="processes (default: 0, as many as fit)")
    parser.add_argument("--gpus-per-job", type=float, default=0.25, help="of a GPU, where there are some")
    parser.add_argument("--campaign", default="", help="name of this run in its attempts (default: the SLURM job's)")
    parser.add_argument("--checkpoint-seconds", type=float, default=60.0, help="seconds between checkpoints")
    parser.add_argument("--stop-with-parent", type=int, metavar="PID", help="leave when this parent process is gone")
    stage.run(main, parser)
