"""Tiny-ImageNet and ImageNet-1K in the layouts of their archives, read where they lie.

Tiny-ImageNet (Stanford CS231N), in `tiny-imagenet-200` or `tiny_imagenet`:
`train/<wnid>/images/*.JPEG`, `val/images/*.JPEG` with `val/val_annotations.txt`. The archive's
unlabelled `test` is not used.

ImageNet-1K (O. Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", IJCV 2015),
in `imagenet`, `ILSVRC2012` or `imagenet-1k`: `{train,val}/<wnid>/*.JPEG`.

The fold to test on is `val` in both. A label is the rank of the sample's wnid among all sorted
wnids of the data set: those of `wnids.txt` (one a line), else of `classes.tsv` (with the columns
class_index, wnid, name), else the folders of `train`. So a split may have a part of the classes.
Names come from `words.txt` (wnid, tab, name) or `classes.tsv`, else the wnids are the names.
"""

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxcurv.data.folder import ImageFolder, final_size, image_files, images_among
from jaxcurv.data.preprocessing import Preprocessing
from jaxcurv.data.sources import ImageDataset

FOLDERS: dict[str, tuple[str, ...]] = {
    "tiny_imagenet": ("tiny-imagenet-200", "tiny_imagenet"),
    "imagenet": ("imagenet", "ILSVRC2012", "imagenet-1k"),
}
_NUMBERS = {
    "tiny_imagenet": re.compile(r"val_(\d+)\.\w+"),
    "imagenet": re.compile(r"ILSVRC2012_val_(\d+)\.\w+"),
}
_IMAGENET_CLASSES = 1000
_ANNOTATIONS = "val_annotations.txt"


def find_published(name: str, data_dir: Path) -> Path | None:
    """The first folder in `data_dir` which has a split of the data set `name`, if there is one."""
    for folder in FOLDERS.get(name, ()):
        directory = data_dir / folder
        if any((directory / split).is_dir() for split in ("train", "val")):
            return directory
    return None


def open_published(
    name: str, directory: Path, preprocessing: Preprocessing | None = None
) -> ImageDataset:
    """The data set `name` in `directory`, its images RGB; reads names and lists alone.

    A validation image's index is the number in its name (`val_123.JPEG`,
    `ILSVRC2012_val_00000001.JPEG`) where all have one. Else, and in train, it is the place in the
    order of wnids and paths, which in a part of a split is another than in the whole.

    Raises:
        FileNotFoundError: a split, a class's images, the list of labels or a listed image is
            missing.
        ValueError: a list is malformed, knows a wnid or an image not, or an index occurs twice.
    """
    for split in ("train", "val"):
        if not (directory / split).is_dir():
            raise FileNotFoundError(
                f"{directory} has no folder {split}: put {split} of the {name} archive there; a "
                "part of it will do"
            )
    train = image_files(directory / "train")
    classes = _read_classes(directory, sorted(train))
    if name == "tiny_imagenet":
        val = _annotated(directory / "val")
    else:
        files = image_files(directory / "val")
        val = [(file, wnid) for wnid, found in files.items() for file in found]
    train_pairs = [(file, wnid) for wnid, found in train.items() for file in found]

    def source(split: str, pairs: list[tuple[str, str]], indices: np.ndarray) -> ImageFolder:
        root = directory / split
        return ImageFolder(
            root=root,
            paths=np.array([file for file, _ in pairs], object),
            labels=_labels(pairs, classes, root),
            indices=indices,
            class_names=classes.names,
            channels=3,
            preprocessing=preprocessing,
            size=final_size(root / pairs[0][0], preprocessing),
        )

    return ImageDataset(
        name,
        classes.names,
        source("train", train_pairs, np.arange(len(train_pairs))),
        source("val", val, _numbers(val, _NUMBERS[name], directory / "val")),
    )


@dataclass(frozen=True)
class _Classes:
    """The classes of a data set: labels by wnid, names by label, and where they were found."""

    labels: dict[str, int]
    names: tuple[str, ...]
    origin: Path


def _read_classes(directory: Path, folders: Sequence[str]) -> _Classes:
    """From a list in `directory`, else from `folders`, the sorted class folders of train."""
    list_file, table = directory / "wnids.txt", directory / "classes.tsv"
    names = _words(directory / "words.txt")
    rows: dict[str, tuple[int | None, str]] = {}
    if table.exists():
        rows = _table(table)
        names |= {wnid: name for wnid, (_, name) in rows.items()}
    if list_file.exists():
        wnids = list_file.read_text("utf-8").split()
        if not wnids or len(set(wnids)) < len(wnids):
            raise ValueError(
                f"{list_file} must have every wnid of the data set once, one a line: replace it by "
                "the archive's"
            )
        return _ranked(sorted(wnids), names, list_file)
    if not rows:
        return _ranked(folders, names, directory / "train")
    if any(number is None for number, _ in rows.values()):
        return _ranked(sorted(rows), names, table)
    labels = {wnid: number for wnid, (number, _) in rows.items() if number is not None}
    ordered = sorted(labels)
    if (numbers := [labels[wnid] for wnid in ordered]) != sorted(set(numbers)):
        raise ValueError(
            f"the class_index of {table} must rise with the wnid, for it is the place among the "
            "sorted wnids: correct it"
        )
    count = numbers[-1] + 1
    if count > len(numbers):  # a table of a part of the classes
        count = max(count, _IMAGENET_CLASSES)
    named = [f"class {label}" for label in range(count)]
    for wnid, label in labels.items():
        named[label] = names[wnid]
    return _Classes(labels, tuple(named), table)


