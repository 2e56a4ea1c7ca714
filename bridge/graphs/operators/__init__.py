"""ATen's operators in JAX, one function each; a table a kind.

Values, and gradients where a function has a kink, are torch's: ReLU has the slope 0 at 0.
"""

from collections.abc import Callable, Mapping
from typing import Any

from bridge.graphs.operators import (
    convolution,
    elementwise,
    indexing,
    normalisation,
    pooling,
    products,
    reductions,
    resizing,
    shapes,
    spectra,
)

OPERATORS: Mapping[str, Callable[..., Any]] = {
    **elementwise.TABLE,
    **reductions.TABLE,
    **shapes.TABLE,
    **indexing.TABLE,
    **products.TABLE,
    **convolution.TABLE,
    **pooling.TABLE,
    **normalisation.TABLE,
    **resizing.TABLE,
    **spectra.TABLE,
}
"""The function of each operator, by PyTorch's name of it, such as "aten.relu.default"."""
