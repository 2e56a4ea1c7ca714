"""A run whose chips are in JAX: everything that a run gives, without torch and AIHWKit."""

import shutil
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file, save_file

from bridge.chips.profiles import PROFILES
from bridge.jax_chips import analog, predict, weight_moments
from experiments.stages.flips import _moments
from jaxcurv import data
from jaxcurv.data.datasets import open_dataset
from jaxcurv.storage.checksums import read_json
from tests.experiments.user.test_run_in_jax import SMALL, Run, without_torch
from tests.experiments.user.test_run_in_jax import own as own  # a fixture
from tests.experiments.user.test_run_in_jax import place as place  # a fixture
from tests.one_process import refuse, succeed

HIDDEN = "torch,aihwkit"
FULL = "adc+wnoise+pcm"
GIVEN = (
    *("--model", "own_jax:pair", *SMALL, "--simulate.engine", "jax", "--simulate.chips", "2"),
    *("--simulate.profiles", "ideal", "wnoise", FULL, "--simulate.adc-calibration", "16"),
)


@pytest.fixture(scope="module")
def run(place: Path) -> Path:
    """A finished run of a pair, in a process in which neither torch nor AIHWKit can be imported."""
    found = without_torch(place, "run", *GIVEN, "--out", "chips", hidden=HIDDEN)
    assert found.returncode == 0, found.stderr
    assert "left out" not in found.stderr
    assert "export" not in found.stderr
    assert "Report: chips/report.html" in found.stdout
    return place / "chips"


def test_the_chips_are_those_of_their_keys(run: Path, place: Path) -> None:
    import own_jax  # type: ignore[import-not-found]

    table = pd.read_parquet(run / "predictions.parquet")
    assert set(table["profile"]) == {"ideal", "wnoise", FULL}
    found = table.query("profile == 'wnoise' and chip == 1 and fold == 'test'")
    test = open_dataset(place / "pngs", held_out=0.2).test
    positions = [test.indices.tolist().index(index) for index in found["index"]]
    pixels = data.Normalisation((0.0,) * 3, (1.0,) * 3)
    samples = data.Normalised(data.Chosen(test, np.array(positions)), pixels)
    function, params = own_jax.pair()
    images = np.stack([sample["image"] for sample in samples.__getitems__(range(4))])
    chip = analog(function, params, PROFILES["wnoise"], images)
    expected = predict(chip, chip.program(params, jax.random.key(1)), samples)
    assert found["prediction"].tolist() == expected["prediction"].tolist()
    logits = np.sort(np.stack([*expected["logits"]]), 1)
    np.testing.assert_allclose(found["margin"], logits[:, -1] - logits[:, -2], rtol=1e-4, atol=1e-5)

    moments = load_file(run / "moments.safetensors")
    assert {name.split("/")[0] for name in moments} == {"wnoise", "wnoise+pcm"}
    variance = weight_moments(chip).variance
    for name in ("colours", "bent"):
        np.testing.assert_allclose(moments[f"wnoise/variance/{name}"], variance[name], rtol=1e-5)
        assert not moments[f"wnoise/mean/{name}"].any()


def test_everything_that_a_run_gives(run: Path) -> None:
    flips = pd.read_parquet(run / "flips.parquet")
    assert set(flips["profile"]) == {"wnoise", FULL}
    assert flips["probability"].between(0, 1).all()
    coverage = pd.read_csv(run / "coverage.csv", keep_default_na=False)
    assert coverage["layer"].tolist() == ["colours", "bent"]
    assert coverage["place"].tolist() == ["analog", "analog"]
    ranges = pd.read_csv(run / "adc_ranges.csv")
    assert set(ranges["tile"]) == {"colours[0]", "bent[0]"}
    text = (run / "report.html").read_text()
    for part in ("own_jax:pair on pngs", "Table I", "flip probability", "on the chip", FULL):
        assert part in text, part
    assert "no PyTorch counterpart" not in text
    for stage in ("moments", "flips", "simulate"):
        versions = read_json(run / f"stages/{stage}.json")["versions"]
        assert not {"torch", "aihwkit"} & versions.keys()
        assert "jax" in versions


