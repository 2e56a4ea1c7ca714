"""`compare` of a finished run with copies of it that were changed by hand."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from experiments.cli import commands
from experiments.comparison.results import COLUMNS, RESULTS
from experiments.runs.files import write_parquet
from jaxcurv.storage.checksums import read_json, write_json

FULL = "adc+wnoise+pcm"
RESULTS_FOLDER = Path(__file__).parents[3] / "experiments" / "results"

Change = Callable[..., Path]


@pytest.fixture
def changed(finished_run: Path, tmp_path: Path) -> Change:
    """Makes a run that differs in what it is told to."""

    def make(
        name: str = "other",
        settings: dict[str, Any] | None = None,
        scores: Callable[[pd.DataFrame], pd.DataFrame] = lambda table: table,
        predictions: Callable[[pd.DataFrame], pd.DataFrame] = lambda table: table,
    ) -> Path:
        folder = tmp_path / name
        shutil.copytree(finished_run / "stages", folder / "stages")
        for path in (folder / "stages").glob("*.json"):
            record = read_json(path)
            for dotted, value in (settings or {}).items():
                *groups, last = dotted.split(".")
                place = record["settings"]
                for group in groups:
                    place = place.get(group, {})
                if last in place:
                    place[last] = value
            write_json(path, record)
        for file, change in (("scores", scores), ("predictions", predictions)):
            table = change(pd.read_parquet(finished_run / f"{file}.parquet"))
            write_parquet(folder / f"{file}.parquet", table)
        return folder

    return make


def wrong(share: float, *columns: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """Gives every so many-th test sample another class than its label."""

    def change(table: pd.DataFrame) -> pd.DataFrame:
        table = table.copy()
        rows = (table["fold"] == "test") & (table["index"] % round(1 / share) == 0)
        table.loc[rows & table["correct"], "prediction"] = (
            table.loc[rows & table["correct"], "prediction"] + 1
        ) % 10
        table.loc[rows, "correct"] = False
        return table

    return change


def compared(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    """What the command prints, its lines run together."""
    assert commands.run(["compare", *map(str, words)]) == 0, capsys.readouterr().err
    return " ".join(capsys.readouterr().out.split())


def refused(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    assert commands.run(["compare", *map(str, words)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


def of_profile(run: Path, profile: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Test scores, and outcomes [samples, chips]."""
    scores = pd.read_parquet(run / "scores.parquet").query("fold == 'test'").set_index("index")
    rows = pd.read_parquet(run / "predictions.parquet").query("fold == 'test'")
    rows = rows[rows["profile"] == profile]
    return scores, rows.pivot(index="index", columns="chip", values="correct").loc[scores.index]


