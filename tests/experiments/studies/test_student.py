"""The student of a finished run: what it was fitted on, its scores, its AUROC by hand, resuming."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file
from scipy.stats import rankdata

from bridge.chips.profiles import FULL_PROFILE
from bridge.routing import load_student, student
from experiments.cli import commands
from experiments.runs.files import read_parquet, write_parquet
from experiments.studies.student import StudentStudy, _divided, _targets
from experiments.studies.student import _joined as outcomes_of
from jaxcurv import data
from jaxcurv.storage.checksums import read_json
from tests.described import require_described

FLAGS = ("--student.epochs", "2")
KEYS = ["fold", "index"]


def line(run: Path, *flags: str) -> list[str]:
    return ["student", "digits", "--out", str(run), *FLAGS, *flags]


@pytest.fixture(scope="module")
def run(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished run with a second chip, which errs on every third image; not to be changed."""
    folder = Path(shutil.copytree(finished_run, tmp_path_factory.mktemp("two") / "digits"))
    predictions = read_parquet(folder / "predictions.parquet")
    labels = predictions.merge(read_parquet(folder / "scores.parquet")[[*KEYS, "label"]], on=KEYS)
    assert len(labels) == len(predictions)
    label = labels["label"].to_numpy()
    errs = labels["index"].to_numpy() % 3 == 0
    second = labels[list(predictions)].assign(
        chip=1, prediction=np.where(errs, (label + 1) % 10, label), correct=~errs
    )
    second["prediction"] = second["prediction"].astype(predictions["prediction"].dtype)
    write_parquet(folder / "predictions.parquet", pd.concat([predictions, second]))
    return folder


@pytest.fixture(scope="module")
def fitted_with() -> dict[str, Any]:
    """What `made` gave to `fit_student`."""
    return {}


