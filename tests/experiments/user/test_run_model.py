"""A PyTorch network and a folder of images of the user's own, from the factory to the report."""

import importlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pandas as pd
import pytest
import torch
from filelock import FileLock
from PIL import Image

import bridge
from experiments.runs.files import sha256
from experiments.runs.own_network import load_weights_into
from jaxcurv import FiniteDifference, data
from jaxcurv.data.datasets import open_dataset
from jaxcurv.storage.checksums import read_json, write_json
from tests.one_process import refuse, succeed

pytestmark = pytest.mark.filterwarnings(r"ignore:layer depthwise \(grouped\)")

CLASSES = ("blue", "green", "red")
MEAN, STD = (0.4, 0.45, 0.5), (0.25, 0.2, 0.3)
MODULE = """
from pathlib import Path

import torch
from torch import nn
from own_layers import block

class Net(nn.Module):
    def __init__(self, classes=3):
        super().__init__()
        self.features = nn.Sequential(block(3, 4), nn.MaxPool2d(2), block(4, 4))
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.mixed, self.again = nn.Linear(4, 4), nn.Linear(4, 4)
        self.again.weight, self.again.bias = self.mixed.weight, self.mixed.bias
        self.head = torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, classes))
        beside = Path(__file__).with_name("gain.txt")
        self.gain = float(beside.read_text()) if beside.exists() else 1.0
        self.register_buffer("mask", torch.tensor([0.0, float("-inf"), 0.0, 0.0]))

    def forward(self, images):
        features = self.depthwise(self.features(images)).mean((2, 3))
        features = self.again(torch.relu(self.mixed(features)))
        return self.head(self.gain * features + 0.01 * torch.softmax(self.mask, 0))

def make():
    return Net().eval()

def in_training():
    return Net()

def of_four_classes():
    return Net(4).eval()

class Drawn(Net):
    def __init__(self):
        super().__init__()
        self.scale = torch.rand(()).item()

    def forward(self, images):
        return self.scale * super().forward(images)

def drawn():
    return Drawn().eval()

def gray():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 3)).eval()

def without_layers():
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
"""
LAYERS = """
from torch import nn

def block(inputs, outputs):
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())
"""
SMALL = (
    *("--data.mean", *map(str, MEAN), "--data.std", *map(str, STD), "--limit", "20"),
    *("--score.estimator.probes", "2", "--score.batch-size", "10", "--analyse.resamples", "20"),
    *("--simulate.chips", "1", "--simulate.adc-calibration", "4"),
)


class Run(NamedTuple):
    folder: Path
    images: Path
    network: Any
    """With the weights of the run."""
    said: str


def write_images(folder: Path) -> None:
    """Noise around a colour of each class, 8x8: 20 images a class, and a file that is none."""
    rng = np.random.default_rng(0)
    for channel, name in enumerate(reversed(CLASSES)):
        (folder / name).mkdir(parents=True)
        for number in range(20):
            pixels = rng.normal(110, 30, (8, 8, 3))
            pixels[..., channel] += rng.normal(25, 15)
            image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            image.save(folder / name / f"{number:02}.png")


def trained(images: Path) -> Any:
    """The network after a few steps on all images."""
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.default_generator.manual_seed(0)
        network = importlib.import_module("own_pets").Net()
        source = data.read(data.Chosen(whole := opened(images), np.arange(len(whole))))
        batch = data.Normalisation(MEAN, STD).apply(source.images).transpose(0, 3, 1, 2)
        inputs, labels = torch.from_numpy(batch.copy()), torch.from_numpy(source.labels).long()
        optimiser = torch.optim.Adam(network.parameters(), 0.05)
        for _ in range(40):
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(network(inputs), labels).backward()
            optimiser.step()
    return network.eval()


