"""A network that was trained elsewhere, from its file to its simulated chips."""

import importlib.metadata
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import bridge
from bridge.weights import Checkpoint
from experiments.pipeline import registry
from experiments.pipeline.up_to_date import identity_of, is_up_to_date
from experiments.runs.files import sha256
from experiments.runs.job import Job
from experiments.runs.networks import load_flax
from experiments.runs.records import write_record
from experiments.settings.flags import Data, Experiment, Model
from experiments.settings.presets import PRESETS
from experiments.stages import pretrained
from experiments.stages.pretrained import choose_normalisation, require_preprocessing
from experiments.system import environment
from jaxcurv import data
from jaxcurv.storage.checksums import read_json
from tests.one_process import succeed
from tests.shallow_resnet import replace_resnet18

CLASSES = ("blue", "green", "red")
MEAN, STD = (0.4, 0.45, 0.5), (0.25, 0.2, 0.3)
PUBLISHED = {
    "weights": "resnet18:IMAGENET1K_V1",
    "url": "https://example.org/resnet18.pth",
    "sha256": "0" * 64,
    "class_names": ["a cat", "a dog", "a hat"],
    "normalisation": {"mean": list(MEAN), "std": list(STD)},
    "preprocessing": {"resize_size": [256], "crop_size": [224], "interpolation": "bilinear"},
}


def write_images(folder: Path) -> None:
    """Noise around a colour of each class, 64x64: 12 images a class for train and 8 for test."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 8)):
        for channel, name in enumerate(reversed(CLASSES)):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.normal(110, 20, (64, 64, 3))
                pixels[..., channel] += rng.normal(60, 15)
                image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
                image.save(folder / split / name / f"{number:02}.png")


def normalised(samples: data.Arrays) -> torch.Tensor:
    images = data.Normalisation(MEAN, STD).apply(samples.images)
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


AS_THEY_ARE = {"image_size": None, "resize_size": None, "interpolation": "bicubic"}
"""Settings of images that are neither resized nor cropped."""


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    """ResNet-18 has one block here."""
    with pytest.MonkeyPatch.context() as patch:
        replace_resnet18(patch)
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the data sets, with `shapes` in it and the weights of a network for it."""
    root = tmp_path_factory.mktemp("data")
    write_images(root / "shapes")
    train = data.read(data.load("shapes", root).train)
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.default_generator.manual_seed(0)
        network = bridge.weights.resnet18(3, stem="imagenet", width=4)
        for layer in network.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.momentum = None  # the statistics of the one batch that follows
                layer.weight.uniform_(0.5, 1.5)
                layer.bias.normal_(0, 0.1)
        network.train()(normalised(train))
        network.eval()
        readout, network.fc = network.fc, torch.nn.Identity()
        features = network(normalised(train)).double().numpy()
        centred = features - features.mean(0)
        targets = np.eye(3)[train.labels] - 1 / 3
        weight = 5 * np.linalg.lstsq(centred, targets, rcond=0.3)[0].T
        readout.weight.copy_(torch.from_numpy(weight))
        readout.bias.copy_(torch.from_numpy(-weight @ features.mean(0)))
        network.fc = readout
    torch.save(network.state_dict(), root / "weights.pth")
    return root


def flags(root: Path, weights: Path) -> tuple[str, ...]:
    return (
        *("imagenet_resnet18", "--data.name", "shapes", "--data-dir", str(root)),
        *("--data.image-size", "None", "--data.resize-size", "None"),
        *("--data.interpolation", "bicubic", "--folds", "test", "--simulate.chips", "1"),
        *("--data.mean", *map(str, MEAN), "--data.std", *map(str, STD)),
        *("--model.weights", str(weights), "--model.width", "4", "--limit", "20"),
        *("--simulate.adc-calibration", "16"),
    )


