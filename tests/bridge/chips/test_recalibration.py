"""BatchNorm statistics that a chip measures itself, against PyTorch's own."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

import bridge
from bridge import PROFILES, Profile
from bridge.chips import ADC, PCM, Chip, Hermes, WeightNoise
from bridge.chips.files import fingerprint
from bridge.chips.tiles import digital_network, named_tiles
from tests.refusals import refused

IMAGES = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """BatchNorms in two branches, behind each other, and of vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_bn = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.side, self.side_bn = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv, self.conv_bn = nn.Conv2d(6, 8, 3, stride=2), nn.BatchNorm2d(8)
        self.fc, self.fc_bn = nn.Linear(8, 5), nn.BatchNorm1d(5, affine=False)
        self.unused = nn.BatchNorm1d(3)
        generator = torch.Generator().manual_seed(1)
        for name, tensor in self.state_dict().items():
            if tensor.is_floating_point():
                tensor.normal_(generator=generator)
                if name.endswith("var"):
                    tensor.abs_().add_(0.5)
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        side = self.side_bn(self.side(x))
        x = torch.relu(self.stem_bn(input=self.stem(x)) + side)
        x = torch.relu(self.conv_bn(self.conv(x))).mean((2, 3))
        return self.fc_bn(self.fc(x))


ORDER = ["side_bn", "stem_bn", "conv_bn", "fc_bn"]


def statistics(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: one for name, one in network.named_buffers() if "running" in name}


def close(found: nn.Module, expected: nn.Module) -> None:
    for name, one in statistics(expected).items():
        torch.testing.assert_close(statistics(found)[name], one, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def in_pytorch(chip: Chip) -> nn.Module:
    """The chip's digital twin after each BatchNorm in turn has met all images as one batch."""
    twin = digital_network(chip.analog)
    for name in ORDER:
        norm: Any = twin.get_submodule(name)
        norm.reset_running_stats()
        norm.momentum = None  # the cumulative average
        norm.train()
        twin(IMAGES)
        norm.eval()
    return twin


@pytest.mark.parametrize("engine", ["fast", "aihwkit"])
def test_statistics_are_pytorch_s_of_one_batch(engine: Any) -> None:
    chip = bridge.program(Net(), PROFILES["pcm"], seed=0, engine=engine)
    found = bridge.recalibrate(chip, IMAGES, batch_size=7)
    expected = in_pytorch(chip)
    close(found.analog, expected)
    torch.testing.assert_close(found(IMAGES, range(40)), expected(IMAGES), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.analog.unused.running_mean, Net().unused.running_mean)


PER_MVM = Profile(wnoise=WeightNoise(0.05, drawn="per_mvm"))


@pytest.mark.parametrize(
    ("profile", "engine"),
    [(PROFILES["adc+wnoise+pcm"], "fast"), (PER_MVM, "fast"), (PER_MVM, "aihwkit")],
    ids=["converters", "noise of operations", "one sample at a time"],
)
def test_the_batch_size_does_not_matter(profile: Profile, engine: Any) -> None:
    chip = bridge.program(Net(), profile, seed=0, calibration=IMAGES, engine=engine)
    whole = bridge.recalibrate(chip, IMAGES)
    close(bridge.recalibrate(chip, IMAGES, batch_size=9).analog, whole.analog)
    assert not torch.allclose(whole.analog.conv_bn.running_mean, chip.analog.conv_bn.running_mean)


def test_the_order_of_the_images_does_not_matter() -> None:
    chip = bridge.program(Net(), PROFILES["pcm"], seed=0)
    images = IMAGES.permute(0, 2, 3, 1).numpy()  # an array, channels last
    again = bridge.recalibrate(chip, images[::-1].copy())
    close(again.analog, bridge.recalibrate(chip, IMAGES).analog)


def test_noise_of_operations_enters_the_variance() -> None:
    """For y = w x + sigma |x| max|w| xi with |x| = 1, var y = w^2 var x + (sigma max|w|)^2."""
    network = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1)).eval()
    network[0].weight.data.fill_(2.0)
    chip = bridge.program(network, Profile(wnoise=WeightNoise(0.5, drawn="per_mvm")), seed=0)
    signs = torch.tensor([[1.0], [-1.0]]).repeat(4000, 1)
    found = bridge.recalibrate(chip, signs, batch_size=4000).analog[1]
    assert float(found.running_var) == pytest.approx(4 + 1, rel=5 * (2 / 8000) ** 0.5)
    assert abs(float(found.running_mean)) < 5 * (5 / 8000) ** 0.5


