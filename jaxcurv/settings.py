"""Numbers as settings: NumPy's, JAX's and torch's scalars become Python's own."""

from __future__ import annotations

import math
from dataclasses import fields
from numbers import Integral, Real
from typing import Any, TypeGuard


def plain(value: Any) -> Any:
    """A setting in Python's own types.

    >>> import numpy as np
    >>> plain(np.int64(8)), plain(np.array(0.5)), plain(np.array([1, 4]))
    (8, 0.5, (1, 4))

    Args:
        value: scalars and arrays without axes, of NumPy, JAX or torch, become bool, int or float,
            whose value is the same (0.02 as float32 is 0.0199999995...); arrays of numbers, lists
            and tuples become tuples; everything else stays as it is.
    """
    if type(value) in (bool, int, float, str) or value is None:
        return value
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return tuple(plain(one) for one in value)
    kind = str(getattr(value, "dtype", "")).removeprefix("torch.")
    makers = {"bool": bool, "int": int, "uint": int, "float": float, "bfloat": float, "<U": str}
    maker = next((made for start, made in makers.items() if kind.startswith(start)), None)
    if maker is not None:
        try:
            if getattr(value, "shape", None) == ():
                return maker(value)
            return plain(value.tolist())
        except TypeError:  # while JAX traces there is no value
            return value
    if not isinstance(value, Real) or kind or hasattr(type(value), "__members__"):  # an enum
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def make_plain(settings: Any) -> None:
    """Makes the fields of a frozen dataclass `plain`; for its `__post_init__`."""
    for field in fields(settings):
        given = getattr(settings, field.name)
        value = plain(given)
        if value is not given:
            object.__setattr__(settings, field.name, value)


def require_whole(name: str, value: Any, least: int | None = None) -> int:
    """A whole number as an int.

    Raises:
        ValueError: it is something else, such as a bool or 8.0, or a smaller number than `least`.
    """
    number = plain(value)
    if not is_whole(number):
        raise ValueError(f"{name} must be a whole number; got {value!r}")
    if least is not None and number < least:
        raise ValueError(f"{name} must be at least {least}; got {number}")
    return number


def is_whole(value: Any) -> TypeGuard[int]:
    """Whether a `plain` value is an int, which a bool is not."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether a `plain` value is an int or a float, finite as a float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False
