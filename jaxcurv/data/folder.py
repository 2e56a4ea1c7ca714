"""A user's own images: `NAME/{train,test}/<class>/*.png` and other formats.

`val` may stand for `test`. The classes are the sorted names of the folders, and an image's index
is its position in its split's list of paths, sorted by class and then by path. An `ImageFolder` is
read where it lies; `prepare_image_tree` copies a tree into files that are faster to read.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxcurv.data.images import decode, height_and_width
from jaxcurv.data.prepared import Examples, find_prepared, prepare
from jaxcurv.data.preprocessing import Interpolation, Preprocessing
from jaxcurv.data.sources import Sample

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_MAJOR: dict[Interpolation, int] = {"bicubic": 2, "bilinear": 3}  # of a prepared tree's version

Split = Literal["train", "test"]


@dataclass(frozen=True, eq=False)
class ImageFolder:
    """Image files where they lie, decoded as they are asked for.

    Attributes:
        root: the folder of the files.
        files: their paths relative to it.
        labels: int64 `[N]`, the class of each.
        indices: int64 `[N]`, the stable index of each.
        class_names: `class_names[label]` is a label's name.
        channels: number of channels of the images: 1, 3 or 4.
        preprocessing: None leaves images as they are.
        size: height and width after preprocessing, which all images must have.

    Raises:
        ValueError: on access, for an unreadable image or one of another size.
    """

    root: Path
    files: tuple[str, ...]  # not Paths, which take three times the memory: there may be millions
    labels: np.ndarray
    indices: np.ndarray
    class_names: tuple[str, ...]
    channels: int
    preprocessing: Preprocessing | None
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, position: int, /) -> Sample:
        file = self.root / self.files[position]
        image = decode(file, self.channels, self.preprocessing)
        if image.shape[:2] != self.size:
            raise ValueError(
                f"images differ in size ({self.root / self.files[0]} is {self.size}, {file} is "
                f"{image.shape[:2]}): choose one with --image-size, or --data.image-size of an "
                "experiment"
            )
        return Sample(
            image=image, label=int(self.labels[position]), index=int(self.indices[position])
        )

    def __getitems__(self, positions: Sequence[int]) -> list[Sample]:
        # Pillow decodes without holding Python's lock: one thread would not keep up with a GPU.
        with ThreadPoolExecutor() as pool:
            return list(pool.map(self.__getitem__, positions))


def final_size(first: Path, preprocessing: Preprocessing | None) -> tuple[int, int]:
    """Height and width after preprocessing of the images of which `first` is one.

    Raises:
        ValueError: they are left as they are, and `first` is not a readable image.
    """
    if preprocessing is None:
        return height_and_width(first)
    return preprocessing.crop_size, preprocessing.crop_size


def open_image_folder(
    directory: Path,
    split: Split | None = None,
    channels: int = 3,
    preprocessing: Preprocessing | None = None,
) -> ImageFolder:
    """The images of a folder of class folders, or of one split (default: test) of a tree of them.

    Writes nothing, and reads only the names and the first image's header. The classes are the
    sorted folders, and an image's index is its position, sorted by class and then by path.

    Raises:
        FileNotFoundError: the folder, or all of its classes, or all images of one, are missing.
        ValueError: there is one class only, the splits' classes differ, or a split is asked for
            where there is none.
    """
    if not directory.is_dir():
        raise FileNotFoundError(f"there is no folder {directory}")
    splits = _splits(directory)
    if len(splits) < 2:
        if split is not None:
            raise ValueError(f"{directory} has no folders train and test (or val) to split it by")
        root = directory
    else:
        _require_same_classes(*splits.values())
        root = splits[split or "test"]
    classes = image_files(root)
    if len(classes) < 2:
        raise ValueError(
            f"{directory} has the folder {next(iter(classes))} only: it needs one for each class, "
            "or train and test (or val) with those in them"
        )
    files = tuple(file for found in classes.values() for file in found)
    return ImageFolder(
        root=root,
        files=files,
        labels=np.repeat(np.arange(len(classes)), [*map(len, classes.values())]),
        indices=np.arange(len(files)),
        class_names=tuple(classes),
        channels=channels,
        preprocessing=preprocessing,
        size=final_size(root / files[0], preprocessing),
    )


def is_image_tree(directory: Path) -> bool:
    """Whether `directory` has the folder `train` of an image tree."""
    return (directory / "train").is_dir()


def prepare_image_tree(directory: Path, preprocessing: Preprocessing | None) -> Path:
    """Prepare the tree in `directory` unless this was done, and return the version's folder.

    Images become RGB. Preprocessed ones are version `2.<crop_size>.<resize_size>`, or `3.` for
    bilinear. Those left as they are must all have one size, and are version `1.0.0`. Remove that
    folder after a change to the images.

    Raises:
        FileNotFoundError: a split, or all classes of one, or all images of a class, are missing.
        ValueError: the splits' classes differ, an image is unreadable, or the sizes differ.
    """
    prepared = directory / _version(preprocessing)
    if find_prepared(prepared):
        return prepared
    splits = _splits(directory)
    if "test" not in splits:
        raise FileNotFoundError(f"{directory} has no folder test (or val) beside train")
    trees = {split: _class_paths(path) for split, path in splits.items()}
    _require_same_classes(*splits.values())
    files = [file for classes in trees.values() for paths in classes.values() for file in paths]
    size = _common_size(files) if preprocessing is None else final_size(files[0], preprocessing)
    prepare(
        prepared,
        {split: _examples(classes, preprocessing) for split, classes in trees.items()},
        label_names={"label": list(trees["train"])},
        image_shape=(*size, 3),
        description=f"The images of {directory.name}, prepared from a folder of classes.",
    )
    return prepared


def _version(preprocessing: Preprocessing | None) -> str:
    """Version of the prepared tree: no two preprocessings have the same."""
    if preprocessing is None:
        return "1.0.0"
    major = _MAJOR[preprocessing.interpolation]
    return f"{major}.{preprocessing.crop_size}.{preprocessing.resize_size}"


def _splits(directory: Path) -> dict[Split, Path]:
    """The folders of a tree's splits, those that are there."""
    found = [directory / name for name in ("test", "val") if (directory / name).is_dir()]
    splits: dict[Split, Path] = {}
    if (directory / "train").is_dir():
        splits["train"] = directory / "train"
    if found:
        splits["test"] = found[0]
    return splits


