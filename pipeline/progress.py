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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from pipeline.company import company_of
from pipeline.config import JobConfig
from pipeline.cost import hours
from pipeline.counting import training_steps
from pipeline.experiment import Experiment
from pipeline.failure import complaint, end_of
from pipeline.finished import is_judged, is_trained
from pipeline.holder import Holder, read_holder, whereabouts
from pipeline.lease import STALE
from pipeline.past import DeviceSeconds, cost_of, read_attempts
from pipeline.paths import Paths
from pipeline.records import AttemptRecord
from pipeline.searching import Searching, searching
from pipeline.slurm import SlurmJob
from pipeline.tried import load_jobs
from pipeline.winners import with_winners

LONG_SILENT = 20 * STALE  # seconds
SILENT = 60.0  # seconds without a sign of life that are worth a word
JUDGING = 600.0  # seconds, likewise, of an evaluation, which writes a line per solver
WAITS = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD")
OF_HOLDER = (*("code", "host", "pid", "device", "started", "seconds", "share", "threads", "slurm_job", "campaign"),)

State = Literal["failed", "training", "judging", "queued", "stopped", "trained", "waiting", "done"]
STATES: tuple[State, ...] = get_args(State)  # in the order in which a person wants to see them
Rule = Literal["train", "evaluate"]


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
    look = Look(paths, experiment.evaluate_with.id, company_of(experiment, paths), queue)
    experiment = with_winners(experiment, paths)
    places = tuple(look.at(job, config) for job, config in experiment.jobs.items())
    search = searching(experiment, paths)
    return Standing(experiment.name, places, search, _trials(search, look, paths) if search else ())


def _trials(search: Searching, look: Look, paths: Paths) -> tuple[Place, ...]:
    """Where those stand that are not decided, each with its number."""
    configs = load_jobs((job for _, job in search.undecided), paths)
    places = [(number, look.at(job, configs[job])) for number, job in search.undecided if job in configs]
    return tuple(replace(place, note="; ".join(filter(None, (f"trial {n}", place.note)))) for n, place in places)


def summary(experiment: Experiment, paths: Paths, queue: Sequence[SlurmJob] | None = None) -> str:
    """One line: how many jobs stand where, and what they have used; and where the search stands."""
    found = standing(experiment, paths, queue)
    return " ".join([describe(found), *([str(found.search)] if found.search else [])])


def describe(found: Standing) -> str:
    counts = ", ".join(f"{number:,} {state}" for state, number in found.counts.items())
    used = [(found.spent.hours("gpu"), "GPU-hours"), (found.spent.hours("core"), "core-hours")]
    text = " and ".join(f"{hours(number)} {unit}" for number, unit in used if number) or "nothing"
    jobs = f"{len(found.places):,} jobs: {counts}" if found.places else "no jobs before the search is done"
    return f"{found.name}: {jobs}. Used: {text}."


class Look:
    """What is asked once for all jobs, and the look at one. batches: the names of those, of jobs that are in one."""

    def __init__(self, paths: Paths, judging: str, batches: Mapping[str, str], queue: Sequence[SlurmJob] | None):
        self.paths, self.judging, self.batches = paths, judging, batches
        self.queue = None if queue is None else {row.id: row for row in queue}
        self.rows: dict[tuple[str, str], SlurmJob] = {}  # of this folder, by rule and job
        here = {folder for folder in {row.folder for row in queue or ()} if os.path.realpath(folder) == os.getcwd()}
        for row in queue or ():
            key = row.rule, row.wildcards
            if row.live and row.folder in here and (key not in self.rows or row.state not in WAITS):
                self.rows[key] = row

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
        return Place(job, state, notes, step, epoch, config.train.epochs, tuple(attempts), last, silent)

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
        if row := self._row("evaluate" if trained else "train", job):
            return _of_row(row, "judging" if trained else "training", bool(row.wildcards))
        if trained:
            return self._unjudged(job)
        if error := complaint(end_of(self.log("train", job))):
            return "failed", error
        if holder:
            return "failed", f"killed, at step {holder.step}: {whereabouts(holder)}"
        if not attempts:
            return "waiting", ""
        last = attempts[-1]
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
        if self.queue is None or silent < STALE:
            return False
        row = self.queue.get(holder.slurm_job)
        return row is None or not row.live or row.state in WAITS

    def _row(self, rule: Rule, job: str) -> SlurmJob | None:
        return self.rows.get((rule, job)) or self.rows.get((f"{rule}_{self.batches.get(job)}", ""))

    def _unjudged(self, job: str) -> tuple[State, str]:
        """Outside SLURM an evaluation shows in its log alone."""
        log = self.log("evaluate", job)
        if not log or _changed(log) < _changed(self.paths.model(job)):
            return "trained", ""
        if error := complaint(end_of(log)):
            return "failed", error
        seconds = age(log)
        return ("judging", f"its log changed {seconds:.0f} s ago") if seconds < JUDGING else ("trained", "")

    def log(self, rule: Rule, job: str) -> str:
        """The newest log of a job, its own or that of its batch; empty if there is none."""
        names = [job, *([self.batches[job]] if job in self.batches else [])]
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


def _of_row(row: SlurmJob, runs: State, alone: bool) -> tuple[State, str]:
    """Without a lease. alone: the SLURM job is for this job only."""
    if row.state in WAITS:
        why = f": {row.reason}" if row.reason not in ("", "None") else ""
        return "queued", f"SLURM job {row.id} waits{why}" + (", to judge" if runs == "judging" else "")
    where = f"SLURM job {row.id} on {row.nodes}" + ("" if row.state == "RUNNING" else f", {row.state.lower()}")
    if runs == "training" and not alone:
        return "queued", f"{where}, comes to it"
    return runs, f"{where}, begins or ends" if runs == "training" else where


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
