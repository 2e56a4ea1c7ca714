"""The windows of a convolution, and sums and maxima over parts of them without unfolding.

A tile holds some columns of a layer's weight matrix `[out, channel x tap]`, a kernel's taps counted
row by row: whole channels and, where the matrix is cut within a channel, some taps of one.
"""

from __future__ import annotations

from dataclasses import dataclass
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

    def largest_magnitude(self, x: torch.Tensor, parts: list[Part]) -> torch.Tensor:
        """The largest |x| that the parts see of each window; `[batch, 1, height, width]`."""
        found = [
            self._largest(x[:, channels].abs().amax(1, keepdim=True), taps)
            for channels, taps in parts
        ]
        largest = found[0]
        for other in found[1:]:
            largest = torch.maximum(largest, other)
        return largest

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
        rows, columns = self.padding
        x = F.pad(x, (columns, columns, rows, rows))
        if taps == slice(0, self.taps):
            return F.max_pool2d(x, self.kernel, self.stride, 0, self.dilation)
        heights, widths = (
            range(0, length - dilation * (size - 1), stride)
            for length, size, stride, dilation in zip(
                x.shape[2:], self.kernel, self.stride, self.dilation, strict=True
            )
        )
        seen = []
        for tap in range(taps.start, taps.stop):
            row, column = divmod(tap, self.kernel[1])
            row, column = row * self.dilation[0], column * self.dilation[1]
            seen.append(
                x[
                    :,
                    :,
                    row : row + heights.stop : heights.step,
                    column : column + widths.stop : widths.step,
                ]
            )
        return torch.stack(seen).amax(0)
