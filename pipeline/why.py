"""What became of one job: its attempts, the class of its newest failure and what to do, the ends of its logs; of a
trial, which it was of which search, and who stopped it.

python -m pipeline.why digits-gode-4c-degree1-rk44-seed0-1a2b3c4d5e
python -m pipeline.why 1a2b3c                    # any part of the name that only one job has
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from pipeline import slurm, stage
from pipeline.company import company_of
from pipeline.config import load_job
from pipeline.experiment import Experiment, load_experiment
from pipeline.failure import Evidence, Failure, end_of, failure_of, on_job
from pipeline.finished import is_trained
from pipeline.past import job_folders
from pipeline.paths import DEFAULT_EXPERIMENT, Paths
from pipeline.progress import Look, Place
from pipeline.queued import Queued, Rule
from pipeline.records import AttemptRecord
from pipeline.searching import sentence, trials_with
from pipeline.winners import with_winners

SLURM_LOGS = ".snakemake/slurm_logs"  # of the executor, below the folder that Snakemake was started in
NUM_LINES = 20  # of a log
WIDTH = 240  # of a line of it: Snakemake prints its own command line
HEAD = ("", "began", "where", "steps", "seconds", "outcome", "")


@dataclass(frozen=True)
class Case:
    """What became of a job's newest start."""

    place: Place
    failure: Failure
    logs: tuple[str, ...]  # its own, then that of SLURM; none of what is not there
    remark: str = ""  # that SLURM does not say
    tried: tuple[str, ...] = ()  # what became of it as a trial of a search, a sentence each


def find_job(part: str, there: Collection[str]) -> str:
    """The job whose id is `part`, or the only one with `part` in its id. Raises ValueError."""
    found = [part] if part in there else sorted(job for job in there if part in job)
    if len(found) == 1:
        return found[0]
    if found:
        some = ", ".join(found[:5]) + (", ..." if len(found) > 5 else "")
        raise ValueError(f"{part}: {len(found):,} jobs have this in their names; give more of one: {some}")
    near = difflib.get_close_matches(part, there, n=3, cutoff=0.4)
    hint = f"Did you mean {' or '.join(near)}?" if near else "`python -m pipeline.plan EXPERIMENT` lists those of one."
    raise ValueError(f"{part}: no such job here. {hint}")


def examine(job: str, paths: Paths, experiments: Iterable[Experiment], slurm_logs: str = SLURM_LOGS) -> Case:
    """experiments: those in which the job may stand, for how it is judged and which jobs it is trained with. Raises
    ValueError for a job whose config.json cannot be used."""
    experiments = list(experiments)
    judging, batch = company(job, paths, experiments)
    queue, remark = None, ""
    if slurm.installed():
        try:
            queue = slurm.queue(finished=True)
        except slurm.Away as away:
            remark = f"SLURM does not answer ({away}): this is what the files say."
    fleets = {job: [experiment.name for experiment in experiments if job in experiment.jobs]}
    look = Look(paths, judging, Queued(queue, {job: batch} if batch else {}, fleets))
    place = look.at(job, load_job(paths.config(job), job))
    rule: Rule = "evaluate" if is_trained(job, paths) else "train"
    trials = trials_with(job, paths)
    shared = shared_log(job, paths, experiments, [search for search, _ in trials]) if rule == "train" else ""
    logs = [log for log in (look.log(rule, job), shared) if log and os.path.getmtime(log) >= place.since]
    log = max(logs, key=os.path.getmtime, default="")
    with_others = Path(shared).parent.name if log == shared else ""  # the rule
    by_age = slurm_logs_of(slurm_logs, rule, job, batch, with_others)
    states = {row.id: row.state for row in queue or ()}
    decided = {trial.outcome: trial.reason for _, trial in trials if trial.job == job}
    left = replace(_evidence(place, log, by_age, states), given_up=decided.get("failed", ""))
    if log != paths.log(rule, job):
        left = _of_one(left, job, with_others, decided)
    failure = failure_of(left)
    names = {e.search.id: f"{e.search.id} ({e.name})" for e in experiments if e.search}
    if failure.kind == "signal" and "stopped" in decided:
        failure = Failure("none", "the search has stopped it")
    tried = tuple(sentence(names.get(search, search), trial, job) for search, trial in trials)
    return Case(place, failure, tuple(filter(None, (log, *map(str, by_age[-1:])))), remark, tried)


def _evidence(place: Place, log: str, slurm_logs: Sequence[Path], states: dict[str, str]) -> Evidence:
    """Of the newest start that has ended."""
    attempt = place.attempts[-1] if place.attempts else None
    if place.state == "done":
        return Evidence(attempt)
    if place.state == "training":
        # Its own log is that of the start that runs; of SLURM's logs the one counts that the attempt before has left.
        number = attempt.slurm_job if attempt else ""
        logs = [path for path in slurm_logs if path.stem == number]
        return Evidence(attempt, False, "", end_of(logs[-1]) if logs else "", states.get(number, ""))
    ended = place.last or attempt
    since = datetime.fromisoformat(ended.started).timestamp() if ended else 0.0
    newest = next((path for path in reversed(slurm_logs) if path.stat().st_mtime >= since), None)
    number = newest.stem if newest else ended.slurm_job if ended else ""
    slurm_log = end_of(newest) if newest else ""
    return Evidence(attempt, place.last is not None, end_of(log), slurm_log, states.get(number, ""))


