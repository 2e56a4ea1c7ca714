"""Image data sets as random-access sources of `(image, label, stable index)`, without TensorFlow.

`load` finds or prepares a data set, `read` decodes (part of) a source into memory, and
`split_validation` and `subset` choose positions by stable index. NumPy only: neither JAX nor torch
is used here.
"""

from jaxcurv.data.datasets import load
from jaxcurv.data.normalisation import Normalisation, Normalised
from jaxcurv.data.preprocessing import Preprocessing, choose_preprocessing
from jaxcurv.data.sources import Arrays, ImageDataset, IndexedSource, Sample, Source, read
from jaxcurv.data.splits import split_validation, subset

__all__ = [
    "Arrays",
    "ImageDataset",
    "IndexedSource",
    "Normalisation",
    "Normalised",
    "Preprocessing",
    "Sample",
    "Source",
    "choose_preprocessing",
    "load",
    "read",
    "split_validation",
    "subset",
]
