"""Image files to uint8 arrays, and arrays to PNG, with Pillow."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from jaxcurv.data.preprocessing import Preprocessing

if TYPE_CHECKING:
    from PIL import Image

# Only these decoders are ever tried: it is faster and exposes less than all of Pillow's plugins.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # number of channels to Pillow's mode


def decode(
    encoded: bytes | Path, channels: int = 3, preprocessing: Preprocessing | None = None
) -> UInt8[np.ndarray, "height width channels"]:
    """The pixels of an image file, or of its bytes, with 1, 3 or 4 channels.

    Gray, CMYK and palette images are converted before they are resized and cropped.

    Raises:
        ValueError: it is not a readable image, or has more pixels than Pillow allows.
    """
    mode = _MODES[channels]
    with _opened(encoded) as opened:
        image = opened.convert(mode)
    if preprocessing is not None:
        from PIL import Image

        size = preprocessing.resized(*image.size)
        filter = Image.Resampling[preprocessing.interpolation.upper()]
        image = image.resize(size, filter).crop(preprocessing.box(*size))
    pixels = np.asarray(image)
    return pixels[..., np.newaxis] if channels == 1 else pixels


def height_and_width(path: Path) -> tuple[int, int]:
    """The size in pixels which the file's header states.

    Raises:
        ValueError: it is not a readable image.
    """
    with _opened(path) as image:
        return image.height, image.width


def encode_png(image: UInt8[np.ndarray, "height width channels"]) -> bytes:
    """The bytes of a PNG file: lossless, so that every decoder gives back the same pixels."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, "PNG")
    return buffer.getvalue()


@contextlib.contextmanager
def _opened(encoded: bytes | Path) -> Iterator["Image.Image"]:
    from PIL import Image

    file = encoded if isinstance(encoded, Path) else io.BytesIO(encoded)
    try:
        if isinstance(encoded, Path) and encoded.exists() and not encoded.is_file():
            raise ValueError("no regular file")  # a pipe, say, whose opening would wait for ever
        with Image.open(file, formats=_FORMATS) as image:
            _refuse_bomb(image.width * image.height)
            yield image
    except Exception as error:  # decoders fail with OSError, SyntaxError, struct.error, ...
        name = encoded if isinstance(encoded, Path) else "a record"
        raise ValueError(f"{name} is not a readable image, replace it: {error}") from error


def _refuse_bomb(pixels: int) -> None:
    """Up to twice its limit Pillow only warns."""
    from PIL import Image

    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and pixels > limit:
        raise ValueError(
            f"{pixels:,} pixels may fill the memory (if you trust its author, make it smaller, or "
            f"PIL.Image.MAX_IMAGE_PIXELS larger than {limit:,})"
        )
