"""How much of the difference between trials each varied field explains. A door of optuna.

Functional analysis of variance over a random forest (Hutter et al., An efficient approach for assessing hyperparameter
importance, 2014), with a fixed seed: the same trials give the same numbers. It tells what mattered in the space that
was searched, as far as these trials can show it, and in no other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.space import Domain
from pipeline.tried import option_texts

LEAST_FIELDS, LEAST_TRIALS = 2, 4  # of less nothing can be said
SEED = 0


def importances(
    domains: Mapping[str, Domain], chosen: Sequence[Mapping[str, Any]], values: Sequence[float]
) -> dict[str, float]:
    """The share of each field, the largest first; they sum to one. chosen: what each trial has, by the fields' names;
    of a list its text. Empty if there are too few fields or trials, or if no two values differ."""
    varied = [name for name in domains if len({row[name] for row in chosen}) > 1]
    if len(varied) < LEAST_FIELDS or len(values) < LEAST_TRIALS or max(values) - min(values) <= 1e-9 * _size(values):
        return {}
    import optuna  # it takes two seconds, and most reports need none

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions = {name: _distribution(optuna, domains[name]) for name in varied}
    study = optuna.create_study()
    for row, value in zip(chosen, values):
        params = {name: row[name] for name in varied}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=value))
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=SEED)
    try:
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    except RuntimeError:  # no tree could tell two trials apart
        return {}
    shares = {name: float(found[name]) for name in varied}
    if not all(map(math.isfinite, shares.values())):
        return {}
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def _size(values: Sequence[float]) -> float:
    return max(1e-300, *map(abs, values))


def _distribution(optuna: Any, domain: Domain) -> Any:
    if domain.is_list:
        return optuna.distributions.CategoricalDistribution(tuple(option_texts(domain).values()))
    low, high = domain.options
    if domain.kind == "integer":
        return optuna.distributions.IntDistribution(low, high)
    return optuna.distributions.FloatDistribution(low, high, log=domain.kind == "log_uniform")
