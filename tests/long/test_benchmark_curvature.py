"""The benchmark of the estimators on ResNet-18, and their rank correlation on a trained network."""

import json
from pathlib import Path

import pandas as pd
import pytest

from experiments.benchmarks import curvature, curvature_figures
from experiments.benchmarks.curvature import CurvatureBenchmark
from experiments.studies import rank_correlation
from tests.conftest import Command

pytestmark = pytest.mark.long


def test_the_whole_command(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    flags = ("--width", "2", "--batch-size", "4", "--image-size", "8", "--repeats", "1")
    result = command("benchmark", "curvature", *flags, "--probes", "3", "--json", path)
    assert result.returncode == 0, result.stderr
    found = json.loads(path.read_text())
    assert found["over_published"] > 0
    assert len(found["contestants"]) == 7


def test_sweep_over_probes_batches_and_samples() -> None:
    settings = CurvatureBenchmark(width=2, batch_size=4, image_size=8, probes=3, repeats=1)
    points = curvature_figures.Points(probes=(1, 3), batch_sizes=(2,), samples=(8,))
    table = curvature_figures.sweep(curvature.make_workload(settings), settings, points)
    names = ["published, PyTorch", "FiniteDifference", "HessianVector", "GaussNewton"]
    assert list(table["contestant"]) == [*3 * names, "FiniteDifference", "GaussNewton", *names]
    assert list(table["x"]) == [1] * 4 + [3] * 4 + [2] * 4 + [8] * 2 + [2] * 4
    assert (table.query("panel != 'memory'")["lowest"] > 0).all()


def test_coarse_precision_on_a_cpu_is_float32() -> None:
    """Which has no other: the ranks must agree entirely."""
    settings = CurvatureBenchmark(width=2, batch_size=4, image_size=8)
    workload = curvature.make_workload(settings)
    batch = workload.batch(4)
    contestants = curvature.make_coarse_contestants(workload, batch, 3)
    assert [one.precision for one in contestants.values()] == ["tensorfloat32"] * 2 + [
        "bfloat16"
    ] * 2
    agreed = curvature.rank_agreement(curvature.make_contestants(workload, batch, 3) | contestants)
    assert agreed.keys() == contestants.keys()
    assert list(agreed.values()) == pytest.approx([1] * 4)


def test_rank_correlation_of_a_run(command: Command, tmp_path: Path) -> None:
    small = ("--model.width", "2", "--train.epochs", "2", "--train.warmup-epochs", "1")
    trained = command("train", "digits", *small, "--out", tmp_path)
    assert trained.returncode == 0, trained.stderr
    flags = ("--rank-correlation.limit", "40", "--rank-correlation.batch-size", "20")
    result = command("rank-correlation", "digits", *small, *flags, "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    out = tmp_path / "rank-correlation"
    scores = pd.read_parquet(out / "scores.parquet")
    matrix = pd.read_csv(out / "rank_correlation.csv", index_col="score")
    assert len(scores) == 40
    assert set(matrix) == {
        *rank_correlation.ESTIMATORS,
        *rank_correlation.ANOTHER_KEY,
        *rank_correlation.BY_PRODUCTS,
    }
    expected = scores[["fd_h1e-3_n10", "loss"]].corr("spearman").iat[0, 1]
    assert matrix.at["fd_h1e-3_n10", "loss"] == pytest.approx(expected)
    # Other random vectors give a barely trained net similar ranks, not the same scores.
    assert 0.5 < matrix.at["fd_h1e-3_n10", "fd_h1e-3_n10_another_key"] < 1
    assert json.loads((out / "settings.json").read_text())["samples"] == 40
    assert (out / "rank_correlation_correct.png").exists()