def _of_one(left: Evidence, job: str, rule: str, decided: Collection[str]) -> Evidence:
    """What tells of this job, where the log is of several: of its batch, or of that rule. decided: as a trial. One that
    is decided had ended before the search did, whatever ended that."""
    left = replace(left, shared=True, log=left.log if rule else on_job(job, left.log))
    if rule == "search" and "stopped" in decided:
        return replace(left, log="", slurm_log="", slurm_state="")
    return replace(left, log="") if rule == "search" and "failed" in decided else left


def shared_log(job: str, paths: Paths, experiments: Iterable[Experiment], searches: Collection[str]) -> str:
    """The newest of those of a fleet that trains the job with others, and of the searches that have tried it; empty if
    there is none. What such a log ends with is the end of all; what became of one stands in its own records."""
    found = []
    for experiment in experiments:
        if experiment.search and experiment.search.id in searches:
            found.append(paths.log("search", experiment.name))
        if os.path.exists(log := paths.log("fleet", experiment.name)) and job in with_winners(experiment, paths).jobs:
            found.append(log)
    return max(filter(os.path.exists, found), key=os.path.getmtime, default="")


def slurm_logs_of(folder: str, rule: Rule, job: str, batch: str, shared: str = "") -> list[Path]:
    """Those that the executor has kept of a job, by age. It deletes them when a job succeeds. shared: the rule that
    has trained it with others, if one has: `fleet` or `search`."""
    places = [Path(folder, f"rule_{rule}", job), *([Path(folder, f"rule_{rule}_{batch}")] if batch else [])]
    places += [Path(folder, f"rule_{shared}")] if shared else []
    return sorted((path for place in places for path in place.glob("*.log")), key=lambda path: path.stat().st_mtime)


def company(job: str, paths: Paths, experiments: Iterable[Experiment]) -> tuple[str, str]:
    """The id of a job's judging and the name of its batch, by the experiment that was run with it; as far as they are
    known."""
    found = []
    for file in experiments:
        if job in with_winners(file, paths).jobs:
            judging = file.evaluate_with.id
            batch = company_of(file, paths).get(job, "")
            judged = any(map(os.path.exists, paths.judged(job, judging)))
            begun = bool(batch) and os.path.exists(paths.log("train", batch))
            found.append((judged, begun, judging, batch))
    if found:
        return max(found, key=lambda row: row[:2])[2:]
    judged = Path(paths.evaluation(job, "*"))
    return next((path.stem.partition("-")[2] for path in judged.parent.glob(judged.name)), "none"), ""


def render(case: Case) -> list[str]:
    place, failure = case.place, case.failure
    reached = f"at epoch {place.epoch} of {place.epochs}, step {place.step}"
    lines = [place.job, "", f"State: {place.state}, {reached}" + (f": {place.note}" if place.note else "")]
    lines += [*case.tried, *([case.remark] if case.remark else [])]
    if rows := list(_rows(place)):
        widths = [max(len(row[i]) for row in [HEAD, *rows]) for i in range(len(HEAD))]
        lines += ["", "Attempts:"]
        lines += ["  " + "  ".join(c.ljust(w) for c, w in zip(row, widths)).rstrip() for row in [HEAD, *rows]]
    lines += ["", f"Failure of the newest start: {failure.kind}" + (f" ({failure.said})" if failure.said else "")]
    lines += [f"What to do: {failure.advice}"]
    for log in case.logs:
        lines += ["", f"{log}:", *(f"  {line[:WIDTH]}" for line in _shown(log, place.job) or ["(empty)"])]
    return lines


def _shown(log: str, job: str) -> list[str]:
    """Its end; and before it, of a log of many jobs, what else names this one."""
    lines = end_of(log).splitlines()
    return [*[line for line in lines[:-NUM_LINES] if job in line][-NUM_LINES:], *lines[-NUM_LINES:]]


def _rows(place: Place) -> Iterable[tuple[str, ...]]:
    for number, attempt in enumerate(place.attempts, 1):
        yield _row(number, attempt)
    if place.last:
        yield _row(len(place.attempts) + 1, place.last, "runs" if place.state == "training" else "killed")


def _row(number: int, attempt: AttemptRecord, outcome: str = "") -> tuple[str, ...]:
    where = f"{attempt.host}, SLURM job {attempt.slurm_job}" if attempt.slurm_job else attempt.host
    began = datetime.fromisoformat(attempt.started).strftime("%Y-%m-%d %H:%M UTC")
    steps = f"{attempt.from_step} -> {attempt.to_step}"
    return str(number), began, where, steps, f"{attempt.seconds:.0f}", outcome or attempt.outcome, attempt.reason


def main(arguments: argparse.Namespace) -> None:
    paths = Paths(arguments.results)
    job = find_job(arguments.job, job_folders(paths))
    experiments = [load_experiment(arguments.experiment)] if arguments.experiment else shipped()
    print("\n".join(render(examine(job, paths, experiments, arguments.slurm_logs))))


def shipped() -> Iterable[Experiment]:
    """The experiments that come with this package, those that can be read."""
    for file in sorted(Path(DEFAULT_EXPERIMENT).parent.glob("*.yaml")):
        with contextlib.suppress(ValueError):  # somebody's draft tells nothing of this job
            yield load_experiment(file)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", help="a job's id, or a part of it that no other has")
    parser.add_argument("--results", default="results", help="root of the results (default: results)")
    parser.add_argument("--experiment", help="the file in which the job stands (default: those that are shipped)")
    parser.add_argument("--slurm-logs", default=SLURM_LOGS, help=f"where SLURM's logs are (default: {SLURM_LOGS})")
    stage.run(main, parser)
