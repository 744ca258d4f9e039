"""Trials in Ray Tune: it gives them to processes that stay warm, and its schedulers stop the weak. A door of ray.

What is tried and what was decided stands in the ledger; Tune's own state is never read again. Taken up after a fault,
a search tells Tune's scheduler again what it was told before, out of the jobs' files.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.search import Searcher

from pipeline.holder import read_holder
from pipeline.ledger import Ledger
from pipeline.schedulers import scheduler_of
from pipeline.search_config import GOALS, Exhausted, Search
from pipeline.trainable import RATES, JobTrial, task_of
from pipeline.training import RunSettings
from pipeline.watching import Live

log = logging.getLogger(__name__)
FAULTS = 2  # of a trial's process, or errors of its training, after which the trial has failed
PAUSED = 5.0  # seconds in which nothing but paused trials is left,
SILENT = 300.0  # or in which nothing is heard of any trial and none makes a step: Tune's scheduler has lost one
KEPT = {"hyperband": 1, "pbt": 4}  # checkpoints of a trial, each a copy of a job's own; with fewer Ray warns
LOOK = 5.0  # seconds between two looks at the steps
TOLD = dict.fromkeys(("asha", "median"), ("finished", "stopped")) | {"hyperband": ("finished", "stopped", "failed")}
QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # ours asks for checkpoints
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",  # of its own state, which nobody reads
    "TUNE_WARN_THRESHOLD_S": "60",
    "RAY_AIR_NEW_OUTPUT": "0",
}


@dataclass(frozen=True)
class Place:
    """What a trial may take, and how it is run."""

    run: RunSettings
    cpus: int
    gpus: float
    at_once: int


def tune_trials(ledger: Ledger, place: Place, ending: Callable[[], str], live: Live, say: Callable[[], None]) -> None:
    """Run the trials that are not decided until they are, or until `ending` says why not. `say` is called now and then.
    Some may be left where Tune's scheduler waits for a trial that has failed: call again."""
    search, paths = ledger.search, ledger.paths
    stop, scratch = Path(paths.search_stop(search.id)), Path(paths.search_scratch(search.id))
    stop.parent.mkdir(parents=True, exist_ok=True)
    stop.unlink(missing_ok=True)
    shutil.rmtree(scratch, ignore_errors=True)
    tasks, heard = Tasks(ledger, place, stop), Heard(ledger, live, say)
    queue = _queue(ledger)
    pending = len(queue) if needs_all(search) else place.at_once
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # what is to be said of a failed trial `Heard` says
    with _environment(QUIET | {"TUNE_MAX_PENDING_TRIALS_PG": str(pending)}):
        tuner = tune.Tuner(
            tune.with_resources(JobTrial, {"cpu": place.cpus, "gpu": place.gpus}),
            **_trials(tasks, queue),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(scratch.absolute()),
                stop=Ended(ending, stop, heard),
                failure_config=tune.FailureConfig(max_failures=FAULTS),
                checkpoint_config=tune.CheckpointConfig(num_to_keep=KEPT.get(search.settings.scheduler.name)),
                callbacks=[heard],
                verbose=0,
            ),
        )
        try:
            tuner.fit()
        except tune.TuneError:
            ledger.check()  # if its lease was lost, Ray has made another error of that
            raise
        finally:
            stop.unlink(missing_ok=True)
            shutil.rmtree(scratch, ignore_errors=True)


def needs_all(search: Search) -> bool:
    """True if the scheduler must see all trials at once: it pauses some for others, or lets one take over another's
    weights. How many run is then left to the places that there are."""
    return search.settings.scheduler.name in ("hyperband", "pbt")


def _trials(tasks: Tasks, queue: list[int]) -> dict[str, Any]:
    """How Tune comes to its trials."""
    search = tasks.ledger.search
    common = {"metric": "score", "mode": "max", "scheduler": scheduler_of(search), "reuse_actors": True}
    common["trial_dirname_creator"] = lambda trial: trial.trial_id
    if not needs_all(search):
        at_once = tasks.place.at_once
        searcher = FromLedger(tasks, queue)
        config = tune.TuneConfig(search_alg=searcher, num_samples=len(queue), max_concurrent_trials=at_once, **common)
        return {"tune_config": config}
    space: dict[str, Any] = {"given": tune.grid_search(tasks.configs(queue))}
    if search.settings.scheduler.name == "pbt":
        space |= {name: tune.sample_from(lambda spec, name=name: spec["config"]["given"][name]) for name in RATES}
    return {"param_space": space, "tune_config": tune.TuneConfig(num_samples=1, **common)}


def _queue(ledger: Ledger) -> list[int]:
    """Those that are to be decided, in order; and before them, where a scheduler compares trials, those that it must
    know of, to be told from their files."""
    outcomes = TOLD.get(ledger.search.settings.scheduler.name, ())
    told = [n for n in ledger.asked if n in ledger.trials and ledger.trials[n].outcome in outcomes]
    return sorted({*told, *ledger.undecided})


