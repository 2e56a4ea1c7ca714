"""The atlas of a finished run: its counts by hand, the run's own chip among them, resuming."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import bridge
from bridge.chips.profiles import PROFILES
from experiments.cli import commands
from experiments.runs.descriptions import read_description
from experiments.runs.files import read_parquet, write_parquet
from experiments.settings.flags import Simulate
from experiments.studies import atlas, atlas_tables
from experiments.studies.atlas import Atlas
from experiments.studies.chip_settings import named_settings, title_of
from jaxcurv.storage.checksums import read_json, write_json
from tests.described import require_described

FLAG = "--atlas.profiles"
FULL, LATER = "adc+wnoise+pcm@20", "pcm_gdc@3600"
FLAGS = ("--atlas.chips", "3", "--atlas.profiles", FULL, LATER, "--atlas.gallery", "5")
KEYS = ["fold", "index"]


def line(run: Path, out: Path, *flags: str) -> list[str]:
    return ["atlas", "digits", "--out", str(run), "--atlas.out", str(out), *FLAGS, *flags]


@pytest.fixture(scope="module")
def made(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The atlas of the finished run; not to be changed."""
    out = tmp_path_factory.mktemp("atlas")
    assert commands.run(line(finished_run, out)) == 0
    return out


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "atlas")


@pytest.fixture
def programmed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The seeds of the chips that are programmed."""
    seeds: list[int] = []
    program = bridge.program

    def noted(*arguments: Any, seed: int, **options: Any) -> Any:
        seeds.append(seed)
        return program(*arguments, seed=seed, **options)

    monkeypatch.setattr(bridge, "program", noted)
    return seeds


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures, which take most of the time of what is computed already."""
    for name in ("draw", "gallery"):
        monkeypatch.setattr(atlas.figures, name, lambda *_, **__: None)


def piece(out: Path, name: str, seed: int) -> pd.DataFrame:
    (path,) = out.glob(f"pieces/{name}-*/{seed}.parquet")
    return read_parquet(path)


# --- the table


def test_the_run_s_chip_is_the_first(made: Path, finished_run: Path) -> None:
    predictions = pd.read_parquet(finished_run / "predictions.parquet")
    of_run = predictions[predictions["profile"] == "adc+wnoise+pcm"].set_index(KEYS)["correct"]
    found = piece(made, FULL, 0).set_index(KEYS)["correct"]
    assert len(found) == len(of_run) > 100
    pd.testing.assert_series_equal(found.sort_index(), of_run.sort_index())
    assert not found.equals(piece(made, FULL, 1).set_index(KEYS)["correct"])


def test_counts_are_those_of_the_chips(made: Path, finished_run: Path) -> None:
    table = pd.read_parquet(made / "atlas.parquet").set_index(KEYS)
    scores = pd.read_parquet(finished_run / "scores.parquet").set_index(KEYS)
    assert set(table.index) == set(scores.index)
    scores = scores.loc[table.index]
    for name in ("label", "prediction", "correct"):
        assert (table[name] == scores[name]).all()
    for name in ("curvature", "gradient_norm", "loss", "margin"):
        np.testing.assert_array_equal(table[name], scores[name].astype("float32"))
    for setting in (FULL, LATER):
        correct = [piece(made, setting, seed).set_index(KEYS)["correct"] for seed in range(3)]
        wrong = sum(~one.loc[table.index] for one in correct)
        assert (table[f"wrong_{setting}"] == wrong).all()
        failures = table[f"failures_{setting}"]
        assert failures.isna().equals(~table["correct"])
        assert (failures.dropna() == wrong[table["correct"]]).all()
        assert failures.sum() > 0
    assert (table["chips"] == 3).all()


def test_flip_probabilities_are_of_the_run_s_own_devices(made: Path, finished_run: Path) -> None:
    table = pd.read_parquet(made / "atlas.parquet").set_index(KEYS)
    flips = pd.read_parquet(finished_run / "flips.parquet")
    flips = flips[flips["profile"] == "adc+wnoise+pcm"].set_index(KEYS)["probability"]
    found = table[f"flip_probability_{FULL}"]
    np.testing.assert_array_equal(found, flips.loc[table.index].astype("float32"))
    assert f"flip_probability_{LATER}" not in table  # the run reads its memories after 20 s


