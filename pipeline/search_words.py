"""A search in words, for plans, pages and tags. No torch here."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.search_config import Goal, PerTrial, Scheduler, Search, SearchBudget
from pipeline.trials import Outcome

GOALS_IN_WORDS: dict[Goal, str] = {
    "validation_accuracy": "validation accuracy",
    "validation_loss": "validation loss",
    "num_evals": "number of field evaluations",
}
ALGORITHMS = {"random": "random search", "grid": "grid search", "tpe": "Optuna's TPE"}
SCHEDULERS = {"asha": "ASHA", "hyperband": "HyperBand", "median": "median stopping", "pbt": "population based training"}
NOT_DECIDED = "not decided"  # begun, and neither finished nor stopped


def goals(search: Search) -> str:
    """`the highest validation accuracy and the lowest number of field evaluations`."""
    best = {"validation_accuracy": "highest", "validation_loss": "lowest", "num_evals": "lowest"}
    return " and ".join(f"the {best[goal]} {GOALS_IN_WORDS[goal]}" for goal in search.settings.goals)


def how(search: Search) -> str:
    """The algorithm, who stops trials, the seed."""
    settings = search.settings
    stops = stopper(settings.scheduler)
    tact = ", synchronous" if settings.synchronous else ""
    return f"{ALGORITHMS[settings.algorithm]}{tact} (seed {settings.seed}), {stops}"


def stopper(scheduler: Scheduler) -> str:
    name = SCHEDULERS.get(scheduler.name, "")
    grace = f"after {scheduler.grace_epochs} epoch{'' if scheduler.grace_epochs == 1 else 's'} at the earliest"
    if scheduler.name == "none":
        return "nothing is stopped early"
    if scheduler.name == "pbt":
        share = f"the worst {100 * scheduler.quantile:g} % take over weights of the best"
        return f"{name}: every {scheduler.interval} epochs {share}, with rates times or divided by {scheduler.factor:g}"
    if scheduler.name == "median":
        return f"{name} {grace}"
    after = f" {grace}" if scheduler.name == "asha" else ""
    return f"{name}{after}: the best 1/{scheduler.reduction} go on"


def budget(limits: SearchBudget) -> str:
    units = {"minutes": "minutes", "gpu_hours": "GPU-hours", "core_hours": "core-hours"}
    given = {name: value for name, value in vars(limits).items() if value is not None}
    return ", ".join(f"{value:g} {units[name]}" for name, value in given.items())


def per_trial(needs: PerTrial) -> str:
    cores = f"{needs.cpus} core{'' if needs.cpus == 1 else 's'}"
    return f"{cores}, a GPU where there is one" if needs.gpus is None else f"{cores}, {needs.gpus:g} GPUs"


def winners(search: Search) -> str:
    """`the 3 best, with 2 seeds each (0, 1)`."""
    wanted = search.settings.winners
    which = "the best" if wanted.count == 1 else f"the {wanted.count} best"
    front = " of the front between the goals" if len(search.settings.goals) == 2 and wanted.count > 1 else ""
    if not wanted.seeds:
        return f"{which}{front}, with the seed of the trial"
    number = len(wanted.seeds)
    seeds = ", ".join(map(str, wanted.seeds))
    return f"{which}{front}, with {number} seed{'' if number == 1 else 's each'} ({seeds})"


def end(outcome: Outcome, reason: str) -> str:
    """How a trial ended: `stopped by ASHA`, `stopped: its budget is spent`, `finished`, `finished, nonfinite`."""
    if outcome == "stopped":
        return f"stopped by {SCHEDULERS[reason]}" if reason in SCHEDULERS else f"stopped: {reason.partition(':')[0]}"
    if outcome == "finished" and reason not in ("", "ok"):
        return f"finished, {reason}"
    return NOT_DECIDED if outcome == "running" else outcome


def came_to(counts: Mapping[Outcome, int]) -> str:
    """`9 finished, 14 stopped, 1 failed`: those that there are."""
    found = [f"{number} {NOT_DECIDED if name == 'running' else name}" for name, number in counts.items() if number]
    return ", ".join(found) or "none begun"
