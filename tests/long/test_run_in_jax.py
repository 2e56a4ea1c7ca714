"""An NNX LeNet of the user's own: from the factory to the report, and every study without chips."""

from pathlib import Path

import pandas as pd
import pytest

from tests.experiments.user.test_run_in_jax import SMALL
from tests.experiments.user.test_run_in_jax import place as place  # a fixture
from tests.one_process import succeed

pytestmark = pytest.mark.long


def test_lenet(place: Path) -> None:
    _, said = succeed("run", "--model", "own_jax:lenet", *SMALL, "--out", "done")
    assert "left out: export, moments, flips, simulate" in said
    assert "Samples of highest curvature" in (place / "done/report.html").read_text()
    printed, _ = succeed("rescore", "--out", "done")
    assert "TensorFloat-32 on" in printed  # it has layers whose precision could be set
    table = pd.read_csv(place / "done/rescore/variants.csv").set_index("variant")
    assert table["rho"]["recomputed"] > 0.99
    printed, _ = succeed("rank-correlation", "--out", "done", "--rank-correlation.limit", "10")
    assert "fd_h1e-3_n10" in printed
    assert (place / "done/rank-correlation/rank_correlation.png").exists()
