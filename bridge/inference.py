"""A chip, or any torch module, over a data set: logits, one row a sample."""

from copy import deepcopy

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from bridge.chip import Chip


def predict(
    chip: Chip | nn.Module,
    images: NDArray[np.float32],
    *,
    batch_size: int,
    device: str | torch.device = "cpu",
    description: str,
) -> NDArray[np.float32]:
    """Logits of all images, in their order.

    No sample's logits depend on the others in its batch (up to rounding): in eval mode neither the
    network nor the tiles couple them. On a GPU, TensorFloat-32 is off.

    Args:
      chip: a chip, or a module on images `[batch, channel, height, width]` in eval mode.
      images: float32 `[sample, height, width, channel]`, the layout of JAX; transposed per batch.
      batch_size: images at once.
      device: where to run; the chip itself stays where it is.
      description: text ahead of the progress bar.

    Returns:
      float32 `[sample, class]`.

    Raises:
      ValueError: malformed images, a module in training mode, or non-finite logits.
    """
    module = chip.executable if isinstance(chip, Chip) else chip
    if images.ndim != 4 or images.dtype != np.float32 or not len(images):
        raise ValueError(
            "images must be float32 [sample, height, width, channel], "
            f"got {images.dtype} {images.shape}"
        )
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if module.training:
        raise ValueError("the module is in training mode; call eval() first")
    device = torch.device(device)
    if device.type != "cpu":
        module = deepcopy(module).to(device)
    rows = []
    with (
        torch.inference_mode(),
        torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False),
        tqdm(total=len(images), desc=description, unit="image") as progress,
    ):
        for start in range(0, len(images), batch_size):
            batch = np.array(images[start : start + batch_size].transpose(0, 3, 1, 2), order="C")
            logits = module(torch.from_numpy(batch).to(device)).float().cpu().numpy()
            finite = np.isfinite(logits).all(axis=-1)
            if not finite.all():
                raise ValueError(
                    f"{description}: non-finite logits, first for image "
                    f"{start + int(np.argmin(finite))}; check the weights and the images"
                )
            rows.append(logits)
            progress.update(len(logits))
    return np.concatenate(rows)
