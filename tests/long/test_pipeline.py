"""Stages of a run with more than the finished run of the suite has."""

from pathlib import Path

import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from tests.conftest import SMALL, Command
from tests.experiments.test_pipeline import one_line_error
from tests.kills import without

pytestmark = pytest.mark.long

COMPARED = ("hessian_vector", "hessian_trace", "gauss_newton")


def test_compared_estimators_are_predictors(
    finished_run: Path, command: Command, tmp_path: Path
) -> None:
    folder = without(finished_run, "score", tmp_path / "run")
    result = command("run", "digits", *SMALL, "--score.compare", *COMPARED, "--out", folder)
    assert result.returncode == 0, result.stderr
    scores = pd.read_parquet(folder / "scores.parquet").query("fold == 'test' and correct")
    predictions = pd.read_parquet(folder / "predictions.parquet")
    full = predictions.query("profile == 'adc+wnoise+pcm' and fold == 'test'").set_index("index")
    failed = ~full["correct"].loc[scores["index"]].to_numpy()
    table = pd.read_parquet(folder / "predictors.parquet").query(
        "profile == 'adc+wnoise+pcm' and fold == 'test' and denominator == 'correct'"
    )
    auroc = table.set_index("predictor")["auroc"]
    for name in COMPARED:
        assert auroc[name] == pytest.approx(roc_auc_score(failed, scores[name]), abs=1e-6)


def test_diverging_training(command: Command, tmp_path: Path) -> None:
    result = command(
        "train", "digits", *SMALL, "--train.learning-rate", "1e30", "--out", tmp_path / "out"
    )
    one_line_error(result, "training diverged", "learning rate")
