"""Data sets in folders for networks that were trained elsewhere: which images serve for what."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxcurv.data import ImageDataset
from jaxcurv.data.datasets import listing_of, open_dataset


def write(folder: Path, count: int, shade: int = 0) -> None:
    for label, name in enumerate(("ant", "bee")):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = np.full((4, 4, 3), (shade, label, number), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")


def files(dataset: ImageDataset) -> dict[str, list[str]]:
    named = ("train", "validation", "calibration", "test")
    there = {name: getattr(dataset, name) for name in named}
    return {name: sorted(one.paths) for name, one in there.items() if one is not None}


def test_class_folders_are_divided_once(tmp_path: Path) -> None:
    write(tmp_path / "pets", 20)
    found = files(open_dataset(tmp_path / "pets", held_out=0.1))
    assert {name: len(paths) for name, paths in found.items()} == {
        "train": 0, "validation": 4, "calibration": 4, "test": 32,
    }  # fmt: skip
    assert len({path for paths in found.values() for path in paths}) == 40
    assert files(open_dataset(tmp_path / "pets", held_out=0.1)) == found
    assert files(open_dataset(tmp_path / "pets", held_out=0.1, seed=1)) != found
    with pytest.raises(ValueError, match=r"hold out must be in \(0, 0.5\)"):
        open_dataset(tmp_path / "pets", held_out=0.5)


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        ("train test", {"train": 4, "test": 4}),
        ("train val", {"train": 4, "test": 4}),
        ("train val test", {"train": 4, "validation": 4, "test": 4}),
    ],
)
def test_a_tree_keeps_its_folds(tmp_path: Path, splits: str, expected: dict[str, int]) -> None:
    for shade, split in enumerate(splits.split()):
        write(tmp_path / split, 2, shade)
    dataset = open_dataset(tmp_path, channels=1)
    assert {name: len(paths) for name, paths in files(dataset).items()} == expected
    assert dataset.test[0]["image"].shape == (4, 4, 1)
    assert listing_of(tmp_path).keys() == expected.keys()


def test_what_cannot_be_divided_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        open_dataset(tmp_path / "nowhere")
    write(tmp_path / "tests" / "test", 3)
    with pytest.raises(FileNotFoundError, match="without train"):
        open_dataset(tmp_path / "tests")
    write(tmp_path / "few", 1)
    with pytest.raises(ValueError, match="leaves a side empty"):
        open_dataset(tmp_path / "few")
    for split in ("train", "test", "val"):
        write(tmp_path / "tree" / split, 1)
    (tmp_path / "tree/val/cat").mkdir()
    with pytest.raises(ValueError, match=r"must have the same class folders.*cat"):
        open_dataset(tmp_path / "tree")


def test_the_listing_sees_another_image(tmp_path: Path) -> None:
    write(tmp_path / "pets", 2)
    before = listing_of(tmp_path / "pets")
    assert before.keys() == {"test"}
    (tmp_path / "pets/ant/0.png").unlink()
    assert listing_of(tmp_path / "pets") != before
    assert listing_of(tmp_path / "nowhere") == {}
