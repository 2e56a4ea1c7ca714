"""Analog chips: a trained network programmed onto simulated crossbar tiles (AIHWKit).

A chip is determined by the network, the profile and the seed. Programming noise, read noise and
weight noise come from separate streams per seed and tile, so all profiles of one seed are the same
chip with some of its non-idealities switched off.
"""

import math
import operator
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Literal

import torch
from aihwkit.nn.conversion import convert_to_analog
from aihwkit.simulator.configs import InferenceRPUConfig, TorchInferenceRPUConfig
from aihwkit.simulator.parameters.enums import NoiseManagementType
from aihwkit.simulator.tiles.inference_torch import TorchInferenceTile
from aihwkit.simulator.tiles.torch_tile import TorchSimulatorTile
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm import tqdm

from bridge.adc import Images, as_tensor, calibrate_ranges, tile_output_shares
from bridge.devices import require_finite
from bridge.fast import fast_network, unsupported_settings
from bridge.noise import (
    MvmNoiseTile,
    SampleNoise,
    freeze_weight_noise,
    largest_target,
    stream,
    weight_noise,
)
from bridge.profiles import ADC, Profile
from bridge.rpu import clip_parameter, rpu_config
from bridge.tiles import Tile, digital_layer, named_layers, named_tiles, replace_layer

Engine = Literal["fast", "aihwkit"]
"""What computes the tiles: ordinary layers and convolutions (`bridge.fast`), or AIHWKit's tiles."""


class Executable(nn.Module):
    """A chip's network, run so that a sample's logits depend on nothing but itself.

    Args:
      network: on images `[batch, channel, height, width]`.
      noise: the samples' own noise, of which the network takes it.
      one_by_one: run one sample at a time under a random state of its own, for tiles that draw from
        torch's global state or couple the samples of a batch.
    """

    def __init__(self, network: nn.Module, noise: SampleNoise, one_by_one: bool):
        super().__init__()
        self.network, self.noise, self.one_by_one = network, noise, one_by_one

    def forward(self, images: torch.Tensor, indices: Sequence[int]) -> torch.Tensor:
        """Logits `[batch, class]` of images whose stable indices, each >= 0, are given."""
        if len(indices) != len(images):
            raise ValueError(f"{len(images)} images need as many indices, not {len(indices)}")
        indices = [operator.index(index) for index in indices]
        if min(indices) < 0:
            raise ValueError(f"indices must not be negative, got {min(indices)}")
        if not self.one_by_one:
            self.noise.begin(indices)
            return self.network(images)
        logits = []
        for image, index in zip(images.split(1), indices, strict=True):
            with stream(self.noise.seed, "operation", index, device=images.device):
                logits.append(self.network(image))
        return torch.cat(logits)


