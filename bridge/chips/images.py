"""Images as chips take them: arrays or tensors, in torch's layout."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike

Images: TypeAlias = torch.Tensor | ArrayLike
"""float32; a tensor `[batch, channel, height, width]`, or an array of NumPy's or JAX's `[batch,
height, width, channel]`."""


def as_tensor(images: Images, what: str) -> torch.Tensor:
    """Images as a tensor `[batch, channel, height, width]` on the CPU.

    Raises:
      ValueError: no images, another dtype or another number of axes.
    """
    if isinstance(images, torch.Tensor):
        if images.dtype == torch.float32 and images.ndim == 4 and images.numel():
            return images.detach().cpu()
        got = f"a tensor {images.dtype} {tuple(images.shape)}"
    elif hasattr(images, "__array__"):
        array = np.asarray(images)
        if array.dtype == np.float32 and array.ndim == 4 and array.size:
            return torch.from_numpy(array.transpose(0, 3, 1, 2).copy())
        got = f"an array {array.dtype} {array.shape}"
    else:
        got = type(images).__name__
    raise ValueError(
        f"{what} must be float32 images, a tensor [batch, channel, height, width] or an array "
        f"[batch, height, width, channel]; got {got}"
    )


@contextmanager
def refused_layout(images: torch.Tensor) -> Iterator[None]:
    """Within it a network runs on images `[batch, channel, height, width]`.

    Raises:
      ValueError: in place of PyTorch's RuntimeError, for images that do not fit the network.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise ValueError(
            f"the network fails on images of {images.shape[1]} channels, {images.shape[2]} by "
            f"{images.shape[3]} pixels ({error}): give images of the size that it was made for, "
            "arrays as [batch, height, width, channel]"
        ) from error
