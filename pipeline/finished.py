"""What of a job is done, by its files. No torch here."""

from __future__ import annotations

import os

from pipeline.paths import Paths


def is_trained(job: str, paths: Paths) -> bool:
    """True if all that `train` declares is there."""
    return all(map(os.path.exists, paths.trained(job)))


def is_judged(job: str, judging: str, paths: Paths) -> bool:
    """True if all that `evaluate` declares is there, and is not older than the model."""
    model, files = paths.model(job), paths.judged(job, judging)
    if not all(map(os.path.exists, (model, *files))):
        return False
    return os.stat(files[0]).st_mtime >= os.stat(model).st_mtime
