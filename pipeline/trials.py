"""What a search has tried, by its files: `trials.jsonl` says what was chosen and decided, the jobs' own files the rest.

No torch and no Ray here: plans, tables and MLflow look at searches by this module, whether they run or not.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pipeline.config import JobConfig, job_id, load_job
from pipeline.finished import is_trained
from pipeline.paths import Paths
from pipeline.reading import need
from pipeline.records import TrainingRecord, TrialRecord, parse_records, read_records
from pipeline.search_config import GOALS, Goal, Search

Outcome = Literal["running", "stopped", "finished", "failed"]


@dataclass(frozen=True)
class Trial:
    """One trial so far. running: begun, and nothing decided, whether or not a process is at it."""

    number: int
    job: str  # the last one, where it has changed
    values: dict[str, Any]  # by dotted path
    begun: str  # ISO 8601, UTC
    outcome: Outcome = "running"
    ended: str = ""
    epoch: int = 0  # finished epochs, when it was decided
    reason: str = ""
    changes: tuple[TrialRecord, ...] = field(default=())  # pbt: each time that it took over another's weights

    @property
    def stopped_at(self) -> int | None:
        """The epoch behind which rows of its job are not its own: a sweep may train the same job further. None: all
        are."""
        return self.epoch if self.outcome == "stopped" else None


def read_events(search: str, paths: Paths) -> list[TrialRecord]:
    """In the order of time; none before the search has begun. A last line that was cut off never happened. Raises
    ValueError for a broken one."""
    file = Path(paths.trials(search))
    return parse_records(TrialRecord, whole_lines(file), file) if file.exists() else []


def asked_for(search: Search, paths: Paths) -> list[TrialRecord]:
    """The events of the trials that are asked for: an earlier search may have asked for more."""
    return [event for event in read_events(search.id, paths) if event.trial < search.num_trials]


def whole_lines(file: Path) -> bytes:
    """Without a last line that has no end: who wrote it was killed over it, or is at it."""
    content = file.read_bytes()
    return content[: content.rfind(b"\n") + 1]


def trials_of(events: Iterable[TrialRecord]) -> list[Trial]:
    """By number."""
    found: dict[int, Trial] = {}
    for event in events:
        found[event.trial] = after(found.get(event.trial), event)
    return [found[number] for number in sorted(found)]


def after(trial: Trial | None, event: TrialRecord) -> Trial:
    """The trial as it is after an event; None: before it was begun."""
    if event.event == "begun":
        return Trial(event.trial, event.job, event.values, event.at)
    assert trial is not None
    if event.event == "changed":
        return replace(trial, job=event.job, changes=(*trial.changes, event), outcome="running")
    return replace(trial, outcome=event.event, ended=event.at, epoch=event.epoch, reason=event.reason)


def rows_of(job: str, paths: Paths) -> list[TrainingRecord]:
    """The rows of a job, as far as it was trained: up to its last checkpoint. Raises ValueError for a broken one."""
    file = _rows_file(job, paths)
    return [] if file is None else read_records(TrainingRecord, file)


def last_row(job: str, paths: Paths, until: int | None = None) -> TrainingRecord | None:
    """Of `rows_of`, without a look at the others: there may be thousands, of thousands of trials. until: the epoch
    that it may be of at the most; only where the job was trained beyond it the others are looked at."""
    file = _rows_file(job, paths)
    if file is None:
        return None
    content = file.read_bytes()
    rows = parse_records(TrainingRecord, content[content[:-1].rfind(b"\n") + 1 :], file)
    if rows and until is not None and rows[-1].epoch > until:
        rows = [row for row in rows_of(job, paths) if row.epoch <= until]
    return rows[-1] if rows else None


def _rows_file(job: str, paths: Paths) -> Path | None:
    """None of a job that has none yet."""
    for file in (paths.training(job) if is_trained(job, paths) else "", paths.training_so_far(job)):
        if file and Path(file).exists():
            return Path(file)
    return None


def value_of(row: TrainingRecord, goal: Goal) -> float | None:
    """None where it does not exist: the training failed, or its loss was not finite."""
    return getattr(row, goal) if row.status == "ok" else None


def score_of(row: TrainingRecord, goal: Goal) -> float | None:
    """The value, so turned that more is better."""
    value = value_of(row, goal)
    return value if value is None or GOALS[goal] == "max" else -value


def front(scores: list[tuple[float, ...]]) -> list[int]:
    """Which are not outdone: no other is at least as good in all and better in one. Equal ones all stay."""

    def outdone(i: int) -> bool:
        return any(
            all(a >= b for a, b in zip(other, scores[i])) and any(a > b for a, b in zip(other, scores[i]))
            for j, other in enumerate(scores)
            if j != i
        )

    return [i for i in range(len(scores)) if not outdone(i)]


def winners_of(search: Search, trials: list[Trial], paths: Paths) -> list[Trial]:
    """The best, the first goal's best first. Those that were trained to their last epoch come before any that were not.
    With two goals: of the front between them, spread evenly from one end to the other; if it has too few, then of the
    front of the others.

    Raises ValueError if no trial has a value.
    """
    goals, count = search.settings.goals, search.settings.winners.count
    scored: list[tuple[bool, tuple[float, ...], Trial]] = []
    for trial in {trial.job: trial for trial in reversed(trials)}.values():  # two of one job are one; the first counts
        row = last_row(trial.job, paths, trial.stopped_at)
        scores = [score_of(row, goal) for goal in goals] if row else [None]
        if None not in scores and trial.outcome != "failed":
            scored.append((trial.outcome == "finished", tuple(s for s in scores if s is not None), trial))
    again = "`python -m pipeline.search ... --retry-failed` tries them again"
    file = paths.trials(search.id)
    need(bool(scored), "no trial of the search has come to a value; their reasons stand in {}; {}", file, again)
    whole = [item for item in scored if item[0]] or scored
    in_order = sorted(whole, key=lambda item: (tuple(-s for s in item[1]), item[2].number))
    best: list[Trial] = []
    while in_order and len(best) < count:
        outer = front([item[1] for item in in_order])
        wanted = min(count - len(best), len(outer))
        chosen = [outer[round(k * (len(outer) - 1) / max(wanted - 1, 1))] for k in range(wanted)]
        best += [in_order[i][2] for i in chosen]
        in_order = [item for i, item in enumerate(in_order) if i not in outer]
    return best


def jobs_of(search: Search, winners: Iterable[Trial], paths: Paths) -> dict[str, tuple[Trial, JobConfig]]:
    """The jobs that the winners become: each with each of its seeds."""
    found = {}
    for trial in winners:
        config = load_job(paths.config(trial.job), trial.job)
        for seed in search.settings.winners.seeds or (config.seed,):
            own = replace(config, seed=seed)
            found.setdefault(job_id(own), (trial, own))
    return found