@dataclass(frozen=True, eq=False)
class Chip:
    """A programmed chip at one time.

    Attributes:
      analog: the network with its convolution and linear layers on AIHWKit tiles; CPU, eval mode.
      executable: what to run.
      profile: the non-idealities, the time of inference included; None where the configuration is
        AIHWKit's, that of the user.
      seed: which chip.
      t_inference: seconds since programming; None if the weights were not programmed into a memory.
      out_bounds: the ADC's range by tile, in the unit of `ADC.range`; empty without an ADC.
      engine: what computes the tiles.
      digital_layers: paths of what was left digital.
      largest_pixel: the largest magnitude in the images that it was calibrated on; None if it was
        not. `predict` refuses images far beyond it.
    """

    analog: nn.Module
    executable: Executable
    profile: Profile | None
    seed: int
    t_inference: float | None
    out_bounds: Mapping[str, float]
    engine: Engine
    digital_layers: tuple[str, ...] = ()
    largest_pixel: float | None = None

    def __call__(self, images: torch.Tensor, indices: Sequence[int]) -> torch.Tensor:
        """Logits `[batch, class]` of images `[batch, channel, height, width]` on the CPU.

        Args:
          images: float32, normalised as the model expects.
          indices: the samples' stable indices, >= 0: they name the noise of each operation.
        """
        with torch.inference_mode():
            return self.executable(images, indices)

    @property
    def name(self) -> str:
        """The profile's name."""
        return "own configuration" if self.profile is None else self.profile.name

    def at(self, t_inference: float) -> "Chip":
        """The same programmed chip `t_inference` seconds after programming.

        Read noise is drawn anew for each time, from a stream that the time names: asking again
        gives the same chip.

        Raises:
          ValueError: the chip has no memory and so does not change in time, or a bad time.
        """
        if self.t_inference is None:
            raise ValueError(f"profile {self.name} has no memory devices, so it does not drift")
        require_finite("t_inference", t_inference)
        profile = self.profile
        if profile is not None and profile.memory is not None:
            profile = replace(profile, memory=replace(profile.memory, t_inference=t_inference))
        later = replace(self, profile=profile, t_inference=float(t_inference))
        return operate(replace(later, analog=deepcopy(self.analog)))

    def on(self, engine: Engine) -> "Chip":
        """The same chip computed by another engine.

        Raises:
          ValueError: the engine cannot honour a setting of the tiles; all are named.
        """
        return replace(self, engine=engine, executable=_executable(self.analog, engine, self.seed))


