"""What a job is: one training, as a frozen dataclass.

Whatever changes the numbers is a field, and enters the id; whatever does not (device, threads, where results lie) is
no field, and cannot. No torch here: the Snakefile reads this module, in every job of a cluster too.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from gode_core.bases import KNOTS, BSpline, exact
from gode_core.solvers import Fixed, Solver, parse_solver
from pipeline.reading import need, read_dataclass

DATA_SIZES = {"digits": (1437, 360), "spheres": (2000, 1000), "mnist": (60000, 10000)} | dict.fromkeys(
    ("cifar10", "cifar100"), (50000, 10000)
)  # images for training (and validation), images for the test


def added(default: Any):
    """A field that came later: left out of the id at its default, so that finished work keeps its name."""
    return field(default=default, metadata={"added": True})


@dataclass(frozen=True)
class DataConfig:
    """Which images, and how they are split and changed. Sizes are in images."""

    name: Literal["digits", "spheres", "mnist", "cifar10", "cifar100", "imagefolder"]
    num_validation: int = 0  # cut from the training images; the test split chooses nothing
    num_train: int | None = None  # train on this many of the rest only; None: all
    split_seed: int = 0
    mean: tuple[float, ...] = ()  # per channel, taken off after scaling to [0, 1]; () leaves the images alone
    std: tuple[float, ...] = ()
    crop_padding: int = 0  # random crops of the image padded by so many pixels
    crop_mode: Literal["zero", "reflect"] = "zero"
    flip: bool = False  # mirror left-right with probability 1/2
    dimension: int | None = None  # spheres: 2, 3, 10 or 900
    folder: str | None = None  # imagefolder: <data root>/<folder>/{train,test}/<class>/*
    image_size: int | None = None  # imagefolder: images are scaled to this height and width
    num_classes: int | None = None  # imagefolder

    def __post_init__(self):
        need(self.num_validation >= 0, "num_validation must be at least 0, got {}", self.num_validation)
        need(self.num_train is None or self.num_train > 0, "num_train must be at least 1, got {}", self.num_train)
        need(self.split_seed >= 0, "split_seed must be at least 0, got {}", self.split_seed)
        need(len(self.mean) == len(self.std), "mean and std must be equally long, got {} and {}", self.mean, self.std)
        need(all(s > 0 for s in self.std), "std must be positive, got {}", self.std)
        if self.mean and self.name != "spheres":
            need(len(self.mean) == self.shape[0], "mean needs one number per channel, got {}", self.mean)
        need(self.crop_padding >= 0, "crop_padding must be at least 0, got {}", self.crop_padding)
        if self.name == "spheres":
            need(self.dimension in (2, 3, 10, 900), "spheres need `dimension: 2`, 3, 10 or 900, got {}", self.dimension)
            need(not (self.crop_padding or self.flip or self.mean), "spheres are points: no crop, flip or mean")
        else:
            need(self.dimension is None, "dimension belongs to spheres, not to {}", self.name)
        extras = (self.folder, self.image_size, self.num_classes)
        if self.name == "imagefolder":
            need(None not in extras, "imagefolder needs `folder`, `image_size` and `num_classes`")
            need((self.image_size or 0) >= 1, "image_size must be at least 1, got {}", self.image_size)
            need((self.num_classes or 0) >= 2, "num_classes must be at least 2, got {}", self.num_classes)
        else:
            need(extras == (None,) * 3, "folder, image_size, num_classes belong to imagefolder, not to {}", self.name)
            most = DATA_SIZES[self.name][0]
            used = self.num_validation + (self.num_train or 1)
            need(used <= most, "num_validation and num_train take at least {} of {}'s {} images", used, self.name, most)
        if self.crop_mode == "reflect":
            least = min(self.shape[1:])
            need(self.crop_padding < least, "reflect needs crop_padding below {}, got {}", least, self.crop_padding)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample: (C, H, W), or (1, d) for points."""
        size = self.image_size or 0
        return {
            "digits": (1, 8, 8),
            "spheres": (1, self.dimension or 0),
            "mnist": (1, 28, 28),
            "cifar10": (3, 32, 32),
            "cifar100": (3, 32, 32),
            "imagefolder": (3, size, size),
        }[self.name]

    @property
    def source(self) -> str:
        """Names the images themselves, however they are split: `mnist`, `spheres2`."""
        folder = "-".join(c for c in (self.folder or "").split("/") if c)
        parts = (self.name + str(self.dimension or ""), folder, str(self.image_size or ""))
        return "-".join(part for part in parts if part)

    @property
    def classes(self) -> int:
        return {"spheres": 2, "cifar100": 100, "imagefolder": self.num_classes or 0}.get(self.name, 10)

    @property
    def train_size(self) -> int | None:
        """Images trained on; None if only the folder knows."""
        if self.num_train is not None or self.name == "imagefolder":
            return self.num_train
        return DATA_SIZES[self.name][0] - self.num_validation