def test_every_column_is_described(made: Path) -> None:
    require_described(made)
    table = pd.read_parquet(made / "atlas.parquet")
    described = pd.read_csv(made / "columns.csv")
    assert described["column"].tolist() == list(table.columns)
    assert described["description"].str.endswith(".").all()
    assert table.attrs["columns"] == dict(described.to_numpy().tolist())
    assert (
        "under pcm_gdc (read 1 h after programming): the"
        in table.attrs["columns"][f"failures_{LATER}"]
    )
    made_with = read_json(made / "settings.json")
    assert table.attrs["made"] == made_with
    assert made_with["seeds"] == [0, 1, 2]
    assert made_with["settings"][LATER]["settings"]["memory"]["settings"]["t_inference"] == 3600
    assert made_with["engine"] == "fast"


def test_summary_is_that_of_the_table(made: Path) -> None:
    table = pd.read_parquet(made / "atlas.parquet")
    summary = pd.read_csv(made / "summary.csv").set_index(["setting", "fold"])
    assert len(summary) == 2 * 4
    for (setting, fold), row in summary.iterrows():
        rows = table if fold == "pooled" else table[table["fold"] == fold]
        failures = rows[f"failures_{setting}"].dropna().astype(int)
        assert row["digitally_correct"] == len(failures)
        assert row["failure_rate"] == pytest.approx(failures.mean() / 3)
        assert row["failure_rate_low"] <= row["failure_rate"] <= row["failure_rate_high"]
        assert row["never_fail"] == pytest.approx((failures == 0).mean())
        assert row["sometimes_fail"] == pytest.approx(failures.isin([1, 2]).mean())
        assert row["always_fail"] == pytest.approx((failures == 3).mean())
        assert row["analog_accuracy"] == pytest.approx(1 - rows[f"wrong_{setting}"].mean() / 3)
        assert row[["image_share", "chip_share", "rest_share"]].sum() == pytest.approx(1)


def test_shares_tell_images_from_chips() -> None:
    """Two settings: the same images fail on every chip, and whole chips fail."""
    scores = pd.DataFrame(
        {
            "fold": "test",
            "index": range(8),
            "label": 1,
            "prediction": 1,
            "correct": [True] * 6 + [False] * 2,
            "margin": 1.0,
            "curvature": 1.0,
        }
    )
    images, chips = np.zeros((4, 8), bool), np.zeros((4, 8), bool)
    images[:, :2] = images[:, 6:] = chips[1] = True
    wrong = {"images": images, "chips": chips}
    table, described = atlas_tables.atlas_table(scores, wrong, {}, {name: name for name in wrong})
    assert list(described) == list(table.columns)
    assert table["failures_images"].tolist() == [4, 4, 0, 0, 0, 0, pd.NA, pd.NA]
    assert table["wrong_images"].tolist() == [4, 4, 0, 0, 0, 0, 4, 4]
    summary = atlas_tables.summarise(table, wrong, 0.95).set_index("setting")
    shares = summary[["image_share", "chip_share", "rest_share", "always_fail", "never_fail"]]
    assert shares.loc["images"].tolist() == pytest.approx([1, 0, 0, 1 / 3, 2 / 3])
    assert shares.loc["chips"].tolist() == pytest.approx([0, 1, 0, 0, 0])
    shown = atlas_tables.most_failing(table.assign(margin=range(8)), ["images", "chips"], 3)
    assert shown["setting"].tolist() == ["images"] * 2 + ["chips"] * 3
    assert shown["index"].tolist() == [1, 0, 5, 4, 3]  # the largest margin first


def test_few_failing_images_have_no_interval(capsys: pytest.CaptureFixture[str]) -> None:
    """Shares of the variance have none where 29 images fail on some chip, and have where 30 do."""
    scores = pd.DataFrame(
        {"fold": "test", "index": range(200), "label": 1, "prediction": 1, "correct": True}
    )
    wrong = np.zeros((3, 200), bool)
    wrong[:, :20] = wrong[0, 20:29] = True
    more = wrong.copy()
    more[1, 29] = True
    both = {"few": wrong, "enough": more, "survive": ~wrong, "two chips": more[:2]}
    for name, outcomes in both.items():
        table, _ = atlas_tables.atlas_table(scores, {name: outcomes}, {}, {name: name})
        summary = atlas_tables.summarise(table, {name: outcomes}, 0.95)
        (row,) = summary.to_dict("records")
        shares = [f"{part}_share" for part in ("image", "chip", "rest")]
        assert np.isfinite([row[share] for share in shares]).all()
        ends = [row[share + end] for share in shares for end in ("_low", "_high")]
        assert (np.isfinite(ends) == (name == "enough")).all()
        assert np.isfinite(row["failure_rate_low"])
        atlas.show(summary, {name: name})
        said = capsys.readouterr().out
        assert ("[-]" in said) == (name != "enough")
        assert "nan" not in said


