"""`jaxcurv.image_folder`: a folder of images as a model takes it."""

from pathlib import Path

import numpy as np
import pytest

from jaxcurv import image_folder
from jaxcurv.data import Normalisation, read
from jaxcurv.data.datasets import open_folder
from tests.jaxcurv.data.test_folder import save_image


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    for label, name in enumerate(("ant", "bee", "cat")):
        for number in range(4):
            save_image(tmp_path / f"pets/{name}/{number}.png", 6, 6, 60 * label + number)
    return tmp_path / "pets"


def test_it_is_the_folder_normalised(pets: Path) -> None:
    mean, std = (0.4, 0.5, 0.6), (0.25, 0.2, 0.3)
    images = image_folder(pets, mean=mean, std=np.array(std))
    files = open_folder(pets)
    assert images.paths is not None
    assert images.paths.tolist() == files.paths.tolist()  # type: ignore[union-attr]
    assert images.labels.tolist() == files.labels.tolist()
    assert images.indices.tolist() == files.indices.tolist()
    expected = Normalisation(mean, std).apply(read(files).images)
    found = np.stack([images[position]["image"] for position in range(len(images))])
    assert found.dtype == np.float32
    assert np.array_equal(found, expected)


def test_one_number_is_for_every_channel_and_none_leaves_0_to_1(pets: Path) -> None:
    plain, shifted = image_folder(pets), image_folder(pets, mean=0.5, std=0.25)
    assert 0 <= plain[0]["image"].min() < plain[0]["image"].max() <= 1
    np.testing.assert_allclose(shifted[3]["image"], (plain[3]["image"] - 0.5) / 0.25, atol=1e-6)


def test_a_limit_chooses_by_index_and_keeps_the_order(pets: Path) -> None:
    every, few, fewer = (image_folder(pets, limit=limit) for limit in (None, 6, 3))
    assert (len(every), len(few), len(fewer)) == (12, 6, 3)
    assert every.paths is not None
    places = [every.indices.tolist().index(index) for index in few.indices]
    assert places == sorted(places)
    assert set(fewer.indices) < set(few.indices)
    assert len(set(few.labels)) > 1
    assert np.array_equal(few[2]["image"], every[places[2]]["image"])


def test_other_channels_and_sizes(pets: Path) -> None:
    assert image_folder(pets, channels=1, mean=[0.5])[0]["image"].shape == (6, 6, 1)
    assert image_folder(pets, image_size=4)[0]["image"].shape == (4, 4, 3)


def test_images_of_two_sizes_need_one(pets: Path) -> None:
    save_image(pets / "bee/9.png", 9, 6, 0)
    images = image_folder(pets)
    with pytest.raises(ValueError, match=r"images differ in size.*or with image_size="):
        [images[position] for position in range(len(images))]


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"mean": (0.5,)}, "mean has 1 value, and the images have 3 channels"),
        ({"std": (0.5, 0.5)}, "std has 2 values"),
        ({"std": 0.0}, "must be positive"),
        ({"mean": float("nan")}, "mean must be finite numbers"),
        ({"split": "train"}, "no folders train and test"),
        ({"limit": 0}, "limit must be at least 1"),
        ({"resize_size": 9}, "need an image size"),
    ],
)
def test_refusals(pets: Path, given: dict[str, object], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        image_folder(pets, **given)  # type: ignore[arg-type]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere"):
        image_folder(tmp_path / "nowhere")
