"""Moments of programmed weights: against hand formulas, many programmings and AIHWKit's chips."""

import subprocess
import sys
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bridge
from bridge.chips import (
    PCM,
    Clipping,
    Hermes,
    MappedPairs,
    OutputNoise,
    Pairs,
    Profile,
    ReRamCMO,
    ReRamWan2022,
    SinglePair,
    WeightNoise,
)
from bridge.chips.memories import measured
from bridge.jax_chips import analog, devices, weight_moments
from jaxcurv import flip_probability
from tests.bridge.jax_chips.test_chips import torch_network
from tests.conftest import ROOT

HOUR, DAY, YEAR = 3600.0, 86400.0, 365 * 86400.0
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(6, 9, 9, 3)).astype(np.float32)
LEVELS = np.unique(
    [*np.linspace(-1, 1, 33), *(s * x for s in (-1, 1) for x in (0.004, 0.02, 0.98))]
)

MAPPINGS: list[Any] = [
    SinglePair(),
    SinglePair(g_min=2.0),
    Pairs((1.0, 4.0), g_min=0.5),
    Pairs(),
    MappedPairs((1.0,), ((0.0, 5.0, 25.0), (25.0, 5.0, 0.0))),
]
MEMORIES: list[Any] = [
    *(PCM(t_inference=t, mapping=one) for one in MAPPINGS for t in (0.0, YEAR)),
    *(replace(PCM(t_inference=HOUR), **{factor: 0.0}) for factor in ("drift", "read_noise")),
    PCM(t_inference=HOUR, programming_noise=0.1, drift=3.0, read_noise=2.0),
    Hermes(t_inference=HOUR),
    Hermes(devices=1, g_max=9.0, t_inference=YEAR),
    *(ReRamWan2022(t_inference=t, mapping=one) for t in (1.0, 2 * DAY) for one in MAPPINGS[1:3]),
    *(ReRamCMO(t_inference=t, acceptance=a) for t in (1.0, YEAR) for a in (0.2, 2.0)),
    ReRamCMO(t_inference=HOUR, g_min=5.0, programming_noise=3.0, drift=4.0, read_noise=2.0),
]


