"""The examples in the docstrings: what a newcomer reads in the reference runs and says that."""

import doctest
import importlib
import warnings

import numpy as np
import pytest

import bridge
import jaxcurv
from tests.conftest import ROOT

MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for package in ("jaxcurv", "bridge")
    for path in sorted((ROOT / package).rglob("*.py"))
    if ">>> " in path.read_text()
]
"""Modules with an example: found by their text, so that no other is imported."""

SHOWN = {"np": np, "bridge": bridge, "jaxcurv": jaxcurv}
"""What examples need not import."""


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_run(name: str) -> None:
    module = importlib.import_module(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of few samples: examples are small
        found = doctest.testmod(module, extraglobs=SHOWN)
    assert found.attempted
    assert not found.failed
