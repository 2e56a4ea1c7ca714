"""What torchvision's resizing and cropping make of small images, kept for where it is missing.

`python -m tests.torchvision_transforms`, where torchvision can be imported, writes
`tests/data/torchvision_transforms.npz`.
"""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from jaxcurv.data import Preprocessing

STORED = Path(__file__).parent / "data/torchvision_transforms.npz"
PREPROCESSINGS = (
    Preprocessing(12, 15, "bilinear"),
    Preprocessing(11, 14, "bicubic"),
    Preprocessing(13, 13, "bilinear"),
    Preprocessing(10, 27, "bilinear"),
)
SIZES = ((37, 23), (23, 37), (30, 30), (51, 20), (41, 64), (19, 22))  # width and height
OTHER_MODES = ("L", "CMYK", "P")


def cases() -> dict[str, tuple[bytes, Preprocessing]]:
    """An image file and its preprocessing, by a name that says what they are."""
    images = {f"RGB {width}x{height}": image("RGB", width, height) for width, height in SIZES}
    images |= {
        f"{mode} {width}x{height}": image(mode, width, height)
        for mode in OTHER_MODES
        for width, height in SIZES[:2]
    }
    return {
        f"{name} {index}": (encoded, preprocessing)
        for name, encoded in images.items()
        for index, preprocessing in enumerate(PREPROCESSINGS)
    }


def image(mode: str, width: int, height: int) -> bytes:
    """A file of noise, losslessly encoded: one pixel's shift changes every level."""
    bands = len(Image.new(mode, (1, 1)).getbands())
    seed = [ord(mode[0]), width, height]
    raw = np.random.PCG64(seed).random_raw(bands * width * height)  # the same in every NumPy
    pixels = (raw >> np.uint64(56)).astype(np.uint8).tobytes()
    made = Image.frombytes(mode, (width, height), pixels)
    if mode == "P":
        made.putpalette([(7 * i + 50 * i % 3) % 256 for i in range(768)])
    file = io.BytesIO()
    made.save(file, "TIFF" if mode == "CMYK" else "PNG")
    return file.getvalue()


def by_torchvision(encoded: bytes, preprocessing: Preprocessing) -> np.ndarray:
    """uint8 `[crop_size, crop_size, 3]`."""
    from torchvision.transforms import InterpolationMode, functional

    opened = Image.open(io.BytesIO(encoded)).convert("RGB")  # as torchvision's ImageFolder does
    filter = InterpolationMode(preprocessing.interpolation)
    resized = functional.resize(opened, [preprocessing.resize_size], filter, antialias=True)
    return np.asarray(functional.center_crop(resized, [preprocessing.crop_size]))


if __name__ == "__main__":
    made = {name: by_torchvision(*case) for name, case in cases().items()}
    np.savez_compressed(STORED, **made)  # type: ignore[arg-type]
    print(f"{STORED}: {len(made)} images, {STORED.stat().st_size} bytes")
