"""Pickles of uint8 arrays and plain values, read without trusting them.

Nothing that a pickle names is imported or called, NumPy's functions neither: what it says of an
array is kept as it stands, and the array is made here if that is right.
"""

import io
import math
import pickle
import pickletools
from typing import Any

import numpy as np

_OF_ARRAYS = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),  # NumPy's module has been renamed
    ("numpy._core.multiarray", "_reconstruct"),
}


class _RefusedError(ValueError):
    """What is there is no plain value."""


def unpickle(content: bytes) -> dict[Any, Any]:
    """The dictionary in a pickle, Python 2's too: its strings are bytes, its arrays uint8.

    Needs a small multiple of the memory of `content`.

    Raises:
        ValueError: the pickle asks for anything but arrays and plain values, holds
            other arrays or no dictionary, or is damaged.
    """
    try:
        _check_memo(content)
        found = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except _RefusedError:
        raise
    except Exception as error:  # whatever it is that a damaged pickle leads to
        raise ValueError(f"the pickle is damaged: {error!r}") from error
    if not isinstance(found, dict):
        raise _RefusedError(f"the pickle holds no dictionary but {type(found).__name__}")
    return {key: _array(one) if isinstance(one, _Said) else one for key, one in found.items()}


def _check_memo(content: bytes) -> None:
    """Refuses places in the memo which are not counted up: it would grow to the largest."""
    for count, (opcode, argument, _) in enumerate(pickletools.genops(content)):
        if opcode.name.endswith("PUT") and (argument or 0) > count:
            raise _RefusedError(f"the pickle asks for {argument:,} places in memory")


class _Said:
    """What a pickle says of an array or its dtype: the arguments to make it of, and its state."""

    arguments: tuple = ()
    state: Any = ()

    def __init__(self, *arguments: Any):
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type[_Said]:
        if (module, name) not in _OF_ARRAYS:
            raise _RefusedError(f"the pickle asks for {module}.{name}, which is refused")
        return _Said


def _array(said: _Said) -> np.ndarray:
    match said.state:
        case (int(), tuple(shape), _Said(arguments=(b"u1" | "u1", *_)), False | 0, bytes(data)):
            counts = all(type(size) is int and size >= 0 for size in shape)
            if counts and math.prod(shape) == len(data):
                return np.frombuffer(data, np.uint8).reshape(shape)
    raise _RefusedError("the pickle holds an array that is not uint8, row by row")
