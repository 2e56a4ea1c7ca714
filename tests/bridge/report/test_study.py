"""`bridge.study`: from scores and predictions to failures, rates, predictors and the page."""

import importlib
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest

import bridge
from bridge.chips.memories.pcm import PCM, Hermes
from bridge.chips.profiles import FULL_COMPENSATED, FULL_PROFILE, PROFILES, Profile, to_json
from bridge.report.study import Study
from bridge.report.tables import failure_rates, outcomes
from jaxcurv import FiniteDifference, data, image_folder
from jaxcurv.costs import forward_passes
from tests.bridge.report.conftest import tables
from tests.coloured_pngs import CLASSES, NORMALISED, network, write_images
from tools import check_report

RESAMPLES = 20
LATE = f"{FULL_PROFILE} at 3,600 s"


class Ten(NamedTuple):
    """What the ten lines of a guide make."""

    images: data.Normalised
    scores: pd.DataFrame
    predictions: pd.DataFrame
    study: Study


@pytest.fixture(scope="module")
def ten(tmp_path_factory: pytest.TempPathFactory) -> Ten:
    images = image_folder(write_images(tmp_path_factory.mktemp("pngs") / "test", 20), **NORMALISED)
    net = network()
    scores = bridge.score(net, images, estimators={"curvature": FiniteDifference(probes=2)})
    predictions = bridge.simulate(
        net, images, profiles=["ideal", FULL_PROFILE], chips=3, times=[20, 3600], calibration=0.1
    )
    return Ten(
        images, scores, predictions, bridge.study(scores, predictions, images, resamples=RESAMPLES)
    )


def test_failures_are_counted_from_the_predictions(ten: Ten, tmp_path: Path) -> None:
    late = ten.predictions.query(f"profile == '{FULL_PROFILE}' and time == 3600")
    right = set(ten.scores.query("correct")["index"])
    wrong = late[~late["correct"] & late["index"].isin(right)]
    share = wrong.groupby("index").size() / 3
    found = ten.study.failures()
    assert len(found) == len(share) > 3
    assert (
        found.set_index("index")["failed_share"]
        .sort_index()
        .equals(share.rename("failed_share").sort_index())
    )
    order = found.sort_values(["failed_share", "curvature"], ascending=False)
    assert order.index.tolist() == found.index.tolist()
    assert found["path"].str.partition("/")[0].tolist() == found["class"].tolist()
    assert set(found["class"]) <= set(CLASSES)
    scored = ten.scores.set_index("index")
    for name in ("path", "curvature", "margin", "label"):
        assert found[name].tolist() == scored.loc[found["index"], name].tolist()
    path = tmp_path / "predictions.parquet"
    ten.predictions.to_parquet(path)
    again = bridge.study(ten.scores, pd.read_parquet(path), ten.images)
    assert again.failures().equals(found)  # and no word about the images that were held out
    chips = late.pivot(index="index", columns="chip", values="prediction")
    for row in found.to_dict("records"):
        predicted = chips.loc[row["index"]]
        assert CLASSES.index(row["taken_for"]) in set(predicted[predicted != row["label"]])
    assert ten.study.failures("ideal").empty


def test_rates_are_those_of_the_tables_of_a_run(ten: Ten) -> None:
    """By other code than `completed`: folds, names and correct are put in by hand."""
    named = ten.predictions.assign(fold="test").drop(columns=["path", "label", "time"])
    late = ten.predictions["time"] == 3600
    kept = {"ideal": ~late, FULL_PROFILE: late}
    scores = ten.scores[ten.scores["index"].isin(named["index"])].assign(fold="test")
    rates = ten.study.rates()
    for profile, label in (("ideal", "ideal"), (FULL_PROFILE, LATE)):
        rows = named[kept[profile] & (named["profile"] == profile)]
        joined = outcomes.join(scores, rows)
        expected = failure_rates.failure_tables(joined)
        found = rates[rates["profile"] == label].reset_index(drop=True)
        assert found.drop(columns="profile").equals(expected.drop(columns="profile"))
    assert rates["profile"].unique().tolist() == ["ideal", f"{FULL_PROFILE} at 20 s", LATE]


