"""What a search has come to so far: its trials with the rows of their trainings, the best, the front. No torch here.

Whether the search runs, is done or was killed: all is read from its files.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from pipeline.config import JobConfig, load_job
from pipeline.ending import CLOCKS
from pipeline.experiment import Experiment
from pipeline.past import read_attempts
from pipeline.paths import Paths
from pipeline.records import AttemptRecord, TrainingRecord
from pipeline.search_config import Goal, Search, Settings
from pipeline.space import Domain
from pipeline.trials import (
    Outcome,
    Trial,
    asked_for,
    front,
    last_row,
    read_events,
    rows_of,
    score_of,
    trials_of,
    value_of,
)
from pipeline.winners import read_winners

log = logging.getLogger(__name__)
OUTCOMES: tuple[Outcome, ...] = ("finished", "stopped", "failed", "running")  # in the order of a sentence


@dataclass(frozen=True)
class Tried:
    """A trial and what was trained for it. jobs: one, or, where it took over another's weights, one after the other."""

    trial: Trial
    jobs: tuple[str, ...]
    last: TrainingRecord | None  # of the last job: its last row
    attempts: tuple[AttemptRecord, ...]  # of all of them, whoever made them
    paths: Paths
    until: int | None = None  # the epoch behind which rows of its job are not its own; None: all are
    ended: str = ""  # and when that was; ISO 8601, UTC

    @property
    def number(self) -> int:
        return self.trial.number

    @cached_property
    def rows(self) -> list[TrainingRecord]:
        """Its own of the last job, read when they are asked for."""
        rows = rows_of(self.trial.job, self.paths)
        return [row for row in rows if self.until is None or row.epoch <= self.until]

    @property
    def epoch(self) -> int:
        """Finished epochs, as far as they are kept."""
        return max(self.trial.epoch, self.last.epoch if self.last else 0)

    @property
    def step(self) -> int:
        return self.last.step if self.last else 0

    @property
    def seconds(self) -> float:
        """Of training, for this trial; of seconds that several trainings shared, its part."""
        return sum(each.seconds / each.share for each in self.attempts if self._is_own(each))

    def _is_own(self, attempt: AttemptRecord) -> bool:
        """True if it began while the trial went on, as in `ending.spent_on`; of one without an end all are."""
        if not self.ended:
            return True
        begun, at, end = (
            datetime.fromisoformat(s).timestamp() for s in (self.trial.begun, attempt.started, self.ended)
        )
        return begun - CLOCKS <= at <= end

    @property
    def evals(self) -> float:
        """Field evaluations of its training."""
        steps = [0, *(row.step for row in self.rows)]
        return sum(row.num_evals * (row.step - before) for row, before in zip(self.rows, steps))

    def value(self, goal: Goal) -> float | None:
        """At the last row; None where there is none."""
        return value_of(self.last, goal) if self.last else None

    def scores(self, goals: Iterable[Goal]) -> tuple[float, ...] | None:
        """The values, so turned that more is better; None if one lacks, or the trial has failed."""
        if self.last is None or self.trial.outcome == "failed":
            return None
        found = [score_of(self.last, goal) for goal in goals]
        return None if None in found else tuple(score for score in found if score is not None)


def read_tried(search: Search, paths: Paths, found: Found | None = None) -> list[Tried]:
    """By number, as many as are asked for: an earlier search may have asked for more. None before it has begun. found:
    what it has come to, once it is done. Raises ValueError for a broken file."""
    events = asked_for(search, paths)
    jobs: dict[int, dict[str, None]] = {}
    for event in events:
        if event.event in ("begun", "changed"):
            jobs.setdefault(event.trial, {})[event.job] = None
    tried = []
    for trial in trials_of(events):
        own = tuple(jobs[trial.number])
        until, ended = _end_of(trial, found)
        attempts = tuple(attempt for job in own for attempt in attempts_of(job, paths))
        tried.append(Tried(trial, own, last_row(trial.job, paths, until), attempts, paths, until, ended))
    return tried


def _end_of(trial: Trial, found: Found | None) -> tuple[int | None, str]:
    """The epoch, and the time, behind which a job is no more trained for the trial: one that was stopped may be trained
    further by a sweep, and one that was undecided when the search ended may win. Nothing: all is its own."""
    if trial.outcome == "running" and found is not None and found.undecided is not None:
        return found.undecided.get(trial.number, 0), found.at
    return trial.stopped_at, trial.ended if trial.outcome == "stopped" else ""


def attempts_of(job: str, paths: Paths) -> list[AttemptRecord]:
    """None where a row is broken, which is said: all else of the search is as it was, and can be shown."""
    try:
        return read_attempts(job, paths)
    except ValueError as error:
        _warn(str(error))
        return []


