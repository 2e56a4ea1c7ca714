"""AIHWKit's memory devices on a chip: closed-form statistics, conversion, compensation of drift."""

import math
from collections import OrderedDict
from dataclasses import replace

import pytest
import torch
from torch import nn

from bridge import Profile, program
from bridge.chips import (
    ADC,
    PCM,
    Chip,
    Hermes,
    MappedPairs,
    Pairs,
    ReRamCMO,
    ReRamWan2022,
    SinglePair,
    WeightNoise,
    eight_profiles,
)
from bridge.chips.memories.protocol import Memory
from bridge.chips.profiles import from_json, to_json
from bridge.chips.tiles import named_tiles, output_scale

MEMORIES = [PCM(), Hermes(), Hermes(devices=1), ReRamWan2022(), ReRamCMO(t_inference=3600.0)]
LEVELS = torch.tensor([0.3, 0.6, 1.0])


def levels(rows: int = 150, columns: int = 300) -> nn.Module:
    """Rows of weights 0.3, 0.6, 1, 0.3, ... and a last row of -1."""
    model = nn.Sequential(OrderedDict(fc=nn.Linear(columns, rows + 1, bias=False)))
    weight = LEVELS.repeat(rows // 3)[:, None].expand(rows, columns)
    model.fc.weight.data = torch.cat([weight, -torch.ones(1, columns)]).contiguous()
    return model.eval().requires_grad_(False)


def chip_with(memory: Memory, seed: int = 0, model: nn.Module | None = None) -> Chip:
    return program(model or levels(), Profile(memory=memory), seed=seed)


def weights(chip: Chip) -> torch.Tensor:
    (tile,) = named_tiles(chip.analog).values()
    return tile.tile.get_weights()


def programmed(chip: Chip) -> torch.Tensor:
    (tile,) = named_tiles(chip.analog).values()
    return tile.programmed_weights


def polynomial(coefficients: list[float], x: float) -> float:
    return sum(c * x**n for n, c in enumerate(coefficients))


def check_spread(errors: torch.Tensor, expected: float) -> None:
    sample = errors.double()
    count = sample.numel()
    assert sample.std().item() == pytest.approx(expected, rel=5 / math.sqrt(2 * count) + 0.01)


@pytest.mark.parametrize("memory", MEMORIES, ids=lambda m: f"{m.name}-{getattr(m, 'devices', '')}")
def test_a_memory_makes_a_reproducible_chip(memory: Memory) -> None:
    one, same, other = chip_with(memory), chip_with(memory), chip_with(memory, seed=1)
    assert one.name == memory.name
    assert torch.equal(weights(one), weights(same))
    assert not torch.equal(weights(one), weights(other))
    x = torch.randn(5, 300, generator=torch.Generator().manual_seed(0))
    fast, tiles = one(x, range(5)), one.on("aihwkit")(x, range(5))
    assert (fast - tiles).norm() < 1e-5 * tiles.norm()
    ideal = program(levels(), Profile(), seed=0)(x, range(5))
    assert 1e-3 < float((fast - ideal).norm() / ideal.norm()) < 0.5


@pytest.mark.parametrize(
    ("memory", "coefficients", "g_max"),
    [
        (Hermes(), [0.16603222, 4.71806468, -8.48101252, 4.68961419], 20.7),
        (Hermes(devices=1), [0.15781817, 2.32443916, -2.16310839, 0.68841818], 10.35),
        (ReRamWan2022(), [0.348, 16.030, -43.853, 45.393, -16.815], 40.0),
        (ReRamWan2022(g_max=20.0), [0.348, 16.030, -43.853, 45.393, -16.815], 20.0),
    ],
    ids=["hermes 2", "hermes 1", "reram", "reram at 20 uS"],
)
def test_programming_noise_of_other_memories(
    memory: Memory, coefficients: list[float], g_max: float
) -> None:
    """The polynomials as published, in uS at the reference conductance; they scale with g_max."""
    reference = 40.0 if isinstance(memory, ReRamWan2022) else g_max
    if isinstance(memory, Hermes):
        quiet: Memory = replace(memory, drift=0.0, read_noise=0.0)
    else:
        quiet = memory
    errors = (programmed(chip_with(quiet)) - levels().fc.weight) * g_max
    scale = g_max / reference
    empty = coefficients[0] * scale  # of the pair's other device, cut at zero
    for row, level in enumerate(LEVELS.tolist()):
        spread = polynomial(coefficients, level) * scale
        expected = math.sqrt(spread**2 + empty**2 * (0.5 - 0.5 / math.pi))
        check_spread(errors[row:-1:3], expected)


def test_reram_spread_grows_with_the_days() -> None:
    chip = chip_with(ReRamWan2022())
    spreads = []
    for t in (1.0, 86400.0, 172800.0):
        later = chip.at(t)
        spreads.append(float((weights(later) - levels().fc.weight)[1:-1:3].std()))
    day = polynomial([0.701, 22.086, -50.773, 47.095, -16.458], 0.6) / 40
    assert spreads[1] == pytest.approx(math.hypot(day, 0.701 / 40 * 0.584), rel=0.02)
    assert spreads[0] < spreads[1] < spreads[2]
    assert weights(chip.at(86400.0))[2:-1:3].mean() == pytest.approx(1.0, abs=0.02)


def test_cmo_programs_within_its_acceptance() -> None:
    for acceptance, (constant, slope) in {
        0.2: (0.00081107, 0.00106879),
        2.0: (0.0112185391, 0.01129027418),
    }.items():
        chip = chip_with(ReRamCMO(acceptance=acceptance, t_inference=0.0, read_noise=0.0))
        per_weight = (88.2 - 9.0) / 2.0  # one device from -1 to 1
        errors = (weights(chip) - levels().fc.weight) * per_weight
        for row, level in enumerate(LEVELS.tolist()):
            g = 9.0 + (level + 1) * per_weight
            check_spread(errors[row:-1:3], constant + slope * g)


def test_hermes_drifts_from_its_own_reference_time() -> None:
    chip = chip_with(Hermes(programming_noise=0.0, read_noise=0.0))
    (tile,) = named_tiles(chip.analog).values()
    plus, minus = tile.drift_noise_parameters
    target = levels().fc.weight
    exponent = torch.where(target > 0, plus, minus)
    assert 0.01 < exponent.mean() < 0.1
    torch.testing.assert_close(weights(chip.at(1e5)), target * ((1e5 + 300) / 300) ** -exponent)


@pytest.mark.parametrize("factor", ["programming_noise", "drift", "read_noise"])
def test_factors_act_on_their_own_effect(factor: str) -> None:
    off = {"programming_noise": 0.0, "drift": 0.0, "read_noise": 0.0}
    quiet = chip_with(PCM(**off, t_inference=1e4))
    torch.testing.assert_close(weights(quiet), levels().fc.weight)
    one, two = (
        weights(chip_with(PCM(**{**off, factor: value}, t_inference=1e4))) - levels().fc.weight
        for value in (0.5, 1.0)
    )
    assert one.norm() > 0.01 * levels().fc.weight.norm()
    assert 1.5 < float(two.norm() / one.norm()) < 2.1


# From weights to conductances

IDENTITY = MappedPairs((1.0,), ((0.0, 0.0, 25.0), (25.0, 0.0, 0.0)))


@pytest.mark.parametrize(
    "mapping",
    [SinglePair(g_min=2.0), Pairs(), Pairs((1.0, 3.0), g_min=1.0), IDENTITY],
    ids=["single", "dual", "weighted", "mapped"],
)
def test_a_mapping_loses_nothing(mapping: SinglePair | Pairs | MappedPairs) -> None:
    quiet = PCM(mapping=mapping, programming_noise=0, drift=0, read_noise=0)
    torch.testing.assert_close(weights(chip_with(quiet)), levels().fc.weight)


def test_more_pairs_program_more_exactly() -> None:
    quiet = PCM(drift=0.0, read_noise=0.0)
    single = weights(chip_with(quiet)) - levels().fc.weight
    four = weights(chip_with(replace(quiet, mapping=Pairs((1.0,) * 4)))) - levels().fc.weight
    # The largest weight: four full pairs, of four independent errors each a quarter as large.
    assert float(four[2:-1:3].std() / single[2:-1:3].std()) == pytest.approx(0.5, rel=0.02)


# Compensation


@pytest.mark.parametrize("compensation", ["global", "global_exact", "per_column"])
@pytest.mark.parametrize("memory", [PCM(), Hermes()], ids=["pcm", "hermes"])
def test_compensation_restores_the_mean(memory: PCM | Hermes, compensation: str) -> None:
    model = levels()
    year = 3.15e7
    raw = chip_with(memory).at(year)
    cured = chip_with(replace(memory, compensation=compensation)).at(year)
    assert torch.equal(weights(raw), weights(cured))  # the same chip
    (tile,) = named_tiles(cured.analog).values()
    aim = {"global_exact": model.fc.weight}.get(compensation, tile.programmed_weights).abs()
    now = (output_scale(tile)[:, None] * weights(cured)).abs()
    if compensation == "per_column":
        torch.testing.assert_close(now.mean(1), aim.mean(1), rtol=1e-4, atol=0)
    else:
        torch.testing.assert_close(now.mean(), aim.mean(), rtol=1e-4, atol=0)
    assert weights(raw).abs().mean() < 0.8 * aim.mean()
    x = torch.rand(4, 300, generator=torch.Generator().manual_seed(0))
    fast, tiles = cured(x, range(4)), cured.on("aihwkit")(x, range(4))
    assert (fast - tiles).norm() < 1e-5 * tiles.norm()


def test_compensation_has_aihwkit_s_factor() -> None:
    chip = chip_with(PCM(compensation="global", programming_noise=0.0, read_noise=0.0))
    (tile,) = named_tiles(chip.at(1e6).analog).values()
    now, then = tile.tile.get_weights().abs().mean(), tile.programmed_weights.abs().mean()
    torch.testing.assert_close(tile.alpha.view(()), then / now)


def test_compensation_with_a_converter_and_noise() -> None:
    model = levels(30, 40)
    x = torch.rand(6, 40, generator=torch.Generator().manual_seed(0))
    profile = Profile(ADC(12), WeightNoise(0.005), PCM(t_inference=1e6, compensation="global"))
    chip = program(model, profile, seed=0, calibration=x.view(6, 1, 1, 40))
    tiles = chip.on("aihwkit")(x, range(6))
    assert (chip(x, range(6)) - tiles).norm() < 1e-3 * tiles.norm()
    assert (tiles - model(x)).norm() < 0.1 * model(x).norm()


# Settings


def test_profiles_are_named_after_their_memory() -> None:
    assert list(eight_profiles(memory=ReRamCMO()))[-1] == "adc+wnoise+reram_cmo"


@pytest.mark.parametrize(
    ("make_setting", "message"),
    [
        (lambda: Hermes(devices=3), "devices must be 1 or 2"),
        (lambda: Hermes(devices=1, g_max=20.7), "at most 10.35"),
        (lambda: Hermes(t_inference=-1.0), "t_inference"),
        (lambda: ReRamWan2022(t_inference=60.0), "86400"),
        (lambda: ReRamCMO(g_min=90.0), "g_min must be below g_max"),
        (lambda: ReRamCMO(acceptance=1.0), "0.2 and 2"),
        (lambda: ReRamCMO(t_inference=0.5), "at least 1"),
        (lambda: PCM(compensation="local"), "compensation must be"),
        (lambda: PCM(mapping=SinglePair(g_min=30.0)), "g_min must be below"),
        (lambda: Pairs(()), "factors"),
        (lambda: Pairs((1.0, 0.0)), "factor"),
        (lambda: MappedPairs((1.0,), ((0.0, 1.0),)), "two lists"),
        (lambda: MappedPairs((1.0,), ((0.0, 1.0), (1.0, 0.0, 0.0))), "two lists"),
    ],
)
def test_bad_memories_are_refused(make_setting, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_setting()


@pytest.mark.parametrize(
    "profile",
    [
        Profile(),
        *eight_profiles().values(),
        *[Profile(ADC(range=3.0), memory=memory) for memory in MEMORIES],
        Profile(memory=PCM(mapping=IDENTITY, compensation="per_column")),
    ],
    ids=lambda profile: profile.name,
)
def test_profiles_survive_json(profile: Profile) -> None:
    assert from_json(to_json(profile)) == profile


@pytest.mark.parametrize(
    "value",
    [
        {"kind": "print", "settings": {}},
        {"kind": "PCM", "settings": {"colour": 1}},
        {"kind": "PCM", "settings": {"g_max": -1.0}},
        {"kind": "PCM"},
    ],
)
def test_other_json_is_refused(value: dict) -> None:
    with pytest.raises(ValueError, match=r"not |must be"):
        from_json(value)
