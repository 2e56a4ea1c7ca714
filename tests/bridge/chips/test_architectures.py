"""Networks as people write them: chips give the right values, on both engines."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bridge import PROFILES, Profile, Router, predict, program
from bridge.chips import ADC, clipped_share, layer_report, output_noise
from tests.chips import noisy, small_resnet

FINE = Profile(ADC(22))
IMAGES = np.random.default_rng(3).normal(size=(6, 12, 12, 3)).astype(np.float32)


class LeNet(nn.Module):
    """`view` needs features that lie as in plain PyTorch."""

    def __init__(self, channels: int = 3, filters: int = 4):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, filters, 3)
        self.conv2 = nn.Conv2d(filters, 6, 3)
        self.fc = nn.Linear(54, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.max_pool2d(self.conv1(x).relu(), 2)
        x = self.conv2(x).relu()
        return self.fc(x.view(x.size(0), -1))


class ChannelGroups(nn.Module):
    """Other uses of `view` than to flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3, stride=2), nn.Linear(25, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        shuffled = x.view(len(x), 2, 4, 5, 5).transpose(1, 2).contiguous().view(len(x), 8, 25)
        return self.fc(shuffled).view(-1, 8, 5).sum(1)


def without_convolution() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(432, 8), nn.ReLU(), nn.Linear(8, 5))


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, 2, -1).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1)).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(x.shape))


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.scale = Attention(width), nn.Parameter(torch.full((width,), 0.5))
        self.mlp = nn.Sequential(nn.Linear(width, 16), nn.GELU(), nn.Linear(16, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.scale * self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.positions = nn.Parameter(torch.randn(1, 10, 8))
        self.block, self.norm, self.head = block, nn.LayerNorm(8), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.positions
        return self.head(self.norm(self.block(x))[:, 0])


def encoder(**settings: Any) -> nn.Module:
    return nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, **settings)


def transformer() -> nn.Module:
    return ViT(nn.TransformerEncoder(encoder(), 2, enable_nested_tensor=False))


NETWORKS = {
    "LeNet": LeNet,
    "LeNet of gray images": lambda: LeNet(channels=1),
    "LeNet of one filter": lambda: LeNet(filters=1),
    "channel groups": ChannelGroups,
    "resnet": lambda: small_resnet(width=4),
    "perceptron": without_convolution,
    "ViT": lambda: ViT(Block(8)),
    "encoder layer": lambda: ViT(encoder()),
    "encoder layer, norm first": lambda: ViT(encoder(norm_first=True, activation="gelu")),
    "encoder": transformer,
}


def made(name: str) -> tuple[nn.Module, np.ndarray, list[str]]:
    """A network, its images, and what of it has to stay digital."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = NETWORKS[name]().eval().requires_grad_(False)
    digital = [
        path
        for path, layer in model.named_modules()
        if isinstance(layer, nn.LayerNorm | nn.MultiheadAttention)
    ]
    return model, IMAGES[..., :1] if "gray" in name else IMAGES, digital


def rows(images: np.ndarray) -> list[dict[str, Any]]:
    return [{"image": image, "label": n % 5, "index": n} for n, image in enumerate(images)]


def logits(one: Any, images: np.ndarray, **settings: Any) -> np.ndarray:
    return np.stack(predict(one, rows(images), **settings)["logits"].to_numpy())


def off(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("engine", ["fast", "aihwkit"])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_as_they_are_written(name: str, engine: Any) -> None:
    model, images, digital = made(name)
    tensor = torch.tensor(images.transpose(0, 3, 1, 2).copy())
    with torch.inference_mode():
        expected = model(tensor).numpy()
    assert off(logits(model, images, batch_size=4), expected) < 1e-5
    for profile in (PROFILES["ideal"], FINE):
        settings = {"engine": engine, "digital_layers": digital, "calibration": images}
        chip = program(model, profile, seed=0, **settings)
        assert off(logits(chip, images, batch_size=4), expected) < 1e-4
        assert off(chip(tensor, range(6)).numpy(), expected) < 1e-4
        router = Router(model, chip, threshold=np.inf)
        assert off(router(images).logits, expected) < 1e-4
    assert max(clipped_share(chip, images).values()) <= 0.05  # the largest itself
    assert (layer_report(chip, model, images)["snr_db"] > 60).all()
    chip = program(model, noisy("constant"), seed=0, digital_layers=digital, engine=engine)
    assert 1e-4 < off(logits(chip, images), expected) < 0.5


def test_real_faults_of_size_are_told_as_such() -> None:
    model, images, _ = made("LeNet")
    with pytest.raises(ValueError, match=r"fails on images of 3 channels, 11 by 12 pixels"):
        predict(model, rows(images[:, :11]))
    with pytest.raises(ValueError, match=r"fails on images of 3 channels, 11 by 12 pixels"):
        program(model, FINE, seed=0, calibration=images[:, :11])


class Reshaped(LeNet):
    """`LeNet` with `reshape`, which takes features however they lie."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.max_pool2d(self.conv1(x).relu(), 2)
        return self.fc(self.conv2(x).relu().reshape(len(x), -1))


def pair() -> list[nn.Module]:
    viewing, reshaping = made("LeNet")[0], Reshaped().eval().requires_grad_(False)
    reshaping.load_state_dict(viewing.state_dict())
    return [viewing, reshaping]


@pytest.mark.parametrize("engine", ["fast", "aihwkit"])
@pytest.mark.parametrize("profile", [Profile(ADC(8, range=40.0)), PROFILES["pcm"]])
def test_the_report_of_a_network_that_needs_contiguous_features(
    profile: Profile, engine: Any
) -> None:
    """Its passes are not counted twice when the first one shows what the network needs."""
    lying = torch.tensor(IMAGES).permute(0, 3, 1, 2)
    for images in (lying, IMAGES):
        found, expected = (
            layer_report(program(one, profile, seed=0, engine=engine), one, images)
            for one in pair()
        )
        assert list(found["layer"]) == ["conv1", "conv2", "fc"]
        columns = ["snr_db", "own_snr_db"]
        np.testing.assert_allclose(found[columns], expected[columns], atol=1e-3)


def test_the_noise_of_outputs_of_a_network_that_needs_contiguous_features() -> None:
    profile = Profile(ADC(6, range=20.0))
    found, expected = (output_noise(one, profile, rows(IMAGES), batch_size=4) for one in pair())
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    with pytest.raises(ValueError, match="fails on images of 3 channels, 6 by 12 pixels"):
        output_noise(pair()[0], profile, rows(IMAGES[:, :6]))


def test_routed_samples_of_a_network_that_needs_contiguous_features() -> None:
    viewing, reshaping = pair()
    images = torch.tensor(IMAGES).permute(0, 3, 1, 2)
    chip = program(viewing, PROFILES["pcm"], seed=0)
    for score, threshold in (("margin", -np.inf), ({n: n for n in range(6)}, 3)):
        found = Router(viewing, chip, threshold, score)(images, range(6))
        with torch.inference_mode():
            expected = reshaping(images).numpy()
        np.testing.assert_allclose(
            found.logits[found.routed], expected[found.routed], rtol=1e-4, atol=1e-5
        )
