"""Analog chips: a trained network programmed onto simulated crossbar tiles (AIHWKit).

A chip is determined by the network, the profile and the seed. Programming noise, read noise and
weight noise come from separate streams per seed and tile, so all profiles of one seed are the same
chip with some of its non-idealities switched off.
"""

import math
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace

import torch
from aihwkit.nn.conversion import convert_to_analog, convert_to_digital
from aihwkit.simulator.tiles.inference_torch import TorchInferenceTile
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from bridge.noise import add_weight_noise, stream
from bridge.profiles import Profile
from bridge.rpu import rpu_config

_CHUNK = 32  # images at once where tiles are observed: unfolded images are large


@dataclass(frozen=True, eq=False)
class Chip:
    """A programmed chip at one time.

    Attributes:
      analog: the network with its convolution and linear layers on AIHWKit tiles; CPU, eval mode.
      executable: what to run, a module on images `[batch, channel, height, width]`. With an ADC
        it is `analog`; without one a tile is linear, so the layers are turned back to ordinary
        ones with the chip's effective weights: the same logits to rounding, at digital speed.
      profile: the non-idealities, the time of inference included.
      seed: which chip.
      out_bounds: the ADC's range by tile, in the unit of `ADC.range`; empty without an ADC.
    """

    analog: nn.Module
    executable: nn.Module
    profile: Profile
    seed: int
    out_bounds: Mapping[str, float]

    @property
    def t_inference(self) -> float | None:
        """Seconds since programming; None without PCM."""
        return None if self.profile.pcm is None else self.profile.pcm.t_inference

    def at(self, t_inference: float) -> "Chip":
        """The same programmed chip `t_inference` seconds after programming.

        Read noise is drawn anew for each time, from a stream that the time names: asking again
        gives the same chip.

        Raises:
          ValueError: the profile has no PCM and so does not change in time, or a bad time.
        """
        if self.profile.pcm is None:
            raise ValueError(f"profile {self.profile.name} has no PCM, so it does not drift")
        pcm = replace(self.profile.pcm, t_inference=t_inference)
        profile = replace(self.profile, pcm=pcm)
        return _operate(deepcopy(self.analog), profile, self.seed, self.out_bounds)