def test_settings_and_results(
    finished_run: Path, changed: Change, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = changed(
        settings={"simulate.wnoise.sigma": 0.05, "score.estimator.probes": 7},
        scores=wrong(1 / 7),
        predictions=wrong(1 / 3),
    )
    file = tmp_path / "new" / "moved.csv"
    said = compared(capsys, finished_run, other, "--csv", file)
    assert "--simulate.wnoise.sigma 0.02 0.05" in said
    assert "--score.estimator.probes 3 7" in said
    assert "--model.width" not in said
    assert "All networks have the same weights." in said
    assert "Samples: the same 60, in pairs. Chips: " in said
    table = pd.read_csv(file)
    assert list(table) == list(COLUMNS)
    assert (table["run"].unique(), table["reference"].unique()) == (["other"], ["digits"])
    assert table["same_samples"].all()
    assert table["same_chips"][1:].all()
    rows = table[table["profile"] == FULL].set_index("result")
    for run, column in ((finished_run, "reference_value"), (other, "value")):
        scores, right = of_profile(run, FULL)
        digital = scores["correct"]
        failed = ~right[digital]
        assert table.set_index("result").loc["digital accuracy", column] == pytest.approx(
            digital.mean()
        )
        assert rows.loc["analog accuracy", column] == pytest.approx(right.to_numpy().mean())
        assert rows.loc["failure rate", column] == pytest.approx(failed.to_numpy().mean())
        for score, sign in (("curvature", 1), ("margin", -1)):
            found = [
                roc_auc_score(failed[chip], sign * scores.loc[digital, score])
                for chip in failed
                if failed[chip].any()
            ]
            assert rows.loc[f"AUROC of {score}", column] == pytest.approx(np.mean(found))
    defined = table.dropna(subset="difference")
    np.testing.assert_allclose(
        defined["difference"], defined["value"] - defined["reference_value"], atol=1e-12
    )
    assert (defined["difference_low"] <= defined["difference"]).all()
    assert (defined["difference"] <= defined["difference_high"]).all()
    ideal = table[(table["profile"] == "ideal") & table["difference"].isna()]
    assert ideal["reason"].str.contains("fails").all()


def test_a_run_beside_itself(
    finished_run: Path, changed: Change, capsys: pytest.CaptureFixture[str]
) -> None:
    said = compared(capsys, finished_run, changed("a"), changed("b"), "--confidence", "0.5")
    assert "No recorded setting differs." in said
    assert "a less digits, test fold" in said
    assert "b less digits, test fold" in said
    assert "Intervals of 50 %" in said


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"simulate.stream": "b"}, "random numbers have other labels (b and none"),
        ({"simulate.engine": "jax"}, "--simulate.engine jax are other chips"),
    ],
)
def test_chips_of_other_random_numbers_are_independent(
    finished_run: Path,
    changed: Change,
    settings: dict,
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = compared(capsys, finished_run, changed(settings=settings), "--csv", tmp_path / "m.csv")
    assert re.search(r"Chips: (\d) against \1 others, as independent\.", said)
    assert "The chips are independent: " in said
    assert words in said
    table = pd.read_csv(tmp_path / "m.csv")
    assert table["same_samples"].all()
    assert not table["same_chips"].any()


def test_chips_of_other_seeds_are_independent(
    finished_run: Path, changed: Change, capsys: pytest.CaptureFixture[str]
) -> None:
    later = changed(predictions=lambda table: table.assign(chip=table["chip"] + 10))
    said = compared(capsys, finished_run, later)
    assert "no seed of a chip is in both" in said


def test_common_samples_count(
    finished_run: Path, changed: Change, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    indices = pd.read_parquet(finished_run / "scores.parquet").query("fold == 'test'")["index"]
    kept = sorted(indices)[:40]
    fewer = changed(
        scores=lambda table: table[table["index"].isin(kept)],
        predictions=lambda table: table[table["index"].isin(kept)],
    )
    said = compared(capsys, finished_run, fewer, "--csv", tmp_path / "m.csv")
    assert "Only the 40 samples that both scored count." in said
    table = pd.read_csv(tmp_path / "m.csv")
    assert set(table["samples"]) == set(table["reference_samples"]) == {40}
    assert (table["difference"].dropna() == 0).all()  # of the same outcomes


def test_other_data_are_independent(
    finished_run: Path, changed: Change, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = changed(settings={"data.name": "letters"})
    said = compared(capsys, finished_run, other, "--csv", tmp_path / "m.csv")
    assert "other is on letters, digits on digits: a difference is one of the data too." in said
    assert "Samples: 60 against 60 others, as independent." in said
    table = pd.read_csv(tmp_path / "m.csv")
    assert not table["same_samples"].any()
    width = table["difference_high"] - table["difference_low"]
    assert (width[table["result"] == "analog accuracy"] > 0.05).all()


def test_a_run_without_chips_is_compared_by_its_digital_model(
    finished_run: Path, changed: Change, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digital = changed()
    (digital / "predictions.parquet").unlink()
    (digital / "stages" / "simulate.json").unlink()
    said = compared(capsys, finished_run, digital, "--csv", tmp_path / "m.csv")
    assert "other has no chips: only digital accuracy is compared." in said
    assert pd.read_csv(tmp_path / "m.csv")["result"].tolist() == [RESULTS[0]]


def test_errors_come_before_the_work(
    finished_run: Path, changed: Change, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = changed()
    assert "compare needs two runs or more" in refused(capsys, finished_run)
    assert "is given twice" in refused(capsys, finished_run, finished_run)
    assert f"there is no folder {tmp_path / 'x'}" in refused(capsys, finished_run, tmp_path / "x")
    assert "--csv needs a file NAME.csv" in refused(capsys, finished_run, other, "--csv", "x.txt")
    assert "confidence must lie between" in refused(
        capsys, finished_run, other, "--confidence", "95"
    )
    (tmp_path / "empty").mkdir()
    said = refused(capsys, finished_run, tmp_path / "empty")
    assert f"no finished analysis in {tmp_path / 'empty'} (no stages/analyse.json)" in said
    (other / "predictions.parquet").unlink()
    assert "(no predictions.parquet)" in refused(capsys, finished_run, other)
    relabelled = changed(
        "relabelled",
        scores=lambda table: table.assign(
            label=(table["label"] + 1) % 10, prediction=(table["prediction"] + 1) % 10
        ),
        predictions=lambda table: table.assign(prediction=(table["prediction"] + 1) % 10),
    )
    said = refused(capsys, finished_run, relabelled)
    assert "label of 60 samples of digits is not the same" in said
    tested = changed("tested", scores=lambda table: table[table["fold"] == "test"])
    said = refused(capsys, tested, finished_run, "--fold", "train")
    assert "has no scores of the train fold: give one of test" in said


def test_archived_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Their values are those of their own tables."""
    names = "cifar10_akamaster_resnet20", "cifar10_akamaster_resnet32"
    folders = [RESULTS_FOLDER / name for name in names]
    compared(capsys, *folders, "--csv", tmp_path / "m.csv")
    table = pd.read_csv(tmp_path / "m.csv")
    rows = table[table["result"] == "AUROC of margin"].set_index("profile")
    for folder, column in zip(folders, ("reference_value", "value"), strict=True):
        kept = pd.read_csv(folder / "predictors.csv")
        kept = kept[(kept["predictor"] == "margin") & (kept["denominator"] == "correct")]
        kept = kept[kept["fold"] == "test"].set_index("profile")["auroc"]
        np.testing.assert_allclose(rows[column], kept.loc[rows.index], rtol=1e-6)
        one = pd.read_csv(folder / "table_one.csv").query("fold == 'test'").set_index("profile")
        analog = table[table["result"] == "analog accuracy"].set_index("profile")[column]
        np.testing.assert_allclose(100 * analog, one.loc[analog.index, "analog_accuracy"])
