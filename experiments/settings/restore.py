"""Settings from what JSON holds of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar, get_args, get_type_hints

Settings = TypeVar("Settings")


def restore(start: Settings, stored: Mapping[str, Any]) -> Settings:
    """A dataclass of settings with the stored values, and `start`'s where none is stored.

    Where a setting is one of several classes, the class is told by the names of its fields.

    Args:
      start: an instance of a frozen dataclass, its fields plain values or such dataclasses.
      stored: values by field, nested as `dataclasses.asdict` gives them, tuples as lists.

    Raises:
      ValueError: a field is not known, or a value is refused.
    """
    hints = get_type_hints(type(start))
    given: dict[str, Any] = {}
    for name, value in stored.items():
        if name not in {field.name for field in fields(start)}:  # type: ignore[arg-type]
            raise ValueError(f"there is no setting {name!r} in this version")
        given[name] = _restored(getattr(start, name), hints[name], name, value)
    try:
        return replace(start, **given)  # type: ignore[type-var]
    except TypeError as error:
        raise ValueError(f"a setting has a value of another type: {error}") from error


def _restored(start: Any, hint: Any, name: str, value: Any) -> Any:
    if not is_dataclass(start):
        return _tuples(value)
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} must hold settings; got {value!r}")
    kinds: list[Any] = [type(start), *get_args(hint)]
    fitting = [kind for kind in kinds if value.keys() <= {field.name for field in fields(kind)}]
    if not fitting or fitting[0] is type(start):
        return restore(start, value)
    try:
        return fitting[0](**{key: _tuples(one) for key, one in value.items()})
    except TypeError as error:
        raise ValueError(f"{name} has a value of another type: {error}") from error


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
