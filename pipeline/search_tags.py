"""What a search has made of its jobs, as tags that MLflow can show and sort by. No torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline.paths import Paths
from pipeline.search_config import Search
from pipeline.search_words import how
from pipeline.trials import Trial, read_events, trials_of
from pipeline.tried import counts, short_text

LONGEST = 500  # letters of a reason


def trials_by_job(search: Search | None, paths: Paths) -> dict[str, list[Trial]]:
    """The trials of each job: several, where the same was tried twice. Of one that went on as another job, the one it
    has come to. Raises ValueError for a broken file."""
    found: dict[str, list[Trial]] = {}
    for trial in trials_of(read_events(search.id, paths)) if search else ():
        found.setdefault(trial.job, []).append(trial)
    return found


def tags_of(trials: Sequence[Trial]) -> dict[str, str]:
    """Of one job: its numbers as trials, what was chosen, and what became of it."""
    last = trials[-1]
    tags = {"gode.trial": " ".join(str(trial.number) for trial in trials), "gode.outcome": last.outcome}
    tags |= {"gode.reason": last.reason[:LONGEST] or "none", "gode.epoch": str(last.epoch)}
    return tags | {f"gode.chosen.{path}": short_text(value) for path, value in last.values.items()}


def tags_of_search(search: Search, trials: Mapping[str, Sequence[Trial]]) -> dict[str, str]:
    """Of the experiment: how it searches, and how many trials have come to what, of those that are asked for: what an
    earlier search has tried beyond them is shown, and does not count."""
    settings = search.settings
    tags = {"gode.search": search.id, "search.how": how(search), "search.goals": " ".join(settings.goals)}
    tags |= {"search.algorithm": settings.algorithm, "search.scheduler": settings.scheduler.name}
    tags |= {"search.seed": str(settings.seed), "search.num_trials": str(search.num_trials)}
    found = counts(trial for same in trials.values() for trial in same if trial.number < search.num_trials)
    return tags | {f"search.{outcome}": str(number) for outcome, number in found.items()}