def _ranked(wnids: Sequence[str], names: dict[str, str], origin: Path) -> _Classes:
    return _Classes(
        {wnid: label for label, wnid in enumerate(wnids)},
        tuple(names.get(wnid, wnid) for wnid in wnids),
        origin,
    )


def _words(path: Path) -> dict[str, str]:
    """Names by wnid; none where there is no such file."""
    if not path.exists():
        return {}
    lines = path.read_text("utf-8").splitlines()
    return {wnid: name for wnid, tab, name in (line.partition("\t") for line in lines) if tab}


def _table(path: Path) -> dict[str, tuple[int | None, str]]:
    """The class index (None where the table has no such column) and the name of each wnid."""
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        if "wnid" not in (reader.fieldnames or ()):
            raise ValueError(
                f"{path} must begin with the line class_index, wnid, name (tab separated), but "
                f"has {reader.fieldnames}"
            )
        rows: dict[str, tuple[int | None, str]] = {}
        for row in reader:
            wnid, number = row["wnid"], row.get("class_index")
            if not wnid or wnid in rows or not (number is None or number.isdecimal()):
                raise ValueError(
                    f"line {reader.line_num} of {path} must have another wnid than those before "
                    "and a class_index from 0: correct it"
                )
            rows[wnid] = None if number is None else int(number), row.get("name") or wnid
    if not rows:
        raise ValueError(f"{path} lists no class: complete or remove it")
    return rows


def _annotated(val: Path) -> list[tuple[str, str]]:
    """The files of Tiny-ImageNet's val, relative to it, with their wnids; sorted by name."""
    path = val / _ANNOTATIONS
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing, which has the labels of val/images: take it from the archive "
            "tiny-imagenet-200.zip. (A copy that was sorted into val/<wnid>/ is an image tree: "
            "move its unlabelled folder test away, and load it by the name tiny-imagenet-200.)"
        )
    wnids: dict[str, str] = {}
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        name, *rest = line.split("\t")
        if not rest or name in wnids:
            raise ValueError(
                f"line {number} of {path} must have the name of an image, not listed before, and "
                f"its wnid, tab separated, but is {line!r}: take the file from the archive again"
            )
        wnids[name] = rest[0].strip()
    folder = val / "images"
    there = set(images_among([file.name for file in folder.iterdir()] if folder.is_dir() else []))
    if missing := sorted(wnids.keys() - there):
        raise FileNotFoundError(
            f"{folder} lacks {_some(missing)}, listed in {path}: add them from the archive, or "
            "remove their lines"
        )
    if unlisted := sorted(there - wnids.keys()):
        raise ValueError(
            f"{path} does not list {_some(unlisted)} of {folder}: add lines with their wnids, or "
            "remove them"
        )
    if not wnids:
        raise FileNotFoundError(f"{path} lists no image: take it from the archive again")
    return [(f"images/{name}", wnids[name]) for name in sorted(wnids)]


def _labels(pairs: list[tuple[str, str]], classes: _Classes, split: Path) -> np.ndarray:
    if unknown := sorted({wnid for _, wnid in pairs} - classes.labels.keys()):
        raise ValueError(
            f"{split} has images of {_some(unknown)}, not among the {len(classes.labels)} classes "
            f"of {classes.origin}: complete that, or remove the images"
        )
    return np.array([classes.labels[wnid] for _, wnid in pairs], np.int64)


def _numbers(pairs: list[tuple[str, str]], pattern: re.Pattern[str], split: Path) -> np.ndarray:
    """The numbers in the files' names where all have one, else their places."""
    matches = [pattern.fullmatch(file.rpartition("/")[2]) for file, _ in pairs]
    numbers = [int(match[1]) for match in matches if match]
    if len(numbers) < len(pairs):
        return np.arange(len(pairs))
    indices = np.array(numbers, np.int64)
    unique, first = np.unique(indices, return_index=True)
    if len(unique) < len(indices):
        again = np.setdiff1d(np.arange(len(indices)), first)[0]
        raise ValueError(
            f"{pairs[again][0]} in {split} has the number {indices[again]} of another image: "
            "remove one of them"
        )
    return indices


def _some(names: Sequence[str]) -> str:
    """The first few of them."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
