"""A folder of images as a source that a model takes as it is."""

import os
from collections.abc import Sequence

import numpy as np

from jaxcurv.data.datasets import open_folder
from jaxcurv.data.folder import Split
from jaxcurv.data.normalisation import Normalisation, Normalised
from jaxcurv.data.preprocessing import Interpolation, choose_preprocessing
from jaxcurv.data.splits import subset
from jaxcurv.data.views import Chosen


def image_folder(
    directory: str | os.PathLike[str],
    split: Split | None = None,
    *,
    mean: float | Sequence[float] | np.ndarray = 0.0,
    std: float | Sequence[float] | np.ndarray = 1.0,
    channels: int | None = None,
    image_size: int | None = None,
    resize_size: int | None = None,
    interpolation: Interpolation = "bicubic",
    limit: int | None = None,
    seed: int = 0,
) -> Normalised:
    """The images of a folder, decoded and normalised as they are asked for; writes nothing there.

    A source for `bridge.score`, `bridge.simulate`, `bridge.predict`, `jaxcurv.score_dataset` and
    all else that takes one; their tables then name each image's file.

        images = jaxcurv.image_folder("pngs/test", mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))

    >>> import tempfile, pathlib
    >>> from PIL import Image
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> for name in ("cat", "dog"):
    ...     (folder / name).mkdir()
    ...     Image.new("RGB", (8, 6), "white").save(folder / name / "1.png")
    >>> images = image_folder(folder, mean=0.5, std=0.25)
    >>> images
    <2 samples of Chosen, normalised by Normalisation(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))>
    >>> images.paths.tolist(), images.labels.tolist(), images[0]["image"].shape
    (['cat/1.png', 'dog/1.png'], [0, 1], (6, 8, 3))
    >>> float(images[0]["image"].max())
    2.0

    Args:
        directory: class folders of images (`<class>/*.png`, *.jpg and others), a tree of them
            (`{train,test}/<class>/*.png`; `val` may stand for `test`), or a data set which TFDS has
            prepared as array_record. Classes are numbered in the sorted order of their folders'
            names, and the model's logits must have that order.
        split: which split of a tree or a data set, "train" or "test"; None for test.
        mean: mean of each channel, or one for all, with pixels on the scale 0..1.
        std: standard deviation of each channel, or one for all, on that scale. The model is given
            (pixel / 255 - mean) / std.
        channels: 1 (gray), 3 or 4; None for 3, or what a data set of TFDS has.
        image_size: side in pixels to which images are resized and centre-cropped, for images of
            unequal size; None leaves them as they are.
        resize_size: length in pixels to which the short side is resized before the crop; None for
            `image_size`.
        interpolation: "bilinear" or "bicubic".
        limit: at most so many images, chosen by their indices and the seed; None for all.
        seed: seed of that choice.

    Returns:
        A source of float32 images `[height, width, channel]` in the order of their classes and
        paths, which also has `indices` (int64 `[n]`, from an image's path alone), `labels` (int64
        `[n]`) and `paths` (text `[n]`, relative to the folder).

    Raises:
        FileNotFoundError: the folder, or images in it, are missing.
        ModuleNotFoundError: a package that reads it is not installed; names the extra, "data".
        ValueError: its files are not as they should be, there is no such split, or not one mean
            and standard deviation a channel. When images are read: they are of unequal size.
    """
    images = open_folder(
        directory,
        split,
        channels=channels,
        preprocessing=choose_preprocessing(image_size, resize_size, interpolation),
    )
    given = (_each("mean", mean, images.channels), _each("std", std, images.channels))
    normalisation = Normalisation(*given)
    positions = np.arange(len(images))
    if limit is not None:
        positions = np.sort(subset(np.asarray(images.indices), limit, seed))
    return Normalised(Chosen(images, positions), normalisation)


def _each(
    name: str, given: float | Sequence[float] | np.ndarray, channels: int
) -> tuple[float, ...]:
    """One number a channel."""
    values = tuple(np.atleast_1d(np.asarray(given, np.float64)).tolist())
    if np.ndim(given) == 0:
        return values * channels
    if len(values) != channels:
        raise ValueError(
            f"{name} has {len(values)} value{'s' * (len(values) != 1)}, and the images have "
            f"{channels} channels: give one a channel, or channels=1, 3 or 4 to convert the images"
        )
    return values