def program(
    model: nn.Module,
    profile: Profile | InferenceRPUConfig | None,
    *,
    seed: int,
    calibration: Images | None = None,
    engine: Engine = "fast",
    digital_layers: Sequence[str] = (),
    t_inference: float = 0.0,
) -> Chip:
    """Programs a network onto a chip and lets it age to the profile's time of inference.

    Every convolution and linear layer is on tiles; BatchNorm, activations and biases stay digital.
    Torch's global random state is left as it was.

    Args:
      model: float32 and in eval mode; not changed. Of `Conv2d`, `Linear`, BatchNorm and layers
        without parameters; or a network that AIHWKit has converted already, such as one trained
        hardware-aware: its tiles, weight scales and input ranges are kept, and the profile
        replaces its noise model, drift compensation and the rest of its forward settings. What
        was programmed before is programmed anew from its target weights.
      profile: the non-idealities. An `RPUConfig` of AIHWKit is taken as it is, on its own tile
        class, and the chip programmed by its noise model. None takes a converted network's own
        configuration in the same way. Noise that AIHWKit's compiled tile draws in its forward pass
        (`InferenceRPUConfig`) cannot be seeded: only there a chip's outputs are not reproducible.
      seed: which chip, >= 0.
      calibration: float32 images as the model takes them, a tensor `[batch, channel, height,
        width]` or an array `[batch, height, width, channel]`. Required for a calibrated ADC range
        and used with one only: for it, and for `predict` to know images of another scale.
      engine: "fast", or "aihwkit" for AIHWKit's own tiles, many times slower.
      digital_layers: paths of layers, or of blocks of them, that stay digital.
      t_inference: seconds since programming under a configuration of AIHWKit; a profile's memory
        has its own.

    Raises:
      ValueError: a model that does not map onto tiles, non-finite weights, a bad seed or range, a
        calibration that is absent, malformed or leaves a tile without a range, or settings that
        the engine cannot honour, named.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"the seed must be an integer >= 0, got {seed!r}")
    require_finite("t_inference", t_inference)
    chosen = profile if isinstance(profile, Profile) else None
    if chosen is not None and t_inference != 0:
        raise ValueError("a profile has its time of inference in its memory, not in t_inference")
    analog = convert(model, profile, digital_layers, seed=seed)
    tiles = named_tiles(analog)
    _require_engine(analog, engine)  # before what takes long
    bounds: dict[str, float] = {}
    largest_pixel = None
    if chosen is not None and chosen.adc is not None:
        images = None
        if chosen.adc.range == "calibrated":
            if calibration is None:
                raise ValueError(
                    "a calibrated ADC range needs calibration images; pass calibration="
                )
            images = as_tensor(calibration, "calibration")
            largest_pixel = float(images.abs().max())
        bounds = _set_ranges(analog, chosen.adc, images)
    _refuse_bad_ranges(tiles)
    age: float | None = float(t_inference) if chosen is None else None
    if chosen is not None and chosen.memory is not None:
        age = float(chosen.memory.t_inference)
    if age is not None:
        for name, tile in tqdm(tiles.items(), "program", unit="tile", delay=2, leave=False):
            with stream(seed, "programming", name), _without_deprecations():
                tile.program_weights()
    return operate(
        Chip(
            analog,
            Executable(analog, SampleNoise(seed), one_by_one=False),
            chosen,
            seed,
            age,
            bounds,
            engine,
            tuple(digital_layers),
            largest_pixel,
        )
    )


def operate(chip: Chip) -> Chip:
    """A programmed chip at its time of inference, ready to run.

    Args:
      chip: its `analog` is programmed; it is aged in place, and its executable is not used.
    """
    wnoise = None if chip.profile is None else chip.profile.wnoise
    for name, tile in named_tiles(chip.analog).items():
        if chip.t_inference is not None:
            with stream(chip.seed, "reading", name, chip.t_inference), _without_deprecations():
                tile.drift_weights(chip.t_inference)
        if wnoise is not None and wnoise.drawn == "per_chip":
            freeze_weight_noise(tile, wnoise, seed=chip.seed, name=name)
    return chip.on(chip.engine)


def clipped_share(chip: Chip, images: Images) -> dict[str, float]:
    """The share of each tile's outputs beyond its ADC range on some images, in [0, 1].

    Args:
      chip: a chip with an ADC.
      images: as for `program`.
    """
    if not chip.out_bounds:
        raise ValueError(f"profile {chip.name} has no ADC, so it does not clip outputs")
    images = as_tensor(images, "images")
    with stream(chip.seed, "clipped share"):  # AIHWKit's tiles may draw noise
        return tile_output_shares(chip.analog, images)


def convert(
    model: nn.Module,
    profile: Profile | InferenceRPUConfig | None,
    digital_layers: Sequence[str],
    *,
    seed: int,
) -> nn.Module:
    """The network on tiles with its target weights, clipped and rescaled; see `program`."""
    if not isinstance(model, nn.Module):
        raise ValueError(f"a chip is made of a torch module; got {type(model).__name__}")
    if model.training:
        raise ValueError("the model is in training mode; call model.eval() first")
    if isinstance(digital_layers, str):
        raise ValueError(f"digital_layers is a list of paths: give [{digital_layers!r}]")
    paths = [name for name, _ in model.named_modules()]
    if unknown := [name for name in digital_layers if name not in paths or not name]:
        raise ValueError(f"the model has no layers {', '.join(map(repr, unknown))}")
    model = deepcopy(model).cpu()
    if named_tiles(model):
        analog = _reconfigure(model, profile, digital_layers)
    elif profile is None:
        raise ValueError("the model is not on AIHWKit tiles: give a profile or an RPUConfig")
    else:
        _refuse_unmappable(model, digital_layers)
        config = rpu_config(profile) if isinstance(profile, Profile) else profile
        if not isinstance(config, InferenceRPUConfig):
            raise ValueError(
                f"{type(config).__name__} does not describe inference; give a Profile, such as "
                'PROFILES["adc+pcm"], or AIHWKit\'s TorchInferenceRPUConfig or InferenceRPUConfig'
            )
        # New layers draw weights, which conversion then replaces, and what varies between outputs.
        with stream(seed, "conversion"):
            # Not wrapped: AIHWKit caches its wrapper classes by name and would mix up two "Net"s.
            analog = _convert_to_analog(model, config, list(digital_layers))
    analog.eval().requires_grad_(False)
    if isinstance(profile, Profile):
        for tile in named_tiles(analog).values():
            _set_to_profile(tile, profile)
    return analog


def _convert_to_analog(
    model: nn.Module, config: InferenceRPUConfig, digital_layers: list[str]
) -> nn.Module:
    try:
        return convert_to_analog(
            model,
            config,
            ensure_analog_root=False,
            exclude_modules=digital_layers,
            inplace=True,
        )
    except RuntimeError as error:
        if isinstance(config, TorchInferenceRPUConfig):
            raise
        raise ValueError(
            f"AIHWKit's compiled tile, which {type(config).__name__} asks for, does not work with "
            f"PyTorch {torch.__version__} here ({error}); use TorchInferenceRPUConfig, or AIHWKit "
            "1.2 on Python 3.12"
        ) from error


def _reconfigure(
    analog: nn.Module,
    profile: Profile | InferenceRPUConfig | None,
    digital_layers: Sequence[str],
) -> nn.Module:
    """A network that is on tiles already, some of its layers made digital again."""
    if isinstance(profile, InferenceRPUConfig):
        raise ValueError(
            "the model is on AIHWKit tiles with a configuration of its own: give a Profile, or "
            "None to take it as it is"
        )
    layers = named_layers(analog)
    for path in digital_layers:
        if not any(f"{name}.".startswith(f"{path}.") for name in layers):
            raise ValueError(f"{path} has no layer on tiles that could stay digital")
    for name, layer in layers.items():
        if any(f"{name}.".startswith(f"{path}.") for path in digital_layers):
            analog = replace_layer(analog, name, digital_layer(layer))
    if not named_tiles(analog):
        raise ValueError("every layer is digital: leave some on tiles")
    for name, tile in named_tiles(analog).items():
        if tile.programmed_weights is not None:
            tile.tile.set_weights(tile.reference_combined_weights)
            tile.programmed_weights = tile.drift_noise_parameters = tile.drift_baseline = None
            tile.alpha = torch.ones(1)
        tile.reference_combined_weights = None
        if profile is not None and type(tile) is not TorchInferenceTile:
            raise ValueError(
                f"tile {name} is a {type(tile).__name__}: a profile needs a network converted with "
                "TorchInferenceRPUConfig; or give None to take its own configuration"
            )
    return analog


def _set_to_profile(tile: Tile, profile: Profile) -> None:
    """Gives a tile the profile's settings and clips its weights; geometry and scales stay."""
    wanted, config = rpu_config(profile), tile.rpu_config
    config.forward = wanted.forward
    if tile.input_range is not None:
        # The range takes the place of the largest magnitude of each input vector.
        config.forward.noise_management = NoiseManagementType.NONE
    config.noise_model, config.drift_compensation = wanted.noise_model, wanted.drift_compensation
    if type(tile.tile) is TorchSimulatorTile:
        simulator = MvmNoiseTile(tile.tile.x_size, tile.tile.d_size, config)
        simulator.set_weights(tile.tile.get_weights())
        tile.tile = simulator.eval().requires_grad_(False)
    tile.tile.set_config(config)
    if profile.clipping.type != "none":
        clip = clip_parameter(profile.clipping)
        clip.fixed_value *= float(largest_target(tile))
        tile.tile.clip_weights(clip)
        tile.remap_weights(weight_scaling_omega=1.0)
    if config.forward.w_noise > 0 and profile.wnoise is not None:
        # AIHWKit's unit of weight noise is a weight of 1, ours the largest weight.
        largest = float(largest_target(tile))
        config.forward.w_noise *= largest if profile.wnoise.kind == "constant" else largest**0.5


