"""Image data sets as random-access sources of `(image, label, stable index)`, without TensorFlow.

`load` finds a data set, `as_source` makes a source of arrays or of somebody else's data set,
`read` decodes (part of) a source into memory,
`split_validation` and `subset` choose positions by stable index, and `Chosen` is a source of the
samples there, not yet decoded. NumPy only: neither JAX nor torch is used here.
"""

from jaxcurv.data.adapters import as_source
from jaxcurv.data.datasets import load
from jaxcurv.data.normalisation import Normalisation, Normalised
from jaxcurv.data.preprocessing import Preprocessing, choose_preprocessing
from jaxcurv.data.reading import read
from jaxcurv.data.sources import Arrays, ImageDataset, IndexedSource, Sample, Source
from jaxcurv.data.splits import split_validation, subset
from jaxcurv.data.views import Chosen, Labelled, with_labels

__all__ = [
    "Arrays",
    "Chosen",
    "ImageDataset",
    "IndexedSource",
    "Labelled",
    "Normalisation",
    "Normalised",
    "Preprocessing",
    "Sample",
    "Source",
    "as_source",
    "choose_preprocessing",
    "load",
    "read",
    "split_validation",
    "subset",
    "with_labels",
]
