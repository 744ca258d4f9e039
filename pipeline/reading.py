"""Plain data (from YAML or JSON) into frozen dataclasses, each key and type checked.

An error names the place, what was found, what is allowed and what was probably meant.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import math
import types
import typing
from dataclasses import field
from functools import lru_cache
from typing import Any, Literal, TypeVar

T = TypeVar("T")


def added(default: Any):
    """A field that came later: left out of the id at its default, so that finished work keeps its name."""
    return field(default=default, metadata={"added": True})


def read_dataclass(cls: type[T], data: Any, where: str) -> T:
    """`cls` made from the mapping `data`. Raises ValueError that begins with `where`."""
    if not isinstance(data, dict):
        raise ValueError(f"{where}: must be a mapping, got {data!r}")
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in data:
        if key not in fields:
            raise ValueError(f"{where}: {unknown_key(key, list(fields))}")
    hints, values = _hints(cls), {}
    for name, f in fields.items():
        if name in data:
            values[name] = _read(hints[name], data[name], f"{where}: {name}")
        elif f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise ValueError(f"{where}: `{name}` is missing")
    try:
        return cls(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def need(condition: bool, message: str, *values: Any) -> None:
    """Raise ValueError(message.format(*values)) unless the condition holds."""
    if not condition:
        raise ValueError(message.format(*values))


def unknown_key(key: Any, known: list[str]) -> str:
    """The sentence for a key that does not exist."""
    near = difflib.get_close_matches(str(key).lower(), known, n=1)
    hint = f" Did you mean `{near[0]}`?" if near else ""
    return f"unknown key `{key}`.{hint} Known keys: {', '.join(sorted(known))}."


@lru_cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _read(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return read_dataclass(hint, value, where)  # type: ignore[arg-type]
    if origin in (typing.Union, types.UnionType):
        return _read_union(args, value, where)
    if origin is Literal:
        if value not in args:
            near = difflib.get_close_matches(str(value).lower(), [str(a) for a in args], n=1)
            hint_text = f" Did you mean `{near[0]}`?" if near else ""
            raise ValueError(f"{where}: `{value}` is not known.{hint_text} Allowed: {', '.join(map(str, args))}.")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{where}: must be a list, got {value!r}")
        return tuple(_read(args[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    return _read_scalar(hint, value, where)


def _read_union(args: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and types.NoneType in args:
        return None
    rest = [a for a in args if a is not types.NoneType]
    if len(rest) == 1:
        return _read(rest[0], value, where)
    listed = [a for a in rest if (typing.get_origin(a) is tuple) == isinstance(value, list | tuple)]
    return _read((listed or rest)[0], value, where)


def _read_scalar(hint: type, value: Any, where: str) -> Any:
    if hint is float and isinstance(value, str | int) and not isinstance(value, bool):
        with contextlib.suppress(ValueError, OverflowError):
            value = float(value)  # YAML 1.1 reads 1e-3 (no point) as text
    if hint is str and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if type(value) is not hint or (isinstance(value, float) and not math.isfinite(value)):
        words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
        raise ValueError(f"{where}: must be {words[hint]}, got {value!r}")
    return value
