"""What the scores of a run cost a sample, in times of a forward pass (`jaxcurv.costs`)."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from jaxcurv.costs import FORWARD, GRADIENT_NORM, forward_passes
from jaxcurv.estimators import Estimator


def of_estimators(estimators: Mapping[str, Estimator], classes: int) -> pd.DataFrame:
    """Costs of each estimator alone, and of what every scoring has beside them.

    Args:
        estimators: by the name of their column.
        classes: number of classes.

    Returns:
        predictor and forward_passes, for `predictors.costs_table`.
    """
    passes = {"loss": FORWARD, "gradient_norm": GRADIENT_NORM} | {
        name: forward_passes(estimator, classes) for name, estimator in estimators.items()
    }
    return pd.DataFrame({"predictor": passes.keys(), "forward_passes": passes.values()})
