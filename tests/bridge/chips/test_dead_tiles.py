"""Tiles that give only 0 on the calibration images: any range and a warning, never a refusal."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bridge import Profile, predict, program
from bridge.chips import (
    ADC,
    PCM,
    Clipping,
    Hermes,
    ReRamCMO,
    ReRamWan2022,
    WeightNoise,
    layer_report,
)
from bridge.chips.programming import clipped_share

IMAGES = torch.randn(6, 2, 4, 4, generator=torch.Generator().manual_seed(0))


def network() -> nn.Sequential:
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(48, 5), nn.ReLU(),
        nn.Linear(5, 4),
    ).eval()  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return model.requires_grad_(False)


def zero_head() -> nn.Module:
    model = network()
    model[5].weight.zero_()
    return model


def dead_relu() -> nn.Module:
    """Nothing reaches the last layer, whose weights are as they were."""
    model = network()
    model[3].weight.zero_()
    model[3].bias.fill_(-1.0)
    return model


def first_layer() -> nn.Module:
    model = network()
    model[0].weight.zero_()
    return model


def all_layers() -> nn.Module:
    model = network()
    for layer in (model[0], model[3], model[5]):
        layer.weight.zero_()
    return model


class Split(nn.Module):
    """A layer on two tiles, the second of which sees zeros only, or holds zeros only."""

    def __init__(self, zero_weights: bool):
        super().__init__()
        self.wide, self.zero_weights = nn.Linear(1024, 4), zero_weights
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)
        if zero_weights:
            self.wide.weight.data[:, 512:] = 0
        self.eval().requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.flatten(1).repeat(1, 32)
        return self.wide(
            wide if self.zero_weights else torch.cat([wide[:, :512], 0 * wide[:, 512:]], 1)
        )


CASES: dict[str, tuple[Callable[[], nn.Module], set[str]]] = {
    "zero-initialised head": (zero_head, {"5.analog_module"}),
    "dead relu": (dead_relu, {"3.analog_module", "5.analog_module"}),
    "zero first layer": (first_layer, {"0.analog_module"}),
    "all": (all_layers, {"0.analog_module", "3.analog_module", "5.analog_module"}),
    "unused half": (lambda: Split(False), {"wide.analog_module.array.1.0"}),
    "pruned half": (lambda: Split(True), {"wide.analog_module.array.1.0"}),
}


@pytest.mark.parametrize("engine", ["fast", "aihwkit"])
@pytest.mark.parametrize("name", CASES)
def test_a_dead_tile_refuses_no_network(name: str, engine: Any) -> None:
    make, dead = CASES[name]
    model = make()
    with pytest.warns(UserWarning, match="no output other than 0") as told:
        chip = program(model, Profile(ADC()), seed=0, calibration=IMAGES, engine=engine)
    assert set(str(told[0].message).split("tile ")[1].split("; each")[0].split(", ")) == dead
    assert "(for a largest weight of 1)" in str(told[0].message)
    live = [bound for one, bound in chip.out_bounds.items() if one not in dead]
    for one in dead:
        assert chip.out_bounds[one] == (np.median(live) if live else 1.0)
    digital = model(IMAGES)
    torch.testing.assert_close(
        chip(IMAGES, range(6)), digital, rtol=0.03, atol=0.03 * float(digital.abs().max())
    )
    for one, share in clipped_share(chip, IMAGES).items():
        assert share == 0 if one in dead else share <= 0.01


@pytest.mark.parametrize("engine", ["fast", "aihwkit"])
@pytest.mark.parametrize(
    "memory", [PCM(compensation="global"), Hermes(), ReRamWan2022(), ReRamCMO()]
)
def test_with_every_memory_and_clipping(memory: Any, engine: Any) -> None:
    for wnoise in (WeightNoise(), WeightNoise(kind="pcm_read", drawn="per_mvm")):
        for clipping in (Clipping(), Clipping("layer_gaussian"), Clipping("fixed_value")):
            profile = Profile(ADC(), wnoise, memory, clipping)
            with pytest.warns(UserWarning, match="no output other than 0"):
                chip = program(all_layers(), profile, seed=0, calibration=IMAGES, engine=engine)
            table = predict(chip, (IMAGES, [0] * 6))
            assert np.isfinite(np.stack(table["logits"])).all()


def test_a_percentile_of_0_is_the_largest_output() -> None:
    """Most outputs of a pruned layer are 0, not all."""
    model = network()
    model[3].weight[1:] = 0
    profile = Profile(ADC(percentile=50.0))
    with pytest.warns(UserWarning, match=r"tile 3.analog_module; each gets its largest"):
        chip = program(model, profile, seed=0, calibration=IMAGES)
    whole = program(model, Profile(ADC()), seed=0, calibration=IMAGES)
    assert chip.out_bounds["3.analog_module"] == whole.out_bounds["3.analog_module"]
    assert chip.out_bounds["5.analog_module"] < whole.out_bounds["5.analog_module"]


@pytest.mark.filterwarnings("ignore:.*no output other than 0")
def test_reports_of_a_dead_layer() -> None:
    model = zero_head()
    chip = program(model, Profile(ADC(), memory=PCM()), seed=0, calibration=IMAGES)
    table = layer_report(chip, model, IMAGES)
    assert list(table["layer"]) == ["0", "3", "5"]
    assert np.isfinite(table["snr_db"][:2]).all()


def test_one_pruned_output_says_nothing() -> None:
    model = network()
    model[3].weight[1] = 0
    chip = program(model, Profile(ADC()), seed=0, calibration=IMAGES)
    assert all(np.isfinite(list(chip.out_bounds.values())))


@pytest.mark.parametrize("images", [0 * IMAGES, IMAGES * np.nan])
def test_images_without_a_signal_are_refused(images: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="finite and active"):
        program(network(), Profile(ADC()), seed=0, calibration=images)
