"""Convolutions of one and three dimensions as one of two, which goes to tiles."""

from typing import Any

import torch
from torch import Tensor, nn

from bridge.chips.plain_layers import carry_over, fill


class SignalConvolution(nn.Module):
    """`nn.Conv1d` as a convolution `conv` of images of one row; hooks stay on this module."""

    def __init__(self, layer: nn.Conv1d):
        super().__init__()
        self.conv = nn.utils.skip_init(
            nn.Conv2d,
            layer.in_channels,
            layer.out_channels,
            (1, *layer.kernel_size),
            (1, *layer.stride),
            layer.padding if isinstance(layer.padding, str) else (0, *layer.padding),
            (1, *layer.dilation),
            bias=layer.bias is not None,
        )
        fill(self.conv, layer.weight[:, :, None], layer.bias)
        carry_over(layer, self)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.unsqueeze(-2)).squeeze(-2)


class VolumeConvolution(nn.Module):
    """`nn.Conv3d` as a convolution `conv` of images: what one output depth sees of each channel.

    A weight `[out, channel, depth, height, width]` has the channels of `conv` in this order: the
    depths of the first channel, those of the second.
    """

    def __init__(self, layer: nn.Conv3d):
        super().__init__()
        (self.depth, *kernel), (self.step, *stride) = layer.kernel_size, layer.stride
        (self.spread, *dilation), (self.around, *padding) = layer.dilation, _padding(layer)
        self.conv = nn.utils.skip_init(
            nn.Conv2d,
            layer.in_channels * self.depth,
            layer.out_channels,
            tuple(kernel),
            tuple(stride),
            tuple(padding),
            tuple(dilation),
            bias=layer.bias is not None,
        )
        fill(self.conv, layer.weight.flatten(1, 2), layer.bias)
        carry_over(layer, self)

    def forward(self, x: Tensor) -> Tensor:
        batched = x.ndim == 5
        x = x if batched else x[None]
        x = torch.nn.functional.pad(x, (0, 0, 0, 0, self.around, self.around))
        reach = self.spread * (self.depth - 1)
        depths = torch.arange(0, x.shape[2] - reach, self.step, device=x.device)
        seen = depths[:, None] + self.spread * torch.arange(self.depth, device=x.device)
        # `[batch, channel, output depth, depth of the kernel, height, width]`
        parts = x[:, :, seen].transpose(1, 2).flatten(2, 3)
        found = self.conv(parts.flatten(0, 1)).unflatten(0, parts.shape[:2]).transpose(1, 2)
        return found if batched else found[0]


def _padding(layer: nn.Conv3d) -> tuple[int, ...]:
    if layer.padding == "valid":
        return (0, 0, 0)
    if layer.padding == "same":
        spans = zip(layer.dilation, layer.kernel_size, strict=True)
        return tuple(dilation * (size - 1) // 2 for dilation, size in spans)
    found: Any = layer.padding
    return tuple(found)
