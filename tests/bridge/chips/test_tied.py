"""Layers that share a weight: one array on the chip where they compute the same."""

import numpy as np
import pytest
import torch
from torch import nn

from bridge.chips import telling, weight_moments
from bridge.chips.files import load_chip, save_chip
from bridge.chips.profiles import PROFILES
from bridge.chips.programming import program
from bridge.chips.tiles import named_tiles


class Tied(nn.Module):
    """Two linear layers of one weight; with a bias each where asked for."""

    def __init__(self, bias: bool = False):
        super().__init__()
        self.a, self.b = nn.Linear(6, 6, bias=bias), nn.Linear(6, 6, bias=bias)
        self.out = nn.Linear(6, 3)
        self.b.weight = self.a.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.b(self.a(x).relu()).relu())


def network(**settings: bool) -> nn.Module:
    torch.manual_seed(0)
    return Tied(**settings).eval()


@pytest.fixture(autouse=True)
def told_again() -> None:
    telling.warn_once.cache_clear()


X = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("engine", ["fast", "aihwkit"])
def test_layers_of_one_weight_are_one_array(engine):
    model = network()
    chip = program(model, PROFILES["pcm"], seed=0, engine=engine)
    assert len(named_tiles(chip.analog)) == 2
    ideal = program(model, PROFILES["ideal"], seed=0, engine=engine)(X, range(5))
    torch.testing.assert_close(ideal, model(X), rtol=1e-4, atol=1e-5)


def test_both_layers_have_the_errors_of_the_one_array():
    chip = program(network(), PROFILES["pcm"], seed=0)
    layers = chip.executable.network
    assert layers.a is layers.b
    expected = layers.out(layers.a(layers.a(X).relu()).relu())
    torch.testing.assert_close(chip(X, range(5)), expected)


def test_moments_are_of_both_names_and_files_go_on(tmp_path):
    model = network()
    found = weight_moments(model, PROFILES["pcm"])
    assert torch.equal(found["a.weight"].mean, found["b.weight"].mean)
    chip = program(model, PROFILES["pcm"], seed=0)
    save_chip(tmp_path / "chip", chip)
    again = load_chip(tmp_path / "chip", model)
    np.testing.assert_array_equal(again(X, range(5)), chip(X, range(5)))


def test_layers_that_share_a_weight_alone_are_arrays_of_their_own():
    model = network(bias=True)
    with pytest.warns(UserWarning, match="layers a and b share a weight and differ in bias"):
        chip = program(model, PROFILES["ideal"], seed=0)
    assert len(named_tiles(chip.analog)) == 3
    torch.testing.assert_close(chip(X, range(5)), model(X), rtol=1e-4, atol=1e-5)
