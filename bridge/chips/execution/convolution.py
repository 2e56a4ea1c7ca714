"""The windows of a convolution, and sums and maxima over parts of them without unfolding.

A tile holds some columns of a layer's weight matrix `[out, channel x tap]`, a kernel's taps counted
row by row: whole channels and, where the matrix is cut within a channel, some taps of one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

import torch
import torch.nn.functional as F


class Part(NamedTuple):
    """Consecutive channels of which the same consecutive taps are seen."""

    channels: slice
    taps: slice


@dataclass(frozen=True)
class Convolution:
    """Kernel size, stride, zero padding and dilation, rows before columns."""

    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)

    @property
    def taps(self) -> int:
        """Weights of the kernel for one channel and one output."""
        return self.kernel[0] * self.kernel[1]

    def __call__(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """`[batch, channel, height, width]`, `[out, channel, *kernel]` to the outputs."""
        return F.conv2d(x, weight, None, self.stride, self.padding, self.dilation)

    def parts(self, columns: slice) -> list[Part]:
        """Columns of the weight matrix as channels and taps."""
        parts, start = [], columns.start
        while start < columns.stop:
            channel, tap = divmod(start, self.taps)
            whole = (columns.stop - start) // self.taps if tap == 0 else 0
            if whole:
                parts.append(Part(slice(channel, channel + whole), slice(0, self.taps)))
                start += whole * self.taps
            else:
                stop = min(columns.stop, (channel + 1) * self.taps)
                parts.append(Part(slice(channel, channel + 1), slice(tap, tap + stop - start)))
                start = stop
        return parts

    def patches(self, x: torch.Tensor, columns: slice) -> torch.Tensor:
        """Some columns of every window, `[batch, column, height, width]`; a copy."""
        channels = slice(columns.start // self.taps, -(-columns.stop // self.taps))
        x = x[:, channels]
        sizes = [
            (x.shape[2 + i] + 2 * self.padding[i] - self.dilation[i] * (self.kernel[i] - 1) - 1)
            // self.stride[i]
            + 1
            for i in (0, 1)
        ]
        unfolded = F.unfold(x, self.kernel, self.dilation, self.padding, self.stride)
        first = columns.start - channels.start * self.taps
        return unfolded[:, first : first + columns.stop - columns.start].unflatten(-1, sizes)

    def largest_magnitude(self, x: torch.Tensor, parts: list[Part]) -> torch.Tensor:
        """The largest |x| that the parts see of each window; `[batch, 1, height, width]`."""
        return _maximum(
            [
                self._largest(x[:, channels].abs().amax(1, keepdim=True), taps)
                for channels, taps in parts
            ]
        )

    def sum_of_squares(self, x: torch.Tensor, parts: list[Part]) -> torch.Tensor:
        """The sum of x^2 over what the parts see of each window; `[batch, 1, height, width]`."""
        total = torch.zeros((), device=x.device)
        for channels, taps in parts:
            kernel = x.new_zeros(self.taps)
            kernel[taps] = 1.0
            squares = x[:, channels].square().sum(1, keepdim=True)
            total = total + self(squares, kernel.view(1, 1, *self.kernel))
        return total

    def _largest(self, x: torch.Tensor, taps: slice) -> torch.Tensor:
        """The largest of each window's taps of x `[batch, 1, height, width]`, x >= 0."""
        (rows, columns), (height, width) = self.padding, self.kernel
        x = F.pad(x, (columns, columns, rows, rows))
        if taps == slice(0, self.taps):
            x = _maximum([self._shifted(x, 3, tap) for tap in range(width)])
            return _maximum([self._shifted(x, 2, tap) for tap in range(height)])
        seen = []
        for tap in range(taps.start, taps.stop):
            row, column = divmod(tap, width)
            seen.append(self._shifted(self._shifted(x, 2, row), 3, column))
        return _maximum(seen)

    def _shifted(self, x: torch.Tensor, dimension: int, tap: int) -> torch.Tensor:
        """What a tap sees along height (dimension 2) or width (3), in each window."""
        dilation, stride = self.dilation[dimension - 2], self.stride[dimension - 2]
        last = x.shape[dimension] - dilation * (self.kernel[dimension - 2] - 1 - tap)
        where = slice(dilation * tap, last, stride)
        return x[:, :, where] if dimension == 2 else x[:, :, :, where]


def _maximum(tensors: list[torch.Tensor]) -> torch.Tensor:
    return reduce(torch.maximum, tensors)
