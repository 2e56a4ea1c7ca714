"""Settings from what JSON holds of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

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
        if name not in _names(start):
            raise ValueError(f"there is no setting {name!r} in this version")
        given[name] = _restored(getattr(start, name), hints[name], name, value)
    return replace(start, **given)  # type: ignore[type-var]


def _restored(start: Any, hint: Any, name: str, value: Any) -> Any:
    if not is_dataclass(start):
        plain = _tuples(value)
        if not _fits(plain, hint):
            raise ValueError(f"{name} cannot be {value!r}")
        return plain
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} must hold settings; got {value!r}")
    kinds: list[Any] = [kind for kind in get_args(hint) if value.keys() == _names(kind)]
    if not kinds or kinds[0] is type(start):
        return restore(start, value)
    hints = get_type_hints(kinds[0])
    return kinds[0](**{key: _restored(None, hints[key], key, one) for key, one in value.items()})


def _names(kind: Any) -> set[str]:
    return {field.name for field in fields(kind)}


def _fits(value: Any, hint: Any) -> bool:
    """Whether a plain value is of a type as settings have them."""
    kind, arguments = get_origin(hint), get_args(hint)
    if kind is Literal:
        return value in arguments
    if kind in (Union, UnionType):
        return any(_fits(value, one) for one in arguments)
    if kind is tuple:
        return isinstance(value, tuple) and all(_fits(one, arguments[0]) for one in value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is (NoneType if hint is None else hint)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
