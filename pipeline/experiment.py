"""How an experiment file becomes jobs, and how they are judged.

    load_experiment("digits.yaml") -> Experiment with {job_id: JobConfig}

No torch here: the Snakefile reads this module, in every job of a cluster too.
"""

from __future__ import annotations

import difflib
import itertools
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from gode_core.solvers import Adaptive, Layers, parse_solver
from pipeline.config import JobConfig, canonical, digest, job_id, read_job
from pipeline.paths import DEFAULT_EXPERIMENT
from pipeline.reading import added, need, read_dataclass, unknown_key
from pipeline.search_config import Search, read_search
from pipeline.space import laid_over

KEYS = ("name", "question", "job", "sweep", "search", "evaluate_with", "published", "budget")


@dataclass(frozen=True)
class Judging:
    """How trained models are judged. No part of a job: a solver more re-runs evaluations and no training."""

    solvers: tuple[str, ...]  # none: for discrete nets, which are judged by their own layers
    split: Literal["test", "validation"] = "test"
    batch_size: int = 1000
    max_steps: int = 1000  # attempted steps of an adaptive solver before it is given up
    limit: str | None = added(None)  # the one of the solvers that stands for h -> 0; None: the finest of them
    margin: float = added(0.01)  # a gap of accuracies within it is none
    confidence: float = added(0.95)  # of the intervals behind a verdict
    num_paths: int = added(0)  # points (of 2 or 3 dimensions) whose paths are followed: folds, crossings, separation
    num_drawn: int = added(0)  # of them, in the plane, whose paths are kept

    def __post_init__(self):
        object.__setattr__(self, "solvers", tuple(str(parse_solver(s)) for s in self.solvers))  # one name each
        layers = [s for s in self.solvers if isinstance(parse_solver(s), Layers)]
        need(not layers, "solvers: {} is none; a discrete net is judged by its own layers without being asked", layers)
        twice = sorted({s for s in self.solvers if self.solvers.count(s) > 1})
        need(not twice, "solvers: {} stands twice", ", ".join(twice))
        need(self.batch_size >= 1, "batch_size must be at least 1, got {}", self.batch_size)
        need(self.max_steps >= 1, "max_steps must be at least 1, got {}", self.max_steps)
        if self.limit is not None:
            object.__setattr__(self, "limit", str(parse_solver(self.limit)))
            need(self.limit in self.solvers, "limit: {} must stand among the solvers", self.limit)
        need(0 < self.margin < 1, "margin must lie in (0, 1), got {}", self.margin)
        need(0 < self.confidence < 1, "confidence must lie in (0, 1), got {}", self.confidence)
        need(0 <= self.num_drawn <= self.num_paths, "num_drawn must lie in [0, num_paths], got {}", self.num_drawn)

    @property
    def id(self) -> str:
        return digest(canonical(self))

    @property
    def finest(self) -> str:
        """The solver that stands for h -> 0: `limit`, or the adaptive one with the smallest tolerance (the last of
        several), or the one with the smallest h^order. Empty if there is none."""
        if self.limit is not None:
            return self.limit
        parsed = [parse_solver(solver) for solver in self.solvers]
        if adaptive := [solver for solver in parsed if isinstance(solver, Adaptive)]:
            return str(min(reversed(adaptive), key=lambda solver: max(solver.rtol, solver.atol)))
        stepping = [solver for solver in parsed if not isinstance(solver, Adaptive | Layers)]
        return str(max(stepping, key=lambda solver: solver.num_steps**solver.order, default=""))

    def solvers_of(self, config: JobConfig) -> tuple[str, ...]:
        """Those that judge this job. A discrete net is no ODE between its layers: it is judged as it is, alone."""
        discrete = isinstance(config.train.parsed_solver, Layers)
        return (config.train.solver,) if discrete else self.solvers


Measure = Literal[
    "critical_evals",
    "critical_accuracy",
    "accuracy",
    "training_evals",
    "share_ode",
    "share_crossing",
    "share_folded",
]


@dataclass(frozen=True)
class Published:
    """A number in print, to stand beside ours: see pipeline.comparison for the measures."""

    claim: str  # what it is the number of, in words
    measure: Measure
    low: float  # accuracies and shares in [0, 1]
    high: float
    source: str
    of: tuple[str, ...] = ()  # the jobs that it belongs to: `train.adapt.rule=step`, columns of table.csv
    margin: float | None = None  # critical_...: gaps allowed there; None: the margin of the verdicts

    def __post_init__(self):
        need(self.low <= self.high, "low must not be above high, got {} and {}", self.low, self.high)
        critical = self.measure in ("critical_evals", "critical_accuracy")
        need(self.margin is None or critical, "a margin belongs to the measures critical_..., not to {}", self.measure)
        need(self.margin is None or 0 < self.margin < 1, "margin must lie in (0, 1), got {}", self.margin)
        wrong = [text for text in self.of if not re.fullmatch(r"[\w.]+=.+", text)]
        need(not wrong, "of: write `column=value`, got {}", wrong)


@dataclass(frozen=True)
class Budget:
    """What an experiment may cost in all. No part of a job, nor of how it is judged: see pipeline.cost."""

    gpu_hours: float | None = None  # one GPU for an hour, however busy
    core_hours: float | None = None  # one core for an hour, where no GPU is used

    def __post_init__(self):
        limits = {name: value for name, value in vars(self).items() if value is not None}
        need(bool(limits), "give `gpu_hours`, `core_hours` or both")
        for name, value in limits.items():
            need(value > 0, "{} must be positive, got {}", name, value)


