"""No operator without a comparison."""

from importlib import import_module

from bridge.graphs.operators import OPERATORS
from tests.bridge.graphs.operators import test_sizes

KINDS = (
    *("convolution", "elementwise", "indexing", "normalisation", "pooling"),
    *("products", "reductions", "resizing", "shapes", "spectra"),
)
COMPARED = [import_module(f"tests.bridge.graphs.operators.test_{kind}") for kind in KINDS]


def test_each_operator_has_a_case() -> None:
    tried = {case.operator for module in COMPARED for case in module.CASES} | test_sizes.TRIED
    assert tried == set(OPERATORS)