def _set_ranges(analog: nn.Module, adc: ADC, calibration: torch.Tensor | None) -> dict[str, float]:
    """Sets every converter's range; returns them by tile in the unit of `ADC.range`.

    That unit is the largest weight, the tiles' own a weight of 1. With calibration images the
    range is calibrated on them.
    """
    tiles = named_tiles(analog)
    largest = {name: float(largest_target(tile)) or 1.0 for name, tile in tiles.items()}
    if calibration is not None:
        bounds = calibrate_ranges(analog, calibration, adc.percentile)
    else:
        bounds = {name: float(adc.range) * largest[name] for name in tiles}
    for name, tile in tiles.items():
        tile.rpu_config.forward.out_bound = bounds[name]
    return {name: bounds[name] / largest[name] for name in tiles}


def _executable(analog: nn.Module, engine: Engine, seed: int) -> Executable:
    noise = SampleNoise(seed)
    unsupported = _require_engine(analog, engine)
    if engine == "fast":
        return Executable(fast_network(deepcopy(analog), noise), noise, one_by_one=False).eval()
    tiles = named_tiles(analog).values()
    draws = any(weight_noise(tile.rpu_config.forward) > 0 for tile in tiles)
    return Executable(analog, noise, one_by_one=draws or bool(unsupported)).eval()


