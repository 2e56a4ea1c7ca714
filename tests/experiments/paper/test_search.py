"""The search for a chip whose failures are the paper's, on cases with a known answer."""

from collections import Counter
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest

from bridge.chips.profiles import Profile
from experiments.paper import search
from experiments.paper.search import READINGS, SHIPPED, Chips, Reading, best, changes, descend, ends


def _samples(fold: str, curvature: list[int], correct: list[bool]) -> pd.DataFrame:
    index = range(len(curvature))
    return pd.DataFrame({"fold": fold, "index": index, "curvature": curvature, "correct": correct})


def _twenty() -> Chips:
    """Two samples a decile, curvature as the index; the last decile has one digitally wrong."""
    correct = [True] * 19 + [False]
    first, second = np.ones((2, 20), bool)
    first[[0, 18]] = False
    second[[19]] = False
    samples = _samples("test", list(range(20)), correct)
    return Chips(samples, np.stack([first, second]))


def test_ends_are_the_failures_of_the_first_and_last_decile() -> None:
    """Chip 0 fails one of two samples in either bin; chip 1 none: its sample is wrong digitally."""
    of_all = ends(_twenty(), Reading("test", "all"))["rate"]
    of_correct = ends(_twenty(), Reading("test", "correct"))["rate"]
    assert of_all.to_dict() == {"d1": 25.0, "d10": 25.0}
    assert of_correct.to_dict() == {"d1": 25.0, "d10": 50.0}


def test_folds_are_cut_together_or_alone() -> None:
    low = _samples("test", list(range(10)), [True] * 10)
    high = _samples("train", list(range(100, 110)), [True] * 10)
    correct = np.ones((1, 20), bool)
    correct[0, 0] = False  # the lowest of test, of all
    correct[0, 19] = False  # the highest of train, of all
    chips = Chips(pd.concat([low, high], ignore_index=True), correct)
    found = {fold: ends(chips, Reading(fold, "all"))["rate"].tolist() for fold in search.FOLDS}
    assert found == {"test": [100.0, 0.0], "train": [0.0, 100.0], "train and test": [50.0, 50.0]}


def test_misfit_is_the_mean_absolute_difference() -> None:
    model = ("resnet18", "cifar10")
    table = search.misfits({model: _twenty()}, {model: (20.0, 55.0)})
    assert [(row.fold, row.denominator) for row in table.itertuples()] == [
        (reading.fold, reading.denominator) for reading in READINGS
    ]
    test = table[table["fold"] == "test"].set_index("denominator")["misfit"]
    assert test.to_dict() == {"all": (5 + 30) / 2, "correct": (5 + 5) / 2}


def test_every_change_is_of_one_setting() -> None:
    before = asdict(SHIPPED)

    def parts(chip: Profile) -> list[str]:
        after = asdict(chip)
        return [name for name in before if before[name] != after[name]]

    tried = list(changes(SHIPPED))
    assert all(len(parts(chip)) == 1 for _, chip in tried)
    assert Counter(parts(chip)[0] for _, chip in tried) == {
        "memory": 6,
        "wnoise": 6,
        "adc": 2,
        "clipping": 2,
    }
    assert len({name for name, _ in tried}) == len(tried)


@pytest.mark.parametrize("seconds", [0.0, 20.0, 3600.0])
@pytest.mark.parametrize("sigma", [0.01, 0.05])
def test_descent_finds_a_minimum_two_changes_away(seconds: float, sigma: float) -> None:
    asked: Counter[Profile] = Counter()

    def evaluate(chip: Profile) -> pd.DataFrame:
        assert chip.wnoise is not None
        assert chip.memory is not None
        asked[chip] += 1
        off = abs(chip.wnoise.sigma - sigma) + abs(chip.memory.t_inference - seconds) / 1e5
        off += (chip.wnoise.kind != "pcm_read") + (chip.clipping.type != "none")
        rows = [(reading.fold, reading.denominator) for reading in READINGS]
        table = pd.DataFrame(rows, columns=["fold", "denominator"])
        table["misfit"] = off + 1 - (table["fold"].eq("train") & table["denominator"].eq("all"))
        return table

    steps = descend(evaluate)
    found = best(steps)
    assert found.misfit == 0
    assert found.reading == Reading("train", "all")
    assert found.chip.memory == replace(SHIPPED.memory, t_inference=seconds)  # type: ignore[type-var]
    assert set(asked.values()) == {1}
    assert steps[0].chip == SHIPPED
    assert [step.number for step in steps] == sorted(step.number for step in steps)


def test_an_undefined_rate_is_no_misfit() -> None:
    """A decile without a digitally correct sample: its reading is left out."""
    samples = _samples("test", list(range(10)), [True] * 9 + [False])
    model = ("resnet18", "cifar10")
    table = search.misfits({model: Chips(samples, np.ones((1, 10), bool))}, {model: (0.0, 0.0)})
    step = search.Step(0, "", SHIPPED, table[table["fold"] == "test"])
    assert table.loc[1, "misfit"] != table.loc[1, "misfit"]
    assert step.misfit == 0
    assert step.reading == Reading("test", "all")
