"""Random streams: networks of equal names share them, labels part them, everything follows."""

import zlib
from copy import deepcopy
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import bridge
from bridge import Profile
from bridge.chips import PCM, OutputNoise, WeightNoise, load_chip, save_chip
from bridge.chips.files import fingerprint
from bridge.chips.layers import layer_failures
from bridge.chips.programming import Chip
from bridge.chips.streams import root_seed, stream_seed
from bridge.chips.tiles import named_tiles
from bridge.jax_chips import carried
from bridge.jax_chips import layer_failures as layer_failures_in_jax
from bridge.jax_chips.keys import chip_key

X = np.random.default_rng(0).normal(size=(64, 1, 4, 4)).astype(np.float32)
PROGRAMMING = Profile(memory=PCM(read_noise=0.0, drift=0.0))
READING = Profile(memory=PCM(programming_noise=0.0, drift=0.0))
WEIGHTS = Profile(wnoise=WeightNoise(0.05))
OPERATIONS = Profile(wnoise=WeightNoise(0.05, drawn="per_mvm"))
OUTPUTS = Profile(out_noise=OutputNoise(0.05))


def network(seed: int) -> nn.Sequential:
    """Two layers whose weights are in (0.5, 1], the largest 1, times signs that are always the
    same: a pair of devices draws for the one that holds the weight and the one that does not."""
    rng, signs = np.random.default_rng(seed), np.random.default_rng(99)
    made = nn.Sequential(nn.Flatten(), nn.Linear(16, 40), nn.Linear(40, 24)).eval()
    for layer in (made[1], made[2]):
        weight = rng.uniform(0.5, 1, layer.weight.shape) * signs.choice([-1, 1], layer.weight.shape)
        weight[0, 0] = 1
        layer.weight.data = torch.from_numpy(weight).float()
        layer.bias.data.zero_()
    return made.requires_grad_(False)


def weights(chip: Chip) -> np.ndarray:
    tiles = named_tiles(chip.analog).values()
    return np.concatenate([tile.tile.get_weights().numpy().ravel() for tile in tiles])


def deviations(seed: int, profile: Profile, **options: Any) -> np.ndarray:
    """What noise adds to the weights of the network of a seed, or to its first layer's outputs."""
    net = network(seed)
    if profile in (OPERATIONS, OUTPUTS):
        first, inputs = net[:2].eval(), torch.from_numpy(X)
        chip = bridge.program(first, profile, seed=3, **options)
        return (chip(inputs, range(len(X))) - first(inputs)).numpy().ravel()
    chip = bridge.program(net, profile, seed=3, **options)
    quiet = bridge.program(
        net, Profile(memory=PCM(read_noise=0, drift=0, programming_noise=0)), seed=0
    )
    return weights(chip) - weights(quiet)


@pytest.mark.parametrize("engine", ["fast", "aihwkit"])
@pytest.mark.parametrize(
    ("profile", "least"),
    [
        (PROGRAMMING, 0.9),  # its spread depends on the weight
        (READING, 0.9),
        (WEIGHTS, 0.9999),
        (OPERATIONS, 0.9999),
        (OUTPUTS, 0.9999),
    ],
    ids=["programming", "reading", "weights", "operations", "outputs"],
)
def test_networks_of_equal_names_share_their_noise_unless_labels_differ(
    profile: Profile, least: float, engine: Any
) -> None:
    one, other = (deviations(seed, profile, engine=engine) for seed in (0, 1))
    assert np.corrcoef(one, other)[0, 1] > least
    labelled = deviations(1, profile, engine=engine, stream="another")
    # Of n independent pairs the coefficient has the standard deviation 1 / sqrt(n).
    assert abs(np.corrcoef(one, labelled)[0, 1]) < 4 / np.sqrt(len(one))
    assert labelled.std() == pytest.approx(one.std(), rel=0.15)


def test_profiles_and_engines_of_one_label_are_one_chip() -> None:
    settings: dict[str, Any] = {"seed": 3, "stream": "a"}
    full = Profile(wnoise=WeightNoise(0.05), memory=PCM())
    both, alone = (
        bridge.program(network(0), one, **settings) for one in (full, Profile(memory=full.memory))
    )
    noise = weights(both) - weights(alone)
    only = weights(bridge.program(network(0), WEIGHTS, **settings))
    np.testing.assert_allclose(
        noise, only - weights(bridge.program(network(0), Profile(), seed=0)), atol=1e-6
    )
    slow = both.on("aihwkit")
    images = torch.from_numpy(X[:4])
    torch.testing.assert_close(slow(images, range(4)), both(images, range(4)), atol=1e-4, rtol=1e-4)


def test_without_a_label_all_is_as_it_was() -> None:
    """The numbers are those of the version before there were labels."""
    assert root_seed(3, None) == 3
    assert stream_seed(3, "programming", "1") == 7302504877812344045
    assert stream_seed(3, "reading", "1", 20.0) == 7359809010936268950
    assert stream_seed(3, "weight noise", "1") == 9066752145647163187
    assert stream_seed(3, "operation", "1", 0) == 7652629017494198373
    assert stream_seed(3, "operation", 7) == 4129524420726617773
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval().requires_grad_(False)
    net[1].weight.copy_(torch.linspace(-1, 1, 8).reshape(2, 4))
    net[1].bias.zero_()
    chip = bridge.program(net, Profile(wnoise=WeightNoise(0.05), memory=PCM()), seed=3)
    expected = [-0.8779, -0.6552, -0.4106, -0.0515, 0.1320, 0.5747, 0.6172, 0.9878]
    np.testing.assert_allclose(weights(chip), expected, atol=1e-4)
    operated = Profile(wnoise=WeightNoise(0.05, drawn="per_mvm"), out_noise=OutputNoise())
    for engine, logits in (
        ("fast", [[-2.1468, 2.2157], [-2.1971, 2.2315]]),
        ("aihwkit", [[-2.3579, 2.3000], [-2.2917, 2.3112]]),
    ):
        chip = bridge.program(net, operated, seed=3, engine=engine)
        found = chip(torch.ones(2, 1, 2, 2), [0, 5])
        torch.testing.assert_close(found, torch.tensor(logits), atol=2e-4, rtol=0)