@cache
def _warn(text: str) -> None:
    """Once: `resume` looks again every minute."""
    log.warning("%s", text)


def trial_jobs(search: Search | None, paths: Paths) -> list[str]:
    """All jobs that trials have begun, each once; none without a search."""
    events = read_events(search.id, paths) if search else []
    return list(dict.fromkeys(event.job for event in events if event.event in ("begun", "changed")))


def load_jobs(jobs: Iterable[str], paths: Paths) -> dict[str, JobConfig]:
    """Of trials. One whose config.json is not yet there has not begun."""
    return {job: load_job(paths.config(job), job) for job in jobs if Path(paths.config(job)).exists()}


def is_done(experiment: Experiment, paths: Paths) -> bool:
    """True if the experiment has no search, or its search has come to its winners."""
    search = experiment.search
    return search is None or Path(paths.found(experiment.name, search.result_id)).exists()


@dataclass(frozen=True)
class Found:
    """What a search that is done has come to."""

    ended: str  # why there are no more trials
    winners: Mapping[int, tuple[str, ...]]  # the jobs that a trial became, by its number, the best first
    at: str = ""  # when; ISO 8601, UTC
    undecided: Mapping[int, int] | None = None  # epochs that such trials had then; None: an older file does not say


def read_found(experiment: Experiment, paths: Paths) -> Found | None:
    """None while the search is not done. Raises ValueError for a broken file."""
    assert experiment.search is not None
    if not read_winners(experiment, paths):  # which checks the file
        return None
    file = paths.found(experiment.name, experiment.search.result_id)
    try:
        data = json.loads(Path(file).read_text())
        winners: dict[int, tuple[str, ...]] = {}
        for job, row in data["jobs"].items():
            winners[row["trial"]] = (*winners.get(row["trial"], ()), job)
        epochs = data.get("undecided")  # not in older files
        undecided = None if epochs is None else {int(number): int(epoch) for number, epoch in epochs.items()}
        return Found(str(data["ended"]), winners, str(data.get("at", "")), undecided)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file}: not what a search has found ({error}); delete it to have it made again") from None


def counts(trials: Iterable[Trial]) -> dict[Outcome, int]:
    """How many trials have come to what."""
    found = Counter(trial.outcome for trial in trials)
    return {outcome: found[outcome] for outcome in OUTCOMES}


def front_goals(settings: Settings) -> tuple[Goal, Goal]:
    """What the front lies between: the two goals, or the one and its cost."""
    first, *second = settings.goals
    return first, second[0] if second else "num_evals"


def on_front(search: Search, tried: Iterable[Tried]) -> set[int]:
    """The numbers of the trials that none outdoes in both; of those that were trained to their last epoch, if any was:
    one that was stopped could still have changed."""
    goals = front_goals(search.settings)
    scored = [(each, scores) for each in tried if (scores := each.scores(goals))]
    whole = [item for item in scored if item[0].trial.outcome == "finished"] or scored
    return {whole[i][0].number for i in front([scores for _, scores in whole])}


def best_of(search: Search, tried: Iterable[Tried]) -> Tried | None:
    """By the first goal, whether or not it was trained to its last epoch."""
    scored = [(scores, -each.number, each) for each in tried if (scores := each.scores(search.settings.goals[:1]))]
    return max(scored, key=lambda item: item[:2])[2] if scored else None


def option_text(domain: Domain, value: Any) -> str:
    """One value of a field in few words: `euler@4`, `neural_ode`, `gode degree=1 num_coefficients=4`."""
    if not domain.is_list:
        return f"{value:.4g}" if isinstance(value, float) else str(value)
    texts = option_texts(domain)
    return texts.get(_key(value), _key(value))


def option_texts(domain: Domain) -> dict[str, str]:
    """Of all values of a list, each by its JSON. Values that would read alike stand in full."""
    short = {_key(option): short_text(option) for option in domain.options}
    return short if len(set(short.values())) == len(short) else {key: key for key in short}


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def short_text(value: Any) -> str:
    """One value in few words, whatever else there is to choose."""
    if isinstance(value, Mapping):
        return " ".join(_leaves(value)) or "{}"
    if value is None:
        return "none"
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return value if isinstance(value, str) else f"{value:g}" if plain else _key(value)


def _leaves(data: Mapping[str, Any]) -> Iterable[str]:
    """`family: gode` says it without its key."""
    for key, value in data.items():
        if isinstance(value, Mapping):
            yield from _leaves(value)
        else:
            yield short_text(value) if key in ("family", "solver", "name") else f"{key}={short_text(value)}"
