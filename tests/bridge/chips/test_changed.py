"""A chip's network or executable that is changed after one was made of the other."""

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bridge import PROFILES, Profile, load_chip, predict, program, save_chip
from bridge.chips import ADC, PCM, Chip, WeightNoise, clipped_share
from bridge.chips.files import fingerprint
from bridge.chips.plain_layers import copy_of
from bridge.chips.tiles import named_tiles

IMAGES = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
FULL = Profile(
    ADC(bits=8), WeightNoise(drawn="per_mvm"), PCM(t_inference=3600.0, compensation="global")
)
PROFILE = {"full": FULL, "pcm": PROFILES["pcm"]}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.act = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()
        self.fc, self.scale = nn.Linear(8, 5), nn.Parameter(torch.ones(8))
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)
        self.eval().requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.act(self.bn(self.conv(x))).mean((2, 3)) * self.scale)


def made(profile: Any = FULL, seed: int = 0) -> Chip:
    return program(Net(), profile, seed=seed, calibration=IMAGES)


def run(chip: Chip) -> torch.Tensor:
    return chip(IMAGES, range(6))


def another_parameter(network: nn.Module) -> None:
    network.scale = nn.Parameter(torch.full((8,), 2.0), requires_grad=False)


def retrained(network: nn.Module) -> None:
    network.bn.train()
    network.bn(IMAGES.mean(1, keepdim=True).expand(-1, 8, -1, -1))
    network.bn.eval()


DIGITAL: dict[str, tuple[Callable[[nn.Module], Any], str]] = {
    "in place": (lambda n: n.bn.running_mean.add_(0.5), r"bn\.running_mean"),
    "by its data": (lambda n: n.bn.weight.data.mul_(2), r"bn\.weight"),
    "other data": (lambda n: setattr(n.scale, "data", torch.full((8,), 2.0)), "scale"),
    "a buffer set": (lambda n: setattr(n.bn, "running_var", torch.full((8,), 3.0)), r"bn\.running"),
    "a parameter set": (another_parameter, "scale"),
    "statistics of a batch": (retrained, r"bn\.running_mean, bn\.running_var"),
    "loaded": (
        lambda n: n.bn.load_state_dict({k: v * 2 for k, v in n.bn.state_dict().items()}),
        r"bn\.weight, bn\.bias, bn\.running_var",
    ),
}


@pytest.mark.parametrize("how", DIGITAL)
def test_a_network_that_was_changed(how: str, tmp_path: Path) -> None:
    """Refused wherever the executable would be another chip; once made anew, all agree."""
    change, named = DIGITAL[how]
    chip, path = made(), tmp_path / "chip.safetensors"
    before = run(chip)
    change(chip.analog)
    message = rf"{named}.* are no longer the same.*chip = chip\.on\(chip\.engine\)"
    for act in (
        lambda: run(chip),
        lambda: chip.at(60.0),
        lambda: save_chip(path, chip),
        lambda: fingerprint(chip),
        lambda: predict(chip, (IMAGES.permute(0, 2, 3, 1).numpy(), np.arange(6) % 5)),
        lambda: copy.deepcopy(chip),
    ):
        with pytest.raises(ValueError, match=message):
            act()
    assert not path.exists()
    chip = chip.on(chip.engine)
    after = run(chip)
    assert not torch.allclose(after, before)
    assert torch.equal(run(chip.at(3600.0)), after)
    save_chip(path, chip)
    assert torch.equal(run(load_chip(path, Net())), after)


