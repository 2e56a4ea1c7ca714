"""How tensors lie in memory: faster with the channels last, but some code needs them contiguous.

In plain PyTorch contiguous images have contiguous features, so that `view` works on these.
"""

import math
from collections.abc import Callable

import torch
from aihwkit.nn import AnalogConv2d
from torch import nn

Run = Callable[[torch.Tensor], torch.Tensor]


class Layout:
    """Runs a network on images as they lie, or contiguous from the first time that it needs it.

    Always on a copy: a network may normalise its input in place.

    Args:
      network: its convolutions on AIHWKit's tiles give contiguous outputs from then on.
    """

    def __init__(self, network: nn.Module):
        self.network, self.contiguous = network, False

    def __call__(self, run: Run, images: torch.Tensor) -> torch.Tensor:
        """What `run` makes of the images.

        Raises:
          RuntimeError: that of `run` on the images as they lie, where it fails either way.
        """
        if self.contiguous:
            return run(_contiguous_copy(images))
        try:
            return run(images.clone())
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            contiguous_outputs(self.network)
            try:
                found = run(_contiguous_copy(images))
            except RuntimeError:
                raise error from None
        self.contiguous = True
        return found


def contiguous(x: torch.Tensor) -> torch.Tensor:
    """The same values, contiguous; also along axes of length 1."""
    lengths = [max(length, 1) for length in x.shape]
    strides = tuple(math.prod(lengths[axis + 1 :]) for axis in range(x.ndim))
    return x if x.stride() == strides else x.clone(memory_format=torch.contiguous_format)


def _contiguous_copy(images: torch.Tensor) -> torch.Tensor:
    return images.clone(memory_format=torch.contiguous_format)


def contiguous_outputs(network: nn.Module) -> None:
    """AIHWKit's convolutions then give contiguous outputs; their own have the channels last."""
    for layer in network.modules():
        if isinstance(layer, AnalogConv2d) and _contiguous not in layer._forward_hooks.values():
            layer.register_forward_hook(_contiguous, prepend=True)


def _contiguous(_: nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
    return contiguous(output)