@pytest.fixture(scope="module")
def made(run: Path, fitted_with: dict[str, Any]) -> Path:
    """The student of the chip that the run made, tried on the other; not to be changed."""
    fit = student.fit_student

    def noted(images: np.ndarray, targets: np.ndarray, **settings: Any) -> Any:
        fitted_with.update(images=images, targets=targets, **settings)
        return fit(images, targets, **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(student, "fit_student", noted)
        assert commands.run(line(run)) == 0
    return run / "student"


def outcomes(run: Path, chip: int, fold: str) -> pd.DataFrame:
    """Whether a chip is right on the digitally correct images, in the column right."""
    predictions = pd.read_parquet(run / "predictions.parquet")
    of_chip = predictions[
        (predictions["profile"] == FULL_PROFILE)
        & (predictions["chip"] == chip)
        & (predictions["fold"] == fold)
    ]
    scores = pd.read_parquet(run / "scores.parquet")
    right = scores.loc[scores["correct"], KEYS]
    return right.merge(of_chip[[*KEYS, "correct"]], on=KEYS).rename(columns={"correct": "right"})


def test_scores_are_the_student_s(made: Path, run: Path) -> None:
    table = pd.read_parquet(made / "student.parquet")
    assert list(table.columns) == [*KEYS, "student"]
    scores = pd.read_parquet(run / "scores.parquet")
    assert set(table[KEYS].itertuples(index=False)) == set(scores[KEYS].itertuples(index=False))
    digits, loaded = data.load("digits"), load_student(made / "student.safetensors")
    for fold, source in (("test", digits.test), ("train", digits.train)):
        rows = table[table["fold"] == fold]
        images = {one["index"]: one["image"] for one in (source[n] for n in range(len(source)))}
        given = np.stack([images[index] for index in rows["index"]])
        np.testing.assert_array_equal(loaded(given), rows["student"])


def test_every_column_is_described(made: Path) -> None:
    require_described(made)


def test_auroc_is_that_of_the_other_chip(made: Path, run: Path) -> None:
    rows = outcomes(run, 1, "test").merge(pd.read_parquet(made / "student.parquet"), on=KEYS)
    rows = rows.merge(pd.read_parquet(run / "scores.parquet")[[*KEYS, "margin"]], on=KEYS)
    failed = ~rows["right"].to_numpy(bool)
    table = pd.read_csv(made / "student.csv").set_index("predictor")
    for name, score in (("student", rows["student"]), ("margin", -rows["margin"])):
        ranks, positives = rankdata(score), failed.sum()
        pairs = positives * (~failed).sum()
        by_hand = (ranks[failed].sum() - positives * (positives + 1) / 2) / pairs
        assert table.loc[name, "auroc"] == pytest.approx(by_hand)
    assert table.loc["student", "auroc_difference"] == 0
    assert {"curvature", "flip_probability", "logits", "logits + student"} <= set(table.index)
    assert set(table["chips"]) == {1}
    assert set(table["samples"]) == {len(rows)}


def test_it_is_fitted_on_the_train_fold_of_the_first_chip(
    made: Path, run: Path, fitted_with: dict[str, Any]
) -> None:
    rows = outcomes(run, 0, "train").sort_values("index")
    np.testing.assert_array_equal(fitted_with["targets"], ~rows["right"].to_numpy(bool))
    assert fitted_with["images"].dtype == np.uint8
    train = data.load("digits").train
    images = {one["index"]: one["image"] for one in (train[n] for n in range(len(train)))}
    np.testing.assert_array_equal(fitted_with["images"], [images[one] for one in rows["index"]])
    settings = read_json(made / "settings.json")
    assert (settings["fitted_on"], settings["tried_on"]) == ([0], [1])
    assert fitted_with["budget_macs"] == int(0.05 * settings["macs"])
    assert settings["student_macs"] <= 0.05 * settings["macs"]
    assert (fitted_with["epochs"], fitted_with["seed"]) == (2, 0)


def test_a_fitted_student_is_kept(
    made: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("fitted again")

    monkeypatch.setattr(student, "fit_student", refuse)
    shutil.copytree(made / "pieces", tmp_path / "pieces")
    assert commands.run(line(run, "--student.out", str(tmp_path))) == 0
    for name in ("student.csv", "student.parquet", "routing.csv"):
        assert (tmp_path / name).read_bytes() == (made / name).read_bytes()
    again, before = (load_file(place / "student.safetensors") for place in (tmp_path, made))
    assert again.keys() == before.keys()
    for name, one in before.items():
        np.testing.assert_array_equal(again[name], one)


def test_its_router_pays_for_the_student(made: Path) -> None:
    settings = read_json(made / "settings.json")
    routing = pd.read_csv(made / "routing.csv")
    rows = routing[routing["router"] == "student"]
    assert set(rows["kind"]) == {"student"}
    passes = settings["student_macs"] / settings["macs"]
    np.testing.assert_allclose(rows["energy"], passes + 0.1 + 0.9 * rows["fraction"])
    assert rows["accuracy"].iloc[-1] == pytest.approx(rows["oracle_accuracy"].iloc[-1])
    assert {"analog margin", "curvature, computed"} <= set(routing["router"])
    choices = pd.read_csv(made / "routing_choices.csv").set_index("router")
    assert choices.loc["student", "validation_accuracy"] >= choices.loc["student", "target"] - 1e-9
    for name in ("student.png", "student.svg", "routing.png", "routing.svg"):
        assert (made / name).stat().st_size > 1000


def test_chips_are_divided_or_the_same() -> None:
    assert _divided([0, 1, 2], "other", Path()) == ((0, 1), (2,))
    assert _divided([3], "same", Path()) == ((3,), (3,))


def test_a_limit_takes_fewer_images(run: Path) -> None:
    joined = outcomes_of(run, FULL_PROFILE)
    indices, share = _targets(joined, (0, 1), None, 0)
    fewer, theirs = _targets(joined, (0, 1), 25, 0)
    assert len(fewer) == 25 < len(indices)
    known = dict(zip(indices, share, strict=True))
    assert [known[one] for one in fewer] == list(theirs)
    assert {0.0, 0.5} <= set(share) <= {0.0, 0.5, 1.0}


# --- what is refused


def refused(run: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    capsys.readouterr()
    assert commands.run(line(run, *flags)) == 2
    assert not (run / "student").exists()
    return capsys.readouterr().err


def test_what_cannot_be_fitted(run_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "has one chip of this profile" in refused(run_copy, capsys)
    same = ("--student.chips", "same")
    said = refused(run_copy, capsys, *same, "--student.budget", "1e-6")
    assert "too small for a student of inputs (8, 8, 1)" in said
    path = run_copy / "predictions.parquet"
    predictions = read_parquet(path)
    scores = read_parquet(run_copy / "scores.parquet")
    label = predictions[KEYS].merge(scores, on=KEYS)["label"]
    right = predictions.assign(prediction=label.to_numpy(predictions["prediction"].dtype))
    write_parquet(path, right.assign(correct=True))
    assert "no digitally correct image of the train fold fails" in refused(run_copy, capsys, *same)
    write_parquet(path, predictions[predictions["profile"] != FULL_PROFILE])
    said = refused(run_copy, capsys, *same)
    assert f"has no chips of {FULL_PROFILE}: give --student.profile one of adc" in said
    write_parquet(path, predictions[predictions["fold"] != "train"])
    write_parquet(run_copy / "scores.parquet", scores[scores["fold"] != "train"])
    said = refused(run_copy, capsys, *same)
    assert "has no outcomes of its train fold" in said
    assert "with train among --folds" in said
    path.unlink()
    assert "no finished simulate" in refused(run_copy, capsys, *same)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"profile": "ideal"}, "no sample fails under ideal"),
        ({"budget": 1.0}, "budget must lie between 0 and 1; got 1.0"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"limit": 19}, "limit at least 20"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StudentStudy(**settings)
