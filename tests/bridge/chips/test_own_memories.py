"""A memory of the user's own: closed-form noise, later times, files, and what is refused."""

import math
import random
import subprocess
import sys
from dataclasses import InitVar, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np
import pytest
import torch
from aihwkit.inference.converter.conductance import SinglePairConductanceConverter
from aihwkit.inference.noise.pcm import PCMLikeNoiseModel
from torch import nn

from bridge import Profile, analog, load_chip, program, save_chip
from bridge.checks import require_finite
from bridge.chips import PCM, Chip, SinglePair, weight_moments
from bridge.chips.files import fingerprint
from bridge.chips.memories.protocol import Memory
from bridge.chips.profiles import from_json, to_json
from bridge.chips.tiles import named_tiles
from tests.chips import configuration
from tests.conftest import ROOT

DAY = 86400.0


@dataclass(frozen=True)
class Gaussian:
    """Programming noise of one spread, microsiemens; then all decay as (1 + t / 1 s)^-nu."""

    spread: float = 0.5
    nu: float = 0.1
    g_max: float = 25.0
    t_inference: float = 0.0
    converter: SinglePair = field(default_factory=SinglePair)

    name: ClassVar[str] = "gaussian"
    compensation: ClassVar[None] = None

    def __post_init__(self) -> None:
        require_finite("spread", self.spread)

    def noise_model(self) -> Any:
        from aihwkit.inference.noise.base import BaseNoiseModel

        memory = self

        class Model(BaseNoiseModel):
            def apply_programming_noise_to_conductance(self, g_target: Any) -> Any:
                return g_target + memory.spread * torch.randn_like(g_target)

            def apply_drift_noise_to_conductance(self, g_prog: Any, nu: Any, t: float) -> Any:
                return g_prog * (1 + t) ** -memory.nu

        return Model(self.converter.conductance_converter(self.g_max))


@dataclass(frozen=True)
class Exact(Gaussian):
    """One that gives its moments."""

    def moments(self, targets: np.ndarray) -> Any:
        decay = (1 + self.t_inference) ** -self.nu
        variance = np.full(targets.shape, 2 * (self.spread / self.g_max * decay) ** 2)
        return decay * targets, variance, decay * np.abs(targets), np.abs(targets)


def network() -> nn.Module:
    """300 x 400 weights between -1 and 1, both included."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(400, 300, bias=False))
    weight = torch.linspace(-1, 1, 120_000).reshape(300, 400)
    model[1].weight.data = weight
    return model.eval().requires_grad_(False)


def chip_with(memory: Any, seed: int = 0) -> Chip:
    return program(network(), Profile(memory=memory), seed=seed)


def weights(chip: Chip) -> torch.Tensor:
    (tile,) = named_tiles(chip.analog).values()
    return tile.tile.get_weights().double()


def test_programmed_weights_deviate_as_the_formula_says() -> None:
    """Each of a pair's two devices deviates by itself: sqrt(2) spread / g_max for the weight."""
    chip = chip_with(Gaussian())
    off = weights(chip) - network()[1].weight.double()
    expected = 2**0.5 * 0.5 / 25
    assert abs(off.mean()) < 5 * expected / off.numel() ** 0.5
    assert off.std().item() == pytest.approx(expected, rel=5 / (2 * off.numel()) ** 0.5)
    assert chip.name == "gaussian"
    assert torch.equal(weights(chip), weights(chip_with(Gaussian())))
    assert not torch.equal(weights(chip), weights(chip_with(Gaussian(), seed=1)))


def test_moments_are_sampled_where_it_has_none() -> None:
    """On 30 chips; a mean of 120,000 sample variances is known to 0.1 %."""
    memory = Gaussian(t_inference=DAY)
    (moments,) = weight_moments(network(), Profile(memory=memory), chips=30).values()
    decay = (1 + DAY) ** -0.1
    variance = 2 * (0.5 / 25 * decay) ** 2
    assert moments.variance.mean().item() == pytest.approx(variance * (1 + 1 / 30), rel=0.01)
    off = moments.mean.double() - (decay - 1) * network()[1].weight.double()
    assert off.square().mean().item() == pytest.approx(variance / 30, rel=0.02)
    (other,) = weight_moments(network(), Profile(memory=memory), chips=30, seed=5).values()
    assert not torch.equal(moments.mean, other.mean)
    (exact,) = weight_moments(network(), Profile(memory=Exact(t_inference=DAY))).values()
    assert exact.variance.mean().item() == pytest.approx(variance)