@dataclass(frozen=True)
class BasisConfig:
    """Functions of depth that carry the weights: see gode_core.bases."""

    degree: int
    num_coefficients: int
    kind: Literal["bspline"] = "bspline"
    knots: Literal["clamped", "unclamped"] | tuple[str, ...] = "clamped"  # or the interior knots, clamped

    def __post_init__(self):
        if not isinstance(self.knots, str):  # 0.5 and 1/2 are one knot, and one id
            object.__setattr__(self, "knots", tuple(str(exact(k)) for k in self.knots))
        self.build()

    def build(self) -> BSpline:
        if isinstance(self.knots, str):
            return KNOTS[self.knots](self.degree, self.num_coefficients)
        return KNOTS["clamped"](self.degree, self.num_coefficients, [exact(k) for k in self.knots])

    @property
    def label(self) -> str:
        kind = self.knots if isinstance(self.knots, str) else "knots"
        return f"{self.num_coefficients}c-degree{self.degree}" + ("" if kind == "clamped" else f"-{kind}")


@dataclass(frozen=True)
class ModelConfig:
    """A network and the way its weights depend on depth.

    family: `neural_ode` has weights that are constant in depth, `gode` weights on a basis, `resnet` a set of weights
    for each step of the (Euler) solver that it is trained with.
    """

    network: Literal["raw", "stem", "stages"]
    family: Literal["resnet", "neural_ode", "gode"]
    width: int  # channels: inside the field (raw), of the block (stem), of the first stage (stages)
    field: Literal["bottleneck", "perceptron", "preactivation", "concat_time"] = "bottleneck"
    basis: BasisConfig | None = None
    vary: Literal["all", "kernels"] = "all"  # what depends on depth: all of the field's weights, or its kernels alone
    pad_channels: int | None = None  # raw: zero channels are added up to this number
    num_groups: int = 32  # of group norm; at most the channels it norms
    time_scale: float = 1.0  # the block solves dh/dt = time_scale f; = number of steps: a ResNet's unit branches
    init: Literal["kaiming_normal", "kaiming_normal_out", "gode_release", "torch_default"] = "kaiming_normal"

    def __post_init__(self):
        need(self.width >= 1, "width must be at least 1, got {}", self.width)
        need(self.num_groups >= 1, "num_groups must be at least 1, got {}", self.num_groups)
        need(self.time_scale > 0, "time_scale must be positive, got {}", self.time_scale)
        if self.family == "gode":
            need(self.basis is not None, "family gode needs a basis: {{degree: 1, num_coefficients: 4}}, say")
        else:
            need(self.basis is None, "family {} has no basis of its own; leave `basis` out (or take gode)", self.family)
        if self.family == "resnet":
            need(self.vary == "all", "in a resnet all weights differ between blocks: vary must be `all`")
        if self.network == "raw":
            fits = self.field in ("bottleneck", "perceptron")
            need(fits, "network raw has the field `bottleneck` or `perceptron`, got {}", self.field)
        else:
            fits = self.field in ("preactivation", "concat_time")
            need(fits, "network {} has the field `preactivation` or `concat_time`", self.network)
            need(self.pad_channels is None, "pad_channels belongs to the network raw, not to {}", self.network)


