"""`analyse` on tables from anywhere, over the command line."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bridge.analysis.failures import failure_table
from experiments.cli import commands
from experiments.runs.files import write_parquet
from experiments.user.predictions import OwnPredictions, read, run
from jaxcurv.storage.lock import lock

SAMPLES = 40


def write_tables(folder: Path) -> dict[str, Path]:
    """Scores, digital and analog tables, their rows in three different orders."""
    rng = np.random.default_rng(0)
    index = 3 * np.arange(SAMPLES) + 5
    label = np.arange(SAMPLES) % 4
    scores = pd.DataFrame(
        {
            "index": index,
            "curvature": np.linspace(0, 1, SAMPLES),
            "curvature_standard_error": 0.1,
            "margin": np.linspace(3, 0, SAMPLES) + rng.normal(size=SAMPLES),
            "note": "text",
            "path": [f"ant/{number}.png" for number in index],
        }
    )
    digital = pd.DataFrame({"index": index, "label": label, "prediction": label})
    digital.loc[:3, "prediction"] = 9
    chips = []
    for chip in (7, 8):
        fails = rng.random(SAMPLES) < np.linspace(0, 1, SAMPLES)
        chips.append(
            pd.DataFrame({"index": index, "chip": chip, "prediction": np.where(fails, 9, label)})
        )
    paths = {name: folder / f"{name}.csv" for name in ("scores", "digital", "analog")}
    scores.sample(frac=1, random_state=0).to_csv(paths["scores"], index=False)
    digital.to_csv(paths["digital"], index=False)
    pd.concat(chips).sample(frac=1, random_state=1).to_csv(paths["analog"], index=False)
    return paths


def flags(paths: dict[str, Path]) -> list[str]:
    return [part for name, path in paths.items() for part in (f"--{name}", str(path))]


def test_a_folder_in_use_is_not_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["analyse", *flags(write_tables(tmp_path)), "--out", str(tmp_path / "out")]
    with lock(tmp_path / "out"):
        assert commands.run(line) == 2
    assert f"error: {tmp_path / 'out'} is in use by process" in capsys.readouterr().err
    assert not any((tmp_path / "out").iterdir())


def test_tables_from_anywhere_are_joined_by_index(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = write_tables(tmp_path)
    out = ("--out", str(tmp_path / "out"), "--resamples", "50")
    assert commands.run(["analyse", *flags(paths), *out]) == 0
    printed = capsys.readouterr().out
    assert "Analog-only failures by curvature, 2 chips" in printed
    assert "Difference of AUROC to margin" in printed
    assert (
        "Scores: curvature, margin; turned round: margin; left out: curvature_standard_error, note."
        in " ".join(printed.split())
    )
    scores = pd.read_csv(paths["scores"]).sort_values("index")
    digital, analog = pd.read_csv(paths["digital"]), pd.read_csv(paths["analog"])
    label = digital.set_index("index")["label"]
    wide = analog.pivot(index="chip", columns="index", values="prediction") == label
    right = (digital["prediction"] == digital["label"]).to_numpy()
    expected = failure_table(scores["curvature"].to_numpy(), right, wide.to_numpy())
    found = pd.read_csv(tmp_path / "out" / "deciles.csv")
    pd.testing.assert_frame_equal(found, expected, check_dtype=False)
    predictors = pd.read_csv(tmp_path / "out" / "predictors.csv").set_index("predictor")
    assert set(predictors.index) == {"curvature", "margin"}
    assert (predictors["auroc"] > 0.6).all()  # the margin is turned round
    assert predictors.loc["margin", "auroc_difference"] == 0


def test_tables_of_other_programs_and_of_ours_give_the_same(tmp_path: Path) -> None:
    paths = write_tables(tmp_path)
    of_csv = read(OwnPredictions(**paths))
    for name, path in paths.items():
        table = pd.read_csv(path)
        if name == "analog":  # ours, changed by pandas
            write_parquet(path.with_suffix(".parquet"), table)
            table = pd.read_parquet(path.with_suffix(".parquet"))
        if name == "scores":
            table = table.set_index("index")
        table.to_parquet(path.with_suffix(".parquet"))
        paths[name] = path.with_suffix(".parquet")
    of_parquet = read(OwnPredictions(**paths))
    pd.testing.assert_frame_equal(of_parquet.scores, of_csv.scores)
    np.testing.assert_array_equal(of_parquet.digital, of_csv.digital)
    np.testing.assert_array_equal(of_parquet.analog, of_csv.analog)


def _drop_index(tables):
    tables["digital"] = tables["digital"].iloc[:-2]


def _unknown_index(tables):
    tables["scores"] = tables["scores"].query("index != 5")


def _repeat(tables):
    tables["scores"] = pd.concat([tables["scores"], tables["scores"].head(1)])


def _repeat_on_chip(tables):
    tables["analog"] = pd.concat([tables["analog"], tables["analog"].head(1)])


def _nan_score(tables):
    tables["scores"].loc[0, "curvature"] = np.nan


def _no_outcome(tables):
    tables["analog"] = tables["analog"].drop(columns="prediction")


def _odd_outcome(tables):
    tables["digital"] = tables["digital"].assign(correct=2)


def _chips_differ(tables):
    tables["analog"] = tables["analog"].drop(index=tables["analog"].index[0])


def _text_predictions(tables):
    tables["analog"]["prediction"] = "c" + tables["analog"]["prediction"].astype(str)


def _missing_prediction(tables):
    tables["analog"].loc[3, "prediction"] = np.nan


def _contradiction(tables):
    tables["digital"] = tables["digital"].assign(correct=True)


def _other_label(tables):
    tables["analog"]["label"] = 0


def _infinite_score(tables):
    tables["scores"].loc[0, "margin"] = np.inf


def _no_index(tables):
    tables["scores"] = tables["scores"].rename(columns={"index": "id"})


def _no_chip(tables):
    tables["analog"] = tables["analog"].drop(columns="chip")


def _no_labels(tables):
    tables["digital"] = tables["digital"].assign(correct=True).drop(columns="label")


def _no_score(tables):
    tables["scores"] = tables["scores"][["index"]]


def _text_index(tables):
    tables["scores"]["index"] = "a"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_drop_index, r"2 samples of .*scores.csv are not in .*digital.csv, the first at index 11"),
        (_unknown_index, r"1 samples of .*digital.csv are not in .*scores.csv.* index 5"),
        (_repeat, r"scores.csv has index \d+ more than once"),
        (_repeat_on_chip, r"analog.csv has index \d+ more than once on one chip"),
        (_nan_score, r"curvature in .*scores.csv is no finite number in 1 of 40 rows, the first"),
        (_infinite_score, r"margin in .*scores.csv is no finite number in 1 of 40 rows"),
        (
            _text_predictions,
            r"predictions of .*analog.csv, such as 'c\d', are not of the kind of the",
        ),
        (
            _missing_prediction,
            r"prediction is missing in 1 rows of .*analog.csv, the first at index",
        ),
        (_contradiction, r"correct contradicts prediction and label in 4 rows of .*digital.csv"),
        (_other_label, r"label in .*analog.csv is not that of the other tables for 30 samples"),
        (_no_index, r"scores.csv needs a column index, which names the sample; it has id, curv"),
        (_no_chip, r"analog.csv has index \d+ more than once: add a column chip"),
        (_no_outcome, r"analog.csv needs a column correct, or prediction"),
        (
            _odd_outcome,
            r"correct must be true or false, or 1 or 0, in every row .*digital.csv; got 2",
        ),
        (
            _chips_differ,
            r"the chips of .*analog.csv differ in their samples: chip \d lacks index \d",
        ),
        (_no_labels, r"analog.csv needs a column correct, or prediction and a label in one of"),
        (_no_score, r"scores.csv has no column of scores beside index"),
        (_text_index, r"index in .*scores.csv must hold whole numbers.* it is (str|object), such"),
    ],
)
def test_bad_tables_are_refused(change, message, tmp_path: Path) -> None:
    paths = write_tables(tmp_path)
    tables = {name: pd.read_csv(path) for name, path in paths.items()}
    change(tables)
    for name, path in paths.items():
        tables[name].to_csv(path, index=False)
    with pytest.raises(ValueError, match=message):
        run(OwnPredictions(**paths, out=tmp_path / "out", resamples=5))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (["--score", "loss"], "has no score 'loss'; there is curvature, margin"),
        (["--analog", "none.csv"], "no file none.csv"),
        (["--bins", "41"], "40 samples cannot fill 41 bins"),
    ],
)
def test_missing_files_and_scores_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changed: list[str], words: str
) -> None:
    line = ["analyse", *flags(write_tables(tmp_path)), "--out", str(tmp_path / "out"), *changed]
    assert commands.run(line) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
