"""A job as somebody may write it, and the same with some places changed."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

JOB: dict[str, Any] = {
    "data": {"name": "digits"},
    "model": {"network": "raw", "family": "gode", "width": 8, "basis": {"degree": 1, "num_coefficients": 4}},
    "train": {"solver": "rk4@4", "epochs": 2, "batch_size": 64, "optimiser": "sgd", "lr": 0.1},
}
FOLDER = {"data.name": "imagefolder", "data.folder": "birds", "data.image_size": 32, "data.num_classes": 5}
EVOLVING = {"model.family": "evolving", "model.basis": ..., "model.evolution": {"kind": "linear"}}
LAYERS = {"model.family": "lm_resnet", "model.basis": ..., "train.solver": "layers@4"}
STEM = {"model.network": "stem", "model.field": "preactivation"}
STEP: dict[str, Any] = {"train.solver": "euler@500", "train.adapt.rule": "step"}
TOLERANCE: dict[str, Any] = {"train.solver": "dopri5@1e-3", "train.adapt.rule": "tolerance"}
AGREEMENT: dict[str, Any] = {"data.num_validation": 50, "train.adapt.rule": "agreement"}
FAN: dict[str, Any] = {
    **{"data.name": "xor", "model.family": "neural_ode", "model.basis": ...},
    **{"model.field": "oscillator", "model.fan": [-1.0, -1.0, 10.0, 2.0]},
}


def job(**changes: Any) -> dict[str, Any]:
    """The data of `JOB` with some places changed: job(**{"train.lr": 0.2}). `...` leaves the place out."""
    data = deepcopy(JOB)
    for path, value in changes.items():
        *sections, name = path.split(".")
        section = data
        for key in sections:
            section = section.setdefault(key, {})
        section[name] = deepcopy(value)
        if value is ...:
            del section[name]
    return data
