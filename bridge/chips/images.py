"""Images, and other inputs of a network, as chips take them: arrays or tensors, in torch's layout.

| samples | array of NumPy's or JAX's | torch tensor |
| --- | --- | --- |
| images | float32 `[batch, height, width, channel]` | float32 `[batch, channel, height, width]` |
| vectors | float32 `[batch, feature]` | the same |
| signals, sequences | float32, as the network takes them | the same |
| videos, volumes | float32 `[batch, channel, depth, height, width]` | the same |
| token ids | int32 or int64 `[batch, length]` | the same |
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from jaxcurv.data.layouts import plain_array, warn_of_channels_first

Images: TypeAlias = torch.Tensor | ArrayLike
"""float32; a tensor `[batch, channel, height, width]`, or an array of NumPy's or JAX's `[batch,
height, width, channel]`. Vectors, signals, videos and token ids are as in the table above."""

_EXPECTED = (
    "float32 images, a tensor [batch, channel, height, width] or an array [batch, height, width, "
    "channel]; or vectors [batch, feature], signals or volumes as the network takes them; or token "
    "ids int32 or int64 [batch, length]"
)
_TOKENS = (torch.int32, torch.int64)


def as_tensor(images: Images, what: str) -> torch.Tensor:
    """Images, or other inputs, as a tensor in torch's layout on the CPU.

    Args:
      images: as in the module's table.
      what: their name in messages.

    Warns:
      UserWarning: an array whose channels seem to come first.

    Raises:
      ValueError: no images, another dtype or another number of axes.
    """
    if isinstance(images, torch.Tensor):
        if _is_input(images):
            return images.detach().cpu()
        got = f"a tensor {images.dtype} {tuple(images.shape)}"
    elif hasattr(images, "__array__"):
        array = plain_array(images, what)
        got = f"an array {array.dtype} {array.shape}"
        if array.dtype in (np.float32, np.int32, np.int64):
            floating = array.dtype == np.float32
            warn_of_channels_first(array.shape)
            first = array.transpose(0, 3, 1, 2) if floating and array.ndim == 4 else array
            tensor = torch.from_numpy(np.array(first, order="C"))
            if _is_input(tensor):
                return tensor if floating else tensor.long()
    else:
        got = type(images).__name__
    raise ValueError(f"{what} must be {_EXPECTED}; got {got}")


def as_batch(images: NDArray, device: torch.device, *, first: bool = False) -> torch.Tensor:
    """A batch that was read of a source, in torch's layout.

    Args:
      images: as `read_batch` gives them.
      device: where the batch goes.
      first: whether it is the source's first, whose shape is looked at, with a warning where its
        channels seem to come first.

    Raises:
      ValueError: another dtype or another number of axes.
    """
    if images.dtype not in (np.float32, np.int32, np.int64):
        raise ValueError(f"the samples must be {_EXPECTED}; got {images.dtype} {images.shape}")
    batch = torch.from_numpy(images)
    if not _is_input(batch):
        raise ValueError(f"the samples must be {_EXPECTED}; got {images.dtype} {images.shape}")
    if first:
        warn_of_channels_first(images.shape)
    if not batch.is_floating_point():
        batch = batch.long()
    return (batch.permute(0, 3, 1, 2) if batch.ndim == 4 else batch).to(device)


def _is_input(tensor: torch.Tensor) -> bool:
    axes: tuple[int, ...] = (2,) if tensor.dtype in _TOKENS else ()
    if tensor.dtype == torch.float32:
        axes = (2, 3, 4, 5)
    return tensor.ndim in axes and tensor.numel() > 0


@contextmanager
def refused_layout(images: torch.Tensor, ran: int = 0) -> Iterator[None]:
    """Within it a network runs on images, or other inputs, in torch's layout.

    Args:
      images: `[batch, ...]`.
      ran: how many the network has run on at once before; 0 for none yet.

    Raises:
      ValueError: in place of PyTorch's RuntimeError, or an IndexError, for images that do not fit
        the network.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, IndexError) as error:
        refuse_transform(error)
        if ran and len(images) != ran:
            raise ValueError(
                f"the network fails on a batch of {len(images)} and ran on one of {ran} ({error}): "
                "let it take batches of any size, or choose a batch_size that leaves no smaller "
                "one"
            ) from error
        if images.ndim == 4:
            raise ValueError(
                f"the network fails on images of {images.shape[1]} channels, {images.shape[2]} by "
                f"{images.shape[3]} pixels ({error}): give images of the size that it was made "
                "for, arrays as [batch, height, width, channel], and reset state that it keeps of "
                "an earlier batch"
            ) from error
        raise ValueError(
            f"the network fails on inputs {images.dtype} of shape {tuple(images.shape[1:])} "
            f"({error}): give what it was made for, {_EXPECTED}"
        ) from error


def refuse_transform(error: Exception) -> None:
    """Refuses a network that calls layers on tiles within `torch.vmap`.

    Raises:
      ValueError: in place of the error of such a transform; another one is let through.
    """
    if "functorch" in str(error) or "vmap" in str(error):
        raise ValueError(
            f"the network fails on tiles ({error}): call it, and its layers, on the batch, without "
            "torch.vmap or another transform of torch.func"
        ) from error


def require_rows(found: torch.Tensor, images: torch.Tensor) -> None:
    """Refuses outputs without one row a sample.

    A batch of one is let through, since some networks squeeze its axis away.

    Raises:
      ValueError: it has another number of rows, as where an axis is missing from the inputs.
    """
    if len(images) == 1 or not isinstance(found, torch.Tensor):
        return
    if found.ndim == 0 or len(found) != len(images):
        raise ValueError(
            f"the network gives {tuple(found.shape)} for {len(images)} inputs "
            f"{tuple(images.shape)}, not one row each: give {_EXPECTED}"
        )
