"""Image files to uint8 arrays, and arrays to PNG, with Pillow."""

import contextlib
import io
import warnings
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
_BITS_PER_SAMPLE, _COMPRESSION, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 259, 262, 339
_SAMPLES_PER_PIXEL, _MAX_SAMPLE_VALUE, _PLANAR_CONFIGURATION = 277, 281, 284
_UNSIGNED, _SIGNED = 1, 2
_UNCOMPRESSED, _CHUNKY, _PLANAR = 1, 1, 2
_WHITE_OF_12_BITS, _WHITE_OF_16_BITS = 2**12 - 1, 2**16 - 1
_WHITE_IS_ZERO, _BLACK_IS_ZERO = 0, 1
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # number of channels to Pillow's mode


class _Unsuited(ValueError):
    """An image is whole, and not of the kind that is read."""


def decode(
    encoded: bytes | Path, channels: int = 3, preprocessing: Preprocessing | None = None
) -> UInt8[np.ndarray, "height width channels"]:
    """The pixels of an image file, or of its bytes, with 1, 3 or 4 channels.

    Gray, CMYK and palette images are converted before they are resized and cropped. Gray levels of
    16 bits are divided by 257 and rounded to 8 bits, those of a 12-bit TIFF divided by 4095 / 255.
    Pillow keeps the upper 8 bits of 16-bit colours. Without a fourth channel transparency is
    dropped. A warning tells levels of fewer bits in 16, and bands beyond colours and transparency,
    which are dropped.

    Raises:
        ValueError: it is not a readable image, or has more pixels than Pillow allows, several
            frames or pages, pixels without a fixed range (floats, or integers of 32 bits),
            uncompressed planes of 16 bits, or a fourth band that is no transparency where four
            channels are asked for.
    """
    mode = _MODES[channels]
    with _opened(encoded) as opened:
        _check_bands(opened, channels)
        _warn_of_few_levels(opened, encoded if isinstance(encoded, Path) else "a record")
        image = _as_8_bits(opened).convert(mode)
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
            _refuse_frames(image)
            yield image
    except Exception as error:  # decoders fail with OSError, SyntaxError, struct.error, ...
        name = encoded if isinstance(encoded, Path) else "a record"
        is_not = "" if isinstance(error, _Unsuited) else "is not a readable image, replace it: "
        raise ValueError(f"{name} {is_not}{error}") from error


def _as_8_bits(image: "Image.Image") -> "Image.Image":
    """The image itself, or its gray levels of up to 16 bits as 8 bits."""
    from PIL import Image

    if image.mode in ("F", "I") and image.format != "PNG":
        kind = "floats" if image.mode == "F" else "integers of 32 bits, or signed ones"
        raise _Unsuited(f"has pixels that are {kind}, without a fixed white: save it with 8 bits")
    if _tiff_tag(image, _SAMPLE_FORMAT, _UNSIGNED) == _SIGNED:
        raise _Unsuited("has signed pixels, without a fixed black: save it with 8 bits, unsigned")
    if image.mode not in ("I", "I;16", "I;16B", "I;16L", "I;16N"):
        return image
    white = 2 ** _tiff_tag(image, _BITS_PER_SAMPLE, 16) - 1
    levels = (np.arange(white + 1) * 255 + white // 2) // white
    if _tiff_tag(image, _PHOTOMETRIC, _BLACK_IS_ZERO) == _WHITE_IS_ZERO:
        levels = levels[::-1]  # Pillow does so with 8 bits only
    return Image.fromarray(levels.astype(np.uint8)[np.asarray(image)])


def _check_bands(image: "Image.Image", channels: int) -> None:
    """Refuses planes that Pillow reads wrongly; bands that it leaves out are told, or refused."""
    bands = _tiff_tag(image, _SAMPLES_PER_PIXEL, 1)
    if (
        bands > 1
        and _tiff_tag(image, _PLANAR_CONFIGURATION, _CHUNKY) == _PLANAR
        and _tiff_tag(image, _COMPRESSION, _UNCOMPRESSED) == _UNCOMPRESSED
        and _tiff_tag(image, _BITS_PER_SAMPLE, 1) > 8
    ):
        raise _Unsuited(
            "has its colours in planes of 16 bits, which Pillow takes for 8: save it with one "
            "pixel after another (planar configuration 1), or with 8 bits"
        )
    kept = image.getbands()
    if bands <= len(kept):
        return
    if channels == 4 and "A" not in kept:
        raise _Unsuited(
            f"has {bands} bands, of which those beyond {', '.join(kept)} are no transparency, for "
            "a fourth channel: read three channels, or give the bands as an array"
        )
    warnings.warn(
        f"a TIFF has {bands} bands, of which those beyond {', '.join(kept)} are dropped: give the "
        "bands as an array if the model needs them",
        stacklevel=3,
    )


def _warn_of_few_levels(image: "Image.Image", name: Path | str) -> None:
    """Tells 16-bit levels that seem to be of fewer bits, and are nearly black as 8 bits."""
    stated = _tiff_tag(image, _MAX_SAMPLE_VALUE, _WHITE_OF_16_BITS)
    if not _has_16_bits(image):
        return
    if 0 < stated <= _WHITE_OF_16_BITS // 2:
        problem = f"states {stated} as its largest level"
    elif 0 < _brightest(image) <= _WHITE_OF_12_BITS:
        problem = "has no level above 4095, as of a 12-bit camera or scanner"
    else:
        return
    warnings.warn(
        f"{name}, an image of 16 bits, {problem}, and is darker with 8 bits than it was meant: "
        "write such images with levels up to 65535",
        stacklevel=3,
    )


def _has_16_bits(image: "Image.Image") -> bool:
    """Whether a gray level or a colour has 16 bits in the file."""
    if image.format == "TIFF":
        return _tiff_tag(image, _BITS_PER_SAMPLE, 1) == 16
    return any(";16" in str(tile[3]) for tile in getattr(image, "tile", []))


def _brightest(image: "Image.Image") -> int:
    """The largest 16-bit level of gray or of a colour; of colours Pillow has the upper 8 bits."""
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8:
        return int(pixels.max(initial=0))
    if not image.mode.startswith("RGB"):
        return _WHITE_OF_16_BITS  # inks, or differences of colours: not black where they are small
    largest = int(pixels[..., :3].max(initial=0))
    return largest * 256 + 255 if largest else 0


def _tiff_tag(image: "Image.Image", number: int, otherwise: int) -> int:
    """The value, or the first of several, of a TIFF's tag."""
    value = getattr(image, "tag_v2", {}).get(number, otherwise)
    return int(value[0] if isinstance(value, tuple) else value)


def _refuse_frames(image: "Image.Image") -> None:
    """The first picture of an MPO, a camera's JPEG with a preview behind it, is the one meant."""
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise _Unsuited("has several frames or pages: save the one you mean as a file of its own")


def _refuse_bomb(pixels: int) -> None:
    """Up to twice its limit Pillow only warns."""
    from PIL import Image

    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and pixels > limit:
        raise ValueError(
            f"{pixels:,} pixels may fill the memory (if you trust its author, make it smaller, or "
            f"PIL.Image.MAX_IMAGE_PIXELS larger than {limit:,})"
        )