class Tasks:
    """What the processes are told of trials."""

    def __init__(self, ledger: Ledger, place: Place, stop: Path):
        self.ledger, self.place, self.stop = ledger, place, stop

    def config(self, number: int) -> dict[str, Any]:
        """Begins the trial, if it was not begun before."""
        search = self.ledger.search
        trial, config = self.ledger.begin(number)
        rule = search.settings.scheduler.name
        task = task_of(
            config,
            root=str(Path(self.ledger.paths.root).absolute()),
            stop=str(self.stop.absolute()),
            run=asdict(self.place.run),
            goals=search.settings.goals,
            gpus=self.place.gpus,
            stop_at=self.ledger.ended_at(trial),
            seen=rule == "hyperband",
            from_end=rule == "pbt",
        )
        changed = max((change.epoch for change in trial.changes), default=0)
        rates = dict(zip(RATES, config.train.base_rates(changed))) if rule == "pbt" else {}
        return {"number": number, "task": task} | rates

    def configs(self, queue: list[int]) -> list[dict[str, Any]]:
        """Of all that there are."""
        found = []
        with suppress(Exhausted):
            for number in queue:
                found.append(self.config(number))
        return found


class FromLedger(Searcher):
    """Hands out the trials of a queue, each when there is a place for it: it may be chosen by what is known then."""

    def __init__(self, tasks: Tasks, queue: list[int]):
        super().__init__()
        self.tasks, self.queue = tasks, queue

    def suggest(self, trial_id: str) -> Any:
        if not self.queue:
            return Searcher.FINISHED
        if not self.tasks.ledger.may_begin(self.queue[0]):
            return None
        try:
            return {"given": self.tasks.config(self.queue.pop(0))}
        except Exhausted as end:
            log.warning("%s", end)
            self.queue.clear()
            return Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing: `Heard` writes it down."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the ledger is all."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the ledger is all."""


class Ended(tune.Stopper):
    """All at once, or none."""

    def __init__(self, ending: Callable[[], str], stop: Path, heard: Heard):
        self.ending, self.stop, self.heard = ending, stop, heard

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        reason = self.ending() or ("nothing goes on" if self.heard.stalled else "")
        if reason and not self.stop.exists():
            log.info("%s: all trials write their checkpoints", reason)
            self.stop.write_text(reason)
        self.heard.over = bool(reason)
        return self.heard.over


class Heard(tune.Callback):
    """Follows the trials, and writes down what becomes of them."""

    def __init__(self, ledger: Ledger, live: Live, say: Callable[[], None]):
        self.ledger, self.live, self.say = ledger, live, say
        self.paused: float | None = None  # since when nothing but paused trials is left
        self.alive = self.looked = time.monotonic()  # when something was heard, or a step was made
        self.steps: list[tuple[int, int] | None] = []
        self.over = False  # all are being ended, which decides nothing
        self.on_warning = signal.getsignal(signal.SIGUSR1)

    @property
    def stalled(self) -> bool:
        """True if the trials that are left wait for one that has failed, or for nothing at all."""
        now = time.monotonic()
        return (self.paused is not None and now - self.paused > PAUSED) or now - self.alive > SILENT

    def on_step_begin(self, iteration: int, trials: list, **info: Any) -> None:
        signal.signal(signal.SIGUSR1, self.on_warning)  # Tune takes it for itself, and would end without a reason

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:
        number = number_of(trial)
        self.alive = time.monotonic()
        if result.get("asked"):
            return
        self.live.rows[number] = {name: result[name] for name in ("epoch", "job", *GOALS, "status")}
        own, job = self.ledger.trials[number].job, result["job"]
        if job != own:
            self.ledger.change(number, job, result["epoch"], f"took over another's weights, in place of {own}")

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        number, result = number_of(trial), trial.last_result
        if "epoch" not in result:
            return
        settings = self.ledger.search.settings
        results = tuple(result.get(goal) if result.get("status") == "ok" else None for goal in settings.goals)
        if result["finished"]:
            self.ledger.decide(number, "finished", result["epoch"], results, result["status"])
        elif not result["asked"] and not self.over:
            self.ledger.decide(number, "stopped", result["epoch"], results, settings.scheduler.name)

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        number = number_of(trial)
        reason = last_line(trial.error_file)
        log.warning("trial %d (%s) has failed: %s", number, self.ledger.trials[number].job, reason)
        self.ledger.decide(number, "failed", self.live.rows.get(number, {}).get("epoch", 0), (None,), reason)

    def on_step_end(self, iteration: int, trials: list, **info: Any) -> None:
        left = {trial.status for trial in trials} - {Trial.TERMINATED, Trial.ERROR}
        now = time.monotonic()
        self.paused = None if left != {Trial.PAUSED} else self.paused or now
        self.live.running = {number_of(trial) for trial in trials if trial.status == Trial.RUNNING}
        self.live.places = len(self.live.running)
        if now - self.looked > LOOK:
            self.looked = now
            self._look()
        self.say()

    def _look(self) -> None:
        """At what the trials' own signs of life say of their steps."""
        jobs = [self.ledger.trials[number].job for number in sorted(self.live.running)]
        holders = [read_holder(self.ledger.paths.lease(job)) for job in jobs]
        steps = [None if holder is None else (holder.pid, holder.step) for holder in holders]
        if steps != self.steps:
            self.steps, self.alive = steps, self.looked


def number_of(trial: Any) -> int:
    """Of the search, of one of Tune's trials."""
    return trial.config["given"]["number"]


def last_line(file: str | None) -> str:
    """Of the text that Ray leaves of an error."""
    lines = Path(file).read_text(errors="replace").splitlines() if file and os.path.exists(file) else []
    lines = [line.strip() for line in lines if line.strip()]
    return lines[-1] if lines else "its process died"


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
