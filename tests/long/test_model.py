"""A user's own model with further estimators."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.experiments.user.test_model import SCORE, command
from tests.experiments.user.test_model import place as place  # a fixture

pytestmark = pytest.mark.long


def test_each_estimator_has_its_column(place: Path) -> None:
    names = ("hessian-vector", "gauss-newton", "low-rank-gauss-newton")
    command(
        place, *SCORE, "--model", "mine:network", "--data", "images", "--out", "several.parquet",
        *("--estimator", *names, "--rank", "2"),
    )  # fmt: skip
    table = pq.read_table(place / "several.parquet")
    exact, estimate, error = (
        table[name].to_numpy()
        for name in (
            "gauss_newton", "low_rank_gauss_newton", "low_rank_gauss_newton_standard_error"
        )
    )  # fmt: skip
    assert (np.abs(estimate - exact) <= 5 * error + 1e-3 * exact).all()
    assert (table["hessian_vector"].to_numpy() > 0).all()
