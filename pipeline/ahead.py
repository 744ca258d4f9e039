"""What a run has still to do, and why: by what is there of each job, before Snakemake says it in its own way.

To train: 3 jobs: 1 never begun; 1 stopped or failed, to go on from epoch 4; 1 finished, but lacking a file.
To judge: 4 jobs, 1 of them trained already.
The search goes on: 2 of 24 trials are not decided, 16 not begun. Its winners come after it.
"""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.finished import is_trained
from pipeline.paths import Paths
from pipeline.progress import Place, Standing

FEW = 4  # trainings and judgements of which Snakemake says all, in ten lines each


def to_train(found: Standing, paths: Paths) -> list[Place]:
    return [place for place in found.places if place.state != "done" and not is_trained(place.job, paths)]


def how_brief(found: Standing, paths: Paths) -> list[str]:
    """Options of a dry run: Snakemake's reasons job by job, if they can be read at a glance, else rule by rule."""
    is_short = len(to_train(found, paths)) + sum(place.state != "done" for place in found.places) <= FEW
    return [] if is_short else ["--quiet", "rules"]


def what_runs(found: Standing, paths: Paths) -> list[str]:
    """Lines, for people."""
    left, to_judge = to_train(found, paths), sum(place.state != "done" for place in found.places)
    lines = [f"To train: {_jobs(len(left))}: {'; '.join(_reasons(left))}."] if left else []
    if to_judge:
        trained = to_judge - len(left)
        lines.append(f"To judge: {_jobs(to_judge)}" + (f", {trained:,} of them trained already." if trained else "."))
    if found.search and not found.search.is_done:
        begun, open_ = sum(found.search.counts.values()), len(found.search.undecided)
        which = f"{open_:,} of {found.search.wanted:,} trials {'is' if open_ == 1 else 'are'} not decided"
        how = f"goes on: {which}, " if begun else "begins: "
        lines.append(f"The search {how}{max(0, found.search.wanted - begun):,} not begun. Its winners come after it.")
    return lines or ["Nothing to train or to judge: what is made of it is made anew where it lacks or is older."]


def _reasons(left: Iterable[Place]) -> list[str]:
    """How many for which reason, each job once."""
    places = list(left)
    running = [place for place in places if place.state == "training"]
    lacking = [place for place in places if place not in running and _was_finished(place)]
    begun = [place for place in places if place not in running and place not in lacking and _was_begun(place)]
    kept = [place.epoch for place in begun if place.step]
    found = {
        "never begun": len(places) - len(running) - len(lacking) - len(begun),
        f"stopped or failed, to go on from epoch {_range(kept)}": len(kept),
        "stopped or failed before the first checkpoint": len(begun) - len(kept),
        "finished, but lacking a file": len(lacking),
        "trained by another process now, to be waited for": len(running),
    }
    return [f"{number:,} {reason}" for reason, number in found.items() if number]


def _was_finished(place: Place) -> bool:
    return place.last is None and bool(place.attempts) and place.attempts[-1].outcome == "finished"


def _was_begun(place: Place) -> bool:
    return bool(place.all_attempts) or place.state == "failed" or place.step > 0


def _range(epochs: list[int]) -> str:
    low, high = min(epochs, default=0), max(epochs, default=0)
    return f"{low}" if low == high else f"{low} to {high}"


def _jobs(number: int) -> str:
    return f"{number:,} job{'' if number == 1 else 's'}"
