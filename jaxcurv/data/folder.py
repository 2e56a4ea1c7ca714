"""A user's own images: `NAME/{train,test}/<class>/*.png` and other formats.

`val` may stand for `test`. The classes are the sorted names of the folders, and an image's index
is its position in its split's list of paths, sorted by class and then by path. An `ImageFolder` is
read where it lies; `prepare_image_tree` copies a tree into files that are faster to read.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxcurv.data.images import decode, height_and_width
from jaxcurv.data.prepared import Examples, find_prepared, prepare
from jaxcurv.data.sources import Sample

_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}

Split = Literal["train", "test"]


@dataclass(frozen=True)
class ImageFolder:
    """A folder of class folders, decoded sample by sample.

    Attributes:
        files: the images, sorted by class and then by path; a sample's index is its position.
        labels: the class of each.
        class_names: the sorted names of the class folders.
        channels: of the images, 1, 3 or 4.
        image_size: resize and crop to this square, or None to leave images as they are.
        size: height and width of the first image, which all must have.

    Raises:
        ValueError: on access, for an unreadable image or one of another size.
    """

    files: tuple[Path, ...]
    labels: tuple[int, ...]
    class_names: tuple[str, ...]
    channels: int
    image_size: int | None
    size: tuple[int, int]

    @property
    def indices(self) -> np.ndarray:
        """Of all samples."""
        return np.arange(len(self.files))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, position: int, /) -> Sample:
        file = self.files[position]
        image = decode(file, self.channels, self.image_size)
        if image.shape[:2] != self.size:
            raise ValueError(
                f"images differ in size ({self.files[0]} is {self.size}, {file} is "
                f"{image.shape[:2]}): choose one with --image-size"
            )
        return Sample(image=image, label=self.labels[position], index=position)

    def __getitems__(self, positions: Sequence[int]) -> list[Sample]:
        # Pillow decodes without holding Python's lock: one thread would not keep up with a GPU.
        with ThreadPoolExecutor() as pool:
            return list(pool.map(self.__getitem__, positions))


def open_image_folder(
    directory: Path, split: Split | None = None, channels: int = 3, image_size: int | None = None
) -> ImageFolder:
    """The images of a folder of class folders, or of one split (default: test) of a tree of them.

    Writes nothing, and reads only the names and the first image's header.

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
        classes = _classes(directory)
    else:
        _require_same_classes(*splits.values())
        classes = _classes(splits[split or "test"])
    if len(classes) < 2:
        raise ValueError(
            f"{directory} has the folder {next(iter(classes))} only: it needs one for each class, "
            "or train and test (or val) with those in them"
        )
    files = tuple(file for paths in classes.values() for file in paths)
    size = (image_size, image_size) if image_size else height_and_width(files[0])
    labels = tuple(label for label, paths in enumerate(classes.values()) for _ in paths)
    return ImageFolder(files, labels, tuple(classes), channels, image_size, size)


def is_image_tree(directory: Path) -> bool:
    """Whether `directory` has the folder `train` of an image tree."""
    return (directory / "train").is_dir()


def prepare_image_tree(directory: Path, image_size: int | None) -> Path:
    """Prepare the tree in `directory` unless this was done, and return the version's folder.

    Images become RGB. With `image_size`, each one's short side is resized to it (bicubic) and the
    central square cut out; this is version `1.<image_size>.0`. Without it, images must all have
    one size; this is version `1.0.0`. Remove that folder after a change to the images.

    Raises:
        FileNotFoundError: a split, or all classes of one, or all images of a class, are missing.
        ValueError: the splits' classes differ, an image is unreadable, or the sizes differ.
    """
    prepared = directory / f"1.{image_size or 0}.0"
    if find_prepared(prepared):
        return prepared
    splits = _splits(directory)
    if "test" not in splits:
        raise FileNotFoundError(f"{directory} has no folder test (or val) beside train")
    trees = {split: _classes(path) for split, path in splits.items()}
    _require_same_classes(*splits.values())
    files = [file for classes in trees.values() for paths in classes.values() for file in paths]
    height, width = (image_size, image_size) if image_size else _common_size(files)
    prepare(
        prepared,
        {split: _examples(classes, image_size) for split, classes in trees.items()},
        label_names={"label": list(trees["train"])},
        image_shape=(height, width, 3),
        description=f"The images of {directory.name}, prepared from a folder of classes.",
    )
    return prepared


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


def _classes(split: Path) -> dict[str, list[Path]]:
    """The image files of each class, both sorted by name."""
    classes = {}
    for folder in _class_folders(split):
        files = [
            path
            for path in sorted(folder.rglob("*"), key=Path.as_posix)
            if path.suffix.lower() in _SUFFIXES and not path.name.startswith(".")
        ]
        if not files:
            raise FileNotFoundError(
                f"the class folder {folder} has no image ({', '.join(sorted(_SUFFIXES))})"
            )
        classes[folder.name] = files
    return classes


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


def _examples(classes: dict[str, list[Path]], image_size: int | None) -> Examples:
    def generate() -> Iterator[dict[str, Any]]:
        for label, files in enumerate(classes.values()):
            for path in files:
                yield {"image": decode(path, size=image_size), "label": label}

    return Examples(sum(map(len, classes.values())), generate())
