"""Image files to uint8 arrays, and arrays to PNG, with Pillow."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

if TYPE_CHECKING:
    from PIL import Image

# Only these decoders are ever tried: it is faster and exposes less than all of Pillow's plugins.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # number of channels to Pillow's mode


def decode(
    encoded: bytes | Path, channels: int = 3, size: int | None = None
) -> UInt8[np.ndarray, "height width channels"]:
    """The pixels of an image file, or of its bytes, with 1, 3 or 4 channels.

    With `size`, the short side is resized to it (bicubic) and the central square cut out.

    Raises:
        ValueError: it is not a readable image.
    """
    mode = _MODES[channels]
    with _opened(encoded) as opened:
        image = opened.convert(mode)
    if size and image.size != (size, size):
        from PIL import Image

        scale = size / min(image.size)
        width, height = (max(size, round(side * scale)) for side in image.size)
        left, top = (width - size) // 2, (height - size) // 2
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        image = image.crop((left, top, left + size, top + size))
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
        with Image.open(file, formats=_FORMATS) as image:
            yield image
    except Exception as error:  # decoders fail with OSError, SyntaxError, struct.error, ...
        name = encoded if isinstance(encoded, Path) else "a record"
        raise ValueError(f"{name} is not a readable image, replace it: {error}") from error