@pytest.fixture(scope="module")
def finished(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run up to its chips."""
    folder = tmp_path_factory.mktemp("runs") / "shapes"
    folder.mkdir()
    (folder / "history.csv").write_text("of an earlier, trained model")
    for stage in ("train", "export", "simulate"):
        succeed(stage, *flags(root, root / "weights.pth"), "--out", folder)
    return folder


def torch_predictions(root: Path) -> pd.Series:
    """Predicted classes of the test fold's samples, by their index."""
    network = bridge.weights.resnet18(3, stem="imagenet", width=4)
    network.load_state_dict(torch.load(root / "weights.pth", weights_only=True))
    test = data.read(data.load("shapes", root).test)
    with torch.inference_mode():
        return pd.Series(network.eval()(normalised(test)).argmax(1).numpy(), test.indices)


def test_digital_predictions_are_those_of_the_torch_model(finished: Path, root: Path) -> None:
    expected = torch_predictions(root)
    assert set(expected) == {0, 1, 2}
    test = data.read(data.load("shapes", root).test)
    assert (expected[test.indices] == test.labels).mean() > 0.5
    model = load_flax(Job(Experiment(), finished, root, ""), read_json(finished / "model.json"))
    logits = jax.jit(model)(data.Normalisation(MEAN, STD).apply(test.images))
    np.testing.assert_array_equal(logits.argmax(1), expected[test.indices])
    predictions = pd.read_parquet(finished / "predictions.parquet")
    ideal = predictions[predictions["profile"] == "ideal"]
    assert len(ideal) == 20
    np.testing.assert_array_equal(ideal["prediction"], expected[ideal["index"]])


def test_a_run_says_where_its_weights_come_from(finished: Path, root: Path) -> None:
    description = read_json(finished / "model.json")
    digest = sha256(root / "weights.pth")
    assert description["origin"] == {"file": "weights.pth", "sha256": digest}
    assert description["class_names"] == list(CLASSES)
    assert description["normalisation"] == {"mean": list(MEAN), "std": list(STD)}
    _, header = bridge.weights.load_weights(finished / "weights.safetensors")
    assert header["origin"] == description["origin"]
    assert str(root / "weights.pth") in read_json(finished / "stages" / "train.json")["inputs"]
    assert not (finished / "history.csv").exists()


def test_a_changed_file_is_taken_over_again(finished: Path, root: Path, tmp_path: Path) -> None:
    weights, folder = tmp_path / "weights.pth", tmp_path / "run"
    shutil.copytree(finished, folder)
    _, said = succeed("train", *flags(root, root / "weights.pth"), "--out", folder)
    assert "train: up to date" in said
    state_dict = torch.load(root / "weights.pth", weights_only=True)
    torch.save({"state_dict": state_dict}, weights)
    experiment = Experiment(model=Model(weights=str(weights)))
    stage = registry.stage_of("train", experiment)
    before = identity_of(stage, experiment, folder)
    torch.save({"state_dict": {**state_dict, "fc.bias": state_dict["fc.bias"] + 1}}, weights)
    after = identity_of(stage, experiment, folder)
    assert before["inputs"].keys() == after["inputs"].keys() == {str(weights)}
    assert before["inputs"] != after["inputs"]
    assert identity_of(registry.STAGES["train"], Experiment(), folder)["inputs"] == {}


@pytest.fixture
def job(root: Path, tmp_path: Path) -> Job:
    """The job of the stage that takes the weights over."""
    experiment = Experiment(
        data=Data("shapes", mean=MEAN, std=STD),
        model=Model("resnet18", "imagenet", 4, weights=str(root / "weights.pth")),
    )
    return Job(experiment, tmp_path / "run", root, "fingerprint")


def test_taking_weights_over_warns_of_nothing(job: Job, caplog: pytest.LogCaptureFixture) -> None:
    """Orbax says through absl where it is used wrongly."""
    absl = logging.getLogger("absl")
    absl.addHandler(caplog.handler)
    try:
        pretrained.take_over(job)
    finally:
        absl.removeHandler(caplog.handler)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def with_settings(job: Job, **changes: Any) -> Job:
    return replace(job, experiment=replace(job.experiment, **changes))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda weights: weights.pop("layer1.0.conv1.weight"), "missing layer1.0.conv1.weight"),
        (lambda weights: weights.update(extra=torch.zeros(1)), "unexpected extra"),
        (lambda weights: weights["bn1.weight"].fill_(np.nan), "non-finite weights in bn1.weight"),
        (lambda weights: weights.pop("fc.weight"), "no linear layer fc"),
        (
            lambda weights: weights.update(
                {"fc.weight": torch.zeros(5, 4), "fc.bias": torch.zeros(5)}
            ),
            r"tells 5 classes apart, shapes has 3: .*--data.name.*--model.weights",
        ),
        (
            lambda weights: weights.update({"conv1.weight": torch.zeros(4, 1, 7, 7)}),
            "takes 1 channels, the images of shapes have 3",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    job: Job, tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], Any], words: str
) -> None:
    weights = bridge.weights.load_checkpoint(str(job.experiment.model.weights)).state_dict
    change(weights)
    torch.save(weights, tmp_path / "other.pth")
    other = replace(job.experiment.model, weights=str(tmp_path / "other.pth"))
    with pytest.raises(ValueError, match=words):
        pretrained.take_over(with_settings(job, model=other))
    assert not (job.folder / "model.json").exists()


