"""`bridge.simulate`: the same tables as program, at and predict one by one."""

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import bridge
from bridge import PROFILES, Profile
from bridge.chips import ADC, PCM
from jaxcurv import data, image_folder, logit_scores
from tests.coloured_pngs import NORMALISED, network, write_images

TIMES = [20.0, 3600.0]
SCORES = ["margin", "entropy", "least_confidence"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> data.Normalised:
    return image_folder(write_images(tmp_path_factory.mktemp("pngs") / "test", 6), **NORMALISED)


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> data.Normalised:
    folder = write_images(tmp_path_factory.mktemp("pngs") / "train", 3, seed=1)
    return image_folder(folder, **NORMALISED)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return network()


def all_images(source: data.Source) -> np.ndarray:
    return np.stack([source[position]["image"] for position in range(len(source))])


def test_it_is_program_and_predict_to_the_bit(
    net: nn.Module, images: data.Normalised, others: data.Normalised
) -> None:
    names = ["ideal", "adc", "adc+pcm"]
    found = bridge.simulate(
        net, images, profiles=names, chips=2, times=TIMES, calibration=others, seed=3
    )
    assert found.attrs["simulation"]["times"] == TIMES
    by_hand = []
    for name in names:
        for seed in (3, 4):
            chip = bridge.program(net, PROFILES[name], seed=seed, calibration=all_images(others))
            for time in TIMES if "pcm" in name else [np.nan]:
                one = chip if np.isnan(time) else chip.at(time)
                table = bridge.predict(one, images, keep=logit_scores)
                by_hand.append(table.assign(profile=name, time=time, chip=seed))
    assert found.attrs["index_checksum"] == table.attrs["index_checksum"]
    expected = pd.concat(by_hand, ignore_index=True)[found.columns]
    pd.testing.assert_frame_equal(found, expected, check_exact=True)
    first = ["profile", "time", "chip", "index", "path", "label", "prediction", "correct"]
    assert list(found) == [*first, *SCORES]
    assert images.paths is not None
    assert found["path"].tolist() == 8 * images.paths.tolist()
    of_pcm = found.query("profile == 'adc+pcm'")
    assert of_pcm.groupby(["chip", "time"])["margin"].first().nunique() == 4


def test_a_share_that_is_held_out_calibrates_and_is_not_predicted(
    net: nn.Module, images: data.Normalised, capsys: pytest.CaptureFixture[str]
) -> None:
    found = bridge.simulate(net, images, profiles="adc", chips=1, calibration=0.25)
    assert "4 of the 18 images set the converter ranges" in capsys.readouterr().err
    assert found.attrs["simulation"]["held_out"] == 4
    held = np.flatnonzero(~np.isin(images.indices, found["index"]))
    assert found.attrs["simulation"]["times"] == []
    assert len(held) == 4
    assert len(set(images.labels[held])) > 1
    rest = data.Chosen(images, np.setdiff1d(np.arange(18), held))
    pixels = np.stack([images[position]["image"] for position in data.subset(images.indices, 4, 0)])
    chip = bridge.program(net, PROFILES["adc"], seed=0, calibration=pixels)
    expected = bridge.predict(chip, rest, keep=logit_scores)
    assert found[expected.columns].equals(expected)
    every = bridge.simulate(net, images, profiles="pcm", chips=1)
    assert bridge.simulate(net, images, profiles="pcm", chips=1, times=20).equals(every)
    assert len(every) == 18  # no ADC, nothing is held out
    assert every["time"].unique().tolist() == [20.0]


def test_of_all_eight_the_ideal_chip_predicts_as_the_network(
    net: nn.Module, images: data.Normalised, others: data.Normalised
) -> None:
    calibration = torch.from_numpy(all_images(others)).permute(0, 3, 1, 2)
    found = bridge.simulate(net, images, chips=1, calibration=calibration)
    assert found["profile"].unique().tolist() == list(PROFILES)
    ideal = found.query("profile == 'ideal'")
    assert ideal["prediction"].tolist() == bridge.predict(net, images)["prediction"].tolist()


def test_profiles_of_one_s_own_and_other_columns(net: nn.Module) -> None:
    pixels = np.random.default_rng(0).normal(size=(5, 8, 8, 3)).astype(np.float32)
    own = {
        "4 bits": Profile(adc=ADC(bits=4, range=2.0)),
        "old": Profile(memory=PCM(t_inference=3600.0)),
    }
    found = bridge.simulate(net, (pixels, [0, 1, 2, 0, 1]), profiles=own, chips=1, keep=None)
    assert found["profile"].tolist() == 5 * ["4 bits"] + 5 * ["old"]
    assert found["time"].tolist()[5:] == 5 * [3600.0]
    assert "path" not in found
    assert found["logits"].iloc[0].shape == (3,)


def test_finished_chips_stay(
    net: nn.Module, images: data.Normalised, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {"profiles": ["ideal", "pcm"], "chips": 2, "times": TIMES}
    expected = bridge.simulate(net, images, **given)
    simulation = importlib.import_module("bridge.chips.simulation")
    predict, calls = simulation.predict, 0

    def killed(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return predict(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(simulation, "predict", killed)
        with pytest.raises(KeyboardInterrupt):
            bridge.simulate(net, images, out=tmp_path / "chips", **given)
    finished = sorted(path.name for path in (tmp_path / "chips").glob("*.parquet"))
    assert finished == ["ideal-0.parquet", "ideal-1.parquet", "pcm-0-20.0s.parquet"]
    before = {name: (tmp_path / "chips" / name).stat().st_mtime_ns for name in finished}
    found = bridge.simulate(net, images, out=tmp_path / "chips", **given)
    assert found.equals(expected)
    assert before == {name: (tmp_path / "chips" / name).stat().st_mtime_ns for name in finished}
    with torch.no_grad():
        net[2].weight[0, 0] += 0.1  # type: ignore[index, operator]
    try:
        with pytest.raises(ValueError, match="was made by another chip"):
            bridge.simulate(net, images, out=tmp_path / "chips", **given)
    finally:
        with torch.no_grad():
            net[2].weight[0, 0] -= 0.1  # type: ignore[index, operator]


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"profiles": "pmc"}, "did you mean 'pcm'"),
        ({"profiles": ["pcm", "pcm"]}, "of different names"),
        ({"profiles": [Profile(), 3]}, "a Profile each; got 3"),
        ({"profiles": []}, "must be one or more"),
        ({"profiles": "adc", "times": [20, 3600]}, "no profile of adc has a memory"),
        ({"profiles": "pcm", "times": [20, 20]}, "times must differ"),
        ({"profiles": "pcm", "times": [-1]}, "a time"),
        ({"chips": 0}, "chips must be"),
        ({"seed": -1}, "seed"),
        ({"calibration": 1.5}, r"must be in \(0, 1\); got 1.5"),
        ({"calibration": 0.99}, "leaves none to predict"),
        ({"t_inference": 3.0}, "takes times and profiles"),
    ],
)
def test_refusals_come_before_any_chip(
    net: nn.Module, images: data.Normalised, given: dict[str, Any], why: str
) -> None:
    with pytest.raises(ValueError, match=why):
        bridge.simulate(net, images, **given)


def test_the_images_to_predict_calibrate_nothing(net: nn.Module, images: data.Normalised) -> None:
    with pytest.raises(ValueError, match="must be others than those that are predicted"):
        bridge.simulate(net, images, profiles="adc", calibration=images)
    pixels = all_images(images)
    for same in (
        (pixels, images.labels),
        pixels,
        torch.from_numpy(pixels).permute(0, 3, 1, 2),
    ):
        with pytest.raises(ValueError, match="others than those that are predicted"):
            bridge.simulate(net, (pixels, images.labels), profiles="adc", calibration=same)


def test_a_network_in_training_mode_is_refused(images: data.Normalised) -> None:
    with pytest.raises(ValueError, match="training mode"):
        bridge.simulate(network().train(), images)