def program(
    model: nn.Module, profile: Profile, *, seed: int, calibration: torch.Tensor | None = None
) -> Chip:
    """Programs a network onto a chip and lets it age to the profile's time of inference.

    Every convolution and linear layer is on tiles; BatchNorm, activations and biases stay digital.
    Torch's global random state is left as it was.

    Args:
      model: float32 and in eval mode, of `Conv2d`, `Linear`, BatchNorm and layers without
        parameters; not changed.
      profile: the non-idealities.
      seed: which chip, >= 0.
      calibration: float32 images `[batch, channel, height, width]` as the model takes them. Used
        by, and required for, a calibrated ADC range, and for nothing else.

    Raises:
      ValueError: a model that does not map onto tiles, non-finite weights, a bad seed, or a
        calibration that is absent, malformed or leaves a tile without a range.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"the seed must be an integer >= 0, got {seed!r}")
    _refuse_unmappable(model)
    with stream(seed, "conversion"):  # new layers draw weights, which conversion then replaces
        # Not wrapped: AIHWKit caches its wrapper classes by name and would mix up two "Net"s.
        analog = convert_to_analog(
            deepcopy(model).cpu(), rpu_config(profile), ensure_analog_root=False, inplace=True
        )
    analog.eval().requires_grad_(False)
    tiles = _tiles(analog)
    if profile.clipping is not None:
        for tile in tiles.values():
            tile.post_update_step()  # where AIHWKit clips
            tile.remap_weights(weight_scaling_omega=1.0)
    out_bounds: dict[str, float] = {}
    if profile.adc is not None:
        if profile.adc.range == "calibrated":
            out_bounds = _calibrate(analog, calibration)
        else:
            out_bounds = dict.fromkeys(tiles, float(profile.adc.range))
    if profile.pcm is not None:
        for name, tile in tiles.items():
            with stream(seed, "programming", name):
                tile.program_weights()
    return _operate(analog, profile, seed, out_bounds)


def clipped_share(chip: Chip, images: torch.Tensor) -> dict[str, float]:
    """The share of each tile's outputs beyond its ADC range on some images, in [0, 1].

    Args:
      chip: a chip with an ADC.
      images: float32 `[batch, channel, height, width]`.
    """
    if chip.profile.adc is None:
        raise ValueError(f"profile {chip.profile.name} has no ADC, so it does not clip outputs")
    beyond, seen = dict.fromkeys(chip.out_bounds, 0), dict.fromkeys(chip.out_bounds, 0)

    def count(name: str, outputs: torch.Tensor) -> None:
        beyond[name] += int((outputs.abs() > chip.out_bounds[name]).sum())
        seen[name] += outputs.numel()

    _observe(chip.analog, images, count)
    return {name: beyond[name] / seen[name] for name in seen}


def _operate(
    analog: nn.Module, profile: Profile, seed: int, out_bounds: Mapping[str, float]
) -> Chip:
    """The chip at the profile's time; `analog` is programmed and becomes the chip's own."""
    for name, tile in _tiles(analog).items():
        if profile.pcm is not None:
            t_inference = float(profile.pcm.t_inference)
            with stream(seed, "reading", name, t_inference):
                tile.drift_weights(t_inference)
        if profile.wnoise is not None:
            add_weight_noise(tile, profile.wnoise.sigma, seed=seed, name=name)
    executable = analog
    if profile.adc is None:
        with stream(seed, "conversion"):
            executable = convert_to_digital(analog).eval().requires_grad_(False)
    return Chip(analog, executable, profile, seed, out_bounds)


def _tiles(analog: nn.Module) -> dict[str, TorchInferenceTile]:
    return {n: m for n, m in analog.named_modules() if isinstance(m, TorchInferenceTile)}


def _refuse_unmappable(model: nn.Module) -> None:
    if model.training:
        raise ValueError("the model is in training mode; call model.eval() first")
    mapped = 0
    for name, module in model.named_modules():
        what = f"layer {name or 'at the root'} ({type(module).__name__})"
        # The exact types: AIHWKit leaves subclasses digital.
        if type(module) in (nn.Conv2d, nn.Linear):
            mapped += 1
        elif not isinstance(module, _BatchNorm) and list(module.parameters(recurse=False)):
            raise ValueError(f"{what} has weights but cannot be mapped; use Conv2d or Linear")
        if type(module) is nn.Conv2d:
            if module.groups != 1:
                raise ValueError(f"{what} has {module.groups} groups; tiles need groups=1")
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


def _observe(
    analog: nn.Module, images: torch.Tensor, observe: Callable[[str, torch.Tensor], None]
) -> None:
    """Runs the network and shows `observe` each tile's outputs ahead of the ADC, normalised.

    An output is `W x / max|x|` for each input vector x, W with largest target weight 1.
    """

    def hook(name: str) -> Callable[[TorchInferenceTile, tuple[torch.Tensor]], None]:
        def before(tile: TorchInferenceTile, inputs: tuple[torch.Tensor]) -> None:
            scale = inputs[0].abs().amax(-1, keepdim=True)
            scale[scale == 0] = 1.0
            observe(name, (inputs[0] / scale) @ tile.tile.weight.T)

        return before

    tiles = _tiles(analog)
    handles = [tile.register_forward_pre_hook(hook(name)) for name, tile in tiles.items()]
    try:
        with torch.inference_mode():
            for chunk in images.split(_CHUNK):
                analog(chunk)
    finally:
        for handle in handles:
            handle.remove()


def _calibrate(analog: nn.Module, images: torch.Tensor | None) -> dict[str, float]:
    """Sets each tile's ADC range to its largest ideal output; returns them by tile."""
    if images is None:
        raise ValueError("a calibrated ADC range needs calibration images; pass calibration=")
    if images.dtype != torch.float32 or images.ndim != 4 or not len(images):
        raise ValueError(
            "calibration must be float32 images [batch, channel, height, width], "
            f"got {images.dtype} {tuple(images.shape)}"
        )
    tiles = _tiles(analog)
    bounds = dict.fromkeys(tiles, 0.0)

    def record(name: str, outputs: torch.Tensor) -> None:
        largest = float(outputs.abs().max())
        # max() would drop a NaN
        bounds[name] = largest if math.isnan(largest) else max(bounds[name], largest)

    for tile in tiles.values():
        tile.rpu_config.forward.is_perfect = True
    _observe(analog, images.cpu(), record)
    for name, tile in tiles.items():
        if not math.isfinite(bounds[name]) or bounds[name] == 0:
            raise ValueError(
                f"calibration gives tile {name} the ADC range {bounds[name]}; "
                "use images on which every layer is finite and active"
            )
        tile.rpu_config.forward.out_bound = bounds[name]
        tile.rpu_config.forward.is_perfect = False
    return bounds
