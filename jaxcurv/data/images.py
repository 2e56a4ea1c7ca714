"""Image files to uint8 arrays, and arrays to PNG, with Pillow."""

import contextlib
import io
import json
import math
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import UInt8

from jaxcurv.data.preprocessing import Preprocessing

if TYPE_CHECKING:
    from PIL import Image

# Only these decoders are ever tried: it is faster and exposes less than all of Pillow's plugins.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
_BITS_PER_SAMPLE, _COMPRESSION, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 259, 262, 339
_WIDTH, _HEIGHT, _DESCRIPTION, _ORIENTATION, _COLOUR_MAP = 256, 257, 270, 274, 320
_SAMPLES_PER_PIXEL, _MAX_SAMPLE_VALUE, _PLANAR_CONFIGURATION = 277, 281, 284
_UNSIGNED, _SIGNED = 1, 2
_UNCOMPRESSED, _CHUNKY, _PLANAR = 1, 1, 2
_WHITE_OF_16_BITS = 2**16 - 1
_FEW_LEVELS = 4096  # of the 65,536 of 16 bits: 16 remain of 8 bits' 256
_WHITE_IS_ZERO, _BLACK_IS_ZERO = 0, 1
_TURNED_BACK = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_90",
    7: "TRANSVERSE",
    8: "ROTATE_270",
}
"""What undoes Pillow's turning of a TIFF by the orientation that it states."""
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # number of channels to Pillow's mode
_ON_THE_WAY = {"LAB": "RGB", "La": "LA"}  # modes that Pillow converts to few others


class _Unsuited(ValueError):
    """An image is whole, and not of the kind that is read."""


class Doubt(NamedTuple):
    """Why pixels may not be what was meant."""

    problem: str
    """What follows the image's name in a sentence."""
    cure: str

    def __str__(self) -> str:
        return f"{self.problem}: {self.cure}"


def decode(
    encoded: bytes | Path, channels: int = 3, preprocessing: Preprocessing | None = None
) -> UInt8[np.ndarray, "height width channels"]:
    """The pixels of an image file, or of its bytes, as `decode_doubting`; doubts are warnings."""
    pixels, doubts = decode_doubting(encoded, channels, preprocessing)
    for doubt in doubts:
        warnings.warn(f"{_name(encoded)}, {doubt}", stacklevel=2)
    return pixels


def decode_doubting(
    encoded: bytes | Path, channels: int = 3, preprocessing: Preprocessing | None = None
) -> tuple[UInt8[np.ndarray, "height width channels"], list[Doubt]]:
    """The pixels of an image file, or of its bytes, with 1, 3 or 4 channels, and doubts of them.

    Gray, CMYK and palette images are converted before they are resized and cropped. Gray levels of
    16 bits are divided by 257 and rounded to 8 bits, those of a 12-bit TIFF divided by 4095 / 255.
    Pillow keeps the upper 8 bits of 16-bit colours. Without a fourth channel transparency is
    dropped. An orientation that the file states is not applied, whatever the format: pixels come in
    the order in which they are stored, as `PIL.Image.open` gives those of JPEG and PNG.

    Doubtful are 16-bit levels that are all in the lower half, as where they are of fewer bits, or
    near one another, and bands beyond colours and transparency, which are dropped.

    Raises:
        ValueError: it is not a readable image, or has more pixels than Pillow allows, several
            frames or pages, pixels without a fixed range (floats, or integers of 32 bits),
            uncompressed planes of 16 bits, colours of 8 bits in a TIFF's colour map, or, where four
            channels are asked for, a fourth band that is no transparency or a transparent colour
            of 16 bits.
    """
    mode = _MODES[channels]
    with _opened(encoded) as opened:
        orientation = opened.getexif().get(_ORIENTATION) if opened.format == "TIFF" else None
        _scale_transparent_level(opened, channels)
        found = [_dropped_bands(opened, channels), _few_levels(opened)]
        doubts = [doubt for doubt in found if doubt is not None]
        image = _turned_back(_as_8_bits(opened), orientation)
        image = image.convert(_ON_THE_WAY.get(image.mode, image.mode)).convert(mode)
    if preprocessing is not None:
        from PIL import Image

        size = preprocessing.resized(*image.size)
        filter = Image.Resampling[preprocessing.interpolation.upper()]
        image = image.resize(size, filter).crop(preprocessing.box(*size))
    pixels = np.asarray(image)
    return (pixels[..., np.newaxis] if channels == 1 else pixels), doubts


