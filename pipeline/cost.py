"""What an experiment will cost, from what jobs like its own have cost; and what its budget allows. No torch here.

A training costs as much for each field evaluation as the jobs of the narrowest kind that the results folder knows
(pipeline.past), by their median; a judgement as much as those of jobs that differ in the seed alone. All else is a
guess.
"""

from __future__ import annotations

import os
import statistics
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.config import JobConfig
from pipeline.counting import judging_evals, training_evals, training_steps
from pipeline.experiment import Budget, Experiment, Judging
from pipeline.finished import is_judged, is_trained
from pipeline.guess import seconds_per_eval
from pipeline.past import KINDS, DeviceSeconds, Kind, Past, cost_of, job_folders, kinds_of, read_attempts, read_past
from pipeline.paths import Paths
from pipeline.stacks import batches_of
from pipeline.tried import is_done, trial_jobs
from pipeline.winners import with_winners

START_UP = 5.0  # seconds of a process before its first step: imports, data
FORWARD = 1 / 3  # of the time of a field evaluation in training, which goes forwards and back
ADVICE = "raise `budget`, or take jobs out of the experiment"


Rule = Literal["search", "train", "winners", "evaluate"]


@dataclass(frozen=True)
class RuleCost:
    """What a rule of the Snakefile has still to spend."""

    rule: Rule
    num_jobs: int  # search: trials; winners: the jobs that they will be, while nobody knows which
    num_done: int  # their files exist
    known: DeviceSeconds  # to be spent, by what jobs like them have cost
    guessed: DeviceSeconds  # to be spent by the others
    past: frozenset[str]  # jobs that `known` rests on
    num_unknown: int  # jobs that cannot be guessed: only the data folder knows how many samples they see


@dataclass(frozen=True)
class Each:
    """One job of a kind: what it costs, and which jobs say so. A guess if there are none."""

    device: Kind
    seconds: float | None  # None: unknown
    past: frozenset[str] = frozenset()


def spent(experiment: Experiment, paths: Paths) -> DeviceSeconds:
    """By all attempts of all jobs, trials and winners too; one under way is counted when it ends. Raises ValueError for
    a broken row."""
    there = job_folders(paths)
    jobs = {*with_winners(experiment, paths).jobs, *trial_jobs(experiment.search, paths)}
    attempts = [attempt for job in sorted(jobs & there) for attempt in read_attempts(job, paths)]
    return sum(map(cost_of, attempts), DeviceSeconds())


def untrained(experiment: Experiment, paths: Paths) -> list[str]:
    """Jobs that lack a file of their training."""
    there = job_folders(paths)
    return [job for job in experiment.jobs if job not in there or not is_trained(job, paths)]


def estimate(experiment: Experiment, paths: Paths, device: str = "auto") -> tuple[RuleCost, RuleCost]:
    """What training and judging have still to spend, a search apart: see pipeline.search_cost. `device` is the run's;
    `auto` stands for what the past ran on, and for cores without a past."""
    jobs, judging, there = experiment.jobs, experiment.evaluate_with, job_folders(paths)
    to_train = untrained(experiment, paths)
    to_judge = [job for job in jobs if job not in there or not is_judged(job, judging.id, paths)]
    alike = {job: kinds_of(jobs[job])[0] for job in dict.fromkeys((*to_train, *to_judge))}
    training, judgement = costs_of(set(alike.values()), jobs, judging, paths, device)
    begun = {job for job in to_train if job in there and os.path.exists(paths.resume(job))}
    company = {job: batch.name for batch in batches_of(jobs, paths, judging.id) for job in batch.jobs}

    def with_start(costs: Mapping[str, tuple[Each, float]]) -> list[tuple[Each, float]]:
        """The start of a process is shared by the jobs that it is for."""
        size = Counter(company.get(job, job) for job in costs)
        return [
            (each, share * (each.seconds or 0.0) + START_UP / size[company.get(job, job)])
            for job, (each, share) in costs.items()
        ]

    train = {job: (training[alike[job]], _rest(job, jobs[job], paths) if job in begun else 1.0) for job in to_train}
    evaluate = {job: (judgement[alike[job]], 1.0) for job in to_judge}
    return _summed("train", len(jobs), with_start(train)), _summed("evaluate", len(jobs), with_start(evaluate))


def costs_of(
    alike: Collection[JobConfig], own: Mapping[str, JobConfig], judging: Judging, paths: Paths, device: str
) -> tuple[dict[JobConfig, Each], dict[JobConfig, Each]]:
    """What it costs to train, and to judge, one job of each kind. own: jobs whose past is looked at first."""
    past = read_past(set(alike), own, paths, judging.id, KINDS if device == "auto" else (_kind(device),))
    training = {config: _training(config, past, _kind(device)) for config in alike}
    return training, {config: _judgement(config, judging, past, training[config]) for config in alike}


def _summed(rule: Literal["train", "evaluate"], num_jobs: int, costs: Sequence[tuple[Each, float]]) -> RuleCost:
    known = guessed = DeviceSeconds()
    for each, seconds in costs:
        amount = DeviceSeconds(**{each.device: seconds})
        known, guessed = (known + amount, guessed) if each.past else (known, guessed + amount)
    past = frozenset().union(*{each.past for each, _ in costs})
    num_unknown = sum(each.seconds is None for each, _ in costs)
    return RuleCost(rule, num_jobs, num_jobs - len(costs), known, guessed, past, num_unknown)


