"""Chips to disk and back: the same logits, now and later."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import nn

from bridge import PROFILES, Profile, load_chip, program, save_chip
from bridge.chips import ADC, PCM, Hermes, ReRamCMO, WeightNoise
from bridge.chips.files import fingerprint
from bridge.weights import save_weights
from tests.chips import IMAGES, configuration, noisy, single, small_resnet


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return small_resnet()


COMPENSATED = Profile(ADC(), WeightNoise(), PCM(compensation="per_column"))


def scrambled(model: nn.Module) -> nn.Module:
    """A network of the same structure and other weights."""
    other = deepcopy(model)
    for tensor in [*other.parameters(), *other.buffers()]:
        if tensor.is_floating_point():
            tensor.data = torch.rand_like(tensor)
    return other


@pytest.mark.parametrize(
    "profile",
    [*PROFILES.values(), COMPENSATED, Profile(memory=Hermes()), Profile(memory=ReRamCMO()),
     noisy("pcm_read", pcm=True)],
    ids=[*PROFILES, "compensated", "hermes", "reram_cmo", "per mvm"],
)  # fmt: skip
def test_a_chip_comes_back(network: nn.Module, profile: Profile, tmp_path: Path) -> None:
    chip = program(network, profile, seed=4, calibration=IMAGES, digital_layers=["fc"])
    path = tmp_path / "chip.safetensors"
    save_chip(path, chip)
    back = load_chip(path, scrambled(network))
    assert (back.profile, back.seed, back.engine) == (profile, 4, "fast")
    assert back.digital_layers == ("fc",)
    assert dict(back.out_bounds) == dict(chip.out_bounds)
    expected = chip(IMAGES, range(32))
    assert torch.equal(back(IMAGES, range(32)), expected)
    assert fingerprint(back) == fingerprint(chip)
    if profile.memory is not None:
        later, back_later = chip.at(86400.0), back.at(86400.0)
        assert torch.equal(back_later(IMAGES, range(32)), later(IMAGES, range(32)))
        assert not torch.allclose(later(IMAGES, range(32)), expected, rtol=1e-3)
    tiles = chip.on("aihwkit")(IMAGES[:8], range(8))
    assert torch.equal(back.on("aihwkit")(IMAGES[:8], range(8)), tiles)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_chip_of_one_s_own_configuration(tmp_path: Path) -> None:
    config = configuration(out_noise=0.06, out_noise_std=0.3, out_res=1 / 510, out_bound=4.0)
    config.noise_model.prog_noise_scale = 1.0
    model, path = single(nn.Linear(9, 5)), tmp_path / "chip.safetensors"
    chip = program(model, config, seed=0, engine="aihwkit").at(60.0)
    save_chip(path, chip)
    x = torch.randn(3, 9, generator=torch.Generator().manual_seed(0))
    back = load_chip(path, single(nn.Linear(9, 5), seed=1), config)
    assert torch.equal(back(x, range(3)), chip(x, range(3)))
    assert torch.equal(back.at(1e4)(x, range(3)), chip.at(1e4)(x, range(3)))
    with pytest.raises(ValueError, match="pass it as rpu_config="):
        load_chip(path, model)
    with pytest.raises(ValueError, match=r"another configuration; of tile .*out_noise"):
        load_chip(path, model, configuration(out_res=1 / 510, out_bound=4.0))


def test_other_files_and_networks_are_refused(network: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "chip.safetensors"
    with pytest.raises(FileNotFoundError):
        load_chip(path, network)
    save_weights(path, network.state_dict(), {"architecture": "resnet18"})
    with pytest.raises(ValueError, match="holds no chip"):
        load_chip(path, network)
    save_chip(path, program(network, PROFILES["pcm"], seed=0))
    other = small_resnet()
    other.layer2[0].conv1.stride = (1, 1)
    with pytest.raises(
        ValueError, match=r"layer layer2.0.conv1 is .*stride=\(2, 2\).*stride=\(1, 1\)"
    ):
        load_chip(path, other)
    with pytest.raises(
        ValueError, match=r"of another network: layer .* is AnalogConv2d.* and None here"
    ):
        load_chip(path, single(nn.Linear(3, 2)))


def test_fingerprints_tell_chips_apart(network: nn.Module) -> None:
    chips = [program(network, PROFILES["pcm"], seed=seed) for seed in (0, 1)]
    prints = [
        fingerprint(network),
        fingerprint(scrambled(network)),
        *[fingerprint(chip) for chip in chips],
        fingerprint(chips[0].at(60.0)),
        fingerprint(chips[0].on("aihwkit")),
        fingerprint(program(network, noisy("constant", pcm=True), seed=0)),
    ]
    assert len(set(prints)) == len(prints)
    assert fingerprint(program(network, PROFILES["pcm"], seed=0)) == prints[2]


def test_a_file_that_is_not_there_is_called_a_chip_s(network: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no chip file at .*nochip\.safetensors"):
        load_chip(tmp_path / "nochip.safetensors", network)


class Masked(nn.Module):
    """Attention with a mask of infinities, and two digital layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.two.weight = self.one.weight
        self.register_buffer("mask", torch.full((8, 8), -torch.inf).triu(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.mean(1)
        x = (self.fc(x) @ x.transpose(1, 2) + self.mask).softmax(-1) @ x
        return self.two(self.one(x)).mean(1)


def test_infinite_masks_and_shared_weights_are_stored(tmp_path: Path) -> None:
    path, model = tmp_path / "chip.safetensors", Masked().eval()
    chip = program(model, PROFILES["pcm"], seed=0, digital_layers=["one", "two"])
    save_chip(path, chip)
    back = load_chip(path, scrambled(Masked().eval()))
    assert torch.equal(back(IMAGES, range(32)), chip(IMAGES, range(32)))
    assert back.analog.mask[0, 1] == -torch.inf
    assert fingerprint(back) == fingerprint(chip)


def test_non_finite_weights_are_still_refused() -> None:
    model = Masked().eval()
    model.two.bias.data[0] = torch.inf
    with pytest.raises(ValueError, match=r"non-finite weights in two\.bias"):
        program(model, PROFILES["pcm"], seed=0, digital_layers=["one", "two"])
    broken = small_resnet(width=4)
    name = next(name for name, _ in broken.named_buffers() if name.endswith("running_var"))
    broken.get_buffer(name)[0] = torch.nan
    with pytest.raises(ValueError, match=f"non-finite weights in {name}"):
        program(broken, PROFILES["pcm"], seed=0)
