"""A user's own images: `data_dir/NAME/{train,test}/<class>/*.png` and other formats.

`val` may stand for `test`. The classes are the sorted names of the folders, and an image's index
is its position in its split's list of paths, sorted by class and then by path.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxcurv.data.images import decode, height_and_width
from jaxcurv.data.prepared import Examples, find_prepared, prepare

_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


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
    test = next((name for name in ("test", "val") if (directory / name).is_dir()), None)
    if test is None:
        raise FileNotFoundError(f"{directory} has no folder test (or val) beside train")
    trees = {"train": _classes(directory / "train"), "test": _classes(directory / test)}
    if differing := sorted(trees["train"].keys() ^ trees["test"].keys()):
        raise ValueError(
            f"train and {test} of {directory} must have the same class folders, "
            f"but only one has {', '.join(differing[:5])}"
        )
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


def _classes(split: Path) -> dict[str, list[Path]]:
    """The image files of each class, both sorted by name."""
    folders = [path for path in split.iterdir() if path.is_dir() and path.name[0] != "."]
    if not folders:
        raise FileNotFoundError(f"{split} has no class folders: it needs <class>/<image>.png")
    classes = {}
    for folder in sorted(folders, key=lambda path: path.name):
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
