"""Where each job of an experiment stands: from its files and, where SLURM is, from its queue. No torch here.

    standing(load_experiment("x.yaml"), Paths("results"), slurm.queue()) -> Standing

Nothing is written, and no lease is touched: what seems dead may live, behind a network that is slow.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Literal, get_args

from pipeline.company import company_of
from pipeline.config import JobConfig
from pipeline.cost import hours
from pipeline.counting import training_steps
from pipeline.experiment import Experiment
from pipeline.failure import Evidence, complaint, end_of, heard, on_job
from pipeline.finished import is_judged, is_trained
from pipeline.holder import Holder, read_holder, whereabouts
from pipeline.lease import STALE
from pipeline.past import DeviceSeconds, cost_of, read_attempts
from pipeline.paths import Paths
from pipeline.queued import Queued, Rule, in_words, waits
from pipeline.records import AttemptRecord
from pipeline.searching import Searching, searching
from pipeline.slurm import SlurmJob
from pipeline.tried import load_jobs
from pipeline.winners import with_winners

LONG_SILENT = 20 * STALE  # seconds
SILENT = 60.0  # seconds without a sign of life that are worth a word
JUDGING = 600.0  # seconds, likewise, of an evaluation, which writes a line per solver
GRAIN = 2.0  # seconds: the time of a file may be told no finer
OF_HOLDER = (*("code", "host", "pid", "device", "started", "seconds", "share", "threads", "slurm_job", "campaign"),)

State = Literal["failed", "training", "judging", "queued", "stopped", "trained", "waiting", "done"]
STATES: tuple[State, ...] = get_args(State)  # in the order in which a person wants to see them


@dataclass(frozen=True)
class Place:
    """Where one job stands.

    trained: waits to be judged; stopped: interrupted, goes on when started again; waiting: nothing was done yet.
    """

    job: str
    state: State
    note: str  # where it runs, what it waits for, why it ended
    step: int  # optimiser steps at the last sign of life; of a job that does not run, those that are kept
    epoch: int
    epochs: int  # in all
    attempts: tuple[AttemptRecord, ...]
    last: AttemptRecord | None  # one more, without a record yet: it runs, or was killed
    silent: float  # seconds since its last sign of life
    since: float  # no log that changed before, in seconds since 1970, is of its newest start

    @property
    def all_attempts(self) -> list[AttemptRecord]:
        return [*self.attempts, *([self.last] if self.last else [])]

    @property
    def seconds(self) -> float:
        return sum(attempt.seconds for attempt in self.all_attempts)

    @property
    def spent(self) -> DeviceSeconds:
        return sum(map(cost_of, self.all_attempts), DeviceSeconds())


@dataclass(frozen=True)
class Standing:
    """Where the jobs of an experiment stand, in the order of its file."""

    name: str
    places: tuple[Place, ...]
    search: Searching | None = None
    trials: tuple[Place, ...] = ()  # that go on: places of their jobs

    @property
    def counts(self) -> dict[State, int]:
        found = Counter(place.state for place in self.places)
        return {state: found[state] for state in STATES if found[state]}

    @property
    def spent(self) -> DeviceSeconds:
        own = sum((place.spent for place in self.places), DeviceSeconds())
        return own + self.search.spent if self.search else own

    @property
    def is_done(self) -> bool:
        return set(self.counts) <= {"done"} and (self.search is None or self.search.is_done)

    @property
    def progress(self) -> tuple[int, int, int]:
        """Jobs done, jobs trained and steps kept, those of trials too: what grows as long as work goes forward."""
        found = self.counts
        done, trained = found.get("done", 0), found.get("trained", 0) + found.get("judging", 0)
        steps = sum(place.step for place in self.places) + (self.search.steps if self.search else 0)
        return done, done + trained, steps


def standing(experiment: Experiment, paths: Paths, queue: Sequence[SlurmJob] | None = None) -> Standing:
    """queue: this user's SLURM jobs; None where SLURM does not say."""
    fleets = dict.fromkeys(experiment.jobs, (experiment.name,))  # of a search's winners none is trained there
    look = Look(paths, experiment.evaluate_with.id, Queued(queue, company_of(experiment, paths), fleets))
    experiment = with_winners(experiment, paths)
    places = tuple(look.at(job, config) for job, config in experiment.jobs.items())
    search = searching(experiment, paths)
    if search and (row := look.queued.pool("search", experiment.name)):
        search = replace(search, slurm=in_words(row, "runs on"))
    return Standing(experiment.name, places, search, _trials(search, look, paths) if search else ())


