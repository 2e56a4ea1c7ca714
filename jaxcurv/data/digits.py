"""The 8x8 handwritten digits which come with scikit-learn: a data set that needs no file."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from jaxcurv.data.sources import Arrays, ImageDataset
from jaxcurv.extras import not_installed


def load_digits() -> ImageDataset:
    """The 1,797 digits, `[8, 8, 1]`; within each class every third one in file order is for test.

    The grey levels 0..16 become `round(level * 255 / 16)`, no two the same. A sample's index is
    its row in `sklearn.datasets.load_digits`.

    E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
    Repository, 1998.

    Raises:
        ModuleNotFoundError: scikit-learn is not installed.
    """
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise not_installed("the data set digits", "data", ["sklearn"])
    # Its file alone: to import scikit-learn takes a second and more.
    table = np.loadtxt(Path(package.origin).parent / "datasets/data/digits.csv.gz", delimiter=",")
    images, labels = table[:, :-1].reshape(-1, 8, 8), table[:, -1]
    rank_in_class = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        rank_in_class[rows] = np.arange(len(rows))
    every = Arrays(
        images=np.rint(images * 255 / 16).astype(np.uint8)[..., np.newaxis],
        labels=labels.astype(np.int32),
        indices=np.arange(len(labels), dtype=np.int64),
    )
    test = rank_in_class % 3 == 2
    return ImageDataset(
        name="digits",
        class_names=tuple(str(digit) for digit in range(10)),
        train=every.take(np.flatnonzero(~test)),
        test=every.take(np.flatnonzero(test)),
    )