@pytest.mark.parametrize("engine", ["fast", "aihwkit"])
def test_devices_stay_and_the_given_chip_too(engine: Any) -> None:
    memory = PCM(t_inference=3600.0, compensation="global")
    noisy = Profile(ADC(bits=8), WeightNoise(0.02), memory)
    chip = bridge.program(Net(), noisy, seed=3, calibration=IMAGES, engine=engine)
    before, mark = chip(IMAGES, range(40)), fingerprint(chip)
    found = bridge.recalibrate(chip, IMAGES)
    assert torch.equal(chip(IMAGES, range(40)), before)
    assert fingerprint(chip) == mark != fingerprint(found)
    mine, its = named_tiles(chip.analog), named_tiles(found.analog)
    for name, tile in mine.items():
        assert torch.equal(tile.tile.get_weights(), its[name].tile.get_weights())
        assert torch.equal(tile.programmed_weights, its[name].programmed_weights)
        assert torch.equal(tile.alpha, its[name].alpha)
    kept = {**dict(chip.analog.named_parameters()), **dict(chip.analog.named_buffers())}
    for name, one in [*found.analog.named_parameters(), *found.analog.named_buffers()]:
        assert "running" in name or torch.equal(one, kept[name]), name
    assert found.out_bounds == chip.out_bounds
    assert found.engine == engine


def test_a_recalibrated_chip_ages_with_its_statistics(tmp_path: Path) -> None:
    chip = bridge.program(Net(), PROFILES["pcm"], seed=0)
    found = bridge.recalibrate(chip, IMAGES)
    later = found.at(86400.0)
    for name, one in statistics(found.analog).items():
        assert torch.equal(statistics(later.analog)[name], one)
    for name, tile in named_tiles(chip.at(86400.0).analog).items():
        assert torch.equal(
            named_tiles(later.analog)[name].tile.get_weights(), tile.tile.get_weights()
        )
    path = tmp_path / "chip.safetensors"
    bridge.save_chip(path, found)
    assert torch.equal(bridge.load_chip(path, Net())(IMAGES, range(40)), found(IMAGES, range(40)))
    assert torch.equal(
        bridge.load_chip(path, Net()).at(86400.0)(IMAGES, range(40)), later(IMAGES, range(40))
    )


@pytest.fixture(scope="module")
def digits() -> tuple[nn.Module, torch.Tensor, np.ndarray]:
    """A network trained on the first 1,200 digits; images and labels of all."""
    found = load_digits()
    images = torch.tensor(found.images[:, None] / 8 - 1, dtype=torch.float32)
    labels = torch.tensor(found.target)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
            *(nn.Conv2d(16, 32, 3, stride=2, bias=False), nn.BatchNorm2d(32), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)),
        )
        optimizer = torch.optim.Adam(network.parameters(), 3e-3)
        for _ in range(8):
            for batch in torch.randperm(1200).split(60):
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(network(images[batch]), labels[batch])
                loss.backward()
                optimizer.step()
    return network.eval(), images, found.target


