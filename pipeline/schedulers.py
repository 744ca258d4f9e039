"""Who stops a trial before its end, as Ray Tune has it. A door of ray."""

from __future__ import annotations

import random
from typing import Any

from ray.tune import schedulers

from pipeline.search_config import Search


def scheduler_of(search: Search) -> Any:
    """Of rows whose `score` is to be high, at their `epoch`."""
    rule = search.settings.scheduler
    epochs = max(config.train.epochs for config in search.check())  # they may be searched, too
    if rule.name == "asha":
        grace = min(rule.grace_epochs, epochs)
        return schedulers.ASHAScheduler(
            time_attr="epoch", max_t=epochs, grace_period=grace, reduction_factor=rule.reduction, brackets=1
        )
    if rule.name == "hyperband":
        return Bands(time_attr="epoch", max_t=epochs, reduction_factor=rule.reduction)
    if rule.name == "median":
        return schedulers.MedianStoppingRule(time_attr="epoch", grace_period=rule.grace_epochs, hard_stop=True)
    if rule.name == "pbt":
        return _population(search)
    return schedulers.FIFOScheduler()


class Bands(schedulers.HyperBandScheduler):
    """Ray marks a group as being looked at, so that those that it stops then do not make it look again, and leaves the
    mark for ever: from the second look on, a group whose last trial fails would wait for it without end."""

    def _process_bracket(self, tune_controller: Any, bracket: Any) -> str:
        action = super()._process_bracket(tune_controller, bracket)
        bracket.is_being_processed = False
        return action


MOST_DRAWS = 50


class Population(schedulers.PopulationBasedTraining):
    """Whom a trial takes over, and what becomes of the rates, is a function of the search's seed, the trial and the
    epoch. Ray draws both from the process's generator, which others use in between."""

    seed = 0

    def _checkpoint_or_exploit(self, trial: Any, tune_controller: Any, *quantiles: Any) -> None:
        place = tune_controller.get_trials().index(trial)
        random.seed(f"{self.seed}/{place}/{trial.last_result.get('epoch')}")
        super()._checkpoint_or_exploit(trial, tune_controller, *quantiles)

    def _get_new_config(self, trial: Any, trial_to_clone: Any) -> Any:
        """The rates alone: what a trial is given, its number and its first job, stays its own. Drawn again while they
        are those of the other, as at an end of the space: one job is not two trials."""
        for _ in range(MOST_DRAWS):
            config, *rest = super()._get_new_config(trial, trial_to_clone)
            if any(config[name] != trial_to_clone.config[name] for name in self._hyperparam_mutations):
                break
        return config | {"given": trial.config["given"]}, *rest


def _population(search: Search) -> Population:
    rule = search.settings.scheduler
    domains = {path.removeprefix("train."): domain for path, domain in search.space.domains.items()}

    def explored(config: dict[str, Any]) -> dict[str, Any]:
        """With as many digits as people care for, and within the space."""
        for name, domain in domains.items():
            if not domain.is_finite:
                config[name] = domain.rounded(config[name])
        return config

    choices: dict[str, Any] = {
        name: list(domain.all()) if domain.is_finite else (lambda d=domain: d.draw(random.Random(random.random())))
        for name, domain in domains.items()
    }
    found = Population(
        time_attr="epoch",
        perturbation_interval=rule.interval,
        hyperparam_mutations=choices,
        quantile_fraction=rule.quantile,
        resample_probability=0.0,
        perturbation_factors=(rule.factor, 1 / rule.factor),
        custom_explore_fn=explored,
        log_config=False,
        synch=search.settings.synchronous,
    )
    found.seed = search.settings.seed
    return found