def programmed(memory: Any, targets: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights of so many tiles, at the memory's time and right after programming."""

    def one(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        first, second = jax.random.split(key)
        weights, state = devices.program(memory, first, jnp.asarray(targets, jnp.float32))
        return devices.read(memory, second, weights, state), weights

    read, before = jax.lax.map(jax.jit(one), jax.random.split(jax.random.key(7), count))
    return np.asarray(read, np.float64), np.asarray(before, np.float64)


@pytest.mark.parametrize("memory", MEMORIES, ids=repr)
def test_moments_are_those_of_many_programmings(memory: Any) -> None:
    """Within 5 standard errors of 16,000 draws of each target and 1e-4 of the largest weight."""
    columns, count = 400, 40
    targets = np.repeat(LEVELS[:, None], columns, 1)
    moments = memory.moments(targets)
    read, before = programmed(memory, targets, count)
    draws = read.transpose(1, 0, 2).reshape(len(LEVELS), -1)
    size = draws.shape[1] ** 0.5
    mean, spread = draws.mean(1), draws.std(1)
    assert np.all(np.abs(moments.mean[:, 0] - mean) < 5 * spread / size + 1e-4)
    squares = (draws - mean[:, None]) ** 2
    off = np.abs(moments.variance[:, 0] - squares.mean(1))
    assert np.all(off < 5 * squares.std(1) / size + 2e-4 * spread)
    for magnitude, weights in ((moments.magnitude, read), (moments.programmed, before)):
        expected, error = np.abs(weights).mean(), 1e-3 * np.abs(LEVELS).mean()
        assert magnitude.mean() == pytest.approx(expected, abs=error)
    assert spread.max() > 1e-3


@pytest.mark.parametrize("memory", [PCM(t_inference=HOUR, mapping=SinglePair(2.0)), ReRamCMO()])
@pytest.mark.parametrize("targets", [[[1.0]], [[-1.0]], [[1.0, -0.9, 0.2]]])
def test_the_largest_weight_of_a_small_tile_may_be_the_weight_itself(
    memory: Any, targets: Any
) -> None:
    moments = memory.moments(np.array(targets))
    read, _ = programmed(memory, np.array(targets), 40_000)
    assert np.all(np.abs(moments.mean - read.mean(0)) < 5 * read.std(0) / 200 + 1e-4)
    np.testing.assert_allclose(moments.variance**0.5, read.std(0), rtol=0.03, atol=1e-4)


@pytest.mark.parametrize("memory", [PCM(), Hermes(), ReRamWan2022(), ReRamCMO()])
def test_tiles_of_zeros_have_moments(memory: Any) -> None:
    """A spread of 4,000 draws of a normal is known to 1.1 %, five times which is 0.06."""
    moments = memory.moments(np.zeros((3, 4)))
    read, _ = programmed(memory, np.zeros((3, 4)), 4000)
    np.testing.assert_allclose(moments.mean, read.mean(0), atol=0.1 * float(read.std()))
    np.testing.assert_allclose(moments.variance**0.5, read.std(0), rtol=0.06)


@pytest.mark.parametrize("mapping", MAPPINGS, ids=repr)
def test_without_noise_and_drift_weights_are_their_targets(mapping: Any) -> None:
    targets = RNG.uniform(-1, 1, (20, 30))
    targets[0, 0] = 1.0
    silent = PCM(programming_noise=0.0, drift=0.0, read_noise=0.0, mapping=mapping)
    for memory in (silent, ReRamWan2022(noise=0.0, mapping=mapping, g_max=25.0)):
        moments = memory.moments(targets)
        np.testing.assert_allclose(moments.mean, targets, atol=1e-6)
        np.testing.assert_allclose(moments.variance, 0.0, atol=1e-12)
        np.testing.assert_allclose(moments.magnitude, np.abs(targets), atol=1e-6)


def test_drift_alone_is_the_mean_power_of_time() -> None:
    """Against the integral over the exponents, by Simpson's rule on a fine grid."""
    memory = PCM(t_inference=YEAR, programming_noise=0.0, read_noise=0.0)
    targets = np.array([[1.0, 0.7, -0.3, 0.05, -0.002]])
    moments = memory.moments(targets)
    z = np.linspace(-9, 9, 20_001)[:, None]
    chance = np.exp(-(z**2) / 2) / np.exp(-(z**2) / 2).sum()
    mean, spread = measured.PCM.exponent(np.abs(targets))
    power = ((YEAR + 20) / 20) ** -np.abs(mean + spread * z)
    first, second = (chance * power).sum(0), (chance * power**2).sum(0)
    np.testing.assert_allclose(moments.mean[0], targets[0] * first, atol=2e-5)
    spreads = np.abs(targets[0]) * np.sqrt(second - first**2)
    np.testing.assert_allclose(moments.variance[0] ** 0.5, spreads, atol=2e-5)


def test_programming_noise_alone_is_a_difference_of_cut_normals() -> None:
    """A device at 0 has a half-normal: mean sigma / sqrt(2 pi), variance sigma^2 (1 - 1 / pi) / 2.
    One far from 0 has the normal itself."""
    memory = PCM(drift=0.0, read_noise=0.0)
    moments = memory.moments(np.array([[1.0, 0.6, 0.0]]))
    idle = 0.26348 / 25
    strong = np.polyval([-1.1731, 1.9650, 0.26348], [1.0, 0.6]) / 25
    half = idle**2 * (1 - 1 / np.pi) / 2
    expected = [1.0 - idle / np.sqrt(2 * np.pi), 0.6 - idle / np.sqrt(2 * np.pi), 0.0]
    np.testing.assert_allclose(moments.mean[0], expected, atol=1e-6)
    np.testing.assert_allclose(moments.variance[0, :2], strong**2 + half, rtol=1e-5)
    assert moments.variance[0, 2] == pytest.approx(2 * half, rel=1e-5)


def test_one_second_of_cmo_is_its_decay_s_spread_and_a_reading() -> None:
    memory = ReRamCMO(t_inference=1.0, programming_noise=0.0)
    targets = np.array([[1.0, 0.25, -1.0]])
    moments = memory.moments(targets)
    g = (targets[0, 1] + 1) * (88.2 - 9) / 2 + 9
    z = np.linspace(-9, 9, 20_001)
    chance = np.exp(-(z**2) / 2) / np.exp(-(z**2) / 2).sum()
    sigma = 0.0277316483 * np.log10(g + 0.41183342 * z) * np.sqrt(np.log((1 + 1e-6) / 2e-6))
    variance = 0.41183342**2 + (chance * sigma**2).sum()
    assert moments.variance[0, 1] == pytest.approx(variance * (2 / 79.2) ** 2, rel=1e-3)
    assert moments.mean[0, 1] == pytest.approx(0.25, abs=1e-5)
    at_once = ReRamCMO(t_inference=0.0).moments(targets)
    np.testing.assert_array_equal(at_once.mean, targets)
    spread = (0.00081107 + 0.00106879 * g) * 2 / 79.2
    assert at_once.variance[0, 1] == pytest.approx(spread**2)


# --- of a whole chip


def linear(params: Any, x: jax.Array) -> jax.Array:
    return x @ params["w"]


PROFILES: list[Profile] = [
    *(
        Profile(memory=PCM(t_inference=DAY, compensation=one))
        for one in ("global", "global_exact", "per_column")
    ),
    Profile(wnoise=WeightNoise(0.05, "pcm_read"), memory=Hermes(compensation="global")),
    Profile(wnoise=WeightNoise(0.05), memory=ReRamCMO(t_inference=YEAR, compensation="per_column")),
    Profile(
        wnoise=WeightNoise(0.05, "pcm_read"),
        memory=ReRamWan2022(compensation="global_exact"),
        clipping=Clipping("layer_gaussian", sigma=1.5),
    ),
    Profile(wnoise=WeightNoise(0.05), clipping=Clipping("fixed_value", fixed_value=0.5)),
]


@pytest.mark.parametrize("profile", PROFILES, ids=repr)
def test_moments_of_a_chip_are_those_of_its_programmings(profile: Profile) -> None:
    """Compensation, weight noise and clipping: 300 chips of 6,000 weights.

    The squared deviations of the means in their standard errors are 1 in the mean, and so are the
    ratios of the variances; 3 % are left to what the factors of compensations vary by.
    """
    params = {"w": jnp.asarray(RNG.normal(size=(100, 60)) * 0.3, jnp.float32)}
    chip = analog(linear, params, profile, RNG.normal(size=(3, 100)).astype(np.float32))
    moments = weight_moments(chip)
    keys = jax.random.split(jax.random.key(1), 300)
    chips = jax.lax.map(lambda key: chip.program(params, key).params["w"], keys)
    deviations = np.asarray(chips, np.float64) - np.asarray(params["w"], np.float64)
    mean, variance = (np.asarray(one["w"], np.float64) for one in moments[:2])
    assert moments.mean["w"].dtype == moments.variance["w"].dtype == np.float32
    squared = (deviations.mean(0) - mean) ** 2 / (variance / 300)
    assert squared.mean() == pytest.approx(1, abs=5 * (2 / 6000) ** 0.5 + 0.03)
    ratio = deviations.var(0, ddof=1) / variance
    assert ratio.mean() == pytest.approx(1, abs=5 * ratio.std() / 6000**0.5 + 0.03)


@pytest.mark.parametrize("kind", ["constant", "pcm_read"])
def test_weight_noise_alone_is_exact(kind: Any) -> None:
    weights = RNG.normal(size=(700, 3)).astype(np.float32)  # two tiles
    weights[:350, 1] = 0.0
    params = {"w": jnp.asarray(weights)}
    chip = analog(linear, params, Profile(wnoise=WeightNoise(0.03, kind)), np.zeros((2, 700)))
    moments = weight_moments(chip)
    assert not moments.mean["w"].any()
    for half in (slice(0, 350), slice(350, 700)):
        tile = weights[half].astype(np.float64)
        largest = np.abs(tile).max()
        share = np.abs(tile) / largest if kind == "pcm_read" else 1.0
        expected = np.broadcast_to((0.03 * largest) ** 2 * share, tile.shape)
        np.testing.assert_allclose(moments.variance["w"][half], expected, rtol=2e-7, atol=0)


def test_tiles_of_zeros_have_no_weight_noise() -> None:
    weights = RNG.normal(size=(700, 3)).astype(np.float32)
    weights[:350] = 0.0
    params = {"w": jnp.asarray(weights)}
    chip = analog(linear, params, bridge.PROFILES["wnoise"], np.zeros((2, 700), np.float32))
    made = chip.program(params, jax.random.key(0)).params["w"]
    np.testing.assert_array_equal(made[:350], 0.0)
    variance = weight_moments(chip).variance["w"]
    assert not variance[:350].any()
    assert variance[350:].all()


def in_layouts(params: Any, x: jax.Array) -> jax.Array:
    """A transposed half of one parameter and the other half, one of 16 bits, one that is scaled,
    one that a loop takes apart, and a bias."""
    x = x @ params["halves"][0].T
    x = jax.nn.relu(x) @ params["halves"][1].T
    x = x @ params["short"].astype(jnp.float32)
    x = x @ (2 * params["scaled"]) + params["bias"]
    return jax.lax.scan(lambda y, w: (jnp.tanh(y @ w), None), x, params["stack"])[0]


def test_moments_stand_where_the_weights_do() -> None:
    """And nowhere else: a weight that is computed, as a scaled one, stays digital."""
    shapes = {"halves": (2, 8, 8), "short": (8, 8), "scaled": (8, 8), "stack": (3, 8, 8)}
    params = {
        name: jnp.asarray(RNG.normal(size=shape), jnp.float32) for name, shape in shapes.items()
    }
    params["short"] = params["short"].astype(jnp.bfloat16)
    params["bias"] = jnp.ones(8)
    with pytest.warns(UserWarning, match="scaled .the weight is computed from parameters"):
        chip = analog(
            in_layouts, params, Profile(wnoise=WeightNoise(0.1, "pcm_read")), np.ones((2, 8))
        )
    moments = weight_moments(chip)
    assert jax.tree.structure(moments.variance) == jax.tree.structure(params)
    programs = jax.vmap(chip.program, (None, 0))(params, jax.random.split(jax.random.key(0), 200))
    for name in params:
        changed = np.asarray(programs.params[name] - params[name][None], np.float64)
        variance = np.asarray(moments.variance[name], np.float64)
        assert variance.shape == params[name].shape
        if name in ("scaled", "bias"):
            assert not variance.any()
            assert not changed.any()
            continue
        # Weights of a 16-bit parameter are rounded to it.
        ratio = changed.var(0, ddof=1) / variance
        assert ratio.mean() == pytest.approx(1, abs=0.1)
        assert np.all(np.abs(np.log(ratio)) < 0.7)


def test_a_flip_probability_takes_them() -> None:
    params = {"w": jnp.asarray(RNG.normal(size=(20, 2)), jnp.float32)}
    images = RNG.normal(size=(5, 20)).astype(np.float32)
    chip = analog(linear, params, bridge.PROFILES["wnoise"], images)
    samples = [{"image": x, "label": 0, "index": n} for n, x in enumerate(images)]
    table = flip_probability(linear, samples, params=params, moments=weight_moments(chip))
    assert not table["shift"].any()
    largest = float(jnp.abs(params["w"]).max())
    expected = 2 * (0.02 * largest) ** 2 * (images**2).sum(1)
    np.testing.assert_allclose(table["variance"], expected, rtol=1e-5)
    with pytest.raises(ValueError, match=r"moments weights are of other weights: \['w'\] differs"):
        flip_probability(
            linear, samples, params={"w": 2 * params["w"]}, moments=weight_moments(chip)
        )


@pytest.fixture(scope="module")
def both() -> tuple[Any, Any, Any]:
    """A network in torch, and its function and parameters in JAX."""
    network = torch_network()
    return network, *bridge.to_jax(network, IMAGES)


@pytest.mark.parametrize(
    "profile", [*PROFILES, bridge.PROFILES["adc+wnoise+pcm"], bridge.PROFILES["ideal"]], ids=repr
)
def test_torch_gives_the_same_moments(both: tuple[Any, Any, Any], profile: Profile) -> None:
    network, logits_fn, params = both
    in_torch = bridge.weight_moments(network, profile)
    in_jax = weight_moments(analog(logits_fn, params, profile, IMAGES))
    assert in_torch.keys() == {name for name in params if name.endswith("weight")}
    for name, one in in_torch.items():
        tolerance = 1e-5 * float(jnp.abs(params[name]).max())
        np.testing.assert_allclose(in_jax.mean[name], one.mean, rtol=1e-5, atol=tolerance)
        np.testing.assert_allclose(in_jax.variance[name], one.variance, rtol=1e-5, atol=0)


# --- memories of one's own


@dataclass(frozen=True)
class Shrinking:
    """All weights halve, with a spread of 0.1."""

    t_inference: float = 1.0
    compensation: Any = None
    name: ClassVar[str] = "shrinking"

    def noise_model(self) -> Any:
        raise NotImplementedError

    def program(self, key: jax.Array, targets: jax.Array) -> tuple[jax.Array, None]:
        return targets + 0.2 * jax.random.normal(key, targets.shape), None

    def read(self, key: jax.Array, programmed: jax.Array, state: None) -> jax.Array:
        return programmed / 2


@dataclass(frozen=True)
class Known(Shrinking):
    def moments(self, targets: np.ndarray) -> Any:
        variance = np.full(targets.shape, 0.01)
        return targets / 2, variance, np.abs(targets) / 2, np.abs(targets)


@dataclass(frozen=True)
class Short(Shrinking):
    def moments(self, targets: np.ndarray) -> Any:
        return targets / 2, 0.01


def test_a_memory_of_ones_own_gives_its_moments() -> None:
    params = {"w": jnp.asarray(RNG.normal(size=(20, 2)), jnp.float32)}
    largest = float(jnp.abs(params["w"]).max())

    def of(memory: Any) -> Any:
        return weight_moments(analog(linear, params, Profile(memory=memory), np.ones((2, 20))))

    moments = of(Known())
    np.testing.assert_allclose(moments.mean["w"], -params["w"] / 2, rtol=1e-5)
    np.testing.assert_allclose(moments.variance["w"], (0.1 * largest) ** 2, rtol=1e-5)
    compensated = of(Known(compensation="global"))
    np.testing.assert_allclose(compensated.mean["w"], 0.0, atol=1e-6)
    np.testing.assert_allclose(compensated.variance["w"], (0.2 * largest) ** 2, rtol=1e-5)
    with pytest.raises(ValueError, match=r"Shrinking has no method moments: give it moments\("):
        of(Shrinking())
    with pytest.raises(ValueError, match=r"Short.moments must return .* \(2, 20\); got shapes"):
        of(Short())


def test_torch_is_not_needed() -> None:
    code = """
import sys, jax.numpy as jnp, numpy as np, bridge
params = {"w": jnp.ones((4, 2)) * jnp.arange(8.0).reshape(4, 2)}
profile = bridge.PROFILES["wnoise+pcm"]
chip = bridge.analog(lambda p, x: x @ p["w"], params, profile, np.ones((2, 4)))
assert bridge.jax_chips.weight_moments(chip).variance["w"].all()
assert not {"torch", "aihwkit"} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize(
    "noise",
    [
        {"out_noise": OutputNoise(0.12)},
        {"wnoise": WeightNoise(0.1, drawn="per_mvm")},
        {"wnoise": WeightNoise(0.5, kind="pcm_read", drawn="per_mvm")},
    ],
    ids=["output", "weight", "pcm_read"],
)
@pytest.mark.parametrize(
    "compensation",
    [
        "global",
        *(pytest.param(one, marks=pytest.mark.long) for one in ("global_exact", "per_column")),
    ],
)
def test_a_compensation_reads_with_the_noise_of_operations(
    compensation: Any, noise: dict[str, Any]
) -> None:
    """The gain of the large weights, which would be off by 2 % and more without it."""
    rng = np.random.default_rng(0)
    weight = jnp.asarray(rng.normal(size=(200, 40)) * 0.1, jnp.float32)
    images = rng.normal(size=(4, 200)).astype(np.float32)
    memory = PCM(compensation=compensation, t_inference=3600.0)
    gains = {}
    for name, given in (("with", noise), ("without", {})):
        chip = analog(lambda p, x: x @ p, weight, Profile(memory=memory, **given), images)
        keys = jax.random.split(jax.random.key(1), 60)
        drawn = jax.lax.map(lambda key, chip=chip: chip.program(weight, key).params, keys)
        large = jnp.abs(weight) > 0.4 * jnp.abs(weight).max()

        def gain(deviation: Any, large: Any = large) -> float:
            moved = (deviation * jnp.sign(weight))[large].mean()
            return float(moved / jnp.abs(weight)[large].mean())

        gains[name] = gain(weight_moments(chip).mean), gain(drawn.mean(0) - weight)
    (predicted, seen), (plain, _) = gains["with"], gains["without"]
    assert abs(seen - plain) > 0.02
    assert abs(predicted - seen) < 0.3 * abs(seen - plain)