def _training(config: JobConfig, past: Mapping[Hashable, list[Past]], device: Kind) -> Each:
    evals, kinds = training_evals(config), kinds_of(config)
    if evals is None:
        whole = _on_one_kind(each for each in past[kinds[0]] if each.whole)
        return _median(whole, [each.seconds for each in whole]) if whole else Each(device, None)
    for kind in kinds:
        if found := _on_one_kind(each for each in past[kind] if each.evals):
            return _median(found, [evals * each.seconds / each.evals for each in found if each.evals])
    return Each(device, evals * seconds_per_eval(config, config.train.batch_size, device))


def _judgement(config: JobConfig, judging: Judging, past: Mapping[Hashable, list[Past]], training: Each) -> Each:
    """By judgements of jobs that differ in the seed alone; else a guess, in so far as the machine's speed in training
    does not tell."""
    judged = _on_one_kind(each for each in past[kinds_of(config)[0]] if each.judging is not None)
    if judged:
        return _median(judged, [each.judging for each in judged if each.judging is not None])
    evals, trained, device = judging_evals(config, judging), training_evals(config), training.device
    if evals is None:
        return Each(device, None)
    seconds = evals * FORWARD * seconds_per_eval(config, judging.batch_size, device)
    if trained and training.seconds:
        seconds *= training.seconds / (trained * seconds_per_eval(config, config.train.batch_size, device))
    return Each(device, seconds)


def _median(found: Sequence[Past], seconds: Sequence[float]) -> Each:
    return Each(found[0].kind, statistics.median(seconds), frozenset(each.job for each in found))


def _on_one_kind(found: Iterable[Past]) -> list[Past]:
    """Those on a GPU, if any ran there."""
    found = list(found)
    return [each for each in found if each.kind == "gpu"] or found


def _kind(device: str) -> Kind:
    return "gpu" if device.startswith("cuda") else "core"


def _rest(job: str, config: JobConfig, paths: Paths) -> float:
    """The share of a training that was begun that is still to be done."""
    steps = training_steps(config)
    try:
        attempts = read_attempts(job, paths)
    except ValueError:
        return 1.0
    reached = attempts[-1].to_step if attempts else 0  # an earlier one may be of a training that was begun anew
    return max(0.0, 1 - reached / steps) if steps else 1.0


def keep_budget(budget: Budget, used: DeviceSeconds, rules: Sequence[RuleCost], root: str, where: str) -> str | None:
    """Raises ValueError, in one line, if the budget is spent, or if what is known to come would exceed it. A guess
    refuses nothing: it gives a line of warning. Where no training is left, what is trained may be judged."""
    if all(cost.num_done == cost.num_jobs for cost in rules if cost.rule != "evaluate"):
        return None
    if said := overspent(budget, used):
        raise ValueError(f"{where}: {said}")
    past = len(frozenset().union(*(cost.past for cost in rules)))
    warning = None
    for device, unit, limit in limits(budget):
        known, guessed = to_spend(rules, device)
        before = used.hours(device)
        if before + known > limit:
            raise ValueError(
                f"{where}: budget: {hours(before)} {unit} are spent and {hours(known)} more are needed "
                f"(by past jobs in {root}: {past}), which exceeds {hours(limit)}: {ADVICE}"
            )
        if before + known + guessed > limit:
            warning = (
                f"{where}: budget: {hours(before)} {unit} are spent and ~{hours(known + guessed)} more are needed "
                f"(a guess), which may exceed {hours(limit)}; no training begins on a cluster once it is spent"
            )
    return warning


def refusal(experiment: Experiment, paths: Paths) -> str:
    """Why no training may begin: there is a budget of which nothing is left, and there are trainings that would need
    it. Empty if one may. Raises ValueError for a broken row."""
    if experiment.budget is None:
        return ""
    whole = with_winners(experiment, paths)
    said = overspent(experiment.budget, spent(whole, paths))
    return said if said and not (is_done(whole, paths) and not untrained(whole, paths)) else ""


def is_spent(experiment: Experiment, paths: Paths) -> bool:
    """True if no training may begin: see `refusal`."""
    return bool(refusal(experiment, paths))


def overspent(budget: Budget, used: DeviceSeconds) -> str:
    """The first limit of which nothing is left, in a line; empty if something is left of each."""
    for device, unit, limit in limits(budget):
        if used.hours(device) >= limit:
            return f"budget of {hours(limit)} {unit} is spent ({hours(used.hours(device))}): {ADVICE}"
    return ""


def limits(budget: Budget) -> list[tuple[Kind, str, float]]:
    """The kinds of device that have a limit, the name of its unit, and the limit in hours."""
    found: list[tuple[Kind, str, float | None]] = [
        ("gpu", "GPU-hours", budget.gpu_hours),
        ("core", "core-hours", budget.core_hours),
    ]
    return [(device, unit, limit) for device, unit, limit in found if limit is not None]


def to_spend(rules: Sequence[RuleCost], device: Kind) -> tuple[float, float]:
    """Hours that are known, and that are guessed."""
    return sum(cost.known.hours(device) for cost in rules), sum(cost.guessed.hours(device) for cost in rules)


def hours(number: float) -> str:
    """Two digits at least, and as many as it takes to tell 40.3 from 40."""
    return f"{number:,.1f}".removesuffix(".0") if number >= 10 else f"{number:.2g}"


def duration(seconds: float) -> str:
    """For people: `99 s`, `2 min`, `1.7 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