def test_predictors_have_intervals_and_costs(ten: Ten) -> None:
    found = ten.study.predictors()
    row = outcomes.select(
        found, profile=LATE, denominator="correct", predictor="curvature", fold="test"
    ).iloc[0]
    assert row["auroc_low"] <= row["auroc"] <= row["auroc_high"]
    assert row["forward_passes"] == forward_passes(FiniteDifference(probes=2), classes=2)
    scored = ten.scores[ten.scores["index"].isin(ten.predictions["index"]) & ten.scores["correct"]]
    late = ten.predictions.query(f"profile == '{FULL_PROFILE}' and time == 3600")
    wide = late.pivot(index="chip", columns="index", values="correct")
    scored = scored.sort_values("index")
    expected = bridge.compare_predictors(
        {name: scored[name].to_numpy() for name in ("curvature", "loss")},
        scored["correct"].to_numpy(),
        wide[scored["index"]].to_numpy(),
        resamples=RESAMPLES,
    )
    assert row["auroc"] == pytest.approx(expected["auroc"].iloc[0])


def test_the_page_shows_it_all(ten: Ten, tmp_path: Path) -> None:
    page = ten.study.report(tmp_path / "new" / "report.html", title="Three colours")
    text = page.read_text()
    for one in (
        *("<h1>Three colours", "Table I", "Failure rate by curvature decile", "Gallery"),
        *("Which score predicts failure", "Most vulnerable samples", "Classes"),
        *(LATE, ten.study.failures()["path"].iloc[0], "54 in the test fold"),
        "6 other images set the converter ranges: held out of the 60 images that were given",
        "The ideal chip predicts what the digital model does for 100.00 %",
        f"curvature ({forward_passes(FiniteDifference(probes=2), 3):.0f} times a forward pass; ",
    ):
        assert one in text, one
    for one in ("PRESET", "Environment", "As the chips age", ">nan<"):
        assert one not in text, one
    assert check_report.source_problems(text) == []
    assert text.count('class="thumbnail" src="data:image/png;base64,') == len(
        ten.study._fragile(count=60)
    )
    assert [path.name for path in page.parent.iterdir()] == ["report.html"]


def named_settings(ten: Ten, settings: Profile | None) -> Study:
    """The study of chips whose simulation says these settings of them, or none."""
    predictions = ten.predictions.copy()
    said = {} if settings is None else {FULL_PROFILE: to_json(settings)}
    made = ten.predictions.attrs["simulation"]
    predictions.attrs = {"simulation": made | {"profiles": said}}
    return bridge.study(ten.scores, predictions, resamples=RESAMPLES)


def test_drift_is_called_uncompensated_only_where_it_is(ten: Ten, tmp_path: Path) -> None:
    said = "These chips drift without compensation."
    full = f"{said} <code>bridge.simulate(..., profiles=["
    full += f"&#34;{FULL_PROFILE}&#34;, &#34;{FULL_COMPENSATED}&#34;])</code> makes chips"
    text = ten.study.report(tmp_path / "report.html").read_text()
    assert full in text
    shown = f"simulation.profiles.{FULL_PROFILE}</th><td>{PROFILES[FULL_PROFILE]}</td>"
    assert shown.replace("'", "&#39;") in text
    compensated = PCM(compensation="per_column")
    for settings in (None, replace(PROFILES[FULL_PROFILE], memory=compensated)):
        found = named_settings(ten, settings)
        assert said not in found.report(tmp_path / "report.html").read_text()


def test_chips_of_other_settings_are_advised_no_profile_of_their_name(
    ten: Ten, tmp_path: Path
) -> None:
    for memory in (PCM(drift=2.0), Hermes()):
        found = named_settings(ten, replace(PROFILES[FULL_PROFILE], memory=memory))
        text = found.report(tmp_path / "report.html").read_text()
        assert "These chips drift without compensation.</p>" in text
    both = pd.concat(
        [ten.predictions, ten.predictions.query("profile != 'ideal'").assign(profile="pcm_gdc")]
    ).replace({"profile": {FULL_PROFILE: "pcm"}})
    for settings, beside in ((PCM(), "pcm_gdc at 3,600 s"), (PCM(drift=2.0), None)):
        said = {"pcm": Profile(memory=settings), "pcm_gdc": PROFILES["pcm_gdc"]}
        stated = {name: to_json(one) for name, one in said.items()}
        both.attrs = {"simulation": ten.predictions.attrs["simulation"] | {"profiles": stated}}
        found = bridge.study(ten.scores, both, profile="pcm at 3,600 s", resamples=RESAMPLES)
        assert (found._beside and found._beside.profile) == beside


