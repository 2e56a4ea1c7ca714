"""Every memory with every setting comes back from its file to the bit, at every time."""

import json
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import nn

from bridge import Profile, load_chip, program, save_chip
from bridge.chips import (
    ADC,
    PCM,
    Chip,
    Clipping,
    Hermes,
    MappedPairs,
    Pairs,
    ReRamCMO,
    ReRamWan2022,
    SinglePair,
    WeightNoise,
)
from bridge.chips.files import fingerprint
from bridge.chips.memories.protocol import Compensation
from bridge.chips.tiles import named_tiles
from tests.chips import noisy

DATA = Path(__file__).parents[2] / "data"

G = {PCM: 25.0, Hermes: 10.0, ReRamWan2022: 40.0}
COMPENSATIONS = (None, *get_args(Compensation))


def mappings(g_max: float) -> list[Any]:
    half = g_max / 2
    return [
        SinglePair(),
        SinglePair(g_min=1.0),
        Pairs(),
        Pairs(factors=(1.0, 2.0, 4.0), g_min=0.5),
        MappedPairs(
            factors=(1.0, 1.0),
            conductances=(
                *((0.0, 0.0, half), (half, 0.0, 0.0)),
                *((0.0, 0.0, half), (half, 0.0, 0.0)),
            ),
        ),
    ]


def memories() -> Iterator[Any]:
    """Every kind with every compensation and mapping, and each factor at 0."""
    for compensation in COMPENSATIONS:
        yield ReRamCMO(compensation=compensation)
        yield ReRamCMO(compensation=compensation, acceptance=2.0, t_inference=0.0)
        for kind, g_max in G.items():
            for mapping in mappings(g_max):
                yield kind(g_max=g_max, compensation=compensation, mapping=mapping)
        yield Hermes(devices=1, compensation=compensation)
    for kind in (PCM, Hermes, ReRamWan2022, ReRamCMO):
        for field in fields(kind):
            if field.name in ("programming_noise", "drift", "read_noise", "noise"):
                yield kind(**{field.name: 0.0}, compensation="global")


def network(seed: int = 0) -> nn.Module:
    model = nn.Sequential(nn.Conv2d(1, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4)).eval()
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return model.requires_grad_(False)


IMAGES = torch.randn(5, 1, 3, 3, generator=torch.Generator().manual_seed(1))


def state(chip: Chip) -> dict[str, Any]:
    """All that a chip's tiles hold."""
    found: dict[str, Any] = {}
    for name, tile in named_tiles(chip.analog).items():
        found[f"{name} weights"] = tile.tile.get_weights()
        for attribute in ("reference_combined_weights", "programmed_weights", "drift_baseline",
                          "alpha"):  # fmt: skip
            found[f"{name} {attribute}"] = getattr(tile, attribute)
        for number, one in enumerate(tile.drift_noise_parameters or []):
            found[f"{name} {number}"] = one
    return found


def assert_same(one: Chip, other: Chip) -> None:
    mine, its = state(one), state(other)
    assert mine.keys() == its.keys()
    for name, value in mine.items():
        if value is None:
            assert its[name] is None
        else:
            assert value.dtype == its[name].dtype, name
            assert torch.equal(value, its[name]), name
    assert torch.equal(one(IMAGES, range(5)), other(IMAGES, range(5)))
    assert fingerprint(one) == fingerprint(other)


def times(memory: Any) -> tuple[float, ...]:
    return (1.0, 86400.0, 172800.0) if isinstance(memory, ReRamWan2022) else (0.0, 1.0, 1e7)


def assert_comes_back_at_every_time(memory: Any, tmp_path: Path) -> None:
    chip = program(network(), Profile(memory=memory), seed=3)
    save_chip(tmp_path / "chip", chip)
    back = load_chip(tmp_path / "chip", network(1))
    assert back.profile == chip.profile
    assert all(value is None or value.isfinite().all() for value in state(chip).values())
    assert_same(chip, back)
    for time in times(memory):
        later = chip.at(time)
        assert_same(later, back.at(time))
        save_chip(tmp_path / "later", later)
        assert_same(later, load_chip(tmp_path / "later", network(1)))


# Every fifth; tests/long has the whole product.
@pytest.mark.parametrize("memory", list(memories())[::5], ids=repr)
def test_a_memory_comes_back_at_every_time(memory: Any, tmp_path: Path) -> None:
    assert_comes_back_at_every_time(memory, tmp_path)


