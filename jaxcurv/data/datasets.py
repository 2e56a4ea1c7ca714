"""Data sets by name."""

import os
from dataclasses import replace
from pathlib import Path

from jaxcurv.data.cifar import ARCHIVES, prepare_cifar
from jaxcurv.data.digits import load_digits
from jaxcurv.data.folder import (
    ImageFolder,
    Split,
    hash_listing,
    is_image_tree,
    open_image_folder,
    open_image_tree,
)
from jaxcurv.data.imagenet import FOLDERS, find_published, open_published
from jaxcurv.data.prepared import PreparedSplit, find_prepared, open_prepared
from jaxcurv.data.preprocessing import Preprocessing
from jaxcurv.data.sources import ImageDataset


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
