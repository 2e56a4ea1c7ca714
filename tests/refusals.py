"""Inputs that are refused: by the checks, also where the annotations would refuse them before."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from jaxtyping import config


@contextmanager
def unchecked_annotations() -> Iterator[None]:
    """Within, calls are as users make them, without a look at the shapes in the signatures."""
    before = config.jaxtyping_disable
    config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        config.update("jaxtyping_disable", before)


@contextmanager
def refused(message: str) -> Iterator[None]:
    """Fails unless a ValueError of this pattern is raised within, by no annotation."""
    with unchecked_annotations(), pytest.raises(ValueError, match=message):
        yield
