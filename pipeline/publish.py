"""Files -> MLflow: one run for the experiment, below it one for each job and trial, and the trained models.

    python -m pipeline.publish pipeline/experiments/digits.yaml [--tracking-uri URI]
    python -m pipeline.publish pipeline/experiments/digits.yaml --follow      # again every few seconds while jobs run

MLflow is a view of the files: delete it, publish again, and it is there again.
"""

from __future__ import annotations

import argparse
import json
import logging
import signal
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

from pipeline import stage
from pipeline.config import digest
from pipeline.experiment import Experiment, load_experiment
from pipeline.paths import DEFAULT_EXPERIMENT, Paths
from pipeline.records import replace_file
from pipeline.store import Store, one_sentence, put_experiment, put_job
from pipeline.target import Target, alone
from pipeline.tried import load_jobs, trial_jobs
from pipeline.view import all_judged, any_started, find_views
from pipeline.winners import with_winners

log = logging.getLogger(__name__)


def publish(
    experiment: Experiment,
    source: Path,
    paths: Paths,
    target: Target,
    following: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
) -> str | None:
    """Make MLflow show what the files hold, and write published.json. source: the experiment file.

    Returns the experiment's id in MLflow, None if `should_stop` broke it off between two jobs. Raises ValueError for
    broken files, OSError if MLflow does not answer; published again, it goes on where it was.
    """
    if not any_started(experiment, paths):
        raise ValueError(f"{paths.root}: no job of {experiment.name} was started; run the experiment first")
    with alone(paths), one_sentence(target):
        experiment = with_winners(experiment, paths)  # as it is now: while this follows, the search may come to its end
        whole, *jobs = find_views(experiment, source, paths, following)
        configs = load_jobs(trial_jobs(experiment.search, paths), paths) | experiment.jobs  # after: a trial may begin
        store = Store.open(target, experiment)
        runs = store.runs()
        store.mark(runs, {view.name for view in jobs})
        parent = put_experiment(store, whole, runs.get(whole.name), experiment)
        changed = 0
        for view in jobs:
            if should_stop():
                return None
            config, split = configs[view.name], experiment.evaluate_with.split
            changed += put_job(store, view, runs.get(view.name), config, split, parent)
    if changed:
        log.info("%d of %d runs are new or have grown", changed, len(jobs))
    found = {
        "tracking_uri": target.shown,
        "experiment_id": store.experiment_id,
        "parent_run_id": parent,
        "num_runs": len(jobs),
        "digest": digest({"views": [view.digest for view in (whole, *jobs)]}),
    }
    replace_file(paths.published(experiment.name), (json.dumps(found, indent=1) + "\n").encode())
    return store.experiment_id


def follow(
    once: Callable[[], object], experiment: Experiment, paths: Paths, stop: threading.Event, seconds: float
) -> None:
    """Publish every few seconds until all jobs are judged, or `stop` is set. A failure after a success (a server that
    starts again, a file that vanished meanwhile) is waited out."""
    worked = False
    while not all_judged(with_winners(experiment, paths), paths) and not stop.is_set():
        try:
            if any_started(experiment, paths):
                once()
                worked = True
        except (ValueError, OSError) as error:
            if not worked:
                raise
            log.warning("%s; trying again in %g s", error, seconds)
        stop.wait(seconds)


def main(arguments: argparse.Namespace) -> int:
    experiment, paths = load_experiment(arguments.experiment), Paths(arguments.results)
    target = Target.of(arguments.tracking_uri, paths)
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # its retries; what comes of them is said in one line
    stop = threading.Event()

    def ask_to_stop(number, _frame) -> None:
        stop.set()
        signal.signal(number, signal.SIG_DFL)  # asked twice, it stops at once

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, ask_to_stop)
    once = partial(publish, experiment, Path(arguments.experiment), paths, target)
    if arguments.follow:
        try:
            follow(partial(once, following=True), experiment, paths, stop, arguments.seconds)
        finally:  # without `following`: what nobody watches any more is not shown as running
            found = once() if any_started(experiment, paths) else None
    elif (found := once(should_stop=stop.is_set)) is None:
        return stage.NOT_FINISHED
    if found is not None:
        print(target.farewell(found))
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", nargs="?", default=DEFAULT_EXPERIMENT, help="an experiment file")
    parser.add_argument("--results", default="results", help="root of the results (default: results)")
    parser.add_argument("--tracking-uri", help="MLflow (default: $MLFLOW_TRACKING_URI, else a database in the results)")
    parser.add_argument("--follow", action="store_true", help="publish again and again until all jobs are finished")
    parser.add_argument("--seconds", type=float, default=10.0, help="between two looks of --follow (default: 10)")
    stage.run(main, parser)
