"""A search, from an experiment file to the jobs that it has found: in Ray Tune where trials are chosen, or stopped, by
what others have come to; by the fleet where all are known beforehand. A door of ray.

    python -m pipeline.search pipeline/experiments/mnist-search.yaml [--data data] [--device auto]

A trial is a job like any other: what was finished by a sweep or another search is not done again, and one that was
stopped early can be taken up. Killed at any moment, or out of time, the same command goes on: what was chosen and
decided stands in `trials.jsonl`, the rest in the jobs' own files; of Ray nothing is kept. SIGTERM, SIGUSR1, SIGINT and
the end of the allocation make all trials write checkpoints, and then the exit code is 85, 'not finished'.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline import stage
from pipeline.cost import refusal
from pipeline.crew import Crew, places, run_fleet
from pipeline.deadline import Allocation, Deadline
from pipeline.describe import write_config
from pipeline.ending import Ending, WithinBudget, spent_on
from pipeline.experiment import Experiment, load_experiment
from pipeline.fleet_worker import Outcome
from pipeline.holder import Holder
from pipeline.lease import LeaseLost, Leases
from pipeline.ledger import Ledger
from pipeline.paths import DEFAULT_EXPERIMENT, Paths
from pipeline.private_ray import Interrupted, NoRay, RayFacts, cpus_here, private_ray
from pipeline.provenance import code_fingerprint
from pipeline.search_config import Exhausted, Search
from pipeline.stacks import units_of
from pipeline.train import Stop
from pipeline.training import RunSettings
from pipeline.trials import jobs_of, last_row, read_events, value_of, winners_of
from pipeline.tried import counts, is_done
from pipeline.tuning import Place, tune_trials
from pipeline.watching import Live, Watching
from pipeline.winners import read_winners, write_found

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class End:
    """How a search ended; for good: there is nothing to go on with."""

    reason: str
    for_good: bool


def run_search(ledger: Ledger, asked: Callable[[], str], run: RunSettings, facts: RayFacts) -> End:
    """Until all trials are decided, the budget is spent, or somebody has `asked`. Returns how it ended. What the budget
    has ended stays undecided: a greater one goes on with it."""
    search = ledger.search
    place = _place(search, run, facts, ledger.at_once)
    live = Live()
    past = spent_on(read_events(search.id, ledger.paths), ledger.paths)
    ending = Ending(asked, search.settings.budget, past, lambda: live.places, place.gpus, place.cpus)
    watching = Watching(ledger, live, lambda: ending.spent.minutes)
    log.info("%d of %d trials are to be decided, %d at once", len(ledger.undecided), len(ledger.asked), place.at_once)
    run_trials = fleet_trials if search.is_known_beforehand else tune_trials
    left = len(ledger.undecided) + 1
    while len(ledger.undecided) < left and ledger.undecided and not ending():  # again, while that decides some
        left = len(ledger.undecided)
        run_trials(ledger, place, ending, live, watching.say)
    live.running, live.places = set(), 0
    watching.say(now=True)
    if not ledger.undecided:
        return End("all trials are decided", True)
    return End(ending() or "trials are left undecided", ending.is_spent)


def fleet_trials(ledger: Ledger, place: Place, ending: Callable[[], str], live: Live, say: Callable[[], None]) -> None:
    """Trials that are known beforehand and run to their end: those that are alike side by side, as one computation. In
    their order where a budget may end them: the longest first, all that it leaves would be the dearest."""
    begun = {}
    with suppress(Exhausted):
        for number in ledger.undecided:
            begun[number] = ledger.begin(number)
    numbers: dict[str, list[int]] = {}
    for number, (trial, _) in begun.items():
        numbers.setdefault(trial.job, []).append(number)
    units = units_of({trial.job: config for trial, config in begun.values()}, place.at_once)
    units.sort(key=lambda unit: min(numbers[job][0] for job in unit))

    def decide(outcome: Outcome) -> None:
        for job in outcome.jobs:
            for number in numbers[job]:
                _decide(ledger, number, job, outcome)

    def should_stop() -> str:
        live.places = min(place.at_once, len(units), len(ledger.undecided))
        say()
        return ending()

    crew = Crew(place.at_once, place.gpus, Allocation.here())  # a step that is longer than the margin is heeded too
    run_fleet(units, ledger.paths, place.run, should_stop, decide, crew, ledger.search.settings.budget is not None)


def _decide(ledger: Ledger, number: int, job: str, outcome: Outcome) -> None:
    if outcome.state == "failed":
        ledger.decide(number, "failed", reason=outcome.reason)
    elif outcome.state == "finished":
        row = last_row(job, ledger.paths)
        assert row is not None
        results = tuple(value_of(row, goal) for goal in ledger.search.settings.goals)
        ledger.decide(number, "finished", row.epoch, results, row.status)


def _place(search: Search, run: RunSettings, facts: RayFacts, at_once: int | None) -> Place:
    """Raises ValueError if the machine has no place for one trial."""
    cpus, gpus = search.settings.per_trial.cpus, search.settings.per_trial.gpus
    if not facts.gpus:
        gpus = 0.0
    elif gpus is None:
        gpus = 1.0
    fits = places(cpus, gpus)
    if fits < 1:
        there = f"{facts.cpus} CPUs and {facts.gpus:g} GPUs"
        raise ValueError(f"search: per_trial: {cpus} CPUs and {gpus:g} GPUs are more than there are here: {there}")
    run = replace(run, gpus=gpus) if gpus else replace(run, device="cpu")
    return Place(run, cpus, gpus, min(fits, at_once or fits))


def _cpus(ledger: Ledger, cpus: int | None) -> int:
    """No more than the trials that may run at once take: then places alone say how many do."""
    most = cpus or cpus_here()
    each = ledger.search.settings.per_trial.cpus
    return min(most, max(each, each * (ledger.at_once or most)))


def search(experiment: Experiment, ledger: Ledger, run: RunSettings, stop: Callable[[], str], cpus: int | None) -> End:
    """Search, and write what was found, unless it is to be gone on with. Raises ValueError if nothing was found,
    OSError if no Ray can be started."""
    ended, left = End("all trials are decided", True), len(ledger.undecided)
    if ledger.undecided:
        try:
            with private_ray(_cpus(ledger, cpus), 0 if run.device == "cpu" else None) as facts:
                ended = run_search(ledger, stop, run, facts)
        except Interrupted:
            ended = End(stop() or "SIGTERM", False)
        except NoRay as error:
            raise OSError(str(error)) from error
    if ended.for_good and is_done(experiment, ledger.paths) and len(ledger.undecided) == left:
        for config in read_winners(experiment, ledger.paths).values():  # it stands: they may have been trained since
            write_config(config, ledger.paths)
    elif ended.for_good:
        _conclude(experiment, ledger, ended.reason)
    return ended


def _conclude(experiment: Experiment, ledger: Ledger, reason: str) -> None:
    """The winners, as jobs, and the file that says so."""
    search, paths = ledger.search, ledger.paths
    there = [ledger.trials[n] for n in ledger.asked if n in ledger.trials]
    trials = [trial for trial in there if trial.outcome != "running" or last_row(trial.job, paths)]
    winners = jobs_of(search, winners_of(search, trials, paths), paths)
    for _, config in winners.values():
        write_config(config, paths)
    for trial in trials:  # the model is there, and nobody will judge it
        if trial.outcome == "finished" and trial.job not in (winners.keys() | experiment.jobs.keys()):
            Path(paths.resume(trial.job)).unlink(missing_ok=True)
    found = counts(trials)
    words = ", ".join(f"{found[name]} {name}" for name in ("finished", "stopped", "failed"))
    log.info("%d trials: %s; the winners: %s", len(trials), words, ", ".join(winners))
    ledger.check()
    write_found(experiment, trials, winners, reason, paths)


def main(arguments: argparse.Namespace) -> int:
    code_fingerprint()  # taken now: what is edited while this runs made none of its numbers
    experiment, paths = load_experiment(arguments.experiment), Paths(arguments.results)
    if experiment.search is None:
        raise ValueError(f"{arguments.experiment}: has no `search`")
    allocation = Allocation.here()
    stop = Stop(Deadline(allocation), arguments.stop_with_parent)
    cpus = experiment.search.settings.per_trial.cpus
    run = RunSettings(
        data_root=str(Path(arguments.data).absolute()),
        device=arguments.device,
        checkpoint_seconds=arguments.checkpoint_seconds,
        threads=cpus,
        slurm_job=allocation.slurm_job,
        campaign=allocation.campaign,
    )
    me = Holder.me(
        code=code_fingerprint(),
        device=arguments.device,
        threads=cpus,
        share=1,
        slurm_job=allocation.slurm_job,
        campaign=allocation.campaign,
    )
    name = experiment.search.id
    with Leases({name: me}, paths.search_lease) as leases:
        try:
            ended = End(stop.received, False)
            if leases.take(stop):
                ledger = Ledger(experiment.search, paths, leases.check, arguments.retry_failed)
                asked = WithinBudget(stop, lambda: refusal(experiment, paths))
                ended = search(experiment, ledger, run, asked, arguments.cpus or None)
        except LeaseLost as lost:
            ended = End(str(lost), False)
    if not ended.for_good:
        log.info("%s: not finished; the same command goes on", ended.reason)
    return 0 if ended.for_good else stage.NOT_FINISHED


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", nargs="?", default=DEFAULT_EXPERIMENT, help="an experiment file with a search")
    parser.add_argument("--results", default="results", help="root of the results (default: results)")
    parser.add_argument("--data", default="data", help="root of the data sets (default: data)")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="auto takes GPUs, if any")
    parser.add_argument("--cpus", type=int, default=0, help="for all together (default: 0, all that it may use)")
    parser.add_argument("--retry-failed", action="store_true", help="try again what has failed")
    parser.add_argument("--checkpoint-seconds", type=float, default=60.0, help="seconds between checkpoints")
    parser.add_argument(
        "--stop-with-parent",
        type=int,
        metavar="PID",
        help="checkpoint and leave when this parent process is gone (a Snakemake that was killed)",
    )
    stage.run(main, parser)
