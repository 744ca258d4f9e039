"""What a search tries next: a function of its seed, the trial's number, and what is known of former trials.

Nothing is kept in between, so that a search which was interrupted goes on as it would have gone. The door of optuna,
whose tree-structured Parzen estimator (Bergstra et al. 2011; several goals: Ozaki et al. 2022) is used where results
are to guide the choice.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pipeline.config import JobConfig, job_id
from pipeline.search_config import GOALS, Search
from pipeline.space import Domain, Values

log = logging.getLogger(__name__)
MOST_REFUSED = 50  # suggestions that the conditions forbid, or that were tried, after which one is drawn at random
FIRST = 10  # trials, at most, that are drawn at random: before that the estimator has nothing to go by


@dataclass(frozen=True)
class Told:
    """A former trial: its goals' values, None without any; `whole` if they are those of its last epoch."""

    values: Values
    results: tuple[float, ...] | None
    running: bool = False
    whole: bool = True


class Suggestions:
    """suggest(number, former) -> what to try, and its job."""

    def __init__(self, search: Search):
        self.search = search
        self.grid = search.grid() if search.settings.algorithm == "grid" else []

    def suggest(self, number: int, former: Sequence[Told], taken: Collection[str] = ()) -> tuple[Values, JobConfig]:
        """`taken`: jobs of other trials, none of which is tried again. Raises ValueError if there is nothing else."""
        algorithm = self.search.settings.algorithm
        if algorithm == "grid":
            return self.grid[number]
        first = min(FIRST, max(2, self.search.num_trials // 4))
        if algorithm == "random" or number < first:
            return self.search.drawn(number, taken)
        return self._estimated(number, former, taken)

    def _estimated(self, number: int, former: Sequence[Told], taken: Collection[str]) -> tuple[Values, JobConfig]:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        space, settings = self.search.space, self.search.settings
        directions: list[Any] = ["maximize" if GOALS[goal] == "max" else "minimize" for goal in settings.goals]
        domains = {path: _distribution(domain) for path, domain in space.domains.items()}
        known = [_trial(i, told, space.domains, domains, len(settings.goals)) for i, told in enumerate(former)]
        for attempt in range(MOST_REFUSED):
            seed = random.Random(f"{settings.seed}/{number}/{attempt}").getrandbits(32)
            sampler = optuna.samplers.TPESampler(
                seed=seed, n_startup_trials=0, multivariate=False, constant_liar=len(settings.goals) == 1
            )
            study = optuna.create_study(sampler=sampler, directions=directions)
            study.add_trials(known)
            asked = study.ask(domains)
            values = {path: _back(domain, asked.params[path]) for path, domain in space.domains.items()}
            try:
                config = self.search.job_of(values)
            except ValueError as error:  # a combination that was not met when the file was checked
                log.warning("not tried: %s", error)
                continue
            if config is not None and job_id(config) not in taken:
                return values, config
        return self.search.drawn(number, taken)


def _distribution(domain: Domain) -> Any:
    import optuna.distributions as d

    if domain.is_list:
        return d.CategoricalDistribution(tuple(range(len(domain.options))))  # options may be whole sections of a job
    low, high = domain.options
    if domain.kind == "integer":
        return d.IntDistribution(int(low), int(high))
    return d.FloatDistribution(low, high, log=domain.kind == "log_uniform")


def _index(domain: Domain, value: Any) -> Any:
    return domain.options.index(value) if domain.is_list else value


def _back(domain: Domain, parameter: Any) -> Any:
    if domain.is_list:
        return domain.options[parameter]
    return parameter if domain.kind == "integer" else domain.rounded(parameter)


def _trial(number: int, told: Told, domains: Mapping[str, Domain], distributions: Mapping[str, Any], goals: int) -> Any:
    """As optuna keeps it. One that was stopped early counts by where it was (with several goals, as if it were whole);
    one that came to nothing is left out of account."""
    from optuna.trial import FrozenTrial, TrialState

    state, results = TrialState.COMPLETE, told.results
    if told.running:
        state, results = TrialState.RUNNING, None
    elif results is None:
        state = TrialState.FAIL
    elif not told.whole and goals == 1:
        state = TrialState.PRUNED
    pruned = state == TrialState.PRUNED
    return FrozenTrial(
        number=number,
        trial_id=number,
        state=state,
        value=None,
        values=None if pruned or results is None else [float(x) for x in results],
        datetime_start=datetime(2000, 1, 1),
        datetime_complete=None if told.running else datetime(2000, 1, 1),
        params={path: _index(domain, told.values[path]) for path, domain in domains.items()},
        distributions=dict(distributions),
        user_attrs={},
        system_attrs={},
        intermediate_values={1: float(results[0])} if pruned and results else {},
    )