def _require_same_classes(train: Path, test: Path) -> None:
    names = [{folder.name for folder in _class_folders(split)} for split in (train, test)]
    if differing := sorted(names[0] ^ names[1]):
        raise ValueError(
            f"train and {test.name} of {train.parent} must have the same class folders, "
            f"but only one has {', '.join(differing[:5])}"
        )


def _class_folders(split: Path) -> list[Path]:
    """The folders of the classes, sorted by name."""
    folders = [path for path in split.iterdir() if path.is_dir() and path.name[0] != "."]
    if not folders:
        raise FileNotFoundError(f"{split} has no class folders: it needs <class>/<image>.png")
    return sorted(folders, key=lambda path: path.name)


def image_files(split: Path) -> dict[str, list[str]]:
    """The image files of each class folder of `split`, as paths relative to it; both sorted.

    Raises:
        FileNotFoundError: there is no class folder, or no image in one.
    """
    classes = {}
    for folder in _class_folders(split):
        files = sorted(
            f"{Path(parent).relative_to(split).as_posix()}/{name}"
            for parent, _, names in os.walk(folder)
            for name in images_among(names)
        )
        if not files:
            raise FileNotFoundError(
                f"the class folder {folder} has no image ({', '.join(_SUFFIXES)}): add its images, "
                "or remove it"
            )
        classes[folder.name] = files
    return classes


def images_among(names: Sequence[str]) -> list[str]:
    """The file names that are an image's."""
    return [name for name in names if name.lower().endswith(_SUFFIXES) and name[0] != "."]


def _class_paths(split: Path) -> dict[str, list[Path]]:
    return {name: [split / file for file in files] for name, files in image_files(split).items()}


def _common_size(files: list[Path]) -> tuple[int, int]:
    """Height and width of every image, from the files' headers."""
    size = height_and_width(files[0])
    for file in files[1:]:
        if (other := height_and_width(file)) != size:
            raise ValueError(
                f"images differ in size ({files[0]} is {size}, {file} is {other}): "
                "choose one with --data.image-size"
            )
    return size


def _examples(classes: dict[str, list[Path]], preprocessing: Preprocessing | None) -> Examples:
    def generate() -> Iterator[dict[str, Any]]:
        for label, files in enumerate(classes.values()):
            for path in files:
                yield {"image": decode(path, preprocessing=preprocessing), "label": label}

    return Examples(sum(map(len, classes.values())), generate())
