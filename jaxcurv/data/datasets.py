"""Data sets by name."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from jaxcurv.data.cifar import ARCHIVES, prepare_cifar
from jaxcurv.data.digits import load_digits
from jaxcurv.data.folder import (
    ImageFolder,
    Split,
    hash_class_folders,
    hash_listing,
    is_image_tree,
    open_class_folders,
    open_image_folder,
    open_image_tree,
    open_validation,
    validation_folder,
)
from jaxcurv.data.imagenet import FOLDERS, find_published, open_published
from jaxcurv.data.prepared import PreparedSplit, find_prepared, open_prepared
from jaxcurv.data.preprocessing import Preprocessing
from jaxcurv.data.sources import ImageDataset, IndexedSource
from jaxcurv.data.splits import split_validation
from jaxcurv.data.views import Chosen


def load(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    preprocessing: Preprocessing | None = None,
) -> ImageDataset:
    """The data set `name`; CIFAR is prepared first if need be.

    Args:
        name: "digits" (in memory, no file); "cifar10" or "cifar100" (prepared from the official
            archive in `data_dir`, or downloaded); "tiny_imagenet" or "imagenet" (read where they
            lie in `data_dir`, see `jaxcurv.data.imagenet`); the folder of an image tree in
            `data_dir` (`NAME/{train,test}/<class>/*.png`, read where it lies); or any image
            classification data set which TFDS has prepared in `data_dir` as array_record (`name`,
            `name/config`, `name/version`).
        data_dir: the folder of the data sets; by default TFDS's, `$TFDS_DATA_DIR` or else
            `~/tensorflow_datasets`.
        preprocessing: how images become squares of one size. None leaves them as they are.

    Raises:
        FileNotFoundError: there is no such data set, or its files are missing.
        ModuleNotFoundError: a package that reads it is not installed; names the extra.
        ValueError: its files are not as they should be, or `name` leads out of `data_dir`.
    """
    if not name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(
            f"the name of a data set must lie within the folder of the data sets; got {name!r}: "
            "give its folder with --data-dir"
        )
    if name == "digits":
        if preprocessing not in (None, Preprocessing(8, 8)):
            raise ValueError("digits has images of 8x8 only: leave the image size out")
        return load_digits()
    root = _root(data_dir)
    directory = root / name
    if published := find_published(name, root):
        return open_published(name, published, preprocessing)
    if is_image_tree(directory):
        return open_image_tree(name, directory, preprocessing)
    if found := find_prepared(directory):
        prepared = found
    elif name in ARCHIVES:
        prepared = prepare_cifar(name, root)
    elif name in FOLDERS:
        raise FileNotFoundError(
            f"there is no data set {name!r} in {root}: put the folders train and val of its "
            f"archive in {' or '.join(str(root / folder) for folder in FOLDERS[name])}"
        )
    else:
        raise FileNotFoundError(
            f"there is no data set {name!r} in {root}; found there: "
            f"{', '.join(_names(root)) or 'nothing'}; anywhere: digits, {', '.join(ARCHIVES)}"
        )
    return open_prepared(name, prepared, preprocessing)


def listing(name: str, data_dir: str | os.PathLike[str] | None = None) -> dict[str, str]:
    """`hash_listing` of a data set that may change under its name: a tree of images.

    Empty for the others, and where there is no data set of this name.

    Args:
        name: as for `load`.
        data_dir: as for `load`.
    """
    root = _root(data_dir)
    if find_published(name, root) or not is_image_tree(root / name):
        return {}
    return hash_listing(root / name)


def open_dataset(
    directory: str | os.PathLike[str],
    preprocessing: Preprocessing | None = None,
    *,
    channels: int | None = None,
    held_out: float = 0.1,
    seed: int = 0,
) -> ImageDataset:
    """The data set in a folder, wherever that lies, for a network that was trained elsewhere.

    - A tree of class folders, `{train,val,test}/<class>/*.png`; where `test` or `val` is missing,
      the other is the one to test on.
    - A data set which TFDS has prepared as array_record.
    - Class folders alone, `<class>/*.png`. Of these images the share `held_out` is `validation`, as
      many are for `calibration`, `train` is empty, and the others are `test`; the stable indices
      and the seed choose which.

    Args:
        directory: the folder; nothing is written into it.
        preprocessing: as for `load`.
        channels: 1 (gray), 3 or 4; None for 3, or what the data set has.
        held_out: share of the images of class folders, between 0 and 0.5.
        seed: seed of the choice among them.

    Raises:
        FileNotFoundError: the folder, a split or images in it are missing.
        ModuleNotFoundError: a package that reads it is not installed; names the extra.
        ValueError: its files are not as they should be, or are too few to be divided.
    """
    directory = Path(directory).expanduser()
    if not directory.is_dir():
        raise FileNotFoundError(f"there is no folder {directory}")
    name = directory.name
    if is_image_tree(directory):
        tree = open_image_tree(name, directory, preprocessing, channels or 3)
        validation = open_validation(tree, directory, channels or 3, preprocessing)
        return replace(tree, validation=validation)
    if prepared := find_prepared(directory):
        return _with_channels(open_prepared(name, prepared, preprocessing), channels)
    for split in ("test", "val"):
        if (directory / split).is_dir():
            raise FileNotFoundError(
                f"{directory} has the folder {split} without train, on whose images converters "
                f"are calibrated: add it, or give {directory / split}, which is then divided"
            )
    images = open_class_folders(directory, channels or 3, preprocessing)
    if not 0 < held_out < 0.5:
        raise ValueError(f"the share of images to hold out must be in (0, 0.5), not {held_out!r}")
    rest, validation_at = split_validation(images.indices, held_out, seed)
    left = Chosen(images, rest)
    # As many again: the share of those that are left.
    test_at, calibration_at = split_validation(left.indices, len(validation_at) / len(rest), seed)
    return ImageDataset(
        name,
        images.class_names,
        train=Chosen(images, np.zeros(0, np.int64)),
        test=left.take(test_at),
        validation=Chosen(images, validation_at),
        calibration=left.take(calibration_at),
    )


def listing_of(directory: str | os.PathLike[str]) -> dict[str, str]:
    """What tells the images that `open_dataset` finds in a folder from changed ones, by split.

    Class folders alone are one split, "test"; empty for a data set of TFDS, and without a folder.
    """
    directory = Path(directory).expanduser()
    if is_image_tree(directory):
        val = validation_folder(directory)
        more = {} if val is None else {"validation": hash_class_folders(val)}
        return hash_listing(directory) | more
    if not directory.is_dir() or find_prepared(directory):
        return {}
    return {"test": hash_class_folders(directory)}


def _with_channels(dataset: ImageDataset, channels: int | None) -> ImageDataset:
    """A prepared data set whose images are converted to so many channels."""
    if channels is None:
        return dataset

    def converted(split: IndexedSource) -> IndexedSource:
        assert isinstance(split, PreparedSplit)
        return replace(split, channels=channels)

    validation = dataset.validation and converted(dataset.validation)
    train, test = converted(dataset.train), converted(dataset.test)
    return replace(dataset, train=train, test=test, validation=validation)


def open_folder(
    directory: str | os.PathLike[str],
    split: Split | None = None,
    *,
    channels: int | None = None,
    preprocessing: Preprocessing | None = None,
) -> ImageFolder | PreparedSplit:
    """The images of a folder, wherever it lies, decoded as they are asked for; writes nothing.

    Args:
        directory: class folders of images (`<class>/*.png`), a tree of them
            (`{train,test}/<class>/*.png`; `val` may stand for `test`), or a data set which TFDS has
            prepared as array_record.
        split: which split of a tree or a data set; None for test.
        channels: 1 (gray), 3 or 4; None for 3, or what the data set has.
        preprocessing: as for `load`.

    Raises:
        FileNotFoundError: the folder, or images in it, are missing.
        ModuleNotFoundError: a package that reads it is not installed; names the extra.
        ValueError: its files are not as they should be, or there is no such split.
    """
    directory = Path(directory).expanduser()
    prepared = find_prepared(directory)
    if prepared is None or is_image_tree(directory):
        return open_image_folder(directory, split, channels or 3, preprocessing)
    dataset = open_prepared(directory.name, prepared, preprocessing)
    source = dataset.train if split == "train" else dataset.test
    assert isinstance(source, PreparedSplit)
    return source if channels is None else replace(source, channels=channels)


def _root(data_dir: str | os.PathLike[str] | None) -> Path:
    """The folder of the data sets."""
    default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return Path(default if data_dir is None else data_dir).expanduser()


def _names(root: Path) -> list[str]:
    """The data sets which lie in `root`."""
    found = {path.parent.name for path in root.glob("*/train") if path.is_dir()}
    for info in [*root.glob("*/*/dataset_info.json"), *root.glob("*/*/*/dataset_info.json")]:
        found.add(info.parent.parent.relative_to(root).as_posix())
    return sorted(found)