@pytest.mark.long
def test_studies(run: Path, place: Path) -> None:
    shared = ("--out", "chips")
    for arguments in (
        ("drift", *shared, "--drift.chips", "2", "--drift.times", "20", "3600"),
        ("layers", *shared, "--layers.images", "8"),
        (
            *("compare-noise", *shared, "--compare.memories", "pcm", "reram_cmo"),
            *("--compare.chips", "2", "--compare.bins", "3", "--compare.tune-chips", "1"),
        ),
        ("atlas", *shared, "--atlas.chips", "2", "--atlas.profiles", "wnoise", f"{FULL}@20"),
        ("remedies", *shared, "--remedies.chips", "2", "--remedies.times", "20"),
    ):
        found = without_torch(place, *arguments, hidden=HIDDEN)
        assert found.returncode == 0, found.stderr
    drift = pd.read_csv(run / "drift/drift.csv")
    assert drift["time_s"].tolist() == [20.0, 3600.0] * 2
    layers = pd.read_csv(run / "layers/layers.csv")
    assert layers["layer"].tolist() == ["colours", "bent", "all layers"]
    matched = pd.read_csv(run / "compare-noise/matched.csv")
    assert matched["name"].tolist() == ["pcm", "reram_cmo", "wnoise", "wnoise_mvm", "adc"]
    assert matched["test_failure_rate"].between(0, 1).all()
    assert matched["chips"].tolist() == [2, 2, 2, 2, 1]
    atlas = pd.read_parquet(run / "atlas/atlas.parquet")
    predictions = pd.read_parquet(run / "predictions.parquet")
    for name, profile in (("wnoise", "wnoise"), (f"{FULL}@20", FULL)):
        of_run = predictions[(predictions["profile"] == profile) & (predictions["chip"] < 2)]
        wrong = of_run.groupby(["fold", "index"])["correct"].agg(lambda correct: (~correct).sum())
        found = atlas.set_index(["fold", "index"])[f"wrong_{name}"]
        pd.testing.assert_series_equal(
            found.sort_index(), wrong, check_names=False, check_dtype=False
        )
    assert atlas["path"].str.endswith(".png").all()
    remedies = pd.read_parquet(run / "remedies/remedies.parquet")
    assert "compensated, fitted logits" in set(remedies["first"])
    assert not remedies["first"].str.contains("recalibrated").any()  # no BatchNorm
    for study in ("drift", "layers", "compare-noise", "atlas", "remedies"):
        settings = read_json(run / study / "settings.json")
        assert settings["engine"] == "jax"
        assert "torch" not in settings["versions"]
    _, said = succeed("report", "--out", run)
    assert "As the chips age" in (run / "report.html").read_text(), said


def test_it_goes_on_where_it_was(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    _, said = succeed("run", "--out", copy)
    for stage in ("score", "moments", "flips", "simulate", "analyse"):
        assert f"{stage}: up to date" in said
    (chip,) = copy.glob("chips/wnoise-*/1.parquet")
    before = (copy / "predictions.parquet").read_bytes()
    chip.unlink()
    others = {path: path.stat().st_mtime_ns for path in copy.glob("chips/*/*.parquet")}
    (copy / "stages/simulate.json").unlink()
    succeed("simulate", "own", "--out", copy)
    assert (copy / "predictions.parquet").read_bytes() == before
    assert all(
        path.stat().st_mtime_ns == stamp
        for path, stamp in others.items()
        if "1.adc" not in path.name
    )


@pytest.mark.long
def test_a_run_without_chips_gets_them(own: Run, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(own.folder, tmp_path / "run"))
    assert (copy / "score_deciles.csv").exists()
    flags = ("--simulate.profiles", "ideal", FULL, "--simulate.adc-calibration", "16")
    _, said = succeed("run", "--out", copy, "--simulate.engine", "jax", *flags)
    assert "score: up to date" in said
    assert "left out" not in said
    assert "Table I" in (copy / "report.html").read_text()
    assert not (copy / "score_deciles.csv").exists()


def test_what_has_no_tiles_is_refused_at_once(place: Path, tmp_path: Path) -> None:
    given = ("--model", "own_jax:function", *SMALL, "--simulate.engine", "jax", "--out", tmp_path)
    said = refuse("run", *given)
    assert "the network of own_jax:function does not go onto chips" in said
    assert "let own_jax:function return (function, params)" in said
    assert not (tmp_path / "scores.parquet").exists()


def test_there_is_nothing_to_export(run: Path) -> None:
    assert "export is for AIHWKit's chips" in refuse("export", "--out", run)


def test_tables_of_chips_that_a_run_no_longer_has_are_refused(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    printed, _ = succeed("table-one", copy, "--out", tmp_path / "table")
    assert "own_jax:pair" in printed
    assert "resnet18" not in printed
    _, said = succeed("run", "--out", copy, "--simulate.engine", "fast")
    assert "left out: export, moments, flips, simulate" in said
    for command in (("table-one", copy), ("figure-one", copy)):
        assert "has none without --simulate.engine jax" in refuse(*command, "--out", tmp_path)


def test_moments_of_another_network_are_refused(tmp_path: Path) -> None:
    weights = {"layer": {"kernel": np.ones((2, 3), np.float32), "bias": np.ones(3, np.float32)}}
    found = {"pcm/mean/layer.kernel": np.full((2, 3), 0.1, np.float32)}
    found["pcm/variance/layer.kernel"] = np.full((2, 3), 0.2, np.float32)
    save_file(found, tmp_path / "moments.safetensors")
    (moments,) = _moments(weights, tmp_path / "moments.safetensors").values()
    np.testing.assert_array_equal(moments.variance["layer"]["kernel"], np.float32(0.2))
    assert not moments.mean["layer"]["bias"].any()
    save_file(found | {"pcm/mean/other": np.ones(2, np.float32)}, tmp_path / "moments.safetensors")
    with pytest.raises(ValueError, match="the network does not have, such as other"):
        _moments(weights, tmp_path / "moments.safetensors")