@pytest.mark.parametrize("counts", [{"test": 12, "validation": 9}, {"test": 9}])
def test_folds_with_fewer_images_than_bins_are_drawn(tmp_path: Path, counts: dict) -> None:
    """Without a line by curvature."""
    parts = [
        pd.DataFrame({"fold": fold, "index": range(count), "curvature": np.arange(count) / 7})
        for fold, count in counts.items()
    ]
    scores = pd.concat(parts, ignore_index=True).assign(label=1, prediction=1, correct=True)
    wrong = {"one": np.random.default_rng(0).random((3, len(scores))) < 0.4}
    table, _ = atlas_tables.atlas_table(scores, wrong, {}, {"one": "one"})
    summary = atlas_tables.summarise(table, wrong, 0.95)
    path = atlas.figures.draw(table, summary, {"one": "one"}, tmp_path / "atlas.png", title="t")
    drawn = pd.read_csv(path.with_suffix(".csv"))
    by_curvature = drawn[drawn["panel"] == "curvature"]
    assert set(by_curvature["fold"]) == {fold for fold, count in counts.items() if count >= 10}
    assert set(drawn.loc[drawn["panel"] == "chips", "fold"]) == set(counts)


def test_figures(made: Path) -> None:
    for name in ("atlas", "always"):
        for kind in ("png", "svg"):
            assert (made / f"{name}.{kind}").stat().st_size > 1000
    table = pd.read_parquet(made / "atlas.parquet")
    drawn = pd.read_csv(made / "atlas.csv")
    chips = drawn[(drawn["panel"] == "chips") & (drawn["fold"] == "test")]
    for setting, rows in chips.groupby("setting"):
        failures = table.loc[table["fold"] == "test", f"failures_{setting}"].dropna()
        assert rows["share"].tolist() == [(failures == on).mean() for on in range(4)]
        rate = failures.mean() / 3
        binomial = [
            comb * rate**on * (1 - rate) ** (3 - on) for on, comb in enumerate((1, 3, 3, 1))
        ]
        np.testing.assert_allclose(rows["expected"].astype(float), np.array(binomial, float))
    always = pd.read_csv(made / "always.csv")
    assert (always["fold"] == "test").all()
    assert always.groupby("setting").size().max() <= 5


# --- resuming


