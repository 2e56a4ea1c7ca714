"""A user's own images: `NAME/{train,test}/<class>/*.png` and other formats, read where they lie.

`val` may stand for `test`. The classes are the sorted names of the folders, and an image's index
comes from its path within its split alone (`path_indices`). Nothing is written among the images.
"""

import hashlib
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int64

from jaxcurv.data.images import Doubt, decode_doubting, height_and_width
from jaxcurv.data.prepared import is_prepared
from jaxcurv.data.preprocessing import Preprocessing
from jaxcurv.data.sources import ImageDataset, Sample
from jaxcurv.extras import require

_BY_PRODUCTS = (
    *(".txt", ".md", ".json", ".yaml", ".yml", ".xml", ".csv", ".tsv", ".html", ".log", ".ini"),
    *(".db", ".pdf", ".sh", ".py"),
)
"""Suffixes of files that lie beside images and are none."""

_TOOLS_FOLDERS = ("@eaDir", "__MACOSX")
"""Folders of previews and the like, beside those whose names begin with a dot."""

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")

Split = Literal["train", "test"]


@dataclass(frozen=True, eq=False)
class ImageFolder:
    """Image files where they lie, decoded as they are asked for.

    Attributes:
        root: the folder of the files.
        paths: str objects `[N]`, the files relative to it, with forward slashes.
        labels: int64 `[N]`, the class of each.
        indices: int64 `[N]`, the stable index of each.
        class_names: `class_names[label]` is a label's name.
        channels: number of channels of the images: 1, 3 or 4.
        preprocessing: None leaves images as they are.
        size: height and width after preprocessing, which all images must have.

    Doubts of pixels, as `decode` has them, are told once a folder and kind: with the first file,
    and of how many of the images that were asked for together with it.

    Raises:
        ValueError: on access, for an unreadable image or one of another size.
    """

    root: Path
    paths: np.ndarray  # not of Paths, which take three times the memory: there may be millions
    labels: np.ndarray
    indices: np.ndarray
    class_names: tuple[str, ...]
    channels: int
    preprocessing: Preprocessing | None
    size: tuple[int, int]
    _told: set[str] = field(default_factory=set, repr=False)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, position: int, /) -> Sample:
        sample, doubts = self._sample(position)
        self._tell([self.paths[position]], [doubts])
        return sample

    def __getitems__(self, positions: Sequence[int]) -> list[Sample]:
        # Pillow decodes without holding Python's lock: one thread would not keep up with a GPU.
        with ThreadPoolExecutor() as pool:
            found = list(pool.map(self._sample, positions))
        self._tell([self.paths[one] for one in positions], [doubts for _, doubts in found])
        return [sample for sample, _ in found]

    def _sample(self, position: int) -> tuple[Sample, list[Doubt]]:
        file = self.root / self.paths[position]
        image, doubts = decode_doubting(file, self.channels, self.preprocessing)
        if image.shape[:2] != self.size:
            raise ValueError(_unequal(self.root / self.paths[0], self.size, file, image.shape[:2]))
        label, index = int(self.labels[position]), int(self.indices[position])
        return Sample(image=image, label=label, index=index), doubts

    def _tell(self, paths: Sequence[str], doubts: Sequence[Sequence[Doubt]]) -> None:
        first: dict[str, tuple[str, Doubt]] = {}
        count: Counter[str] = Counter()
        for path, ones in zip(paths, doubts, strict=True):
            for doubt in ones:
                first.setdefault(doubt.cure, (path, doubt))
                count[doubt.cure] += 1
        for cure, (path, doubt) in first.items():
            if cure in self._told:
                continue
            self._told.add(cure)
            many = f" (the first of {count[cure]:,} among the {len(paths):,} images read with it)"
            warnings.warn(
                f"{self.root / path}{many if count[cure] > 1 else ''}, {doubt}. This is said once "
                f"for {self.root}",
                stacklevel=3,
            )


def final_size(first: Path, preprocessing: Preprocessing | None) -> tuple[int, int]:
    """Height and width after preprocessing of the images of which `first` is one.

    Raises:
        ModuleNotFoundError: Pillow is not installed; nothing of them can be read.
        ValueError: they are left as they are, and `first` is not a readable image.
    """
    require(f"reading {first}", "data", ["PIL"])
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
    sorted folders; images are sorted by class and then by path, their indices are `path_indices`.

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
        root = splits[split or "test"]
    found = open_class_folders(root, channels, preprocessing)
    if len(splits) == 2:
        _require_same_classes(*splits.values())
    return found


