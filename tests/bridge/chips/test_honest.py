"""Honest networks, as people write them, that chips must not refuse: right values on both engines."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bridge import PROFILES, Profile, predict, program, weight_moments
from bridge.chips import ADC, WeightNoise, layer_failures, layer_report, load_chip, save_chip
from bridge.chips.tiles import named_layers
from tests.chips import noisy

FINE = Profile(ADC(22))
WEAK = Profile(wnoise=WeightNoise(1e-6, drawn="per_mvm"))
ROUTES: list[tuple[Profile, Any]] = [
    (PROFILES["ideal"], "fast"),
    (FINE, "fast"),
    (WEAK, "fast"),
    (FINE, "aihwkit"),
]
IMAGES = np.random.default_rng(3).normal(size=(6, 8, 8, 3)).astype(np.float32)
TENSOR = torch.tensor(IMAGES.transpose(0, 3, 1, 2).copy())
SAMPLES = (IMAGES, np.arange(6) % 5)
STRONG = noisy("constant", 0.1)


def made(kind: Callable[[], nn.Module]) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return kind().eval().requires_grad_(False)


def logits(chip: Any, batch_size: int = 6) -> np.ndarray:
    return np.stack(predict(chip, SAMPLES, batch_size=batch_size)["logits"])


def off(found: Any, expected: torch.Tensor) -> float:
    return float((torch.as_tensor(found) - expected).abs().max() / expected.abs().max())


def require_right(model: nn.Module, digital_layers: list[str] | None = None) -> None:
    """The digital values on every route, alone and in a batch, under strong noise too."""
    expected = deepcopy(model)(TENSOR)
    settings: dict[str, Any] = {"seed": 0, "digital_layers": digital_layers or []}
    for profile, engine in ROUTES:
        images = None if profile.adc is None else IMAGES
        chip = program(model, profile, calibration=images, engine=engine, **settings)
        assert off(logits(chip), expected) < 1e-4
    chip = program(model, STRONG, **settings)
    together = logits(chip)
    assert off(together, expected) > 1e-3
    for batch_size in (1, 2, 4):
        np.testing.assert_allclose(logits(chip, batch_size), together, rtol=1e-3, atol=1e-5)


class Shared(nn.Module):
    """Layers and a block of several names, in digital and on tiles."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.act = nn.BatchNorm2d(6), nn.ReLU()
        self.norm.running_mean = torch.randn(6)
        self.conv, self.mix = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, padding=1)
        block = nn.Sequential(nn.Conv2d(6, 6, 1), self.norm, self.act)
        self.blocks = nn.ModuleList([block, block, nn.Sequential(self.mix, self.norm)])
        self.scale = nn.LayerNorm(6)
        self.heads = nn.ModuleDict({"scale": self.scale, "fc": nn.Linear(6, 5)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.norm(self.mix(self.conv(x))))
        for block in self.blocks:
            x = x + block(x)
        return self.heads["fc"](self.scale(self.heads["scale"](x.mean((2, 3)))))


@pytest.mark.parametrize("name", ["scale", "heads.scale"])
def test_layers_may_have_several_names(name: str) -> None:
    require_right(made(Shared), [name])


@pytest.mark.parametrize("engine", ["fast", "aihwkit"])
def test_a_layer_of_several_names_is_one_on_the_chip(engine: Any, tmp_path: Any) -> None:
    model = made(Shared)
    settings: dict[str, Any] = {"seed": 0, "engine": engine, "digital_layers": ["scale"]}
    chip = program(model, PROFILES["pcm"], **settings)
    assert list(named_layers(chip.analog)) == ["conv", "mix", "blocks.0.0", "heads.fc"]
    assert chip.executable.network.mix is chip.executable.network.blocks[2][0]
    assert chip.executable.network.blocks[0] is chip.executable.network.blocks[1]
    save_chip(tmp_path / "chip", chip)
    np.testing.assert_array_equal(logits(load_chip(tmp_path / "chip", model)), logits(chip))
    left = program(model, PROFILES["pcm"], **settings | {"digital_layers": ["scale", "blocks.2"]})
    assert list(named_layers(left.analog)) == ["conv", "blocks.0.0", "heads.fc"]
    torch.testing.assert_close(left.analog.mix.weight, model.mix.weight)


def test_reports_of_layers_of_several_names() -> None:
    model = made(Shared)
    chip = program(model, PROFILES["pcm"], seed=0, digital_layers=["scale"])
    table = layer_report(chip, model, IMAGES)
    assert set(table["layer"]) == {"conv", "mix", "blocks.0.0", "heads.fc"}
    assert (table["snr_db"] < 60).all()
    failures = layer_failures(model, PROFILES["pcm"], SAMPLES, digital_layers=["scale"])
    assert len(failures) == 5
    moments = weight_moments(model, PROFILES["pcm"], chips=2, digital_layers=["scale"])
    assert moments["mix.weight"].mean.abs().max() > 0
    assert moments["blocks.2.0.weight"] is moments["mix.weight"]
    assert moments["blocks.1.0.weight"] is moments["blocks.0.0.weight"]
