"""Where a search stands, by its files; and which trials a job was. No torch here.

The look is the same whether a search runs, waits to be gone on with, or is done.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.experiment import Experiment
from pipeline.past import DeviceSeconds, cost_of
from pipeline.paths import Paths
from pipeline.search_words import GOALS_IN_WORDS, came_to, end
from pipeline.trials import Outcome, Trial, read_events, trials_of
from pipeline.tried import Tried, attempts_of, best_of, counts, read_found, read_tried, trial_jobs


@dataclass(frozen=True)
class Searching:
    """What has come of a search so far."""

    wanted: int  # trials
    counts: Mapping[Outcome, int]
    undecided: tuple[tuple[int, str], ...]  # the trials that go on, and their jobs
    best: str  # in words; empty if no trial has a value
    ended: str | None  # why there are no more trials, once it is done
    spent: DeviceSeconds  # by the jobs of trials that are none of the experiment
    steps: int  # what trials have come to whose jobs are none of it
    slurm: str = ""  # the SLURM job that it is, in words; empty without one

    @property
    def is_done(self) -> bool:
        return self.ended is not None

    def __str__(self) -> str:
        end = f" Done: {self.ended}." if self.ended is not None else f" Its {self.slurm}." if self.slurm else ""
        best = f" Best{'' if self.is_done else ' so far'}: {self.best}." if self.best else ""
        return f"Search: {came_to(self.counts)}, of {self.wanted:,} trials asked for.{best}{end}"


def searching(experiment: Experiment, paths: Paths) -> Searching | None:
    """None without a search. experiment: with its winners. Raises ValueError for a broken file."""
    search = experiment.search
    if search is None:
        return None
    found = read_found(experiment, paths)
    tried = read_tried(search, paths, found)
    others = {each.trial.job: each for each in tried if each.trial.job not in experiment.jobs}.values()
    best = best_of(search, tried)
    return Searching(
        wanted=search.num_trials,
        counts=counts(each.trial for each in tried),
        undecided=tuple((each.number, each.trial.job) for each in tried if each.trial.outcome == "running"),
        best=_describe(best, experiment) if best else "",
        ended=found.ended if found else None,
        spent=_spent(experiment, tried, paths),
        steps=sum(each.step for each in others),
    )


def _spent(experiment: Experiment, tried: Sequence[Tried], paths: Paths) -> DeviceSeconds:
    """As `cost.spent` counts it, each job once: those too that a trial has left for another's weights, and those of an
    earlier search that asked for more trials."""
    read = {job for each in tried for job in each.jobs}
    others = [job for job in trial_jobs(experiment.search, paths) if job not in read]
    attempts = [attempt for each in tried for attempt in each.attempts]
    attempts += [attempt for job in others for attempt in attempts_of(job, paths)]
    once = dict.fromkeys(attempt for attempt in attempts if attempt.job not in experiment.jobs)
    return sum(map(cost_of, once), DeviceSeconds())


def _describe(best: Tried, experiment: Experiment) -> str:
    assert experiment.search is not None
    goal = experiment.search.settings.goals[0]
    value = best.value(goal)
    assert value is not None
    text = f"{100 * value:.1f} %" if goal == "validation_accuracy" else f"{value:.3g}"
    return f"{GOALS_IN_WORDS[goal]} {text} after epoch {best.epoch} (trial {best.number})"


def trials_with(job: str, paths: Paths) -> list[tuple[str, Trial]]:
    """The searches below this folder that have tried a job, and the trials. A file that is broken tells nothing."""
    file, found = Path(paths.trials("*")), []
    for path in sorted(file.parents[1].glob(f"*/{file.name}")):
        with contextlib.suppress(ValueError):
            events = read_events(path.parent.name, paths)
            numbers = {event.trial for event in events if event.job == job}
            found += [(path.parent.name, trial) for trial in trials_of(events) if trial.number in numbers]
    return found


def sentence(search: str, trial: Trial, job: str) -> str:
    """What became of a job as a trial. search: its id or name."""
    if trial.job != job:
        return f"It was trial {trial.number} of the search {search}, which went on with {trial.job}."
    after = f" after epoch {trial.epoch}" if trial.outcome in ("stopped", "failed") else ""
    said = f" ({trial.reason})" if trial.outcome == "failed" and trial.reason else ""
    return f"It was trial {trial.number} of the search {search}: {end(trial.outcome, trial.reason)}{after}{said}."
