"""Dataclasses from plain data: YAML files, `key=value` flags and checkpoints become validated settings.

The field names of a dataclass are its YAML keys and its flags: there is no second list to keep in step.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tubelet.errors import RecipeError

T = TypeVar("T")


def load_yaml(path: Path) -> dict[str, Any]:
    import yaml

    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RecipeError(f"there is no recipe {path}") from error
    except OSError as error:
        raise RecipeError(f"cannot read the recipe {path}: {error.strerror or error}") from error
    except (UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
        raise RecipeError(f"cannot read the recipe {path}: {_yaml_problem(error)}") from error
    if not isinstance(data, dict):
        raise RecipeError(f"the recipe {path} must hold fields, got {type(data).__name__}")
    return data


def _yaml_problem(error: Exception) -> str:
    """What is wrong and where, in one line; PyYAML draws the place over several."""
    problem, mark = getattr(error, "problem", None), getattr(error, "problem_mark", None)
    text = " ".join(str(problem or error).split())[:200]
    return text if mark is None else f"{text} (line {mark.line + 1}, column {mark.column + 1})"


def with_overrides(data: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Apply "a.b.0.c=value" settings (values are YAML) to nested data; returns a changed copy."""
    import copy

    import yaml

    out = copy.deepcopy(data)
    for override in overrides:
        path, equals, value = override.partition("=")
        if not equals or not path:
            raise RecipeError(f"a setting is key=value, for example stages.0.steps=100; got {override!r}")
        try:
            parsed = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise RecipeError(f"cannot read the value in {override!r}: {_yaml_problem(error)}") from error
        keys = path.split(".")
        place: Any = out
        for key in keys[:-1]:
            place = _step_into(place, key, path)
        last = keys[-1]
        if isinstance(place, list):
            place[_list_index(place, last, path)] = parsed
        elif isinstance(place, dict):
            place[last] = parsed
        else:
            raise RecipeError(f"{path}: {'.'.join(keys[:-1])} is {place!r}, which holds no fields to set")
    return out


def _step_into(place: Any, key: str, path: str) -> Any:
    if isinstance(place, list):
        return place[_list_index(place, key, path)]
    if isinstance(place, dict):
        return place.setdefault(key, {})
    raise RecipeError(f"{path}: there is nothing inside {key!r} to set")


def _list_index(place: list[Any], key: str, path: str) -> int:
    if not key.isdecimal() or int(key) >= len(place):
        raise RecipeError(f"{path}: {key!r} must be a number from 0 to {len(place) - 1}")
    return int(key)


def from_dict(cls: type[T], data: Any, where: str = "") -> T:
    """A dataclass from nested plain data. Unknown fields and wrong types are errors that name the field."""
    name = where or cls.__name__
    if not isinstance(data, Mapping):
        raise RecipeError(f"{name} must hold fields, got {data!r}")
    known = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(map(str, data)) - set(known))
    if unknown:
        raise RecipeError(f"{name} has no field {', '.join(unknown)}; its fields are {', '.join(known)}")
    hints = typing.get_type_hints(cls)
    values = {
        key: _convert(hints[key], value, f"{where}.{key}" if where else key) for key, value in data.items()
    }
    required = [
        f.name
        for f in known.values()
        if f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
        and f.name not in values
    ]
    if required:
        raise RecipeError(f"{name} needs {', '.join(required)}")
    return cls(**values)


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _convert(next(a for a in args if a is not type(None)), value, where)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return from_dict(hint, value, where)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise RecipeError(f"{where} must be a list, got {value!r}")
        return tuple(_convert(args[0], item, f"{where}.{i}") for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise RecipeError(f"{where} must hold fields, got {value!r}")
        return {str(k): _convert(args[1], v, f"{where}.{k}") for k, v in value.items()}
    if hint is Any:
        return value
    if hint is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            return float(value)  # YAML reads 1e-3 as text
        except (ValueError, OverflowError) as error:
            raise RecipeError(f"{where} must be a number, got {value!r}") from error
    if hint in (int, str, bool) and type(value) is hint:
        return value
    raise RecipeError(f"{where} must be {getattr(hint, '__name__', hint)}, got {value!r}")


def to_dict(value: Any) -> Any:
    """Plain data of nested dataclasses (tuples become lists), ready for YAML and JSON."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_dict(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, list | tuple):
        return [to_dict(item) for item in value]
    if isinstance(value, Mapping):
        return {key: to_dict(item) for key, item in value.items()}
    return value
