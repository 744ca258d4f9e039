"""What a search will cost, before it runs: its trials, as if none were stopped, and its winners. No torch here.

Trials that stop early cost less, and which jobs win is not known: such costs are guesses, and refuse nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.config import JobConfig, job_id
from pipeline.cost import Each, RuleCost, costs_of, estimate
from pipeline.experiment import Experiment
from pipeline.finished import is_trained
from pipeline.past import DeviceSeconds, kinds_of
from pipeline.paths import Paths
from pipeline.search_config import Search
from pipeline.space import Values
from pipeline.trials import asked_for, trials_of
from pipeline.tried import is_done
from pipeline.winners import with_winners

MOST = 200  # trials that are looked at; the others are taken to cost as much


def estimate_whole(experiment: Experiment, paths: Paths, device: str = "auto") -> tuple[RuleCost, ...]:
    """What the search, the trainings of the sweep, the winners and the judgements have still to spend; see
    `cost.estimate`. Once the search is done its winners are jobs like the others."""
    experiment = with_winners(experiment, paths)
    train, evaluate = estimate(experiment, paths, device)
    if experiment.search is None or is_done(experiment, paths):
        return train, evaluate
    trials = [config for _, config in first_trials(experiment.search, MOST)]
    alike = {kinds_of(config)[0] for config in trials}
    own = experiment.jobs | {job_id(config): config for config in trials}
    training, judgement = costs_of(alike, own, experiment.evaluate_with, paths, device)
    search = _cost_of_trials(experiment.search, trials, training, paths)
    winners = _cost_of_winners(experiment.search, trials, training, judgement)
    sweep = (train, evaluate) if experiment.jobs else ()
    return search, winners, *sweep


def first_trials(search: Search, most: int) -> list[tuple[Values, JobConfig]]:
    """What is tried first, as far as it is known: by a search at random or over a grid just that; by another algorithm
    its random start. Raises ValueError if the conditions leave nothing."""
    if search.settings.algorithm == "grid":
        return search.grid()[: min(search.num_trials, most)]
    return search.first(min(search.num_trials, most))


def _cost_of_trials(
    search: Search, trials: Sequence[JobConfig], training: dict[JobConfig, Each], paths: Paths
) -> RuleCost:
    """Those that were trained for something else are found again."""
    decided = {trial.number for trial in trials_of(asked_for(search, paths)) if trial.outcome != "running"}
    left = max(0, search.num_trials - len(decided))
    seen = [config for number, config in enumerate(trials) if number not in decided]
    to_come = seen or (trials if left else [])  # those that are looked at may all be decided, and others to come
    new = [config for config in to_come if not (seen and is_trained(job_id(config), paths))]
    costs = [training[kinds_of(config)[0]] for config in new]
    sure = search.settings.algorithm != "tpe" and search.settings.scheduler.name == "none"
    known = sum((_seconds(each) for each in costs if sure and each.past), DeviceSeconds())
    guessed = sum((_seconds(each) for each in costs if not (sure and each.past)), DeviceSeconds())
    scale = left / len(to_come) if to_come else 0.0
    past = frozenset().union(*(each.past for each in costs))
    num_unknown = sum(each.seconds is None for each in costs)
    known, guessed = _times(known, scale), _times(guessed, scale)
    return RuleCost("search", search.num_trials, len(decided), known, guessed, past, num_unknown)


def _cost_of_winners(
    search: Search, trials: Sequence[JobConfig], training: dict[JobConfig, Each], judgement: dict[JobConfig, Each]
) -> RuleCost:
    """To train them with seeds that are not those of the trials, and to judge all, at the mean cost of the trials."""
    wanted, total, unknown = search.settings.winners, DeviceSeconds(), 0
    for config in trials:
        kind = kinds_of(config)[0]
        seeds = wanted.seeds or (config.seed,)
        new = sum(seed != config.seed for seed in seeds)
        total += _times(_seconds(training[kind]), new) + _times(_seconds(judgement[kind]), len(seeds))
        unknown += judgement[kind].seconds is None
    count = min(wanted.count, search.num_trials)
    num_jobs = count * max(1, len(wanted.seeds))
    past = frozenset().union(*(each.past for each in training.values()))
    return RuleCost("winners", num_jobs, 0, DeviceSeconds(), _times(total, count / len(trials)), past, unknown)


def _seconds(each: Each) -> DeviceSeconds:
    return DeviceSeconds(**{each.device: each.seconds or 0.0})


def _times(amount: DeviceSeconds, factor: float) -> DeviceSeconds:
    return DeviceSeconds(amount.gpu * factor, amount.core * factor)