@dataclass(frozen=True)
class Experiment:
    """A question, the jobs that it takes to answer it, how they are judged, and what others found."""

    name: str
    question: str
    jobs: dict[str, JobConfig]
    evaluate_with: Judging
    published: tuple[Published, ...] = ()
    budget: Budget | None = None
    search: Search | None = None  # its winners are further jobs, once it is done: see pipeline.winners


def load_experiment(path: str | Path) -> Experiment:
    """Read, check and expand an experiment file. Raises ValueError that says what, where and what is allowed."""
    where = str(path)
    raw = _read_yaml(Path(path))
    for key in raw:
        if key not in KEYS:
            raise ValueError(f"{where}: {unknown_key(key, list(KEYS))}")
    for key in ("question", "job", "evaluate_with"):
        if key not in raw:
            raise ValueError(f"{where}: `{key}` is missing. Known keys: {', '.join(KEYS)}.")
    name, question = raw.get("name", Path(path).stem), raw["question"]
    if not isinstance(name, str) or not re.fullmatch(r"[\w][\w-]*", name):
        raise ValueError(f"{where}: name: must be text of letters, digits, `-` and `_`, got {name!r}")
    if not isinstance(question, str) or not question.strip():
        raise ValueError(f"{where}: question: must be text, got {question!r}")
    search = None
    if "search" in raw:
        search = read_search(raw["search"], _mapping(raw["job"], where), f"{where}: search")
    sweep = {} if raw.get("sweep") is None else raw["sweep"]
    jobs = {} if search is not None and not sweep else _swept(raw["job"], sweep, where)  # of trials, `job` is a part
    judging = read_dataclass(Judging, raw["evaluate_with"], f"{where}: evaluate_with")
    found = {} if search is None else {job_id(config): config for config in search.check()}
    _check_judging(judging, jobs | found, where)
    in_print = raw.get("published") or []
    if not isinstance(in_print, list):
        raise ValueError(f"{where}: published: must be a list, got {in_print!r}")
    published = [read_dataclass(Published, row, f"{where}: published[{i}]") for i, row in enumerate(in_print)]
    budget = read_dataclass(Budget, raw["budget"], f"{where}: budget") if "budget" in raw else None
    return Experiment(name, question.strip(), jobs, judging, tuple(published), budget, search)


def _swept(base: Any, sweep: Any, where: str) -> dict[str, JobConfig]:
    jobs: dict[str, JobConfig] = {}
    chosen: dict[str, str] = {}
    for choice, data in expand(base, sweep, where):
        place = f"{where}: job with {choice}" if choice else f"{where}: job"
        config = read_job(data, place)
        key = job_id(config)
        if key in jobs:
            raise ValueError(f"{place}: equals the job with {chosen[key]}; each job may stand once")
        jobs[key], chosen[key] = config, choice
    return jobs


def _check_judging(judging: Judging, jobs: dict[str, JobConfig], where: str) -> None:
    needy = [key for key, config in jobs.items() if not judging.solvers_of(config)]
    if needy:
        raise ValueError(f"{where}: evaluate_with: solvers: at least one is needed, to judge {needy[0]}")
    unseen = [key for key, config in jobs.items() if config.data.num_validation == 0]
    if judging.split == "validation" and unseen:
        raise ValueError(
            f"{where}: evaluate_with: the split `validation` needs `num_validation` in the data of each job; "
            f"{unseen[0]} has none"
        )


def _mapping(base: Any, where: str) -> dict[str, Any]:
    if not isinstance(base, dict):
        raise ValueError(f"{where}: job: must be a mapping, got {base!r}")
    return base


def expand(base: Any, sweep: Any, where: str) -> list[tuple[str, dict[str, Any]]]:
    """Every combination of a sweep laid over the base job: (the choice in words, the job's data).

    sweep: {"train.solver": [euler@4, rk4@4], "model": [{family: resnet}, {family: neural_ode}], "seed": [0, 1]}:
    a dotted path to a field, and the values that it takes; a mapping is merged into the section that it names, and one
    under `job` into the whole job: for fields that vary together.
    """
    base = _mapping(base, where)
    if not isinstance(sweep, dict):
        raise ValueError(f"{where}: sweep: must map fields to lists of values, got {sweep!r}")
    for path, values in sweep.items():
        if not isinstance(values, list) or not values:
            raise ValueError(f"{where}: sweep: {path}: must be a list of values, got {values!r}")
    combinations = []
    for values in itertools.product(*sweep.values()):
        chosen = dict(zip(sweep, values))
        words = [f"{path} = {json.dumps(value, default=str)}" for path, value in chosen.items()]
        combinations.append((", ".join(words), laid_over(base, chosen)))
    return combinations


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice: YAML would quietly take the last."""

    def compose_mapping_node(self, anchor):
        node = super().compose_mapping_node(anchor)
        seen = []
        for key, _ in node.value:
            if key.value in seen:
                raise ValueError(f"line {key.start_mark.line + 1}: `{key.value}` stands twice")
            seen.append(key.value)
        return node


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            raw = yaml.load(file, Loader=_Loader)
    except FileNotFoundError:
        shipped = Path(DEFAULT_EXPERIMENT)
        beside = {p.stem: p for folder in (shipped.parent, path.parent) for p in folder.glob("*.yaml")}
        near = difflib.get_close_matches(path.stem, beside, n=1)
        hint = f"Did you mean `{beside[near[0]]}`?" if near else f"An example is `{shipped}`."
        raise ValueError(f"{path}: no such experiment file. {hint}") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read as an experiment file: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path}: an experiment file is UTF-8 text, and this is not") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise ValueError(f"{path}: an experiment file is a mapping with `question`, `job` and `evaluate_with`")
    return raw
