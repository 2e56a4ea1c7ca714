"""What `input_curvature` and `score_dataset` check of a model before they compute a score.

A score compiles programs of the model's own; a test of what is refused or warned of needs none.
"""

from typing import Any

import numpy as np

from jaxcurv import FiniteDifference
from jaxcurv.curvature import Inspection, inspect
from jaxcurv.data.reading import Batch
from jaxcurv.engine import cross_entropy
from jaxcurv.engine.model import Problem, functional
from jaxcurv.estimators import Estimator


def examined(
    model: Any,
    images: np.ndarray,
    labels: np.ndarray,
    estimator: Estimator = FiniteDifference(),  # noqa: B008
) -> Inspection:
    """The checks alone, of all that is refused of the model and warned of."""
    function, params = functional(model, None)
    batch = Batch(images, labels, np.arange(len(labels)))
    return inspect(Problem(function, cross_entropy), params, batch, {"score": estimator})