def _trials(search: Searching, look: Look, paths: Paths) -> tuple[Place, ...]:
    """Where those stand that are not decided, each with its number."""
    configs = load_jobs((job for _, job in search.undecided), paths)
    places = [(number, look.at(job, configs[job])) for number, job in search.undecided if job in configs]
    return tuple(replace(place, note="; ".join(filter(None, (f"trial {n}", place.note)))) for n, place in places)


def summary(found: Standing) -> str:
    """One line: how many jobs stand where, and what they have used; and where the search stands."""
    return " ".join([describe(found), *([str(found.search)] if found.search else [])])


def describe(found: Standing) -> str:
    counts = ", ".join(f"{number:,} {state}" for state, number in found.counts.items())
    used = [(found.spent.hours("gpu"), "GPU-hours"), (found.spent.hours("core"), "core-hours")]
    text = " and ".join(f"{hours(number)} {unit}" for number, unit in used if number) or "nothing"
    jobs = f"{len(found.places):,} jobs: {counts}" if found.places else "no jobs before the search is done"
    return f"{found.name}: {jobs}. Used: {text}."


class Look:
    """What is asked once for all jobs, and the look at one."""

    def __init__(self, paths: Paths, judging: str, queued: Queued):
        self.paths, self.judging, self.queued = paths, judging, queued

    def at(self, job: str, config: JobConfig) -> Place:
        try:
            attempts, broken = read_attempts(job, self.paths), ""
        except ValueError as error:
            attempts, broken = [], str(error)
        lease = self.paths.lease(job)
        holder = read_holder(lease)
        if holder and attempts and (attempts[-1].pid, attempts[-1].started) == (holder.pid, holder.started):
            holder = None  # its attempt is over and recorded: it is about to let go
        silent = age(lease) if holder else 0.0
        state, note = self._state(job, attempts, holder, silent)
        if state == "training" and holder:
            step, epoch = holder.step, holder.epoch
        else:
            step, epoch = self._kept(job, config, attempts, state)
        notes = "; ".join(filter(None, (note, broken)))
        last = _so_far(job, holder) if holder else None
        since = self._since(job, attempts, holder)
        return Place(job, state, notes, step, epoch, config.train.epochs, tuple(attempts), last, silent, since)

    def _state(
        self, job: str, attempts: list[AttemptRecord], holder: Holder | None, silent: float
    ) -> tuple[State, str]:
        if holder and not self._dead(holder, silent):
            return "training", whereabouts(holder) + (
                f"; no sign of life for {silent:.0f} s" if silent > SILENT else ""
            )
        trained = is_trained(job, self.paths)
        if trained and is_judged(job, self.judging, self.paths):
            reason = attempts[-1].reason if attempts and attempts[-1].outcome == "finished" else ""
            return "done", "" if reason == "ok" else reason
        if row := self.queued.of("evaluate" if trained else "train", job):
            return _of_row(row, "judging" if trained else "training")
        if trained:
            return self._unjudged(job)
        last = attempts[-1] if attempts else None
        has_failed = last.slurm_job if last and last.outcome == "failed" and not holder else None
        if (row := self.queued.fleet_of(job)) and (waits(row) or has_failed != row.id):
            return _of_row(row, "training")
        if error := self._complaint(job, attempts, holder):
            return "failed", error
        if holder:
            return "failed", f"killed, at step {holder.step}: {whereabouts(holder)}"
        if last is None:
            return "waiting", ""
        if last.outcome == "finished":
            return "stopped", "its files are gone"
        return ("stopped" if last.outcome == "interrupted" else "failed"), last.reason

    def _dead(self, holder: Holder, silent: float) -> bool:
        """True if its process is surely no more, or is silent and SLURM says that its job waits again or is over; one
        that is not silent may live on a node that SLURM has lost."""
        if holder.gone:
            return True
        if not holder.slurm_job:  # a machine that has lost its power cannot tell
            return silent > LONG_SILENT
        return silent >= STALE and self.queued.runs_no_more(holder.slurm_job)

    def _since(self, job: str, attempts: list[AttemptRecord], holder: Holder | None) -> float:
        """When its newest start began, by the clock of its node and by that of the files, which may differ, the earlier
        one: in doubt a log counts. The file says so by its last change, when the start was `seconds` old."""
        newest = holder or (attempts[-1] if attempts else None)
        if newest is None:
            return 0.0
        file = self.paths.lease(job) if holder else self.paths.attempts(job)
        by_node = datetime.fromisoformat(newest.started).timestamp()
        return min(by_node, _changed(file) - newest.seconds) - GRAIN

    def _complaint(self, job: str, attempts: list[AttemptRecord], holder: Holder | None) -> str:
        """Of its newest start, by its log."""
        log = self.log("train", job)
        if not log or _changed(log) < self._since(job, attempts, holder):
            return ""
        shared = log != self.paths.log("train", job)
        text = on_job(job, end_of(log)) if shared else end_of(log)
        return heard(Evidence(attempts[-1] if attempts else None, holder is not None, text, shared=shared))

    def _unjudged(self, job: str) -> tuple[State, str]:
        """Outside SLURM an evaluation shows in its log alone."""
        log = self.log("evaluate", job)
        if not log or _changed(log) < _changed(self.paths.model(job)):
            return "trained", ""
        if error := complaint(on_job(job, end_of(log))):
            return "failed", error
        seconds = age(log)
        return ("judging", f"its log changed {seconds:.0f} s ago") if seconds < JUDGING else ("trained", "")

    def log(self, rule: Rule, job: str) -> str:
        """The newest log of a job, its own or that of its batch; empty if there is none."""
        names = [job, *([self.queued.batches[job]] if job in self.queued.batches else [])]
        found = [path for name in names if os.path.exists(path := self.paths.log(rule, name))]
        return max(found, key=_changed, default="")

    def _kept(self, job: str, config: JobConfig, attempts: list[AttemptRecord], state: State) -> tuple[int, int]:
        """Step and epoch of the last checkpoint, as far as records tell."""
        step, epoch = attempts[-1].to_step if attempts else 0, 0
        if state != "done":
            with contextlib.suppress(ValueError, IndexError, KeyError, TypeError):  # none yet, or cut off: no matter
                row = json.loads(end_of(self.paths.training_so_far(job)).splitlines()[-1])
                step, epoch = max(step, row["step"]), row["epoch"]
        steps = training_steps(config)
        return step, step * config.train.epochs // steps if steps else epoch


