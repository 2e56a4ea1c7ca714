"""What scores say without chips, on hand-made scores whose tables are known."""

import numpy as np
import pandas as pd
import pytest

from bridge.report.tables import digital, outcomes
from tests.bridge.report.conftest import tables


@pytest.fixture(scope="module")
def samples() -> pd.DataFrame:
    """Sample 0 of the 20 of each fold is wrong; curvature is a thousandth of the index."""
    return outcomes.digital_outcomes(tables()[0])


def test_accuracy(samples: pd.DataFrame) -> None:
    table = digital.accuracy(samples).set_index("fold")
    assert list(table.index) == ["train", "test", "pooled"]
    assert table["samples"].tolist() == [20, 20, 40]
    assert table["digital_accuracy"].tolist() == [0.95] * 3
    assert table["of_correct"]["test"] == 0.010
    assert table["of_wrong"]["test"] == 0
    assert table["last_decile"]["test"] == pytest.approx(0.0171)


def test_deciles(samples: pd.DataFrame) -> None:
    table = digital.score_deciles(samples).query("fold == 'test'")
    assert table["decile"].tolist() == list(range(1, 11))
    assert table["samples"].tolist() == [2] * 10
    np.testing.assert_allclose(table["low"], np.arange(0, 20, 2) * 1e-3)
    np.testing.assert_allclose(table["high"], np.arange(1, 20, 2) * 1e-3)
    assert table["digital_accuracy"].tolist() == [0.5] + [1.0] * 9
    assert table["median_margin"].iloc[0] == 0.5
    assert digital.score_deciles(samples, 30)["fold"].unique().tolist() == ["pooled"]


def test_highest(samples: pd.DataFrame) -> None:
    table = digital.highest(samples, count=3)
    assert table["index"].tolist() == [19, 18, 17]
    assert list(table) == ["fold", "index", "label", "curvature", "loss", "margin"]
    every = digital.highest(samples.assign(path="a.png"), count=60)
    assert every["index"].tolist() == list(range(19, 0, -1))  # the wrong one is left out
    assert every["path"].tolist() == ["a.png"] * 19


def test_classes(samples: pd.DataFrame) -> None:
    table = digital.per_class(samples).set_index("label")
    assert table["samples"].tolist() == [7, 7, 6]
    assert table["digital_accuracy"].tolist() == [pytest.approx(6 / 7), 1, 1]
    assert table["mean_curvature"][0] == pytest.approx(0.009)


def test_costs_and_ranks(samples: pd.DataFrame) -> None:
    costs = pd.DataFrame(
        {"predictor": ["loss", "gradient_norm", "curvature"], "forward_passes": [1.0, 2.0, 22.0]}
    )
    scores = samples.assign(gradient_norm=-samples["curvature"])
    table = digital.score_costs(scores, costs).set_index("predictor")
    assert table["forward_passes"][["curvature", "gradient_norm", "margin"]].tolist() == [22, 2, 1]
    assert table["spearman"]["gradient_norm"] == pytest.approx(-1)
    assert table["spearman_of_correct"]["curvature"] == pytest.approx(1)
    assert "entropy" not in table.index  # which the scores lack


def test_summary(samples: pd.DataFrame) -> None:
    said = digital.summary(digital.accuracy(samples))
    assert "gets 95.0 % of the 20 test samples right" in said
    assert "0.01 among the digitally correct samples and 0 among the digitally wrong" in said
    right = samples.assign(digital_correct=True)
    assert "digitally wrong" not in digital.summary(digital.accuracy(right))


def test_repeated_samples_are_refused() -> None:
    scores, _ = tables()
    with pytest.raises(ValueError, match="rows repeated in scores"):
        outcomes.digital_outcomes(pd.concat([scores, scores.head(1)]))
