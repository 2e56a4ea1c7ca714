"""Networks that keep state from one forward pass to the next, or take batches of some sizes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bridge import PROFILES, Profile, Router, predict, program, to_jax
from bridge.chips import ADC
from tests.chips import noisy

IMAGES = np.random.default_rng(0).random((40, 8, 8, 3), dtype=np.float32)
TENSOR = torch.from_numpy(IMAGES.transpose(0, 3, 1, 2).copy())
LABELS = np.zeros(40, int)


def seeded(network: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / 5
    return network.eval().requires_grad_(False)


class Recurrent(nn.Module):
    """Its hidden state is kept until the user resets it."""

    def __init__(self, reset: bool = False, new_size: bool = False):
        super().__init__()
        self.first, self.cell, self.last = nn.Linear(192, 16), nn.GRUCell(16, 16), nn.Linear(16, 5)
        self.hidden: torch.Tensor | None = None
        self.reset, self.new_size = reset, new_size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        old = self.hidden
        if self.reset or (self.new_size and old is not None and len(old) != len(x)):
            old = None
        self.hidden = self.cell(self.first(x.flatten(1)), old)
        found: torch.Tensor = self.last(self.hidden)
        return found


class Fires(nn.Module):
    """An integrate-and-fire neuron; its membrane potential is an attribute or a buffer."""

    def __init__(self, buffer: bool):
        super().__init__()
        self.potential: Any = 0.0
        if buffer:
            del self.potential
            self.register_buffer("potential", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        potential = self.potential + x
        fired = (potential >= 0.3).float()
        self.potential = potential - fired * 0.3
        return fired


class Spiking(nn.Module):
    def __init__(self, buffer: bool = False, reset: bool = False):
        super().__init__()
        self.conv, self.neuron, self.fc = nn.Conv2d(3, 8, 3), Fires(buffer), nn.Linear(8, 5)
        self.reset = reset

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.reset:
            self.neuron.potential = torch.zeros(1)
        return sum(self.fc(self.neuron(self.conv(x)).mean((2, 3))) for _ in range(4)) / 4


class Remembers(nn.Module):
    """Computes the features of the first batch alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(192, 16), nn.Linear(16, 5)
        self.features: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.features is None:
            self.features = self.first(x.flatten(1)).relu()
        found: torch.Tensor = self.last(self.features)
        return found


class Shifts(nn.Module):
    """Takes `length` samples that follow each other for one video."""

    def __init__(self, length: int, shift: bool = True):
        super().__init__()
        self.fc, self.length, self.shift = nn.Linear(192, 5), length, shift

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        videos = x.flatten(1).view(-1, self.length, 192)
        if self.shift:
            videos = torch.cat([videos[:, 1:], videos[:, :1]], 1)
        found: torch.Tensor = self.fc(videos.flatten(0, 1))
        return found


STATE: dict[str, Callable[[], nn.Module]] = {
    "recurrent": Recurrent,
    "recurrent, begun anew for another size": lambda: Recurrent(new_size=True),
    "spiking": Spiking,
    "spiking, in a buffer": lambda: Spiking(buffer=True),
    "features": Remembers,
}
PROFILES_TRIED = [PROFILES["pcm"], noisy("constant", 0.1), Profile(ADC())]


@pytest.mark.filterwarnings("ignore:layer cell .recurrent.")
@pytest.mark.parametrize("batch_size", [1, 2, 4, 10])
@pytest.mark.parametrize("name", STATE)
def test_networks_that_keep_state_are_refused(name: str, batch_size: int) -> None:
    if name == "features" and batch_size == 1:
        return  # each sample then has the logits of the first, as a constant network gives them
    message = "the module keeps state from one forward pass to the next.*: reset the state at the"
    with pytest.raises(ValueError, match=message):
        predict(seeded(STATE[name]()), (IMAGES, LABELS), batch_size=batch_size)


@pytest.mark.filterwarnings("ignore:layer cell .recurrent.")
@pytest.mark.parametrize("profile", PROFILES_TRIED)
@pytest.mark.parametrize("name", STATE)
def test_chips_of_networks_that_keep_state_are_refused(name: str, profile: Profile) -> None:
    message = "the network keeps state from one forward pass to the next"
    with pytest.raises(ValueError, match=message):
        program(seeded(STATE[name]()), profile, seed=0, calibration=IMAGES).examine(TENSOR[:10])


def test_a_router_refuses_a_digital_model_that_keeps_state() -> None:
    chip = program(seeded(Remembers()), PROFILES["ideal"], seed=0)
    with pytest.raises(ValueError, match="the digital model keeps state"):
        Router(seeded(Recurrent()), chip, threshold=-np.inf)(IMAGES)


def test_networks_that_keep_state_are_not_brought_to_jax() -> None:
    with pytest.raises(ValueError, match=r"logits in JAX differ.* not the same function at each"):
        to_jax(seeded(Recurrent()), IMAGES[:4])


class KeepsFeatures(Spiking):
    """Keeps what decides nothing, and asks for the size of its batch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = self.conv(x).flatten(1)[: len(x)]
        found: torch.Tensor = self.fc(self.seen.view(len(x), 8, -1).mean(2))
        return found


def test_networks_that_keep_features_are_brought_to_jax() -> None:
    model = seeded(KeepsFeatures())
    function, params = to_jax(model, IMAGES[:4])
    found = np.asarray(function(params, IMAGES[:3]))
    np.testing.assert_allclose(found, model(TENSOR[:3]).detach(), atol=1e-5)


@pytest.mark.filterwarnings("ignore:layer cell .recurrent.")
@pytest.mark.parametrize(
    "make", [lambda: Recurrent(reset=True), lambda: Spiking(reset=True)], ids=["gru", "spiking"]
)
def test_networks_that_reset_their_state_are_taken(make: Callable[[], nn.Module]) -> None:
    model = seeded(make())
    expected = predict(model, (IMAGES, LABELS), batch_size=10)
    chip = program(model, PROFILES["ideal"], seed=0)
    found = predict(chip, (IMAGES, LABELS), batch_size=16)
    np.testing.assert_allclose(
        np.stack(found["logits"].to_numpy()), np.stack(expected["logits"].to_numpy()), atol=1e-5
    )


@pytest.mark.parametrize("length", [4, 5, 8])
def test_samples_that_are_taken_together(length: int) -> None:
    message = r"mixes the samples of a batch|gives one image different logits in another place"
    with pytest.raises(ValueError, match=message):
        predict(seeded(Shifts(length)), (IMAGES, LABELS), batch_size=2 * length)
    with pytest.raises(ValueError, match=message):
        predict(program(seeded(Shifts(length)), PROFILES["pcm"], seed=0), (IMAGES, LABELS))
    apart = seeded(Shifts(length, shift=False))
    predict(apart, (IMAGES, LABELS), batch_size=2 * length)
    predict(program(apart, PROFILES["pcm"], seed=0), (IMAGES, LABELS), batch_size=2 * length)


def test_a_smaller_last_batch_is_told_of() -> None:
    with pytest.raises(
        ValueError, match=r"fails on a batch of 4 and ran on one of 12 .*batch_size"
    ):
        predict(seeded(Shifts(3, shift=False)), (IMAGES, LABELS), batch_size=12)