def test_the_variance_is_that_of_a_further_chip_around_the_sampled_mean() -> None:
    """The mean of three chips is off by a third of the variance, a further chip by all of it; of
    300 margins with 400 weights each, seen over 20 chips."""
    model, profile = network(), Profile(memory=Gaussian())
    weight = model[1].weight.double()
    images = torch.randn(1, 400, generator=torch.Generator().manual_seed(0)).double()
    (moments,) = weight_moments(model, profile, chips=3).values()
    predicted = images @ (weight + moments.mean.double()).T
    variance = images.square() @ moments.variance.double().T
    off = [images @ weights(program(model, profile, seed=seed)).T - predicted for seed in range(20)]
    # A standard error of 0.025: the error of a mean is the same for all 20 chips.
    ratio = torch.stack(off).square().mean() / variance.mean()
    assert ratio.item() == pytest.approx(1, abs=0.13)


def test_it_ages_and_comes_back_from_a_file(tmp_path: Path) -> None:
    chip, path = chip_with(Gaussian()), tmp_path / "chip.safetensors"
    later = chip.at(DAY)
    torch.testing.assert_close(weights(later), weights(chip) * (1 + DAY) ** -0.1)
    assert later.profile == Profile(memory=Gaussian(t_inference=DAY))
    save_chip(path, chip)
    loaded = load_chip(path, network(), memories=(Gaussian,))
    assert loaded.profile == chip.profile
    assert fingerprint(loaded) == fingerprint(chip)
    images = torch.randn(3, 400)
    assert torch.equal(loaded.at(DAY)(images, range(3)), later(images, range(3)))
    with pytest.raises(ValueError, match=r"'Gaussian' is not.*memories=\(ITS_CLASS,\)"):
        load_chip(path, network())


def test_a_file_brings_no_class_along() -> None:
    profile = Profile(memory=Gaussian(converter=SinglePair(1.0)))
    assert from_json(to_json(profile), memories=(Gaussian,)) == profile
    stored = to_json(profile) | {"kind": "builtins.eval"}
    with pytest.raises(ValueError, match="not a setting known here"):
        from_json(stored, memories=(Gaussian,))


@dataclass(frozen=True)
class Timeless:
    name: ClassVar[str] = "timeless"
    t_inference: ClassVar[float] = 0.0


@dataclass(frozen=True)
class Holds(Gaussian):
    device: Any = None


@dataclass(frozen=True)
class Modelless(Gaussian):
    def noise_model(self) -> Any:
        return "noise"


@dataclass(frozen=True)
class Compensated(Gaussian):
    compensation: ClassVar[Any] = "sometimes"


Impostor = dataclass(frozen=True)(type("PCM", (Gaussian,), {}))


