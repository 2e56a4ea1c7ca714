"""A network in JAX and a folder of images: from factory to report, without torch or chips."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from jaxcurv import FiniteDifference, data, score_dataset
from jaxcurv.costs import forward_passes
from jaxcurv.data.datasets import open_dataset
from jaxcurv.storage.checksums import read_json
from tests.conftest import ROOT
from tests.one_process import refuse, succeed

CLASSES = ("blue", "green", "red")
MODULE = """
import jax, jax.numpy as jnp, numpy as np
from flax import nnx
import own_weights

class LeNet(nnx.Module):
    def __init__(self, seed=0):
        rngs = nnx.Rngs(seed)
        self.conv1 = nnx.Conv(3, 6, (5, 5), rngs=rngs)
        self.conv2 = nnx.Conv(6, 8, (5, 5), padding="VALID", rngs=rngs)
        self.fc1 = nnx.Linear(32, 16, rngs=rngs)
        self.fc2 = nnx.Linear(16, 3, rngs=rngs)

    def __call__(self, images):
        features = nnx.avg_pool(nnx.relu(self.conv1(images)), (2, 2), (2, 2))
        features = nnx.avg_pool(nnx.relu(self.conv2(features)), (2, 2), (2, 2))
        return self.fc2(nnx.relu(self.fc1(features.reshape(len(images), -1))))

def lenet():
    return LeNet()

def kernels(scale=own_weights.SCALE):
    rng = np.random.default_rng(0)
    colours = np.array([[-1, -1, 1], [-1, 1, -1], [1, -1, -1]], np.float32)
    return {"colours": scale * colours.T, "bent": rng.normal(size=(3, 3)).astype(np.float32)}

def logits(params, images):
    mean = images.mean((1, 2))
    return mean @ params["colours"] + 0.3 * jnp.tanh(4 * mean @ params["bent"])

def pair():
    return logits, kernels()

def function():
    held = kernels()
    return lambda images: logits(held, images)

def as_torch():
    from torch import nn
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3)).eval()

def drawn():
    held = kernels(np.random.default_rng().uniform(1, 9))
    return lambda images: logits(held, images)

def unused():
    return logits, kernels() | {"unused": np.random.default_rng().uniform(size=3)}

def mixing():
    return lambda images: logits(kernels(), images - images.mean(0))

def of_two_classes():
    return lambda images: logits(kernels(), images)[:, :2]

def failing():
    return lambda images: images @ np.ones((1, 3), np.float32)

def text():
    return "no network"
