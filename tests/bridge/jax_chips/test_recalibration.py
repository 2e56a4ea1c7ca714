"""BatchNorm statistics that a chip in JAX measures itself, and several reads of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen, nnx
from torch import nn

import bridge
from bridge import PROFILES
from bridge.chips import ADC, Profile, WeightNoise
from bridge.jax_chips import (
    Chip,
    Programmed,
    carried,
    load_programmed,
    predict,
    recalibrate,
    save_programmed,
    with_digital_of,
)
from bridge.jax_chips.chips import paths
from tests.refusals import refused

IMAGES = np.random.default_rng(0).normal(size=(30, 8, 8, 3)).astype(np.float32)
PER_MVM = Profile(wnoise=WeightNoise(0.1, drawn="per_mvm"))


class Torch(nn.Module):
    """A BatchNorm of one channel, one of as many as there are pixels, and one of vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow, self.narrow_bn = nn.Conv2d(3, 1, 1), nn.BatchNorm2d(1)
        self.conv, self.conv_bn = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.fc, self.fc_bn = nn.Linear(8, 5), nn.BatchNorm1d(5, affine=False)
        generator = torch.Generator().manual_seed(1)
        for name, tensor in self.state_dict().items():
            if tensor.is_floating_point():
                tensor.normal_(generator=generator)
                if name.endswith("var"):
                    tensor.abs_().add_(0.5)
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.narrow_bn(self.narrow(x)))
        x = torch.relu(self.conv_bn(self.conv(x))).mean((2, 3))
        return self.fc_bn(self.fc(x))


def test_statistics_are_those_of_the_same_chip_in_torch() -> None:
    chip = bridge.program(Torch(), PROFILES["pcm"], seed=0)
    made, weights = carried(chip, IMAGES)
    found = recalibrate(made, weights, IMAGES, batch_size=7)
    expected = bridge.recalibrate(chip, IMAGES)
    for name, value in expected.analog.named_buffers():
        if "running" in name:
            np.testing.assert_allclose(found.params[name], value, rtol=1e-4, atol=1e-5)
    for name in weights.params:
        if "running" not in name:
            assert np.array_equal(found.params[name], weights.params[name]), name
    np.testing.assert_allclose(
        made.apply(found, IMAGES),
        expected(torch.from_numpy(IMAGES).permute(0, 3, 1, 2), range(30)),
        rtol=1e-3,
        atol=1e-3,
    )


