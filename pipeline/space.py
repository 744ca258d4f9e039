"""The fields of a job that a search varies: what each may be, and which combinations may not be.

    model.basis.num_coefficients: {choice: [2, 4, 8]}
    model.basis.degree: {integer: [0, 3]}
    train.lr: {log_uniform: [1e-3, 1e-1]}

No torch here: the Snakefile reads this module.
"""

from __future__ import annotations

import itertools
import json
import math
import operator
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.reading import need, unknown_key

KINDS = ("grid", "choice", "uniform", "log_uniform", "integer")
OPERATORS = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
Values = dict[str, Any]  # what was chosen, by dotted path


@dataclass(frozen=True)
class Domain:
    """What one field may be. `grid` and `choice` list it; a range gives its smallest and its largest value."""

    kind: str
    options: tuple[Any, ...]  # of a range: its two ends

    def __post_init__(self):
        need(self.kind in KINDS, "{}", unknown_key(self.kind, list(KINDS)))
        if self.is_list:
            need(len(self.options) > 0, "{} must be a list of values, got []", self.kind)
            texts = [json.dumps(option, sort_keys=True, default=str) for option in self.options]
            twice = sorted({text for text in texts if texts.count(text) > 1})
            need(not twice, "{}: {} stands twice", self.kind, ", ".join(twice))
            return
        need(len(self.options) == 2, "{} must be two numbers, got {}", self.kind, list(self.options))
        object.__setattr__(self, "options", tuple(self._number(x) for x in self.options))
        low, high = self.options
        need(low < high, "{}: the first number must be below the second, got {} and {}", self.kind, low, high)
        need(self.kind != "log_uniform" or low > 0, "log_uniform: both numbers must be positive, got {}", low)

    def _number(self, x: Any) -> float | int:
        if self.kind == "integer":
            need(type(x) is int, "integer: must be two whole numbers, got {!r}", x)
            return x
        try:
            number = float(x) if not isinstance(x, bool) else math.nan  # YAML 1.1 reads 1e-3 (no point) as text
        except (TypeError, ValueError):
            number = math.nan
        need(math.isfinite(number), "{}: must be two numbers, got {!r}", self.kind, x)
        return number

    @property
    def is_list(self) -> bool:
        return self.kind in ("grid", "choice")

    @property
    def is_finite(self) -> bool:
        return self.is_list or self.kind == "integer"

    def all(self) -> Sequence[Any]:
        """Every value of a finite domain."""
        assert self.is_finite
        return self.options if self.is_list else range(self.options[0], self.options[1] + 1)

    def draw(self, generator: random.Random) -> Any:
        """Uniform over its values; log-uniform where it says so."""
        if self.is_finite:
            return generator.choice(self.all())
        low, high = self.options
        if self.kind == "uniform":
            return self.rounded(generator.uniform(low, high))
        return self.rounded(math.exp(generator.uniform(math.log(low), math.log(high))))

    def rounded(self, x: float) -> float:
        """With as many digits as people care for, and within the range."""
        low, high = self.options
        return min(max(float(f"{x:.4g}"), low), high)

    def __str__(self) -> str:
        if self.is_list:
            return ", ".join(json.dumps(option, default=str) for option in self.options)
        low, high = self.options
        return f"{low:g} to {high:g}" + {"log_uniform": ", log-uniform", "integer": ", whole"}.get(self.kind, "")


