"""A given ResNet-18, from its file to the report, as a user runs it."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.conftest import Command
from tests.experiments.test_pretrained import flags, torch_predictions
from tests.experiments.test_pretrained import root as root  # a fixture

pytestmark = pytest.mark.long

FLAGS = (
    *("--score.estimator.probes", "2", "--score.compare"),  # with nothing
    *("--analyse.resamples", "50"),
)


def test_a_run(command: Command, root: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = command("run", *flags(root, root / "weights.pth"), *FLAGS, "--out", run)
    assert result.returncode == 0, result.stderr
    scores = pd.read_parquet(run / "scores.parquet")
    assert (len(scores), scores["fold"].unique().tolist()) == (20, ["test"])
    assert scores["correct"].mean() > 0.5
    expected = torch_predictions(root)
    assert set(expected) == {0, 1, 2}
    np.testing.assert_array_equal(scores["prediction"], expected[scores["index"]])
    predictions = pd.read_parquet(run / "predictions.parquet")
    ideal = predictions[predictions["profile"] == "ideal"]
    np.testing.assert_array_equal(ideal["prediction"], scores["prediction"])
    assert not (run / "figures" / "training_curve.png").exists()
    page = (run / "report.html").read_text()
    assert "Training of the digital model" not in page
    assert page.count("<figure") > 4