def _require_engine(analog: nn.Module, engine: Engine) -> list[str]:
    """The settings that only AIHWKit's tiles honour, refused where they are not to run."""
    if engine not in ("fast", "aihwkit"):
        raise ValueError(f"the engine is fast or aihwkit, got {engine!r}")
    unsupported = unsupported_settings(analog)
    if unsupported and engine == "fast":
        raise ValueError(
            f"fast execution cannot honour {', '.join(unsupported)}; use engine='aihwkit'"
        )
    return unsupported


@contextmanager
def _without_deprecations() -> Iterator[None]:
    """Hides what AIHWKit's noise models use of PyTorch and NumPy that will change one day."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Using a non-tuple sequence", UserWarning)
        warnings.filterwarnings("ignore", "__array_wrap__ must accept", DeprecationWarning)
        yield


def _refuse_bad_ranges(tiles: Mapping[str, Tile]) -> None:
    """Refuses converters that AIHWKit would silently turn into NaN or leave without saturation."""
    for name, tile in tiles.items():
        forward = tile.rpu_config.forward
        quantises = not forward.is_perfect and forward.out_res > 0
        if quantises and not 0 < forward.out_bound < math.inf:
            raise ValueError(
                f"tile {name} quantises its outputs (forward.out_res={forward.out_res:g}) over the "
                f"range forward.out_bound={forward.out_bound:g}: give a positive and finite one"
            )


def _refuse_unmappable(model: nn.Module, digital_layers: Sequence[str]) -> None:
    mapped = 0
    first: dict[nn.Module, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if first.setdefault(module, name) != name and list(module.parameters()):
            raise ValueError(
                f"layers {first[module]} and {name} are one module, of which AIHWKit would convert "
                "only one name: give it one name, or two copies"
            )
        if any(f"{name}.".startswith(f"{path}.") for path in digital_layers):
            continue
        what = f"layer {name or 'at the root'} ({type(module).__name__})"
        # The exact types: AIHWKit leaves subclasses digital.
        if type(module) in (nn.Conv2d, nn.Linear):
            mapped += 1
        elif not name and list(module.children()):
            continue  # the network's own parameters stay digital
        elif not isinstance(module, _BatchNorm) and list(module.parameters(recurse=False)):
            raise ValueError(
                f"{what} has weights but cannot be mapped; use Conv2d or Linear, or name it in "
                "digital_layers"
            )
        if type(module) is nn.Conv2d:
            if module.groups != 1:
                raise ValueError(
                    f"{what} has {module.groups} groups; tiles need groups=1: name it in "
                    "digital_layers"
                )
            if isinstance(module.padding, str) or module.padding_mode != "zeros":
                raise ValueError(f"{what} must pad by explicit numbers of zeros, not by name")
    if not mapped:
        raise ValueError("the model has no Conv2d or Linear layer to put on tiles")
    tensors = {n: t for n, t in model.state_dict().items() if t.is_floating_point()}
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32:
            raise ValueError(f"{name} is {tensor.dtype}; chips are simulated in float32")
        if not torch.isfinite(tensor).all():
            raise ValueError(f"non-finite weights in {name}; load another checkpoint")
