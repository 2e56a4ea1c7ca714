"""The page of results, where it says more than its tables hold."""

from pathlib import Path

import pandas as pd
import pytest

from experiments.runs.files import write_parquet
from tools import results_page


def run_of(folder: Path, train: float, rates: list[float]) -> results_page._Run:
    """An archived run with so many training images right, and these failure rates by tenths."""
    deciles = pd.DataFrame(
        {
            "fold": "test",
            "profile": "adc+wnoise+pcm",
            "decile": range(1, len(rates) + 1),
            "chips": 15,
            "rate_of_all": rates,
        }
    )
    deciles = pd.concat([deciles, deciles.assign(fold="validation")])
    deciles = pd.concat([deciles, deciles.assign(profile="ideal", rate_of_all=0.0)])
    write_parquet(folder / "deciles.parquet", deciles)
    settings = {"model": {"architecture": "resnet18"}, "data": {"name": "cifar10"}}
    table = pd.DataFrame({"fold": ["train", "test"], "digital_accuracy": [train, 75.0]})
    return results_page._Run(folder, settings, table)


@pytest.mark.parametrize(("train", "shown"), [(98.9, False), (99.0, True)])
def test_the_paper_s_regime_is_that_of_networks_that_fit(
    tmp_path: Path, train: float, shown: bool
) -> None:
    run = run_of(tmp_path, train, [0.0, 0.0, 0.01, 0.005])
    text = "\n".join(results_page._regime([run]))
    assert bool(text) == shown
    row = f"| {tmp_path.name} | test | adc+wnoise+pcm | 15 | 0.00 | 0.00 | 1.00 | 0.50 | 2 of 3 |"
    assert (row in text) == shown
    assert "validation" not in text
    assert "ideal" not in text


def test_a_run_of_the_test_fold_alone_has_its_row(tmp_path: Path) -> None:
    run = run_of(tmp_path, 99.0, [0.0, 0.1])
    ends = {
        f"{end}_of_{of}{b}": 1.0
        for end in ("d1", "d10")
        for of in ("all", "correct")
        for b in ("", "_low", "_high")
    }
    row = {"fold": "test", "profile": "adc+wnoise+pcm", "digital_accuracy": 75.0} | ends
    table = pd.DataFrame([row | {"paper_d1": 0.14, "paper_d10": 3.4}])
    settings = run.settings | {"model": {"architecture": "resnet18", "width": 16}}
    settings["simulate"] = {"pcm": {"t_inference": 20.0}}
    alone = results_page._Run(tmp_path, settings, table)
    text = "\n".join(results_page._table_one([alone], None, results_page._interval))
    assert "| ResNet-18, CIFAR-10, width 16 | -, 75.0 | 0.14, 3.4 |" in text
    settings |= {"seed": 1, "simulate": {"pcm": {"t_inference": 0.0}}}
    text = "\n".join(results_page._table_one([alone], None, results_page._interval))
    assert "width 16, training 2, 0 s after programming | -, 75.0 |" in text