@dataclass(frozen=True)
class TrainConfig:
    """How a job is trained. Learning rates are per step; epochs may stand for schedules only through `milestones`."""

    solver: str
    epochs: int
    batch_size: int
    optimiser: Literal["sgd", "adam", "adamw"]
    lr: float
    gradient: Literal["direct", "checkpoint", "adjoint"] = "direct"
    momentum: float = 0.0  # sgd
    weight_decay: float = 0.0
    schedule: Literal["constant", "multistep", "cosine"] = "constant"
    milestones: tuple[int, ...] = ()  # multistep: the epochs (counted from 0) before which lr is multiplied by decay
    decay: float = 0.1
    warmup_epochs: float = 0.0  # lr rises linearly from 0
    label_smoothing: float = 0.0
    clip_norm: float | None = None  # of the whole gradient, 2-norm
    drop_last: bool = False  # leave out the last, smaller batch of an epoch
    autocast: Literal["none", "bf16"] = "none"
    record_every: int = 1  # epochs between two records (and validations)

    def __post_init__(self):
        object.__setattr__(self, "solver", str(self.parsed_solver))  # rk4@08 and rk4@8 are one solver, and one id
        adaptive, gradient = not isinstance(self.parsed_solver, Fixed), self.gradient
        need(adaptive or gradient != "adjoint", "gradient `adjoint` needs an adaptive solver, got {}", self.solver)
        need(not adaptive or gradient != "checkpoint", "gradient `checkpoint` needs fixed steps, got {}", self.solver)
        mixed = self.gradient == "adjoint" and self.autocast == "bf16"
        need(not mixed, "gradient `adjoint` goes without autocast: its backward solve would not be under it")
        for name in ("epochs", "batch_size", "record_every"):
            need(getattr(self, name) >= 1, "{} must be at least 1, got {}", name, getattr(self, name))
        need(self.lr > 0, "lr must be positive, got {}", self.lr)
        need(0 <= self.momentum < 1, "momentum must lie in [0, 1), got {}", self.momentum)
        need(self.optimiser == "sgd" or self.momentum == 0, "momentum belongs to sgd, not to {}", self.optimiser)
        need(self.weight_decay >= 0, "weight_decay must be at least 0, got {}", self.weight_decay)
        need(self.schedule == "multistep" or not self.milestones, "milestones belong to the schedule multistep")
        need(self.schedule != "multistep" or len(self.milestones) > 0, "the schedule multistep needs milestones")
        increasing = all(a < b for a, b in zip((0, *self.milestones), self.milestones))
        need(increasing, "milestones must increase from 1 on, got {}", self.milestones)
        need(0 < self.decay <= 1, "decay must lie in (0, 1], got {}", self.decay)
        warm = self.warmup_epochs
        need(0 <= warm <= self.epochs, "warmup_epochs must lie in [0, epochs], got {}", warm)
        need(0 <= self.label_smoothing < 1, "label_smoothing must lie in [0, 1), got {}", self.label_smoothing)
        need(self.clip_norm is None or self.clip_norm > 0, "clip_norm must be positive, got {}", self.clip_norm)

    @property
    def parsed_solver(self) -> Solver:
        return parse_solver(self.solver)


@dataclass(frozen=True)
class JobConfig:
    """One training, complete: it can be run again from this alone."""

    data: DataConfig
    model: ModelConfig
    train: TrainConfig
    seed: int = 0

    def __post_init__(self):
        model, solver, least = self.model, self.train.parsed_solver, self.data.shape[0]
        need(self.seed >= 0, "seed must be at least 0, got {}", self.seed)
        if model.family == "resnet":
            euler = isinstance(solver, Fixed) and solver.method == "euler"
            need(euler, "a resnet is trained with `euler@N`, N its number of blocks, got {}", self.train.solver)
        if model.network == "raw":
            pad = model.pad_channels
            need(pad is None or pad >= least, "model: pad_channels must be at least {}, got {}", least, pad)
            dense = model.field == "perceptron"
            bare = len(self.data.shape) == 2 and pad is None
            need(not dense or bare, "model: the field perceptron acts on points (spheres), without pad_channels")
        else:
            points = len(self.data.shape) != 3
            need(not points, "model: network {} needs images, {} are points", model.network, self.data.name)
        size, batch = self.data.train_size, self.train.batch_size
        too_large = self.train.drop_last and size is not None and batch > size
        need(not too_large, "train: batch_size {} with drop_last leaves no batch of {} images", batch, size)

    @property
    def basis(self) -> BSpline:
        """The functions of depth that carry the weights, of every family."""
        solver, basis = self.train.parsed_solver, self.model.basis
        if self.model.family == "resnet":
            assert isinstance(solver, Fixed)
            return KNOTS["clamped"](0, solver.num_steps)
        return KNOTS["clamped"](0, 1) if basis is None else basis.build()

    @property
    def label(self) -> str:
        """Names the model, without its training: `gode-4c-degree1`."""
        basis = self.model.basis
        return self.model.family.replace("_", "-") + (f"-{basis.label}" if basis else "")


def canonical(config: Any) -> dict[str, Any]:
    """The config as plain data, without the fields added later that still have their default."""
    result = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if f.metadata.get("added") and value == f.default:
            continue
        if dataclasses.is_dataclass(value):
            value = canonical(value)
        result[f.name] = list(value) if isinstance(value, tuple) else value
    return result


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
        raise ValueError(f"{path}: not JSON (cut off?); delete it, and Snakemake writes it again") from None
    config = read_job(data, str(path))
    if job_id(config) != job:
        raise ValueError(f"{path}: holds the job {job_id(config)}, not {job}; was it edited?")
    return config