def test_a_label_is_part_of_the_chip(tmp_path: Path) -> None:
    profile = Profile(
        wnoise=WeightNoise(0.05, drawn="per_mvm"), memory=PCM(), out_noise=OutputNoise(0.05)
    )
    images, indices = torch.from_numpy(X[:5]), range(5)
    chip, plain, other = (
        bridge.program(network(0), profile, seed=3, stream=label) for label in ("a", None, "b")
    )
    assert len({fingerprint(one) for one in (chip, plain, other)}) == 3
    assert (chip.stream, plain.stream, chip.seed) == ("a", None, 3)
    save_chip(tmp_path / "chip", chip)
    loaded = load_chip(tmp_path / "chip", network(1))
    assert (loaded.stream, fingerprint(loaded)) == ("a", fingerprint(chip))
    for same in (loaded, deepcopy(chip), chip.on("fast")):
        torch.testing.assert_close(same(images, indices), chip(images, indices))
        later = same.at(3600.0)
        assert (weights(later) == weights(chip.at(3600.0))).all()
        torch.testing.assert_close(later(images, indices), chip.at(3600.0)(images, indices))
    assert not np.allclose(weights(chip.at(3600.0)), weights(other.at(3600.0)))


def test_tables_follow_the_label(tmp_path: Path) -> None:
    net, samples = network(0), (X.transpose(0, 2, 3, 1), np.arange(64) % 24)
    chip, other = (bridge.program(net, OPERATIONS, seed=3, stream=one) for one in ("a", "b"))
    found = bridge.predict(chip, samples, out=tmp_path / "table.parquet")
    again = bridge.predict(chip, samples, out=tmp_path / "table.parquet")
    pd.testing.assert_frame_equal(found, again)
    with pytest.raises(ValueError, match="the weights or the chip are others"):
        bridge.predict(other, samples, out=tmp_path / "table.parquet")
    options: dict[str, Any] = {"profiles": {"n": OPERATIONS}, "chips": 1, "seed": 3, "keep": None}
    simulated = bridge.simulate(net, samples, stream="a", **options)
    np.testing.assert_allclose(np.stack(simulated["logits"]), np.stack(found["logits"]), atol=1e-4)
    assert simulated.attrs["simulation"]["stream"] == "a"
    folder = tmp_path / "simulated"
    bridge.simulate(net, samples, stream="a", out=folder, **options)
    with pytest.raises(ValueError, match="the weights or the chip are others"):
        bridge.simulate(net, samples, out=folder, **options)


def test_layers_are_tried_on_the_chips_of_the_label() -> None:
    net, profile = network(0), Profile(wnoise=WeightNoise(0.5))
    samples = (
        X.transpose(0, 2, 3, 1),
        bridge.predict(net, (X.transpose(0, 2, 3, 1), [0] * 64))["prediction"].to_numpy(),
    )
    for label in (None, "a"):
        table = layer_failures(net, profile, samples, seed=3, stream=label)
        chip = bridge.program(net, profile, seed=3, stream=label)
        wrong = ~bridge.predict(chip, samples)["correct"]
        assert table["failures"].iloc[-1] == wrong.sum() > 0


def test_a_label_is_folded_into_the_key_in_jax() -> None:
    params = {"w": network(0)[1].weight.numpy().T}

    def function(params: Any, images: Any) -> Any:
        return images.reshape(len(images), -1) @ params["w"]

    made = bridge.analog(function, params, Profile(wnoise=WeightNoise(0.5)), X)
    key = jax.random.fold_in(jax.random.key(3), zlib.crc32(b"cifar100"))
    assert chip_key(3, "cifar100") == key
    assert chip_key(3, None) == jax.random.key(3)
    noise = [
        np.asarray(made.program(params, one).params["w"] - params["w"]).ravel()
        for one in (jax.random.key(3), key)
    ]
    assert abs(np.corrcoef(*noise)[0, 1]) < 4 / np.sqrt(noise[0].size)
    labels = np.asarray(function(params, X)).argmax(-1)
    table = layer_failures_in_jax(made, (X, labels), seed=3, stream="cifar100")
    answers = made.apply(made.program(params, key), X).argmax(-1)
    assert table["failures"].iloc[-1] == (np.asarray(answers) != labels).sum() > 0


def test_a_carried_chip_keeps_its_label_s_key() -> None:
    chip = bridge.program(network(0), OPERATIONS, seed=3, stream="a")
    _, there = carried(chip, X)
    assert there.key == chip_key(3, "a")


@pytest.mark.parametrize("label", ["", 3, b"a"])
def test_bad_labels_are_refused(label: Any) -> None:
    for refuses in (
        lambda: bridge.program(network(0), WEIGHTS, seed=3, stream=label),
        lambda: chip_key(3, label),
    ):
        with pytest.raises(ValueError, match="stream must be a text that is not empty, or None"):
            refuses()
