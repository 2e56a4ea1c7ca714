"""One image of a gallery and the name of its class."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes


def show_image(axis: Axes, image: npt.NDArray[np.uint8], colour: str) -> None:
    """Shows an image, uint8 [height, width, 1 or 3], in a frame of a colour."""
    one_channel = image.shape[-1] == 1
    axis.imshow(
        image[..., 0] if one_channel else image,
        cmap="gray" if one_channel else None,
        interpolation="nearest",
        vmin=0,
        vmax=255,
    )
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set(visible=True, color=colour, linewidth=1.6)


def shorten(name: str, limit: int = 15) -> str:
    """A name of at most `limit` characters, its end replaced by an ellipsis where it is longer."""
    return name if len(name) <= limit else name[: limit - 1] + "…"