def _of_row(row: SlurmJob, runs: State) -> tuple[State, str]:
    """Without a lease. runs: what it is at, if it runs; a SLURM job that is not for this job alone comes to it."""
    if waits(row):
        what = ", to judge" if runs == "judging" else ", in the fleet" if row.rule == "fleet" else ""
        return "queued", in_words(row) + what
    if runs == "training":
        state, what = ("training", "begins or ends") if row.wildcards else ("queued", "comes to it")
        return state, f"{in_words(row)}, {what}"
    return runs, in_words(row)


def _so_far(job: str, holder: Holder) -> AttemptRecord:
    """What an attempt without a record has used."""
    facts = {name: getattr(holder, name) for name in OF_HOLDER}
    steps = {"from_step": holder.from_step or 0, "to_step": holder.step}
    return AttemptRecord(job=job, commit="unknown", outcome="killed", reason="", **steps, **facts)


def age(path: str) -> float:
    """Seconds since a file changed, by the file system's own clock where it may be written: ours may differ."""
    try:
        with tempfile.TemporaryFile(dir=Path(path).parent) as now:
            return max(0.0, os.fstat(now.fileno()).st_mtime - os.stat(path).st_mtime)
    except FileNotFoundError:
        return 0.0
    except OSError:
        return max(0.0, time.time() - _changed(path))


def _changed(path: str) -> float:
    try:
        return os.stat(path).st_mtime
    except OSError:
        return 0.0
