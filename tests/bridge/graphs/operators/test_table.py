"""No operator without a comparison."""

from types import ModuleType

from bridge.graphs.operators import OPERATORS
from tests.bridge.graphs.operators import (
    test_convolution,
    test_elementwise,
    test_indexing,
    test_normalisation,
    test_pooling,
    test_products,
    test_reductions,
    test_resizing,
    test_shapes,
    test_sizes,
    test_spectra,
)

COMPARED: tuple[ModuleType, ...] = (
    test_convolution,
    test_elementwise,
    test_indexing,
    test_normalisation,
    test_pooling,
    test_products,
    test_reductions,
    test_resizing,
    test_shapes,
    test_spectra,
)


def test_each_operator_has_a_case() -> None:
    tried = {case.operator for module in COMPARED for case in module.CASES} | test_sizes.TRIED
    assert tried == set(OPERATORS)