CLIPPED = Clipping("layer_gaussian", sigma=1.5)
OTHERS = {
    "adc": Profile(ADC(), memory=PCM(compensation="per_column")),
    "fixed range": Profile(ADC(range=4.0), memory=Hermes()),
    "percentile": Profile(ADC(percentile=90.0), memory=ReRamCMO()),
    "per chip": Profile(wnoise=WeightNoise(kind="pcm_read"), memory=ReRamWan2022()),
    "per operation": replace(noisy("constant", pcm=True), adc=ADC()),
    "clipped": Profile(ADC(), WeightNoise(), PCM(compensation="global"), CLIPPED),
    "no memory": Profile(ADC(), WeightNoise(), clipping=CLIPPED),
}


@pytest.mark.parametrize("engine", ["fast", "aihwkit"])
@pytest.mark.parametrize("name", OTHERS)
def test_what_else_a_profile_has_comes_back(name: str, engine: Any, tmp_path: Path) -> None:
    profile = OTHERS[name]
    chip = program(network(), profile, seed=3, calibration=IMAGES, engine=engine)
    save_chip(tmp_path / "chip", chip)
    back = load_chip(tmp_path / "chip", network(1))
    assert back.profile == profile
    assert_same(chip, back)
    if profile.memory is not None:
        assert_same(chip.at(86400.0), back.at(86400.0))


@pytest.mark.parametrize("value", [0.0, 0.3, -1e-30])
@pytest.mark.parametrize(
    "memory", [PCM(), Hermes(), ReRamWan2022(), ReRamCMO(), ReRamCMO(g_min=1e-3)]
)
def test_a_layer_of_equal_weights_is_finite_and_comes_back(
    memory: Any, value: float, tmp_path: Path
) -> None:
    model = network()
    model[3].weight.data.fill_(value)
    chip = program(model, Profile(memory=memory), seed=3)
    save_chip(tmp_path / "chip", chip)
    back = load_chip(tmp_path / "chip", network(1))
    for time in times(memory):
        assert chip.at(time)(IMAGES, range(5)).isfinite().all()
        assert_same(chip.at(time), back.at(time))
    off = (
        chip.analog[3].analog_module.tile.get_weights()
        - chip.analog[3].analog_module.reference_combined_weights
    )
    assert off.abs().max() < 1


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int32, torch.int64])
def test_masks_and_counters_of_the_network_come_back(dtype: torch.dtype, tmp_path: Path) -> None:
    class Masked(nn.Module):
        mask: torch.Tensor

        def __init__(self, seed: int, mask: list[int]):
            super().__init__()
            self.inner = network(seed)
            self.register_buffer("mask", torch.tensor(mask, dtype=dtype))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x) * self.mask

    chip = program(Masked(0, [1, 0, 1, 1]).eval(), Profile(memory=PCM()), seed=3)
    save_chip(tmp_path / "chip", chip)
    assert_same(chip, load_chip(tmp_path / "chip", Masked(1, [0, 0, 0, 0]).eval()))


def test_numpy_s_numbers_in_a_layer_s_geometry_are_plain(tmp_path: Path) -> None:
    def model(number: Any) -> nn.Module:
        layer = nn.Conv2d(1, 3, number(2), stride=(number(1), number(1)))
        return nn.Sequential(layer, nn.Flatten(), nn.Linear(12, 4)).eval().requires_grad_(False)

    chip = program(model(np.int64), Profile(memory=PCM()), seed=3)
    save_chip(tmp_path / "chip", chip)
    assert_same(chip, load_chip(tmp_path / "chip", model(int)))


def test_a_chip_of_version_0_1_0_still_comes_back() -> None:
    """Stored by that version, with its logits; of the network here, seed 3."""
    told = json.loads((DATA / "chip_0.1.0.json").read_text())
    chip = load_chip(DATA / "chip_0.1.0.safetensors", network(1))
    assert fingerprint(chip) == told["fingerprint"]
    memory = PCM(compensation="global", mapping=Pairs((1.0, 4.0)))
    profile = Profile(ADC(), WeightNoise(), memory)
    assert chip.profile == profile
    again = program(network(), profile, seed=3, calibration=IMAGES)
    for one, name in ((chip, "logits"), (chip.at(86400.0), "after a day"), (again, "logits")):
        wanted = torch.tensor(told[name])
        torch.testing.assert_close(one(IMAGES, range(5)), wanted, rtol=1e-5, atol=1e-5)
