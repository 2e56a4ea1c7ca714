"""Per-sample input loss curvature in JAX: which inputs does a trained model hold most loosely?

The names in `__init__.pyi` are imported when first used.
"""

from jaxcurv import faces

_MOVED = {
    "Published": "jaxcurv.estimators.Published",
    "Recipe": "jaxcurv.training.Recipe",
    "cross_entropy": "jaxcurv.engine.cross_entropy",
    "fit": "jaxcurv.training.fit",
    "keep_trained": "jaxcurv.training.keep_trained",
    "margin_moments": "jaxcurv.margins.margin_moments",
    "margin_table": "jaxcurv.margins.margin_table",
    "probe": "jaxcurv.engine.probe",
    "restore_best": "jaxcurv.training.restore_best",
}

__getattr__, __dir__, __all__ = faces.attach(__name__, __file__, moved=_MOVED)