def test_figures_of_a_page_alone_are_inside_it(ten: Ten, tmp_path: Path) -> None:
    text = ten.study.report(tmp_path / "report.html").read_text()
    links = re.findall(r'<a href="([^"#][^"]{0,40})[^"]*" download="([^"]+)">', text)
    assert all(href.startswith("data:") for href, _ in links)
    kinds = {Path(name).suffix: href.partition(";")[0] for href, name in links}
    assert kinds == {
        ".svg": "data:image/svg+xml",
        ".pdf": "data:application/pdf",
        ".csv": "data:text/csv",
    }
    assert "<code>study.rates()</code>" in text
    assert text.index('class="answer"') < text.index("What fails") < text.index("What predicts")


def test_without_images_classes_are_the_folders(ten: Ten) -> None:
    found = bridge.study(ten.scores, ten.predictions, resamples=RESAMPLES)
    assert found.failures().equals(ten.study.failures())
    without = ten.scores.drop(columns="path")
    numbers = bridge.study(without, ten.predictions, resamples=RESAMPLES).failures()
    assert numbers["class"].tolist() == numbers["label"].astype(str).tolist()


def real_chip(samples: int = 20) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scores without anything of ours, and what a real chip predicts: the upper half fails."""
    scores, predictions = tables(folds=("test",), samples=samples)
    measured = predictions.query(f"profile == '{FULL_PROFILE}'")[["index", "prediction"]]
    return scores.drop(columns="fold"), measured.reset_index(drop=True)


def test_a_real_chip_s_index_and_prediction_suffice(tmp_path: Path) -> None:
    scores, measured = real_chip()
    measured.sample(frac=1, random_state=0).to_csv(tmp_path / "chip.csv", index=False)
    found = bridge.study(scores, pd.read_csv(tmp_path / "chip.csv").assign(time=60.0), bins=4)
    assert found.failures()["index"].tolist() == [*range(19, 9, -1)]
    assert found.rates()["failures"].tolist() == [0, 0, 5, 5]
    assert found.rates()["profile"].unique().tolist() == ["measured chip"]
    assert found.predictors().query("predictor == 'curvature'")["forward_passes"].isna().all()
    text = found.report(tmp_path / "report.html").read_text()
    assert "Under measured chip, 0.0 % of D1 and 100.0 % of D4 fail" in text
    assert "Chips of each profile: 1. Read 60 s after programming." in text
    assert "PCM at" not in text
    assert "for curvature (less the margin: " in text  # nothing is known of its cost
    for one in ("Settings", "Gallery", 'thumbnail" src'):
        assert one not in text, one


def test_chips_profiles_and_outcomes_of_one_s_own() -> None:
    scores, measured = real_chip()
    both = pd.concat(
        [
            measured.assign(chip=name, profile="night", correct=measured["prediction"].eq(label))
            for name, label in (("A", scores["label"]), ("B", scores["label"]))
        ]
    )
    both["correct"] = both["correct"].astype(int)  # as csv files have it
    found = bridge.study(scores.set_index("index"), both, bins=4, resamples=RESAMPLES)
    assert found.rates()["chips"].unique().tolist() == [2]
    assert found.profile == "night"
    assert found.failures()["failed_share"].tolist() == 10 * [1.0]


def changed(table: pd.DataFrame, row: int, **values: Any) -> pd.DataFrame:
    table = table.copy()
    for name, value in values.items():
        table[name] = table[name].astype(object) if isinstance(value, str) else table[name]
        table.loc[row, name] = value
    return table


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda s, p: (s.drop(columns="margin"), p), "scores lacks the columns margin"),
        (lambda s, p: (s, p.drop(columns="prediction")), "predictions lacks the columns pred"),
        (lambda s, p: (s, p.drop(columns="index")), "predictions lacks the columns index"),
        (lambda s, p: (s, p.head(0)), "predictions has no rows"),
        (lambda s, p: (s, p.to_dict()), "must be a pandas DataFrame.* got dict"),
        (lambda s, p: (s, changed(p, 3, index=99)), "predictions without a score"),
        (lambda s, p: (s, p.assign(index=p["index"] + 50)), "no sample of scores has a prediction"),
        (lambda s, p: (s, p.assign(index=p["index"] / 1)), "index in predictions must hold whole"),
        (lambda s, p: (s, pd.concat([p, p.head(1)])), "rows repeated in predictions"),
        (lambda s, p: (pd.concat([s, s.head(1)]), p), "rows repeated in scores"),
        (lambda s, p: (s, p.assign(label=p["prediction"])), "11 rows of predictions whose label"),
        (lambda s, p: (s.assign(path="a"), p.assign(path="b")), "20 rows .* whose path is not"),
        (lambda s, p: (s, p.assign(correct=True)), "contradicts prediction == label"),
        (lambda s, p: (s, p.assign(correct="yes")), "whose correct is not true or false"),
        (lambda s, p: (s, p.assign(prediction="cat")), "must be the number of a class"),
        (lambda s, p: (s.assign(label="cat"), p), "label in scores must be the number of a class"),
        (lambda s, p: (s.assign(prediction=0.0), p), "prediction in scores must be the number of"),
        (
            lambda s, p: (s.assign(fold="test"), p.assign(fold="train")),
            "fold and index must name .* begin with test 0, predictions with train 0",
        ),
        (lambda s, p: (s, p.assign(chip=p["index"].where(p["index"] > 3))), "without a chip"),
        (
            lambda s, p: (changed(s, 3, curvature=float("nan")), p),
            "rows without a curvature in scores.*index 3",
        ),
        (lambda s, p: (changed(s, 3, margin=float("nan")), p), "without a margin in scores"),
        (
            lambda s, p: (s, pd.concat([p.assign(chip=1), p.head(12).assign(chip=2)])),
            "scored samples without a prediction.*chip 2",
        ),
        (
            lambda s, p: (pd.concat([s.assign(fold="train"), s.assign(fold="test")]), p),
            "scores has the folds train, test, and predictions no column fold",
        ),
    ],
)
def test_refusals(change: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        bridge.study(*change(*real_chip()), bins=4)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"bins": 21}, "20 samples of the test fold cannot fill 21 bins.* bins=20 or fewer"),
        ({"bins": 1}, "bins must be"),
        ({"fold": "mine"}, "fold must be one of train, validation, test"),
        ({"profile": "pcm"}, "no profile 'pcm' here; there is measured chip"),
        ({"confidence": 95}, "confidence"),
    ],
)
def test_settings_that_are_refused(given: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        bridge.study(*real_chip(), **given)


def test_a_profile_may_be_a_number() -> None:
    scores, measured = real_chip()
    found = bridge.study(scores, measured.assign(profile=6), bins=4)
    assert found.rates()["profile"].unique().tolist() == ["6"]


def test_samples_that_no_chip_ran_are_left_out_with_a_word() -> None:
    scores, measured = real_chip()
    with pytest.warns(UserWarning, match=r"8 of 20 scored samples have no prediction.*index 12"):
        found = bridge.study(scores, measured.head(12), bins=4)
    assert found.joined["index"].max() == 11


def numbered(by: int, classes: int = 4) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A tenth of the chip's classes are wrong; all of them are numbered `by` more."""
    scores, _ = tables(folds=("test",), samples=200)
    digital = np.arange(len(scores)) % classes
    scores = scores.assign(label=digital, prediction=digital, correct=True)
    wrong = np.arange(len(scores)) % 10 == 0
    analog = np.where(wrong, (digital + 2) % classes, digital) + by
    return scores, pd.DataFrame({"index": scores["index"], "prediction": analog})