def open_class_folders(
    root: Path, channels: int = 3, preprocessing: Preprocessing | None = None
) -> ImageFolder:
    """The images of the class folders in `root`; as `open_image_folder` for one split.

    Raises:
        FileNotFoundError: there is no class folder, or no image in one.
        ValueError: there is one class only.
    """
    classes = image_files(root)
    if len(classes) < 2:
        raise ValueError(
            f"{root} has the folder {next(iter(classes))} only: it needs one for each class, "
            "or train and test (or val) with those in them"
        )
    paths = np.array([path for found in classes.values() for path in found], object)
    return ImageFolder(
        root=root,
        paths=paths,
        labels=np.repeat(np.arange(len(classes)), [*map(len, classes.values())]),
        indices=path_indices(paths.tolist()),
        class_names=tuple(classes),
        channels=channels,
        preprocessing=preprocessing,
        size=final_size(root / paths[0], preprocessing),
    )


def is_image_tree(directory: Path) -> bool:
    """Whether `directory` has the folder `train` of an image tree."""
    return (directory / "train").is_dir()


def open_image_tree(
    name: str,
    directory: Path,
    preprocessing: Preprocessing | None = None,
    channels: int = 3,
) -> ImageDataset:
    """Both splits of the tree in `directory`; see `open_image_folder`.

    Raises:
        FileNotFoundError: a split, or all classes of one, or all images of a class, are missing.
        ValueError: there is one class only, or the splits differ in their classes or in the size of
            their first images.
    """
    if "test" not in _splits(directory):
        raise FileNotFoundError(f"{directory} has no folder test (or val) beside train")
    train = open_image_folder(directory, "train", channels, preprocessing)
    test = open_image_folder(directory, "test", channels, preprocessing)
    if train.size != test.size:
        firsts = (train.root / train.paths[0], train.size), (test.root / test.paths[0], test.size)
        raise ValueError(_unequal(*firsts[0], *firsts[1]))
    return ImageDataset(name, train.class_names, train, test)


def hash_listing(directory: Path) -> dict[str, str]:
    """SHA-256 of the names and sizes of each split's images, which tells a tree from a changed one.

    Not seen: an image that another of the same size in bytes has replaced.

    Raises:
        FileNotFoundError: a split has no class folders, or a class no image.
    """
    return {split: hash_class_folders(folder) for split, folder in _splits(directory).items()}


def hash_class_folders(root: Path) -> str:
    """SHA-256 of the names and sizes of the images in the class folders of `root`.

    Raises:
        FileNotFoundError: there are no class folders, or no image in one.
    """
    digest = hashlib.sha256()
    for file in (file for files in image_files(root).values() for file in files):
        size = (root / file).stat().st_size
        digest.update(repr((file, size)).encode(errors="surrogateescape"))
    return digest.hexdigest()


def path_indices(paths: Sequence[str]) -> Int64[np.ndarray, " n"]:
    """The stable indices of files, in `[0, 2**32)` and all different, whatever the files' order.

    An index is the first four bytes (big-endian) of the SHA-256 of the path's bytes. Where paths
    share one, as some of 65,000 do in two cases of five, the first in sorted order gets it. Once
    each path has asked for its number, the others ask for that of their bytes followed by a zero
    byte and `1`, then `2` and so on, until one is free. So an image that is added or removed
    changes no index but of images that ask for a number of its.

    Args:
        paths: different paths with forward slashes, relative to the split's folder.
    """
    ordered = sorted(range(len(paths)), key=paths.__getitem__)
    indices = np.empty(len(paths), np.int64)
    taken: set[int] = set()
    number = 0
    while ordered:
        left = []
        for position in ordered:
            index = _hashed(paths[position], number)
            if index in taken:
                left.append(position)
            else:
                taken.add(index)
                indices[position] = index
        ordered, number = left, number + 1
    return indices


def _hashed(path: str, number: int) -> int:
    """An index that a path asks for in a round."""
    suffix = b"\0%d" % number if number else b""  # no path holds a zero byte
    digest = hashlib.sha256(os.fsencode(path) + suffix).digest()
    return int.from_bytes(digest[:4], "big")


