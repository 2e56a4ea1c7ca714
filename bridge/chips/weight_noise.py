"""Noise of a tile: frozen into its weights, or drawn at each operation."""

from typing import Any

import torch
from aihwkit.simulator.parameters.enums import NoiseManagementType, WeightNoiseType
from aihwkit.simulator.parameters.io import IOParameters
from aihwkit.simulator.tiles.analog_mvm import AnalogMVM
from aihwkit.simulator.tiles.inference_torch import TorchInferenceTile
from aihwkit.simulator.tiles.torch_tile import TorchSimulatorTile

from bridge.chips.profiles import WeightNoise
from bridge.chips.streams import stream_seed


def freeze_weight_noise(
    tile: TorchInferenceTile, noise: WeightNoise, *, seed: int, name: str
) -> None:
    """Adds noise to each weight that the tile holds, in place, once and for all.

    With m the tile's largest target weight, w gets Gaussian noise of standard deviation `sigma m`
    (constant) or `sigma sqrt(m |w|)` (pcm_read). The target weights decide m and the stream, so
    "constant" noise is the same whether or not they were programmed imperfectly.

    Args:
      tile: a tile on the CPU.
      noise: its level and kind.
      seed: the chip.
      name: the tile within the chip.
    """
    weights = tile.tile.get_weights()
    spread: torch.Tensor = noise.sigma * largest_target(tile)
    if noise.kind == "pcm_read":
        spread = noise.sigma * (largest_target(tile) * weights.abs()).sqrt()
    generator = torch.Generator().manual_seed(stream_seed(seed, "weight noise", name))
    tile.tile.set_weights(weights + spread * torch.randn(weights.shape, generator=generator))


def largest_target(tile: TorchInferenceTile) -> torch.Tensor:
    """The largest magnitude among the weights that the tile is meant to hold, a scalar."""
    programmed_from = tile.reference_combined_weights
    target = tile.tile.get_weights() if programmed_from is None else programmed_from
    return target.abs().max()


def weight_noise(io_pars: IOParameters) -> float:
    """Level of the noise that AIHWKit draws for each operation; 0 for none."""
    off = io_pars.is_perfect or io_pars.w_noise_type not in (
        WeightNoiseType.ADDITIVE_CONSTANT,
        WeightNoiseType.PCM_READ,
    )
    return 0.0 if off else io_pars.w_noise


def draws_per_operation(io_pars: IOParameters) -> bool:
    """Whether a tile draws noise of its weights or of its outputs for each operation."""
    return weight_noise(io_pars) > 0 or (not io_pars.is_perfect and io_pars.out_noise > 0)


class MvmNoise(AnalogMVM):
    """AIHWKit's PyTorch matrix-vector product with the weight noise that only its compiled one has.

    The noise is drawn from torch's global random state. Input vectors of zeros that have no unit
    have no noise of outputs (`OutputNoise`).
    """

    @classmethod
    def check_support(cls, io_pars: IOParameters) -> None:
        """As AIHWKit's, but accepts `w_noise`."""
        noise, kind = io_pars.w_noise, io_pars.w_noise_type
        io_pars.w_noise, io_pars.w_noise_type = 0.0, WeightNoiseType.NONE
        try:
            super().check_support(io_pars)
        finally:
            io_pars.w_noise, io_pars.w_noise_type = noise, kind

    @classmethod
    def _compute_analog_mv(
        cls,
        weight: torch.Tensor,
        input_: torch.Tensor,
        trans: bool,
        scale: Any,
        scaling: bool,
        is_test: bool,
        io_pars: IOParameters,
        **fwd_pars: Any,
    ) -> tuple[bool, torch.Tensor]:
        x = cls._prepare_input(input_, scale, scaling, io_pars.inp_asymmetry != 0.0, io_pars)
        y = cls._matmul(weight, x, trans=trans)
        if weight_noise(io_pars) > 0:
            if io_pars.w_noise_type == WeightNoiseType.PCM_READ:
                variance = cls._matmul(weight.abs(), x.square(), trans=trans)
            else:
                variance = x.square().sum(-1, keepdim=True)
            y = y + io_pars.w_noise * variance.sqrt() * torch.randn_like(y)
        passed, y = cls._finalize_output(y, io_pars, **fwd_pars)
        if io_pars.out_noise > 0 and io_pars.noise_management == NoiseManagementType.ABS_MAX:
            y = y * (x != 0).any(-1, keepdim=True)
        return passed, y


class MvmNoiseTile(TorchSimulatorTile):
    """AIHWKit's PyTorch tile, `forward.w_noise` included."""

    def __init__(self, x_size: int, d_size: int, rpu_config: Any, bias: bool = False):
        super().__init__(x_size, d_size, rpu_config, bias, analog_mvm=MvmNoise)