@pytest.mark.parametrize("by", [1, -1])
@pytest.mark.parametrize("classes", [2, 4, 51])
def test_classes_that_are_numbered_from_another_one_are_told(by: int, classes: int) -> None:
    scores, predictions = numbered(by, classes)
    with pytest.warns(UserWarning, match=r"measured chip, chip 0 seem to be numbered") as said:
        bridge.study(scores, predictions, bins=2, resamples=RESAMPLES)
    assert said[0].filename == __file__
    cure = {1: 'predictions["prediction"] - 1', -1: 'predictions["prediction"] + 1'}[by]
    assert cure in str(said[0].message)
    predictions = predictions.assign(prediction=eval(cure, {"predictions": predictions}))
    found = bridge.study(scores, predictions, bins=2, resamples=RESAMPLES)
    assert len(found.failures()) == (0 if classes == 2 else len(scores) // 10)


def test_classes_in_the_order_of_their_names_as_text_are_told() -> None:
    scores, predictions = numbered(0, 12)
    as_text = np.argsort(sorted(range(12), key=str))  # 0, 1, 10, 11, 2, ...: 2 is number 4
    renamed = predictions.assign(prediction=as_text[predictions["prediction"]])
    with pytest.warns(UserWarning, match=r"another order .*mostly 4 for 2, 5 for 3.*\(90%") as said:
        bridge.study(scores, renamed, bins=2, resamples=RESAMPLES)
    assert said[0].filename == __file__


@pytest.mark.parametrize("classes", [2, 12])
def test_chips_that_fail_in_other_ways_are_taken_silently(classes: int) -> None:
    scores, predictions = numbered(0, classes)
    random = np.random.default_rng(0).integers(0, classes, len(scores))
    shut = np.full(len(scores), 1)
    for values in (random, shut, predictions["prediction"]):
        bridge.study(scores, predictions.assign(prediction=values), bins=2, resamples=RESAMPLES)


def test_chips_that_name_classes_of_no_label_are_taken_silently() -> None:
    scores, predictions = numbered(0, 51)
    broken = np.where(predictions["prediction"] > 40, 60, 7)
    for values in (broken, np.where(predictions["prediction"] == 3, 51, predictions["prediction"])):
        bridge.study(scores, predictions.assign(prediction=values), bins=2, resamples=RESAMPLES)


def test_images_that_were_not_scored_are_refused(ten: Ten, tmp_path: Path) -> None:
    other = image_folder(write_images(tmp_path / "pngs", 2, seed=1))
    found = bridge.study(ten.scores, ten.predictions, other, resamples=RESAMPLES)
    with pytest.raises(ValueError, match="give the source that was scored"):
        found.report(tmp_path / "report.html")
    with pytest.raises(ValueError, match=r"give a file NAME\.html"):
        found.report(tmp_path / "report.pdf")


def test_images_that_were_shuffled_are_refused(ten: Ten, tmp_path: Path) -> None:
    order = np.random.default_rng(0).permutation(len(ten.images))
    shuffled = [ten.images[position] for position in order]
    arrays = (
        np.stack([one["image"] for one in shuffled]),
        np.array([one["label"] for one in shuffled]),
    )
    rows = dict(zip(ten.images.indices.tolist(), range(len(order)), strict=True))
    scores, predictions = (
        table.assign(index=table["index"].map(rows)) for table in (ten.scores, ten.predictions)
    )
    found = bridge.study(scores, predictions, arrays, resamples=RESAMPLES)
    with pytest.raises(ValueError, match=r"another label for \d+ of .*scored, in its order"):
        found.report(tmp_path / "report.html")


def test_what_the_page_needs_is_named(ten: Ten, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("matplotlib", "jinja2"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModuleNotFoundError, match=r"study.report needs matplotlib, jinja2.*experi"):
        ten.study.report("report.html")


def test_pixels_are_those_of_the_files(ten: Ten) -> None:
    pixels = importlib.import_module("bridge.report.source_images").pixels
    some = np.array([5, 0, 17])
    labels = ten.images.labels[some]
    found = pixels(data.Chosen(ten.images, np.arange(60)), ten.images.indices[some], labels)
    files = ten.images.source
    assert np.array_equal(found, np.stack([files[position]["image"] for position in some]))
    floats = np.linspace(-1, 1, 24, dtype=np.float32).reshape(2, 2, 2, 3)
    stretched = pixels(bridge_source(floats), [1, 0], [0, 0])
    assert stretched.dtype == np.uint8
    assert (stretched.min(), stretched.max()) == (0, 255)
    assert pixels(bridge_source(np.zeros((2, 5), np.float32)), [0], [0]) is None


def bridge_source(images: np.ndarray) -> Any:
    return data.as_source((images, np.zeros(len(images), np.int64)))
