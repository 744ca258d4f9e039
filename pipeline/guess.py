"""How long a training may take, where no job like it has run: an order of magnitude. No torch here.

Seconds for each call of the field, and core-seconds for each pixel of the batch, forwards and back, whatever the
width: as seen on one core with narrow nets. For a GPU it was not measured.
"""

from __future__ import annotations

from pipeline.config import JobConfig
from pipeline.counting import training_evals
from pipeline.past import Kind

PER_CALL: dict[Kind, float] = {"core": 3e-4, "gpu": 1e-3}
PER_PIXEL = {"raw": 6e-7, "stem": 9e-7, "stages": 7e-7, "imagenet": 2e-6}
CORES_OF_A_GPU = 100


def seconds_per_eval(config: JobConfig, batch_size: int, device: Kind) -> float:
    """Of a field evaluation in training."""
    shape = config.data.shape  # (C, H, W), or (1, d) for points
    pixels = batch_size * (shape[1] * shape[2] if len(shape) == 3 else 0)
    return PER_CALL[device] + pixels * PER_PIXEL[config.model.network] / (CORES_OF_A_GPU if device == "gpu" else 1)


def guessed_seconds(config: JobConfig, device: Kind = "core") -> float | None:
    """Of a whole training; None if only the data folder knows how many samples it sees."""
    evals = training_evals(config)
    return None if evals is None else evals * seconds_per_eval(config, config.train.batch_size, device)