def height_and_width(path: Path) -> tuple[int, int]:
    """The size in pixels of what `decode` gives, from the file's header.

    Raises:
        ValueError: it is not a readable image.
    """
    with _opened(path) as image:
        # Pillow turns a TIFF's size with its pixels.
        return _tiff_tag(image, _HEIGHT, image.height), _tiff_tag(image, _WIDTH, image.width)


def encode_png(image: UInt8[np.ndarray, "height width channels"]) -> bytes:
    """The bytes of a PNG file: lossless, so that every decoder gives back the same pixels."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, "PNG")
    return buffer.getvalue()


@contextlib.contextmanager
def _opened(encoded: bytes | Path) -> Iterator["Image.Image"]:
    from PIL import Image

    try:
        if isinstance(encoded, Path) and encoded.exists() and not encoded.is_file():
            raise ValueError("no regular file")  # a pipe, say, whose opening would wait for ever
        # Of a file that Pillow opens itself it maps pixels into memory, and scrambles turned ones.
        with (
            encoded.open("rb") if isinstance(encoded, Path) else io.BytesIO(encoded) as file,
            Image.open(file, formats=_FORMATS) as image,
        ):
            _refuse_bomb(image.width * image.height)
            _refuse_frames(image)
            _refuse_dark_colours(image)
            yield image
    except Exception as error:  # decoders fail with OSError, SyntaxError, struct.error, ...
        is_not = "" if isinstance(error, _Unsuited) else "is not a readable image, replace it: "
        raise ValueError(f"{_name(encoded)} {is_not}{error}") from error


def _name(encoded: bytes | Path) -> str:
    return str(encoded) if isinstance(encoded, Path) else "a record"


def _turned_back(image: "Image.Image", orientation: int | None) -> "Image.Image":
    """A TIFF's pixels as they are stored, of what Pillow turned by the stated orientation."""
    from PIL import Image

    if orientation not in _TURNED_BACK:
        return image
    return image.transpose(Image.Transpose[_TURNED_BACK[orientation]])


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
    raw = np.asarray(image)
    found = Image.fromarray(levels.astype(np.uint8)[raw])
    if (transparent := image.info.get("transparency")) is not None:
        found.putalpha(Image.fromarray(np.where(raw == transparent, 0, 255).astype(np.uint8)))
    return found


def _scale_transparent_level(image: "Image.Image", channels: int) -> None:
    """Brings the transparent level of a PNG's 2 or 4 bits to the 8 of Pillow's levels, which it
    compares it with; refuses a transparent colour of 16 bits, of which Pillow has the upper 8.

    The level is that of PNG's chunk tRNS, in the file's own bits (PNG specification, 11.3.2.1).
    """
    transparent = image.info.get("transparency")
    if image.format != "PNG" or transparent is None or channels != 4:
        return
    stored = next((str(tile[3]) for tile in getattr(image, "tile", [])), "")
    if stored == "RGB;16B":
        raise _Unsuited(
            "has a transparent colour of 16 bits, of which Pillow reads 8: save it with an alpha "
            "channel, or read three channels"
        )
    if stored in ("L;2", "L;4"):
        white = 2 ** int(stored[2:]) - 1
        image.info["transparency"] = (transparent & white) * 255 // white


def _dropped_bands(image: "Image.Image", channels: int) -> Doubt | None:
    """Refuses planes that Pillow reads wrongly; tells bands that it leaves out, or refuses them."""
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
        return None
    if channels == 4 and "A" not in kept:
        raise _Unsuited(
            f"has {bands} bands, of which those beyond {', '.join(kept)} are no transparency, for "
            "a fourth channel: read three channels, or give the bands as an array"
        )
    return Doubt(
        f"a TIFF, has {bands} bands, of which those beyond {', '.join(kept)} are dropped",
        "give the bands as an array if the model needs them",
    )


