"""Inputs that are refused: by the checks or, in `make test-typed`, by the annotations."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from jaxtyping import TypeCheckError


@contextmanager
def refused(message: str) -> Iterator[None]:
    """Fails unless a ValueError of this pattern is raised within, or a TypeCheckError."""
    with pytest.raises((ValueError, TypeCheckError)) as told:
        yield
    if isinstance(told.value, ValueError):
        assert re.search(message, str(told.value)), told.value