"""
SMALL = (
    *("--data", "pngs", "--data.validation-fraction", "0.2", "--limit", "20"),
    *("--score.estimator.probes", "2", "--score.batch-size", "10"),
)


class Run(NamedTuple):
    folder: Path
    images: Path
    told: str
    printed: str


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The current folder, with the factories' modules and the images in it."""
    place = tmp_path_factory.mktemp("place")
    (place / "own_jax.py").write_text(MODULE)
    (place / "own_weights.py").write_text("SCALE = 8.0\n")
    rng = np.random.default_rng(0)
    for channel, name in enumerate(reversed(CLASSES)):
        (place / "pngs" / name).mkdir(parents=True)
        for number in range(16):
            pixels = rng.normal(110, 30, (16, 16, 3))
            pixels[..., channel] += rng.normal(12, 15)
            image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            image.save(place / "pngs" / name / f"{number:02}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.syspath_prepend(place)
        yield place
    _forget()


WITHOUT_TORCH = """
import sys

hidden = sys.argv.pop(1).split(",")

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name in hidden:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NotInstalled())
from experiments.cli import commands
from tests.conftest import ROOT
from tests.one_process import stages_in_this_process
with stages_in_this_process():
    sys.exit(commands.run(sys.argv[1:]))
"""


def without_torch(
    place: Path, *arguments: str, hidden: str = "torch,aihwkit,safetensors"
) -> subprocess.CompletedProcess[str]:
    path = f"import sys; sys.path[:0] = [{str(ROOT)!r}]"
    return subprocess.run(
        [sys.executable, "-c", f"{path}\n{WITHOUT_TORCH}", hidden, *arguments],
        cwd=place,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def own(place: Path) -> Run:
    """A finished run of a pair, in a process in which torch cannot be imported."""
    given = ("--model", "own_jax:pair", *SMALL, "--score.compare", "gauss_newton")
    found = without_torch(place, "run", *given, "--out", "done")
    assert found.returncode == 0, found.stderr
    return Run(place / "done", place / "pngs", found.stderr, found.stdout)


@pytest.fixture
def copied(own: Run, tmp_path: Path) -> Path:
    return Path(shutil.copytree(own.folder, tmp_path / "run"))


def test_what_is_missing_is_said_before_the_scores(own: Run) -> None:
    said = own.told
    assert "left out: export, moments, flips, simulate; in the report Table I, failure" in said
    assert "overlap, drift, what is on the chip, the most vulnerable samples; for what" in said
    assert "own_jax:pair returns is computed in JAX and has no" in said
    assert "for chips in JAX, of the same kind, give --simulate.engine jax; for AIHWKit's" in said
    assert "bridge.to_torch(model, into=module" in said
    assert said.index("left out:") < said.index("score")
    assert said.count("left out:") == 1
    assert "of the 20 test samples right" in own.printed
    assert "Report: done/report.html" in own.printed


def test_scores_are_those_of_the_library(own: Run) -> None:
    import own_jax  # type: ignore[import-not-found]

    scores = pd.read_parquet(own.folder / "scores.parquet")
    assert set(scores["fold"]) == {"test", "validation"}
    assert all((own.images / path).is_file() for path in scores["path"])
    assert {"gauss_newton", "curvature_label_free"} <= set(scores)
    scores = scores[scores["fold"] == "test"]
    test = open_dataset(own.images, held_out=0.2).test
    positions = [test.indices.tolist().index(index) for index in scores["index"]]
    pixels = data.Normalisation((0.0,) * 3, (1.0,) * 3)
    function, params = own_jax.pair()
    expected = score_dataset(
        function,
        data.Normalised(data.Chosen(test, np.array(positions)), pixels),
        params=params,
        key=jax.random.key(0),
        estimators={"curvature": FiniteDifference(probes=2)},
    )
    for name in ("index", "path", "label", "prediction"):
        assert scores[name].tolist() == expected[name].tolist()
    np.testing.assert_allclose(scores["curvature"], expected["curvature"], rtol=1e-3)
    assert 0.5 < scores["correct"].mean() < 1


def test_tables_say_what_they_can(own: Run) -> None:
    scores = pd.read_parquet(own.folder / "scores.parquet").query("fold == 'test'")
    right = scores[scores["correct"]].sort_values("curvature", ascending=False)
    highest = pd.read_parquet(own.folder / "highest.parquet")
    assert highest["path"].tolist() == right["path"].tolist()
    classes = pd.read_csv(own.folder / "per_class.csv").set_index("label")
    assert classes["samples"].sum() == 20
    assert classes["digital_accuracy"][2] == scores[scores["label"] == 2]["correct"].mean()
    deciles = pd.read_csv(own.folder / "score_deciles.csv").query("fold == 'test'")
    assert deciles["samples"].tolist() == [2] * 10
    assert deciles["high"].iloc[-1] == pytest.approx(scores["curvature"].max())
    costs = pd.read_csv(own.folder / "score_costs.csv").set_index("predictor")
    curvature = forward_passes(FiniteDifference(probes=2), classes=3)
    assert costs["forward_passes"][["curvature", "loss"]].tolist() == [curvature, 1]
    assert costs["spearman"]["curvature"] == pytest.approx(1)
    accuracy = pd.read_csv(own.folder / "accuracy.csv").set_index("fold")
    assert accuracy["digital_accuracy"]["test"] == scores["correct"].mean()
    assert list(accuracy.index) == ["validation", "test", "pooled"]
    assert not (own.folder / "predictions.parquet").exists()
    assert "torch" not in read_json(own.folder / "stages/train.json")["versions"]


def test_the_report(own: Run) -> None:
    text = (own.folder / "report.html").read_text()
    assert "python -m experiments analyse own --out DIR" in text
    assert "python -m experiments report --out DIR" in text
    for part in (
        "own_jax:pair on pngs",
        "has no PyTorch counterpart",
        "these sections are missing: Table I",
        "bridge.to_torch(model, into=module",
        "No chip was simulated here",
        *("Samples of highest curvature", "Gallery", "Classes", "What each score takes"),
    ):
        assert part in text, part
    for part in ("As the chips age", "converter", "routing thresholds", "wnoise"):
        assert part not in text, part
    sections = set(re.findall('<h3 id="([a-z-]+)"', text))
    assert sections == {
        *("scores", "gallery", "highest", "classes", "folds"),
        *("words", "reproduce", "settings", "environment"),
    }
    assert re.findall("<h2>(.*?)</h2>", text) == ["Where curvature is high", "Details"]
    first = pd.read_parquet(own.folder / "highest.parquet")["path"].iloc[0]
    assert first in text


def test_later_commands(copied: Path) -> None:
    _, said = succeed("run", "--out", copied)
    assert "calls own_jax:pair, to see whether its network has changed" in said
    for stage in ("score", "analyse", "report"):
        assert f"{stage}: up to date" in said
    assert said.count("left out: export, moments, flips, simulate") == 1
    _, said = succeed("report", "--out", copied)
    assert "left out" not in said


def test_the_test_fold_alone(copied: Path) -> None:
    succeed("run", "--out", copied, "--folds", "test")
    scores = pd.read_parquet(copied / "scores.parquet")
    assert set(scores["fold"]) == {"test"}
    text = (copied / "report.html").read_text()
    assert f"of which {len(scores)} are scored (--limit), the validation fold is left out" in text


def test_rescore_without_chips(copied: Path) -> None:
    printed, _ = succeed("rescore", "--out", copied, "--rescore.probes", "--rescore.steps")
    assert "No failure rates" in printed
    assert "TensorFloat-32 is left out: a network of your own is a function" in printed
    table = pd.read_csv(copied / "rescore/variants.csv").set_index("variant")
    assert table["rho"]["shipped"] == pytest.approx(1)
    assert table["rho"]["recomputed"] > 0.99
    assert not [name for name in table if name.startswith("d1_of")]
    assert (copied / "rescore/rescore.png").stat().st_size > 500


@pytest.mark.parametrize("study", ["drift", "layers", "compare-noise", "simulate", "flips"])
def test_what_needs_chips_is_refused_before_any_work(own: Run, study: str) -> None:
    said = refuse(study, "--out", own.folder)
    assert f"error: {study} needs chips: what own_jax:pair returns is computed in JAX" in said
    assert len(said.strip().splitlines()) == 1
    assert not (own.folder / study).exists()


def test_other_weights_run_it_again(copied: Path, place: Path) -> None:
    file = place / "own_weights.py"
    before = read_json(copied / "stages/train.json")["outputs"]
    _, said = succeed("train", "--out", copied)
    assert read_json(copied / "stages/train.json")["outputs"] == before
    try:
        file.write_text("SCALE = 8.5\n")
        _forget()
        said = refuse("rank-correlation", "--out", copied)
        assert "code of own_jax:pair is not what train saw (own_weights changed)" in said
        succeed("train", "--out", copied)
        after = read_json(copied / "stages/train.json")["outputs"]
        assert all(before[name] != after[name] for name in ("model.json", "network.json"))
        _, said = succeed("score", "own", "--out", copied, "--dry-run")
        assert "network.json has changed" in said
    finally:
        file.write_text("SCALE = 8.0\n")
        _forget()


def _forget() -> None:
    """The factory's modules are imported anew, as in another process."""
    for name in ("own_jax", "own_weights"):
        sys.modules.pop(name, None)


def test_weights_of_another_call_are_refused(copied: Path) -> None:
    path = copied / "network.json"
    kept = read_json(path)
    from jaxcurv.storage.checksums import write_json

    write_json(path, kept | {"logits": (1.1 * np.array(kept["logits"])).tolist()})
    said = refuse("rank-correlation", "--out", copied)
    assert "the network of own_jax:pair has other logits than when train called it" in said


@pytest.mark.parametrize("factory", ["lenet", "function"])
def test_other_kinds_of_networks(place: Path, tmp_path: Path, factory: str) -> None:
    given = ("--model", f"own_jax:{factory}", *SMALL, "--out", tmp_path)
    _, said = succeed("run", *given, "--dry-run")
    assert f"not run yet, only if own_jax:{factory} returns a torch module" in said
    assert not (tmp_path / "model.json").exists()
    succeed("train", *given)
    succeed("score", "own", "--out", tmp_path)
    import own_jax  # type: ignore[import-not-found]

    kept = read_json(tmp_path / "network.json")["logits"]
    dataset = open_dataset(place / "pngs", held_out=0.2)
    images = data.read(dataset.test, range(4)).images / np.float32(255)
    np.testing.assert_allclose(getattr(own_jax, factory)()(images), kept, rtol=1e-3, atol=1e-4)
    scores = pd.read_parquet(tmp_path / "scores.parquet")
    assert len(scores) == 30
    assert (scores["curvature"] > 0).all()


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("own_jax:drawn", "made two networks whose logits differ: fix its seed"),
        ("own_jax:mixing", "the model mixes the samples of a batch"),
        ("own_jax:of_two_classes", "tells 2 classes apart, pngs has 3"),
        ("own_jax:failing", "fails on float32 images (2, 16, 16, 3)"),
        ("own_jax:failing", "--data.image-size resizes images"),
        ("own_jax:unused", "made two networks whose parameters differ: fix its seed"),
        ("own_jax:text", "must return a torch module, an NNX module, a function images"),
        ("own_jax:pair --model.weights w.pth", "is for a torch module, and own_jax:pair returns"),
    ],
)
def test_refusals_come_first(place: Path, tmp_path: Path, given: str, why: str) -> None:
    said = refuse("run", "--model", *given.split(), *SMALL, "--out", tmp_path)
    assert why in said
    assert "Traceback" not in said
    assert not (tmp_path / "scores.parquet").exists()


def test_a_torch_module_in_its_place_has_chips(copied: Path) -> None:
    _, said = succeed("run", "--model", "own_jax:as_torch", "--out", copied, "--dry-run")
    assert "if own_jax:as_torch returns a torch module" in said
    assert "left out" not in said
    succeed("train", "--model", "own_jax:as_torch", "--out", copied)
    _, said = succeed("run", "--out", copied, "--dry-run")
    assert re.search("simulate +not run yet\n", said)
    assert "left out" not in said
    assert "torch" in read_json(copied / "stages/train.json")["versions"]
    for name in ("network.json", "accuracy.csv", "highest.parquet", "figures/gallery_digital.png"):
        assert not (copied / name).exists()


def test_a_folder_of_chips_is_kept_for_them(place: Path, tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").touch()
    said = refuse("run", "--model", "own_jax:pair", *SMALL, "--out", tmp_path)
    assert "holds the chips of a torch module" in said
    assert "choose another folder with --out" in said