class Flax(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.conv = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.conv_bn = nnx.BatchNorm(8, use_running_average=True, rngs=rngs)
        self.fc = nnx.Linear(8, 5, rngs=rngs)
        self.fc_bn = nnx.BatchNorm(5, use_running_average=True, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = nnx.relu(self.conv_bn(self.conv(x))).mean((1, 2))
        return self.fc_bn(self.fc(x))


def in_flax(profile: Profile) -> tuple[Chip, Programmed]:
    module = Flax()
    module.eval()
    chip = bridge.analog(module, None, profile, IMAGES)
    return chip, chip.program(chip.params, jax.random.key(0))


def named(weights: Programmed) -> dict[str, np.ndarray]:
    leaves = map(np.asarray, jax.tree.leaves(weights.params))
    return dict(zip(paths(weights.params), leaves, strict=True))


def by_hand(given: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and unbiased variance of each of the last axis."""
    rows = given.reshape(-1, given.shape[-1]).astype(np.float64)
    return rows.mean(0), rows.var(0, ddof=1)


def test_statistics_of_flax_are_the_formula_s() -> None:
    """The convolution and the product of the programmed weights, in NumPy and JAX alone."""
    chip, weights = in_flax(PROFILES["wnoise"])
    found = named(recalibrate(chip, weights, IMAGES, batch_size=8))
    outputs = jax.lax.conv_general_dilated(
        *(IMAGES, found["conv.kernel"], (1, 1), "SAME"),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision="highest",
    )
    given = np.asarray(outputs) + found["conv.bias"]
    mean, variance = by_hand(given)
    np.testing.assert_allclose(found["conv_bn.mean"], mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["conv_bn.var"], variance, rtol=1e-4)
    normalised = (given - mean) / np.sqrt(variance + 1e-5)
    after = np.maximum(normalised, 0).mean((1, 2)) @ found["fc.kernel"] + found["fc.bias"]
    mean, variance = by_hand(after)
    np.testing.assert_allclose(found["fc_bn.mean"], mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["fc_bn.var"], variance, rtol=1e-4)


def test_linen_s_statistics_are_found() -> None:
    model = linen.Sequential(
        [
            *(linen.Conv(8, (3, 3)), linen.BatchNorm(use_running_average=True), linen.relu),
            *(lambda x: x.mean((1, 2)), linen.Dense(5)),
        ]
    )
    variables = model.init(jax.random.key(0), IMAGES)
    chip = bridge.analog(model.apply, variables, PROFILES["wnoise"], IMAGES)
    weights = chip.program(variables, jax.random.key(0))
    found = named(recalibrate(chip, weights, IMAGES))
    before = named(weights)
    changed = [name for name in found if not np.array_equal(found[name], before[name])]
    assert changed == ["batch_stats.layers_1.mean", "batch_stats.layers_1.var"]


@pytest.mark.parametrize("profile", [PER_MVM, PROFILES["adc+wnoise"]], ids=["mvm", "adc"])
def test_the_batch_size_does_not_matter(profile: Profile) -> None:
    chip, weights = in_flax(profile)
    whole = named(recalibrate(chip, weights, IMAGES))
    for name, value in named(recalibrate(chip, weights, IMAGES, batch_size=9)).items():
        np.testing.assert_allclose(value, whole[name], rtol=1e-4, atol=1e-5)


def test_statistics_go_with_the_chip(tmp_path: Path) -> None:
    chip, weights = in_flax(PROFILES["pcm"])
    found = recalibrate(chip, weights, IMAGES)
    save_programmed(tmp_path / "chip.safetensors", chip, found)
    again = load_programmed(tmp_path / "chip.safetensors", chip)
    assert np.array_equal(chip.apply(again, IMAGES), chip.apply(found, IMAGES))

    later = chip.at(86400.0).program(chip.params, jax.random.key(0))
    aged = with_digital_of(chip, later, found)
    for name, value in named(aged).items():
        source = later if name.endswith("kernel") else found
        assert np.array_equal(value, named(source)[name])
    assert float(aged.time) == 86400.0
    with pytest.raises(ValueError, match="weights must be what chip"):
        with_digital_of(chip, later, None)  # type: ignore[arg-type]


def scaled(params: Any, x: Any) -> Any:
    """A BatchNorm that is written as its own scale and shift."""
    weight, (mean, var) = params["w"], params["bn"].values()
    return x.reshape(len(x), -1) @ (weight / jnp.sqrt(var)) - mean / jnp.sqrt(var)


def with_bias(params: Any, x: Any) -> Any:
    """A layer's bias within the shift: what the product gives lacks it."""
    scale = 1 / jnp.sqrt(params["bn"]["var"])
    shift = (params["bias"] - params["bn"]["mean"]) * scale
    return (x.reshape(len(x), -1) @ params["w"]) * scale + shift


def twice(params: Any, x: Any) -> Any:
    mean, var = params["bn"].values()
    y = (x.reshape(len(x), -1) @ params["w"] - mean) / jnp.sqrt(var)
    return (y * 2 - mean) / jnp.sqrt(var)


def unused(params: Any, x: Any) -> Any:
    return x.reshape(len(x), -1) @ params["w"]


def in_full(params: Any, x: Any) -> Any:
    y = (x.reshape(len(x), -1) @ params["w"])[:, None] * jnp.ones((1, 3, 1))
    mean, var = (jnp.broadcast_to(one, (1, 3, 4)) for one in params["bn"].values())
    return ((y - mean) / jnp.sqrt(var)).mean(1)


def closed_over(params: Any, x: Any) -> Any:
    return (x.reshape(len(x), -1) @ params["w"] - 1.0) / 2.0


PARAMS = {
    "w": np.random.default_rng(1).normal(size=(192, 4)).astype(np.float32),
    "bn": {"mean": np.ones(4, np.float32), "var": np.full(4, 2, np.float32)},
}
BAD: dict[str, tuple[Callable[..., Any], Any, str]] = {
    "folded into weights": (scaled, PARAMS, "what is normalised by bn.mean does not show"),
    "a layer's bias in its shift": (
        with_bias,
        {**PARAMS, "bias": np.ones(4, np.float32)},
        "bias meets activations together with bn.mean",
    ),
    "twice": (twice, PARAMS, "bn.mean meets activations 2 times in a pass"),
    "not used": (unused, PARAMS, "the function does not use bn.mean"),
    "as large as activations": (in_full, PARAMS, r"activations of shape \(1, 3, 4\) as \(1, 3, 4"),
    "closed over": (closed_over, {"w": PARAMS["w"]}, "params have no BatchNorm to recalibrate"),
}


@pytest.mark.parametrize("what", BAD)
@pytest.mark.filterwarnings("ignore:no tile computes")
def test_functions_that_do_not_show_their_batch_norms(what: str) -> None:
    function, params, message = BAD[what]
    if what == "folded into weights":
        params = {**params, "first": np.eye(192, dtype=np.float32)}

        def function(params: Any, x: Any) -> Any:
            return scaled(params, x.reshape(len(x), -1) @ params["first"])

    chip = bridge.analog(function, params, PROFILES["ideal"], IMAGES)
    weights = chip.program(params, jax.random.key(0))
    with refused(message):
        recalibrate(chip, weights, IMAGES)


def test_a_function_of_one_s_own_that_shows_it() -> None:
    def function(params: Any, x: Any) -> Any:
        mean, var = params["bn"].values()
        return (x.reshape(len(x), -1) @ params["w"] - mean) / jnp.sqrt(var)

    chip = bridge.analog(function, PARAMS, PROFILES["ideal"], IMAGES)
    weights = chip.program(PARAMS, jax.random.key(0))
    found = recalibrate(chip, weights, IMAGES).params["bn"]
    mean, variance = by_hand(IMAGES.reshape(30, -1) @ PARAMS["w"])
    np.testing.assert_allclose(found["mean"], mean, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found["var"], variance, rtol=1e-4)


def test_a_scale_and_shift_beside_the_pair_may_be_folded() -> None:
    """Also in another collection, as those of Flax's Linen are."""
    own = {"scale": np.full(4, 3, np.float32), "shift": np.ones(4, np.float32)}
    params = {"params": {"bn": own}, "stats": {"bn": PARAMS["bn"]}, "w": PARAMS["w"]}

    def function(params: Any, x: Any) -> Any:
        stats, own = params["stats"]["bn"], params["params"]["bn"]
        scale = own["scale"] / jnp.sqrt(stats["var"])
        return (x.reshape(len(x), -1) @ params["w"]) * scale + (
            own["shift"] - stats["mean"] * scale
        )

    chip = bridge.analog(function, params, PROFILES["ideal"], IMAGES)
    weights = chip.program(params, jax.random.key(0))
    found = recalibrate(chip, weights, IMAGES).params["stats"]["bn"]
    mean, _ = by_hand(IMAGES.reshape(30, -1) @ PARAMS["w"])
    np.testing.assert_allclose(found["mean"], mean, rtol=1e-4, atol=1e-4)


def test_bad_images_are_refused() -> None:
    chip, weights = in_flax(Profile(ADC(bits=8)))
    for images, message in (
        (IMAGES[:1], "1 is given: pass some hundred"),
        (IMAGES[:, :5], r"images of shape \(5, 8, 3\)"),
        (100 * IMAGES, "normalise both as the model expects"),
        (np.full_like(IMAGES, np.nan), "is given values that are not finite"),
    ):
        with refused(message):
            recalibrate(chip, weights, images)
    with refused("weights must be what chip.program returns"):
        recalibrate(chip, weights.params, IMAGES)


X = np.random.default_rng(1).normal(size=8).astype(np.float32)
MATRIX = np.random.default_rng(2).normal(size=(8, 4)).astype(np.float32)


def linear(profile: Profile) -> tuple[Chip, Programmed]:
    chip = bridge.analog(lambda w, x: x @ w, MATRIX, profile, X[None])
    return chip, chip.program(MATRIX, jax.random.key(0))


@pytest.mark.parametrize("reads", [1, 4])
def test_the_variance_of_the_mean_is_that_of_a_read_over_their_number(reads: int) -> None:
    """Noise of operations adds sigma |x|_2 xi, in units of the largest weight."""
    chip, weights = linear(PER_MVM)
    samples = 3000
    source = np.tile(X, (samples, 1)), np.zeros(samples, int)
    table = predict(chip, weights, source, reads=reads, batch_size=1000)
    off = np.square(np.stack(table["logits"]) - X @ MATRIX).mean(0)
    variance = (0.1 * np.abs(MATRIX).max()) ** 2 * (X @ X)
    np.testing.assert_allclose(off, variance / reads, rtol=5 * np.sqrt(2 / samples))


def test_without_noise_of_operations_reads_are_one_to_the_bit() -> None:
    chip, weights = linear(PROFILES["wnoise"])
    source = np.random.default_rng(3).normal(size=(9, 8)).astype(np.float32), np.zeros(9, int)
    one, several = (predict(chip, weights, source, reads=n, batch_size=4) for n in (1, 3))
    assert np.array_equal(np.stack(one["logits"]), np.stack(several["logits"]))
    assert weights.read(0) is weights
    for bad in (-1, 0.5):
        with pytest.raises(ValueError, match="number must be"):
            weights.read(bad)  # type: ignore[arg-type]
    with refused("reads must be at least 1"):
        predict(chip, weights, source, reads=0)
