"""A run whose chips another engine computes, and back."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.conftest import SMALL, Command

pytestmark = pytest.mark.long


@pytest.mark.parametrize("engine", ["jax", "aihwkit"])
def test_a_run_on_another_engine(command: Command, run_copy: Path, engine: str) -> None:
    names = ("predictions.parquet", "adc_ranges.csv", "scores.parquet", "flips.parquet")
    before = {name: (run_copy / name).read_bytes() for name in names}
    flips = pd.read_parquet(run_copy / "flips.parquet")
    fast = pd.read_parquet(run_copy / "predictions.parquet")
    ranges = pd.read_csv(run_copy / "adc_ranges.csv")
    done = command("run", "digits", *SMALL, "--simulate.engine", engine, "--out", run_copy)
    assert done.returncode == 0, done.stderr
    assert ("flips: up to date" in done.stderr) is (engine == "aihwkit")
    found = pd.read_parquet(run_copy / "predictions.parquet")
    keys = ["profile", "chip", "fold", "index"]
    both = fast.merge(found, on=keys, validate="one_to_one", suffixes=("", "_other"))
    assert len(both) == len(fast) == len(found)
    equal = (both["prediction"] == both["prediction_other"]).groupby(both["profile"]).mean()
    assert equal["ideal"] == 1
    assert equal["adc"] > 0.95
    bounds = pd.read_csv(run_copy / "adc_ranges.csv")
    np.testing.assert_allclose(
        bounds["range"].sort_values(), ranges["range"].sort_values(), rtol=1e-4
    )
    if engine == "aihwkit":
        assert (equal > 0.9).all()  # the same chips
    else:
        share = both["correct_other"].mean() - both["correct"].mean()
        assert abs(share) < 0.15  # other chips of the same kind
        assert set(bounds["clipped_share"].dropna() <= 1) == {True}
        others = pd.read_parquet(run_copy / "flips.parquet")
        assert others["index"].tolist() == flips["index"].tolist()
        np.testing.assert_allclose(others["probability"], flips["probability"], atol=1e-3)
    assert (run_copy / "report.html").stat().st_size > 10_000
    back = command("run", "digits", *SMALL, "--out", run_copy, "--simulate.engine", "fast")
    assert back.returncode == 0, back.stderr
    for name, content in before.items():
        assert (run_copy / name).read_bytes() == content, name