def opened(images: Path) -> Any:
    from jaxcurv.data.folder import open_class_folders

    return open_class_folders(images)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, common: Path) -> Iterator[Path]:
    """The current folder, with the factory's module and the images in it.

    The images are in one place for all workers: a run tells where they are.
    """
    place = tmp_path_factory.mktemp("place")
    (place / "own_pets.py").write_text(MODULE)
    (place / "own_layers.py").write_text(LAYERS)
    images = common / "own" / "pngs"
    with FileLock(common / "own.lock"):
        if not images.exists():
            write_images(images)
    (place / "pngs").symlink_to(images)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.syspath_prepend(place)
        yield place
    for name in ("own_pets", "own_layers"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def own(place: Path, common: Path) -> Run:
    """The finished run, made by one worker; the others copy it."""
    made = common / "own" / "made"
    with FileLock(common / "own.lock"):
        if not made.exists():
            torch.save(trained(place / "pngs").state_dict(), place / "weights.pth")
            given = ("--model", "own_pets:make", "--data", "pngs", "--model.weights", "weights.pth")
            said, _ = succeed("run", *given, *SMALL, "--out", "done")
            (place / "said.txt").write_text(said)
            shutil.copytree(place, made, ignore=shutil.ignore_patterns("pngs"))
    if not (place / "done").exists():
        shutil.copytree(made / "done", place / "done")
        shutil.copy2(made / "weights.pth", place)
    network = importlib.import_module("own_pets").make()
    network.load_state_dict(torch.load(place / "weights.pth"))
    return Run(place / "done", place / "pngs", network, (made / "said.txt").read_text())


@pytest.fixture
def copied(own: Run, tmp_path: Path) -> Path:
    return Path(shutil.copytree(own.folder, tmp_path / "run"))


def test_tables_name_the_images(own: Run) -> None:
    scores = pd.read_parquet(own.folder / "scores.parquet")
    assert scores["fold"].value_counts().to_dict() == {"test": 20, "validation": 6}
    assert all((own.images / path).is_file() for path in scores["path"])
    assert scores["path"].is_unique
    dataset = open_dataset(own.images)
    assert dataset.calibration is not None
    assert not set(dataset.calibration.paths) & set(scores["path"])  # type: ignore[attr-defined]
    assert scores["correct"].mean() > 0.8


def test_scores_are_those_of_the_library(own: Run) -> None:
    scores = pd.read_parquet(own.folder / "scores.parquet").query("fold == 'test'")
    test = open_dataset(own.images).test
    positions = [test.indices.tolist().index(index) for index in scores["index"]]
    source = data.Normalised(data.Chosen(test, np.array(positions)), data.Normalisation(MEAN, STD))
    expected = bridge.score(
        own.network,
        source,
        key=jax.random.key(0),
        estimators={"curvature": FiniteDifference(probes=2)},
        batch_size=10 * jax.local_device_count(),
    )
    for name in ("index", "path", "label", "prediction"):
        assert scores[name].tolist() == expected[name].tolist()
    for name in ("loss", "gradient_norm", "curvature"):
        np.testing.assert_allclose(scores[name], expected[name], rtol=1e-3, atol=1e-6)


def test_the_ideal_chip_predicts_as_the_module(own: Run) -> None:
    predictions = pd.read_parquet(own.folder / "predictions.parquet").query("fold == 'test'")
    assert predictions["profile"].unique().tolist() == list(bridge.PROFILES)
    ideal = predictions.query("profile == 'ideal'").set_index("index")["prediction"]
    test = open_dataset(own.images).test
    images = data.Normalisation(MEAN, STD).apply(data.read(test).images)
    with torch.no_grad():
        logits = own.network(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    expected = pd.Series(logits.argmax(1).numpy(), test.indices)
    assert ideal.tolist() == expected[ideal.index].tolist()
    assert predictions.query("profile == 'adc+wnoise+pcm'")["prediction"].nunique() > 1


def test_chips_flip_what_they_are_said_to(own: Run) -> None:
    flips = pd.read_parquet(own.folder / "flips.parquet")
    assert flips["probability"].between(0, 1).all()
    # The head has a parametrization, and two layers share a weight: no moments may get lost.
    arrays = bridge.weights.load_checkpoint(own.folder / "moments.safetensors").state_dict
    weights = {name.rpartition("/")[2] for name in arrays}
    convolutions = {"features.0.0.weight", "features.2.0.weight"}
    assert weights == convolutions | {"mixed.weight", "head.weight"}
    assert (flips.query("profile == 'wnoise'")["variance"] > 0).all()


def test_the_report(own: Run) -> None:
    page = (own.folder / "report.html").read_text()
    for text in (
        "own_pets:make on pngs",
        "The folder has no train and test",
        "48 are the test fold, of which 20 are scored (--limit), 6 the validation fold",
        "6 are kept apart, of which 4 set the ranges",
        *("Table I", "Failure rate by curvature decile", "Which score predicts failure"),
        *("Whether probabilities come true", "Routing fragile samples", "Most vulnerable samples"),
        f"run own --data.name {own.images.resolve()}",
    ):
        assert text in page, text
    assert "python -m experiments drift --out DIR" in page
    assert "drift PRESET" not in page
    for none_of_it in ("resnet18", "model.width", "train.epochs"):  # there is no such network
        assert none_of_it not in page
    assert "Report: done/report.html" in own.said


SHARE = (64 * 4 * 27 + 16 * 4 * 36 + 16 + 16 + 12) / (64 * 4 * 27 + 16 * 4 * 36 + 16 * 36 + 44)
"""Share of the multiply-accumulates: all but those of the depthwise convolution."""


def test_what_stays_digital_is_told_and_costs_as_such(own: Run) -> None:
    table = pd.read_csv(own.folder / "coverage.csv").set_index("layer")
    assert table["place"].to_dict() == {
        "features.0.0": "analog",
        "features.2.0": "analog",
        "depthwise": "digital",
        "mixed": "analog",
        "again": "analog",
        "head": "analog",
    }
    assert table.loc["depthwise", "reason"] == "grouped"
    baselines = pd.read_csv(own.folder / "routing_baselines.csv")
    energies = baselines.groupby("name")["energy"].unique().map(list).to_dict()
    chip = SHARE * 0.1 + (1 - SHARE) * 1.0
    assert energies == {"always analog": [pytest.approx(chip)], "always digital": [1.0]}
    page = (own.folder / "report.html").read_text()
    assert "What is on the chip" in page
    assert f"Tiles compute {100 * SHARE:.2f} % of the multiply-accumulates" in page


@pytest.mark.long
def test_a_run_from_before_coverage_stays_up_to_date(copied: Path) -> None:
    (copied / "coverage.csv").unlink()
    for name, of in (("simulate", "outputs"), ("analyse", "inputs"), ("report", "inputs")):
        path = copied / f"stages/{name}.json"
        record = {key: value for key, value in read_json(path).items() if key != "checksum"}
        del record[of]["coverage.csv"]
        write_json(path, record)
    _, said = succeed("run", "--out", copied)
    for stage in ("simulate", "analyse", "report"):
        assert f"{stage}: up to date" in said
    _, said = succeed("analyse", "own", "--out", copied, "--analyse.tolerance", "0.02")
    assert "analyse: up to date" not in said
    baselines = pd.read_csv(copied / "routing_baselines.csv").set_index("name")
    assert set(baselines.loc["always analog", "energy"]) == {0.1}
    succeed("report", "--out", copied, "--analyse.tolerance", "0.02")
    assert "What is on the chip" not in (copied / "report.html").read_text()


def test_later_commands_need_the_folder_alone(copied: Path) -> None:
    _, said = succeed("run", "--out", copied)
    for stage in ("score", "export", "moments", "flips", "simulate", "analyse", "report"):
        assert f"{stage}: up to date" in said
    assert "calls own_pets:make, to see whether its network has changed" in said
    few = ("--out", copied, "--layers.limit", "10", "--layers.images", "4")
    printed, _ = succeed("layers", *few)
    assert "features.0.0" in printed
    assert "head" in printed
    times = ("--drift.times", "0", "20", "--drift.chips", "1", "--drift.limit", "10")
    succeed("drift", *times, "--out", copied)
    assert (copied / "drift/drift.png").exists()
    _, said = succeed("report", "--out", copied, "--dry-run")
    assert "drift/drift.png is new" in said


def test_other_weights_and_other_code_run_it_again(copied: Path, place: Path, own: Run) -> None:
    before = read_json(copied / "stages/train.json")["outputs"]
    state_dict = {name: 1.5 * one for name, one in own.network.state_dict().items()}
    torch.save(state_dict, place / "others.pth")
    succeed("train", "--out", copied, "--model.weights", "others.pth")
    after = read_json(copied / "stages/train.json")["outputs"]
    assert before.keys() == after.keys()
    assert set(after) == {"model.json", "network.safetensors", "network_logits.json"}
    assert before != after
    _, said = succeed("run", "--out", copied, "--dry-run")
    assert "if train comes out different" in said
    _, said = succeed("export", "--out", copied, "--dry-run")
    assert "network.safetensors has changed" in said


def test_code_that_has_changed_is_not_run_for_earlier_results(copied: Path, place: Path) -> None:
    file = place / "own_layers.py"
    try:
        file.write_text(f"{LAYERS}\n# changed")
        said = refuse("layers", "--out", copied)
        assert "code of own_pets:make is not what train saw (own_layers changed)" in said
        before = read_json(copied / "stages/train.json")["outputs"]
        succeed("train", "--out", copied)
        after = read_json(copied / "stages/train.json")["outputs"]
        assert before["model.json"] != after["model.json"]
        assert before["network.safetensors"] == after["network.safetensors"]
    finally:
        file.write_text(LAYERS)


@pytest.fixture
def gain(place: Path) -> Iterator[Path]:
    """A file that the factory reads, which is neither weights nor code; there is none yet."""
    file = place / "gain.txt"
    yield file
    file.unlink(missing_ok=True)


def test_other_logits_of_the_same_weights_and_code_run_it_again(copied: Path, gain: Path) -> None:
    before = read_json(copied / "stages/train.json")["outputs"]
    succeed("train", "--out", copied)
    assert read_json(copied / "stages/train.json")["outputs"] == before
    gain.write_text("3.0")
    for command in ("layers", "rank-correlation"):
        said = refuse(command, "--out", copied)
        assert "own_pets:make has other logits than when train called it, with the same w" in said
    succeed("train", "--out", copied)
    after = read_json(copied / "stages/train.json")["outputs"]
    assert before["network.safetensors"] == after["network.safetensors"]
    assert all(before[name] != after[name] for name in ("model.json", "network_logits.json"))
    for stage in ("score", "export"):
        _, said = succeed(stage, "own", "--out", copied, "--dry-run")
        assert "network_logits.json has changed" in said
    succeed("export", "--out", copied)
    _, said = succeed("simulate", "own", "--out", copied, "--dry-run")
    assert "weights.safetensors has changed" in said


@pytest.mark.long
def test_a_run_from_before_logits_were_kept_stays_up_to_date(copied: Path, gain: Path) -> None:
    (copied / "network_logits.json").unlink()
    model = read_json(copied / "model.json")
    del model["logits"]
    digest = sha256(write_json(copied / "model.json", model))
    for path in (copied / "stages").glob("*.json"):
        record = read_json(path)
        for which in ("inputs", "outputs"):
            record[which].pop("network_logits.json", None)
            if "model.json" in record[which]:
                record[which]["model.json"] = digest
        write_json(path, record)
    _, said = succeed("run", "--out", copied)
    for stage in ("score", "export", "moments", "flips", "simulate", "analyse", "report"):
        assert f"{stage}: up to date" in said
    assert read_json(copied / "model.json") == model
    succeed("train", "--out", copied)
    assert read_json(copied / "model.json") == model
    gain.write_text("3.0")  # which counts from the logits on that were kept since
    assert "has other logits" in refuse("layers", "--out", copied)
    succeed("train", "--out", copied)
    for stage in ("score", "export"):
        _, said = succeed(stage, "own", "--out", copied, "--dry-run")
        assert "model.json has changed" in said


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("--model nowhere:make --data pngs", "cannot import nowhere"),
        ("--model own_pets:nothing --data pngs", "has no function nothing"),
        ("--model own_pets --data pngs", "must be package.module:factory"),
        ("--model own_pets:in_training --data pngs", "is in training mode"),
        ("--model own_pets:of_four_classes --data pngs", "tells 4 classes apart, pngs has 3"),
        ("--model own_pets:drawn --data pngs", "made two networks whose logits differ"),
        ("--model own_pets:gray --data pngs", "images of 8x8 pixels and 3 channels"),
        ("--model own_pets:without_layers --data pngs", "no Conv2d or Linear layer"),
        ("--model own_pets:make --data nowhere", "there is no folder nowhere"),
        ("--model own_pets:make --data empty", "has no class folders"),
        ("--model own_pets:make --data few", "cannot fill 10 bins"),
        ("--model own_pets:make", "give --model PACKAGE.MODULE:FACTORY and --data FOLDER"),
        ("--data pngs", "give --model PACKAGE.MODULE:FACTORY and --data FOLDER"),
        ("own", "give --model PACKAGE.MODULE:FACTORY and --data FOLDER"),
        ("--model", "needs a value"),
        ("--model own_pets:make --data pngs --model.weights no.pth", "no checkpoint at no.pth"),
        ("--model own_pets:make --data pngs --data.mean 0.5 --data.std 0.5", "1 channels"),
        ("digits --data.name /nowhere", "--data.name /nowhere is a path"),
        ("--model own_pets:make --data messy --data.strict", "the first is red/notes.docx"),
    ],
)
def test_refusals_come_first(place: Path, tmp_path: Path, given: str, why: str) -> None:
    (place / "empty").mkdir(exist_ok=True)
    if not (place / "few").exists():
        for name in CLASSES:
            (place / "few" / name).mkdir(parents=True)
            for number in range(3):
                source = place / "pngs" / name / f"{number:02}.png"
                shutil.copy(source, place / "few" / name)
        shutil.copytree(place / "few", place / "messy")
        (place / "messy/red/notes.docx").touch()
    said = refuse("run", *given.split(), "--data.validation-fraction", "0.2", "--out", tmp_path)
    assert why in said
    assert "Traceback" not in said
    assert not (tmp_path / "scores.parquet").exists()


def test_other_weights_are_named(place: Path, tmp_path: Path) -> None:
    torch.save({"head.weight": torch.zeros(3, 4)}, place / "odd.pth")
    given = ("--model", "own_pets:make", "--data", "pngs", "--model.weights", "odd.pth")
    said = refuse("train", *given, "--out", tmp_path)
    assert "odd.pth holds other weights than the network has" in said


def test_a_file_of_a_network_parts_of_which_were_in_a_wrapper_fits() -> None:
    def network() -> torch.nn.Sequential:
        part = torch.nn.Sequential(torch.nn.Linear(2, 3))
        return torch.nn.Sequential(part, torch.nn.Linear(3, 2))

    plain, wrapped = network(), network()
    wrapped[0] = torch.nn.DataParallel(wrapped[0])
    load_weights_into(plain, wrapped.state_dict(), "weights.pth")
    x = torch.ones(1, 2)
    torch.testing.assert_close(plain(x), wrapped(x), rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"weights\.pth holds other weights"):
        load_weights_into(plain, {"0.1.weight": torch.ones(3, 2)}, "weights.pth")