@pytest.mark.parametrize("prefix", ["model.", "module.", "_orig_mod.", "model._orig_mod."])
@pytest.mark.parametrize("place", [None, "state_dict", "net"])
def test_weights_as_people_have_them(
    job: Job, tmp_path: Path, prefix: str, place: str | None
) -> None:
    weights = bridge.weights.load_checkpoint(str(job.experiment.model.weights)).state_dict
    named: dict[str, Any] = {prefix + name: tensor for name, tensor in weights.items()}
    path = tmp_path / "other.pth"
    torch.save(named if place is None else {place: named, "acc": np.float64(0.5)}, path)
    other = with_settings(job, model=replace(job.experiment.model, weights=str(path)))
    pretrained.take_over(other)
    model = load_flax(other, read_json(job.folder / "model.json"))
    taken = bridge.to_torch(model)
    assert all(torch.equal(taken[name], tensor) for name, tensor in weights.items() if tensor.ndim)


def test_other_names_are_shown(job: Job, tmp_path: Path) -> None:
    torch.save({"backbone.stem.weight": torch.ones(4, 3, 7, 7)}, tmp_path / "other.pth")
    other = replace(job.experiment.model, weights=str(tmp_path / "other.pth"))
    with pytest.raises(ValueError, match=r"no ResNet .* its names are backbone\.stem\.weight"):
        pretrained.take_over(with_settings(job, model=other))


@pytest.mark.parametrize(
    "change", [{"architecture": "resnet50"}, {"width": 8}, {"stem": "cifar"}], ids=str
)
def test_another_network_is_refused(job: Job, change: dict[str, Any]) -> None:
    other = replace(job.experiment.model, **change)
    with pytest.raises(ValueError, match=r"(?s)cannot take .*--model.architecture") as refused:
        pretrained.take_over(with_settings(job, model=other))
    assert len(str(refused.value)) < 700


def test_a_bare_file_needs_the_normalisation(job: Job) -> None:
    with pytest.raises(ValueError, match=r"weights.pth does not say .*--data.mean and --data.std"):
        pretrained.take_over(with_settings(job, data=Data("shapes")))
    with pytest.raises(ValueError, match="go together"):
        pretrained.take_over(with_settings(job, data=Data("shapes", mean=MEAN)))


def test_a_file_that_is_not_there(job: Job) -> None:
    nowhere = replace(job.experiment.model, weights="no/such.pth")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at no/such.pth"):
        pretrained.take_over(with_settings(job, model=nowhere))


