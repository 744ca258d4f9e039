"""The book of a search that is under way: what is tried next, and what was decided. One process writes it.

Each line is written before anything is done by it, so that whoever comes after a fault goes on with the same trials.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pipeline.config import JobConfig, job_id, load_job
from pipeline.describe import write_config
from pipeline.holder import now
from pipeline.paths import Paths
from pipeline.reading import need
from pipeline.records import TrialRecord, append_record, replace_file
from pipeline.search_config import Exhausted, Search
from pipeline.suggest import Suggestions, Told
from pipeline.trials import Trial, after, last_row, read_events, trials_of, value_of, whole_lines


class Ledger:
    """Raises ValueError for a broken file, OSError if it cannot be written."""

    def __init__(
        self, search: Search, paths: Paths, check: Callable[[], None] = lambda: None, retry_failed: bool = False
    ):
        """`check` is called before each line; it raises LeaseLost if another process writes now."""
        self.search, self.paths, self.check = search, paths, check
        self.asked = range(search.num_trials)  # the numbers of the trials that are asked for
        self.file = Path(paths.trials(search.id))
        if self.file.exists() and self.file.read_bytes() != (whole := whole_lines(self.file)):
            replace_file(self.file, whole)
        events = read_events(search.id, paths)
        self.trials = {trial.number: trial for trial in trials_of(events)}
        if retry_failed:
            failed = {number: trial for number, trial in self.trials.items() if trial.outcome == "failed"}
            self.trials |= {number: replace(trial, outcome="running") for number, trial in failed.items()}
        self.suggestions = Suggestions(search)
        self.taken = {event.job for event in events}  # by trials, whatever became of them
        self.results: dict[int, tuple[float, ...] | None] = {}  # the goals' values at the end of what was trained
        self.cut: set[int] = set()
        for trial in self.trials.values():
            self._read_end(trial)

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles all that it is given, into a file that nobody reads; and a lease is a thread's."""
        return {name: value for name, value in vars(self).items() if name != "check"}

    @property
    def undecided(self) -> list[int]:
        """And those that were decided to stop where their files do not reach to: the process was killed over it."""
        return [n for n in self.asked if n not in self.trials or self.trials[n].outcome == "running" or n in self.cut]

    def _read_end(self, trial: Trial) -> None:
        """Of what was trained for a trial that was decided and has not failed."""
        if trial.outcome in ("finished", "stopped"):
            row, goals = last_row(trial.job, self.paths, trial.stopped_at), self.search.settings.goals
            self.results[trial.number] = _whole(tuple(value_of(row, goal) for goal in goals)) if row else None
            if trial.outcome == "stopped" and (row is None or row.epoch < trial.epoch):
                self.cut.add(trial.number)

    def ended_at(self, trial: Trial) -> int | None:
        """The epoch of one that is not to be trained further: where it was stopped, whether its rows are there or are
        to be made up for; where it has failed, or the last row that it has kept. None of others."""
        if trial.outcome == "failed":
            row = last_row(trial.job, self.paths)
            return min(trial.epoch, row.epoch) if row else 0
        return trial.epoch if trial.outcome == "stopped" else None

    def may_begin(self, number: int) -> bool:
        """False while a synchronous search has to wait for former trials."""
        return all(n in self.trials and self.trials[n].outcome != "running" for n in range(self._known_to(number)))

    def _known_to(self, number: int) -> int:
        """The first so many trials may guide the choice of this one, when that is to be the same each time."""
        settings = self.search.settings
        if settings.algorithm != "tpe" or not settings.synchronous:
            return 0
        at_once = self.at_once or 1
        return number // at_once * at_once

    @property
    def at_once(self) -> int | None:
        """How many trials may run beside each other; None: as many as the machine takes. Where one decision rests on
        who comes first, and yet is to be the same each time, it is one."""
        settings = self.search.settings
        if settings.synchronous and settings.scheduler.name in ("asha", "median"):
            return 1
        return settings.at_once or (4 if settings.synchronous and settings.algorithm == "tpe" else None)

    def begin(self, number: int) -> tuple[Trial, JobConfig]:
        """The trial with its job: what was chosen before, or is chosen now. Raises Exhausted, and asks for no more, if
        the space holds nothing else."""
        if number in self.trials:
            trial = self.trials[number]
            if not Path(self.paths.config(trial.job)).exists():
                self._write_again(trial)
            return trial, load_job(self.paths.config(trial.job), trial.job)
        try:
            values, config = self.suggestions.suggest(number, self._former(number), self.taken)
        except Exhausted:
            self.asked = range(number)
            raise
        job = job_id(config)
        write_config(config, self.paths)
        self._write(TrialRecord(number, job, "begun", now(), values=values))
        return self.trials[number], config

    def _write_again(self, trial: Trial) -> None:
        """The config.json of a trial whose folder was deleted, to have it trained anew."""
        lacking = f"{self.paths.config(trial.job)}: lacks, and trial {trial.number} cannot be trained anew"
        advice = f"it went on with another's weights; delete {self.file} to have the search begin anew"
        need(not trial.changes, "{}: {}", lacking, advice)
        config = self.search.job_of(trial.values)
        assert config is not None
        write_config(config, self.paths)

    def _former(self, number: int) -> list[Told]:
        """The trials that may guide the choice of one; none where nothing does: there may be thousands."""
        if self.search.settings.algorithm != "tpe":
            return []
        last = self._known_to(number) if self.search.settings.synchronous else number
        return [self._told(self.trials[n]) for n in range(last) if n in self.trials]

    def change(self, number: int, job: str, epoch: int, reason: str) -> None:
        """From now on the trial is another job."""
        self._write(TrialRecord(number, job, "changed", now(), epoch, None, reason))

    def decide(
        self,
        number: int,
        event: Literal["stopped", "finished", "failed"],
        epoch: int = 0,
        results: tuple[float | None, ...] = (None,),
        reason: str = "",
    ) -> None:
        """results: of the goals, at that epoch. What was decided before stands, whatever a scheduler says that is told
        of it again."""
        trial = self.trials[number]
        self.cut.discard(number)
        if trial.outcome == "running":
            self._write(TrialRecord(number, trial.job, event, now(), epoch, results[0], reason))
            self.results[number] = _whole(results) if event != "failed" else None

    def _write(self, event: TrialRecord) -> None:
        self.check()
        append_record(self.file, event)
        self.taken.add(event.job)
        self.trials[event.trial] = after(self.trials.get(event.trial), event)

    def _told(self, trial: Trial) -> Told:
        running = trial.outcome == "running"
        return Told(trial.values, self.results.get(trial.number), running, trial.outcome == "finished")


def _whole(results: tuple[float | None, ...]) -> tuple[float, ...] | None:
    return None if None in results else tuple(x for x in results if x is not None)
