"""Which code made a number."""

from __future__ import annotations

import hashlib
import subprocess
from functools import lru_cache
from pathlib import Path

HERE = Path(__file__).resolve().parent
# What can change a trained model or its evaluation, as the report cannot: what computes, and what a job's file means.
NUMERIC = (
    "adapt.py",
    "adapt_config.py",
    "adaptation.py",
    "adapting.py",
    "agreement.py",
    "attempt.py",
    "augmentation.py",
    "build.py",
    "checkpoint.py",
    "config.py",
    "data.py",
    "data_config.py",
    "data_sets.py",
    "device.py",
    "evaluate.py",
    "images.py",
    "learner.py",
    "model_config.py",
    "side_by_side.py",
    "stacks.py",
    "streams.py",
    "train.py",
    "train_config.py",
    "training.py",
    "updates.py",
    "verdicts.py",
)


@lru_cache
def code_fingerprint() -> str:
    """Hash of the sources that compute numbers. The commit alone would not do: it changes with every README."""
    digest = hashlib.sha256()
    sources = [*sorted((HERE.parent / "gode_core").rglob("*.py")), *(HERE / name for name in NUMERIC)]
    for source in sources:
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


@lru_cache
def commit() -> str:
    """The commit's hash, with `+` behind it if the working tree differs; `unknown` outside git."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        return head + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _git(*arguments: str) -> str:
    command = ["git", "--no-optional-locks", "-C", str(HERE), *arguments]  # many jobs have one index
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout.strip()