@pytest.mark.usefixtures("undrawn")
def test_consistency_scores_stand_beside(
    finished_run: Path, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pd.read_parquet(copied / "atlas.parquet")
    trained = table["fold"] != "test"
    count = int(table["index"].max()) + 1
    cscores, labels = np.linspace(0, 1, count), np.zeros(count, int)
    labels[table["index"]] = table["label"]
    file = copied / "c.npz"
    np.savez(file, scores=cscores, labels=labels)
    assert commands.run(line(finished_run, copied, "--atlas.cscores", str(file))) == 0
    beside = pd.read_parquet(copied / "atlas.parquet")
    assert beside["cscore"].isna().equals(~trained)
    np.testing.assert_array_equal(
        beside.loc[trained, "cscore"], cscores[table.loc[trained, "index"]].astype("float32")
    )
    assert beside.attrs["made"]["cscores"]["file"] == "c.npz"
    require_described(copied)
    np.savez(file, scores=cscores, labels=labels + 1)
    capsys.readouterr()
    assert commands.run(line(finished_run, copied, "--atlas.cscores", str(file))) != 0
    assert "c.npz has other labels at" in capsys.readouterr().err
    np.savez(file, values=cscores)
    assert commands.run(line(finished_run, copied, "--atlas.cscores", str(file))) != 0
    assert "--atlas.cscores takes an .npz file" in capsys.readouterr().err


@pytest.mark.usefixtures("undrawn")
def test_more_chips_are_added(
    finished_run: Path, copied: Path, programmed: list[int], made: Path
) -> None:
    (lost,) = copied.glob(f"pieces/{LATER}-*/1.parquet")
    lost.unlink()
    assert commands.run(line(finished_run, copied, "--atlas.chips", "4")) == 0
    assert programmed == [1, 3, 3]
    table = pd.read_parquet(copied / "atlas.parquet")
    assert (table["chips"] == 4).all()
    # Back to three: nothing is computed, and the table is the same.
    assert commands.run(line(finished_run, copied)) == 0
    assert len(programmed) == 3
    assert (copied / "atlas.parquet").read_bytes() == (made / "atlas.parquet").read_bytes()


@pytest.mark.usefixtures("undrawn")
def test_other_devices_have_pieces_of_their_own(
    finished_run: Path, copied: Path, programmed: list[int]
) -> None:
    other = ("--simulate.wnoise.sigma", "0.1", "--atlas.chips", "2", "--atlas.gallery", "1")
    assert commands.run(line(finished_run, copied, *other)) == 0
    assert programmed == [0, 1]  # the other setting has no weight noise
    table = pd.read_parquet(copied / "atlas.parquet")
    assert not [name for name in table if name.startswith("flip_probability")]


def test_a_run_of_the_default_engine_takes_chips_in_jax(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They need its scores alone, not what `export` wrote for the other engine."""
    flags = ("--simulate.engine", "jax", "--dry-run")
    assert commands.run(line(finished_run, tmp_path / "out", *flags)) == 0
    said = capsys.readouterr().err
    assert "--simulate.engine fast -> jax" in said
    assert "atlas would be computed into" in said


# --- settings, and what is refused


def test_settings_by_name() -> None:
    simulate = Simulate()
    found = named_settings(("pcm", "pcm@0.5", "wnoise_mvm", "adc+pcm@1e6"), simulate, FLAG)
    assert list(found) == ["pcm@20", "pcm@0.5", "wnoise_mvm", "adc+pcm@1000000"]
    assert found["pcm@20"] == PROFILES["pcm"]
    assert found["pcm@0.5"].memory.t_inference == 0.5
    assert title_of("pcm@3600") == "pcm, 1 h"
    assert title_of("wnoise") == "wnoise"
    with pytest.raises(ValueError, match=r"--other\.flag names pcm@20 twice"):
        named_settings(("pcm", "pcm@20.0"), simulate, "--other.flag")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"profiles": ()}, "profiles must be at least one"),
        ({"profiles": ("pcn",)}, "^--atlas.profiles has no 'pcn': give one of ideal, adc"),
        ({"profiles": ("ideal",)}, "^--atlas.profiles has ideal, which draws no noise"),
        ({"profiles": ("adc_coarse",)}, "draws no noise"),
        ({"profiles": ("wnoise@20",)}, "no memory that ages: leave out @"),
        ({"profiles": ("pcm@",)}, "after @ give seconds, such as pcm@3600"),
        ({"profiles": ("pcm@-1",)}, "after @ give seconds"),
        ({"profiles": ("pcm@1.2.3",)}, "after @ give seconds"),
        ({"profiles": ("pcm@1e999",)}, "must be finite"),
        ({"chips": 1}, "chips must be at least 2"),
        ({"gallery": 0}, "gallery at least 1"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Atlas(**settings)


def test_scores_of_other_images_are_refused(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run, ignore=shutil.ignore_patterns("figures"))
    scores = read_parquet(run / "scores.parquet")
    for column, other, message in (
        ("label", 1 - scores["label"], "the labels of the train images are not those in"),
        ("index", scores["index"] + 10_000, "are not in the data set"),
    ):
        write_parquet(run / "scores.parquet", scores.assign(**{column: other}))
        assert commands.run(line(run, tmp_path / "out")) == 2
        assert message in capsys.readouterr().err
    write_parquet(run / "scores.parquet", scores)
    write_json(run / read_description(run)["checkpoint"] / "other.json", {})
    assert commands.run(line(run, tmp_path / "out")) == 2
    assert ": run score and what follows again" in capsys.readouterr().err


def test_without_failures_there_is_no_gallery(
    finished_run: Path,
    copied: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def none_wrong(scored: atlas.Scored, seeds: range, *_: Any) -> dict[str, np.ndarray]:
        return {name: np.zeros((len(seeds), len(scored.scores)), bool) for name in scored.settings}

    monkeypatch.setattr(atlas, "wrong_outcomes", none_wrong)
    assert commands.run(line(finished_run, copied)) == 0
    assert "no test image fails on any chip" in capsys.readouterr().out
    assert not list(copied.glob("always.*"))
    assert (copied / "atlas.png").exists()
