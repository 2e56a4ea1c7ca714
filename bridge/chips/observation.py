"""Running a chip's network for what hooks see of it."""

import torch
from torch import nn

from bridge.chips.images import refused_layout, require_rows
from jaxcurv.progress import progress

_CHUNK = 32  # images at once: unfolded images are large


def run_over(analog: nn.Module, images: torch.Tensor, description: str) -> None:
    """Runs the network over images, as `as_tensor` gives them, in chunks."""
    with torch.inference_mode(), progress(len(images), description, side=True) as shown:
        for chunk in images.split(_CHUNK):
            with refused_layout(chunk):
                found = analog(chunk.clone())
            require_rows(found, chunk)
            shown.update(len(chunk))