def _few_levels(image: "Image.Image") -> Doubt | None:
    """Tells 16-bit levels that seem to be of fewer bits, or of which 8 bits keep hardly any."""
    stated = _tiff_tag(image, _MAX_SAMPLE_VALUE, _WHITE_OF_16_BITS)
    if not _has_16_bits(image):
        return None
    darkest, brightest = _darkest_and_brightest(image)
    cure = "write such images with levels up to 65535"
    if 0 < stated <= _WHITE_OF_16_BITS // 2:
        problem = f"states {stated} as its largest level, and is darker"
    elif 0 < brightest <= _WHITE_OF_16_BITS // 2:
        bits = max(9, brightest.bit_length())
        problem = (
            f"has no level above {2**bits - 1}, as of a camera or scanner of {bits} bits, and is "
            "darker"
        )
    elif 0 < brightest - darkest < _FEW_LEVELS:
        problem = f"has levels from {darkest} to {brightest} alone, and is flatter"
        cure = "stretch all images alike, so that their levels go from about 0 to 65535"
    else:
        return None
    return Doubt(f"an image of 16 bits, {problem} with 8 bits than it was meant", cure)


def _has_16_bits(image: "Image.Image") -> bool:
    """Whether a gray level or a colour has 16 bits in the file."""
    if image.format == "TIFF":
        return _tiff_tag(image, _BITS_PER_SAMPLE, 1) == 16
    if image.format != "PNG":  # the 16 bits of a BMP are of three colours together
        return False
    return any(";16" in str(tile[3]) for tile in getattr(image, "tile", []))


def _darkest_and_brightest(image: "Image.Image") -> tuple[int, int]:
    """The 16-bit levels of gray or of colours; of colours Pillow has the upper 8 bits."""
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8:
        return int(pixels.min()), int(pixels.max())
    if not image.mode.startswith("RGB"):
        # Inks, or differences of colours: not black where they are small.
        return 0, _WHITE_OF_16_BITS
    smallest, largest = int(pixels[..., :3].min()), int(pixels[..., :3].max())
    brightest = largest * 256 + 255 if largest else 0
    return (smallest * 256 if smallest < largest else brightest), brightest


def _tiff_tag(image: "Image.Image", number: int, otherwise: int) -> int:
    """The value, or the first of several, of a TIFF's tag."""
    value = getattr(image, "tag_v2", {}).get(number, otherwise)
    return int(value[0] if isinstance(value, tuple) else value)


def _refuse_frames(image: "Image.Image") -> None:
    """The first picture of an MPO, a camera's JPEG with a preview behind it, is the one meant."""
    animated = getattr(image, "is_animated", False) and image.format != "MPO"
    if animated or _has_hidden_frames(image):
        raise _Unsuited("has several frames or pages: save the one you mean as a file of its own")


def _has_hidden_frames(image: "Image.Image") -> bool:
    """Whether a TIFF says that images follow its only page, as ImageJ and tifffile write stacks."""
    said = getattr(image, "tag_v2", {}).get(_DESCRIPTION)
    if not isinstance(said, str):
        return False
    numbers = image.width * image.height * _tiff_tag(image, _SAMPLES_PER_PIXEL, 1)
    count = 1
    if said.startswith("ImageJ="):
        found = re.search(r"^images=(\d+)", said, re.MULTILINE)
        count = int(found[1]) if found else 1
    else:
        with contextlib.suppress(ValueError, TypeError, AttributeError, RecursionError):
            count = math.prod(map(int, json.loads(said).get("shape", []))) // numbers
    file = getattr(image, "fp", None)
    if count < 2 or file is None:
        return False
    length = file.seek(0, io.SEEK_END)  # a page that was taken from a stack may still say so
    return length * 8 >= count * numbers * _tiff_tag(image, _BITS_PER_SAMPLE, 1)


def _refuse_dark_colours(image: "Image.Image") -> None:
    colours = getattr(image, "tag_v2", {}).get(_COLOUR_MAP)
    if colours and 0 < max(colours) <= 255:
        raise _Unsuited(
            "has colours from 0 to 255 in its colour map, where TIFF has 0 to 65535, and would be "
            "black: save it as RGB"
        )


def _refuse_bomb(pixels: int) -> None:
    """Up to twice its limit Pillow only warns."""
    from PIL import Image

    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and pixels > limit:
        raise ValueError(
            f"{pixels:,} pixels may fill the memory (if you trust its author, make it smaller, or "
            f"PIL.Image.MAX_IMAGE_PIXELS larger than {limit:,})"
        )
