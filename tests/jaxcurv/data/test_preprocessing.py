"""Resizing and cropping: torchvision is the oracle, by itself or by what it once gave."""

import importlib
import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.settings.flags import Data
from jaxcurv.data import Normalisation, Preprocessing, choose_preprocessing
from jaxcurv.data.images import decode
from tests.refusals import refused
from tests.torchvision_transforms import STORED, cases, image


@pytest.mark.parametrize("name", cases())
def test_within_one_grey_level_of_what_torchvision_gave(name: str) -> None:
    encoded, preprocessing = cases()[name]
    with np.load(STORED) as stored:
        theirs = stored[name].astype(int)
    ours = decode(encoded, preprocessing=preprocessing)
    assert ours.dtype == np.uint8
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= 1


def test_what_torchvision_gave_tells_a_pixels_shift() -> None:
    # Else the comparison above would prove little.
    with np.load(STORED) as stored:
        assert {*stored.files} == {*cases()}
        for theirs in stored.values():
            pixels = theirs.astype(int)
            for axis in (0, 1):
                assert np.abs(np.diff(pixels, axis=axis)).mean() > 10


def photographs() -> list[bytes]:
    """Images of the real sample where it is there, else noise of the sizes of photographs."""
    folder = Path(os.environ.get("JAXCURV_DATA_DIR", "nowhere"))
    files = [
        *sorted(folder.glob("imagenet-sample/val/*/*.JPEG"))[::10],
        *sorted(folder.glob("tiny-imagenet-200/val/*/*.JPEG"))[::100],
    ]
    sizes = ((500, 375), (375, 500), (501, 333), (257, 300), (96, 64), (640, 641))
    return [file.read_bytes() for file in files] or [
        image(mode, *size) for size in sizes for mode in ("RGB", "L")
    ]


@pytest.mark.parametrize(
    "weights",
    ["18_Weights.IMAGENET1K_V1", "50_Weights.IMAGENET1K_V1", "50_Weights.IMAGENET1K_V2"],
)
def test_the_evaluation_of_torchvisions_weights(weights: str) -> None:
    try:
        models = importlib.import_module("torchvision.models")
    except Exception as error:  # RuntimeError where it was built for another torch
        pytest.skip(f"torchvision cannot be imported: {error}")
    transforms = models.get_weight(f"ResNet{weights}").transforms()
    (crop_size,), (resize_size,) = transforms.crop_size, transforms.resize_size
    preprocessing = Preprocessing(crop_size, resize_size, transforms.interpolation.value)
    normalisation = Normalisation(tuple(transforms.mean), tuple(transforms.std))
    level = 1 / (255 * np.array(normalisation.std))
    for encoded in photographs():
        theirs = transforms(Image.open(io.BytesIO(encoded)).convert("RGB")).numpy()
        ours = normalisation.apply(decode(encoded, preprocessing=preprocessing))
        assert np.all(np.abs(ours - theirs.transpose(1, 2, 0)) <= 1.01 * level)


def test_the_long_side_is_truncated_and_the_crop_rounded_half_to_even() -> None:
    preprocessing = Preprocessing(224, 256)
    assert preprocessing.resized(500, 375) == (341, 256)  # 341.33
    assert preprocessing.resized(333, 500) == (256, 384)  # 384.38
    assert preprocessing.resized(500, 334) == (383, 256)  # 383.23
    assert preprocessing.resized(300, 179) == (429, 256)  # 429.05
    assert preprocessing.resized(64, 64) == (256, 256)
    assert Preprocessing(224, 232).resized(500, 377) == (307, 232)  # 307.69
    assert preprocessing.box(341, 256) == (58, 16, 282, 240)  # 58.5
    assert preprocessing.box(256, 383) == (16, 80, 240, 304)  # 79.5
    assert preprocessing.box(256, 256) == (16, 16, 240, 240)


def test_gray_cmyk_and_palette_become_rgb() -> None:
    preprocessing = Preprocessing(6, 6)
    for mode in ("L", "CMYK", "P"):
        encoded = image(mode, 6, 6)
        with Image.open(io.BytesIO(encoded)) as opened:
            assert opened.mode == mode
            rgb = np.asarray(opened.convert("RGB"))
        np.testing.assert_array_equal(decode(encoded, preprocessing=preprocessing), rgb)
        np.testing.assert_array_equal(decode(encoded), rgb)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((0, 0), "image size must be at least 1 pixel, not 0"),
        ((4, -1), "resize size must be at least 1 pixel, not -1"),
        ((224, 223), "crop of 224 pixels.*resized to 223: choose a resize size of at least 224"),
    ],
)
def test_sizes_that_cannot_be_are_refused(sizes: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Preprocessing(*sizes)


def test_another_filter_is_refused() -> None:
    with refused(r"bilinear.*bicubic"):
        Preprocessing(4, 4, "nearest")  # type: ignore[arg-type]


def test_settings_choose_the_preprocessing() -> None:
    assert choose_preprocessing(None, None, "bicubic") is None
    assert choose_preprocessing(8, None, "bilinear") == Preprocessing(8, 8, "bilinear")
    assert Data().preprocessing is None
    assert Data(image_size=8).preprocessing == Preprocessing(8, 8, "bicubic")
    weights = Data(image_size=224, resize_size=232, interpolation="bilinear")
    assert weights.preprocessing == Preprocessing(224, 232, "bilinear")
    for given in ({"resize_size": 8}, {"interpolation": "bilinear"}):
        with pytest.raises(ValueError, match="need an image size"):
            Data(**given)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 8"):
        Data(image_size=8, resize_size=7)


def test_settings_choose_the_normalisation() -> None:
    assert Data().normalisation is None
    assert Data(mean=(0.5,), std=(0.2,)).normalisation == Normalisation((0.5,), (0.2,))
    with pytest.raises(ValueError, match="give both or neither"):
        Data(mean=(0.5,))
    with pytest.raises(ValueError, match="must be positive"):
        Data(mean=(0.5,), std=(0.0,))
    with pytest.raises(ValueError, match="1 means but 3"):
        Data(mean=(0.5,), std=(0.1, 0.2, 0.3))