def test_it_undoes_what_drift_does_to_accuracy(digits: Any) -> None:
    """Three chips a day after programming, drift not compensated, on images not seen before."""
    network, images, labels = digits
    others = (images[1200:].permute(0, 2, 3, 1).numpy(), labels[1200:])

    def accuracy(one: Any) -> float:
        return float(bridge.predict(one, others)["correct"].mean())

    for seed in range(3):
        chip = bridge.program(network, PROFILES["pcm"], seed=seed).at(86400.0)
        found = bridge.recalibrate(chip, images[:300])
        assert accuracy(chip) < accuracy(network) - 0.3
        assert accuracy(found) > accuracy(network) - 0.05


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.bn = nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn(self.fc(self.bn(x)))


def chip_of(network: nn.Module, profile: Profile = PROFILES["pcm"]) -> Chip:
    return bridge.program(network.eval(), profile, seed=0, calibration=IMAGES)


def in_training(chip: Chip) -> Chip:
    chip.analog.stem_bn.train()
    return chip


def without_statistics(chip: Chip) -> Chip:
    chip.analog.stem_bn.running_mean = chip.analog.stem_bn.running_var = None
    return chip


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "no BatchNorm": (
        lambda: (chip_of(nn.Sequential(nn.Flatten(), nn.Linear(192, 3))), IMAGES),
        "no BatchNorm, so that nothing is to recalibrate",
    ),
    "none that runs": (
        lambda: (chip_of(Idle()), IMAGES),
        "no BatchNorm runs on these images",
    ),
    "twice": (
        lambda: (chip_of(Twice()), IMAGES[:6, 0, 0, :4]),
        "bn: a BatchNorm that runs more than once",
    ),
    "in training": (
        lambda: (in_training(chip_of(Net())), IMAGES),
        r"chip\.analog \(stem_bn\) is in training mode",
    ),
    "no statistics": (
        lambda: (without_statistics(chip_of(Net())), IMAGES),
        "stem_bn keeps no running statistics",
    ),
    "one image": (lambda: (chip_of(Net()), IMAGES[:1]), "1 is given: pass some hundred"),
    "other channels": (lambda: (chip_of(Net()), IMAGES[:, :2]), "fails on images of 2 channels"),
    "no images": (lambda: (chip_of(Net()), "images"), "images must be float32 images"),
    "another scale": (
        lambda: (chip_of(Net(), PROFILES["adc+pcm"]), 255 * IMAGES),
        "normalise both as the model expects",
    ),
    "no numbers": (
        lambda: (chip_of(Net()), torch.full_like(IMAGES, float("nan"))),
        "the BatchNorm side_bn is given values that are not finite",
    ),
    "a network": (lambda: (Net(), IMAGES), "recalibrate takes a chip of bridge.program; got Net"),
}


class Idle(nn.Module):
    """A BatchNorm that evaluation leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.head = nn.Linear(192, 3), nn.BatchNorm1d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x.flatten(1))


@pytest.mark.parametrize("what", BAD)
def test_what_is_refused(what: str) -> None:
    make, message = BAD[what]
    chip, images = make()
    with refused(message):
        bridge.recalibrate(chip, images)


def test_a_changed_chip_is_refused() -> None:
    chip = chip_of(Net())
    chip.analog.stem_bn.running_mean.add_(1.0)
    with refused("are no longer the same"):
        bridge.recalibrate(chip, IMAGES)
    with refused("batch_size must be at least 1"):
        bridge.recalibrate(chip_of(Net()), IMAGES, batch_size=0)


def test_it_is_recalibrated_again_after_a_year() -> None:
    """The second time starts from the devices of that time, whatever statistics it has."""
    chip = chip_of(Net(), Profile(memory=Hermes()))
    first = bridge.recalibrate(chip, IMAGES)
    second = bridge.recalibrate(first.at(3.15e7), IMAGES)
    close(second.analog, bridge.recalibrate(chip.at(3.15e7), IMAGES).analog)
    assert torch.equal(copy.deepcopy(second)(IMAGES, range(40)), second(IMAGES, range(40)))