def test_published_weights(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what torchvision says of them; their preprocessing must be the settings'."""
    state_dict = bridge.weights.load_checkpoint(str(job.experiment.model.weights)).state_dict
    preprocessing = {"resize_size": [64], "crop_size": [64], "interpolation": "bicubic"}
    origin = {**PUBLISHED, "preprocessing": preprocessing}
    monkeypatch.setattr(
        bridge.weights, "load_checkpoint", lambda name: Checkpoint(state_dict, origin)
    )
    model = replace(job.experiment.model, weights="resnet18:IMAGENET1K_V1")
    with pytest.raises(ValueError, match=r"--data.resize-size 64 --data.image-size 64"):
        pretrained.take_over(with_settings(job, model=model))
    settings = with_settings(job, model=model, data=Data("shapes", image_size=64))
    pretrained.take_over(settings)
    pretrained.take_over(settings)  # as after a kill, before the record was written
    description = read_json(job.folder / "model.json")
    assert description["normalisation"] == {"mean": list(MEAN), "std": list(STD)}
    kept = {key: value for key, value in origin.items() if key != "class_names"}
    assert description["origin"] == kept


def test_presets_have_the_published_preprocessing() -> None:
    for preset, change, fits in (
        ("imagenet_resnet18", {}, True),
        ("imagenet_resnet50", {}, True),
        ("imagenet_resnet50", {"resize_size": 232}, False),
        ("imagenet_resnet50", {"interpolation": "bicubic"}, False),
        ("imagenet_resnet50", AS_THEY_ARE, False),
    ):
        experiment = PRESETS[preset].experiment
        settings = replace(experiment.data, **change)
        if fits:
            require_preprocessing(settings, PUBLISHED, "some")
            continue
        words = "resize_size 256, crop_size 224, interpolation bilinear; the settings say"
        with pytest.raises(ValueError, match=f"some was published for images of {words}"):
            require_preprocessing(settings, PUBLISHED, "some")
    v2 = {"preprocessing": {**PUBLISHED["preprocessing"], "resize_size": [232]}}
    with pytest.raises(ValueError, match=r"resize_size 256: give --data.resize-size 232$"):
        require_preprocessing(PRESETS["imagenet_resnet50"].experiment.data, v2, "some")


def test_normalisation_is_the_given_or_the_published_one() -> None:
    published = data.Normalisation(MEAN, STD)
    bare = Data("shapes")
    given = replace(bare, mean=MEAN, std=STD)
    header = {"header": {"normalisation": PUBLISHED["normalisation"]}}
    for settings, origin in ((bare, PUBLISHED), (given, PUBLISHED), (given, {}), (bare, header)):
        assert choose_normalisation(settings, origin, "some") == published
    other = replace(given, mean=(0.0, 0.0, 0.0))
    with pytest.raises(ValueError, match=r"some was published with mean \(0.4, .*--data.mean"):
        choose_normalisation(other, PUBLISHED, "some")


def test_a_record_from_before_a_setting_existed_counts_as_its_default(tmp_path: Path) -> None:
    experiment = Experiment()
    stage = registry.stage_of("train", experiment)
    identity = identity_of(stage, experiment, tmp_path)
    record = {
        "name": "train",
        "outputs": {},
        "versions": {},
        "device": "cpu",
        "platform": "any",
        "environment": {},
        "seconds": 1.0,
        "measured": {},
        **json.loads(json.dumps(identity)),
    }
    for name in ("mean", "std", "resize_size", "interpolation"):
        del record["settings"]["data"][name]
    del record["settings"]["model"]["weights"]
    write_record(tmp_path, record)
    assert is_up_to_date(stage, identity, tmp_path)
    identity_of(registry.STAGES["export"], experiment, tmp_path)
    changed = replace(experiment, data=replace(experiment.data, mean=(0.5,), std=(0.5,)))
    other = identity_of(stage, changed, tmp_path)
    assert not is_up_to_date(stage, other, tmp_path)
    with pytest.raises(ValueError, match=r"was run with other flags \(--data\."):
        identity_of(registry.STAGES["export"], changed, tmp_path)


def test_torch_is_needed_for_given_weights_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "torch":
            raise importlib.metadata.PackageNotFoundError
        return "1"

    monkeypatch.setattr("experiments.system.environment.version", version)
    given = Experiment(model=Model(weights="some.pth"))
    with pytest.raises(ModuleNotFoundError, match=r"needs torch, which is not installed: pip"):
        environment.package_versions(registry.stage_of("train", given).packages)
    environment.package_versions(registry.stage_of("train", Experiment()).packages)
