"""What a job is: one training, as a frozen dataclass.

Whatever changes the numbers is a field, and enters the id; whatever does not (device, threads, where results lie) is
no field, and cannot. No torch here: the Snakefile reads this module, in every job of a cluster too.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gode_core.bases import Basis, clamped
from gode_core.solvers import Fixed, Implicit, Layers
from pipeline.data_config import DataConfig
from pipeline.model_config import DISCRETE, NUM_BLOCKS, ModelConfig
from pipeline.reading import need, read_dataclass
from pipeline.train_config import Phase, TrainConfig


@dataclass(frozen=True)
class JobConfig:
    """One training, complete: it can be run again from this alone."""

    data: DataConfig
    model: ModelConfig
    train: TrainConfig
    seed: int = 0

    def __post_init__(self):
        need(self.seed >= 0, "seed must be at least 0, got {}", self.seed)
        self._check_network()
        if isinstance(self.train.parsed_solver, Layers):
            self._check_layers()
        else:
            self._check_solver()
        size, batch = self.data.train_size, self.train.batch_size
        too_large = self.train.drop_last and size is not None and batch > size
        need(not too_large, "train: batch_size {} with drop_last leaves no batch of {} images", batch, size)

    def _check_network(self) -> None:
        model, least, points = self.model, self.data.shape[0], len(self.data.shape) == 2
        if model.field == "oscillator":
            need(self.data.shape == (1, 2), "model: the field oscillator acts on points of the plane")
        if model.field == "perceptron":
            need(points, "model: the field perceptron acts on points (spheres)")
            least = self.data.shape[-1]
        if model.network == "raw":
            pad = model.pad_channels
            need(pad is None or pad >= least, "model: pad_channels must be at least {}, got {}", least, pad)
            channels = model.pad_channels or least
        else:
            need(not points, "model: network {} needs images, {} are points", model.network, self.data.name)
            channels = model.pad_channels or model.width
            need(channels >= model.width, "model: pad_channels must be at least {}, got {}", model.width, channels)
        even = model.family != "revnet" or channels % 2 == 0
        need(even, "model: a revnet halves its channels, and {} are odd in number", channels)

    def _check_layers(self) -> None:
        """Of a discrete net."""
        model, train, solver = self.model, self.train, self.train.parsed_solver
        assert isinstance(solver, Layers)
        need(model.family in DISCRETE, "a {} is trained with a solver, got {}", model.family, train.solver)
        blocks = NUM_BLOCKS[model.network]
        fits = len(solver.counts) in (1, blocks)
        need(fits, "train: {} gives other numbers than one or {}, the blocks of {}", solver, blocks, model.network)
        need(model.time_scale == 1, "model: a discrete net has no time: leave time_scale out")
        need(not model.time_channel, "model: a discrete net has no time: leave time_channel out")
        need(not train.phases, "train: phases belong to nets with a solver, got {}", train.solver)
        switches = (train.kinetic, train.jacobian, train.random_end)
        need(not any(switches), "train: kinetic, jacobian and random_end belong to nets with a solver")

    def _check_solver(self) -> None:
        """Of a net that is, or can be read as, an ODE."""
        model, train = self.model, self.train
        if model.family == "resnet":
            solver = train.parsed_solver
            euler = isinstance(solver, Fixed) and solver.method == "euler"
            need(
                euler, "a resnet is trained with `euler@N` or `layers@N`, N its number of blocks, got {}", train.solver
            )
            need(not train.phases, "train: in a resnet layers are steps; write phases as a gode of degree 0")
            need(model.rule == ModelConfig.rule, "model: a rule needs `layers@N`, got {}", train.solver)
        else:
            need(model.family not in DISCRETE, "a {} is trained with `layers@N`, got {}", model.family, train.solver)
        for phase in train.phases:
            need(not isinstance(phase.parsed_solver, Layers), "train: phases: {} is no solver", phase.solver)
            own = phase.basis is None or model.family == "gode"
            need(own, "train: phases: a basis belongs to the family gode, not to {}", model.family)
            free = phase.basis is not None and model.basis is not None and model.basis.knots == "free"
            need(not free, "train: phases: free knots cannot be carried from another basis")
        solvers = [phase.parsed_solver for phase in (*train.phases, self.phase(train.epochs))]
        implicit = any(isinstance(solver, Implicit) for solver in solvers)
        need(not implicit or model.norm != "batch", "train: an implicit solver goes without batch norm in the field")
        need(not (implicit and train.jacobian), "train: jacobian goes without an implicit solver")
        recomputed = "checkpoint" in (train.gradient, *(phase.gradient for phase in train.phases))
        need(not (train.jacobian and recomputed), "train: jacobian goes without the gradient `checkpoint`")
        regular = train.kinetic or train.jacobian
        adaptive = not all(
            isinstance(s, Fixed) for s in (train.parsed_solver, *(p.parsed_solver for p in train.phases))
        )
        if train.adapt is not None:
            need(model.family != "resnet", "train: adapt goes without a resnet, whose layers are its steps")
            same = model.norm != "batch" and not train.random_end and train.autocast == "none"
            plain = train.adapt.rule == "agreement" or same
            need(plain, "train: adapt: the rule {} goes without batch norm, random_end and autocast", train.adapt.rule)
            held_out = train.adapt.rule != "agreement" or self.data.num_validation > 0
            need(held_out, "train: adapt: the rule agreement is judged on validation images: set data: num_validation")
        mixed = model.family == "evolving" and regular and adaptive
        need(not mixed, "train: kinetic and jacobian of evolving weights need a solver with fixed steps")

    def phase(self, epoch: int) -> Phase:
        """What trains during epoch number `epoch`, from 0. The last phase has no end."""
        for phase in self.train.phases:
            if epoch < phase.until:
                return phase
        return Phase(self.train.epochs, self.train.solver, self.model.basis, self.train.gradient)

    def basis_of(self, phase: Phase) -> Basis:
        """The functions of depth that carry the weights in a phase."""
        config = phase.basis or self.model.basis
        return self.basis if config is None else config.build()

    @property
    def basis(self) -> Basis:
        """The functions of depth that carry the weights at the end, of every family. Of a discrete net: of its
        first block."""
        solver, basis = self.train.parsed_solver, self.model.basis
        if isinstance(solver, Layers):
            return clamped(0, solver.count(0))
        if self.model.family == "resnet":
            assert isinstance(solver, Fixed)
            return clamped(0, solver.num_steps)
        return clamped(0, 1) if basis is None else basis.build()

    @property
    def label(self) -> str:
        """Names the model, without its training: `gode-4c-degree1`."""
        return self.model.label


def canonical(config: Any) -> dict[str, Any]:
    """The config as plain data, without the fields added later that still have their default."""
    result = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if f.metadata.get("added") and value == f.default:
            continue
        result[f.name] = _plain(value)
    return result


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    return canonical(value) if dataclasses.is_dataclass(value) else value


def digest(data: dict[str, Any]) -> str:
    """Ten hexadecimal digits of a hash of plain data; the order of keys does not matter."""
    text = json.dumps(_alike(data), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def _alike(data: Any) -> Any:
    """Equal numbers as one text: 1.0 as 1, -0.0 as 0."""
    if isinstance(data, dict | list):
        return {k: _alike(v) for k, v in data.items()} if isinstance(data, dict) else [_alike(v) for v in data]
    return int(data) if isinstance(data, float) and data.is_integer() else data


def job_id(config: JobConfig) -> str:
    """A slug for people and a hash of everything that changes the numbers. Never parsed back."""
    solver = config.train.solver.replace("@", "").replace("=", "").replace(",", "-")
    solver += "" if config.train.adapt is None else f"-{config.train.adapt.rule}"
    data = config.data.name + (str(config.data.dimension) if config.data.dimension else "")
    return f"{data}-{config.label}-{solver}-seed{config.seed}-{digest(canonical(config))}"


def read_job(data: Any, where: str) -> JobConfig:
    """A JobConfig from plain data (a config.json, say). Raises ValueError."""
    return read_dataclass(JobConfig, data, where)


def load_job(path: str | Path, job: str) -> JobConfig:
    """The JobConfig in a job's config.json. Raises ValueError unless it is whole and hashes to the job's id."""
    try:
        data = json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise ValueError(f"{path}: no such job; `python -m pipeline.plan EXPERIMENT --write` writes it") from None
    except ValueError:
        raise ValueError(
            f"{path}: not JSON (cut off?); `python -m pipeline.plan EXPERIMENT --write` writes it again"
        ) from None
    config = read_job(data, str(path))
    if job_id(config) != job:
        raise ValueError(f"{path}: holds the job {job_id(config)}, not {job}; was it edited?")
    return config
