"""How images of unequal size become squares of one size."""

from dataclasses import dataclass
from typing import Literal, get_args

from jaxcurv.settings import make_plain, require_whole

Interpolation = Literal["bilinear", "bicubic"]


@dataclass(frozen=True)
class Preprocessing:
    """Resize the short side, then cut out the central square, as torchvision's evaluation does.

    The long side becomes `int(resize_size * long / short)`; the crop begins at
    `round((side - crop_size) / 2)`, halves to even. Both filters are antialiased.

    Attributes:
        crop_size: side of the square in pixels.
        resize_size: the short side before the crop, in pixels.
        interpolation: the filter.

    Raises:
        ValueError: a size below 1, a crop that would reach beyond the image, or another filter.
    """

    crop_size: int
    resize_size: int
    interpolation: Interpolation = "bicubic"

    def __post_init__(self) -> None:
        make_plain(self)
        for name, size in (("image", self.crop_size), ("resize", self.resize_size)):
            if require_whole(f"the {name} size", size) < 1:
                raise ValueError(f"the {name} size must be at least 1 pixel, not {size}")
        if self.resize_size < self.crop_size:
            raise ValueError(
                f"a crop of {self.crop_size} pixels reaches beyond an image whose short side is "
                f"resized to {self.resize_size}: choose a resize size of at least {self.crop_size}"
            )
        if self.interpolation not in get_args(Interpolation):
            raise ValueError(
                f"interpolation must be {' or '.join(get_args(Interpolation))}, "
                f"not {self.interpolation!r}"
            )

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of an image after resizing."""
        short = min(width, height)
        # The product first, then one division: torchvision's order, which decides the truncation.
        width, height = (int(self.resize_size * side / short) for side in (width, height))
        return width, height

    def box(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of the crop from a resized image."""
        left, top = (round((side - self.crop_size) / 2) for side in (width, height))
        return left, top, left + self.crop_size, top + self.crop_size


def choose_preprocessing(
    image_size: int | None, resize_size: int | None, interpolation: Interpolation
) -> Preprocessing | None:
    """What three settings ask for: `image_size` alone resizes the short side to the crop's.

    Returns:
        None without `image_size`: images are left as they are.

    Raises:
        ValueError: the other two ask for something without it, or as for `Preprocessing`.
    """
    if image_size is not None:
        return Preprocessing(
            image_size, image_size if resize_size is None else resize_size, interpolation
        )
    if resize_size is not None or interpolation != "bicubic":
        raise ValueError(
            "a resize size and an interpolation need an image size, to which images are cropped"
        )
    return None
