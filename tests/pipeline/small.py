"""Small jobs that several tests train: real digits, narrow nets, two epochs."""

import json
from pathlib import Path

from pipeline.config import JobConfig, canonical, job_id, read_job
from pipeline.paths import Paths
from pipeline.training import RunSettings

TRAIN = {"solver": "euler@2", "optimiser": "adam", "lr": 5e-3, "epochs": 2, "batch_size": 64}


def small_job(seed=0, data=None, model=None, **train) -> JobConfig:
    """A job on 256 digits of some 0.1 s; keyword arguments go over the `train` section."""
    return read_job(
        {
            "data": {"name": "digits", "num_validation": 50, "num_train": 256} | (data or {}),
            "model": {"network": "raw", "family": "neural_ode", "width": 4, "pad_channels": 2} | (model or {}),
            "train": TRAIN | train,
            "seed": seed,
        },
        "small",
    )


def write_job(root: Path, config: JobConfig) -> tuple[Paths, str]:
    """The job's config.json under `root`, as `plan --write` leaves it."""
    paths, job = Paths(str(root)), job_id(config)
    Path(paths.config(job)).parent.mkdir(parents=True, exist_ok=True)
    Path(paths.config(job)).write_text(json.dumps(canonical(config)))
    return paths, job


def on_cpu(**settings) -> RunSettings:
    return RunSettings(device="cpu", **settings)