def test_hooks_that_were_changed() -> None:
    def halved(layer: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return output / 2

    chip = made()
    before = run(chip)
    handle = chip.analog.bn.register_forward_hook(halved)
    with pytest.raises(ValueError, match=r"hooks of bn of chip\.analog.*are no longer the same"):
        run(chip)
    assert not torch.allclose(run(chip.on("fast")), before)
    handle.remove()
    assert torch.equal(run(chip), before)
    seen = []
    chip.executable.network.bn.register_forward_hook(lambda layer, i, o: seen.append(o))
    assert torch.equal(run(chip), before)  # which may only read
    assert seen


EXECUTABLE = DIGITAL | {
    "weights of tiles": (lambda n: next(n.fc.parameters()).mul_(2), r"fc\."),
}


@pytest.mark.parametrize("profile", PROFILE)
@pytest.mark.parametrize("how", EXECUTABLE)
def test_an_executable_that_was_changed(how: str, profile: str, tmp_path: Path) -> None:
    """Refused until it is made anew."""
    change, named = EXECUTABLE[how]
    chip, path = made(PROFILE[profile]), tmp_path / "chip.safetensors"
    before = run(chip)
    change(chip.executable.network)
    message = rf"{named}.* are no longer the same"
    for act in (
        lambda: run(chip),
        lambda: chip.at(60.0),
        lambda: save_chip(path, chip),
        lambda: fingerprint(chip),
        lambda: copy.deepcopy(chip),
    ):
        with pytest.raises(ValueError, match=message):
            act()
    assert torch.equal(run(chip.on("fast")), before)


TILES: dict[str, Callable[[Chip], Any]] = {
    "weights": lambda c: tile_of(c).tile.set_weights(tile_of(c).tile.get_weights() / 2),
    "weights in place": lambda c: tile_of(c).tile.weight.data.mul_(0.5),
    "compensation": lambda c: tile_of(c).alpha.mul_(2),
    "bias": lambda c: c.analog.fc.bias.add_(1.0),
    "another chip's": lambda c: c.analog.load_state_dict(made(seed=1).analog.state_dict()),
}


def tile_of(chip: Chip) -> Any:
    return next(iter(named_tiles(chip.analog).values()))


@pytest.mark.parametrize("how", TILES)
def test_tiles_that_were_changed(how: str) -> None:
    chip = made()
    before = run(chip)
    TILES[how](chip)
    with pytest.raises(ValueError, match=r"analog_module.* are no longer the same"):
        run(chip)
    assert not torch.allclose(run(chip.on("fast")), before)


@pytest.mark.parametrize("position", [0, 7])
def test_a_single_weight_that_was_set_is_not_lost(position: int) -> None:
    """As for a device that is stuck."""
    chip = made(PROFILES["pcm"])
    tile = tile_of(chip).tile
    weights = tile.get_weights()
    weights.view(-1)[position] += 0.5
    tile.set_weights(weights)
    with pytest.raises(ValueError, match=r"weights of conv\.analog_module were set after"):
        chip.on("fast").at(60.0)


@pytest.mark.parametrize("memory", [True, False])
def test_weights_that_were_set_are_not_lost_at_another_time(memory: bool, tmp_path: Path) -> None:
    chip, path = made(FULL if memory else PROFILES["adc"]), tmp_path / "chip.safetensors"
    for tile in named_tiles(chip.analog).values():
        tile.tile.set_weights(tile.tile.get_weights() * 0.5)
    chip = chip.on("fast")
    expected = run(chip)
    if not memory:
        save_chip(path, chip)
        assert torch.equal(run(load_chip(path, Net())), expected)
        return
    for act in (lambda: chip.at(60.0), lambda: save_chip(path, chip)):
        message = r"weights of conv\.analog_module.*were set after.*programmed_weights in place"
        with pytest.raises(ValueError, match=message):
            act()
    chip = made()
    before = run(chip.at(60.0))
    for tile in named_tiles(chip.analog).values():
        tile.programmed_weights = tile.programmed_weights * 0.5
    chip = chip.on("fast").at(60.0)
    assert not torch.allclose(run(chip), before)
    save_chip(path, chip)
    back = load_chip(path, Net())
    assert torch.equal(run(back), run(chip))
    assert torch.equal(run(back.at(1e6)), run(chip.at(1e6)))
    other = made(seed=1)
    other.analog.load_state_dict(chip.analog.state_dict())  # which holds nothing of the devices
    with pytest.raises(ValueError, match="were set after programming"):
        other.on("fast").at(60.0)


class Stateful(Net):
    """Keeps counts and its last input, in the ways that code does."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))
        self.register_buffer("data", torch.zeros(1))
        self.register_buffer("last", torch.zeros(6), persistent=False)
        self.number, self.kept, self.log = 0, (), [0.0]
        self.sums: list[Any] = [0.0]
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.data.data.add_(1)
        self.last, self.kept = x.mean((1, 2, 3)), (x[:2], x[2:])
        self.number += 1
        self.log.append(float(len(x)))
        self.sums[0] = x.sum((1, 2, 3))
        return super().forward(x)


def test_what_a_network_writes_itself_is_no_change(tmp_path: Path) -> None:
    chip = program(Stateful(), FULL, seed=0, calibration=IMAGES)
    mark = fingerprint(chip)
    slow = chip.on("aihwkit")
    run(slow)
    clipped_share(chip, IMAGES)
    expected = run(chip)
    assert torch.equal(run(chip), expected)
    other = program(Stateful(), PROFILES["pcm"], seed=0)
    for _ in range(2):
        run(other)
    fresh = program(Stateful(), FULL, seed=0, calibration=IMAGES)
    run(fresh)
    assert fingerprint(fresh) == mark
    save_chip(tmp_path / "chip.safetensors", chip)
    for again in (
        load_chip(tmp_path / "chip.safetensors", Stateful()),
        copy.deepcopy(chip),
        copy.copy(chip),
        chip.at(3600.0),
        chip.on("fast"),
    ):
        assert torch.equal(run(again), expected)


def test_a_load_of_the_same_values_is_no_change() -> None:
    chip = made()
    before = run(chip)
    chip.analog.bn.load_state_dict(chip.analog.bn.state_dict())
    chip.analog.scale.data = chip.analog.scale.data.clone()
    for network in (chip.analog, chip.executable.network):
        network.bn.running_var.mul_(2.0)
    after = run(chip)
    assert not torch.allclose(after, before)
    assert torch.equal(run(chip.at(3600.0)), after)


def test_a_copy_of_what_runs() -> None:
    """As goes to a device."""
    chip = program(Stateful(), FULL, seed=0, calibration=IMAGES)
    copied = copy_of(chip.executable)
    copied.network.bn.running_mean.add_(0.5)
    expected = run(chip)
    assert not torch.allclose(copied(IMAGES, range(6)), expected)
    assert torch.equal(run(chip.at(3600.0)), expected)


@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_a_chip_is_not_pickled(how: str) -> None:
    with pytest.raises(ValueError, match=r"cannot be pickled.*bridge\.save_chip\(path, chip\)"):
        pickle.dumps(made()) if how == "pickle" else torch.save(made(), io.BytesIO())


@pytest.mark.parametrize("engine", ["fast", "aihwkit"])
def test_chips_made_in_inference_mode(engine: Any, tmp_path: Path) -> None:
    path = tmp_path / "chip.safetensors"
    expected = made().on(engine)
    with torch.inference_mode():
        chip = program(Net(), FULL, seed=0, calibration=IMAGES, engine=engine)
        run(chip)
        later = chip.at(60.0)
        save_chip(path, chip)
        back = load_chip(path, Net())
        copied = copy.deepcopy(chip)
    for one in (chip, back, later.at(3600.0), copied, chip.on("aihwkit").on(engine)):
        assert torch.equal(run(one), run(expected))
        assert torch.equal(run(one.at(60.0)), run(expected.at(60.0)))


def test_a_chip_may_be_changed_before_its_first_images() -> None:
    chip = program(Net(), PROFILES["pcm"], seed=0)
    before = run(program(Net(), PROFILES["pcm"], seed=0))
    chip.analog.fc.bias.data += 2
    torch.testing.assert_close(run(chip.on(chip.engine)), before + 2)