def _splits(directory: Path) -> dict[Split, Path]:
    """The folders of a tree's splits, those that are there."""
    found = [directory / name for name in ("test", "val") if (directory / name).is_dir()]
    splits: dict[Split, Path] = {}
    if (directory / "train").is_dir():
        splits["train"] = directory / "train"
    if found:
        splits["test"] = found[0]
    return splits


def validation_folder(directory: Path) -> Path | None:
    """The folder `val` of a tree in which it does not stand for `test`."""
    val = directory / "val"
    return val if val.is_dir() and (directory / "test").is_dir() else None


def open_validation(
    tree: ImageDataset, directory: Path, channels: int, preprocessing: Preprocessing | None
) -> ImageFolder | None:
    """The images of `validation_folder` in the tree that lies in `directory`; None without it.

    Raises:
        FileNotFoundError: it has no class folders, or no image in one.
        ValueError: its classes, or the size of its first image, are not the tree's.
    """
    root = validation_folder(directory)
    if root is None:
        return None
    _require_same_classes(directory / "train", root)
    found = open_class_folders(root, channels, preprocessing)
    test = tree.test
    if isinstance(test, ImageFolder) and found.size != test.size:
        firsts = (root / found.paths[0], found.size), (test.root / test.paths[0], test.size)
        raise ValueError(_unequal(*firsts[0], *firsts[1]))
    return found


def _require_same_classes(train: Path, test: Path) -> None:
    names = [{folder.name for folder in _class_folders(split)} for split in (train, test)]
    if differing := sorted(names[0] ^ names[1]):
        raise ValueError(
            f"train and {test.name} of {train.parent} must have the same class folders, "
            f"but only one has {', '.join(differing[:5])}"
        )


def _class_folders(split: Path) -> list[Path]:
    """The folders of the classes, sorted by name."""
    # Versions before this one left prepared copies beside a tree's train.
    folders = [
        path
        for path in split.iterdir()
        if path.is_dir() and path.name[0] != "." and not is_prepared(path)
    ]
    if not folders:
        raise FileNotFoundError(f"{split} has no class folders: it needs <class>/<image>.png")
    return sorted(folders, key=lambda path: path.name)


def image_files(split: Path) -> dict[str, list[str]]:
    """The image files of each class folder of `split`, as paths relative to it; both sorted.

    Raises:
        FileNotFoundError: there is no class folder, or no image in one.
    """
    classes = {}
    unread: list[str] = []
    for folder in _class_folders(split):
        names_by_place = [
            (place.relative_to(split).as_posix(), names) for place, names in _walk(folder)
        ]
        files = sorted(
            f"{at}/{name}" for at, names in names_by_place for name in images_among(names)
        )
        others = sorted(f"{at}/{name}" for at, names in names_by_place for name in _unread(names))
        unread += others
        if not files:
            cure = "add its images"
            if others:
                cure = f"the {len(others):,} files in it, such as {others[0]}, are not read: "
                cure += "convert them to PNG"
            raise FileNotFoundError(
                f"the class folder {folder} has no image ({', '.join(_SUFFIXES)}): {cure}, or "
                "remove it"
            )
        classes[folder.name] = files
    if unread:
        warnings.warn(
            f"{split}: {len(unread):,} files or links to folders are not read, the first is "
            f"{unread[0]}: convert images to PNG, move in what is linked, remove the rest",
            stacklevel=2,
        )
    return classes


def images_among(names: Sequence[str]) -> list[str]:
    """The file names that are an image's."""
    return [name for name in names if name.lower().endswith(_SUFFIXES) and name[0] != "."]


def _walk(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """The folders within one, with the names of their files, and of links to folders among them.

    Links are not followed: one may lead to a folder of other classes.
    """
    for parent, folders, names in os.walk(folder):
        links = [name for name in folders if Path(parent, name).is_symlink()]
        yield Path(parent), [*names, *links]
        folders[:] = [one for one in folders if one[0] != "." and one not in _TOOLS_FOLDERS]


def _unread(names: Sequence[str]) -> list[str]:
    """The file names that are neither an image's nor a known by-product's."""
    known = (*_SUFFIXES, *_BY_PRODUCTS)
    return [name for name in names if not name.lower().endswith(known) and name[0] != "."]


def _unequal(one: Path, its: Sequence[int], other: Path, size: Sequence[int]) -> str:
    """The complaint about images of two sizes, each height and width."""
    return (
        f"images differ in size ({one} is {tuple(its)}, {other} is {tuple(size)}): choose one with "
        "--image-size, or --data.image-size of an experiment, or with image_size= in Python"
    )