@dataclass(frozen=True)
class Condition:
    """`model.basis.degree < model.basis.num_coefficients`: combinations that break it are not tried. Of a job without
    one of the fields (no basis of its own) it says nothing."""

    left: str
    operation: str
    right: str

    @staticmethod
    def parse(text: Any) -> Condition:
        found = re.fullmatch(r"\s*([\w.@-]+)\s*(<=|>=|==|!=|<|>)\s*([\w.@-]+)\s*", str(text))
        need(found is not None, "write `field < field`, with one of {}, got {!r}", " ".join(OPERATORS), text)
        assert found is not None
        return Condition(*found.groups())

    def holds(self, job: Mapping[str, Any]) -> bool:
        """job: the whole job as plain data."""
        sides = [_operand(side, job) for side in (self.left, self.right)]
        if None in sides:
            return True
        try:
            return bool(OPERATORS[self.operation](*sides))
        except TypeError:
            raise ValueError(f"{self}: {sides[0]!r} and {sides[1]!r} cannot be compared") from None

    @property
    def fields(self) -> list[str]:
        """The sides that are no number."""
        return [side for side in (self.left, self.right) if not _is_number(side)]

    def __str__(self) -> str:
        return f"{self.left} {self.operation} {self.right}"


@dataclass(frozen=True)
class Space:
    """The domains by the dotted path of their field, in the order of the file, and the conditions."""

    domains: Mapping[str, Domain]
    conditions: tuple[Condition, ...] = ()

    @property
    def is_finite(self) -> bool:
        return all(domain.is_finite for domain in self.domains.values())

    def grid(self) -> Iterator[Values]:
        """Every combination, the last field varying fastest, conditions apart."""
        for values in itertools.product(*(domain.all() for domain in self.domains.values())):
            yield dict(zip(self.domains, values))

    def draw(self, generator: random.Random) -> Values:
        """A combination, conditions apart."""
        return {path: domain.draw(generator) for path, domain in self.domains.items()}

    def allows(self, job: Mapping[str, Any]) -> bool:
        return all(condition.holds(job) for condition in self.conditions)


def read_space(raw: Any, conditions: Any, where: str) -> Space:
    """From plain data. Raises ValueError."""
    if not isinstance(raw, dict) or not raw:
        raise ValueError(f"{where}: space: must map fields of a job to what they may be, got {raw!r}")
    domains = {}
    for path, domain in raw.items():
        place = f"{where}: space: {path}"
        if not isinstance(domain, dict) or len(domain) != 1:
            raise ValueError(f"{place}: write one of `{': ...`, `'.join(KINDS)}: ...`, got {domain!r}")
        ((kind, options),) = domain.items()
        if not isinstance(options, list):
            raise ValueError(f"{place}: {kind} must be a list, got {options!r}")
        try:
            domains[str(path)] = Domain(kind, tuple(map(_plain, options)))
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
    if conditions is not None and not isinstance(conditions, list):
        raise ValueError(f"{where}: conditions: must be a list, got {conditions!r}")
    try:
        return Space(domains, tuple(map(Condition.parse, conditions or [])))
    except ValueError as error:
        raise ValueError(f"{where}: conditions: {error}") from None


def laid_over(base: Any, values: Mapping[str, Any]) -> Any:
    """A job's plain data with other values at dotted paths; a mapping is merged into the section that it names, and one
    under `job` into the whole job."""
    for path, value in values.items():
        base = _merged(base, _nested([] if path == "job" else str(path).split("."), value))
    return base


def _nested(keys: list[str], value: Any) -> Any:
    for key in reversed(keys):
        value = {key: value}
    return value


def _merged(base: Any, over: Any) -> Any:
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return over
    return base | {key: _merged(base.get(key), value) for key, value in over.items()}


def _plain(option: Any) -> Any:
    """YAML 1.1 reads 1e-3 (no point) as text; it is meant as a number."""
    return float(option) if isinstance(option, str) and _is_number(option) else option


def _is_number(side: str) -> bool:
    return re.fullmatch(r"-?\d+(\.\d*)?([eE]-?\d+)?", side) is not None


def _operand(side: str, job: Mapping[str, Any]) -> Any:
    """A number, what stands in the job at a dotted path, or a word as it is. None: the job has no such field."""
    if _is_number(side):
        return float(side)
    if "." not in side and side not in job:
        return side
    value: Any = job
    for key in side.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return _plain(value)
