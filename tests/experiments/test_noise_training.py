"""Noise-aware training and fine-tuning by the command line, and what they leave as it was."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import bridge
from bridge.chips.profiles import PROFILES
from experiments.cli.parsing import Options, parse_preset
from experiments.pipeline.plan import plan
from experiments.pipeline.registry import LATER, STAGES
from experiments.pipeline.up_to_date import deciding, identity_of
from experiments.runs.descriptions import read_description
from experiments.runs.job import Job
from experiments.runs.networks import load_flax
from experiments.runs.resume import key_of
from experiments.settings.flags import Experiment
from jaxcurv.nested import flatten
from jaxcurv.storage.checksums import read_json, write_json
from tests.conftest import SMALL
from tests.one_process import refuse, succeed

NOISE = ("--train.noise", "adc+wnoise+pcm")


def experiment_of(*flags: str) -> Experiment:
    return parse_preset(Options, "run", ["digits", *flags]).experiment


def why_train_runs(folder: Path, *flags: str) -> str:
    return plan(experiment_of(*flags, "--out", str(folder)), folder, ("train",))[0].why


@pytest.fixture(scope="module")
def tuned(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs that start from the finished one's weights and take steps of next to nothing."""
    folder = tmp_path_factory.mktemp("tuned")
    flags = ("--train.epochs", "1", "--train.learning-rate", "1e-7")
    for name, noise in (("plain", ()), ("noisy", NOISE)):
        start = ("--train.start", finished_run if noise else finished_run / "weights.safetensors")
        succeed("train", "digits", *SMALL, *flags, *start, *noise, "--out", folder / name)
    return {"plain": folder / "plain", "noisy": folder / "noisy"}


def weights_in(folder: Path, **settings: Any) -> dict[str, np.ndarray]:
    model = load_flax(Job(Experiment(**settings), folder, None), read_description(folder))
    return {name: value.numpy() for name, value in bridge.to_torch(model).items()}


@pytest.mark.long
def test_training_starts_from_given_weights(tuned: dict[str, Path], finished_run: Path) -> None:
    given, fresh = weights_in(finished_run), weights_in(tuned["plain"])
    for name, value in given.items():
        if not name.endswith(("running_mean", "running_var", "num_batches_tracked")):
            np.testing.assert_allclose(fresh[name], value, atol=1e-5, err_msg=name)
    description = read_description(tuned["plain"])
    assert description["normalisation"] == read_description(finished_run)["normalisation"]
    record = read_json(tuned["plain"] / "stages" / "train.json")
    assert record["inputs"].keys() == {str(finished_run / "weights.safetensors")}


@pytest.mark.long
def test_noise_is_in_the_training_and_not_in_the_weights(tuned: dict[str, Path]) -> None:
    plain, noisy = (weights_in(tuned[name]) for name in ("plain", "noisy"))
    for name, value in plain.items():
        if not name.endswith(("running_mean", "running_var", "num_batches_tracked")):
            np.testing.assert_allclose(noisy[name], value, atol=1e-5, err_msg=name)
    losses = {
        name: pd.read_csv(run / "history.csv")["train_loss"][0] for name, run in tuned.items()
    }
    assert losses["noisy"] > losses["plain"] + 0.01


@pytest.mark.long
def test_what_the_noise_is_made_of_decides_the_training(
    tuned: dict[str, Path], finished_run: Path
) -> None:
    run = tuned["noisy"]
    record = read_json(run / "stages" / "train.json")
    assert record["settings"]["simulate"].keys() == {"wnoise", "pcm", "clipping"}
    assert why_train_runs(run) == ""
    for flag, value in (
        ("--simulate.pcm.t-inference", "3600"),
        ("--simulate.wnoise.sigma", "0.03"),
        ("--simulate.clipping.type", "layer_gaussian"),
        ("--train.noise", "none"),
        ("--train.clip-sigma", "2.5"),
    ):
        assert flag in why_train_runs(run, flag, value)
    assert why_train_runs(run, "--simulate.adc.bits", "8") == ""
    assert why_train_runs(finished_run, "--simulate.pcm.t-inference", "3600") == ""
    why = why_train_runs(finished_run, *NOISE)
    assert why == "--train.noise was None, is adc+wnoise+pcm"


def test_a_training_recorded_before_these_settings_counts(run_copy: Path) -> None:
    for path in (run_copy / "stages" / "train.json", run_copy / "settings.json"):
        content = read_json(path)
        recipe = content.get("settings", content)["train"]
        for name in LATER:
            del recipe[name.removeprefix("train.")]
        write_json(path, content)
    assert why_train_runs(run_copy) == ""


def test_unfinished_trainings_of_before_go_on(tmp_path: Path) -> None:
    """Their folder has the name that it had when there was none of these settings."""
    identity = identity_of(STAGES["train"], Experiment(), tmp_path)
    assert dict(flatten(identity["settings"])).keys() >= LATER
    assert key_of(deciding(identity)) == "816a5e7261e3"
    other = identity_of(STAGES["train"], experiment_of("--train.clip-sigma", "2"), tmp_path)
    assert "train.clip_sigma" in deciding(other)["settings"]


def test_the_noise_of_a_training_is_that_of_the_weights() -> None:
    experiment = experiment_of(*NOISE, "--simulate.pcm.t-inference", "60")
    found, full = experiment.training_noise, experiment.simulate.every_profile["adc+wnoise+pcm"]
    assert found is not None
    assert (found.adc, found.wnoise, found.memory) == (None, full.wnoise, full.memory)
    assert found.memory != PROFILES["pcm"].memory
    assert experiment_of().training_noise is None


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--train.noise", "adc"), "--train.noise adc has no noise of weights"),
        (("--train.noise", "ideal"), "--train.noise ideal has no noise of weights"),
        (
            ("--train.noise", "wnoise_mvm"),
            "drawn once for each chip, which is what training takes of a profile: give wnoise, pcm",
        ),
        (
            ("--train.noise", "adc+wnoise", "--simulate.wnoise.drawn", "per_mvm"),
            "has no noise of weights that is drawn once for each chip",
        ),
        (("--train.noise", "pcmm"), "--train.noise cannot be 'pcmm': give one of ideal, adc, "),
        (("--train.clip-sigma", "0"), "--train.clip-sigma must be positive, or none for no clip"),
        (("--train.noise", "pcm", "--model.weights", "x.pth"), "--train.start"),
        (("--train.start", "y.pth", "--model.factory", "a:b"), "is trained here: leave out"),
    ],
)
def test_a_bad_noise_is_refused_before_work(
    flags: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    said = refuse("train", "digits", *flags, "--out", tmp_path / "out")
    assert words in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_weights_to_start_from_must_be_there_and_fit(finished_run: Path, tmp_path: Path) -> None:
    empty, out = tmp_path / "empty", tmp_path / "out"
    empty.mkdir()
    common = ("train", "digits", *SMALL, "--out", out)
    said = refuse(*common, "--train.start", empty)
    assert "has no weights.safetensors (--train.start): run export there first" in said
    said = refuse(*common, "--train.start", finished_run, "--model.width", "8")
    assert "--model.width" in said
    assert not (out / "checkpoints").exists()
