"""A ViT, a MobileNet, a ConvNeXt and a keyword spotter: from the factory to the report."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from tests.one_process import succeed
from tests.torch_networks import CLASSES

pytestmark = pytest.mark.long

MODULE = """
import torch
from torch import nn
from tests.torch_networks import ConvNeXt, Vit, keyword_spotting, mobilenet_v2, randomised

class Signal(nn.Module):
    def forward(self, images):
        return images.mean(1).flatten(1)[:, None]

def made(network):
    def factory():
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.default_generator.manual_seed(0)
            made = randomised(network())
            *_, last = (layer for layer in made.modules() if isinstance(layer, nn.Linear))
            last.bias -= made(4 * torch.rand(64, 3, 16, 16) - 2).mean(0)  # no class wins always
        return made
    return factory

vit = made(Vit)
mobilenet = made(mobilenet_v2)
convnext = made(ConvNeXt)
spotter = made(lambda: nn.Sequential(Signal(), keyword_spotting()))
"""
SMALL = (
    *("--data.mean", "0.5", "0.5", "0.5", "--data.std", "0.25", "0.25", "0.25"),
    *("--score.estimator.probes", "2", "--score.batch-size", "10", "--analyse.resamples", "20"),
    *("--simulate.chips", "2", "--simulate.adc-calibration", "8"),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The current folder, with the factories."""
    place = tmp_path_factory.mktemp("kinds")
    (place / "kinds.py").write_text(MODULE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.syspath_prepend(place)
        yield place
    sys.modules.pop("kinds", None)


def write_images(folder: Path, network: torch.nn.Module) -> None:
    """Coloured patches, 16x16, in the folder of the class that the network takes them for.

    The first image of each class is one of any.
    """
    rng = np.random.default_rng(0)
    colours = rng.uniform(0, 255, (120, 1, 1, 3))
    patches = rng.uniform(0, 255, (120, 4, 4, 3)).repeat(4, 1).repeat(4, 2)
    pixels = ((colours + patches) / 2).astype(np.uint8)
    inputs = torch.from_numpy((pixels / 255.0 - 0.5).transpose(0, 3, 1, 2) / 0.25).float()
    with torch.inference_mode():
        labels = network(inputs).argmax(1).numpy()
    labels[:CLASSES] = np.arange(CLASSES)
    for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / str(label) / f"{number:03}.png")


@pytest.mark.parametrize(
    ("name", "reasons"),
    [
        ("vit", {"two activations"}),
        ("mobilenet", {"grouped"}),
        ("convnext", {"grouped"}),
        ("spotter", {"grouped"}),
    ],
)
@pytest.mark.filterwarnings(r"ignore:.*\(grouped\)")
def test_from_the_factory_to_the_report(place: Path, name: str, reasons: set[str]) -> None:
    import kinds  # type: ignore[import-not-found]

    images = place / f"{name}_images"
    write_images(images, getattr(kinds, name)())
    run = place / name
    succeed("run", "--model", f"kinds:{name}", "--data", images, *SMALL, "--out", run)
    scores = pd.read_parquet(run / "scores.parquet")
    assert scores["correct"].mean() > 0.8  # the labels are the network's own
    coverage = pd.read_csv(run / "coverage.csv")
    assert set(coverage["reason"].dropna()) == reasons
    assert (coverage["place"] == "analog").sum() > 1
    predictions = pd.read_parquet(run / "predictions.parquet")
    assert predictions["chip"].nunique() == 2
    failed = predictions[~predictions["correct"]].groupby("profile").size()
    assert failed["adc+wnoise+pcm"] > failed["ideal"]
    assert "What fails" in (run / "report.html").read_text()
    assert (run / "figures" / "figure_one.png").stat().st_size > 1000
