"""Per-sample input loss curvature in JAX: which inputs does a trained model hold most loosely?"""

from importlib.metadata import version

from jaxcurv.curvature import Curvature, FiniteDifference, cross_entropy, input_curvature
from jaxcurv.probes import rademacher
from jaxcurv.scoring import score_dataset

__version__ = version("jaxcurv")

__all__ = [
    "Curvature",
    "FiniteDifference",
    "cross_entropy",
    "input_curvature",
    "rademacher",
    "score_dataset",
]
