"""Hand-made scores and predictions whose tables are known."""

import numpy as np
import pandas as pd
import pytest

from bridge.chips.profiles import FULL_PROFILE
from bridge.report.tables import failure_rates, outcomes

FULL = FULL_PROFILE


def tables(chips=(11,), folds=("train", "test"), samples=20):
    """Digital: sample 0 of each fold is wrong. Analog, `FULL` only: the upper half fails.

    Curvature rises with the index; of chip number c the last c samples survive after all.
    """
    index = np.arange(samples)
    label = (index % 3).astype("int32")
    scores, predictions = [], []
    for fold in folds:
        digital = np.where(index == 0, label + 1, label).astype("int32")
        score = pd.DataFrame({"fold": fold, "index": index, "label": label, "prediction": digital})
        score["correct"] = digital == label
        score["curvature"] = index * 1e-3
        score["loss"] = 1.0 + index % 7
        score["margin"] = 1.0 - index % 5
        scores.append(score)
        for profile in ("ideal", FULL):
            for number, chip in enumerate(chips):
                fails = (index >= samples // 2) & (index < samples - number) & (profile == FULL)
                analog = np.where(fails, label + 1, digital).astype("int32")
                chip_rows = pd.DataFrame(
                    {
                        "profile": profile,
                        "chip": chip,
                        "fold": fold,
                        "index": index,
                        "prediction": analog,
                        "correct": analog == label,
                    }
                )
                predictions.append(chip_rows)
    return pd.concat(scores, ignore_index=True), pd.concat(predictions, ignore_index=True)


@pytest.fixture(scope="module")
def joined():
    return outcomes.join(*tables(chips=(11, 12)))


@pytest.fixture(scope="module")
def deciles(joined):
    return failure_rates.failure_tables(joined)