@pytest.mark.parametrize(
    ("memory", "message"),
    [
        ("pcm", "must be a PCM or Hermes.*'pcm', which lacks name, t_inference"),
        (Timeless(), "lacks compensation, noise_model, t_inference as a field"),
        (Gaussian, "lacks an instance of a dataclass"),
        (Holds(device=print), "fields must be numbers, texts"),
        (Impostor(), "PCM is a setting of bridge's: rename"),
        (Modelless(), r"Modelless.noise_model\(\) must return a noise model.*got 'noise'"),
        (Compensated(), "compensation must be global, global_exact, .* got 'sometimes'"),
    ],
)
def test_what_is_no_memory_is_refused(memory: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        chip_with(memory)


@dataclass(frozen=True)
class InJaxAlone:
    """A device of chips in JAX: weights as they are."""

    t_inference: float = 0.0
    compensation: ClassVar[None] = None
    name: ClassVar[str] = "exact"

    def program(self, key: Any, targets: Any) -> tuple[Any, None]:
        return targets, None

    def read(self, key: Any, programmed: Any, state: Any) -> Any:
        return programmed


def test_a_device_of_chips_in_jax_needs_no_noise_model() -> None:
    profile = Profile(memory=InJaxAlone())
    weights, images = np.eye(4, dtype=np.float32), np.ones((2, 4), np.float32)
    made = analog(lambda params, images: images @ params, weights, profile, images)
    answers = made.apply(made.program(weights, jax.random.key(0)), images)
    np.testing.assert_array_equal(answers, images)
    for needs_torch in (partial(program, seed=0), partial(weight_moments, chips=2)):
        with pytest.raises(ValueError, match=r"InJaxAlone has no method noise_model.*analog"):
            needs_torch(network(), profile)


def test_memories_are_described_without_torch() -> None:
    assert isinstance(Gaussian(), Memory)
    assert isinstance(PCM(), Memory)
    code = (
        "import sys, bridge.chips.memories, bridge.chips.profiles;"
        "assert not {'torch', 'aihwkit'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


class Drawing(PCMLikeNoiseModel):
    """Keeps in itself what it draws while programming."""

    shift = 0.0

    def apply_programming_noise(self, weights: Any) -> Any:
        self.shift = float(torch.randn(()))
        return super().apply_programming_noise(weights)

    def apply_drift_noise(self, weights: Any, parameters: Any, t: float) -> Any:
        return super().apply_drift_noise(weights, parameters, t) + self.shift


class Double(PCMLikeNoiseModel):
    """Drift exponents in float64."""

    def apply_programming_noise(self, weights: Any) -> Any:
        programmed, exponents = super().apply_programming_noise(weights)
        return programmed, [one.double() for one in exponents]

    def apply_drift_noise(self, weights: Any, parameters: Any, t: float) -> Any:
        return super().apply_drift_noise(weights, [one.float() for one in parameters], t)


class Number(PCMLikeNoiseModel):
    """A number among the drift exponents."""

    def apply_programming_noise(self, weights: Any) -> Any:
        programmed, exponents = super().apply_programming_noise(weights)
        return programmed, [*exponents, 1.0]

    def apply_drift_noise(self, weights: Any, parameters: Any, t: float) -> Any:
        return super().apply_drift_noise(weights, parameters[:-1], t)


class Nameless(PCMLikeNoiseModel):
    """Printed by its place in memory."""

    __str__ = object.__str__


@dataclass(frozen=True)
class Variant(PCM):
    name: ClassVar[str] = "variant"
    model: ClassVar[Any] = PCMLikeNoiseModel

    def noise_model(self) -> Any:
        return self.model(g_max=self.g_max)


@dataclass(frozen=True)
class OfDrawing(Variant):
    model: ClassVar[Any] = Drawing


@dataclass(frozen=True)
class OfDouble(Variant):
    model: ClassVar[Any] = Double


@dataclass(frozen=True)
class OfNumber(Variant):
    model: ClassVar[Any] = Number


@dataclass(frozen=True)
class Untaken(Variant):
    extra: float = field(default=1.0, init=False)


@dataclass(frozen=True)
class Counting(Variant):
    extra: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "extra", self.extra + 1)


@dataclass(frozen=True)
class Given(Variant):
    extra: InitVar[float] = 1.0

    def __post_init__(self, extra: float) -> None:
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class GivenByName(Variant):
    extra: InitVar[float] = 1.0

    def __post_init__(self, extra: float) -> None:
        super().__post_init__()


@dataclass(frozen=True)
class GivenByNameAlone(Variant):
    """Its own __init__ takes more by name than it keeps."""

    def __init__(self, *args: Any, extra: float = 1.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)


@dataclass(frozen=True)
class Unbounded(Variant):
    extra: float = math.inf


@dataclass(frozen=True)
class Part:
    values: tuple[float, ...] = (1.0, math.nan)


@dataclass(frozen=True)
class OfParts(Variant):
    parts: tuple[Part, ...] = (Part(),)


@pytest.mark.parametrize(
    ("memory", "message"),
    [
        (OfDrawing(), "Drawing keeps what it draws in itself"),
        (OfDouble(), r"float32 tensors, or None, in its list; got torch.float64"),
        (OfNumber(), r"float32 tensors, or None, in its list; got float"),
        (Untaken(), "fields of Untaken to make it again .* let __init__ take every field"),
        (Counting(), "fields of Counting to make it again .* let __init__ take every field"),
        (Given(), "fields of Given, which extra of its __init__ is not: make it a field"),
        (GivenByName(), "fields of GivenByName, which extra of its __init__ is not"),
        (GivenByNameAlone(), "fields of GivenByNameAlone, which extra of its __init__ is not"),
        (Unbounded(), "fields of Unbounded as JSON, and extra is not plain JSON: it has inf"),
        (OfParts(), "fields of Part as JSON, and values is not plain JSON: it has nan; let None"),
    ],
)
def test_what_no_file_gives_back_is_refused_when_saved(
    memory: Any, message: str, tmp_path: Path
) -> None:
    chip, path = chip_with(memory), tmp_path / "chip.safetensors"
    with pytest.raises(ValueError, match=message):
        save_chip(path, chip)
    assert not path.exists()


class Numpy(PCMLikeNoiseModel):
    """Programs with draws of NumPy's global generator."""

    def apply_programming_noise_to_conductance(self, g_target: Any) -> Any:
        return g_target * (1 + 0.1 * torch.from_numpy(np.random.standard_normal(g_target.shape)))  # noqa: NPY002


class NumpyLater(PCMLikeNoiseModel):
    """Ages with them, from some time on."""

    def apply_drift_noise_to_conductance(self, g_prog: Any, nu: Any, t: float) -> Any:
        draws = np.random.standard_normal(g_prog.shape) if t > 100 else np.zeros(g_prog.shape)  # noqa: NPY002
        return g_prog * (1 + 0.1 * torch.from_numpy(draws.astype("f4")))


class Standard(PCMLikeNoiseModel):
    """Programs with draws of Python's generator."""

    def apply_programming_noise_to_conductance(self, g_target: Any) -> Any:
        return g_target * random.uniform(0.9, 1.1)


class Generator(PCMLikeNoiseModel):
    """Programs with draws of a generator that it keeps."""

    def __init__(self, **settings: Any):
        super().__init__(**settings)
        self.generator = np.random.default_rng(0)

    def apply_programming_noise_to_conductance(self, g_target: Any) -> Any:
        return g_target + torch.from_numpy(self.generator.standard_normal(g_target.shape))


class Converter(SinglePairConductanceConverter):
    """Draws where it makes conductances of weights."""

    def convert_to_conductances(self, weights: Any) -> Any:
        found, kept = super().convert_to_conductances(weights)
        return [one + float(np.random.uniform(0, 0.1)) for one in found], kept  # noqa: NPY002


class Converting(PCMLikeNoiseModel):
    def __init__(self, **settings: Any):
        super().__init__(**settings | {"g_converter": Converter()})


OWN_DRAWS = {
    "numpy": Numpy,
    "python": Standard,
    "kept": Generator,
    "converter": Converting,
    "later": NumpyLater,
}


@pytest.mark.parametrize("own", [True, False], ids=["memory", "configuration"])
@pytest.mark.parametrize("how", OWN_DRAWS)
def test_draws_that_no_seed_decides_are_refused(how: str, own: bool, tmp_path: Path) -> None:
    kind = OWN_DRAWS[how]
    memory = dataclass(frozen=True)(type("Own", (Variant,), {"model": kind}))
    config = configuration(size=512)
    config.noise_model = kind()
    profile = Profile(memory=memory()) if own else config
    message = rf"{kind.__name__} gives other devices each time .*torch's global generator alone"
    if how != "later":
        with pytest.raises(ValueError, match=message):
            program(network(), profile, seed=0)
        return
    chip = program(network(), profile, seed=0)
    assert torch.equal(weights(chip.at(90.0)), weights(chip.at(90.0)))
    with pytest.raises(ValueError, match=message):
        chip.at(DAY)
    save_chip(tmp_path / "chip.safetensors", chip)


@pytest.mark.parametrize("model", [Drawing, Double, Number, Nameless])
def test_so_is_a_configuration_of_one_s_own(model: Any, tmp_path: Path) -> None:
    config = configuration(size=512)
    config.noise_model = model()
    chip, path = program(network(), config, seed=0), tmp_path / "chip.safetensors"
    with pytest.raises(ValueError, match="a chip's file"):
        save_chip(path, chip)
    assert not path.exists()


def test_a_variant_of_a_memory_that_ships_comes_back(tmp_path: Path) -> None:
    chip, path = chip_with(Variant(mapping=SinglePair(1.0))), tmp_path / "chip.safetensors"
    save_chip(path, chip)
    back = load_chip(path, network(), memories=(Variant,))
    assert back.profile == chip.profile
    assert fingerprint(back.at(DAY)) == fingerprint(chip.at(DAY))
